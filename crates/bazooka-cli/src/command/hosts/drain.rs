//! `bazooka hosts drain`: everything on a host is replaced elsewhere, then stopped.
//!
//! The converger does it; this waits, with a dot for each instance that has ended there, and says why
//! when it can't be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use visor::{
    deadlines::{COMMAND_QUIET, NO_ROOM, OUT_OF_TOUCH},
    keys,
    mirror::Mirror,
    names::{AppName, HostName, InstanceId, ProcName},
    schema::{Desired, State},
    snapshot::{HostView, Snapshot},
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    settle::{Line, instances, limit_of_run, who_is_missing},
    show::{put_line, say},
};

/// What is still there on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    ids: BTreeSet<InstanceId>,
    /// The services of which something is still meant to run there.
    services: BTreeSet<(AppName, ProcName)>,
    /// How long they may show no progress.
    limit: Duration,
}

impl Left {
    fn on(view: Option<&HostView>) -> Self {
        let mut left = Left::default();
        let Some(view) = view else { return left };
        for (id, assigned) in &view.assigned {
            if view.status.get(id).is_some_and(|status| State::is_final(status.state)) {
                continue;
            }
            left.ids.insert(*id);
            left.limit = left.limit.max(limit_of_run(&assigned.run));
            if assigned.desired == Desired::Run {
                left.services.insert((assigned.app.clone(), assigned.proc.clone()));
            }
        }
        left
    }

    fn apps(view: Option<&HostView>) -> BTreeSet<AppName> {
        view.into_iter().flat_map(|view| view.assigned.values()).map(|row| row.app.clone()).collect()
    }
}

/// Drains a host.
///
/// # Errors
/// If something there has nowhere to go, doesn't end, or nobody moves it; it stays wanted.
pub async fn run(context: &Context, host: &HostName, no_wait: bool) -> Result<()> {
    context.visor.mark_host(host, |meta| meta.draining = true).await?;
    context.note_change();
    let snapshot = context.visor.read(keys::host(host)).await?;
    let (mut left, mut apps) = (Left::on(snapshot.hosts.get(host)), Left::apps(snapshot.hosts.get(host)));
    if no_wait {
        put_line(&format!("{host} is being drained of {}", instances(count(&left))));
        return Ok(());
    }
    let mut line = Line::begin(&format!("{host} {} -> 0", left.ids.len()));
    let mut patience = Patience::begin();
    loop {
        let mut scopes = keys::host(host);
        scopes.extend(apps.iter().map(keys::pending_of));
        let mut mirror = Mirror::new(context.visor.store().clone(), scopes, Snapshot::default())
            .with_jitter(u64::from(std::process::id()));
        loop {
            let wake = patience.wakes_at(&left);
            tokio::select! {
                _ = mirror.next() => {}
                () = sleep_until(wake) => {}
            }
            if mirror.is_synced() {
                let view = mirror.image().hosts.get(host);
                let now = Left::on(view);
                line.dots(left.ids.difference(&now.ids).count());
                patience.note(now != left);
                left = now;
                if left.ids.is_empty() {
                    return Ok(());
                }
                let all = Left::apps(view);
                if !all.is_subset(&apps) {
                    apps.extend(all);
                    break;
                }
            }
            patience.judge(context, host, &left, mirror.image(), mirror.is_synced()).await?;
        }
    }
}

fn count(left: &Left) -> u32 {
    u32::try_from(left.ids.len()).unwrap_or(u32::MAX)
}

/// Since when something has been waited for.
struct Patience {
    /// When something happened last.
    since: Instant,
    out_of_touch: Option<Instant>,
    no_room: BTreeMap<(AppName, ProcName), Instant>,
    /// How often it was looked for who should act.
    asked: u8,
}

impl Patience {
    fn begin() -> Self {
        Patience { since: Instant::now(), out_of_touch: None, no_room: BTreeMap::new(), asked: 0 }
    }

    fn note(&mut self, changed: bool) {
        if changed {
            (self.since, self.asked) = (Instant::now(), 0);
        }
    }

    fn wakes_at(&self, left: &Left) -> Instant {
        let ask = match self.asked {
            0 => Some(self.since + COMMAND_QUIET),
            1 => Some(self.since + NO_ROOM),
            _ => None,
        };
        let no_room = self.no_room.values().min().map(|since| *since + NO_ROOM);
        let out_of_touch = self.out_of_touch.map(|since| since + OUT_OF_TOUCH);
        let alarms = [ask, no_room, out_of_touch, Some(self.since + left.limit)];
        let soonest = alarms.into_iter().flatten().min().unwrap_or(self.since + OUT_OF_TOUCH);
        // What is due and has led to nothing must not spin.
        soonest.max(Instant::now() + Duration::from_millis(50))
    }

    async fn judge(
        &mut self,
        context: &Context,
        host: &HostName,
        left: &Left,
        image: &Snapshot,
        is_synced: bool,
    ) -> Result<()> {
        let now = Instant::now();
        let hint = format!("it stays draining; `bazooka hosts uncordon {host}` calls it off");
        if !is_synced {
            let since = *self.out_of_touch.get_or_insert(now);
            return if now < since + OUT_OF_TOUCH {
                Ok(())
            } else {
                let what = "the coordinator has been out of touch for 15 s";
                Err(Failure::new(Kind::Coordinator, what).hint(hint))
            };
        }
        self.out_of_touch = None;
        let row = |(app, proc): &(AppName, ProcName)| image.apps.get(app)?.pending.get(proc);
        self.no_room.retain(|service, _| left.services.contains(service) && row(service).is_some());
        for service in left.services.iter().filter(|service| row(service).is_some()) {
            self.no_room.entry(service.clone()).or_insert(now);
        }
        let stuck: Vec<_> = self.no_room.iter().filter(|(_, since)| now >= **since + NO_ROOM).collect();
        if !stuck.is_empty() {
            let mut failure = Failure::new(Kind::Failed, format!("{host} can't be emptied"));
            for (service, _) in stuck {
                let Some(pending) = row(service) else { continue };
                failure = failure.because(format!("{} of {}: {}", service.1, service.0, pending.reason));
                for (host, refusal) in &pending.refusals {
                    failure = failure.because(format!("{host} {refusal}"));
                }
            }
            return Err(failure.hint(hint));
        }
        if now >= self.since + left.limit {
            let what = format!("{} on {host} don't end", instances(count(left)));
            let ids: Vec<String> = left.ids.iter().take(10).map(InstanceId::to_string).collect();
            let cause = format!("nothing has happened for {} s to {}", left.limit.as_secs(), ids.join(", "));
            return Err(Failure::new(Kind::Failed, what).because(cause).hint(hint));
        }
        self.ask(context, hint, now).await
    }

    /// Looks for who should act once it has been quiet, and gives up if there is nobody.
    async fn ask(&mut self, context: &Context, hint: String, now: Instant) -> Result<()> {
        let after = match self.asked {
            0 => COMMAND_QUIET,
            1 => NO_ROOM,
            _ => return Ok(()),
        };
        if now < self.since + after {
            return Ok(());
        }
        self.asked += 1;
        match who_is_missing(context).await {
            Some(missing) if self.asked > 1 => Err(Failure::new(Kind::PartMissing, missing).hint(hint)),
            Some(missing) => {
                say(&format!("waiting: {missing}"));
                Ok(())
            }
            None => Ok(()),
        }
    }
}
