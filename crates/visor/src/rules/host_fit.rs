//! The hosts that may run an instance at all: an operator's marks on a host, and the needs of an env.
//!
//! Owns the reasons why a host cannot. Whether it has room left is decided in [`super::placement`].

use std::collections::BTreeMap;

use crate::{
    keys::Key,
    links,
    names::{EnvRef, HostName},
    schema::{Env, Host},
    seal::PublicKey,
    snapshot::{AppView, HostView, Snapshot},
    transitions::envs,
};

/// Returns why nothing at all is placed on a host; none if the host is open.
pub fn closed(snapshot: &Snapshot, name: &HostName, view: &HostView) -> Option<&'static str> {
    let unreadable = !snapshot.unreadable.is_empty()
        && snapshot.unreadable.contains_key(&Key::HostMeta(name.clone()).to_string());
    let meta = view.meta.as_ref();
    if unreadable {
        Some("what the operator says of it can't be read")
    } else if meta.is_some_and(|meta| meta.draining) {
        Some("is being drained")
    } else if meta.is_some_and(|meta| meta.cordoned) {
        Some("is cordoned")
    } else {
        None
    }
}

/// The hosts that cannot run an env, or not yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvHosts {
    /// The hosts that cannot run it as they are, each with the reason.
    pub unfit: BTreeMap<HostName, String>,
    /// The hosts that have no key to it, and for which nobody is there to wrap one, each with the reason; they are the last
    /// choice.
    pub keyless: BTreeMap<HostName, String>,
}

/// Returns the hosts of a cluster that cannot run an app's env, or not yet.
pub fn env_hosts(snapshot: &Snapshot, view: &AppView, env: EnvRef) -> EnvHosts {
    let mut hosts = EnvHosts::default();
    let Some(row) = view.envs.get(&env).filter(|row| row.is_sealed() || !row.links.is_empty()) else {
        return hosts;
    };
    let registered = snapshot.hosts.iter().filter_map(|(name, view)| Some((name, view.host.as_ref()?)));
    let is_wrapped = !row.is_sealed() || is_wrapped_for_others(snapshot, view, env);
    for (name, host) in registered {
        if let Some(why) = unfit(row, host) {
            hosts.unfit.insert(name.clone(), why.to_owned());
        } else if !is_wrapped && !has_key(view, env, name, host) {
            let why =
                "it has no key to this app's config vars, and no bazooka-rm or host that has one is there";
            hosts.keyless.insert(name.clone(), why.to_owned());
        }
    }
    hosts
}

/// Returns why a host cannot run an env as it is: it has no address for links, or cannot open the vars.
fn unfit(row: &Env, host: &Host) -> Option<&'static str> {
    links::refusal(row, host).or_else(|| {
        (row.is_sealed() && host.seal_key.is_none())
            .then_some("its bazooka-pm is of a version that can't open config vars")
    })
}

/// Reports whether a part is there that can wrap an env's key for any host: an rm that can open it, or a host that holds it.
fn is_wrapped_for_others(snapshot: &Snapshot, view: &AppView, env: EnvRef) -> bool {
    let wraps = envs::wraps_of(view, env);
    let mut rms = snapshot.rms.values().filter_map(|rm| rm.seal_key.as_ref());
    let is_there = |host: &HostName| snapshot.hosts.get(host).is_some_and(|view| view.host.is_some());
    rms.any(|key| wraps.is_some_and(|wraps| wraps.rms.contains_key(key)))
        || view.handed.keys().any(|(host, of)| *of == env && is_there(host))
}

fn has_key(view: &AppView, env: EnvRef, name: &HostName, host: &Host) -> bool {
    let wraps = envs::wraps_of(view, env);
    let is_wrapped = |key: &PublicKey| {
        wraps.is_some_and(|wraps| wraps.hosts.contains_key(key))
            || view.handed.get(&(name.clone(), env)).is_some_and(|row| row.to == *key)
    };
    host.seal_key.as_ref().is_some_and(is_wrapped)
}
