//! A simulated HAProxy: its workers, its file and what is under way, which outlive bazooka-proxy; and the
//! [`Balancer`] over it.
//!
//! Owns what it does by itself: requests come, take their time and end; an old worker's kept connections send
//! one more each, which it hands over to its successor.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bazooka_daemon::Loops;
use bazooka_proxy::{
    balancer::{Balancer, InTheWay, ReloadError},
    config::{Settings, instance_of},
    files::FilesError,
    haproxy::{
        CliError,
        process::{Presence, ProcessError},
    },
    plan::{InForce, Step, Wanted},
    ports::PortRefused,
    routes::Routes,
};
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep},
};
use visor::names::InstanceId;

use crate::{gate::Gate, world::World};

/// How many workers there are at most.
const MOST_WORKERS: usize = 3;

/// How often a master is looked for while it isn't there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long bazooka-proxy waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// HAProxy on a proxy's machine.
pub struct Haproxy {
    master: Option<Master>,
    /// What stands in its file.
    on_disk: Option<Wanted>,
    /// Nothing can be written.
    pub disk_full: bool,
    /// Ports that others listen on.
    pub outsiders: BTreeSet<u16>,
    /// It answers nothing until then.
    pub silent_until: Option<Instant>,
    /// Told when its master comes, starts again or goes.
    changed: Arc<Notify>,
    next_pid: u32,
}

struct Master {
    pid: u32,
    worker: Worker,
    /// Those that take no new connections, the youngest first.
    old: Vec<Worker>,
}

struct Worker {
    in_force: InForce,
    requests: Vec<Request>,
    /// Kept connections without a request.
    kept: u32,
}

struct Request {
    instance: InstanceId,
    until: Instant,
}

impl Haproxy {
    /// One that was never started.
    pub fn new() -> Haproxy {
        Haproxy {
            master: None,
            on_disk: None,
            disk_full: false,
            outsiders: BTreeSet::new(),
            silent_until: None,
            changed: Arc::default(),
            next_pid: 100,
        }
    }

    /// It is killed, and all that was under way is gone.
    pub fn kill(&mut self) {
        self.master = None;
        self.changed.notify_waiters();
    }

    /// Nothing keeps it from its work any more.
    pub fn mend(&mut self) {
        (self.disk_full, self.silent_until) = (false, None);
        self.outsiders.clear();
    }

    /// What the worker runs that takes connections.
    pub fn in_force(&self) -> Option<&InForce> {
        self.master.as_ref().map(|master| &master.worker.in_force)
    }

    /// Reports whether new requests may be sent to an instance.
    pub fn routes_to(&self, instance: InstanceId) -> bool {
        self.master.as_ref().is_some_and(|master| master.worker.servers().contains(&instance))
    }

    /// Each instance with something under way, on any worker.
    pub fn under_way(&self) -> BTreeSet<InstanceId> {
        let now = Instant::now();
        let requests = self.workers().flat_map(|worker| &worker.requests);
        requests.filter(|request| request.until > now).map(|request| request.instance).collect()
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.master.iter().flat_map(|master| std::iter::once(&master.worker).chain(&master.old))
    }

