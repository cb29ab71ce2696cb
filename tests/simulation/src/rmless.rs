//! Days on which the rm and its disk are gone for good, from some moment on.
//!
//! Owns that moment. Hosts crash, return and are drained after it as before, and developers scale, restart and roll back:
//! every slug that is needed then has to come from a host that has it.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use visor::{snapshot::Snapshot, transitions::envs::EMPTY_ENV};

use crate::{
    Working,
    nodes::{Nodes, RM},
    rules::Rules,
    users::slug_of,
    world::World,
};

/// The time after which nothing is on its way any more that developers pushed before.
const LAST_PUSH: Duration = Duration::from_secs(60);

/// How long the loss waits for a moment at which each head is on some host.
const AT_LEAST_ONCE: u32 = 240;

/// Runs a day of the usual users and troubles, on which the rm is lost.
pub async fn day(world: &Arc<World>) {
    world.keep_slugs();
    let working = Working::begin(world).await;
    sleep(Duration::from_secs(world.between(1..=40))).await;
    lose_rm(world, &working.rules, &working.nodes).await;
    working.end(world).await;
}

/// Loses the rm in a moment at which hosts have what the releases need that are head or on trial.
///
/// A host that joins later, or was away when config vars were set, gets its key to them from an rm alone.
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

/// Whether some machine has each slug that is needed, and every machine a key to each env.
fn is_on_hosts(world: &World, image: &Snapshot) -> bool {
    let keys: Vec<_> =
        Nodes::hosts().iter().map(|host| world.machine(host, |machine| machine.ring.current())).collect();
    image.apps.values().all(|view| {
        let head = view.head.as_ref().map(|head| head.release);
        let needed = head.into_iter().chain(view.trial.as_ref().map(|trial| trial.release));
        let mut releases = needed.filter_map(|release| view.releases.get(&release));
        releases.all(|release| {
            let wraps = view.wraps.get(&release.env);
            let opens = |key| wraps.is_some_and(|wraps| wraps.hosts.contains_key(key));
            world.holds(&slug_of(&release.rev)) && (release.env == EMPTY_ENV || keys.iter().all(opens))
        })
    })
}
