//! The capacity taken of each host, updated as keys change.
//!
//! Owns the sums that [`Used::of`] computes anew from a host's rows: with a hundred thousand instances, that takes
//! longer than everything else in a plan. At each revision a tally equals the one computed from the whole image.

use std::collections::BTreeMap;

use visor::{
    keys::Key,
    mirror::Changes,
    names::{HostName, InstanceId},
    rules::usage::{Used, taken},
    snapshot::{HostView, Snapshot},
};

/// The capacity taken of each host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<HostName, Taken>);

/// The capacity taken of one host, by instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    /// The bytes that each instance takes.
    by: BTreeMap<InstanceId, u64>,
    /// The sum of these bytes. Wider than each of them, so that it can't overflow and every addition can be undone.
    bytes: u128,
}

impl Tally {
    /// Computes the sums of a whole image.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut tally = Tally::default();
        for (name, view) in &snapshot.hosts {
            for id in view.assigned.keys() {
                tally.put(name, *id, taken_by(view, *id));
            }
        }
        tally
    }

    /// Updates the sums for changed keys. The image must show these changes already.
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

    /// Returns the capacity taken of a host.
    pub fn used(&self, host: &HostName) -> Used {
        self.0.get(host).map_or_else(Used::default, |taken| Used {
            instances: u32::try_from(taken.by.len()).unwrap_or(u32::MAX),
            memory_bytes: u64::try_from(taken.bytes).unwrap_or(u64::MAX),
        })
    }

    fn put(&mut self, host: &HostName, id: InstanceId, bytes: Option<u64>) {
        let taken = match (self.0.get_mut(host), bytes) {
            (Some(taken), _) => taken,
            (None, Some(_)) => self.0.entry(host.clone()).or_default(),
            (None, None) => return,
        };
        let before = match bytes {
            Some(bytes) => taken.by.insert(id, bytes),
            None => taken.by.remove(&id),
        };
        taken.bytes = taken.bytes - u128::from(before.unwrap_or(0)) + u128::from(bytes.unwrap_or(0));
        if taken.by.is_empty() {
            self.0.remove(host);
        }
    }
}

fn taken_by(view: &HostView, id: InstanceId) -> Option<u64> {
    taken(view.assigned.get(&id)?, view.status.get(&id).map(|status| &status.value))
}

#[cfg(test)]
mod tests {
    use visor::schema::State;

    use super::*;
    use crate::converge::fixture::World;

    #[test]
    fn what_has_ended_gives_its_room_back_and_takes_it_again_if_it_had_not() {
        let mut world = World::new().hosts(1).app("a").released("web").scaled("web", 2);
        world = world.settings("web", |proc| proc.run.limits.memory_limit_bytes = Some(u64::MAX));
        world = world.running(1, "host1").running(2, "host1");
        let host = world.host("host1");
        let mut tally = Tally::of(&world.snapshot);
        for state in [State::Exited, State::Running, State::Lost, State::Failed] {
            world.say(1, state, |_| {});
            let keys = vec![Key::Status(host.clone(), InstanceId(1)).to_string()];
            tally.note(&Changes { keys, relisted: false }, &world.snapshot);
            assert_eq!(tally.used(&host), Used::of(&world.snapshot.hosts[&host]), "{state:?}");
            assert_eq!(tally, Tally::of(&world.snapshot), "{state:?}");
        }
    }
}
