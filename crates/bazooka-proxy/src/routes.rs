//! Routes: the services, servers and domains that HAProxy shall have, read from a snapshot of the cluster.
//!
//! Owns the rule for which instances are routed: those assigned to run that are running, and those that were running
//! and have been marked lost. It decides nothing about HAProxy.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use visor::{
    keys::Key,
    names::{AppName, Domain, HostName, InstanceId, ProcName, ReleaseId, ZoneName},
    planted::{Bug, planted},
    rows::RowKind,
    schema::{Assignment, Desired, Protocol, RunSettings, State, Status},
    snapshot::{HostView, Snapshot},
};

use crate::{
    services::{Denied, services},
    shares::{EVEN, evenly, weights},
    zones::Locality,
};

/// A service: an app's proc, with a port of its own and a set of instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The app.
    pub app: AppName,
    /// The proc.
    pub proc: ProcName,
}

impl ServiceId {
    /// Returns the name of the service's backend in HAProxy, `APP.PROC`. Neither part can contain a dot, so no two
    /// services share a name.
    pub fn backend(&self) -> String {
        format!("{}.{}", self.app, self.proc)
    }

    /// Returns the service that a backend's name stands for; `None` for a backend that isn't a service's.
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

/// The protocol at which HAProxy handles a service's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// HTTP requests and responses.
    Http,
    /// TCP connections, whose bytes HAProxy doesn't interpret.
    Tcp,
}

impl From<Protocol> for Mode {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http => Mode::Http,
            Protocol::Tcp => Mode::Tcp,
        }
    }
}

/// A service and the instances that take its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's own port; `None` while the port can't be opened on this machine.
    pub port: Option<u16>,
    /// The protocol at which its traffic is handled.
    pub mode: Mode,
    /// The address of each routed instance.
    pub servers: BTreeMap<InstanceId, SocketAddr>,
    /// HAProxy's weight for each instance; `None` if the traffic isn't split by release or by zone.
    pub weights: Option<BTreeMap<InstanceId, u16>>,
}

impl Service {
    /// Returns the weight of an instance's server, [`EVEN`] if none is set.
    pub fn weight(&self, instance: InstanceId) -> u16 {
        self.weights.as_ref().and_then(|weights| weights.get(&instance)).copied().unwrap_or(EVEN)
    }
}

/// Everything that HAProxy shall route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The services.
    pub services: BTreeMap<ServiceId, Service>,
    /// The custom domains, each with its app.
    pub domains: BTreeMap<Domain, AppName>,
    /// The registered bazooka-rms.
    pub rms: BTreeMap<HostName, RmPlace>,
    /// The services without the port that their rows name, each with the reason.
    pub denied: BTreeMap<ServiceId, Denied>,
}

impl Routes {
    /// Returns the number of routed instances.
    pub fn servers(&self) -> usize {
        self.services.values().map(|service| service.servers.len()).sum()
    }

    /// Replaces the domains by those of `other`, and each service's instances and weights by those of the same
    /// service in `other`. A service that isn't in `other` has no instances then.
    pub fn take_members(&mut self, other: &Routes) {
        for (id, service) in &mut self.services {
            let other = other.services.get(id);
            service.servers = other.map(|other| other.servers.clone()).unwrap_or_default();
            // Having weights is part of the structure (a reload changes it); their values aren't.
            if let (Some(weights), Some(others)) =
                (&mut service.weights, other.and_then(|other| other.weights.as_ref()))
            {
                weights.clone_from(others);
            }
        }
        self.domains = other.domains.clone();
    }

    /// Returns the routes without the own ports of the `refused` services.
    pub fn without_ports<'a>(mut self, refused: impl IntoIterator<Item = &'a ServiceId>) -> Self {
        for id in refused {
            if let Some(service) = self.services.get_mut(id) {
                service.port = None;
            }
        }
        self
    }
}

/// Reports whether an instance takes requests: it is assigned to run and its host reports it running.
pub fn is_routed(assigned: &Assignment, status: &Status) -> bool {
    let drains = assigned.desired == Desired::Drain && planted(Bug::DrainingInstanceIsRouted);
    (assigned.desired == Desired::Run || drains) && status.state == State::Running
}

/// Returns the address that a host reports for an instance; `None` until its status has both IP and port.
pub fn address(status: &Status) -> Option<SocketAddr> {
    Some(SocketAddr::new(status.ip?, status.port?))
}

