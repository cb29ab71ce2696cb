//! The converger's memory: how long each condition has lasted, which the coordinator doesn't store.
//!
//! Owns times on this process's own monotonic clock. A converger begins with an empty memory, so correctness may not
//! depend on it; an empty memory only delays steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use visor::{
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId},
    rules::{
        failing::{STEADY_AFTER, Seen, was_failing},
        wanted::Wanted,
    },
    schema::{Desired, Fault, ReleaseStatus, State, Status},
    snapshot::{AppView, Snapshot},
    transitions::releases::concerned,
};

#[cfg(test)]
use super::facts::Reader;
use super::{facts::Facts, hosts::Hosts};

/// The time for which failures are remembered. Meanwhile replacements avoid those hosts and come more slowly.
pub const REMEMBER_FAILURES: Duration = Duration::from_secs(600);

/// The time over which the starts of a failing release are counted.
pub const START_WINDOW: Duration = Duration::from_secs(60);

/// The current moment, on the clock that decisions use and on the clock that people read.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic clock, which times everything.
    pub clock: Instant,
    /// The wall clock, for times that are written down.
    pub wall: Timestamp,
}

impl Now {
    /// Returns when `at` was on the monotonic clock, if that is at most `within` ago. If the wall clock was set back
    /// since, `at` counts as now.
    fn back(&self, at: Timestamp, within: Duration) -> Option<Instant> {
        let ago = Duration::try_from(self.wall.duration_since(at)).unwrap_or_default();
        if ago > within { None } else { self.clock.checked_sub(ago) }
    }
}

/// Everything that the converger remembers.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The memory of each app.
    pub apps: BTreeMap<AppName, AppMemory>,
    /// The hosts that are gone, and since when.
    pub hosts: Hosts,
}

/// The converger's memory of one app.
#[derive(Clone, Debug, Default)]
pub struct AppMemory {
    /// Each healthy instance, with the start of its current healthy time.
    healthy: BTreeMap<InstanceId, Healthy>,
    /// The time at which each draining instance was first seen draining.
    draining: BTreeMap<InstanceId, Instant>,
    /// The current trial.
    pub trial: Option<TrialMemory>,
    /// The time at which a release was first seen with fewer instances than wanted.
    short: BTreeMap<(ProcName, ReleaseId), Instant>,
    /// The instances that failed for good within [`REMEMBER_FAILURES`].
    pub failures: BTreeMap<InstanceId, Failure>,
    /// The instances that were placed within [`START_WINDOW`].
    starts: BTreeMap<InstanceId, Start>,
}

/// The start of an instance's current healthy time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Healthy {
    /// Distinguishes one run from the next by the host's own times, which are never compared with our clock.
    run: (Timestamp, u32),
    since: Instant,
}

/// The converger's memory of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialMemory {
    /// The release on trial.
    pub release: ReleaseId,
    /// The time at which this process first saw the trial.
    pub begun: Instant,
    /// The procs that were failing in the old release when the trial began.
    pub excused: BTreeSet<ProcName>,
}

/// An instance that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The instance's proc.
    pub proc: ProcName,
    /// The instance's release.
    pub release: ReleaseId,
    /// The host that it failed on.
    pub host: HostName,
    /// The part that was at fault.
    pub fault: Fault,
    /// The cause, for people.
    pub cause: String,
    /// The time at which this process saw the failure.
    pub at: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    proc: ProcName,
    release: ReleaseId,
    at: Instant,
}

impl Memory {
    /// Records what the image shows of the hosts. Returns whether a host came, went, or is judged anew.
    pub fn observe_hosts(&mut self, snapshot: &Snapshot, now: Now) -> bool {
        self.hosts.observe(snapshot, now.clock)
    }

