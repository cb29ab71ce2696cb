//! What goes wrong during the day, and how it is made well again.
//!
//! Owns the choice of faults and their times; what each does is the world's.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::SignedDuration;
use tokio::time::{Instant, sleep};
use visor::{
    keys::Key,
    names::HostName,
    store::{Store, StoreError},
};

use crate::{balancer::Haproxy, gate::Gate, line::Line, nodes::Nodes, world::World};

/// Lets things go wrong until the day is over.
pub async fn trouble(world: Arc<World>, nodes: Nodes) {
    loop {
        world.wait(50..=9_000).await;
        if world.is_healed() {
            return;
        }
        strike(&world, &nodes);
    }
}

/// Everything is well from now on.
pub fn heal(world: &World, nodes: &Nodes) {
    world.note(format_args!("all is well again"));
    world.heal();
    for (_, line) in world.lines() {
        line.mend(world.chance(0.5));
    }
    for host in Nodes::hosts() {
        world.machine(&host, |machine| {
            machine.disk_full = false;
            machine.outsiders.clear();
        });
    }
    for proxy in Nodes::proxies() {
        world.haproxy(&proxy, Haproxy::mend);
    }
    nodes.alive().into_iter().for_each(|(_, gate, _)| gate.spare());
}

fn strike(world: &Arc<World>, nodes: &Nodes) {
    let alive = nodes.alive();
    let (name, gate, stop) = world.pick(&alive).clone();
    let host = world.pick(&Nodes::hosts()).clone();
    // Lines are the users' too.
    let (end, line) = world.pick(&world.lines()).clone();
    match world.between(0..=24) {
        0..=1 => {
            let effects = u32::try_from(world.between(0..=12)).expect("it is small");
            world.note(format_args!("{name} will die after {effects} effects"));
            gate.kill_after(effects);
        }
        2 => {
            world.note(format_args!("{name} is killed"));
            gate.kill();
        }
        3 => {
            world.note(format_args!("{name} is told to end"));
            stop.cancel();
        }
        4..=5 => pause(world, name, &gate),
        6..=8 => cut(world, end, line),
        9..=11 => {
            let lossy = *world.pick(&[0.05, 0.3]);
            // The writes of a converger are the ones that may do harm when they are late.
            let (end, line) = if world.chance(0.3) { a_converger(world) } else { (end, line) };
            world.note(format_args!("the line of {end} loses things"));
            line.change(|state| state.lossy = lossy);
            mend_later(world, end, line);
        }
        12 => {
            let (latency, lag) = (world.between(10..=900), world.between(10..=7_000));
            world.note(format_args!("the line of {end} is slow: {latency} ms, watches {lag} ms"));
            line.change(|state| (state.latency, state.lag) = (latency, lag));
            mend_later(world, end, line);
        }
        13 => {
            world.note(format_args!("the watches of {end} fall silent"));
            line.silence_watches();
        }
        14 => compact(world),
        15 => coordinator_fails(world),
        16 => {
            let minutes = i64::try_from(world.between(0..=120)).expect("it is small") - 60;
            world.note(format_args!("the clock of {host} is wrong by {minutes} minutes"));
            world.machine(&host, |machine| machine.wrong_by = SignedDuration::from_mins(minutes));
        }
        17 => disk_or_ports(world, host),
        18 => reboot(world, nodes, &host),
        19..=20 => lease_is_lost(world, &host),
        21 => dependency_fails(world, nodes),
        _ => haproxy_fails(world, world.pick(&Nodes::proxies()).clone()),
    }
}

fn pause(world: &Arc<World>, name: String, gate: &Gate) {
    let millis = *world.pick(&[500, 4_000, 12_000, 30_000]);
    if world.chance(0.6) {
        let effects = u32::try_from(world.between(0..=12)).expect("it is small");
        world.note(format_args!("{name} will be paused for {millis} ms after {effects} effects"));
        return gate.pause_after(effects, Duration::from_millis(millis));
    }
    world.note(format_args!("{name} is paused for {millis} ms"));
    gate.pause(true);
    let (world, gate) = (world.clone(), gate.clone());
    tokio::spawn(async move {
        sleep(Duration::from_millis(millis)).await;
        world.note(format_args!("{name} goes on"));
        gate.pause(false);
    });
}

/// Cuts a line in one direction or both.
fn cut(world: &Arc<World>, name: String, line: Line) {
    let which = world.between(0..=2);
    let (requests, replies) = (which != 1, which != 0);
    world.note(format_args!("the line of {name} is cut: requests {requests}, replies {replies}"));
    line.change(|state| (state.requests_cut, state.replies_cut) = (requests, replies));
    mend_later(world, name, line);
}

fn a_converger(world: &Arc<World>) -> (String, Line) {
    let lines = world.lines();
    let convergers: Vec<_> = lines.into_iter().filter(|(name, _)| name.starts_with("converger")).collect();
    world.pick(&convergers).clone()
}

