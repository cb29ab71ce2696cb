//! Where there is room, and which room is best.
//!
//! Owns the reckoning of slots and memory over all hosts, and the order among those that can take an
//! instance: avoid where it failed lately, spread over zones, then hosts, then fill the emptiest.

use std::{cmp::Reverse, collections::BTreeMap};

use visor::{
    capacity::{Used, reckoned},
    keys::Key,
    names::{AppName, HostName, ProcName, ZoneName},
    schema::{Capacity, Limits},
    snapshot::Snapshot,
    store::Revision,
};

use super::tally::Tally;

/// What each host has left, as instances are placed one after the other.
///
/// A search looks at each host once, in rows that lie side by side: with a thousand hosts it takes a few
/// microseconds, which no order that had to be kept true would better.
#[derive(Clone, Debug)]
pub struct Room<'a> {
    /// By name.
    hosts: Vec<HostRoom<'a>>,
    zones: usize,
    services: BTreeMap<&'a AppName, BTreeMap<ProcName, Spread>>,
}

#[derive(Clone, Debug)]
struct HostRoom<'a> {
    name: &'a HostName,
    created_at: Revision,
    zone: usize,
    /// Why nothing at all is placed there.
    closed: Option<&'static str>,
    capacity: &'a Capacity,
    used: Used,
}

/// How many instances that will stay a service has, on each host and in each zone.
#[derive(Clone, Debug)]
struct Spread {
    at: Vec<u32>,
    in_zone: Vec<u32>,
}

/// A place for an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: HostName,
    /// The revision that created its registration.
    pub created_at: Revision,
}

/// What looks for a place.
#[derive(Clone, Debug)]
pub struct Seeker<'a, 'd> {
    /// Its app.
    pub app: &'a AppName,
    /// Its proc.
    pub proc: &'d ProcName,
    /// What it may use.
    pub limits: &'d Limits,
    /// Hosts where it failed lately: the last choice.
    pub avoid: &'d BTreeMap<HostName, String>,
    /// Hosts where it failed so lately that they aren't tried again yet.
    pub refuse: &'d BTreeMap<HostName, String>,
}

impl<'a> Room<'a> {
    /// What is left on each host of an image.
    pub fn of(snapshot: &'a Snapshot, tally: &Tally) -> Self {
        let mut hosts = Vec::new();
        let mut zones: BTreeMap<&ZoneName, usize> = BTreeMap::new();
        for (name, view) in &snapshot.hosts {
            let Some(host) = &view.host else { continue };
            let meta_unreadable = !snapshot.unreadable.is_empty()
                && snapshot.unreadable.contains_key(&Key::HostMeta(name.clone()).to_string());
            let meta = view.meta.as_ref();
            let closed = if meta_unreadable {
                Some("what the operator says of it can't be read")
            } else if meta.is_some_and(|meta| meta.draining) {
                Some("is being drained")
            } else if meta.is_some_and(|meta| meta.cordoned) {
                Some("is cordoned")
            } else {
                None
            };
            let next = zones.len();
            hosts.push(HostRoom {
                name,
                created_at: host.create_revision,
                zone: *zones.entry(&host.zone).or_insert(next),
                closed,
                capacity: &host.capacity,
                used: tally.used(name),
            });
        }
        Room { zones: zones.len(), hosts, services: BTreeMap::new() }
    }

    /// Says where instances of a service are that will stay.
    pub fn spread(&mut self, app: &'a AppName, proc: &ProcName, at: &[&HostName]) {
        let mut spread = Spread::nowhere(self.hosts.len(), self.zones);
        for name in at {
            if let Ok(index) = self.hosts.binary_search_by(|room| room.name.cmp(name)) {
                spread.add(index, self.hosts[index].zone);
            }
        }
        self.services.entry(app).or_default().insert(proc.clone(), spread);
    }

    /// Takes the best place for an instance.
    ///
    /// # Errors
    /// Each host's refusal, where none can take it.
    pub fn take_place(&mut self, seeker: &Seeker<'a, '_>) -> Result<Place, BTreeMap<HostName, String>> {
        let services = self.services.entry(seeker.app).or_default();
        if !services.contains_key(seeker.proc) {
            services.insert(seeker.proc.clone(), Spread::nowhere(self.hosts.len(), self.zones));
        }
        let spread = services.get_mut(seeker.proc).expect("it was put there");
        let need = reckoned(seeker.limits);
        let open = self.hosts.iter().enumerate().filter(|(_, room)| {
            room.can_take(need) && (seeker.refuse.is_empty() || !seeker.refuse.contains_key(room.name))
        });
        let best = open.min_by_key(|(index, room)| {
            (
                !seeker.avoid.is_empty() && seeker.avoid.contains_key(room.name),
                spread.in_zone[room.zone],
                spread.at[*index],
                Reverse(room.free_memory()),
                Reverse(room.free_slots()),
            )
        });
        let Some((index, _)) = best else { return Err(self.refusals(seeker, need)) };
        let room = &mut self.hosts[index];
        spread.add(index, room.zone);
        room.used.take(need);
        Ok(Place { created_at: room.created_at, host: room.name.clone() })
    }

