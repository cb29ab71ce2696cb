//! Placement: where there is room, which room is best, and which instance gets it first.
//!
//! Owns the sums of slots and memory over all hosts; the order among the hosts that can take an instance (avoid hosts
//! where it failed lately, spread over zones, then hosts, then use the emptiest); and the order among the instances
//! that need a place (the first instance of every service before the second of any).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use super::{
    host_fit::closed,
    usage::{Used, reckoned},
};
use crate::{
    names::{AppName, HostName, ProcName, ZoneName},
    planted::{Bug, planted},
    schema::{Host, Limits, Refusing},
    snapshot::{HostView, Snapshot, Versioned},
    store::Revision,
};

/// The reason of each host that cannot take an instance.
pub type Refusals = BTreeMap<HostName, String>;

/// The hosts that cannot take an instance, by the reason. No reason has a number that moves with other services.
pub type Reasons = BTreeMap<String, Refusing>;

/// The most reasons that are told apart.
const MOST_REASONS: usize = 16;

/// The reason under which all further ones are counted.
const OTHER_REASONS: &str = "has another reason";

/// The capacity that each host has left, as instances are placed one after the other.
///
/// A search scans all hosts once, in rows that lie side by side. With a thousand hosts that takes a microsecond or two;
/// an index kept in order would not be faster.
#[derive(Clone, Debug)]
pub struct Room<'a> {
    /// A row for each host of the image, in the image's order.
    free: Vec<Row>,
    /// The details of the same hosts, in the same order.
    hosts: Vec<HostRoom<'a>>,
    zones: BTreeMap<&'a ZoneName, u32>,
    services: BTreeMap<&'a AppName, BTreeMap<ProcName, Spread>>,
}

/// The free capacity of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeCapacity {
    /// Memory for instances.
    pub memory_bytes: u64,
    /// The number of further instances that it takes; 0 if nothing is placed there.
    pub slots: u32,
}

impl FreeCapacity {
    /// Returns the free capacity of a host with this much in use. A closed host has none.
    pub fn of(host: &Host, used: Used, is_closed: bool) -> Self {
        if is_closed {
            return FreeCapacity::default();
        }
        FreeCapacity {
            memory_bytes: host.capacity.memory_bytes.saturating_sub(used.memory_bytes),
            slots: host.capacity.instances.saturating_sub(used.instances),
        }
    }
}

/// The free capacity of a host and its zone: all that a search reads.
#[derive(Clone, Copy, Debug)]
struct Row {
    memory_bytes: u64,
    slots: u32,
    zone: u32,
}

#[derive(Clone, Debug)]
struct HostRoom<'a> {
    name: &'a HostName,
    /// The host's registration, if there is one.
    host: Option<&'a Versioned<Host>>,
    /// The reason why nothing at all is placed there.
    closed: Option<&'static str>,
    used: Used,
}

/// The number of a service's instances that will stay, on each host and in each zone.
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

/// The indexes of instances that need a place, in order.
///
/// Indexes are not listed where a formation asks for them: its count is no measure of what a plan may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Indexes {
    /// These, in this order.
    These(Vec<u32>),
    /// The lowest that are free, from one on.
    Free {
        /// The index from which they are sought.
        from: u32,
        /// How many.
        count: usize,
        /// The indexes that are not free.
        taken: Arc<BTreeSet<u32>>,
    },
}

impl Indexes {
    /// Returns how many they are.
    pub fn len(&self) -> usize {
        match self {
            Indexes::These(all) => all.len(),
            Indexes::Free { count, .. } => *count,
        }
    }

    /// Reports whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `n` of free ones off, so that others have them.
    pub fn split_first(&mut self, n: usize) -> Indexes {
        match self {
            Indexes::These(all) => {
                let rest = all.split_off(n.min(all.len()));
                Indexes::These(std::mem::replace(all, rest))
            }
            Indexes::Free { from, count, taken } => {
                let n = n.min(*count);
                let first = Indexes::Free { from: *from, count: n, taken: taken.clone() };
                *count -= n;
                // Each taken index below the new start moves it one further.
                let mut next = from.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
                for at in taken.range(*from..) {
                    if *at >= next {
                        break;
                    }
                    next = next.saturating_add(1);
                }
                *from = next;
                first
            }
        }
    }