    fn pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }

    /// Starts with what is on disk. Says why it can't.
    fn start(&mut self) -> Result<(), ProcessError> {
        let ended = |words: &str| Err(ProcessError::Ended(words.into()));
        let Some(wanted) = self.on_disk.clone() else { return ended("it has no file") };
        if ports(&wanted).any(|port| self.outsiders.contains(&port)) {
            return ended("a port is taken");
        }
        let (master, worker) = (self.pid(), self.pid());
        self.master =
            Some(Master { pid: master, worker: Worker::new(&wanted, master, worker), old: Vec::new() });
        self.changed.notify_waiters();
        Ok(())
    }

    /// Has a new worker take over with this.
    fn reload(&mut self, wanted: &Wanted) -> Result<InForce, ReloadError> {
        let pid = self.pid();
        let Some(master) = &mut self.master else { return Err(unreachable().into()) };
        let is_open = |port: &u16| master.worker.in_force.ports.contains(port);
        if ports(wanted).any(|port| !is_open(&port) && self.outsiders.contains(&port)) {
            return Err(ReloadError::Refused);
        }
        // What has the least under way makes room.
        master.old.sort_by_key(|worker| std::cmp::Reverse((worker.requests.len(), worker.kept)));
        master.old.truncate(MOST_WORKERS - 2);
        let worker = Worker::new(wanted, master.pid, pid);
        master.old.insert(0, std::mem::replace(&mut master.worker, worker));
        self.changed.notify_waiters();
        Ok(master.worker.in_force.clone())
    }

    /// What HAProxy says to a step.
    fn take(&mut self, step: &Step) -> Result<(), String> {
        let worker = &mut self.master.as_mut().ok_or("gone")?.worker;
        let refused = match step {
            Step::Delete { backend, server } => {
                let state = worker.in_force.servers.get(backend).and_then(|servers| servers.get(server));
                let busy = |instance| worker.requests.iter().any(|request| request.instance == instance);
                match state {
                    None => Some("No such server."),
                    Some(state) if !state.maintenance => {
                        Some("Only servers in maintenance mode can be deleted.")
                    }
                    Some(_) if instance_of(server).is_some_and(busy) => {
                        Some("Server still has connections attached to it, cannot remove it.")
                    }
                    Some(_) => None,
                }
            }
            Step::Add { service, .. } if !worker.in_force.backends.contains(&service.backend()) => {
                Some("No such backend.")
            }
            _ => None,
        };
        match refused {
            Some(words) => Err(words.into()),
            None => {
                worker.in_force.note(step);
                Ok(())
            }
        }
    }

    /// Time has passed: what is over ends, and an old worker that has nothing open is gone.
    fn tidy(&mut self) {
        let Some(master) = &mut self.master else { return };
        let now = Instant::now();
        let before = master.worker.requests.len();
        for worker in std::iter::once(&mut master.worker).chain(&mut master.old) {
            worker.requests.retain(|request| request.until > now);
        }
        // An old worker closes what it has answered.
        let ended = u32::try_from(before - master.worker.requests.len()).expect("they are few");
        master.worker.kept = (master.worker.kept + ended).min(8);
        master.old.retain(|worker| worker.kept > 0 || !worker.requests.is_empty());
    }
}

impl Worker {
    fn new(wanted: &Wanted, master: u32, pid: u32) -> Worker {
        Worker { in_force: InForce::of(wanted, master, pid), requests: Vec::new(), kept: 0 }
    }

    /// The instances that it gives requests to.
    fn servers(&self) -> Vec<InstanceId> {
        let all = self.in_force.servers.values().flatten();
        all.filter(|(_, state)| !state.maintenance).filter_map(|(name, _)| instance_of(name)).collect()
    }
}

fn ports(wanted: &Wanted) -> impl Iterator<Item = u16> {
    wanted.routes.services.values().filter_map(|service| service.port)
}

fn unreachable() -> CliError {
    CliError::Unreachable { path: "master.sock".into(), source: io::ErrorKind::ConnectionRefused.into() }
}

/// Requests come to the HAProxy of this proxy, all day.
pub async fn traffic(world: Arc<World>, name: String) {
    loop {
        world.wait(50..=400).await;
        let takes = Duration::from_millis(*world.pick(&[5, 5, 50, 500, 3_000, 20_000]));
        let (server, last_of_old) = (world.between(0..=1_000), world.chance(0.3));
        world.haproxy(&name, |haproxy| {
            haproxy.tidy();
            let Some(master) = &mut haproxy.master else { return };
            let servers = master.worker.servers();
            let number = usize::try_from(server).expect("it is small");
            let Some(instance) = servers.get(number % servers.len().max(1)) else { return };
            // A kept connection of an old worker: its request goes on to the new one, and occupies both.
            let old = master.old.iter_mut().find(|old| last_of_old && old.kept > 0);
            let request = || Request { instance: *instance, until: Instant::now() + takes };
            if let Some(old) = old {
                old.kept -= 1;
                old.requests.push(request());
            }
            master.worker.requests.push(request());
        });
    }
}

