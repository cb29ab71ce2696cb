//! What is to be routed where, read from a snapshot of the cluster.
//!
//! Owns the rule for who is routed: assigned to run, and running, or lost since. It decides nothing about HAProxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use visor::{
    keys::Key,
    names::{AppName, Domain, HostName, InstanceId, ProcName, ReleaseId, ZoneName},
    schema::{Assignment, Desired, State, Status},
    snapshot::Snapshot,
};

use crate::{
    shares::{EVEN, evenly, weights},
    zones::Locality,
};

/// An app's proc: what has a port of its own and a set of instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The app.
    pub app: AppName,
    /// The proc.
    pub proc: ProcName,
}

impl ServiceId {
    /// The name of its backend in HAProxy: neither part may hold a dot, so that no two share one.
    pub fn backend(&self) -> String {
        format!("{}.{}", self.app, self.proc)
    }

    /// The service that a backend's name stands for.
    pub fn of_backend(name: &str) -> Option<Self> {
        let (app, proc) = name.split_once('.')?;
        Some(ServiceId { app: app.parse().ok()?, proc: proc.parse().ok()? })
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.proc)
    }
}

/// What HAProxy understands of a service's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Requests and answers.
    Http,
    /// Bytes.
    Tcp,
}

impl Mode {
    /// The mode of a proc: `web` and what begins with it speak HTTP.
    pub fn of(proc: &ProcName) -> Self {
        if proc.is_web() { Mode::Http } else { Mode::Tcp }
    }
}

/// A service with the instances that take its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its own port; none while that can't be opened here.
    pub port: Option<u16>,
    /// How its traffic is understood.
    pub mode: Mode,
    /// Where each routed instance is reached.
    pub servers: BTreeMap<InstanceId, SocketAddr>,
    /// HAProxy's weight of each, where the traffic is shared out by release or by zone.
    pub weights: Option<BTreeMap<InstanceId, u16>>,
}

impl Service {
    /// The weight of an instance's server.
    pub fn weight(&self, instance: InstanceId) -> u16 {
        self.weights.as_ref().and_then(|weights| weights.get(&instance)).copied().unwrap_or(EVEN)
    }
}

/// Everything that is to be routed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Each service.
    pub services: BTreeMap<ServiceId, Service>,
    /// Each custom domain with its app.
    pub domains: BTreeMap<Domain, AppName>,
    /// Each bazooka-rm that serves.
    pub rms: BTreeMap<HostName, RmPlace>,
}

impl Routes {
    /// How many instances are routed.
    pub fn servers(&self) -> usize {
        self.services.values().map(|service| service.servers.len()).sum()
    }

    /// Takes over the instances and domains of others, for the services that are in both.
    pub fn take_members(&mut self, other: &Routes) {
        for (id, service) in &mut self.services {
            let other = other.services.get(id);
            service.servers = other.map(|other| other.servers.clone()).unwrap_or_default();
            // Who shares traffic out is a matter of shape; how much each gets isn't.
            if let (Some(weights), Some(others)) =
                (&mut service.weights, other.and_then(|other| other.weights.as_ref()))
            {
                weights.clone_from(others);
            }
        }
        self.domains = other.domains.clone();
    }

    /// The same without the own ports of these services.
    pub fn without_ports<'a>(mut self, refused: impl IntoIterator<Item = &'a ServiceId>) -> Self {
        for id in refused {
            if let Some(service) = self.services.get_mut(id) {
                service.port = None;
            }
        }
        self
    }
}

/// Whether an instance takes requests: it is meant to run, and its host says that it does.
pub fn is_routed(assigned: &Assignment, status: &Status) -> bool {
    assigned.desired == Desired::Run && status.state == State::Running
}

/// Where its host says that an instance is reached.
pub fn address(status: &Status) -> Option<SocketAddr> {
    Some(SocketAddr::new(status.ip?, status.port?))
}

