//! How far a service is from what is wanted of it.
//!
//! Owns one pure judgement over an image, shared by whoever waits for a change: `bazooka scale`, a
//! config change, a push that streams its rollout. It knows no time: how long "no room" may last before
//! it is a failure is the caller's to measure ([`NO_ROOM`](crate::deadlines::NO_ROOM)).

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

/// What hosts were told and what they say, by instance. Where nothing is known yet, there is no entry.
#[derive(Clone, Debug, Default)]
pub struct Observed<'a> {
    /// What each instance is meant to do. One that is missing is taken to run.
    pub desired: BTreeMap<InstanceId, Desired>,
    /// What its host says, and at which revision it said so.
    pub statuses: BTreeMap<InstanceId, (&'a Status, Revision)>,
}

impl<'a> Observed<'a> {
    /// What a snapshot that holds the app's hosts says of its instances.
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

/// Whether a service is as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exactly what is wanted runs, and nothing else of it.
    Converged,
    /// As many run as are wanted, some of them of an earlier release, and stay so until the app's rollouts
    /// are let go on.
    Paused,
    /// There is still something to come, and nothing that stands in its way for good.
    Underway,
    /// What is wanted fails: it may get better by itself, but nobody should wait for it.
    Stuck {
        /// Why, in one line, for people.
        cause: String,
    },
}

/// How far a service has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many instances of each release should run.
    pub wanted: BTreeMap<ReleaseId, u32>,
    /// How many of those run and are to go on. Releases that nobody wants are left out.
    pub running: BTreeMap<ReleaseId, u32>,
    /// Those that were placed and don't run yet.
    pub starting: Vec<InstanceId>,
    /// Those that are to go: too many, of an old release, or to be replaced.
    pub stopping: Vec<InstanceId>,
    /// Those of the wanted ones that fail, and why.
    pub failing: Vec<(InstanceId, String)>,
    /// What has no place, and why.
    pub pending: Option<Pending>,
    /// The revision of the latest report of a wanted instance that runs: a proxy that has applied it routes
    /// them all.
    pub routed_at: Revision,
    /// The judgement.
    pub verdict: Verdict,
}

impl Progress {
    /// How many should run in all.
    pub fn wanted_in_all(&self) -> u32 {
        self.wanted.values().sum()
    }

    /// How many of them run.
    pub fn running_in_all(&self) -> u32 {
        self.running.values().sum()
    }
}

/// Judges how far a service has come.
///
/// Instances of a release that is on trial are neither wanted nor in the way: they are the trial's.
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
        // As the converger chooses them.
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

/// Whether a proc was failing before a change, by the clock that people read.
pub fn was_failing(view: &AppView, observed: &Observed<'_>, proc: &ProcName, now: Timestamp) -> bool {
    failing::was_failing(view, proc, |id| {
        let status = observed.status(id);
        let is_steady = status.is_some_and(|status| now.duration_since(status.since) >= STEADY_AFTER);
        Seen { status, is_meant_to_run: observed.is_meant_to_run(id), is_steady }
    })
}

/// Whether a pause keeps a service as it is: what isn't of a wanted release serves in the place of what is.
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

/// Whether an instance that is meant to run doesn't, and isn't about to.
fn is_over_or_down(status: &Status) -> bool {
    is_down(status.state) || status.state == State::Exited
}

/// Whether waiting on is pointless: a crash is the app's own, while what failed for its host's sake is
/// replaced on another.
fn is_for_good(status: Option<&Status>) -> bool {
    status.is_some_and(|status| match status.state {
        State::Backoff => true,
        State::Failed => !matches!(status.fault, Some(Fault::Host | Fault::NoPort)),
        State::Claimed | State::Running | State::Stopping | State::Exited | State::Lost => false,
    })
}