    /// Returns the index that follows `before`, or the first one, at position `nth`.
    fn at(&self, nth: usize, before: Option<u32>) -> Option<u32> {
        match self {
            Indexes::These(all) => all.get(nth).copied(),
            Indexes::Free { from, count, taken } if nth < *count => {
                let mut index = before.map_or(*from, |before| before.saturating_add(1));
                while taken.contains(&index) && index < u32::MAX {
                    index += 1;
                }
                Some(index)
            }
            Indexes::Free { .. } => None,
        }
    }
}

/// A request for places for instances of a service, all under the same conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementRequest {
    /// The proc.
    pub proc: ProcName,
    /// The limits of each instance.
    pub limits: Limits,
    /// True if they belong to a trial.
    pub trial: bool,
    /// The index of each instance.
    pub indexes: Indexes,
    /// The reason why no host at all can take them; none if some might.
    pub impossible: Option<String>,
    /// The hosts that are the last choice, each with the reason.
    pub avoid: Arc<Refusals>,
    /// The hosts that cannot take them, each with the reason.
    pub refuse: Arc<Refusals>,
    /// The zone where they must stand; none means any.
    pub zone: Option<ZoneName>,
}

impl PlacementRequest {
    /// Reports whether `other` finds no host if `self` found none. Room only shrinks between the two.
    fn is_as_hard_as(&self, other: &PlacementRequest) -> bool {
        self.limits == other.limits && self.refuse == other.refuse && self.zone == other.zone
    }
}