/// What is to be routed.
///
/// Each registered proc is a service, with instances or without. An instance is routed while it is
/// assigned to run and its host says that it runs. A proxy with a `locality` prefers its own zone.
pub fn routes(snapshot: &Snapshot, locality: Option<&Locality>) -> Routes {
    let mut routes = Routes::default();
    for (app, view) in &snapshot.apps {
        for (proc, row) in &view.procs {
            let id = ServiceId { app: app.clone(), proc: proc.clone() };
            let service = Service {
                port: Some(row.port),
                mode: Mode::of(proc),
                servers: BTreeMap::new(),
                weights: None,
            };
            routes.services.insert(id, service);
        }
    }
    let mut by_release: BTreeMap<ServiceId, BTreeMap<ReleaseId, Vec<InstanceId>>> = BTreeMap::new();
    let mut zones: BTreeMap<InstanceId, Option<&ZoneName>> = BTreeMap::new();
    let mut shares = shares(snapshot);
    if locality.is_some() {
        for id in routes.services.keys() {
            shares.entry(id.clone()).or_default();
        }
    }
    for view in snapshot.hosts.values() {
        for (instance, assigned) in &view.assigned {
            let status = view.status.get(instance).filter(|status| is_routed(assigned, status));
            let Some(address) = status.and_then(|status| address(status)) else { continue };
            let id = ServiceId { app: assigned.app.clone(), proc: assigned.proc.clone() };
            if let Some(service) = routes.services.get_mut(&id) {
                service.servers.insert(*instance, address);
            }
            if shares.contains_key(&id) {
                zones.insert(*instance, view.host.as_ref().map(|host| &host.zone));
                by_release.entry(id).or_default().entry(assigned.release).or_default().push(*instance);
            }
        }
    }
    let parts = |ids: &[InstanceId]| match locality {
        Some(locality) => locality.parts(&ids.iter().map(|id| zones[id]).collect::<Vec<_>>()),
        None => evenly(ids),
    };
    for (id, shares) in &shares {
        if let Some(service) = routes.services.get_mut(id) {
            service.weights = Some(weights(shares, &by_release.remove(id).unwrap_or_default(), parts));
        }
    }
    routes.domains =
        snapshot.domains.iter().map(|(domain, record)| (domain.clone(), record.app.clone())).collect();
    routes.rms =
        snapshot.rms.iter().filter_map(|(name, rm)| Some((name.clone(), rm_place(&rm.url)?))).collect();
    routes
}

/// Where an rm is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RmPlace {
    /// Its `address:port`, as one word of the configuration.
    pub address: String,
    /// Whether it speaks TLS.
    pub secured: bool,
}

/// Where an rm is reached, by its URL. One below a path isn't led to.
fn rm_place(url: &str) -> Option<RmPlace> {
    let (place, secured) = match url.strip_prefix("https://") {
        Some(place) => (place, true),
        None => (url.strip_prefix("http://")?, false),
    };
    let place = place.trim_end_matches('/');
    if let Ok(address) = place.parse::<SocketAddr>() {
        return Some(RmPlace { address: address.to_string(), secured });
    }
    let (host, port) = place.rsplit_once(':')?;
    let (host, port): (HostName, u16) = (host.parse().ok()?, port.parse().ok()?);
    Some(RmPlace { address: format!("{host}:{port}"), secured })
}

/// The services whose traffic is shared out, and how. Of a release that doesn't run beside head any more nothing
/// counts: its share is a word about what has gone.
fn shares(snapshot: &Snapshot) -> BTreeMap<ServiceId, BTreeMap<ReleaseId, u32>> {
    let mut all = BTreeMap::new();
    for (app, view) in &snapshot.apps {
        for (proc, formation) in &view.formation {
            let mut shares = formation.weights.clone();
            shares.retain(|release, _| formation.beside.contains_key(release));
            if !shares.is_empty() {
                all.insert(ServiceId { app: app.clone(), proc: proc.clone() }, shares);
            }
        }
    }
    all
}