    /// Records what the image shows of one app, with all of its instances.
    pub fn observe_app(&mut self, snapshot: &Snapshot, name: &AppName, instances: &[Facts<'_>], now: Now) {
        match snapshot.apps.get(name) {
            Some(view) => self.apps.entry(name.clone()).or_default().observe(view, instances, now),
            None => drop(self.apps.remove(name)),
        }
    }

    /// Records everything that the image shows.
    #[cfg(test)]
    pub fn observe(&mut self, snapshot: &Snapshot, now: Now) {
        self.observe_hosts(snapshot, now);
        self.apps.retain(|name, _| snapshot.apps.contains_key(name));
        for (name, instances) in Reader::of(snapshot).apps(snapshot.apps.keys()) {
            self.observe_app(snapshot, name, &instances, now);
        }
    }

    /// Returns the apps with draining instances, the only ones that a change of a proxy's row concerns.
    pub fn draining_apps(&self) -> impl Iterator<Item = &AppName> {
        self.apps.iter().filter(|(_, memory)| !memory.draining.is_empty()).map(|(name, _)| name)
    }
}

impl AppMemory {
    fn observe(&mut self, view: &AppView, instances: &[Facts<'_>], now: Now) {
        let there = |id: &InstanceId| view.instances.contains_key(id);
        self.healthy.retain(|id, _| there(id));
        self.draining.retain(|id, _| there(id));
        self.failures.retain(|_, failure| now.clock.duration_since(failure.at) <= REMEMBER_FAILURES);
        self.starts.retain(|_, start| now.clock.duration_since(start.at) <= START_WINDOW);
        instances.iter().for_each(|facts| self.observe_instance(facts, now));
        for ((proc, id), ended) in &view.history {
            if let Some(status) = ended.status.as_ref().filter(|status| status.state == State::Failed)
                && !self.failures.contains_key(id)
                && let Some(at) = now.back(status.since, REMEMBER_FAILURES)
            {
                let (release, host) = (ended.instance.release, &ended.instance.host);
                self.failures.insert(*id, failure(proc, release, host, status, at));
            }
        }
        self.observe_trial(view, instances, now);
        let wanted = Wanted::of(view);
        let there = instances.iter().filter(|facts| facts.desired() == Desired::Run && !facts.is_over());
        let short = wanted.short(there.map(|facts| (&facts.row.proc, facts.row.release)));
        self.short.retain(|(proc, release), _| short.contains(&(proc, *release)));
        for (proc, release) in short {
            self.short.entry((proc.clone(), release)).or_insert(now.clock);
        }
    }

    fn observe_instance(&mut self, facts: &Facts<'_>, now: Now) {
        let (id, row) = (facts.id, facts.row);
        match facts.status.filter(|_| facts.runs()) {
            Some(status) => {
                let run = (status.started_at.unwrap_or(status.since), status.restarts);
                let healthy = self.healthy.entry(id).or_insert(Healthy { run, since: now.clock });
                if healthy.run != run {
                    *healthy = Healthy { run, since: now.clock };
                }
            }
            None => drop(self.healthy.remove(&id)),
        }
        if facts.desired() == Desired::Drain {
            self.draining.entry(id).or_insert(now.clock);
        } else {
            self.draining.remove(&id);
        }
        if let Some(status) = facts.status.filter(|status| status.state == State::Failed) {
            let noted = || failure(&row.proc, row.release, &row.host, status, now.clock);
            self.failures.entry(id).or_insert_with(noted);
        }
        if !self.starts.contains_key(&id)
            && let Some(at) = now.back(row.placed_at, START_WINDOW)
        {
            self.starts.insert(id, Start { proc: row.proc.clone(), release: row.release, at });
        }
    }

    fn observe_trial(&mut self, view: &AppView, instances: &[Facts<'_>], now: Now) {
        let Some(trial) = &view.trial else {
            self.trial = None;
            return;
        };
        if self.trial.as_ref().is_some_and(|noted| noted.release == trial.release) {
            return;
        }
        let release = view.releases.get(&trial.release);
        let trying = release.filter(|release| release.status == ReleaseStatus::Trying);
        let procs = trying.map_or_else(Vec::new, |release| concerned(view, release));
        let excused = procs.into_iter().filter(|proc| self.was_failing(view, instances, proc, now)).cloned();
        self.trial =
            Some(TrialMemory { release: trial.release, begun: now.clock, excused: excused.collect() });
    }

    /// Reports whether a proc was failing before, with its instances' health timed on our own clock.
    fn was_failing(&self, view: &AppView, instances: &[Facts<'_>], proc: &ProcName, now: Now) -> bool {
        let steady_after = STEADY_AFTER.unsigned_abs();
        was_failing(view, proc, |id| {
            let at = instances.binary_search_by_key(&id, |facts| facts.id).ok();
            let facts = at.map(|at| &instances[at]);
            Seen {
                status: facts.and_then(|facts| facts.status).map(|status| &status.value),
                is_meant_to_run: facts.is_some_and(|facts| facts.desired() == Desired::Run),
                is_steady: self.is_ready(id, steady_after, now),
            }
        })
    }

    /// Returns when an instance will have been healthy for `min_ready`; none unless it is healthy now.
    pub fn ready_at(&self, id: InstanceId, min_ready: Duration) -> Option<Instant> {
        self.healthy.get(&id).map(|healthy| healthy.since + min_ready)
    }

    /// Reports whether an instance has been healthy for `min_ready`.
    pub fn is_ready(&self, id: InstanceId, min_ready: Duration, now: Now) -> bool {
        self.ready_at(id, min_ready).is_some_and(|at| at <= now.clock)
    }

    /// Returns when this process first saw an instance draining.
    pub fn draining_since(&self, id: InstanceId) -> Option<Instant> {
        self.draining.get(&id).copied()
    }

    /// Returns when this process first saw too few instances of a release.
    pub fn short_since(&self, proc: &ProcName, release: ReleaseId) -> Option<Instant> {
        self.short.get(&(proc.clone(), release)).copied()
    }

    /// Returns the failures of a service's release, oldest first.
    pub fn failures_of(&self, proc: &ProcName, release: ReleaseId) -> Vec<&Failure> {
        let of = |failure: &&Failure| failure.proc == *proc && failure.release == release;
        let mut failures: Vec<&Failure> = self.failures.values().filter(of).collect();
        failures.sort_by_key(|failure| failure.at);
        failures
    }

    /// Returns when the recently started instances of a service's release were placed, oldest first.
    pub fn starts_of(&self, proc: &ProcName, release: ReleaseId) -> Vec<Instant> {
        let of = self.starts.values().filter(|start| start.proc == *proc && start.release == release);
        let mut starts: Vec<Instant> = of.map(|start| start.at).collect();
        starts.sort();
        starts
    }
}

fn failure(proc: &ProcName, release: ReleaseId, host: &HostName, status: &Status, at: Instant) -> Failure {
    Failure {
        proc: proc.clone(),
        release,
        host: host.clone(),
        fault: status.fault.unwrap_or(Fault::App),
        cause: status.cause.clone().unwrap_or_else(|| "no cause given".into()),
        at,
    }
}
