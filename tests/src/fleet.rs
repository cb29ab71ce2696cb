//! A cluster of machines in two zones: three etcd members, hosts, two proxies with HAProxy, an rm, two convergers, an
//! operator and each zone's clients, each in a network namespace with its own address.
//!
//! Owns starting, breaking and ending them. The thread that starts a fleet stands on the operator's machine from
//! then on: what it asks and starts goes out from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use visor::{
    snapshot::Snapshot,
    store::{
        SharedStore,
        etcd::{EtcdConfig, EtcdStore},
    },
    visor::Visor,
};

use crate::{Answer, Kind, Load, LoadOptions, Nets, Part, Repo, SOON, Turn, program, repo, try_get, until};

/// The prefix of its keys; the coordinator is its own.
const PREFIX: &str = "/bazooka";

/// When an answer counts as lost: scenarios run unoptimized programs on a busy machine. The benchmarks allow a second.
pub const PATIENT: Duration = Duration::from_secs(3);

/// One of the machines. Of those that are numbered, the last is in zone b, bar the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// A member of the coordinator: 1 to 3.
    Etcd(u8),
    /// A host, from 1 on: first those in zone a, then those in zone b.
    Host(u8),
    /// A proxy with HAProxy: 1 and 2.
    Proxy(u8),
    /// The rm, in zone a.
    Rm,
    /// A converger: 1 and 2.
    Converger(u8),
    /// Where the test stands, in zone a.
    Operator,
    /// Where a zone's clients stand: 1 and 2. Nothing runs there.
    Clients(u8),
}

use Machine::{Clients, Converger, Etcd, Host, Operator, Proxy, Rm};

impl Machine {
    /// All but the hosts. Those that others need come first.
    const BESIDE_HOSTS: [Machine; 11] = [
        Etcd(1),
        Etcd(2),
        Etcd(3),
        Proxy(1),
        Proxy(2),
        Rm,
        Converger(1),
        Converger(2),
        Operator,
        Clients(1),
        Clients(2),
    ];

    /// Its number in the network.
    pub fn number(self) -> u8 {
        match self {
            Etcd(n) => n,
            Proxy(n) => 3 + n,
            Rm => 6,
            Converger(n) => 6 + n,
            Operator => 9,
            Clients(n) => 9 + n,
            Host(n) => 11 + n,
        }
    }

    /// The name of its part.
    pub fn name(self) -> String {
        match self {
            Etcd(n) => format!("etcd{n}"),
            Host(n) => format!("host{n}"),
            Proxy(n) => format!("proxy{n}"),
            Rm => "rm1".into(),
            Converger(n) => format!("converger{n}"),
            Operator => "operator".into(),
            Clients(n) => format!("clients{n}"),
        }
    }

    /// Its address with a port.
    pub fn at(self, port: u16) -> String {
        format!("{}:{port}", Nets::address(self.number()))
    }

    fn endpoint(self) -> String {
        match self {
            Etcd(_) => self.at(2379),
            _ => self.at(8100),
        }
    }
}

/// What is so for the whole of a fleet.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Whether what the parts run goes on when they are told to end, as it does under systemd.
    pub lasting: bool,
    /// How much each member of the coordinator takes.
    pub quota_bytes: u64,
    /// How many hosts are in zone a, and in zone b.
    pub hosts: (u8, u8),
    /// Whether the proxies are told their zones, and so prefer them.
    pub zoned_proxies: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Setting { lasting: false, quota_bytes: 2 << 30, hosts: (2, 1), zoned_proxies: false }
    }
}

impl Setting {
    /// All machines, in the order in which they start.
    fn machines(&self) -> impl Iterator<Item = Machine> + use<> {
        Machine::BESIDE_HOSTS.into_iter().chain((1..=self.hosts.0 + self.hosts.1).map(Host))
    }

    /// Whether a machine is in zone b.
    fn beyond(&self, machine: Machine) -> bool {
        match machine {
            Host(n) => n > self.hosts.0,
            Etcd(3) | Proxy(2) | Converger(2) | Clients(2) => true,
            Etcd(_) | Proxy(_) | Converger(_) | Clients(_) | Rm | Operator => false,
        }
    }

    fn zone(&self, machine: Machine) -> &'static str {
        if self.beyond(machine) { "b" } else { "a" }
    }
}

/// How a machine's part is started otherwise than the others.
#[derive(Clone, Debug, Default)]
struct Altered {
    /// Where its programs are, if not beside the test.
    build: Option<PathBuf>,
    /// What stands before its command.
    under: Vec<String>,
    /// What stands after it.
    more: Vec<String>,
}

/// Calls the coordinator's own client, as an operator does, and returns what it says.
///
/// # Panics
/// If it fails.
pub fn etcdctl(members: &[String], args: &[&str]) -> String {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", &members.join(",")]).args(args);
    let output = command.output().expect("etcdctl is installed");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it speaks in text")
}