/// The same routes, with what can't be read in the snapshot left as it was before: a value of
/// which nothing is known is no reason to stop anything.
pub fn keeping_unreadable(mut routes: Routes, before: &Routes, snapshot: &Snapshot) -> Routes {
    for key in snapshot.unreadable.keys() {
        match key.parse::<Key>() {
            Ok(Key::Proc(app, proc)) => {
                let id = ServiceId { app, proc };
                if let Some(service) = before.services.get(&id) {
                    routes.services.entry(id).or_insert_with(|| service.clone());
                }
            }
            Ok(Key::Assigned(_, instance) | Key::Status(_, instance)) => {
                for (id, service) in &before.services {
                    let Some(address) = service.servers.get(&instance) else { continue };
                    if let Some(service) = routes.services.get_mut(id) {
                        service.servers.entry(instance).or_insert(*address);
                    }
                }
            }
            Ok(Key::Rm(name)) => {
                if let Some(address) = before.rms.get(&name) {
                    routes.rms.entry(name).or_insert_with(|| address.clone());
                }
            }
            Ok(Key::Formation(app, proc)) => {
                let id = ServiceId { app, proc };
                if let (Some(before), Some(service)) =
                    (before.services.get(&id), routes.services.get_mut(&id))
                {
                    service.weights.clone_from(&before.weights);
                }
            }
            Ok(Key::Domain(domain)) => {
                if let Some(app) = before.domains.get(&domain) {
                    routes.domains.entry(domain).or_insert_with(|| app.clone());
                }
            }
            _ => {}
        }
    }
    routes
}

/// The weight of who is lost: the lowest there is.
const LAST: u16 = 1;

/// The same routes, with those that are lost and not replaced yet where they were before.
///
/// Lost means that the converger doesn't hear their host. Whether they can be reached from here HAProxy finds out by itself, and
/// a proxy that was cut off with them may have nothing else: when it hears of that, the others are still down to it.
pub fn keeping_lost(mut routes: Routes, before: &Routes, snapshot: &Snapshot) -> Routes {
    for view in snapshot.hosts.values() {
        for (instance, assigned) in view.assigned.iter().filter(|(_, row)| row.desired == Desired::Run) {
            let is_lost = view.status.get(instance).is_some_and(|status| status.state == State::Lost);
            let id = ServiceId { app: assigned.app.clone(), proc: assigned.proc.clone() };
            let before = before.services.get(&id).and_then(|service| service.servers.get(instance));
            if let (true, Some(address), Some(service)) = (is_lost, before, routes.services.get_mut(&id)) {
                service.servers.insert(*instance, *address);
                if let Some(weights) = &mut service.weights {
                    weights.insert(*instance, LAST);
                }
            }
        }
    }
    routes
}

/// The instances that are being taken out: assigned still, but no longer to run.
pub fn leaving(snapshot: &Snapshot) -> BTreeMap<InstanceId, ServiceId> {
    let mut leaving = BTreeMap::new();
    for view in snapshot.hosts.values() {
        for (instance, assigned) in &view.assigned {
            if assigned.desired != Desired::Run {
                let id = ServiceId { app: assigned.app.clone(), proc: assigned.proc.clone() };
                leaving.insert(*instance, id);
            }
        }
    }
    leaving
}

/// Whether a change of these keys can change what is routed.
pub fn concerns_routing<'a>(keys: impl IntoIterator<Item = &'a String>) -> bool {
    let kinds = BTreeSet::from(["assigned", "status", "domains", "rms", "hosts"]);
    keys.into_iter().any(|key| {
        let mut parts = key.split('/');
        match parts.next() {
            Some("apps") => matches!(parts.nth(1), Some("procs" | "formation")),
            Some(kind) => kinds.contains(kind),
            None => false,
        }
    })
}
