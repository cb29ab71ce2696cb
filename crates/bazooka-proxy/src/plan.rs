//! Plan: the steps from what HAProxy has in force to what is wanted.
//!
//! Owns the decision and the order of the steps; pure. New servers are added before old ones are removed, so that a
//! service always has a server. A change of structure waits for a reload; all other changes are made at once by the
//! Runtime API, whether or not the reload succeeds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use visor::{
    names::InstanceId,
    planted::{Bug, planted},
};

use crate::{
    config::{Settings, hosts, instance_of, server_name, server_options, structural_hash},
    haproxy::ServerState,
    routes::{Mode, Routes, ServiceId},
};

/// The configuration that HAProxy's current worker runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The master's process id.
    pub master: u32,
    /// The worker's process id.
    pub worker: u32,
    /// The structural hash of its configuration.
    pub structural_hash: String,
    /// The servers by backend and name.
    pub servers: BTreeMap<String, BTreeMap<String, ServerState>>,
    /// The backends, with servers or without.
    pub backends: BTreeSet<String>,
    /// The service ports that the worker has open.
    pub ports: BTreeSet<u16>,
    /// True if the worker has the public port open.
    pub public: bool,
    /// True if the worker has git's port, which leads to the rms, open.
    pub git: bool,
    /// The host map.
    pub hosts: BTreeMap<String, String>,
}

impl InForce {
    /// Returns the state of a worker that has just started with all of `wanted`.
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

    /// Records that a step was carried out.
    pub fn note(&mut self, step: &Step) {
        match step {
            Step::Add { service, instance, address, weight, .. } => {
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

    /// Reports whether HAProxy sends new requests to an instance.
    pub fn takes(&self, service: &ServiceId, instance: InstanceId) -> bool {
        let server = self.servers.get(&service.backend()).and_then(|all| all.get(&server_name(instance)));
        server.is_some_and(|server| !server.maintenance)
    }
}

/// The routes and settings that HAProxy shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The routes, without the ports that can't be opened.
    pub routes: Routes,
    /// The settings, without a public or git address that can't be opened.
    pub settings: Settings,
}

/// A change by the Runtime API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds an enabled server.
    Add {
        /// The service of the server.
        service: ServiceId,
        /// The instance of the server.
        instance: InstanceId,
        /// The instance's address.
        address: SocketAddr,
        /// The server's weight.
        weight: u16,
        /// The protocol of the service.
        mode: Mode,
    },
    /// Sets a server's weight.
    Weigh {
        /// The service of the server.
        service: ServiceId,
        /// The instance of the server.
        instance: InstanceId,
        /// The new weight.
        weight: u16,
    },
    /// Enables a disabled server, or moves a server to another address.
    Enable {
        /// The service of the server.
        service: ServiceId,
        /// The instance of the server.
        instance: InstanceId,
        /// The instance's address.
        address: SocketAddr,
        /// True if the server has another address so far.
        moved: bool,
    },
    /// Disables a server: HAProxy sends it no new requests.
    Disable {
        /// The server's backend.
        backend: String,
        /// The server's name.
        server: String,
    },
    /// Deletes a disabled server; HAProxy refuses while the server has open sessions.
    Delete {
        /// The server's backend.
        backend: String,
        /// The server's name.
        server: String,
    },
    /// Maps a host name to a backend.
    SetHost {
        /// The host name.
        host: String,
        /// The backend.
        backend: String,
        /// True if the host name is mapped to another backend so far.
        replaces: bool,
    },
    /// Removes a host name from the map.
    DeleteHost {
        /// The host name.
        host: String,
    },
}

impl Step {
    /// Returns the Runtime API commands of the step, in order. `map` is the path of the map file.
    pub fn commands(&self, map: &str) -> Vec<String> {
        match self {
            Step::Add { service, instance, address, weight, mode } => {
                let options = server_options(*mode);
                let server = format!("{}/{}", service.backend(), server_name(*instance));
                // A new server starts in maintenance. With the option `enabled` it would look ready, but HAProxy 2.6
                // would never send it a request.
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

    /// Reports whether these answers to the step's commands mean success.
    pub fn succeeded(&self, answers: &[String]) -> bool {
        answers.iter().all(|answer| {
            matches!(answer.as_str(), "" | "New server registered." | "Server deleted.")
                // `set server addr` answers with what it changed.
                || answer.contains("changed from")
                || answer.starts_with("no need to change")
        })
    }

    /// Reports whether a failure of the step is harmless. Such a step is tried again a little later.
    pub fn may_wait(&self) -> bool {
        matches!(self, Step::Delete { .. })
    }

    /// Returns the kind of step, for metrics and logs.
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

/// The reason for a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Backends to be added.
    pub come: BTreeSet<String>,
    /// Backends to be removed.
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

/// Everything to be done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes that the Runtime API can make.
    pub steps: Vec<Step>,
    /// The reload, if some change needs one.
    pub reload: Option<Reload>,
}

/// Returns the plan that leads from `in_force` to `wanted`.
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
            let (weight, mode) = (service.weight(*instance), service.mode);
            let (service, instance, address) = (id.clone(), *instance, *address);
            let server = there.and_then(|servers| servers.get(&server_name(instance)));
            if server.is_some_and(|server| server.weight != weight) {
                // Before the server is enabled, so that it never gets more than its share.
                come.push(Step::Weigh { service: service.clone(), instance, weight });
            }
            match server {
                None => come.push(Step::Add { service, instance, address, weight, mode }),
                Some(server) if server.address != Some(address) => {
                    // Sessions at the old address continue; new requests go to the new address.
                    come.push(Step::Enable { service, instance, address, moved: true });
                }
                Some(server) if server.maintenance && !planted(Bug::ReturnedInstanceStaysOut) => {
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
        // The reload adds missing backends together with their hosts.
        if before != Some(backend) && in_force.backends.contains(backend) {
            let (host, backend) = (host.clone(), backend.clone());
            come.push(Step::SetHost { host, backend, replaces: before.is_some() });
        }
    }
    for host in in_force.hosts.keys().filter(|host| !hosts.contains_key(*host)) {
        go.push(Step::DeleteHost { host: host.clone() });
    }
    let reload = (in_force.structural_hash != structural_hash(routes, settings)).then(|| {
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
