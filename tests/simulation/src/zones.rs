//! Days on which a host and a proxy are cut off together, as their zone is, and return together.
//!
//! Owns the cuts, and what follows one on a busy machine: the proxy takes longer than the host to be back in touch. Nothing
//! else goes wrong on such a day, so its rule has no exception: what was replaced meanwhile ends only once no proxy
//! routes to it.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{faults, gate::Gate, line::State, nodes::Nodes, rest, rules::Rules, users::User, world::World};

/// How often a zone is cut off in a day.
const CUTS: u32 = 3;

/// The time within which all is as it should be once a zone is back.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// Lives through such a day.
pub async fn day(world: &Arc<World>) {
    let rules = Rules::new(world);
    tokio::spawn(rules.clone().watch());
    for (app, procs) in [("rocket", &["web", "worker"][..]), ("pages", &["web"])] {
        User::new(world, &rules, app, procs).begin().await;
    }
    let nodes = Nodes::start(world, &rules);
    faults::heal(world, &nodes);
    rules.no_proxy_routes_to_what_ends();
    rest::until_settled(world, &rules, SETTLED_WITHIN).await;
    for _ in 0..CUTS {
        cut(world, &nodes).await;
        rest::until_settled(world, &rules, SETTLED_WITHIN).await;
    }
}

async fn cut(world: &Arc<World>, nodes: &Nodes) {
    let (host, proxy) = (world.pick(&Nodes::hosts()).to_string(), world.pick(&Nodes::proxies()).clone());
    let lines = [world.line(&host), world.line(&proxy)];
    let seconds = world.between(5..=40);
    world.note(format_args!("{host} and {proxy} are cut off for {seconds} s"));
    let set = |cut| move |state: &mut State| (state.requests_cut, state.replies_cut) = (cut, cut);
    lines.iter().for_each(|line| line.change(set(true)));
    sleep(Duration::from_secs(seconds)).await;
    for line in &lines {
        // A connection that carried nothing for long may never do so again, and may not end either.
        if world.chance(0.5) {
            line.silence_watches();
        }
        line.mend(world.chance(0.3));
    }
    world.note(format_args!("{host} and {proxy} are back"));
    let (latency, pause) = (world.between(2..=500), *world.pick(&[0, 500, 2_000, 6_000, 15_000]));
    lines[1].change(|state| state.latency = latency);
    let gate = nodes.alive().into_iter().find(|(name, _, _)| *name == proxy).map(|(_, gate, _)| gate);
    pause_for(world, &proxy, gate, pause).await;
    lines[1].change(|state| state.latency = 0);
}

async fn pause_for(world: &World, name: &str, gate: Option<Gate>, millis: u64) {
    let Some(gate) = gate.filter(|_| millis > 0) else { return };
    world.note(format_args!("{name} is paused for {millis} ms"));
    gate.pause(true);
    sleep(Duration::from_millis(millis)).await;
    world.note(format_args!("{name} goes on"));
    gate.pause(false);
}
