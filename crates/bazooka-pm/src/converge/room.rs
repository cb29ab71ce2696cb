//! Where there is room, and which room is best.
//!
//! Owns the reckoning of slots and memory over all hosts, and the order among those that can take an
//! instance: avoid where it failed lately, spread over zones, then hosts, then fill the emptiest.

use std::collections::BTreeMap;

use visor::{
    capacity::{Used, closed, rank, reckoned},
    names::{AppName, HostName, ProcName, ZoneName},
    schema::{Host, Limits},
    snapshot::{Snapshot, Versioned},
    store::Revision,
};

use super::tally::Tally;

/// What each host has left, as instances are placed one after the other.
///
/// A search looks at each host once, in rows that lie side by side: with a thousand hosts it takes a microsecond or
/// two, which no order that had to be kept true would better.
#[derive(Clone, Debug)]
pub struct Room<'a> {
    /// Each host of the image, in its order.
    left: Vec<Left>,
    /// The same hosts.
    hosts: Vec<HostRoom<'a>>,
    zones: BTreeMap<&'a ZoneName, u32>,
    services: BTreeMap<&'a AppName, BTreeMap<ProcName, Spread>>,
}

/// What a host has left: all that a search looks at.
#[derive(Clone, Copy, Debug)]
struct Left {
    memory_bytes: u64,
    /// None where nothing at all is placed.
    slots: u32,
    zone: u32,
}

#[derive(Clone, Debug)]
struct HostRoom<'a> {
    name: &'a HostName,
    /// Its registration, if there is one.
    host: Option<&'a Versioned<Host>>,
    /// Why nothing at all is placed there.
    closed: Option<&'static str>,
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
    /// The zone that it is to stand in; none: any.
    pub zone: Option<&'d ZoneName>,
}

impl<'a> Room<'a> {
    /// What is left on each host of an image. The tally is of the same image.
    pub fn of(snapshot: &'a Snapshot, tally: &Tally) -> Self {
        let (mut left, mut hosts) = (Vec::new(), Vec::new());
        let mut zones: BTreeMap<&ZoneName, u32> = BTreeMap::new();
        for (name, view) in &snapshot.hosts {
            let closed = closed(snapshot, name, view);
            let used = tally.used(name);
            left.push(match &view.host {
                Some(host) => {
                    let next = u32::try_from(zones.len()).unwrap_or(u32::MAX);
                    let slots = host.capacity.instances.saturating_sub(used.instances);
                    Left {
                        memory_bytes: host.capacity.memory_bytes.saturating_sub(used.memory_bytes),
                        slots: if closed.is_some() { 0 } else { slots },
                        zone: *zones.entry(&host.zone).or_insert(next),
                    }
                }
                None => Left { memory_bytes: 0, slots: 0, zone: 0 },
            });
            hosts.push(HostRoom { name, host: view.host.as_ref(), closed, used });
        }
        Room { left, hosts, zones, services: BTreeMap::new() }
    }

    /// Says where instances of a service are that will stay: the places of their hosts in the image.
    pub fn spread(&mut self, app: &'a AppName, proc: &ProcName, at: &[usize]) {
        let mut spread = Spread::nowhere(self.hosts.len(), self.zones.len());
        for at in at.iter().filter(|at| self.hosts[**at].host.is_some()) {
            spread.add(*at, self.left[*at].zone);
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
            services.insert(seeker.proc.clone(), Spread::nowhere(self.hosts.len(), self.zones.len()));
        }
        let spread = services.get_mut(seeker.proc).expect("it was put there");
        let need = reckoned(seeker.limits);
        let hosts = &self.hosts;
        let among = |names: &BTreeMap<HostName, String>, at: usize| {
            !names.is_empty() && names.contains_key(hosts[at].name)
        };
        // A zone without a host is none of those that there are.
        let zone = seeker.zone.map(|zone| self.zones.get(zone).copied().unwrap_or(u32::MAX));
        let left = &self.left;
        let open = |at: usize| zone.is_none_or(|zone| left[at].zone == zone) && !among(seeker.refuse, at);
        let liked = spread.best(&self.left, need, |at| open(at) && !among(seeker.avoid, at));
        let best = liked.or_else(|| spread.best(&self.left, need, open));
        let taken = best.and_then(|at| Some((at, self.hosts[at].host?)));
        let Some((at, host)) = taken else { return Err(self.refusals(seeker, need)) };
        let left = &mut self.left[at];
        spread.add(at, left.zone);
        left.slots -= 1;
        left.memory_bytes -= need;
        self.hosts[at].used.take(need);
        Ok(Place { created_at: host.create_revision, host: self.hosts[at].name.clone() })
    }