/// Returns the address of an instance, if it is one that the instance's host may name.
///
/// A host writes the status, so it could name any address. It counts if it is the one that an operator names, else if it
/// is the registered host's own, or if the
/// instance was known at it before, when it was checked: a host that is not registered at the moment, or has just
/// moved, keeps its instances. `before` is none when nothing was known before.
pub fn own_address(
    view: &HostView,
    status: &Status,
    before: Option<Option<SocketAddr>>,
) -> Option<SocketAddr> {
    let address = address(status)?;
    let is_own = match &view.host {
        Some(host) => match view.meta.as_ref().and_then(|meta| meta.address) {
            Some(named) => named == address.ip(),
            None => host.is_at(address.ip()),
        },
        None => before.is_none(),
    };
    (is_own || before.flatten() == Some(address)).then_some(address)
}

/// Returns the routes that a snapshot describes, if nothing is known of the time before it.
pub fn routes(snapshot: &Snapshot, locality: Option<&Locality>) -> Routes {
    routes_after(None, snapshot, locality)
}

/// Returns the routes that a snapshot describes.
///
/// Each registered proc is a service, with or without instances. An instance is routed while it is assigned to run
/// and its host reports it running, at an address of the host. A proxy with a `locality` prefers the instances of its
/// own zone.
pub fn routes_after(before: Option<&Routes>, snapshot: &Snapshot, locality: Option<&Locality>) -> Routes {
    let mut routes = Routes::default();
    for (id, port) in services(snapshot) {
        let row = snapshot.apps.get(&id.app).and_then(|view| view.procs.get(&id.proc));
        let protocol = match row {
            Some(row) => row.run.protocol_for(&id.proc),
            None => RunSettings::default().protocol_for(&id.proc),
        };
        let mode = Mode::from(protocol);
        if let Err(why) = &port {
            routes.denied.insert(id.clone(), why.clone());
        }
        routes
            .services
            .insert(id, Service { port: port.ok(), mode, servers: BTreeMap::new(), weights: None });
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
            let Some(status) = status else { continue };
            let id = ServiceId { app: assigned.app.clone(), proc: assigned.proc.clone() };
            let was = before.map(|before| before.services.get(&id)?.servers.get(instance).copied());
            let Some(address) = own_address(view, status, was) else { continue };
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

/// The address of an rm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RmPlace {
    /// The `address:port`, as one word of HAProxy's configuration.
    pub address: String,
    /// True if the rm speaks TLS.
    pub secured: bool,
}

/// Parses an rm's URL. Returns `None` for a URL with a path: HAProxy can't route to one.
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

/// Returns the services whose traffic is split by release, with the percent of each release. Ignores the share of a
/// release that no longer runs beside the head.
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

/// Restores each entry of `before` whose row can't be read now, because an unreadable row is no reason to stop
/// routing.
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
            Ok(Key::Port(port)) => {
                let had = |id: &ServiceId| before.services.get(id).and_then(|service| service.port);
                for (id, service) in routes.services.iter_mut().filter(|(_, service)| service.port.is_none())
                {
                    if had(id) == Some(port.0) {
                        service.port = Some(port.0);
                        routes.denied.remove(id);
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

/// The weight of a lost instance: the lowest with which HAProxy still sends it requests.
const LAST: u16 = 1;

/// Adds each lost instance that hasn't been replaced yet, at the address that it had in `before`.
///
/// The host of a `lost` instance has lost contact with the cluster, but this proxy may still reach the host: a
/// partition can cut both off together. When this proxy reads that the instance is lost, its HAProxy may still have
/// every other server marked down. So the instance stays as the last resort, and HAProxy's health checks decide.
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

/// Returns the instances that are being taken out: still assigned, but no longer to run.
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

/// Reports whether the routes are made from rows of this kind.
pub fn concerns(kind: RowKind) -> bool {
    matches!(
        kind,
        RowKind::Schema
            | RowKind::App
            | RowKind::Rev
            | RowKind::Proc
            | RowKind::Port
            | RowKind::HostMeta
            | RowKind::Formation
            | RowKind::Assigned
            | RowKind::Status
            | RowKind::Host
            | RowKind::Rm
            | RowKind::Domain
    )
}

/// Reports whether a change of these keys can change the routes.
pub fn concerns_routing<'a>(keys: impl IntoIterator<Item = &'a String>) -> bool {
    keys.into_iter().any(|key| key.parse::<Key>().is_ok_and(|key| concerns(key.kind())))
}
