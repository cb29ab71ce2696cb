//! The envs that each host is handed.
//!
//! Owns that a host has each env that an instance there runs with, sealed to the host's current key; that two more hosts
//! have each env in use; and that no other host has one. The converger can open none of them: it copies sealed bytes, with
//! the wrap for that host alone. Where nobody has wrapped a key for a host yet, it asks for it. Pure.
//!
//! ```text
//! wraps/ of a new env ───────────────────────────────┐
//! (no wrap) ─ask─▶ private/wrapping/ ─an rm answers──┴─▶ hand ─▶ sealed/HOST/
//!                        └─ no rm does: a host that holds the env
//! ```

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use visor::{
    names::{AppName, EnvRef, HostName},
    planted::{Bug, planted},
    schema::{Env, Handed},
    snapshot::{AppView, Snapshot},
    transitions::envs::{self, EMPTY_ENV, are_of_registrations, handed, holders, registration_of},
};

use super::{draft::Draft, memory::Now, step::Act};

/// The time after which another part is asked for a wrap. An answer takes some milliseconds.
const ASK_ANOTHER: SignedDuration = SignedDuration::from_secs(5);

/// Plans an app's handed envs, including those of instances that this plan places.
pub(super) fn plan(snapshot: &Snapshot, name: &AppName, view: &AppView, now: Now, draft: &mut Draft) {
    // An app without config vars costs nothing here.
    if view.envs.is_empty() && view.handed.is_empty() && view.wrap_requests.is_empty() {
        return;
    }
    let run = run(snapshot, view, draft);
    // True where instances run with it: there it has to be whole.
    let mut wanted: BTreeMap<(HostName, EnvRef), bool> =
        run.iter().flat_map(|(env, hosts)| hosts.iter().map(|host| ((host.clone(), *env), true))).collect();
    let mut kept = BTreeSet::new();
    let in_use = if are_of_registrations(snapshot) { envs::in_use(view) } else { BTreeSet::new() };
    for env in in_use {
        let hosts = run.get(&env).into_iter().flatten().collect();
        let is_held = |host: &HostName| current(snapshot, view, host, env).is_some();
        let more = holders::more(snapshot, (name, env), &hosts, is_held);
        // Until these have it, no host that has it gives it up: it may have the last key.
        if more.iter().any(|host| !is_held(host)) || hosts.iter().any(|host| !is_held(host)) {
            kept.insert(env);
        }
        if view.envs.get(&env).is_some_and(|row| row.is_sealed()) && !planted(Bug::NobodyElseHoldsVars) {
            wanted.extend(more.into_iter().map(|host| ((host.clone(), env), false)));
        }
    }
    let mut asked = BTreeSet::new();
    for ((host, env), runs) in &wanted {
        if current(snapshot, view, host, *env).is_some_and(|there| is_as_wanted(view, *env, there, *runs)) {
            continue;
        }
        let (to, env) = (host.clone(), *env);
        match (handed(snapshot, view, host, env).is_some(), *runs) {
            (true, true) => draft.act(Act::Hand { host: to, env }, "instances there run with it"),
            (true, false) => draft.act(Act::Keep { host: to, env }, "it keeps a key to it for others"),
            (false, _) => ask(snapshot, view, (host, env), now, &mut asked, draft),
        }
    }
    for (host, env) in view.handed.keys() {
        if !wanted.contains_key(&(host.clone(), *env)) && !kept.contains(env) {
            draft.act(Act::TakeBack { host: host.clone(), env: *env }, "nothing there runs with it any more");
        }
    }
    for (by, env, host) in view.wrap_requests.keys() {
        if !asked.contains(&(by, *env, host)) && !planted(Bug::RequestsNeverEnd) {
            let (by, host) = (by.clone(), host.clone());
            draft.act(Act::EndRequest { by, env: *env, host }, "no answer is awaited any more");
        }
    }
}

/// Returns the hosts that run with each env, or will.
fn run(snapshot: &Snapshot, view: &AppView, draft: &Draft) -> BTreeMap<EnvRef, BTreeSet<HostName>> {
    let mut run: BTreeMap<EnvRef, BTreeSet<HostName>> = BTreeMap::new();
    let mut note = |host: &HostName, env: EnvRef| {
        if env != EMPTY_ENV && !run.get(&env).is_some_and(|hosts| hosts.contains(host)) {
            run.entry(env).or_default().insert(host.clone());
        }
    };
    for (id, row) in &view.instances {
        let assigned = snapshot.hosts.get(&row.host).and_then(|host| host.assigned.get(id));
        let env = assigned.map(|assigned| assigned.env);
        let env = env.or_else(|| Some(view.releases.get(&row.release)?.env));
        env.into_iter().for_each(|env| note(&row.host, env));
    }
    for (act, _) in &draft.acts {
        if let Act::Place { slot, place } = act
            && let Some(release) = view.releases.get(&slot.release)
        {
            note(&place.host, release.env);
        }
    }
    run
}