    fn refusals(&self, seeker: &Seeker<'_, '_>, need: u64) -> BTreeMap<HostName, String> {
        let refusals = self.hosts.iter().filter_map(|room| {
            let zone = &room.host?.zone;
            let elsewhere = seeker.zone.filter(|wanted| *wanted != zone);
            let why = elsewhere
                .map(|wanted| format!("is in zone {zone}, not in {wanted}"))
                .or_else(|| room.refusal(need))
                .or_else(|| seeker.refuse.get(room.name).cloned())?;
            Some((room.name.clone(), why))
        });
        refusals.collect()
    }
}

impl Spread {
    fn nowhere(hosts: usize, zones: usize) -> Self {
        Spread { at: vec![0; hosts], in_zone: vec![0; zones] }
    }

    /// The best host for one more, among those that can take it and are `open`.
    ///
    /// It is asked for each instance that is placed. One number is compared for each host, since the order among
    /// hosts is no more predictable to the machine than it looks.
    fn best(&self, left: &[Left], need: u64, open: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut best, mut slots, mut best_at) = (u128::MAX, 0, None);
        for (at, (left, there)) in left.iter().zip(&self.at).enumerate() {
            if left.slots == 0 || left.memory_bytes < need || !open(at) {
                continue;
            }
            let rank = rank(self.in_zone[left.zone as usize], *there, left.memory_bytes);
            if rank < best || (rank == best && left.slots > slots) {
                (best, slots, best_at) = (rank, left.slots, Some(at));
            }
        }
        best_at
    }

    fn add(&mut self, host: usize, zone: u32) {
        self.at[host] += 1;
        self.in_zone[zone as usize] += 1;
    }
}

impl HostRoom<'_> {
    /// Why it can't take it, if it is registered and can't.
    fn refusal(&self, need: u64) -> Option<String> {
        let capacity = &self.host?.capacity;
        if let Some(why) = self.closed {
            return Some(why.to_owned());
        }
        if self.used.instances >= capacity.instances {
            return Some(format!("is full: {} of {} instances", self.used.instances, capacity.instances));
        }
        let free = capacity.memory_bytes.saturating_sub(self.used.memory_bytes);
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
        places_in(world, n, None)
    }

    fn places_in(world: &World, n: usize, zone: Option<&ZoneName>) -> Vec<String> {
        let tally = Tally::of(&world.snapshot);
        let mut room = Room::of(&world.snapshot, &tally);
        let (app, proc) = (world.name("a"), world.proc("web"));
        let none = BTreeMap::new();
        let limits = Limits::default();
        let seeker = Seeker { app: &app, proc: &proc, limits: &limits, avoid: &none, refuse: &none, zone };
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
    fn what_is_to_stand_in_a_zone_stands_there_or_nowhere() {
        let mut world = World::new().hosts(3);
        world.edit_host("host2", |host| host.zone = "north".parse().expect("valid"));
        world.edit_host("host2", |host| host.capacity.instances = 1);
        let zone = |name: &str| name.parse::<ZoneName>().expect("valid");
        let placed = places_in(&world, 2, Some(&zone("north")));
        assert_eq!(placed[0], "host2");
        assert!(placed[1].contains("is in zone default, not in north") && placed[1].contains("is full"));
        assert!(places_in(&world, 1, Some(&zone("west")))[0].contains("is in zone north, not in west"));
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