/// The machines. Dropping them ends all that runs there.
pub struct Fleet {
    parts: BTreeMap<Machine, Part>,
    setting: Setting,
    altered: BTreeMap<Machine, Altered>,
    paused: BTreeSet<Machine>,
    runtime: tokio::runtime::Runtime,
    visor: Visor,
    nets: Nets,
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
    _turn: Turn,
}

impl Fleet {
    /// Starts all of it and waits until each part is ready. What the parts run ends with them.
    ///
    /// # Panics
    /// If a part doesn't become ready; without root.
    pub fn start() -> Fleet {
        Self::start_so(Setting::default())
    }

    /// As [`Fleet::start`], otherwise than usual.
    ///
    /// # Panics
    /// As there.
    pub fn start_so(setting: Setting) -> Fleet {
        Self::start_with(setting, BTreeMap::new())
    }

    /// As [`Fleet::start_so`], with the programs of another build, until a machine is upgraded.
    ///
    /// # Panics
    /// As there.
    pub fn start_of(setting: Setting, build: &Path) -> Fleet {
        let of_build = || Altered { build: Some(build.to_owned()), ..Altered::default() };
        Self::start_with(setting, setting.machines().map(|machine| (machine, of_build())).collect())
    }

    fn start_with(setting: Setting, altered: BTreeMap<Machine, Altered>) -> Fleet {
        // Two at once would starve each other on a small machine. nextest has its own word for that.
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // So would two runs.
        let turn = Turn::whole();
        let numbers = |machines: &mut dyn Iterator<Item = Machine>| machines.map(Machine::number).collect();
        let all: BTreeSet<u8> = numbers(&mut setting.machines());
        let beyond = numbers(&mut setting.machines().filter(|machine| setting.beyond(*machine)));
        let nets = Nets::new(all.last().copied().expect("there are some"), beyond);
        nets.enter(Operator.number());
        // After that, so that its threads stand there too.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let store: SharedStore = Arc::new(EtcdStore::new(EtcdConfig::new(Self::coordinator(), PREFIX)));
        // The scenarios are about the parts, not about the disk.
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("bazooka-fleet.").tempdir_in(parent);
        let dir = dir.expect("a temporary folder can be made");
        // Instances have users of their own, and their slugs lie below.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("the mode can be set");
        let mut fleet = Fleet {
            parts: BTreeMap::new(),
            setting,
            altered,
            paused: BTreeSet::new(),
            runtime,
            visor: Visor::new(store),
            nets,
            dir,
            _alone: alone,
            _turn: turn,
        };
        for machine in setting.machines() {
            fleet.begin(machine);
        }
        for machine in setting.machines() {
            fleet.ready(machine);
        }
        fleet
    }

    /// The coordinator's endpoints.
    pub fn coordinator() -> Vec<String> {
        [Etcd(1), Etcd(2), Etcd(3)].map(|member| format!("http://{}", member.at(2379))).into()
    }

    /// Starts a machine's part, again if it was ended.
    pub fn begin(&mut self, machine: Machine) {
        let Some(command) = self.command(machine) else { return };
        let name = machine.name();
        let log = self.dir.path().join(format!("{name}.log"));
        let on = self.nets.on(machine.number());
        let mut outer = Command::new(&on[0]);
        let Altered { under, more, .. } = self.altered.get(&machine).cloned().unwrap_or_default();
        outer.args(&on[1..]).args(under).arg(command.get_program()).args(command.get_args()).args(more);
        self.parts.insert(machine, Part::start(&name, &log, &mut outer));
    }

    /// Starts a machine's part again and waits until it is ready.
    pub fn restart(&mut self, machine: Machine) {
        self.begin(machine);
        self.ready(machine);
    }

    /// Tells a machine's part to end, and starts it anew with the programs of another build.
    pub fn upgrade(&mut self, machine: Machine, build: &Path) {
        self.stop(machine);
        self.altered.entry(machine).or_default().build = Some(build.to_owned());
        self.restart(machine);
    }

    /// Tells a machine's part to end, and starts it anew with words before and after its command.
    pub fn restart_under(&mut self, machine: Machine, under: &[String], more: &[String]) {
        self.stop(machine);
        let altered = self.altered.entry(machine).or_default();
        (altered.under, altered.more) = (under.to_vec(), more.to_vec());
        self.restart(machine);
    }

    /// Waits until a machine's part is ready.
    pub fn ready(&self, machine: Machine) {
        let path = match machine {
            Operator | Clients(_) => return,
            Etcd(_) => "health",
            _ => "readyz",
        };
        let url = format!("http://{}/{path}", machine.endpoint());
        until(&format!("{} is ready", machine.name()), SOON, || match try_get(&url, None)? {
            Answer { status: 200, .. } => Ok(()),
            other => Err(format!("{other:?}; its log: {}", self.log(machine))),
        });
    }

