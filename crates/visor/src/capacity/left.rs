//! What is left of a cluster's capacity, how many more of a service fit, and what has no place if a part goes.
//!
//! Owns these answers over an image, by the same reckoning and in the same order as the converger places. It knows
//! nothing that only a converger remembers: hosts where a release failed lately count as room here.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Used, closed, rank, reckoned};
use crate::{
    links,
    names::{AppName, EnvRef, HostName, ProcName, ZoneName},
    schema::{Assignment, Desired, Env, Host, State},
    snapshot::{AppView, HostView, Snapshot},
    transitions::envs::EMPTY_ENV,
};

/// Slots and memory of some hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Hosts that are registered.
    pub hosts: u32,
    /// Of these, the hosts where nothing new is placed: cordoned, draining.
    pub closed: u32,
    /// Instances that the hosts can take in all.
    pub slots: u64,
    /// Memory that they have for instances.
    pub memory_bytes: u64,
    /// Slots of what is assigned and hasn't ended.
    pub slots_reserved: u64,
    /// The memory of these: their limits, or what one without is reckoned at.
    pub memory_reserved_bytes: u64,
    /// Of these, what its host says that it has taken up: claimed, running, stopping.
    pub slots_used: u64,
    /// The memory of these, as reserved: no host says how much they really take.
    pub memory_used_bytes: u64,
    /// Slots left on the hosts that are open.
    pub slots_free: u64,
    /// Memory left on them.
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
        let left = Left::of(snapshot, name, view, host);
        Share {
            hosts: 1,
            closed: u32::from(closed(snapshot, name, view).is_some()),
            slots: host.capacity.instances.into(),
            memory_bytes: host.capacity.memory_bytes,
            slots_reserved: reserved.instances.into(),
            memory_reserved_bytes: reserved.memory_bytes,
            slots_used: used.instances.into(),
            memory_used_bytes: used.memory_bytes,
            slots_free: left.slots.into(),
            memory_free_bytes: left.memory_bytes,
        }
    }
}

/// The hosts that are registered, each zone's together.
pub fn by_zone(snapshot: &Snapshot) -> BTreeMap<ZoneName, Share> {
    let mut zones: BTreeMap<ZoneName, Share> = BTreeMap::new();
    for (name, view, host) in registered(snapshot) {
        zones.entry(host.zone.clone()).or_default().add(&Share::of(snapshot, name, view, host));
    }
    zones
}

/// All of them.
pub fn total<'a>(zones: impl IntoIterator<Item = &'a Share>) -> Share {
    zones.into_iter().fold(Share::default(), |mut total, share| {
        total.add(share);
        total
    })
}

/// How many more instances of a service could be placed, by zone; each zone's number is as if nothing else were
/// placed meanwhile, and together they are how many fit in all.
///
/// The service runs by its settings, with the env of the app's current release.
pub fn fits(snapshot: &Snapshot, view: &AppView, proc: &ProcName) -> BTreeMap<ZoneName, u64> {
    let need = view.procs.get(proc).map_or(super::UNLIMITED_BYTES, |row| reckoned(&row.run.limits));
    let env = view.head_release().map_or(EMPTY_ENV, |(_, head)| head.env);
    let leads = links::broken(snapshot, view, env).is_none();
    let mut zones: BTreeMap<ZoneName, u64> = BTreeMap::new();
    for (name, host_view, host) in registered(snapshot) {
        let left = Left::of(snapshot, name, host_view, host);
        let fit = if leads && takes(view, env, host) { left.holds(need) } else { 0 };
        let zone = zones.entry(host.zone.clone()).or_default();
        *zone = zone.saturating_add(fit);
    }
    zones
}

/// A part of a cluster that may go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All hosts of a zone.
    Zone(ZoneName),
    /// One host.
    Host(HostName),
}

/// What is lost with a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The part.
    pub part: Part,
    /// How many instances that are meant to run are there.
    pub instances: u32,
    /// How many of them could be placed nowhere else, by app and proc.
    pub without_place: BTreeMap<AppName, BTreeMap<ProcName, u32>>,
}

/// What is lost if each zone went, and if the host went that has the most memory reserved.
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

/// What is lost with a part: what the converger, told that it has gone, would have no place for.
pub fn loss(snapshot: &Snapshot, part: Part) -> Loss {
    let goes = |name: &HostName, host: &Host| match &part {
        Part::Zone(zone) => host.zone == *zone,
        Part::Host(gone) => name == gone,
    };
    let stays = registered(snapshot).filter(|(name, _, host)| !goes(name, host));
    let mut rest: Vec<Place<'_>> = stays
        .map(|(name, view, host)| Place { host, view, left: Left::of(snapshot, name, view, host) })
        .collect();
    let mut homeless: Vec<&Assignment> = registered(snapshot)
        .filter(|(name, _, host)| goes(name, host))
        .flat_map(|(_, view, _)| meant_to_run(view))
        .collect();
    // As the converger gives room out: index 0 of every service first, of equals what is on trial.
    homeless.sort_by_key(|a| (a.index, !a.trial, &a.app, &a.proc, a.release));
    let zone = match &part {
        Part::Zone(zone) => Some(zone),
        Part::Host(gone) => {
            registered(snapshot).find(|(name, ..)| *name == gone).map(|(.., host)| &host.zone)
        }
    };
    let mut crowds: BTreeMap<(&AppName, &ProcName), Crowd<'_>> = BTreeMap::new();
    let mut loss = Loss { part: part.clone(), instances: 0, without_place: BTreeMap::new() };
    let all_gone = homeless.clone();
    for one in homeless {
        loss.instances = loss.instances.saturating_add(1);
        let crowd = crowds.entry((&one.app, &one.proc)).or_insert_with(|| {
            let owed = zone.map_or(0, |zone| owed(snapshot, zone, &rest, &all_gone, one));
            Crowd { zone, owed, ..Crowd::of(&rest, one) }
        });
        if !crowd.place(&mut rest, snapshot, one) {
            let of_app = loss.without_place.entry(one.app.clone()).or_default();
            *of_app.entry(one.proc.clone()).or_default() += 1;
        }
    }
    loss
}

