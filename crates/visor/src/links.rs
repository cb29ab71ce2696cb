//! Links: the services whose address an app's instances are told.
//!
//! Owns the words (`api:web`), what the variable is called, where a link leads in an image, and which hosts can take
//! an instance that has some. Pure: it reads images, and writes nothing. A link is a part of an env, so
//! `transitions::envs` says how one comes and goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    keys::Key,
    names::{AppName, EnvRef, HostName, InvalidName, ProcName},
    schema::{Env, Host},
    snapshot::{AppView, Snapshot},
};

/// How many services an app links at most. Their ports stand in each row of what runs with them, and those that are
/// added are guarded in one transaction, two rows each, of the 128 that etcd takes.
pub const MOST_LINKS: usize = 32;

/// A service that an app's instances are told the address of: `APP:PROC`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Link {
    /// Whose it is.
    pub app: AppName,
    /// Which of that app's.
    pub proc: ProcName,
}

impl Link {
    /// The variable that has its address. Two links may have the same one (`a-b:c` and `a:b-c`).
    pub fn variable(&self) -> String {
        format!("BAZOOKA_SERVICE_{}_{}", self.app, self.proc).to_ascii_uppercase().replace(['-', '.'], "_")
    }
}

impl FromStr for Link {
    type Err = InvalidLink;

    fn from_str(said: &str) -> Result<Self, InvalidLink> {
        let (app, proc) =
            said.split_once(':').ok_or_else(|| InvalidLink::Form(said.chars().take(80).collect()))?;
        Ok(Link { app: app.parse()?, proc: proc.parse()? })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.app, self.proc)
    }
}

impl TryFrom<String> for Link {
    type Error = InvalidLink;
    fn try_from(said: String) -> Result<Self, InvalidLink> {
        said.parse()
    }
}

impl From<Link> for String {
    fn from(link: Link) -> String {
        link.to_string()
    }
}

/// Words that are no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLink {
    /// There is no colon.
    #[error("link {0:?} is not valid: an app and its proc with a colon between, such as api:web")]
    Form(String),
    /// One of the names breaks its rule.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Where services' own ports are reached from a host: a proxy's address or its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServicesAddress(String);

impl ServicesAddress {
    /// With a service's port, as programs take it.
    pub fn at(&self, port: u16) -> String {
        if self.0.contains(':') { format!("[{}]:{port}", self.0) } else { format!("{}:{port}", self.0) }
    }
}

impl FromStr for ServicesAddress {
    type Err = String;

    // Whoever shows the error says what was given.
    fn from_str(said: &str) -> Result<Self, String> {
        let rule = || "the address or the name of a proxy, without a port, such as 10.0.0.7".to_owned();
        if let Ok(ip) = said.parse::<IpAddr>() {
            let is_somebodys = !ip.is_unspecified() && !ip.is_multicast();
            return if is_somebodys { Ok(ServicesAddress(ip.to_string())) } else { Err(rule()) };
        }
        // What ends in a number is an address to every resolver, and this is none.
        let is_address = said.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        match said.parse::<HostName>() {
            Ok(name) if !is_address => Ok(ServicesAddress(name.to_string())),
            _ => Err(rule()),
        }
    }
}

impl fmt::Display for ServicesAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ServicesAddress {
    type Error = String;
    fn try_from(said: String) -> Result<Self, String> {
        said.parse()
    }
}

impl From<ServicesAddress> for String {
    fn from(address: ServicesAddress) -> String {
        address.0
    }
}

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

/// What an instance is told of its links: each variable with its value.
///
/// `links` are those of its env, `ports` those that it was placed with.
///
/// # Errors
/// Why it can't be told, in one line.
pub fn variables(
    links: &BTreeSet<Link>,
    ports: &BTreeMap<Link, u16>,
    services: Option<&ServicesAddress>,
) -> Result<BTreeMap<String, String>, String> {
    if let Some(link) = links.iter().find(|link| !ports.contains_key(link)) {
        return Err(format!("it links {link}, and was placed without that service's port"));
    }
    let told = ports.iter().map(|(link, port)| match services {
        Some(address) => Ok((link.variable(), address.at(*port))),
        None => Err(format!("it links {link}, and this host wasn't told where services are (--services)")),
    });
    told.collect()
}

#[cfg(test)]
mod tests;