/// The outcome for an instance that needed a place.
#[derive(Debug)]
pub enum Found<'r> {
    /// The instance has this place.
    Place(Place),
    /// No host can take this one and the others of its request: so many, each host for its own reason.
    NoRoom(usize, &'r Reasons),
    /// All of the request, so many, cannot run anywhere, for this reason.
    Impossible(usize, &'r str),
    /// The limit of placements was reached; the next plan decides about this one and the others of its request.
    Later,
}

/// Places all requested instances and reports the outcome of each, by the request's position in `requests` and the
/// instance's index.
///
/// At most `most` are placed. Lower indexes come first; among equal indexes, releases on trial come first, then
/// requests in the given order. A request of which one instance finds no place is not asked further, because room only
/// shrinks: the work is bounded by the places that there are and by the number of requests, however many instances
/// they ask for.
pub fn allot<'a>(
    room: &mut Room<'a>,
    requests: &[(&'a AppName, &PlacementRequest)],
    most: usize,
    mut tell: impl FnMut(usize, u32, Found<'_>),
) {
    // The next instance of each request: its index, whether the request is no trial's, the request, its position there.
    let mut queue: BinaryHeap<Reverse<(u32, bool, usize, usize)>> = BinaryHeap::new();
    for (nth, (_, request)) in requests.iter().enumerate() {
        let first = request.indexes.at(0, None);
        queue.extend(first.map(|index| Reverse((index, !request.trial, nth, 0))));
    }
    let mut placed = 0;
    let mut without: BTreeMap<(&AppName, &ProcName), (&PlacementRequest, Reasons)> = BTreeMap::new();
    while let Some(Reverse((index, of_service, nth, at))) = queue.pop() {
        let (app, request) = requests[nth];
        let left = request.indexes.len() - at;
        if let Some(why) = &request.impossible {
            tell(nth, index, Found::Impossible(left, why));
            continue;
        }
        if placed == most {
            tell(nth, index, Found::Later);
            continue;
        }
        let service = (app, &request.proc);
        match without.get(&service) {
            Some((other, reasons)) if request.is_as_hard_as(other) => {
                tell(nth, index, Found::NoRoom(left, reasons));
                continue;
            }
            _ => {}
        }
        match room.take_place(app, request) {
            Ok(place) => {
                placed += 1;
                tell(nth, index, Found::Place(place));
                let next = request.indexes.at(at + 1, Some(index));
                queue.extend(next.map(|index| Reverse((index, of_service, nth, at + 1))));
            }
            Err(reasons) => {
                tell(nth, index, Found::NoRoom(left, &reasons));
                without.insert(service, (request, reasons));
            }
        }
    }
}

impl<'a> Room<'a> {
    /// Returns the free capacity on each host of an image; `used` returns what is taken of one host.
    pub fn of(snapshot: &'a Snapshot, used: impl Fn(&HostName, &HostView) -> Used) -> Self {
        let (mut free, mut hosts) = (Vec::new(), Vec::new());
        let mut zones: BTreeMap<&ZoneName, u32> = BTreeMap::new();
        for (name, view) in &snapshot.hosts {
            let closed = closed(snapshot, name, view);
            let used = used(name, view);
            free.push(match &view.host {
                Some(host) => {
                    let next = u32::try_from(zones.len()).unwrap_or(u32::MAX);
                    let takes_none = closed.is_some() && !planted(Bug::ClosedHostIsPlacedOn);
                    let FreeCapacity { memory_bytes, slots } = FreeCapacity::of(host, used, takes_none);
                    Row { memory_bytes, slots, zone: *zones.entry(&host.zone).or_insert(next) }
                }
                None => Row { memory_bytes: 0, slots: 0, zone: 0 },
            });
            hosts.push(HostRoom { name, host: view.host.as_ref(), closed, used });
        }
        Room { free, hosts, zones, services: BTreeMap::new() }
    }

    /// Returns the same without some hosts, as if they were not registered.
    pub fn without(mut self, goes: impl Fn(&HostName, &Host) -> bool) -> Self {
        for (free, room) in self.free.iter_mut().zip(&mut self.hosts) {
            if room.host.is_some_and(|host| goes(room.name, host)) {
                (free.slots, free.memory_bytes, room.host) = (0, 0, None);
            }
        }
        self
    }

    /// Returns how many instances that need this much memory each registered host can take.
    pub fn holds(&self, need: u64) -> impl Iterator<Item = (&'a HostName, &'a Host, u64)> {
        self.free.iter().zip(&self.hosts).filter_map(move |(free, room)| {
            let by_memory = free.memory_bytes.checked_div(need).unwrap_or(u64::MAX);
            Some((room.name, &room.host?.value, by_memory.min(free.slots.into())))
        })
    }

    /// Notes where instances of a service are that will stay, by the positions of their hosts in the image.
    pub fn spread(&mut self, app: &'a AppName, proc: &ProcName, at: &[usize]) {
        let mut spread = Spread::nowhere(self.hosts.len(), self.zones.len());
        for at in at.iter().filter(|at| self.hosts[**at].host.is_some()) {
            spread.add(*at, self.free[*at].zone);
        }
        self.services.entry(app).or_default().insert(proc.clone(), spread);
    }

    /// Takes the best place for one instance.
    ///
    /// # Errors
    /// The refusal of each host, if none can take it.
    pub fn take_place(&mut self, app: &'a AppName, request: &PlacementRequest) -> Result<Place, Reasons> {
        let services = self.services.entry(app).or_default();
        if !services.contains_key(&request.proc) {
            services.insert(request.proc.clone(), Spread::nowhere(self.hosts.len(), self.zones.len()));
        }
        let spread = services.get_mut(&request.proc).expect("it was put there");
        let need = reckoned(&request.limits);
        let hosts = &self.hosts;
        let among = |names: &Refusals, at: usize| !names.is_empty() && names.contains_key(hosts[at].name);
        // A zone without hosts has no number; this one matches no host.
        let zone = request.zone.as_ref().map(|zone| self.zones.get(zone).copied().unwrap_or(u32::MAX));
        let free = &self.free;
        let open = |at: usize| zone.is_none_or(|zone| free[at].zone == zone) && !among(&request.refuse, at);
        let liked = spread.best(&self.free, need, |at| open(at) && !among(&request.avoid, at));
        let best = liked.or_else(|| spread.best(&self.free, need, open));
        let taken = best.and_then(|at| Some((at, self.hosts[at].host?)));
        let Some((at, host)) = taken else { return Err(self.reasons(request, need)) };
        let free = &mut self.free[at];
        spread.add(at, free.zone);
        free.slots -= 1;
        free.memory_bytes -= need;
        self.hosts[at].used.take(need);
        Ok(Place { created_at: host.create_revision, host: self.hosts[at].name.clone() })
    }

    fn reasons(&self, request: &PlacementRequest, need: u64) -> Reasons {
        let mut reasons = Reasons::new();
        for room in &self.hosts {
            let Some(zone) = room.host.map(|host| &host.zone) else { continue };
            let elsewhere = request.zone.as_ref().filter(|wanted| *wanted != zone);
            let why = elsewhere
                .map(|wanted| format!("is in zone {zone}, not in {wanted}"))
                .or_else(|| room.refusal(need))
                .or_else(|| request.refuse.get(room.name).cloned());
            if let Some(why) = why {
                // Causes of failures differ from host to host.
                let is_new = !reasons.contains_key(&why) && reasons.len() >= MOST_REASONS;
                let why = if is_new { OTHER_REASONS.to_owned() } else { why };
                reasons.entry(why).or_default().add(room.name);
            }
        }
        reasons
    }
}

/// Returns the rank of a host that can take one more of a service; the lowest rank is best.
///
/// The zone with the fewest instances of the service comes first, then the host with the fewest, then the most free
/// memory.
fn rank(in_zone: u32, there: u32, free_bytes: u64) -> u128 {
    u128::from(in_zone) << 96 | u128::from(there) << 64 | u128::from(u64::MAX - free_bytes)
}

impl Spread {
    fn nowhere(hosts: usize, zones: usize) -> Self {
        Spread { at: vec![0; hosts], in_zone: vec![0; zones] }
    }

    /// Returns the best host for one more instance, among those that can take it and are `open`.
    ///
    /// This runs for each placed instance. It compares one number for each host, because a branch on the order of hosts
    /// would be hard to predict for the processor.
    fn best(&self, free: &[Row], need: u64, open: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut best, mut slots, mut best_at) = (u128::MAX, 0, None);
        for (at, (free, there)) in free.iter().zip(&self.at).enumerate() {
            if free.slots == 0 || free.memory_bytes < need || !open(at) {
                continue;
            }
            let rank = rank(self.in_zone[free.zone as usize], *there, free.memory_bytes);
            if rank < best || (rank == best && free.slots > slots) {
                (best, slots, best_at) = (rank, free.slots, Some(at));
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
    /// Returns why a registered host cannot take the instance; none if it can.
    fn refusal(&self, need: u64) -> Option<String> {
        let capacity = &self.host?.capacity;
        if let Some(why) = self.closed {
            return Some(why.to_owned());
        }
        if self.used.instances >= capacity.instances {
            return Some("is full".to_owned());
        }
        let free = capacity.memory_bytes.saturating_sub(self.used.memory_bytes);
        (free < need).then(|| format!("has less than {} MiB of memory free", need >> 20))
    }
}

/// Reports whether an instance that failed on the hosts to avoid could be placed on another one.
pub fn elsewhere(snapshot: &Snapshot, avoid: &Refusals) -> bool {
    snapshot.hosts.iter().any(|(name, view)| {
        view.host.is_some() && closed(snapshot, name, view).is_none() && !avoid.contains_key(name)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rules::fixture::Cluster;

    fn request() -> PlacementRequest {
        PlacementRequest {
            proc: "web".parse().expect("valid"),
            limits: Limits::default(),
            trial: false,
            indexes: Indexes::These(Vec::new()),
            impossible: None,
            avoid: Arc::default(),
            refuse: Arc::default(),
            zone: None,
        }
    }

    /// Places `n` instances of a/web and returns where they went.
    fn places(cluster: &Cluster, n: usize, request: &PlacementRequest) -> Vec<String> {
        let app = "a".parse().expect("valid");
        let mut room = Room::of(&cluster.image, |_, view| Used::of(view));
        (0..n)
            .map(|_| match room.take_place(&app, request) {
                Ok(place) => place.host.to_string(),
                Err(refusals) => format!("{refusals:?}"),
            })
            .collect()
    }

    #[test]
    fn zones_come_before_hosts_and_hosts_before_room() {
        let mut cluster = Cluster::default();
        cluster
            .host("host1", "north", 9, 1000)
            .host("host2", "north", 9, 2000)
            .host("host3", "south", 9, 1000);
        assert_eq!(places(&cluster, 5, &request()), ["host2", "host3", "host1", "host3", "host2"]);
    }

    #[test]
    fn what_is_to_stand_in_a_zone_stands_there_or_nowhere() {
        let mut cluster = Cluster::default();
        cluster
            .host("host1", "default", 9, 100)
            .host("host2", "north", 1, 100)
            .host("host3", "default", 9, 100);
        let in_zone = |zone: &str| PlacementRequest { zone: zone.parse().ok(), ..request() };
        let placed = places(&cluster, 2, &in_zone("north"));
        assert_eq!(placed[0], "host2");
        assert!(placed[1].contains("is in zone default, not in north") && placed[1].contains("is full"));
        assert!(places(&cluster, 1, &in_zone("west"))[0].contains("is in zone north, not in west"));
    }

    #[test]
    fn a_full_or_closed_host_says_so() {
        let mut cluster = Cluster::default();
        cluster.host("host1", "a", 0, 100).host("host2", "a", 9, 1).host("host3", "a", 9, 100);
        cluster.host("host4", "a", 9, 100);
        cluster.mark("host3", &json!({ "cordoned": true })).mark("host4", &json!({ "draining": true }));
        let refusals = &places(&cluster, 1, &request())[0];
        for part in ["is full", "has less than 16 MiB of memory free", "cordoned", "drained"] {
            assert!(refusals.contains(part), "{refusals}");
        }
    }

    #[test]
    fn hosts_are_counted_by_reason_and_a_few_are_named() {
        let mut cluster = Cluster::default();
        for n in 100..140 {
            cluster.host(&format!("host{n}"), "a", 0, 100);
        }
        let app = "a".parse().expect("valid");
        let reasons = |cluster: &Cluster, request: &PlacementRequest| {
            let mut room = Room::of(&cluster.image, |_, view| Used::of(view));
            room.take_place(&app, request).expect_err("each is full")
        };
        let full = reasons(&cluster, &request());
        assert_eq!(full.keys().collect::<Vec<_>>(), ["is full"]);
        assert_eq!(full["is full"].words(), "host100, host101, host102, host103, host104 and 35 more");
        // As many causes as hosts make no row of as many reasons.
        let mut cluster = Cluster::default();
        let mut refuse = Refusals::new();
        for n in 100..140 {
            cluster.host(&format!("host{n}"), "a", 9, 100);
            refuse.insert(Cluster::host_name(&format!("host{n}")), format!("cause {n}"));
        }
        let many = reasons(&cluster, &PlacementRequest { refuse: Arc::new(refuse), ..request() });
        assert_eq!((many.len(), many[OTHER_REASONS].hosts), (MOST_REASONS + 1, 24));
    }

    #[test]
    fn of_many_hosts_a_tenth_may_change_before_it_is_news() {
        let of = |hosts: u32| {
            let mut refusing = Refusing::default();
            (0..hosts).for_each(|n| refusing.add(&Cluster::host_name(&format!("host{n}"))));
            refusing
        };
        assert!(of(3).is_about(&of(3)) && !of(3).is_about(&of(4)) && !of(5).is_about(&of(6)));
        assert!(of(100).is_about(&of(109)) && !of(100).is_about(&of(120)));
    }

    #[test]
    fn a_host_to_be_avoided_is_the_last_choice_and_one_that_refuses_is_none() {
        let mut cluster = Cluster::default();
        cluster.host("host1", "a", 2, 100).host("host2", "a", 2, 100).host("host3", "a", 2, 100);
        let why =
            |host: &str| Arc::new(Refusals::from([(Cluster::host_name(host), "failed there".to_owned())]));
        let request = PlacementRequest { avoid: why("host1"), refuse: why("host2"), ..request() };
        let placed = places(&cluster, 5, &request);
        assert_eq!(placed[..4], ["host3", "host3", "host1", "host1"]);
        assert!(placed[4].contains("failed there") && placed[4].contains("is full"), "{}", placed[4]);
    }

    /// Returns the outcome of each request in order: app, index, and place or refusal.
    fn turns(cluster: &Cluster, requests: &[(&str, PlacementRequest)], most: usize) -> Vec<String> {
        let apps: Vec<AppName> = requests.iter().map(|(app, _)| app.parse().expect("valid")).collect();
        let asked: Vec<_> = apps.iter().zip(requests).map(|(app, (_, request))| (app, request)).collect();
        let mut room = Room::of(&cluster.image, |_, view| Used::of(view));
        let mut turns = Vec::new();
        allot(&mut room, &asked, most, |nth, index, found| {
            let what = match found {
                Found::Place(place) => place.host.to_string(),
                Found::NoRoom(n, refusals) => format!("and {} more: no room on {}", n - 1, refusals.len()),
                Found::Impossible(n, why) => format!("and {} more: {why}", n - 1),
                Found::Later => "later".to_owned(),
            };
            turns.push(format!("{}{index} {what}", asked[nth].0));
        });
        turns
    }

    #[test]
    fn the_first_of_every_service_comes_before_the_second_of_any_and_a_trial_first() {
        let mut cluster = Cluster::default();
        cluster.host("host1", "a", 4, 1000);
        let of =
            |indexes: &[u32]| PlacementRequest { indexes: Indexes::These(indexes.to_vec()), ..request() };
        let trial = PlacementRequest { trial: true, ..of(&[0]) };
        let turns = turns(&cluster, &[("a", of(&[0, 1, 2])), ("b", of(&[0, 1])), ("c", trial)], usize::MAX);
        let expected = [
            "c0 host1",
            "a0 host1",
            "b0 host1",
            "a1 host1",
            "b1 and 0 more: no room on 1",
            "a2 and 0 more: no room on 1",
        ];
        assert_eq!(turns, expected);
    }

    #[test]
    fn what_is_too_much_or_impossible_takes_no_room() {
        let mut cluster = Cluster::default();
        cluster.host("host1", "a", 9, 1000);
        let of =
            |indexes: &[u32]| PlacementRequest { indexes: Indexes::These(indexes.to_vec()), ..request() };
        let lost = PlacementRequest { impossible: Some("leads nowhere".to_owned()), ..of(&[0, 1]) };
        let turns = turns(&cluster, &[("a", of(&[0, 1])), ("b", lost)], 1);
        assert_eq!(turns, ["a0 host1", "b0 and 1 more: leads nowhere", "a1 later"]);
    }

    #[test]
    fn a_count_beyond_all_measure_costs_no_more_than_the_places_that_there_are() {
        let mut cluster = Cluster::default();
        cluster.host("host1", "a", 3, 1000);
        let taken = Arc::new(BTreeSet::from([0, 2]));
        let indexes = Indexes::Free { from: 0, count: u32::MAX as usize, taken };
        let absurd = PlacementRequest { indexes, ..request() };
        let small = PlacementRequest { indexes: Indexes::These(vec![0, 1]), ..request() };
        let turns = turns(&cluster, &[("a", absurd), ("b", small)], usize::MAX);
        let no_room = "and 4294967293 more: no room on 1";
        assert_eq!(turns, ["b0 host1", "a1 host1", "b1 host1", &format!("a3 {no_room}")]);
    }

    #[test]
    fn zones_share_the_free_indexes() {
        let taken = Arc::new(BTreeSet::from([0, 2, 3, 7]));
        let mut free = Indexes::Free { from: 0, count: 5, taken };
        let all = |indexes: &Indexes| {
            let mut all: Vec<u32> = Vec::new();
            while let Some(index) = indexes.at(all.len(), all.last().copied()) {
                all.push(index);
            }
            all
        };
        assert_eq!(all(&free), [1, 4, 5, 6, 8]);
        assert_eq!(all(&free.split_first(2)), [1, 4]);
        assert_eq!(all(&free.split_first(2)), [5, 6]);
        assert_eq!((all(&free.split_first(9)), free.is_empty()), (vec![8], true));
    }
}