    fn refusals(&self, seeker: &Seeker<'_, '_>, need: u64) -> BTreeMap<HostName, String> {
        let refusals = self.hosts.iter().filter_map(|room| {
            let why = room.refusal(need).or_else(|| seeker.refuse.get(room.name).cloned())?;
            Some((room.name.clone(), why))
        });
        refusals.collect()
    }
}

impl Spread {
    fn nowhere(hosts: usize, zones: usize) -> Self {
        Spread { at: vec![0; hosts], in_zone: vec![0; zones] }
    }

    fn add(&mut self, host: usize, zone: usize) {
        self.at[host] += 1;
        self.in_zone[zone] += 1;
    }
}

impl HostRoom<'_> {
    fn free_memory(&self) -> u64 {
        self.capacity.memory_bytes.saturating_sub(self.used.memory_bytes)
    }

    fn free_slots(&self) -> u32 {
        self.capacity.instances.saturating_sub(self.used.instances)
    }

    fn can_take(&self, need: u64) -> bool {
        self.closed.is_none() && self.free_slots() > 0 && self.free_memory() >= need
    }

    /// Why it can't take it, if it can't.
    fn refusal(&self, need: u64) -> Option<String> {
        if let Some(why) = self.closed {
            return Some(why.to_owned());
        }
        if self.free_slots() == 0 {
            return Some(format!(
                "is full: {} of {} instances",
                self.used.instances, self.capacity.instances
            ));
        }
        let free = self.free_memory();
        (free < need).then(|| format!("{} MiB of memory are free, {} MiB are needed", free >> 20, need >> 20))
    }
}

/// Whether an instance that failed there could do better elsewhere.
pub fn elsewhere(snapshot: &Snapshot, avoid: &BTreeMap<HostName, String>) -> bool {
    snapshot.hosts.iter().any(|(name, view)| {
        let closed = view.meta.as_ref().is_some_and(|meta| meta.cordoned || meta.draining);
        view.host.is_some() && !closed && !avoid.contains_key(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::fixture::World;

    /// Places `n` instances of a/web and says where they went.
    fn places(world: &World, n: usize) -> Vec<String> {
        let tally = Tally::of(&world.snapshot);
        let mut room = Room::of(&world.snapshot, &tally);
        let (app, proc) = (world.name("a"), world.proc("web"));
        let none = BTreeMap::new();
        let limits = Limits::default();
        let seeker = Seeker { app: &app, proc: &proc, limits: &limits, avoid: &none, refuse: &none };
        (0..n)
            .map(|_| match room.take_place(&seeker) {
                Ok(place) => place.host.to_string(),
                Err(refusals) => format!("{refusals:?}"),
            })
            .collect()
    }

    #[test]
    fn zones_come_before_hosts_and_hosts_before_room() {
        let mut world = World::new().hosts(3);
        world.edit_host("host1", |host| host.zone = "north".parse().expect("valid"));
        world.edit_host("host2", |host| host.zone = "north".parse().expect("valid"));
        world.edit_host("host3", |host| host.zone = "south".parse().expect("valid"));
        world.edit_host("host2", |host| host.capacity.memory_bytes *= 2);
        assert_eq!(places(&world, 5), ["host2", "host3", "host1", "host3", "host2"]);
    }

    #[test]
    fn a_full_or_closed_host_says_so() {
        let mut world = World::new().hosts(4);
        world.edit_host("host1", |host| host.capacity.instances = 0);
        world.edit_host("host2", |host| host.capacity.memory_bytes = 1 << 20);
        world.mark("host3", |meta| meta.cordoned = true);
        world.mark("host4", |meta| meta.draining = true);
        let refusals = &places(&world, 1)[0];
        for part in [
            "is full: 0 of 0 instances",
            "1 MiB of memory are free, 16 MiB are needed",
            "cordoned",
            "drained",
        ] {
            assert!(refusals.contains(part), "{refusals}");
        }
    }
}
