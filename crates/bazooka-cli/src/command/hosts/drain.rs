//! `bazooka hosts drain`: replaces everything on a host elsewhere, then stops it.
//!
//! The converger does the work. This command waits, prints a dot for each instance that has ended there, and reports
//! why the host can't be drained.

use std::{collections::BTreeSet, time::Duration};

use visor::{
    keys,
    mirror::Mirror,
    names::{AppName, HostName, InstanceId},
    schema::{Desired, State},
    snapshot::{HostView, Snapshot},
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    settle::{Line, instances, limit_of_run},
    show::put_line,
    wait::{Look, Service, Waited, Waiting, wait},
};

/// The rest of a host that is being drained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    ids: BTreeSet<InstanceId>,
    /// The services that still have an instance assigned to run there.
    services: BTreeSet<Service>,
    /// The time that these services may show no progress.
    limit: Duration,
}

impl Left {
    fn on(host: &HostName, snapshot: &Snapshot) -> Self {
        let mut left = Left::default();
        let Some(view) = snapshot.hosts.get(host) else { return left };
        for (id, assigned) in &view.assigned {
            if view.status.get(id).is_some_and(|status| State::is_final(status.state)) {
                continue;
            }
            let proc = snapshot.apps.get(&assigned.app).and_then(|app| app.procs.get(&assigned.proc));
            let min_ready = proc.map(|proc| proc.min_ready()).unwrap_or_default();
            left.ids.insert(*id);
            left.limit = left.limit.max(limit_of_run(&assigned.run, min_ready));
            if assigned.desired == Desired::Run {
                left.services.insert((assigned.app.clone(), assigned.proc.clone()));
            }
        }
        left
    }

    fn count(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }
}

fn apps(view: Option<&HostView>) -> BTreeSet<AppName> {
    view.into_iter().flat_map(|view| view.assigned.values()).map(|row| row.app.clone()).collect()
}

/// Drains a host.
///
/// # Errors
/// If an instance can't be placed elsewhere or doesn't end, or no daemon moves it. The host stays to be drained.
pub async fn run(context: &Context, host: &HostName, no_wait: bool) -> Result<()> {
    context.visor.mark_host(host, |meta| meta.draining = true).await?;
    context.note_change();
    let snapshot = context.visor.read(keys::host(host)).await?;
    let left = Left::on(host, &snapshot);
    if no_wait {
        put_line(&format!("{host} is being drained of {}", instances(left.count())));
        return Ok(());
    }
    let line = Line::begin(&format!("{host} {} -> 0", left.ids.len()));
    let apps = apps(snapshot.hosts.get(host));
    let mirror = mirror(context, host, &apps);
    wait(context, &mut Draining { context, host, mirror, apps, left, line }).await
}

/// Creates a mirror of the host that is drained, and of the apps that have instances there.
fn mirror(context: &Context, host: &HostName, apps: &BTreeSet<AppName>) -> Mirror<Snapshot> {
    let mut scopes = keys::host(host);
    for app in apps {
        scopes.extend([keys::pending_of(app), keys::procs_of(app)]);
    }
    Mirror::new(context.visor.store().clone(), scopes, Snapshot::default())
        .with_jitter(u64::from(std::process::id()))
}

/// A host that is being drained.
struct Draining<'a> {
    context: &'a Context,
    host: &'a HostName,
    mirror: Mirror<Snapshot>,
    /// The apps in the mirror.
    apps: BTreeSet<AppName>,
    left: Left,
    line: Line,
}

impl Draining<'_> {
    fn hint(&self) -> String {
        format!("it stays draining; `bazooka hosts uncordon {}` calls it off", self.host)
    }
}

impl Waited for Draining<'_> {
    type Seen = Left;

    async fn next(&mut self) {
        self.mirror.next().await;
    }

    fn look(&mut self) -> Result<Look<Left>> {
        if !self.mirror.is_synced() {
            return Ok(Look::Partial);
        }
        let image = self.mirror.image();
        let now = Left::on(self.host, image);
        self.line.dots(self.left.ids.difference(&now.ids).count());
        self.left = now;
        if self.left.ids.is_empty() {
            return Ok(Look::Done);
        }
        let all = apps(image.hosts.get(self.host));
        if !all.is_subset(&self.apps) {
            self.apps.extend(all);
            self.mirror = mirror(self.context, self.host, &self.apps);
            return Ok(Look::Partial);
        }
        let lacks =
            |(app, proc): &&Service| image.apps.get(app).is_some_and(|app| app.pending.contains_key(proc));
        Ok(Look::Waiting(Waiting {
            without_room: self.left.services.iter().filter(lacks).cloned().collect(),
            limit: self.left.limit,
            seen: self.left.clone(),
        }))
    }

    fn no_room(&self, services: &[Service]) -> Failure {
        let mut failure = Failure::new(Kind::Failed, format!("{} can't be emptied", self.host));
        for (app, proc) in services {
            let row = self.mirror.image().apps.get(app).and_then(|app| app.pending.get(proc));
            let Some(pending) = row else { continue };
            failure = failure.because(format!("{proc} of {app}: {}", pending.reason));
            for line in pending.lines() {
                failure = failure.because(line);
            }
        }
        failure.hint(self.hint())
    }

    fn late(&self, limit: Duration) -> Failure {
        let what = format!("{} on {} don't end", instances(self.left.count()), self.host);
        let ids: Vec<String> = self.left.ids.iter().take(10).map(InstanceId::to_string).collect();
        let cause = format!("nothing has happened for {} s to {}", limit.as_secs(), ids.join(", "));
        Failure::new(Kind::Failed, what).because(cause).hint(self.hint())
    }

    fn nobody(&self, missing: String) -> Failure {
        Failure::new(Kind::PartMissing, missing).hint(self.hint())
    }

    fn out_of_touch(&self) -> Failure {
        Failure::new(Kind::Coordinator, "the coordinator has been out of touch for 15 s").hint(self.hint())
    }
}
