//! What to do about the difference between what HAProxy has in force and what is wanted.
//!
//! Owns the decision and its order; pure. New servers come before old ones go, so that a service is
//! never without one in between. What needs another structure waits for a reload; what can be changed
//! at once is, whatever becomes of the reload.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use visor::names::InstanceId;

use crate::{
    config::{Settings, has_structure, hosts, instance_of, server_name, server_options, structural_hash},
    haproxy::ServerState,
    routes::{Mode, Routes, ServiceId},
};

/// What HAProxy's current worker runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The master's process id.
    pub master: u32,
    /// The worker's process id.
    pub worker: u32,
    /// The structural hash of its configuration.
    pub structural_hash: String,
    /// Its servers by backend and name.
    pub servers: BTreeMap<String, BTreeMap<String, ServerState>>,
    /// Its backends, with servers or without.
    pub backends: BTreeSet<String>,
    /// The service ports that it has open.
    pub ports: BTreeSet<u16>,
    /// Whether it has the public port open.
    pub public: bool,
    /// Whether it has the way to the rms open.
    pub git: bool,
    /// Its host map.
    pub hosts: BTreeMap<String, String>,
}

impl InForce {
    /// All of what is wanted, as a worker runs it that has just started with it.
    pub fn of(wanted: &Wanted, master: u32, worker: u32) -> Self {
        let Wanted { routes, settings } = wanted;
        let mut in_force = InForce {
            master,
            worker,
            structural_hash: structural_hash(routes, settings),
            hosts: hosts(routes, settings),
            public: settings.public.is_some(),
            git: settings.git.is_some(),
            ..InForce::default()
        };
        for (id, service) in &routes.services {
            in_force.backends.insert(id.backend());
            in_force.ports.extend(service.port);
            for (instance, address) in &service.servers {
                let weight = service.weight(*instance);
                let server = ServerState { address: Some(*address), maintenance: false, weight };
                in_force.servers.entry(id.backend()).or_default().insert(server_name(*instance), server);
            }
        }
        in_force
    }

    /// Notes that a step was carried out.
    pub fn note(&mut self, step: &Step) {
        match step {
            Step::Add { service, instance, address, weight } => {
                let server = ServerState { address: Some(*address), maintenance: false, weight: *weight };
                let servers = self.servers.entry(service.backend()).or_default();
                servers.insert(server_name(*instance), server);
            }
            Step::Enable { service, instance, address, .. } => {
                if let Some(server) = self.server(service, *instance) {
                    (server.address, server.maintenance) = (Some(*address), false);
                }
            }
            Step::Weigh { service, instance, weight } => {
                if let Some(server) = self.server(service, *instance) {
                    server.weight = *weight;
                }
            }
            Step::Disable { backend, server } => {
                if let Some(state) = self.servers.get_mut(backend).and_then(|all| all.get_mut(server)) {
                    state.maintenance = true;
                }
            }
            Step::Delete { backend, server } => {
                if let Some(servers) = self.servers.get_mut(backend) {
                    servers.remove(server);
                    if servers.is_empty() {
                        self.servers.remove(backend);
                    }
                }
            }
            Step::SetHost { host, backend, .. } => drop(self.hosts.insert(host.clone(), backend.clone())),
            Step::DeleteHost { host } => drop(self.hosts.remove(host)),
        }
    }

    fn server(&mut self, service: &ServiceId, instance: InstanceId) -> Option<&mut ServerState> {
        self.servers.get_mut(&service.backend())?.get_mut(&server_name(instance))
    }

    /// Whether an instance takes new requests.
    pub fn takes(&self, service: &ServiceId, instance: InstanceId) -> bool {
        let server = self.servers.get(&service.backend()).and_then(|all| all.get(&server_name(instance)));
        server.is_some_and(|server| !server.maintenance)
    }
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The routes, without the ports that can't be opened.
    pub routes: Routes,
    /// The settings, without a public port, or git's, that can't be opened.
    pub settings: Settings,
}

/// One change by the Runtime API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new server, enabled.
    Add {
        /// Its service.
        service: ServiceId,
        /// Its instance.
        instance: InstanceId,
        /// Where it is.
        address: SocketAddr,
        /// Its weight.
        weight: u16,
    },
    /// A server has another weight.
    Weigh {
        /// Its service.
        service: ServiceId,
        /// Its instance.
        instance: InstanceId,
        /// The weight.
        weight: u16,
    },
    /// A server that was taken out takes requests again.
    Enable {
        /// Its service.
        service: ServiceId,
        /// Its instance.
        instance: InstanceId,
        /// Where it is.
        address: SocketAddr,
        /// It was elsewhere before.
        moved: bool,
    },
    /// A server takes no more requests.
    Disable {
        /// Its backend.
        backend: String,
        /// Its name.
        server: String,
    },
    /// A disabled server goes, if nothing is open on it any more.
    Delete {
        /// Its backend.
        backend: String,
        /// Its name.
        server: String,
    },
    /// A host leads to a backend.
    SetHost {
        /// The host.
        host: String,
        /// The backend.
        backend: String,
        /// It led to another before.
        replaces: bool,
    },
    /// A host leads nowhere.
    DeleteHost {
        /// The host.
        host: String,
    },
}

