//! Days on which the rm and its disk are gone for good, from some moment on.
//!
//! Owns that moment, and the end of such a day. Hosts crash, return and are drained after it as before, and developers
//! scale, restart and roll back: every slug that is needed then has to come from a host that has it. Once all is well
//! again, hosts are drained whose slugs no other host has, one after the other.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use visor::{
    names::{AppName, HostName, ProcName},
    snapshot::Snapshot,
    transitions::envs::{EMPTY_ENV, holders},
    visor::Visor,
};

use crate::{
    Working,
    gate::Gate,
    line::Link,
    nodes::{Nodes, RM},
    rest,
    rules::Rules,
    users::slug_of,
    world::World,
};

/// The time after which nothing is on its way any more that developers pushed before.
const LAST_PUSH: Duration = Duration::from_secs(60);

/// How long the loss waits for a moment at which each head is on some host.
const AT_LEAST_ONCE: u32 = 240;

/// How many hosts are drained at the end of such a day.
const DRAINED: usize = 2;

/// The time within which instances run elsewhere whose slugs have to come from the drained host.
const MOVED_WITHIN: Duration = Duration::from_secs(120);

/// Runs a day of the usual users and troubles, on which the rm is lost.
pub async fn day(world: &Arc<World>) {
    world.keep_slugs();
    let working = Working::begin(world).await;
    sleep(Duration::from_secs(world.between(1..=40))).await;
    lose_rm(world, &working.rules, &working.nodes).await;
    let (rules, nodes) = working.end(world).await;
    for _ in 0..DRAINED {
        move_away(world, &rules, &nodes).await;
    }
}

/// Drains a host that runs instances whose slugs no other host has, and waits until they run elsewhere.
///
/// Nothing else goes wrong meanwhile, so the time for this has no exception.
async fn move_away(world: &Arc<World>, rules: &Rules, nodes: &Nodes) {
    let visor = Visor::new(Link::store(world, "mover", &Gate::new()));
    let (app, proc): (AppName, ProcName) =
        ("pages".parse().expect("a valid name"), "web".parse().expect("a valid name"));
    rules.ask(&app, &proc, 1);
    visor
        .scale(&app, &proc, 1, None, "me", world.wall(jiff::SignedDuration::ZERO))
        .await
        .expect("nothing goes wrong any more");
    rules.acknowledge(&app, &proc, 1);
    rest::until_settled(world, rules, MOVED_WITHIN).await;
    let runs = |image: &Snapshot| -> Option<HostName> {
        image.apps[&app].instances.values().map(|row| row.host.clone()).next()
    };
    let from = rules.look(runs).expect("one runs");
    for (name, gate, _) in nodes.alive() {
        if let Some(host) = Nodes::hosts().into_iter().find(|host| *host.as_str() == name && *host != from) {
            world.note(format_args!("{host} is started anew, without the slugs that nothing there uses"));
            gate.kill();
            world.remove_slugs(&host);
        }
    }
    rest::until_settled(world, rules, MOVED_WITHIN).await;
    mark(&visor, &from, true).await;
    world.note(format_args!("{from} is drained"));
    let is_empty = || rules.look(|image| image.hosts[&from].assigned.is_empty());
    let moved = async {
        while !is_empty() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    if timeout(MOVED_WITHIN, moved).await.is_err() {
        let left = rules.look(|image| image.hosts[&from].assigned.keys().copied().collect::<Vec<_>>());
        return world
            .breach(format_args!("{left:?} are still on {from}, whose slugs the other hosts may have"));
    }
    mark(&visor, &from, false).await;
    rest::until_settled(world, rules, MOVED_WITHIN).await;
}

async fn mark(visor: &Visor, host: &HostName, draining: bool) {
    visor.mark_host(host, |meta| meta.draining = draining).await.expect("nothing goes wrong any more");
}

/// Loses the rm in a moment at which hosts have what the releases need that are head or on trial.
///
/// Any host that lacks a slug or a key to config vars later gets it from another host.
async fn lose_rm(world: &World, rules: &Rules, nodes: &Nodes) {
    world.note(format_args!("nothing new is pushed any more"));
    world.close_revs();
    sleep(LAST_PUSH).await;
    for _ in 0..AT_LEAST_ONCE {
        if rules.look(|image| is_on_hosts(world, image)) {
            world.note(format_args!("the rm is gone for good"));
            world.lose_rm();
            let rm = nodes.alive().into_iter().find(|(name, _, _)| name == RM);
            rm.into_iter().for_each(|(_, gate, _)| gate.kill());
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Whether some machine has each slug that is needed, and several have each env.
fn is_on_hosts(world: &World, image: &Snapshot) -> bool {
    image.apps.values().all(|view| {
        let head = view.head.as_ref().map(|head| head.release);
        let beside = view.formation.values().flat_map(|row| row.beside.keys().copied());
        let needed = head.into_iter().chain(view.trial.as_ref().map(|trial| trial.release)).chain(beside);
        let mut releases = needed.filter_map(|release| view.releases.get(&release));
        releases.all(|release| {
            let holders = view.handed.keys().filter(|(_, env)| *env == release.env).count();
            world.holds(&slug_of(&release.rev)) && (release.env == EMPTY_ENV || holders > holders::MORE)
        })
    })
}