/// A request for a wrap: who is asked, for which env, for which host.
type Request<'a> = (&'a HostName, EnvRef, &'a HostName);

/// Asks for the wrap that a host lacks, or asks another part if the first one does not answer.
fn ask<'a>(
    snapshot: &'a Snapshot,
    view: &'a AppView,
    (host, env): (&'a HostName, EnvRef),
    now: Now,
    asked: &mut BTreeSet<Request<'a>>,
    draft: &mut Draft,
) {
    // Before that an rm wraps each key for each host, and nobody reads requests.
    let row = view.envs.get(&env).filter(|row| row.is_sealed() && are_of_registrations(snapshot));
    let key = snapshot.hosts.get(host).and_then(|view| view.host.as_ref()?.seal_key.as_ref());
    let (Some(_), Some(key)) = (row, key) else { return };
    let helpers = helpers(snapshot, view, host, env);
    let open =
        view.wrap_requests.iter().find(|((_, of, to), row)| *of == env && to == host && row.to == *key);
    let by = match open {
        None => helpers[0],
        Some(((by, _, _), row)) => {
            let at = helpers.iter().position(|helper| *helper == by);
            let next = helpers[at.map_or(0, |at| at + 1) % helpers.len()];
            let left = ASK_ANOTHER.saturating_sub(now.wall.duration_since(row.since)).min(ASK_ANOTHER);
            if next == by || left.is_positive() {
                asked.insert((by, env, host));
                if next != by {
                    draft.look_again_at(now.clock + left.unsigned_abs());
                }
                return;
            }
            next
        }
    };
    let to = key.clone();
    draft.act(Act::Ask { by: by.clone(), env, host: host.clone(), to }, "it has no key to it yet");
}

/// Returns the hosts that may be asked for a wrap for a host, in the order in which they are.
///
/// Any rm answers whoever is named. While one is there, the host itself is named first, which can't answer: only an rm can.
fn helpers<'a>(
    snapshot: &'a Snapshot,
    view: &'a AppView,
    host: &'a HostName,
    env: EnvRef,
) -> Vec<&'a HostName> {
    let is_there = |host: &HostName| snapshot.hosts.get(host).is_some_and(|view| view.host.is_some());
    let holders = view.handed.keys().filter(|(host, of)| *of == env && is_there(host)).map(|(host, _)| host);
    // A host that has replaced its key opens its copy with the key before.
    let mut helpers: Vec<&HostName> = holders.collect();
    let is_rm_there = snapshot.rms.values().any(|rm| rm.seal_key.is_some());
    if (is_rm_there || helpers.is_empty()) && !helpers.contains(&host) {
        helpers.insert(0, host);
    }
    helpers
}

/// Returns a host's copy of an env if its key is the one that it would get, whether the rest is there or not. A newer wrap
/// for the same key makes no difference.
fn current<'a>(snapshot: &Snapshot, view: &'a AppView, host: &HostName, env: EnvRef) -> Option<&'a Handed> {
    let there = view.handed.get(&(host.clone(), env))?;
    let key = snapshot.hosts.get(host).and_then(|host| host.host.as_ref()?.seal_key.as_ref());
    let is_its_own = |row: &Env| {
        row.sealed.as_ref().is_some_and(|sealed| sealed.head() == there.sealed.head())
            && registration_of(view, &there.sealed) == there.registration
    };
    (key == Some(&there.to) && view.envs.get(&env).is_some_and(|row| is_its_own(row))).then_some(&there.value)
}

/// Reports whether a host's copy is whole and with the links of now, where instances run with it, and else the key alone.
fn is_as_wanted(view: &AppView, env: EnvRef, there: &Handed, runs: bool) -> bool {
    let row = view.envs.get(&env);
    match runs {
        true => row.is_some_and(|row| row.sealed.as_ref() == Some(&there.sealed) && row.links == there.links),
        false => !there.sealed.is_whole(),
    }
}

#[cfg(test)]
mod tests;
