//! Which hosts may run an instance at all: what an operator said of a host, and what an env needs of it.
//!
//! Owns the reasons why a host can't. Whether it has room left is [`super::placement`]'s.

use std::collections::BTreeMap;

use crate::{
    keys::Key,
    links,
    names::{EnvRef, HostName},
    schema::{Env, Host},
    snapshot::{AppView, HostView, Snapshot},
};

/// Why nothing at all is placed on a host, if an operator has said so.
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

/// The hosts that an env stands in the way of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvHosts {
    /// Hosts that can't run it as they are, each with why.
    pub unfit: BTreeMap<HostName, String>,
    /// Hosts that can't yet, because no rm has wrapped its key for them: the last choice, each with why.
    pub keyless: BTreeMap<HostName, String>,
}

/// Which of a cluster's hosts an app's env stands in the way of.
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

/// Why a host can't run an env as it is: nowhere to lead its links, or no way to open its vars.
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
