//! The free capacity of a cluster, how many more instances of a service fit, and what has no place if a part goes.
//!
//! Owns these answers over an image. They come from the converger's own planner
//! ([`placement`](crate::rules::placement)), run on the image without that part. It does not know what only a converger
//! remembers: hosts where a release failed lately count as room here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    links,
    names::{AppName, HostName, ProcName, ReleaseId, ZoneName},
    rules::{
        host_fit::{EnvHosts, closed, env_hosts},
        placement::{Found, FreeCapacity, Indexes, PlacementRequest, Room, allot},
        usage::{Used, reckoned},
        zones::Places,
    },
    schema::{Assignment, Desired, Host, Limits, State},
    snapshot::{AppView, HostView, Snapshot},
    transitions::envs::EMPTY_ENV,
};

/// The slots and memory of some hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The number of registered hosts.
    pub hosts: u32,
    /// The number of those where nothing new is placed: cordoned or draining.
    pub closed: u32,
    /// The number of instances that the hosts can take in all.
    pub slots: u64,
    /// The memory that they have for instances.
    pub memory_bytes: u64,
    /// The slots of assigned instances that have not ended.
    pub slots_reserved: u64,
    /// The memory of these: their limits, or what an instance without a limit counts as.
    pub memory_reserved_bytes: u64,
    /// The slots of those that their host reports as claimed, running or stopping.
    pub slots_used: u64,
    /// The memory of these, counted as reserved: no host reports how much they really use.
    pub memory_used_bytes: u64,
    /// The free slots on open hosts.
    pub slots_free: u64,
    /// The free memory on open hosts.
    pub memory_free_bytes: u64,
}

impl Share {
    fn add(&mut self, other: &Share) {
        self.hosts += other.hosts;
        self.closed += other.closed;
        for (own, others) in [
            (&mut self.slots, other.slots),
            (&mut self.memory_bytes, other.memory_bytes),
            (&mut self.slots_reserved, other.slots_reserved),
            (&mut self.memory_reserved_bytes, other.memory_reserved_bytes),
            (&mut self.slots_used, other.slots_used),
            (&mut self.memory_used_bytes, other.memory_used_bytes),
            (&mut self.slots_free, other.slots_free),
            (&mut self.memory_free_bytes, other.memory_free_bytes),
        ] {
            *own = own.saturating_add(others);
        }
    }

    fn of(snapshot: &Snapshot, name: &HostName, view: &HostView, host: &Host) -> Share {
        let reserved = Used::of(view);
        let mut used = Used::default();
        for (id, assigned) in &view.assigned {
            let taken_up = view.status.get(id).is_some_and(|status| !status.state.is_final());
            if taken_up {
                used.take(reckoned(&assigned.run.limits));
            }
        }
        let is_closed = closed(snapshot, name, view).is_some();
        let free = FreeCapacity::of(host, reserved, is_closed);
        Share {
            hosts: 1,
            closed: u32::from(is_closed),
            slots: host.capacity.instances.into(),
            memory_bytes: host.capacity.memory_bytes,
            slots_reserved: reserved.instances.into(),
            memory_reserved_bytes: reserved.memory_bytes,
            slots_used: used.instances.into(),
            memory_used_bytes: used.memory_bytes,
            slots_free: free.slots.into(),
            memory_free_bytes: free.memory_bytes,
        }
    }
}

/// Returns the shares of the registered hosts by zone.
pub fn by_zone(snapshot: &Snapshot) -> BTreeMap<ZoneName, Share> {
    let mut zones: BTreeMap<ZoneName, Share> = BTreeMap::new();
    for (name, view, host) in registered(snapshot) {
        zones.entry(host.zone.clone()).or_default().add(&Share::of(snapshot, name, view, host));
    }
    zones
}

/// Returns the sum of all shares.
pub fn total<'a>(zones: impl IntoIterator<Item = &'a Share>) -> Share {
    zones.into_iter().fold(Share::default(), |mut total, share| {
        total.add(share);
        total
    })
}

