//! The drains under way, and which proxies have let go of what drains.
//!
//! Owns the moment at which a proxy last had no session on a draining instance, and no route to it. A proxy's row may go
//! back: a write that was under way for long arrives after a later one. A converger that saw the later one is right to stop
//! the instance.

use std::collections::BTreeMap;

use tokio::time::Instant;
use visor::{
    names::{HostName, InstanceId},
    schema::Proxy,
    snapshot::Snapshot,
    store::Revision,
};

use super::{DRAIN, LAG};

/// The instances that drain, and the proxies that have let go of them.
#[derive(Default)]
pub struct Drains {
    /// Since when each instance drains, and the revision that says so.
    since: BTreeMap<InstanceId, (Instant, Revision)>,
    /// When each proxy last had let go of an instance.
    let_go: BTreeMap<(HostName, InstanceId), Instant>,
}

impl Drains {
    /// Notes the begin of a drain.
    pub fn begin(&mut self, id: InstanceId, revision: Revision) {
        self.since.insert(id, (Instant::now(), revision));
    }

    /// Notes a proxy's row.
    pub fn note(&mut self, proxy: &HostName, row: &Proxy) {
        for (id, (_, revision)) in &self.since {
            if row.applied >= *revision && !row.busy.contains(id) {
                self.let_go.insert((proxy.clone(), *id), Instant::now());
            }
        }
    }

    /// Reports whether a proxy whose row was created at this revision was there before the drain of an instance.
    pub fn knows(&self, created: Revision, id: InstanceId) -> bool {
        self.since.get(&id).is_some_and(|(_, revision)| created < *revision)
    }

    /// Returns the proxies that, as their rows say now, still route to an instance or have sessions there. Proxies that came
    /// after the drain began never did.
    pub fn held_by<'b>(&self, before: &'b Snapshot, id: InstanceId) -> Vec<&'b HostName> {
        let (_, revision) = self.since[&id];
        let holds = |row: &Proxy| row.applied < revision || row.busy.contains(&id);
        let held = before.proxies.iter().filter(|(_, row)| row.create_revision < revision && holds(row));
        held.map(|(name, _)| name).collect()
    }

    /// Returns a proxy for which an instance is not waited long enough, if it is stopped now: one that holds it, and has not
    /// let go of it within the age that a daemon's view may have.
    pub fn cut_short(&self, before: &Snapshot, id: InstanceId) -> Option<HostName> {
        let (since, _) = self.since[&id];
        let lets_go =
            |name: &HostName| self.let_go.get(&(name.clone(), id)).is_some_and(|at| at.elapsed() < LAG);
        let mut held = self.held_by(before, id).into_iter().filter(|name| !lets_go(name));
        held.next().cloned().filter(|_| since.elapsed() < DRAIN)
    }
}
