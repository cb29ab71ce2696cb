//! Links: the addresses of linked services that an app's instances get.
//!
//! Owns where a link leads in an image, and which hosts can take an instance with links. Pure: it reads images and
//! writes nothing. A link is a part of an env, so `transitions::envs` adds and removes links.

use std::collections::{BTreeMap, BTreeSet};

pub use crate::bounds::MOST_LINKS;
pub use crate::names::{InvalidLink, InvalidServicesAddress, Link, ServicesAddress};
use crate::{
    keys::Key,
    names::EnvRef,
    ports::PortBook,
    schema::{Env, Host},
    snapshot::{AppView, Snapshot},
};

/// The reason why an app cannot have a set of links.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Two of them would have the same variable.
    #[error("{0} and {1} would both set {name}", name = .0.variable())]
    OneName(Link, Link),
    /// There would be too many links.
    #[error("an app links {MOST_LINKS} services at most, not {0}")]
    TooMany(usize),
}

/// Returns the existing links together with the added ones, if the app can have all of them.
///
/// # Errors
/// [`Unfit`].
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
    /// The reason.
    pub why: &'static str,
}

/// Returns the links of an app's env; none if the env does not exist.
pub fn of(view: &AppView, env: EnvRef) -> Option<&BTreeSet<Link>> {
    view.envs.get(&env).map(|row| &row.links).filter(|links| !links.is_empty())
}

/// Returns each link's port, in an image that has what a [`PortBook`] needs of the linked services.
///
/// # Errors
/// The first link that leads nowhere.
pub fn ports<'a>(
    snapshot: &Snapshot,
    links: impl IntoIterator<Item = &'a Link>,
) -> Result<BTreeMap<Link, u16>, LeadsNowhere> {
    let book = PortBook::of(snapshot);
    let port = |link: &'a Link| {
        leads(snapshot, link)?;
        let port = book.port(&link.app, &link.proc);
        let why = "bazooka-rm has given the service no port";
        port.map(|port| (link.clone(), port)).map_err(|_| LeadsNowhere { link: link.clone(), why })
    };
    links.into_iter().map(port).collect()
}

/// Checks that a link leads to a service, in an image that has the linked app's own row and procs.
///
/// # Errors
/// [`LeadsNowhere`].
pub fn leads(snapshot: &Snapshot, link: &Link) -> Result<(), LeadsNowhere> {
    let nowhere = |why| LeadsNowhere { link: link.clone(), why };
    let unreadable = |key: Key| snapshot.unreadable.contains_key(&key.to_string());
    let view = snapshot.apps.get(&link.app);
    let app = view.and_then(|view| view.app.as_ref());
    match (app, view.and_then(|view| view.procs.get(&link.proc))) {
        (Some(app), _) if app.destroying => Err(nowhere("its app is being destroyed")),
        (Some(_), Some(_)) => Ok(()),
        _ if unreadable(Key::App(link.app.clone()))
            || unreadable(Key::Proc(link.app.clone(), link.proc.clone())) =>
        {
            Err(nowhere("its row can't be read"))
        }
        _ => Err(nowhere("there is no such service")),
    }
}

/// Returns why no host can take an instance with an app's env, if one of its links leads nowhere.
pub fn broken(snapshot: &Snapshot, view: &AppView, env: EnvRef) -> Option<LeadsNowhere> {
    ports(snapshot, of(view, env)?).err()
}

/// Returns why a host cannot take an instance with an env: the env has links, and the host has no address for services.
pub fn refusal(env: &Env, host: &Host) -> Option<&'static str> {
    (!env.links.is_empty() && host.services.is_none())
        .then_some("wasn't told where the services are that this app links (bazooka-pm --services)")
}

/// The reason why an instance cannot get the address of a service that it links.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// The assignment lacks the service's port.
    #[error("it links {0}, and was placed without that service's port")]
    NoPort(Link),
    /// The host has no address for services.
    #[error("it links {0}, and this host has no --services address")]
    NoAddress(Link),
}

/// Returns the variables that an instance gets for its links, with their values.
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
