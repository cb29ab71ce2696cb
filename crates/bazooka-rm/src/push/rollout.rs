//! The rollout after a push, reported step by step.
//!
//! Owns only the report: the rollout goes on without a listener.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use visor::{
    deadlines::NO_ROOM,
    keys,
    mirror::Mirror,
    names::{AppName, HostName, InstanceId, ProcName, RevId},
    pause::until,
    progress::{Observed, Progress, Verdict, progress, was_failing},
    schema::{Desired, State},
    snapshot::{AppView, Snapshot},
    visor::{Visor, VisorError},
};

use super::{
    state::{Push, Trial},
    trial::Releaser,
};
use crate::voice::Voice;

/// The number of running instances of each proc and rev.
type Running = BTreeMap<(ProcName, RevId), u32>;

/// The state of an app before its release's trial.
#[derive(Clone, Debug, Default)]
pub struct Before {
    running: Running,
    /// The procs that were failing.
    pub failing: BTreeSet<ProcName>,
}

impl Before {
    /// Reads the state of an app.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(visor: &Visor, app: &AppName, now: Timestamp) -> Result<Before, VisorError> {
        let snapshot = visor.read(keys::app(app)).await?;
        let Some(view) = snapshot.apps.get(app) else { return Ok(Before::default()) };
        let of = view.instances.iter().map(|(id, instance)| (instance.host.clone(), *id));
        let statuses = visor.statuses(of).await?;
        let mut observed = Observed::default();
        for (id, status) in &statuses {
            observed.statuses.insert(*id, (&status.value, status.mod_revision));
        }
        let failing = view.procs.keys().filter(|proc| was_failing(view, &observed, proc, now));
        Ok(Before { failing: failing.cloned().collect(), running: running(view, &observed, |_| true) })
    }
}

impl Releaser {
    /// Reports each step until the rollout has converged, is stuck, is paused or finds no room, until the time for
    /// reports has passed, or until the pusher has left.
    pub(super) async fn stream(
        &self,
        push: &Push,
        trial: Trial,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) {
        tokio::select! {
            biased;
            () = self.report(push, trial, voice) => {}
            () = cancelled.cancelled() => {}
            () = push.gone.cancelled() => {}
            () = tokio::time::sleep(self.times.rollout) => {
                voice.say("the rollout goes on; `bazooka ps` shows how far it is").await;
            }
        }
    }

    async fn report(&self, push: &Push, trial: Trial, voice: &Voice) {
        let app = &push.app;
        let Some(view) = self.apps.view(app) else { return };
        for proc in &trial.before.failing {
            voice.say(format!("{proc} failed before and isn't waited for: bazooka why {proc}")).await;
        }
        let mut hosts = hosts_of(&view);
        let mut seen = trial.before.running.clone();
        let mut no_room_since: Option<Instant> = None;
        loop {
            // Assignments and statuses are watched only for the hosts of this app's instances.
            let mut scopes = keys::app(app);
            scopes.extend(hosts.iter().flat_map(|host| [keys::assigned_to(host), keys::status_of(host)]));
            let mut mirror = Mirror::new(self.visor.store().clone(), scopes, Snapshot::default());
            loop {
                let give_up = no_room_since.map(|since| since + NO_ROOM);
                tokio::select! {
                    biased;
                    _ = mirror.next() => {}
                    () = until(give_up) => {}
                }
                let snapshot = mirror.image();
                let Some(view) = snapshot.apps.get(app).filter(|_| mirror.is_synced()) else { continue };
                let observed = Observed::of(snapshot, app);
                report_steps(&mut seen, view, &observed, &trial, voice).await;
                if let Some(last) = last_word(view, &observed, &trial, &mut no_room_since) {
                    if let Some(words) = last {
                        voice.say(words).await;
                    }
                    return;
                }
                let needed = hosts_of(view);
                if !needed.is_subset(&hosts) {
                    hosts.extend(needed);
                    break;
                }
            }
        }
    }
}

/// Reports each change of the running instances since the last call.
async fn report_steps(
    seen: &mut Running,
    view: &AppView,
    observed: &Observed<'_>,
    trial: &Trial,
    voice: &Voice,
) {
    // An assignment goes before the instance's other rows do, and these come by watches of their own.
    let mut now = running(view, observed, |id| observed.desired.get(&id) == Some(&Desired::Run));
    // A failing proc's instances come and go by themselves: those changes are no steps of this rollout.
    now.retain(|(proc, _), _| !trial.before.failing.contains(proc));
    seen.retain(|(proc, _), _| !trial.before.failing.contains(proc));
    for line in steps(seen, &now) {
        voice.say(line).await;
    }
    *seen = now;
}

