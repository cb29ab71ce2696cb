//! The progress of a service towards what is wanted of it.
//!
//! Owns one pure judgement over an image, shared by all that wait for a change: `bazooka scale`, a config change, a
//! push that streams its rollout. It knows no time: the caller measures how long "no room" may last before it is a
//! failure ([`NO_ROOM`](crate::deadlines::NO_ROOM)).

#[cfg(test)]
mod cases;
mod words;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use words::{cause_of, frozen_words, missing, who_is_missing};

use crate::{
    names::{AppName, InstanceId, ProcName, ReleaseId},
    rules::{
        failing::{self, STEADY_AFTER, Seen, is_down},
        order::{Health, staying},
        replacing::is_to_restart,
    },
    schema::{Desired, Fault, Pending, State, Status},
    snapshot::{AppView, Snapshot},
    store::Revision,
};

/// The assignments and reports of instances. An instance of which nothing is known has no entry.
#[derive(Clone, Debug, Default)]
pub struct Observed<'a> {
    /// The wanted state of each instance; a missing one counts as `run`.
    pub desired: BTreeMap<InstanceId, Desired>,
    /// The status that its host reports, with the revision of the report.
    pub statuses: BTreeMap<InstanceId, (&'a Status, Revision)>,
}

impl<'a> Observed<'a> {
    /// Returns what a snapshot with the app's hosts has of its instances.
    pub fn of(snapshot: &'a Snapshot, app: &AppName) -> Self {
        let mut observed = Observed::default();
        let Some(view) = snapshot.apps.get(app) else { return observed };
        for (id, instance) in &view.instances {
            let Some(host) = snapshot.hosts.get(&instance.host) else { continue };
            if let Some(assigned) = host.assigned.get(id) {
                observed.desired.insert(*id, assigned.desired);
            }
            if let Some(status) = host.status.get(id) {
                observed.statuses.insert(*id, (&status.value, status.mod_revision));
            }
        }
        observed
    }

    fn status(&self, id: InstanceId) -> Option<&'a Status> {
        self.statuses.get(&id).map(|(status, _)| *status)
    }

    fn state(&self, id: InstanceId) -> Option<State> {
        self.status(id).map(|status| status.state)
    }

    fn is_meant_to_run(&self, id: InstanceId) -> bool {
        self.desired.get(&id).is_none_or(|desired| *desired == Desired::Run)
    }
}

/// The judgement on a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exactly the wanted instances run, and no others of the service.
    Converged,
    /// As many instances run as are wanted, some of them of an earlier release, until the app's rollouts are resumed.
    Paused,
    /// Something is still missing, and nothing prevents it for good.
    Underway,
    /// The wanted instances fail: this may heal by itself, but is not worth waiting for.
    Stuck {
        /// The reason in one line, for people.
        cause: String,
    },
}

/// The progress of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The number of instances of each release that should run.
    pub wanted: BTreeMap<ReleaseId, u32>,
    /// The number of those that run and are to go on, without releases that are not wanted.
    pub running: BTreeMap<ReleaseId, u32>,
    /// The instances that were placed and do not run yet.
    pub starting: Vec<InstanceId>,
    /// The instances that are to go: too many, of an old release, or to be replaced.
    pub stopping: Vec<InstanceId>,
    /// The wanted instances that fail, with the reason.
    pub failing: Vec<(InstanceId, String)>,
    /// The instances without a place, with the reason.
    pub pending: Option<Pending>,
    /// The revision of the latest report of a wanted, running instance: a proxy that has applied it routes all of them.
    pub routed_at: Revision,
    /// The judgement.
    pub verdict: Verdict,
}

impl Progress {
    /// Returns how many instances of all releases should run.
    pub fn wanted_in_all(&self) -> u32 {
        self.wanted.values().sum()
    }

    /// Returns how many of them run.
    pub fn running_in_all(&self) -> u32 {
        self.running.values().sum()
    }
}

