//! Links: the services whose address an app's instances are told.
//!
//! Owns where a link leads in an image, and which hosts can take
//! an instance that has some. Pure: it reads images, and writes nothing. A link is a part of an env, so
//! `transitions::envs` says how one comes and goes.

use std::collections::{BTreeMap, BTreeSet};

pub use crate::names::{InvalidLink, InvalidServicesAddress, Link, ServicesAddress};
use crate::{
    keys::Key,
    names::EnvRef,
    schema::{Env, Host},
    snapshot::{AppView, Snapshot},
};

/// How many services an app links at most. Their ports stand in each row of what runs with them, and those that are
/// added are guarded in one transaction, two rows each, of the 128 that etcd takes.
pub const MOST_LINKS: usize = 32;

/// Why an app can't have a set of links.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Two of them would be one variable.
    #[error("{0} and {1} would both be {name}", name = .0.variable())]
    OneName(Link, Link),
    /// There would be too many.
    #[error("an app links {MOST_LINKS} services at most, not {0}")]
    TooMany(usize),
}

/// The links that are there and those that are added, if they can be had together.
///
/// # Errors
/// Why they can't.
pub fn with(links: &BTreeSet<Link>, added: &BTreeSet<Link>) -> Result<BTreeSet<Link>, Unfit> {
    let all: BTreeSet<Link> = links.union(added).cloned().collect();
    let mut names: BTreeMap<String, &Link> = BTreeMap::new();
    for link in &all {
        if let Some(other) = names.insert(link.variable(), link) {
            return Err(Unfit::OneName(other.clone(), link.clone()));
        }
    }
    if all.len() > MOST_LINKS { Err(Unfit::TooMany(all.len())) } else { Ok(all) }
}

/// A link that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("links {link}, but {why}")]
pub struct LeadsNowhere {
    /// The link.
    pub link: Link,
    /// Why it does.
    pub why: &'static str,
}

/// The links of an app's env; none of one that isn't there.
pub fn of(view: &AppView, env: EnvRef) -> Option<&BTreeSet<Link>> {
    view.envs.get(&env).map(|row| &row.links).filter(|links| !links.is_empty())
}

/// Each link's port, in an image that has the linked apps' own rows and procs.
///
/// # Errors
/// The first that leads nowhere.
pub fn ports<'a>(
    snapshot: &Snapshot,
    links: impl IntoIterator<Item = &'a Link>,
) -> Result<BTreeMap<Link, u16>, LeadsNowhere> {
    let port = |link: &'a Link| {
        let nowhere = |why| LeadsNowhere { link: link.clone(), why };
        let unreadable = |key: Key| snapshot.unreadable.contains_key(&key.to_string());
        let view = snapshot.apps.get(&link.app);
        let app = view.and_then(|view| view.app.as_ref());
        match (app, view.and_then(|view| view.procs.get(&link.proc))) {
            (Some(app), _) if app.destroying => Err(nowhere("its app is being destroyed")),
            (Some(_), Some(row)) => Ok((link.clone(), row.port)),
            _ if unreadable(Key::App(link.app.clone()))
                || unreadable(Key::Proc(link.app.clone(), link.proc.clone())) =>
            {
                Err(nowhere("its row can't be read"))
            }
            _ => Err(nowhere("there is no such service")),
        }
    };
    links.into_iter().map(port).collect()
}

/// Why no host can take an instance with an app's env, if a link of it leads nowhere.
pub fn broken(snapshot: &Snapshot, view: &AppView, env: EnvRef) -> Option<LeadsNowhere> {
    ports(snapshot, of(view, env)?).err()
}

/// Why a host can't take an instance with an env, if that has links and the host has nowhere to lead them.
pub fn refusal(env: &Env, host: &Host) -> Option<&'static str> {
    (!env.links.is_empty() && host.services.is_none())
        .then_some("wasn't told where the services are that this app links (bazooka-pm --services)")
}

/// Why an instance can't get the address of a service that it links.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// Its assignment lacks the service's port.
    #[error("it links {0}, and was placed without that service's port")]
    NoPort(Link),
    /// Its host has no address for services.
    #[error("it links {0}, and this host wasn't told where services are (--services)")]
    NoAddress(Link),
}

/// What an instance is told of its links: each variable with its value.
///
/// `links` are those of its env, `ports` those that it was placed with.
///
/// # Errors
/// [`Untold`].
pub fn variables(
    links: &BTreeSet<Link>,
    ports: &BTreeMap<Link, u16>,
    services: Option<&ServicesAddress>,
) -> Result<BTreeMap<String, String>, Untold> {
    if let Some(link) = links.iter().find(|link| !ports.contains_key(link)) {
        return Err(Untold::NoPort(link.clone()));
    }
    let told = ports.iter().map(|(link, port)| match services {
        Some(address) => Ok((link.variable(), address.at(*port))),
        None => Err(Untold::NoAddress(link.clone())),
    });
    told.collect()
}

#[cfg(test)]
mod tests;