/// Returns the last words, if the report is over; `Some(None)` if the rollout has converged.
fn last_word(
    view: &AppView,
    observed: &Observed<'_>,
    trial: &Trial,
    no_room_since: &mut Option<Instant>,
) -> Option<Option<String>> {
    let release = trial.release;
    if let Some(row) = view.releases.get(&release).filter(|row| row.was_aborted()) {
        let head = view.head.as_ref().map(|head| head.release.to_string()).unwrap_or_default();
        let cause = row.cause.as_deref().unwrap_or_default();
        return Some(Some(format!("{release} was {cause}: {head} is current again")));
    }
    let awaited = view.procs.keys().filter(|proc| !trial.before.failing.contains(*proc));
    let all: Vec<Progress> = awaited.map(|proc| progress(view, observed, proc)).collect();
    let pending = all.iter().find_map(|progress| progress.pending.as_ref());
    *no_room_since = pending.map(|_| no_room_since.unwrap_or_else(Instant::now));
    if all.iter().all(|progress| progress.verdict == Verdict::Converged) {
        return Some(None);
    }
    if all.iter().all(|progress| matches!(progress.verdict, Verdict::Converged | Verdict::Paused)) {
        let by = view.pause.as_ref().map(|pause| pause.by.as_str()).unwrap_or_default();
        return Some(Some(format!("the rollout is paused by {by}; `bazooka rollout resume` goes on")));
    }
    let stuck = all.iter().find_map(|progress| match &progress.verdict {
        Verdict::Stuck { cause } => Some(cause.clone()),
        _ => None,
    });
    // A failing proc must not hide the outcome of the others.
    let others_done = all.iter().all(|progress| progress.verdict != Verdict::Underway);
    if let Some(cause) = stuck.filter(|_| others_done) {
        return Some(Some(format!("the rollout stopped: {cause}")));
    }
    let pending = pending.filter(|_| no_room_since.is_some_and(|at| at.elapsed() >= NO_ROOM))?;
    Some(Some(format!("the rollout waits: {}", pending.reason)))
}

fn hosts_of(view: &AppView) -> BTreeSet<HostName> {
    view.instances.values().map(|instance| instance.host.clone()).collect()
}

/// Counts the instances that run and are to go on running.
fn running(view: &AppView, observed: &Observed<'_>, goes_on: impl Fn(InstanceId) -> bool) -> Running {
    let mut running = Running::new();
    for (id, instance) in &view.instances {
        let runs = observed.statuses.get(id).is_some_and(|(status, _)| status.state == State::Running);
        if runs && goes_on(*id) {
            *running.entry((instance.proc.clone(), instance.rev.clone())).or_insert(0) += 1;
        }
    }
    running
}

/// Returns a line for each proc and rev whose number of running instances changed, with a dot for each instance as
/// `scale` prints it.
fn steps(before: &Running, now: &Running) -> Vec<String> {
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let count = |running: &Running, key| running.get(key).copied().unwrap_or(0);
    let mut lines: Vec<(bool, String)> = keys
        .into_iter()
        .filter_map(|key @ (proc, rev)| {
            let (from, to) = (count(before, key), count(now, key));
            let dots = ".".repeat(from.abs_diff(to) as usize);
            (from != to).then(|| (to < from, format!("{proc}@{} {from} -> {to} {dots}", rev.short())))
        })
        .collect();
    // Starts are printed before stops.
    lines.sort_by_key(|(stops, _)| *stops);
    lines.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_a_line_and_what_starts_comes_first() {
        let rev = |digit: char| -> RevId { digit.to_string().repeat(40).parse().expect("valid") };
        let web: ProcName = "web".parse().expect("valid");
        let before = Running::from([((web.clone(), rev('1')), 3), ((web.clone(), rev('2')), 1)]);
        let after = Running::from([((web.clone(), rev('1')), 2), ((web, rev('2')), 3)]);
        assert_eq!(steps(&before, &after), ["web@2222222 1 -> 3 ..", "web@1111111 3 -> 2 ."]);
        assert!(steps(&after, &after).is_empty());
    }
}