    /// A machine's part.
    ///
    /// # Panics
    /// If it has none.
    pub fn part(&self, machine: Machine) -> &Part {
        self.parts.get(&machine).unwrap_or_else(|| panic!("nothing runs on {machine:?}"))
    }

    /// What a machine's part has written.
    pub fn log(&self, machine: Machine) -> String {
        self.parts.get(&machine).map(Part::log).unwrap_or_default()
    }

    /// Ends a machine's part with SIGKILL; what it started goes on.
    pub fn kill(&mut self, machine: Machine) {
        self.parts.get_mut(&machine).expect("it runs").kill();
    }

    /// Ends a machine's part with SIGTERM.
    pub fn stop(&mut self, machine: Machine) {
        self.parts.get_mut(&machine).expect("it runs").stop();
    }

    /// Stops a machine's part where it stands.
    pub fn pause(&mut self, machine: Machine) {
        self.part(machine).pause();
        self.paused.insert(machine);
    }

    /// Lets it go on.
    pub fn resume(&mut self, machine: Machine) {
        self.part(machine).signal(Signal::SIGCONT);
        self.paused.remove(&machine);
    }

    /// The links between the machines, by [`Machine::number`].
    pub fn nets(&mut self) -> &mut Nets {
        &mut self.nets
    }

    /// Takes a machine's link down.
    pub fn cut(&self, machine: Machine) {
        self.nets.cut(machine.number());
    }

    /// Brings it up, both ways.
    pub fn heal(&self, machine: Machine) {
        self.nets.heal(machine.number());
    }

    /// Takes the link between the zones down: each still reaches its own.
    pub fn part_zones(&self) {
        self.nets.part_zones();
    }

    /// Brings it up.
    pub fn join_zones(&self) {
        self.nets.join_zones();
    }