/// Returns how many more instances of a service could be placed, by zone.
///
/// Each zone's number assumes that nothing else is placed meanwhile; their sum is how many fit in all. The service runs
/// with its settings and with the env of the app's current release.
pub fn fits(snapshot: &Snapshot, view: &AppView, proc: &ProcName) -> BTreeMap<ZoneName, u64> {
    let need = reckoned(&limits_of(view, proc).unwrap_or_default());
    let env = view.head_release().map_or(EMPTY_ENV, |(_, head)| head.env);
    let leads = links::broken(snapshot, view, env).is_none();
    let EnvHosts { unfit, .. } = env_hosts(snapshot, view, env);
    let room = Room::of(snapshot, |_, view| Used::of(view));
    let mut zones: BTreeMap<ZoneName, u64> = BTreeMap::new();
    for (name, host, fit) in room.holds(need) {
        let fit = if leads && !unfit.contains_key(name) { fit } else { 0 };
        let zone = zones.entry(host.zone.clone()).or_default();
        *zone = zone.saturating_add(fit);
    }
    zones
}

/// Returns the limits of an instance that is placed now; none if there is no such proc.
fn limits_of(view: &AppView, proc: &ProcName) -> Option<Limits> {
    view.procs.get(proc).map(|row| row.run.limits.clone())
}

/// A part of a cluster that may fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All hosts of a zone.
    Zone(ZoneName),
    /// One host.
    Host(HostName),
}

/// The loss if a part fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The part.
    pub part: Part,
    /// The number of instances there that are meant to run.
    pub instances: u32,
    /// The number of those that could be placed nowhere else, by app and proc.
    pub without_place: BTreeMap<AppName, BTreeMap<ProcName, u32>>,
}

/// Returns the loss of each zone, and of the host with the most reserved memory.
pub fn losses(snapshot: &Snapshot) -> Vec<Loss> {
    let zones: BTreeSet<&ZoneName> = registered(snapshot).map(|(_, _, host)| &host.zone).collect();
    let parts = zones.into_iter().map(|zone| Part::Zone(zone.clone()));
    let largest = registered(snapshot).max_by_key(|(name, view, _)| {
        let used = Used::of(view);
        (used.memory_bytes, used.instances, std::cmp::Reverse(*name))
    });
    let parts = parts.chain(largest.map(|(name, ..)| Part::Host(name.clone())));
    parts.map(|part| loss(snapshot, part)).collect()
}

/// Returns the loss of a part: the instances for which the converger would find no other place.
pub fn loss(snapshot: &Snapshot, part: Part) -> Loss {
    let goes = |name: &HostName, host: &Host| match &part {
        Part::Zone(zone) => host.zone == *zone,
        Part::Host(gone) => name == gone,
    };
    let zone = match &part {
        Part::Zone(zone) => Some(zone),
        Part::Host(gone) => {
            snapshot.hosts.get(gone).and_then(|view| view.host.as_ref()).map(|host| &host.zone)
        }
    };
    let mut lost: BTreeMap<Group<'_>, Vec<&Assignment>> = BTreeMap::new();
    let mut kept: BTreeMap<Service<'_>, Kept> = BTreeMap::new();
    for (_, view, _) in registered(snapshot).filter(|(name, _, host)| goes(name, host)) {
        for one in meant_to_run(view) {
            lost.entry(((&one.app, &one.proc), one.release, one.trial)).or_default().push(one);
            kept.entry((&one.app, &one.proc)).or_default();
        }
    }
    for (at, (name, view)) in snapshot.hosts.iter().enumerate() {
        let Some(host) = view.host.as_ref().filter(|host| !goes(name, host)) else { continue };
        for one in meant_to_run(view) {
            if let Some(kept) = kept.get_mut(&(&one.app, &one.proc)) {
                kept.hosts.push(at);
                kept.in_zone += u32::from(zone == Some(&host.zone) && is_heads(snapshot, one));
            }
        }
    }
    let mut room = Room::of(snapshot, |_, view| Used::of(view)).without(goes);
    for ((app, proc), kept) in &kept {
        room.spread(app, proc, &kept.hosts);
    }
    let mut requests = Vec::new();
    for (((app, proc), ..), lost) in &lost {
        let owed = zone.map_or(0, |zone| owed(snapshot, zone, &kept[&(*app, *proc)], lost));
        requests.extend(requests_for(snapshot, lost, zone, owed).map(|request| (*app, request)));
    }
    let mut without_place: BTreeMap<AppName, BTreeMap<ProcName, u32>> = BTreeMap::new();
    let asked: Vec<_> = requests.iter().map(|(app, request)| (*app, request)).collect();
    allot(&mut room, &asked, usize::MAX, |nth, _, found| {
        let lacking = match found {
            Found::Place(_) | Found::Later => return,
            Found::NoRoom(n, _) | Found::Impossible(n, _) => n,
        };
        let (app, request) = asked[nth];
        let of = without_place.entry(app.clone()).or_default().entry(request.proc.clone()).or_default();
        *of = of.saturating_add(count(lacking));
    });
    let instances = lost.values().fold(0_u32, |sum, lost| sum.saturating_add(count(lost.len())));
    Loss { part: part.clone(), instances, without_place }
}