/// What a host has left.
#[derive(Clone, Copy, Debug)]
struct Left {
    memory_bytes: u64,
    /// None where nothing at all is placed.
    slots: u32,
}

impl Left {
    fn of(snapshot: &Snapshot, name: &HostName, view: &HostView, host: &Host) -> Left {
        if closed(snapshot, name, view).is_some() {
            return Left { memory_bytes: 0, slots: 0 };
        }
        let used = Used::of(view);
        Left {
            memory_bytes: host.capacity.memory_bytes.saturating_sub(used.memory_bytes),
            slots: host.capacity.instances.saturating_sub(used.instances),
        }
    }

    fn holds(self, need: u64) -> u64 {
        let by_memory = self.memory_bytes.checked_div(need).unwrap_or(u64::MAX);
        by_memory.min(self.slots.into())
    }
}

/// A host that stays.
struct Place<'a> {
    host: &'a Host,
    view: &'a HostView,
    left: Left,
}

/// How many of a service are on each host that stays and in each of their zones.
struct Crowd<'a> {
    at: Vec<u32>,
    in_zone: BTreeMap<&'a ZoneName, u32>,
    /// The zone in which something has gone.
    zone: Option<&'a ZoneName>,
    /// How many of those that have gone are to stand in that zone again, and nowhere else.
    owed: u32,
}

/// How many more of a service a zone is short of, now that these have gone, of those that are to stand there.
fn owed(
    snapshot: &Snapshot,
    zone: &ZoneName,
    rest: &[Place<'_>],
    gone: &[&Assignment],
    of: &Assignment,
) -> u32 {
    let view = snapshot.apps.get(&of.app);
    let wanted = view.and_then(|view| view.formation.get(&of.proc)?.zones.get(zone)).copied().unwrap_or(0);
    let head = view.and_then(|view| Some(view.head.as_ref()?.release));
    let same = |a: &&Assignment| a.app == of.app && a.proc == of.proc && Some(a.release) == head && !a.trial;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let there = rest.iter().filter(|place| place.host.zone == *zone);
    let stay = count(there.flat_map(|place| meant_to_run(place.view)).filter(same).count());
    let lost = count(gone.iter().copied().filter(same).count());
    wanted.saturating_sub(stay) - wanted.saturating_sub(stay.saturating_add(lost))
}

impl<'a> Crowd<'a> {
    fn of(rest: &[Place<'a>], of: &Assignment) -> Self {
        let mut crowd = Crowd { at: vec![0; rest.len()], in_zone: BTreeMap::new(), zone: None, owed: 0 };
        for (at, place) in rest.iter().enumerate() {
            let same = meant_to_run(place.view).filter(|a| a.app == of.app && a.proc == of.proc);
            same.for_each(|_| crowd.add(at, &place.host.zone));
        }
        crowd
    }

    fn add(&mut self, at: usize, zone: &'a ZoneName) {
        self.at[at] += 1;
        *self.in_zone.entry(zone).or_default() += 1;
    }

    /// Takes the best place for one more, if there is any.
    fn place(&mut self, rest: &mut [Place<'a>], snapshot: &Snapshot, one: &Assignment) -> bool {
        let need = reckoned(&one.run.limits);
        let view = snapshot.apps.get(&one.app);
        let only = self.zone.filter(|_| self.owed > 0);
        self.owed = self.owed.saturating_sub(1);
        if view.is_some_and(|view| links::broken(snapshot, view, one.env).is_some()) {
            return false;
        }
        let can = |place: &Place<'_>| {
            only.is_none_or(|zone| place.host.zone == *zone)
                && place.left.holds(need) > 0
                && view.is_none_or(|view| takes(view, one.env, place.host))
        };
        let able = rest.iter().enumerate().filter(|(_, place)| can(place));
        let best = able.min_by_key(|(at, place)| {
            let in_zone = self.in_zone.get(&place.host.zone).copied().unwrap_or(0);
            (rank(in_zone, self.at[*at], place.left.memory_bytes), u32::MAX - place.left.slots, *at)
        });
        let Some(at) = best.map(|(at, _)| at) else { return false };
        let host = rest[at].host;
        self.add(at, &host.zone);
        let left = &mut rest[at].left;
        left.slots -= 1;
        left.memory_bytes -= need;
        true
    }
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

/// Whether a host can take what runs with an env: open it, now or once an rm has wrapped it for it, and lead its links.
fn takes(view: &AppView, env: EnvRef, host: &Host) -> bool {
    let opens = |row: &Env| host.seal_key.is_some() || !row.is_sealed();
    view.envs.get(&env).is_none_or(|row| opens(row) && links::refusal(row, host).is_none())
}