fn mend_later(world: &Arc<World>, name: String, line: Line) {
    let millis = *world.pick(&[300, 3_000, 8_000, 14_000, 25_000]);
    let world = world.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(millis)).await;
        let breaks = world.chance(0.5);
        world.note(format_args!("the line of {name} is mended; its watches break: {breaks}"));
        line.mend(breaks);
    });
}

/// The history goes; whoever lags lost something, and is told.
fn compact(world: &Arc<World>) {
    let revision = world.store.revision();
    world.note(format_args!("compacted at {revision}"));
    let store = world.store.client();
    let world = world.clone();
    tokio::spawn(async move {
        // A second one at the same revision is refused, and does no harm.
        let _ = store.compact(revision).await;
        for (_, line) in world.lines() {
            if line.now().lag > 0 || world.chance(0.3) {
                line.end_watches(StoreError::Compacted { asked: 1, oldest: revision });
            }
        }
    });
}

/// The coordinator is away, or takes no writes.
fn coordinator_fails(world: &Arc<World>) {
    let full = world.chance(0.5);
    let millis = *world.pick(&[1_000, 8_000, 20_000]);
    world.note(format_args!("the coordinator is {} for {millis} ms", if full { "full" } else { "away" }));
    let lines = world.lines();
    for (_, line) in &lines {
        if full {
            line.change(|state| state.full = true);
        } else {
            line.change(|state| state.refused = true);
            line.end_watches(StoreError::WatchEnded { detail: "the connection broke".into() });
        }
    }
    let world = world.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(millis)).await;
        world.note(format_args!("the coordinator is back"));
        for (_, line) in lines {
            line.change(|state| (state.full, state.refused) = (false, false));
        }
    });
}

fn disk_or_ports(world: &Arc<World>, host: HostName) {
    let disk = world.chance(0.6);
    world.note(format_args!("{host}: {}", if disk { "its disk is full" } else { "outsiders take ports" }));
    let ports: Vec<u16> = (21_000..=21_011).filter(|_| world.chance(0.3)).collect();
    world.machine(&host, |machine| {
        if disk {
            machine.disk_full = true;
        } else {
            machine.outsiders.extend(ports);
        }
    });
    let world = world.clone();
    tokio::spawn(async move {
        world.wait(1_000..=20_000).await;
        world.machine(&host, |machine| {
            machine.disk_full = false;
            machine.outsiders.clear();
        });
    });
}

/// HAProxy dies, hangs, can't write its file, or finds others on the ports that it is to open.
fn haproxy_fails(world: &Arc<World>, proxy: String) {
    let millis = *world.pick(&[1_000, 4_000, 15_000]);
    let ports: BTreeSet<u16> = (8_500..=8_510).filter(|_| world.chance(0.3)).collect();
    let until = Instant::now() + Duration::from_millis(millis);
    let which = world.between(0..=3);
    let what = ["is killed", "answers nothing", "can't write its file", "finds others on its ports"];
    world.note(format_args!("HAProxy of {proxy} {} for {millis} ms", what[usize::from(which as u8)]));
    world.haproxy(&proxy, |haproxy| match which {
        0 => haproxy.kill(),
        1 => haproxy.silent_until = Some(until),
        2 => haproxy.disk_full = true,
        _ => haproxy.outsiders = ports,
    });
    let world = world.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(millis)).await;
        world.haproxy(&proxy, Haproxy::mend);
    });
}

/// The coordinator loses a lease, and its holder hears of that at its next renewal. Meanwhile somebody else's watches
/// lag, as they do when the coordinator changes its leader.
fn lease_is_lost(world: &Arc<World>, host: &HostName) {
    let key = if world.chance(0.6) { Key::Host(host.clone()) } else { Key::Leader };
    let lagging = world.chance(0.6);
    world.note(format_args!("the lease of {key} is lost; the convergers' watches lag: {lagging}"));
    if lagging {
        let lag = world.between(1_000..=6_000);
        for (name, line) in world.lines().into_iter().filter(|(name, _)| name.starts_with("converger")) {
            line.change(|state| state.lag = lag);
            mend_later(world, name, line);
        }
    }
    let Some(lease) = world.store.peek(&key.to_string()).and_then(|row| row.lease) else { return };
    let store = world.store.client();
    // It may have ended by itself.
    tokio::spawn(async move { drop(store.revoke(lease).await) });
}

/// Something that the processes of an app need is away: each that starts meanwhile crashes at once.
fn dependency_fails(world: &Arc<World>, nodes: &Nodes) {
    let app = *world.pick(&["rocket", "pages"]);
    let millis = world.between(10_000..=40_000);
    world.note(format_args!("what {app} needs is away for {millis} ms"));
    nodes.rules().fail_at_once(&app.parse().expect("a valid name"), Duration::from_millis(millis));
}

/// The machine is started anew, with all on it.
fn reboot(world: &Arc<World>, nodes: &Nodes, host: &HostName) {
    world.note(format_args!("{host} is started anew"));
    let own = nodes.alive().into_iter().filter(|(name, _, _)| name == host.as_str());
    own.for_each(|(_, gate, _)| gate.kill());
    world.machine(host, |machine| machine.reboot());
}