/// A proc of an app.
type Service<'a> = (&'a AppName, &'a ProcName);

/// The instances of a service in one release, with those on trial apart.
type Group<'a> = (Service<'a>, ReleaseId, bool);

/// The instances of a service that remain without a part of the cluster.
#[derive(Default)]
struct Kept {
    /// The host of each instance, by its position in the image.
    hosts: Vec<usize>,
    /// The number of head's instances in the zone of the failed part.
    in_zone: u32,
}

/// Returns how many of the lost instances must stand in their zone again, and nowhere else.
fn owed(snapshot: &Snapshot, zone: &ZoneName, kept: &Kept, lost: &[&Assignment]) -> u32 {
    let Some(one) = lost.first().filter(|one| is_heads(snapshot, one)) else { return 0 };
    let formation = snapshot.apps.get(&one.app).and_then(|view| view.formation.get(&one.proc));
    let wanted = formation.map_or(0, |row| Places::of(row.count, &row.zones).left_in(zone));
    let after = wanted.saturating_sub(kept.in_zone);
    after - wanted.saturating_sub(kept.in_zone.saturating_add(count(lost.len())))
}

/// Reports whether an instance is of its app's current release, and not of a trial.
fn is_heads(snapshot: &Snapshot, one: &Assignment) -> bool {
    let head = snapshot.apps.get(&one.app).and_then(|view| view.head.as_ref());
    !one.trial && head.is_some_and(|head| head.release == one.release)
}

/// Returns the converger's requests for replacements: the first ones in their zone, the others anywhere.
fn requests_for(
    snapshot: &Snapshot,
    lost: &[&Assignment],
    zone: Option<&ZoneName>,
    owed: u32,
) -> impl Iterator<Item = PlacementRequest> {
    let mut indexes: Vec<u32> = lost.iter().map(|one| one.index).collect();
    indexes.sort_unstable();
    let anywhere = indexes.split_off(indexes.len().min(usize::try_from(owed).unwrap_or(usize::MAX)));
    let request = lost.first().map(|one| {
        let view = snapshot.apps.get(&one.app);
        let EnvHosts { unfit, keyless } =
            view.map(|view| env_hosts(snapshot, view, one.env)).unwrap_or_default();
        let broken = view.and_then(|view| links::broken(snapshot, view, one.env));
        PlacementRequest {
            proc: one.proc.clone(),
            limits: view
                .and_then(|view| limits_of(view, &one.proc))
                .unwrap_or_else(|| one.run.limits.clone()),
            trial: one.trial,
            indexes: Indexes::These(Vec::new()),
            impossible: broken.map(|lead| lead.to_string()),
            avoid: Arc::new(keyless),
            refuse: Arc::new(unfit),
            zone: None,
        }
    });
    let parts = [(zone.cloned(), indexes), (None, anywhere)];
    let asked = request.into_iter().flat_map(move |request| {
        let of = move |(zone, indexes)| {
            let indexes = Indexes::These(indexes);
            PlacementRequest { zone, indexes, ..request.clone() }
        };
        parts.clone().map(of)
    });
    asked.filter(|request| !request.indexes.is_empty())
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn registered(snapshot: &Snapshot) -> impl Iterator<Item = (&HostName, &HostView, &Host)> {
    snapshot.hosts.iter().filter_map(|(name, view)| Some((name, view, &view.host.as_ref()?.value)))
}

fn meant_to_run(view: &HostView) -> impl Iterator<Item = &Assignment> {
    let ended = |state: State| matches!(state, State::Exited | State::Failed);
    view.assigned
        .iter()
        .filter(move |(id, _)| !view.status.get(id).is_some_and(|status| ended(status.state)))
        .map(|(_, assigned)| &assigned.value)
        .filter(|assigned| assigned.desired == Desired::Run)
}

#[cfg(test)]
mod tests;
