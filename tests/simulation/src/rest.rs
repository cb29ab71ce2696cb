//! The check at the end of a day: exactly the instances of the formation run, and the cluster stays that way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bazooka_proxy::{
    plan::{InForce, Wanted},
    routes::routes,
    zones::Locality,
};
use tokio::time::{Instant, sleep};
use visor::{
    check::findings,
    keys,
    names::{HostName, InstanceId},
    rules::replacing::is_to_restart,
    schema::{Desired, Instance, ReleaseStatus, State},
    snapshot::{AppView, HostView, Snapshot},
    transitions::envs::{holders, in_use},
    visor::Visor,
};

use crate::{
    balancer::Hold,
    nodes::Nodes,
    rules::{Rules, Unneeded},
    world::World,
};

/// The interval between two checks.
const EVERY: Duration = Duration::from_secs(1);

/// The time for which the settled cluster must not change.
const STAYS: Duration = Duration::from_secs(45);

/// Waits until the cluster is as desired, then checks that it stays so for `STAYS`. Reports a breach otherwise.
pub async fn until_settled(world: &Arc<World>, rules: &Rules, within: Duration) {
    let deadline = Instant::now() + within;
    let mut unneeded = Unneeded::default();
    loop {
        match amiss(world, rules, &mut unneeded).await {
            None => break,
            Some(amiss) if Instant::now() >= deadline => {
                return world.breach(format_args!("in the end, {amiss}"));
            }
            Some(_) => sleep(EVERY).await,
        }
    }
    let (moves, until) = (world.moves(), Instant::now() + STAYS);
    world.note(format_args!("all is as it should be"));
    while Instant::now() < until {
        sleep(EVERY).await;
        if let Some(amiss) = amiss(world, rules, &mut unneeded).await {
            return world.breach(format_args!("after all was well, {amiss}"));
        }
    }
    if world.moves() != moves {
        world.breach("after all was well, processes are started and ended");
    }
}

/// Returns the first difference from the desired state, or the first promise to a user that isn't kept.
async fn amiss(world: &World, rules: &Rules, unneeded: &mut Unneeded) -> Option<String> {
    // Unneeded rows go only where there is an rm.
    let overdue = rules.look(|image| if world.has_rm() { unneeded.overdue(image) } else { None });
    let amiss =
        overdue.or_else(|| rules.promises()).or_else(|| rules.look(|image| image_amiss(world, image)));
    if amiss.is_some() {
        return amiss;
    }
    let requests = Nodes::hosts().iter().map(keys::wrap_requests_to).collect();
    let requests = Visor::new(world.store.shared()).read(requests).await.expect("it is in memory");
    let mut left =
        requests.apps.iter().flat_map(|(app, view)| view.wrap_requests.keys().map(move |of| (app, of)));
    left.next().map(|(app, (by, env, to))| format!("{by} is still asked to wrap {env} of {app} for {to}"))
}

fn image_amiss(world: &World, image: &Snapshot) -> Option<String> {
    let running: BTreeMap<InstanceId, HostName> =
        world.processes().into_iter().map(|(host, process)| (process.id, host)).collect();
    let mut placed = BTreeSet::new();
    for (name, view) in &image.apps {
        if let Some(amiss) = app_amiss(image, view, &running, &mut placed) {
            return Some(format!("{name}: {amiss}"));
        }
    }
    if let Some(id) = running.keys().find(|id| !placed.contains(*id)) {
        return Some(format!("{id} runs, and nobody wants it"));
    }
    for name in Nodes::hosts() {
        let Some(view) = image.hosts.get(&name).filter(|view| view.host.is_some()) else {
            return Some(format!("{name} is not registered"));
        };
        let said = view.archives.as_ref().map(|row| &row.slugs);
        if let Some(slug) = said.into_iter().flatten().find(|slug| !world.machine(&name, |it| it.has(slug))) {
            return Some(format!("{name} says that it has {slug}"));
        }
        let known = view.assigned.keys().chain(view.status.keys());
        if let Some(id) = known.into_iter().find(|id| !placed.contains(*id)) {
            return Some(format!("{id} is left over on {name}"));
        }
    }
    if let Some(amiss) = Nodes::proxies().iter().find_map(|name| proxy_amiss(world, image, name)) {
        return Some(amiss);
    }
    // The users name ports in their own rows, which changes nothing.
    if let Some(finding) = findings(image).iter().find(|finding| finding.rule != "port-otherwise") {
        return Some(format!("{} ({}): {}", finding.key, finding.rule, finding.what));
    }
    let frozen = image.leader.as_ref().and_then(|leader| leader.frozen.as_ref());
    match (&image.leader, frozen) {
        (None, _) => Some("nobody leads".to_owned()),
        (_, Some(_)) => Some("the hosts are frozen".to_owned()),
        _ => None,
    }
}

