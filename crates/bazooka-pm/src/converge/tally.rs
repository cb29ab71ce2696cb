//! What is taken of each host, kept up as keys change.
//!
//! Owns the sums that [`Used::of`] makes anew from a host's rows: with a hundred thousand instances that takes longer
//! than everything else in a plan. At each revision a tally equals the one that is made from the whole image.

use std::collections::BTreeMap;

use visor::{
    capacity::{Used, taken},
    keys::Key,
    mirror::Changes,
    names::{HostName, InstanceId},
    snapshot::{HostView, Snapshot},
};

/// What is taken of each host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<HostName, Taken>);

/// What is taken of a host, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Bytes by instance.
    by: BTreeMap<InstanceId, u64>,
    /// Their sum; wider than each, so that what was added can be taken off again.
    bytes: u128,
}

impl Tally {
    /// Sums up a whole image.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut tally = Tally::default();
        for (name, view) in &snapshot.hosts {
            for id in view.assigned.keys() {
                tally.put(name, *id, taken_by(view, *id));
            }
        }
        tally
    }

    /// Takes note of what changed, once the image shows it.
    pub fn note(&mut self, changes: &Changes, snapshot: &Snapshot) {
        if changes.relisted {
            *self = Tally::of(snapshot);
            return;
        }
        for key in &changes.keys {
            if let Ok(Key::Assigned(host, id) | Key::Status(host, id)) = key.parse() {
                let bytes = snapshot.hosts.get(&host).and_then(|view| taken_by(view, id));
                self.put(&host, id, bytes);
            }
        }
    }

    /// What is taken of a host.
    pub fn used(&self, host: &HostName) -> Used {
        self.0.get(host).map_or_else(Used::default, |taken| Used {
            instances: u32::try_from(taken.by.len()).unwrap_or(u32::MAX),
            memory_bytes: u64::try_from(taken.bytes).unwrap_or(u64::MAX),
        })
    }

    fn put(&mut self, host: &HostName, id: InstanceId, bytes: Option<u64>) {
        let Some(bytes) = bytes else {
            if let Some(taken) = self.0.get_mut(host) {
                taken.bytes -= u128::from(taken.by.remove(&id).unwrap_or(0));
                if taken.by.is_empty() {
                    self.0.remove(host);
                }
            }
            return;
        };
        if !self.0.contains_key(host) {
            self.0.insert(host.clone(), Taken::default());
        }
        if let Some(taken) = self.0.get_mut(host) {
            let before = taken.by.insert(id, bytes).unwrap_or(0);
            taken.bytes = taken.bytes - u128::from(before) + u128::from(bytes);
        }
    }
}

fn taken_by(view: &HostView, id: InstanceId) -> Option<u64> {
    taken(view.assigned.get(&id)?, view.status.get(&id).map(|status| &status.value))
}
