//! The hosts that may run an instance at all: an operator's marks on a host, and the needs of an env.
//!
//! Owns the reasons why a host cannot. Whether it has room left is decided in [`super::placement`].

use std::collections::BTreeMap;

use crate::{
    keys::Key,
    links,
    names::{EnvRef, HostName},
    schema::{Env, Host},
    snapshot::{AppView, HostView, Snapshot},
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
    /// The hosts for which no rm has wrapped its key yet, each with the reason; they are the last choice.
    pub keyless: BTreeMap<HostName, String>,
}

/// Returns the hosts of a cluster that cannot run an app's env, or not yet.
pub fn env_hosts(snapshot: &Snapshot, view: &AppView, env: EnvRef) -> EnvHosts {
    let mut hosts = EnvHosts::default();
    let Some(row) = view.envs.get(&env).filter(|row| row.is_sealed() || !row.links.is_empty()) else {
        return hosts;
    };
    let registered = snapshot.hosts.iter().filter_map(|(name, view)| Some((name, view.host.as_ref()?)));
    for (name, host) in registered {
        if let Some(why) = unfit(row, host) {
            hosts.unfit.insert(name.clone(), why.to_owned());
        } else if row.is_sealed() && !has_key(view, env, host) {
            let why = "it has no key to this app's config vars yet; a bazooka-rm adds it";
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

fn has_key(view: &AppView, env: EnvRef, host: &Host) -> bool {
    let wraps = view.wraps.get(&env);
    host.seal_key.as_ref().is_some_and(|key| wraps.is_some_and(|wraps| wraps.hosts.contains_key(key)))
}