/// bazooka-proxy's hold on HAProxy.
pub struct Hold {
    world: Arc<World>,
    name: String,
    gate: Gate,
    /// What is written is written in order.
    disk: Arc<Mutex<()>>,
}

impl Hold {
    /// A process's hold on the HAProxy of this proxy.
    pub fn new(world: &Arc<World>, name: &str, gate: &Gate) -> Hold {
        Hold { world: world.clone(), name: name.to_owned(), gate: gate.clone(), disk: Arc::default() }
    }

    /// What bazooka-proxy is told of itself.
    pub fn settings(n: u8) -> Settings {
        let address: IpAddr = Ipv4Addr::new(10, 0, 1, n).into();
        Settings {
            public: Some(SocketAddr::new(address, 80)),
            git: None,
            git_tls: None,
            bind: address,
            domain: "localhost".parse().expect("a valid name"),
            folder: PathBuf::from("/"),
            run_as: None,
            exporter: false,
            lua: true,
        }
    }

    fn haproxy<T>(&self, look: impl FnOnce(&mut Haproxy) -> T) -> T {
        self.world.haproxy(&self.name, look)
    }

    /// A question reaches HAProxy, and is answered.
    async fn ask(&self) -> Result<(), CliError> {
        self.world.wait(0..=15).await;
        self.gate.step().await;
        let silent = self.haproxy(|haproxy| haproxy.silent_until.is_some_and(|until| until > Instant::now()));
        if silent {
            sleep(PATIENCE).await;
            return Err(CliError::Silent);
        }
        if self.haproxy(|haproxy| haproxy.master.is_none()) { Err(unreachable()) } else { Ok(()) }
    }

    /// Puts this into the file.
    async fn put(&self, wanted: &Wanted) -> Result<(), FilesError> {
        let _in_order = self.disk.lock().await;
        self.world.wait(0..=40).await;
        self.gate.step().await;
        self.haproxy(|haproxy| {
            if haproxy.disk_full {
                let source = io::ErrorKind::StorageFull.into();
                return Err(FilesError::Write { path: "haproxy.cfg".into(), source });
            }
            haproxy.on_disk = Some(wanted.clone());
            Ok(())
        })
    }
}

#[async_trait]
impl Balancer for Hold {
    async fn observe(&self) -> Result<InForce, CliError> {
        self.ask().await?;
        self.haproxy(|haproxy| haproxy.in_force().cloned()).ok_or_else(unreachable)
    }

