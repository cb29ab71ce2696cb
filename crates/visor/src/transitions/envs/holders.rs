//! The hosts that hold an env: those that run with it, and two more.
//!
//! Owns the choice of the two. A host that has the env already stays one of them, and zones without the env come first:
//! so few envs move, and the loss of a zone leaves a key. Pure.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::{
    names::{AppName, EnvRef, HostName, ZoneName},
    seal::PublicKey,
    snapshot::{AppView, HostView, Snapshot},
};

/// The number of hosts that hold an env although they don't run with it.
pub const MORE: usize = 2;

/// Returns the hosts that hold an env beside those that run with it, [`MORE`] at most.
///
/// `holds` tells whether a host has the env already. Only live hosts with a key are chosen, and none that is being drained.
pub fn more<'a>(
    snapshot: &'a Snapshot,
    (app, env): (&AppName, EnvRef),
    run: &BTreeSet<&HostName>,
    holds: impl Fn(&HostName) -> bool,
) -> Vec<&'a HostName> {
    let zone = |view: &'a HostView| view.host.as_ref().map(|host| &host.zone);
    let mut zones: BTreeSet<&ZoneName> =
        run.iter().filter_map(|host| zone(snapshot.hosts.get(*host)?)).collect();
    let mut left: Vec<(&HostName, &ZoneName)> = snapshot
        .hosts
        .iter()
        .filter(|(name, view)| !run.contains(name) && may_hold(view))
        .filter_map(|(name, view)| Some((name, zone(view)?)))
        .collect();
    left.sort_by_cached_key(|(name, _)| (!holds(name), lot(app, env, name)));
    let mut chosen = Vec::new();
    while chosen.len() < MORE && !left.is_empty() {
        let at = left.iter().position(|(_, zone)| !zones.contains(zone)).unwrap_or(0);
        let (name, zone) = left.remove(at);
        zones.insert(zone);
        chosen.push(name);
    }
    chosen
}

/// Returns the keys of the hosts for which a client wraps a new env: of those that run the app, `most` at most, and of
/// [`MORE`].
pub(super) fn of_new(
    snapshot: &Snapshot,
    app: &AppName,
    view: &AppView,
    env: EnvRef,
    most: usize,
) -> BTreeSet<PublicKey> {
    let run: BTreeSet<&HostName> = view.instances.values().map(|row| &row.host).collect();
    let run: BTreeSet<&HostName> = run.into_iter().take(most).collect();
    let more = more(snapshot, (app, env), &run, |_| false);
    let key = |host: &HostName| snapshot.hosts.get(host)?.host.as_ref()?.seal_key.clone();
    run.into_iter().chain(more).filter_map(key).collect()
}

/// Reports whether a host may be one of those that hold an env without running with it.
fn may_hold(view: &HostView) -> bool {
    let leaves = view.meta.as_ref().is_some_and(|meta| meta.draining);
    let host = view.host.as_ref().filter(|_| !leaves);
    host.is_some_and(|host| host.seal_key.is_some())
}

/// Draws the lot that spreads envs over hosts.
fn lot(app: &AppName, env: EnvRef, host: &HostName) -> u64 {
    let mut hasher = DefaultHasher::new();
    (app, env, host).hash(&mut hasher);
    hasher.finish()
}