/// Returns the first difference between a proxy's HAProxy and the routes and settings that it should have.
fn proxy_amiss(world: &World, image: &Snapshot, name: &str) -> Option<String> {
    let Some(in_force) = world.haproxy(name, |haproxy| haproxy.in_force().cloned()) else {
        return Some(format!("HAProxy of {name} doesn't run"));
    };
    let n = name.trim_start_matches("proxy").parse().expect("a number");
    let row = image.proxies.get(&name.parse().expect("a valid name"));
    let locality = row.and_then(|row| Locality::of(row.zone.as_ref()?, image));
    let wanted = Wanted { routes: routes(image, locality.as_ref()), settings: Hold::settings(n) };
    let meant = InForce::of(&wanted, in_force.master, in_force.worker);
    let (meant_servers, servers) = (enabled(&meant), enabled(&in_force));
    if meant_servers != servers {
        return Some(format!("{name} is to route to {meant_servers:?}, and routes to {servers:?}"));
    }
    let frame = |of: &InForce| {
        (of.hosts.clone(), of.ports.clone(), of.public, of.backends.clone(), of.structural_hash.clone())
    };
    if frame(&meant) != frame(&in_force) {
        return Some(format!("{name} is to have {:?}, and has {:?}", frame(&meant), frame(&in_force)));
    }
    match row {
        None => Some(format!("{name} says nothing")),
        Some(row) if !row.refused.is_empty() => Some(format!("{name} refuses {:?}", row.refused)),
        Some(_) => None,
    }
}

/// Returns the servers that take requests, each with its address and weight.
fn enabled(in_force: &InForce) -> BTreeSet<String> {
    let all = in_force.servers.iter();
    let servers = all.flat_map(|(backend, servers)| servers.iter().map(move |entry| (backend, entry)));
    let enabled = servers.filter(|(_, (_, state))| !state.maintenance);
    let told = |address: Option<SocketAddr>| address.map_or("nowhere".to_owned(), |at| at.to_string());
    enabled
        .map(|(backend, (server, state))| {
            format!("{backend}/{server} at {} by {}", told(state.address), state.weight)
        })
        .collect()
}

fn app_amiss(
    image: &Snapshot,
    view: &AppView,
    running: &BTreeMap<InstanceId, HostName>,
    placed: &mut BTreeSet<InstanceId>,
) -> Option<String> {
    if view.trial.is_some() || !view.pending.is_empty() {
        return Some(format!("trial {:?}, pending {:?}", view.trial, view.pending));
    }
    let open = |status| matches!(status, ReleaseStatus::Trying | ReleaseStatus::Verified);
    if let Some((id, release)) = view.releases.iter().find(|(_, release)| open(release.status)) {
        return Some(format!("{id} is {:?}, and nobody tries it", release.status));
    }
    if let Some((source, id)) = view.serving.keys().next() {
        return Some(format!("{source} still serves the slug of {id}"));
    }
    if let Some(amiss) = holders_amiss(image, view) {
        return Some(amiss);
    }
    let mut there: BTreeMap<_, BTreeMap<_, u32>> = BTreeMap::new();
    for (id, row) in &view.instances {
        let host = &image.hosts[&row.host];
        let desired = host.assigned.get(id).map(|row| row.desired);
        let state = host.status.get(id).map(|row| row.state);
        let runs_on = running.get(id);
        if (desired, state, runs_on) != (Some(Desired::Run), Some(State::Running), Some(&row.host)) {
            return Some(format!("{id} on {} is {desired:?}, {state:?}, a process on {runs_on:?}", row.host));
        }
        if is_to_restart(view, &row.proc, *id) {
            return Some(format!("{id} is to be replaced"));
        }
        placed.insert(*id);
        *there.entry(row.proc.clone()).or_default().entry(row.release).or_default() += 1;
    }
    for proc in view.formation.keys() {
        let (wanted, there) = (view.wanted(proc), there.remove(proc).unwrap_or_default());
        if wanted != there {
            return Some(format!("{proc} is wanted as {wanted:?}, and there is {there:?}"));
        }
    }
    None
}

/// Returns the first env in use that fewer hosts have than should, or that a host lacks which runs with it.
fn holders_amiss(image: &Snapshot, view: &AppView) -> Option<String> {
    for env in in_use(view) {
        let has: BTreeSet<_> =
            view.handed.keys().filter(|(_, of)| *of == env).map(|(host, _)| host).collect();
        let with = |row: &Instance| view.releases.get(&row.release).is_some_and(|release| release.env == env);
        let run: BTreeSet<_> = view.instances.values().filter(|row| with(row)).map(|row| &row.host).collect();
        let is_whole =
            |host: &HostName| view.handed.get(&(host.clone(), env)).is_some_and(|row| row.sealed.is_whole());
        if let Some(host) = run.iter().find(|host| !is_whole(host)) {
            return Some(format!("{host} runs with {env} and was not handed it"));
        }
        let may = |(name, view): &(&HostName, &HostView)| {
            !run.contains(name) && !view.meta.as_ref().is_some_and(|meta| meta.draining)
        };
        let most = image.hosts.iter().filter(may).count();
        if has.len() < run.len() + most.min(holders::MORE) {
            return Some(format!("{has:?} alone have {env}, with which {run:?} run"));
        }
    }
    None
}