    async fn carry_out(
        &self,
        in_force: &mut InForce,
        steps: &[Step],
    ) -> Result<Vec<(Step, String)>, CliError> {
        self.ask().await?;
        let mut refused = Vec::new();
        for step in steps {
            let fails = !self.world.is_healed() && self.world.chance(0.01);
            let taken = self.haproxy(|haproxy| {
                if haproxy.in_force().is_none_or(|now| now.worker != in_force.worker) {
                    return Err(CliError::NoWorker(in_force.worker));
                }
                Ok(if fails { Err("it has no memory left".to_owned()) } else { haproxy.take(step) })
            })?;
            match taken {
                Ok(()) => in_force.note(step),
                Err(words) => refused.push((step.clone(), words)),
            }
        }
        self.world.note(format_args!("{}: {} steps, {} refused", self.name, steps.len(), refused.len()));
        // The answer may be lost, and the steps are taken all the same.
        if !self.world.is_healed() && self.world.chance(0.01) {
            return Err(CliError::Cut(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(refused)
    }

    async fn reload(&self, wanted: &Wanted) -> Result<InForce, ReloadError> {
        self.put(wanted).await?;
        self.ask().await?;
        if !self.world.is_healed() && self.world.chance(0.05) {
            return Err(ReloadError::Refused);
        }
        let now = self.haproxy(|haproxy| haproxy.reload(wanted));
        self.world.note(format_args!(
            "{}: a reload, {}",
            self.name,
            if now.is_ok() { "taken" } else { "refused" }
        ));
        self.world.wait(5..=150).await;
        now
    }

    async fn in_the_way(&self) -> Result<InTheWay, CliError> {
        self.ask().await?;
        Ok(self.haproxy(|haproxy| {
            haproxy.tidy();
            let Some(master) = &haproxy.master else { return InTheWay::Nothing };
            let surplus = (master.old.len() + 2).saturating_sub(MOST_WORKERS);
            let mut open: Vec<_> =
                master.old.iter().map(|worker| (worker.requests.len(), worker.kept)).collect();
            open.sort_unstable();
            match open.get(..surplus).and_then(|surplus| surplus.last()) {
                Some((1.., _)) => InTheWay::Requests,
                Some((0, 1..)) => InTheWay::Connections,
                Some((0, 0)) | None => InTheWay::Nothing,
            }
        }))
    }

    async fn sessions(&self, _: &BTreeSet<String>) -> Result<BTreeMap<InstanceId, u32>, CliError> {
        self.ask().await?;
        if !self.world.is_healed() && self.world.chance(0.1) {
            return Err(CliError::Cut(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(self.haproxy(|haproxy| {
            haproxy.tidy();
            let mut open = BTreeMap::new();
            for request in haproxy.workers().flat_map(|worker| &worker.requests) {
                *open.entry(request.instance).or_insert(0) += 1;
            }
            open
        }))
    }

    fn masters(&self, loops: &mut Loops) -> watch::Receiver<u64> {
        let (world, name) = (self.world.clone(), self.name.clone());
        let (says, masters) = watch::channel(0);
        loops.spawn_endless("the watch of HAProxy's master", async move {
            let changed = world.haproxy(&name, |haproxy| haproxy.changed.clone());
            while !says.is_closed() {
                // Before the look, so that no change is missed.
                let changed = changed.notified();
                says.send_modify(|n| *n += 1);
                if world.haproxy(&name, |haproxy| haproxy.master.is_some()) {
                    changed.await;
                } else {
                    sleep(LOOK_EVERY).await;
                }
            }
        });
        masters
    }

    fn is_free(&self, address: SocketAddr) -> Result<(), PortRefused> {
        let taken = self.haproxy(|haproxy| haproxy.outsiders.contains(&address.port()));
        if taken { Err(PortRefused::Taken(address.port())) } else { Ok(()) }
    }

    fn write(&self, wanted: &Wanted) {
        let own = Hold { disk: self.disk.clone(), ..Hold::new(&self.world, &self.name, &self.gate) };
        let wanted = wanted.clone();
        // It is warned of if it can't be, and that is all.
        tokio::spawn(async move { drop(own.put(&wanted).await) });
    }

    async fn lay_out(&self, wanted: Option<&Wanted>, settings: &Settings) -> bool {
        let is_there = self.haproxy(|haproxy| haproxy.on_disk.is_some());
        let empty = Wanted { routes: Routes::default(), settings: settings.clone() };
        match wanted {
            Some(wanted) => self.put(wanted).await.is_ok(),
            None if is_there => true,
            None => self.put(&empty).await.is_ok(),
        }
    }

    async fn keep_as_good(&self) {
        self.gate.step().await;
    }

    fn runs_here(&self) -> bool {
        true
    }

    fn presence(&mut self, master: Option<u32>) -> Presence {
        let is_there = self.haproxy(|haproxy| {
            haproxy.master.as_ref().is_some_and(|now| master.is_none_or(|pid| pid == now.pid))
        });
        if is_there { Presence::Running } else { Presence::Gone }
    }

    fn remember(&mut self, _: [u32; 2]) {}

    async fn clear(&mut self) -> Result<(), ProcessError> {
        self.gate.step().await;
        self.haproxy(Haproxy::kill);
        Ok(())
    }

    async fn start(&mut self) -> Result<(), ProcessError> {
        self.world.wait(20..=300).await;
        self.gate.step().await;
        self.world.note(format_args!("{}: HAProxy is started", self.name));
        self.haproxy(Haproxy::start)
    }

    async fn stop(&mut self) {
        self.gate.step().await;
        self.haproxy(Haproxy::kill);
    }

    fn last_words(&self) -> String {
        String::new()
    }

    fn bound_log(&self) {}
}
