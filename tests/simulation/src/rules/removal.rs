//! The rule of removals: no serving instance is taken out before others serve in its place.
//!
//! Owns the counts that users wanted lately, of head and of each release beside it: a converger decides by a view that may
//! be a little older.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;
use visor::{
    names::{AppName, InstanceId, ProcName, ReleaseId},
    schema::{Desired, ReleaseStatus},
    snapshot::Snapshot,
};

use super::{Book, LAG};

/// The counts that a formation asked for from a moment on.
struct Count {
    at: Instant,
    head: u32,
    beside: BTreeMap<ReleaseId, u32>,
}

/// The counts of each service, oldest first.
#[derive(Default)]
pub struct Counts(BTreeMap<(AppName, ProcName), VecDeque<Count>>);

impl Counts {
    /// Notes what a formation asks for from now on.
    pub fn note(
        &mut self,
        service: (AppName, ProcName),
        at: Instant,
        head: u32,
        beside: BTreeMap<ReleaseId, u32>,
    ) {
        self.0.entry(service).or_default().push_back(Count { at, head, beside });
    }

    /// Returns the lowest count of head that was wanted lately.
    pub fn least(&self, app: &AppName, proc: &ProcName) -> u32 {
        self.recent(app, proc).map(|count| count.head).min().unwrap_or(0)
    }

    /// Returns the lowest count of a release beside head that was wanted lately; none if it ran beside head at no time.
    fn least_beside(&self, app: &AppName, proc: &ProcName, release: ReleaseId) -> Option<u32> {
        let counts: Vec<_> =
            self.recent(app, proc).map(|count| count.beside.get(&release).copied()).collect();
        counts.iter().any(Option::is_some).then(|| counts.iter().map(|n| n.unwrap_or(0)).min().unwrap_or(0))
    }

    fn recent(&self, app: &AppName, proc: &ProcName) -> impl Iterator<Item = &Count> {
        let all = self.0.get(&(app.clone(), proc.clone())).into_iter().flatten();
        let recent = all.clone().rev().take_while(|count| count.at.elapsed() <= LAG).count();
        // The one that stood when the window began counts too.
        all.rev().take(recent + 1)
    }
}

impl Book {
    /// Judges the removal of a serving instance: others must serve in its place.
    ///
    /// For an instance of a release beside head these are others of the same release.
    pub(super) fn judge_removal(
        &self,
        before: &Snapshot,
        (app, proc): (&AppName, &ProcName),
        id: InstanceId,
        release: ReleaseId,
        broken: &mut Vec<String>,
    ) {
        let Some(view) = before.apps.get(app) else { return };
        let head = view.head.as_ref().map(|head| head.release);
        let beside = self.counts.least_beside(app, proc, release).filter(|_| head != Some(release));
        let status = view.releases.get(&release).map(|row| row.status);
        if beside.is_none() && head != Some(release) && status != Some(ReleaseStatus::Released) {
            // A trial's go when it is over.
            return;
        }
        let others = view.instances.iter().filter(|(other, row)| {
            let meant = self.image.hosts.get(&row.host).and_then(|view| view.assigned.get(other));
            **other != id
                && row.proc == *proc
                && (beside.is_none() || row.release == release)
                && meant.is_some_and(|row| row.desired == Desired::Run)
                && self.served.get(other).is_some_and(|at| at.elapsed() <= LAG)
        });
        let left = u32::try_from(others.count()).expect("they are few");
        let (wanted, whose) = match beside {
            Some(wanted) => (wanted, format!("{app}/{proc} of {release} beside head")),
            None => (self.counts.least(app, proc), format!("{app}/{proc}")),
        };
        if left < wanted {
            broken.push(format!("{id} serves {whose} and is taken out; {left} of {wanted} are left"));
        }
    }
}