impl Step {
    /// The commands that carry it out, in order.
    pub fn commands(&self, map: &str) -> Vec<String> {
        match self {
            Step::Add { service, instance, address, weight } => {
                let options = server_options(Mode::of(&service.proc));
                let server = format!("{}/{}", service.backend(), server_name(*instance));
                // A new server starts in maintenance. The word `enabled` would have it look ready, but
                // HAProxy 2.6 then never gives it a request.
                vec![
                    format!("add server {server} {address} {options} weight {weight}"),
                    format!("enable health {server}"),
                    format!("set server {server} state ready"),
                ]
            }
            Step::Enable { service, instance, address, moved } => {
                let server = format!("{}/{}", service.backend(), server_name(*instance));
                let mut commands = Vec::new();
                if *moved {
                    let (ip, port) = (address.ip(), address.port());
                    commands.push(format!("set server {server} addr {ip} port {port}"));
                }
                commands.push(format!("set server {server} state ready"));
                commands.push(format!("enable health {server}"));
                commands
            }
            Step::Weigh { service, instance, weight } => {
                let server = format!("{}/{}", service.backend(), server_name(*instance));
                vec![format!("set server {server} weight {weight}")]
            }
            Step::Disable { backend, server } => vec![format!("set server {backend}/{server} state maint")],
            Step::Delete { backend, server } => vec![format!("del server {backend}/{server}")],
            Step::SetHost { host, backend, replaces: false } => {
                vec![format!("add map {map} {host} {backend}")]
            }
            Step::SetHost { host, backend, replaces: true } => {
                vec![format!("set map {map} {host} {backend}")]
            }
            Step::DeleteHost { host } => vec![format!("del map {map} {host}")],
        }
    }

    /// Whether these answers to its commands say that it was carried out.
    pub fn succeeded(&self, answers: &[String]) -> bool {
        answers.iter().all(|answer| {
            matches!(answer.as_str(), "" | "New server registered." | "Server deleted.")
                // `set server addr` tells what it changed.
                || answer.contains("changed from")
                || answer.starts_with("no need to change")
        })
    }

    /// Whether its failure does no harm: it is tried again a little later.
    pub fn may_wait(&self) -> bool {
        matches!(self, Step::Delete { .. })
    }

    /// The kind, for metrics and logs.
    pub fn action(&self) -> &'static str {
        match self {
            Step::Add { .. } => "add",
            Step::Enable { .. } => "enable",
            Step::Weigh { .. } => "weigh",
            Step::Disable { .. } => "disable",
            Step::Delete { .. } => "delete",
            Step::SetHost { .. } => "set_host",
            Step::DeleteHost { .. } => "delete_host",
        }
    }
}

/// Why a reload is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Services that come.
    pub come: BTreeSet<String>,
    /// Services that go.
    pub go: BTreeSet<String>,
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        match (self.come.is_empty(), self.go.is_empty()) {
            (false, true) => write!(f, "new: {}", list(&self.come)),
            (true, false) => write!(f, "gone: {}", list(&self.go)),
            (false, false) => write!(f, "new: {}; gone: {}", list(&self.come), list(&self.go)),
            (true, true) => write!(f, "a port or a setting has changed"),
        }
    }
}

/// All that is to be done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the Runtime API can do.
    pub steps: Vec<Step>,
    /// What it can't.
    pub reload: Option<Reload>,
}

/// What leads from what is in force to what is wanted.
pub fn plan(in_force: &InForce, wanted: &Wanted) -> Plan {
    let Wanted { routes, settings } = wanted;
    let (mut come, mut go, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for (id, service) in &routes.services {
        let backend = id.backend();
        if !in_force.backends.contains(&backend) {
            continue;
        }
        let there = in_force.servers.get(&backend);
        for (instance, address) in &service.servers {
            let weight = service.weight(*instance);
            let (service, instance, address) = (id.clone(), *instance, *address);
            let server = there.and_then(|servers| servers.get(&server_name(instance)));
            if server.is_some_and(|server| server.weight != weight) {
                // Before it is enabled: not one request more than its share.
                come.push(Step::Weigh { service: service.clone(), instance, weight });
            }
            match server {
                None => come.push(Step::Add { service, instance, address, weight }),
                Some(server) if server.address != Some(address) => {
                    // What is under way at the old address goes on; new requests take the new one.
                    come.push(Step::Enable { service, instance, address, moved: true });
                }
                Some(server) if server.maintenance => {
                    come.push(Step::Enable { service, instance, address, moved: false });
                }
                Some(_) => {}
            }
        }
    }
    for (backend, servers) in &in_force.servers {
        let wanted = ServiceId::of_backend(backend).and_then(|id| routes.services.get(&id));
        for (server, state) in servers {
            let Some(instance) = instance_of(server) else { continue };
            if wanted.is_some_and(|service| service.servers.contains_key(&instance)) {
                continue;
            }
            let (backend, server) = (backend.clone(), server.clone());
            if !state.maintenance {
                go.push(Step::Disable { backend: backend.clone(), server: server.clone() });
            }
            gone.push(Step::Delete { backend, server });
        }
    }
    let hosts = hosts(routes, settings);
    for (host, backend) in &hosts {
        let before = in_force.hosts.get(host);
        // A backend that isn't there yet comes with the reload, and its hosts with it.
        if before != Some(backend) && in_force.backends.contains(backend) {
            let (host, backend) = (host.clone(), backend.clone());
            come.push(Step::SetHost { host, backend, replaces: before.is_some() });
        }
    }
    for host in in_force.hosts.keys().filter(|host| !hosts.contains_key(*host)) {
        go.push(Step::DeleteHost { host: host.clone() });
    }
    let reload = (!has_structure(&in_force.structural_hash, routes, settings)).then(|| {
        let wanted: BTreeSet<String> = routes.services.keys().map(ServiceId::backend).collect();
        let ours = |name: &&String| ServiceId::of_backend(name).is_some();
        Reload {
            come: wanted.difference(&in_force.backends).cloned().collect(),
            go: in_force.backends.difference(&wanted).filter(ours).cloned().collect(),
        }
    });
    come.extend(go);
    come.extend(gone);
    Plan { steps: come, reload }
}