/// Judges the progress of a service.
///
/// Instances of a release on trial are neither wanted nor in the way, because they belong to the trial.
pub fn progress(view: &AppView, observed: &Observed<'_>, proc: &ProcName) -> Progress {
    let wanted = view.wanted(proc);
    let trial = view.trial.as_ref().map(|trial| trial.release);
    let mut running = BTreeMap::new();
    let (mut starting, mut stopping, mut failing) = (Vec::new(), Vec::new(), Vec::new());
    let mut routed_at = 0;

    let mut by_release: BTreeMap<ReleaseId, Vec<(InstanceId, u32)>> = BTreeMap::new();
    for (id, instance) in view.instances.iter().filter(|(_, instance)| instance.proc == *proc) {
        let counts = wanted.contains_key(&instance.release);
        if trial == Some(instance.release) && !counts {
            continue;
        }
        if !counts || !observed.is_meant_to_run(*id) || is_to_restart(view, proc, *id) {
            stopping.push(*id);
        } else {
            by_release.entry(instance.release).or_default().push((*id, instance.index));
        }
    }
    for (release, mut ids) in by_release {
        let count = wanted.get(&release).copied().unwrap_or(0);
        // This is the order in which the converger chooses them.
        ids.sort_by_key(|(id, index)| staying(Health::of(observed.state(*id)), *index, *id));
        for (place, (id, _)) in (0..).zip(ids) {
            if place >= count {
                stopping.push(id);
                continue;
            }
            match observed.statuses.get(&id) {
                Some((status, revision)) if status.state == State::Running => {
                    *running.entry(release).or_insert(0) += 1;
                    routed_at = routed_at.max(*revision);
                }
                Some((status, _)) if is_over_or_down(status) => failing.push((id, cause_of(status))),
                _ => starting.push(id),
            }
        }
    }
    stopping.sort();

    let pending = view.pending.get(proc).map(|pending| pending.value.clone());
    let verdict = if let Some((id, cause)) = failing.iter().find(|(id, _)| is_for_good(observed.status(*id)))
    {
        Verdict::Stuck { cause: format!("instance {id} of {proc}: {cause}") }
    } else if running == wanted && stopping.is_empty() {
        Verdict::Converged
    } else if holds_still(view, observed, proc, &running, &wanted, &stopping) {
        Verdict::Paused
    } else {
        Verdict::Underway
    };
    Progress { wanted, running, starting, stopping, failing, pending, routed_at, verdict }
}

/// Reports whether a proc was failing before a change, by the wall clock.
pub fn was_failing(view: &AppView, observed: &Observed<'_>, proc: &ProcName, now: Timestamp) -> bool {
    failing::was_failing(view, proc, |id| {
        let status = observed.status(id);
        let is_steady = status.is_some_and(|status| now.duration_since(status.since) >= STEADY_AFTER);
        Seen { status, is_meant_to_run: observed.is_meant_to_run(id), is_steady }
    })
}

/// Reports whether a pause keeps a service as it is: instances of other releases serve in place of wanted ones.
fn holds_still(
    view: &AppView,
    observed: &Observed<'_>,
    proc: &ProcName,
    running: &BTreeMap<ReleaseId, u32>,
    wanted: &BTreeMap<ReleaseId, u32>,
    stopping: &[InstanceId],
) -> bool {
    let held = |id: &InstanceId| {
        let old = view.instances.get(id).is_some_and(|row| !wanted.contains_key(&row.release));
        old && observed.is_meant_to_run(*id)
            && observed.state(*id) == Some(State::Running)
            && !view.pending.contains_key(proc)
    };
    let missing = wanted.values().sum::<u32>().saturating_sub(running.values().sum());
    view.pause.is_some()
        && missing > 0
        && stopping.iter().all(held)
        && usize::try_from(missing).is_ok_and(|missing| missing == stopping.len())
}

/// Reports whether an instance that is meant to run is not running and not about to.
fn is_over_or_down(status: &Status) -> bool {
    is_down(status.state) || status.state == State::Exited
}

/// Reports whether waiting on is pointless: a crash is the app's own fault, while an instance that failed through its
/// host is replaced on another.
fn is_for_good(status: Option<&Status>) -> bool {
    status.is_some_and(|status| match status.state {
        State::Backoff => true,
        State::Failed => !matches!(status.fault, Some(Fault::Host | Fault::NoPort)),
        State::Claimed | State::Running | State::Stopping | State::Exited | State::Lost => false,
    })
}