    /// Does something on a machine: what it starts stands there.
    ///
    /// # Panics
    /// If it does.
    pub fn on<T: Send>(&self, machine: Machine, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = || {
                self.nets.enter(machine.number());
                act()
            };
            scope.spawn(there).join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// The processes of this name on a machine.
    pub fn processes(&self, machine: Machine, name: &str) -> Vec<i32> {
        let named = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        self.nets.processes(machine.number()).into_iter().filter(named).collect()
    }

    /// The coordinator's member that leads.
    pub fn leader(&self) -> Machine {
        until("a member of the coordinator leads", SOON, || {
            for member in [Etcd(1), Etcd(2), Etcd(3)] {
                let metrics = try_get(&format!("http://{}/metrics", member.at(2379)), None);
                if metrics.is_ok_and(|metrics| metrics.body.contains("\netcd_server_is_leader 1")) {
                    return Ok(member);
                }
            }
            Err("none says so".to_owned())
        })
    }

    /// The converger that is elected.
    pub fn elected(&self) -> Machine {
        until("a converger is elected", SOON, || {
            let leader = self.snapshot().leader.map(|leader| leader.name.clone());
            let elected = self.setting.machines().find(|machine| Some(machine.name()) == leader);
            elected.ok_or_else(|| format!("{leader:?}"))
        })
    }

    /// A look at all of the cluster's state.
    ///
    /// # Panics
    /// If the coordinator doesn't answer.
    pub fn snapshot(&self) -> Snapshot {
        until("the coordinator answers", SOON, || {
            let read = self.visor.read(visor::keys::everything());
            self.runtime.block_on(read).map_err(|error| format!("{error:?}"))
        })
    }

    /// The handle on the cluster's state, and a runtime to use it on.
    pub fn visor(&self) -> (&Visor, &tokio::runtime::Runtime) {
        (&self.visor, &self.runtime)
    }

    /// A developer's folder, named for the app.
    pub fn repo(&self, name: &str) -> Repo {
        let envs = repo::developer(&Self::coordinator().join(","), PREFIX, &self.dir.path().join("home"));
        Repo::create(&self.dir.path().join("src").join(name), envs, Vec::new())
    }

    /// Asks an app's web proc through a proxy.
    ///
    /// # Errors
    /// What went wrong below HTTP.
    pub fn ask(&self, proxy: Machine, app: &str) -> Result<Answer, String> {
        try_get(&format!("http://{}/", proxy.at(8080)), Some(&format!("{app}.localhost:8080")))
    }

    /// A steady load on an app, of each kind and through both proxies; an answer is lost after [`PATIENT`].
    pub fn load(&self, app: &str, rate: u32) -> Load {
        self.load_of(app, rate, rate.div_ceil(32), &Kind::ALL, PATIENT)
    }

    /// A steady load of some kinds, with so many connections for each kind and proxy.
    pub fn load_of(
        &self,
        app: &str,
        rate: u32,
        connections: u32,
        kinds: &[Kind],
        deadline: Duration,
    ) -> Load {
        let address = |proxy: Machine| -> SocketAddr { proxy.at(8080).parse().expect("an address") };
        let addresses = vec![address(Proxy(1)), address(Proxy(2))];
        for proxy in [Proxy(1), Proxy(2)] {
            until(&format!("{app} answers through {}", proxy.name()), SOON, || {
                match self.ask(proxy, app)? {
                    Answer { status: 200, .. } => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
        Load::start(LoadOptions {
            addresses,
            hosts: vec![format!("{app}.localhost:8080")],
            rate,
            connections,
            kinds: kinds.to_vec(),
            deadline,
        })
    }

    fn command(&self, machine: Machine) -> Option<Command> {
        let name = machine.name();
        let address = Nets::address(machine.number());
        let build = self.altered.get(&machine).and_then(|altered| altered.build.as_ref());
        let program = |name: &str| build.map_or_else(|| program(name), |build| build.join(name));
        let on_exit = if self.setting.lasting { "keep" } else { "stop" };
        let mut command = match machine {
            Operator | Clients(_) => return None,
            Etcd(_) => return Some(self.etcd(machine)),
            Host(_) => {
                let mut pm = Command::new(program("bazooka-pm"));
                pm.args(["--host", &name, "--address", &address, "--on-exit", on_exit]);
                pm.args(["--zone", self.setting.zone(machine)]);
                let proxy = if self.setting.beyond(machine) { Proxy(2) } else { Proxy(1) };
                pm.args(["--services", &Nets::address(proxy.number())]);
                // A network namespace's /sys has no control groups.
                pm.args(["--without", "limits,fence"]);
                pm
            }
            Proxy(_) => {
                let mut proxy = Command::new(program("bazooka-proxy"));
                proxy.args(["--name", &name, "--run-haproxy", "--on-exit", on_exit, "--domain", "localhost"]);
                proxy.args(["--public", &machine.at(8080), "--bind", &address]);
                if self.setting.zoned_proxies {
                    proxy.args(["--zone", self.setting.zone(machine)]);
                }
                proxy
            }
            Rm => {
                let mut rm = Command::new(program("bazooka-rm"));
                rm.args(["--name", &name, "--build-without", "limits,fence"]);
                rm
            }
            Converger(_) => {
                let mut converger = Command::new(program("bazooka-pm"));
                converger.args(["converge", "--name", &name]);
                converger
            }
        };
        if !matches!(machine, Converger(_)) {
            command.arg("--state").arg(self.dir.path().join(&name));
        }
        command.args(["--coordinator", &Self::coordinator().join(","), "--prefix", PREFIX]);
        command.args(["--listen", &machine.endpoint()]);
        Some(command)
    }

    fn etcd(&self, machine: Machine) -> Command {
        let (name, client) = (machine.name(), format!("http://{}", machine.at(2379)));
        let peer = format!("http://{}", machine.at(2380));
        let members = [Etcd(1), Etcd(2), Etcd(3)].map(|m| format!("{}=http://{}", m.name(), m.at(2380)));
        let mut etcd = Command::new("etcd");
        etcd.arg(format!("--data-dir={}", self.dir.path().join(&name).display()));
        etcd.args([format!("--name={name}"), format!("--listen-client-urls={client}")]);
        etcd.args([format!("--advertise-client-urls={client}"), format!("--listen-peer-urls={peer}")]);
        etcd.arg(format!("--initial-advertise-peer-urls={peer}"));
        etcd.arg(format!("--initial-cluster={}", members.join(",")));
        etcd.arg(format!("--quota-backend-bytes={}", self.setting.quota_bytes));
        etcd.args(["--initial-cluster-token=fleet", "--logger=zap", "--log-level=warn"]);
        etcd
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for machine in std::mem::take(&mut self.paused) {
            self.resume(machine);
        }
        // Hosts first, and all at once, so that instances are gone before what they talk to.
        let mut hosts: Vec<Part> = self
            .setting
            .machines()
            .filter(|machine| matches!(machine, Host(_)))
            .filter_map(|host| self.parts.remove(&host))
            .collect();
        hosts.iter().for_each(|host| host.signal(Signal::SIGTERM));
        let begin = Instant::now();
        while hosts.iter_mut().any(Part::is_running) && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // What is left there is ours, and nobody else will end it: orphans of what was killed, too.
        let own = i32::try_from(std::process::id()).expect("a process id fits");
        for machine in self.setting.machines().filter(|machine| *machine != Operator) {
            for pid in self.nets.processes(machine.number()).into_iter().filter(|pid| *pid != own) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        drop(hosts);
        self.parts.clear();
    }
}
