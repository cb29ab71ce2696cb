//! The envs that each host is handed.
//!
//! Owns that a host has each env that an instance there runs with, sealed to the host's current key, and no other env.
//! The converger can open none of them: it copies sealed bytes, with the wrap for that host alone. Pure.

use std::collections::BTreeSet;

use visor::{
    names::{EnvRef, HostName},
    schema::{Env, Handed},
    snapshot::{AppView, Snapshot},
    transitions::envs::{EMPTY_ENV, handed},
};

use super::{draft::Draft, step::Act};

/// Returns an env as a host should get it. None if the host isn't registered, the env was written by an earlier
/// version, or no rm has wrapped it for that host yet.
pub fn wanted(snapshot: &Snapshot, view: &AppView, host: &HostName, env: EnvRef) -> Option<Handed> {
    let key = snapshot.hosts.get(host)?.host.as_ref()?.seal_key.as_ref()?;
    handed(view.envs.get(&env)?, view.wraps.get(&env)?, key)
}

/// Plans an app's handed envs, including those of instances that this plan places.
pub(super) fn plan(snapshot: &Snapshot, view: &AppView, draft: &mut Draft) {
    // An app without config vars costs nothing here.
    if view.envs.is_empty() && view.handed.is_empty() {
        return;
    }
    let mut used: BTreeSet<(&HostName, EnvRef)> = BTreeSet::new();
    for (id, row) in &view.instances {
        let assigned = snapshot.hosts.get(&row.host).and_then(|host| host.assigned.get(id));
        let env = assigned.map(|assigned| assigned.env);
        used.extend(env.or_else(|| Some(view.releases.get(&row.release)?.env)).map(|env| (&row.host, env)));
    }
    let places: Vec<(HostName, EnvRef)> = draft
        .acts
        .iter()
        .filter_map(|(act, _)| match act {
            Act::Place { slot, place } => Some((place.host.clone(), view.releases.get(&slot.release)?.env)),
            _ => None,
        })
        .collect();
    used.extend(places.iter().map(|(host, env)| (host, *env)));
    used.retain(|(_, env)| *env != EMPTY_ENV);
    for (host, env) in &used {
        let there = view.handed.get(&((*host).clone(), *env)).map(|row| &row.value);
        if there.is_some_and(|there| is_current(snapshot, view, host, *env, there)) {
            continue;
        }
        if wanted(snapshot, view, host, *env).is_some() {
            draft.act(Act::Hand { host: (*host).clone(), env: *env }, "instances there run with it");
        }
    }
    for (host, env) in view.handed.keys().filter(|(host, env)| !used.contains(&(host, *env))) {
        draft.act(Act::TakeBack { host: host.clone(), env: *env }, "nothing there runs with it any more");
    }
}

/// Reports whether the env that a host has is the one that it would get. A newer wrap for the same key makes no
/// difference.
fn is_current(snapshot: &Snapshot, view: &AppView, host: &HostName, env: EnvRef, there: &Handed) -> bool {
    let key = snapshot.hosts.get(host).and_then(|host| host.host.as_ref()?.seal_key.as_ref());
    let is_its_own = |row: &Env| row.sealed.as_ref() == Some(&there.sealed) && row.links == there.links;
    key == Some(&there.to) && view.envs.get(&env).is_some_and(|row| is_its_own(row))
}
