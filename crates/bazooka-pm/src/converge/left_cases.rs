//! What `visor::capacity::left` says is what the converger would do.
//!
//! Random clusters: as many more of a service as are said to fit are placed, and one more isn't; what is said to
//! have no place without a part has none when that part has gone.

use std::collections::BTreeMap;

use proptest::prelude::*;
use visor::{
    capacity::left::{Part, by_zone, fits, losses, total},
    names::{AppName, ProcName},
    schema::HostMeta,
};

use super::{
    fixture::World,
    plan::{Act, Plan},
};

const ZONES: [&str; 3] = ["north", "south", "west"];
const APPS: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
struct Machine {
    zone: usize,
    slots: u32,
    memory_mib: u64,
    /// 0: open, 1: cordoned, 2: draining.
    word: u8,
    /// It was told where services are.
    is_told: bool,
}

#[derive(Clone, Debug)]
struct Cluster {
    machines: Vec<Machine>,
    /// Each app's memory limit and count, and how many of these are to stand in the first zone.
    apps: Vec<(Option<u64>, u32, u32)>,
    /// What the first app links.
    linked: Linked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Linked {
    Nothing,
    Service,
    /// It has gone since the app's instances were placed.
    Gone,
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let word = prop_oneof![6 => Just(0_u8), 1 => Just(1_u8), 1 => Just(2_u8)];
    let is_told = prop_oneof![4 => Just(true), 1 => Just(false)];
    let machine = (0..ZONES.len(), 0_u32..6, 0_u64..400, word, is_told).prop_map(
        |(zone, slots, memory_mib, word, is_told)| Machine { zone, slots, memory_mib, word, is_told },
    );
    let linked = prop_oneof![3 => Just(Linked::Nothing), 3 => Just(Linked::Service), 1 => Just(Linked::Gone)];
    let in_zone = prop_oneof![3 => Just(0_u32), 1 => 1_u32..4];
    let app = (prop::option::of(0_u64..200), 0_u32..8, in_zone);
    (prop::collection::vec(machine, 1..6), prop::collection::vec(app, APPS.len()), linked)
        .prop_map(|(machines, apps, linked)| Cluster { machines, apps, linked })
}

fn world(cluster: &Cluster) -> World {
    let mut world = World::new();
    for (n, machine) in cluster.machines.iter().enumerate() {
        let name = format!("host{n}");
        world.register(&name);
        world.edit_host(&name, |host| {
            host.zone = ZONES[machine.zone].parse().expect("a zone");
            host.capacity.instances = machine.slots;
            host.capacity.memory_bytes = machine.memory_mib << 20;
            host.services = host.services.take().filter(|_| machine.is_told);
        });
    }
    world = world.app("linked").released("web");
    for (app, (limit, count, in_zone)) in APPS.iter().zip(&cluster.apps) {
        let links: &[&str] =
            if *app == APPS[0] && cluster.linked != Linked::Nothing { &["linked:web"] } else { &[] };
        world = world.app(app).linking(links).released("web").scaled("web", *count).settings("web", |proc| {
            proc.run.limits.memory_limit_bytes = limit.map(|mib| mib << 20);
        });
        let in_zone = (*in_zone).min(*count);
        world.formation("web", |formation| {
            let zone = ZONES[0].parse().expect("a zone");
            formation.zones.extend((in_zone > 0).then_some((zone, in_zone)));
        });
    }
    carry_out(&mut world, 1);
    if cluster.linked == Linked::Gone {
        world.unregister("linked", "web");
    }
    for (n, machine) in cluster.machines.iter().enumerate().filter(|(_, machine)| machine.word > 0) {
        let mark =
            |meta: &mut HostMeta| (meta.cordoned, meta.draining) = (machine.word == 1, machine.word == 2);
        world.mark(&format!("host{n}"), mark);
    }
    world
}

/// Places what the converger places, and returns what it planned.
fn carry_out(world: &mut World, first_id: u64) -> Plan {
    let plan = world.plan();
    for (id, step) in (first_id..).zip(&plan.steps) {
        if let Act::Place { seat, place } = &step.act {
            world.turn_to(step.app.as_str());
            world.place(id, &format!("{}@{}", seat.proc, seat.release), place.host.as_str(), seat.index);
        }
    }
    plan
}

/// How many of each app's web have no place.
fn short(world: &World, plan: &Plan) -> BTreeMap<AppName, u32> {
    let mut short = BTreeMap::new();
    for name in APPS.map(|name| world.name(name)) {
        let said = plan.steps.iter().find_map(|step| match &step.act {
            Act::Pend { pending: Some(pending), .. } if step.app == name => Some(pending.short),
            _ => None,
        });
        if let Some(said) = said {
            short.insert(name, said);
        }
    }
    short
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn as_many_more_fit_as_are_said_to_and_no_more(cluster in cluster()) {
        let mut world = world(&cluster);
        let (name, web): (AppName, ProcName) = (world.name("a"), world.proc("web"));
        let said = fits(&world.snapshot, &world.snapshot.apps[&name], &web);
        let zones = by_zone(&world.snapshot);
        let all = total(zones.values());
        let fit: u64 = said.values().sum();
        prop_assert!(fit <= all.slots_free, "{fit} of {}", all.slots_free);
        // Another app that is exactly like it takes the room, so that drains and shortages of its own don't count.
        let limit = cluster.apps[0].0;
        let count = u32::try_from(fit).expect("hosts are small") + 1;
        let links: &[&str] = if cluster.linked == Linked::Nothing { &[] } else { &["linked:web"] };
        world = world.app("more").linking(links).released("web").scaled("web", count).settings("web", |proc| {
            proc.run.limits.memory_limit_bytes = limit.map(|mib| mib << 20);
        });
        let only = [world.name("more")];
        let instances = super::facts::Reader::of(&world.snapshot).apps(&only);
        let tally = super::tally::Tally::of(&world.snapshot);
        let plan = super::plan::plan_apps(&world.snapshot, &tally, &world.memory, &instances, world.now);
        let placed = plan.steps.iter().filter(|step| matches!(step.act, Act::Place { .. })).count();
        prop_assert_eq!(placed as u64, fit);
        let refused = plan.steps.iter().find_map(|step| match &step.act {
            Act::Pend { pending: Some(pending), .. } => Some(pending.short),
            _ => None,
        });
        prop_assert_eq!(refused, Some(1));
        let mut in_zone: BTreeMap<_, u64> = BTreeMap::new();
        for step in &plan.steps {
            if let Act::Place { place, .. } = &step.act {
                let host = world.snapshot.hosts[&place.host].host.as_ref().expect("it is registered");
                *in_zone.entry(host.zone.clone()).or_default() += 1;
            }
        }
        let said: BTreeMap<_, _> = said.into_iter().filter(|(_, n)| *n > 0).collect();
        prop_assert_eq!(in_zone, said);
    }

    #[test]
    fn what_is_said_to_have_no_place_without_a_part_has_none(cluster in cluster()) {
        // A host that drains would have its own replaced as well.
        let mut cluster = cluster;
        cluster.machines.iter_mut().for_each(|machine| machine.word %= 2);
        let mut before = world(&cluster);
        let short_before = { let plan = before.plan(); short(&before, &plan) };
        for loss in losses(&before.snapshot) {
            let mut after = world(&cluster);
            let goes: Vec<_> = after
                .snapshot
                .hosts
                .iter()
                .filter(|(name, view)| match &loss.part {
                    Part::Zone(zone) => view.host.as_ref().is_some_and(|host| host.zone == *zone),
                    Part::Host(host) => *name == host,
                })
                .map(|(name, _)| name.clone())
                .collect();
            let mut gone = 0;
            for name in &goes {
                after.snapshot.hosts.remove(name);
            }
            for view in after.snapshot.apps.values_mut() {
                let had = view.instances.len();
                view.instances.retain(|_, row| !goes.contains(&row.host));
                gone += had - view.instances.len();
            }
            prop_assert_eq!(gone as u64, u64::from(loss.instances));
            let plan = after.plan();
            let mut expected = short_before.clone();
            for (app, procs) in &loss.without_place {
                *expected.entry(app.clone()).or_default() += procs.values().sum::<u32>();
            }
            prop_assert_eq!(short(&after, &plan), expected, "without {:?}", loss.part);
        }
    }
}
