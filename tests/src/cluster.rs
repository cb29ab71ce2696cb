//! A cluster: rm, converger, proxy with HAProxy, and hosts, each a real process.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Command,
};

use bazooka_daemon::http_client;
use bazooka_rm::pki::{Address, Authority};
use jiff::Timestamp;
use tempfile::TempDir;
use visor::{
    identity::Credentials,
    keys::Key,
    snapshot::Snapshot,
    testing::{Claim, Etcd, fresh_prefix, is_free, observer_as},
    visor::{Change, Visor},
};

use crate::{Answer, Part, Repo, SOON, Turn, program, repo, try_get, until};

/// How many clusters can stand at once on a machine, and how many ports each has. Those of `bazooka dev` begin after them,
/// those that the kernel gives to outgoing connections still later.
const BLOCKS: u16 = 50;
const PORTS_PER_BLOCK: u16 = 200;

/// The first port of the first block.
const FIRST_PORT: u16 = 11_000;

/// Of a block's ports, those before this one are for [`Endpoint`]s, and then for services.
const FIRST_SERVICE: u16 = 10;

/// Of a block's ports, those from this one on are for instances.
const FIRST_INSTANCE: u16 = 50;

/// What listens in a cluster, each at an address and a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// HAProxy's public port.
    Public,
    /// The (first) rm.
    Rm,
    /// The second rm.
    SecondRm,
    /// The converger.
    Converger,
    /// bazooka-proxy itself.
    Proxy,
    /// Its answers by DNS.
    Dns,
    /// HAProxy's way to the rms.
    Git,
    /// The sshd that a test starts.
    Sshd,
    /// The Prometheus that a test starts.
    Prometheus,
    /// The port where etcd's members would reach each other, in a cluster with identities.
    EtcdPeer,
    /// The pm of a host.
    Host(u16),
}

impl Endpoint {
    /// The last part of its address, and its place among the block's ports.
    fn place(self) -> (u16, u16) {
        match self {
            Endpoint::Public => (1, 0),
            Endpoint::Rm => (1, 1),
            Endpoint::SecondRm => (2, 2),
            Endpoint::Converger => (1, 3),
            Endpoint::Proxy => (1, 4),
            Endpoint::Dns => (1, 5),
            Endpoint::Git => (1, 6),
            Endpoint::Sshd => (1, 7),
            Endpoint::Prometheus => (1, 8),
            Endpoint::EtcdPeer => (3, 9),
            Endpoint::Host(n) => (10 + n, 9),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many hosts.
    pub hosts: u16,
    /// Two rms that share a file storage, and git led to either by the proxy; else one by itself.
    pub two_rms: bool,
    /// Words before each command, such as `ip netns exec NAME`.
    pub inside: Vec<String>,
    /// Each part and each developer has an identity, and the coordinator is one of the cluster's own, with TLS.
    pub identities: bool,
    /// Pushes over SSH, too: the rm keeps `authorized_keys` in the cluster's folder, and says where [`Endpoint::Sshd`] is.
    pub ssh: bool,
    /// The coordinator; the run's own unless given.
    pub coordinator: Option<String>,
    /// Variables for each daemon.
    pub envs: BTreeMap<String, String>,
    /// How many instances a host takes; what it thinks unless given.
    pub slots: Option<u32>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            hosts: 1,
            two_rms: false,
            identities: false,
            ssh: false,
            inside: Vec::new(),
            coordinator: None,
            envs: BTreeMap::new(),
            slots: None,
        }
    }
}

/// A running cluster. Dropping it ends all of it, instances first.
pub struct Cluster {
    // In the order in which they end: the hosts first, so that instances are gone before what they talk to.
    hosts: BTreeMap<u16, Part>,
    parts: BTreeMap<&'static str, Part>,
    runtime: tokio::runtime::Runtime,
    visor: Visor,
    options: ClusterOptions,
    coordinator: String,
    prefix: String,
    guarded: Option<Guarded>,
    block: u16,
    // Holding this holds the block of addresses and ports.
    _claim: Claim,
    _turn: Turn,
    dir: TempDir,
}

/// What a cluster with identities has beside.
struct Guarded {
    authority: Authority,
    etcd: Etcd,
}

/// The person who is an operator of a cluster with identities.
pub const OPERATOR: &str = "ops";

impl Cluster {
    /// Starts a cluster with one host.
    pub fn start() -> Cluster {
        Cluster::with(ClusterOptions::default())
    }

    /// Starts a cluster and waits until each part of it is ready.
    ///
    /// # Panics
    /// If a part doesn't become ready.
    pub fn with(options: ClusterOptions) -> Cluster {
        let turn = Turn::shared();
        let (block, claim) = free_block();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let prefix = fresh_prefix();
        let dir = tempfile::Builder::new()
            .prefix("bazooka-test.")
            .tempdir()
            .expect("a temporary folder can be made");
        // Instances have users of their own, and their slugs lie below.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("the mode can be set");
        let guarded = options.identities.then(|| Guarded::start(dir.path(), block, &runtime));
        let coordinator = match (&guarded, &options.coordinator) {
            (Some(guarded), _) => guarded.etcd.endpoint().to_owned(),
            (None, Some(coordinator)) => coordinator.clone(),
            (None, None) => runtime.block_on(Etcd::shared()).endpoint().to_owned(),
        };
        // As the rm: it may read and write everything.
        let observing =
            guarded.as_ref().map(|_| Credentials::open(&dir.path().join("id/rm:rm1")).expect("it was made"));
        let store = observer_as(&coordinator, &prefix, observing);
        let mut cluster = Cluster {
            hosts: BTreeMap::new(),
            parts: BTreeMap::new(),
            runtime,
            visor: Visor::new(store),
            options,
            coordinator,
            prefix,
            guarded,
            block,
            _claim: claim,
            _turn: turn,
            dir,
        };
        cluster.own_service_ports();
        cluster.start_rm();
        if cluster.guarded.is_some() {
            cluster.ready(Endpoint::Rm);
            cluster.admit();
        }
        if cluster.options.two_rms {
            cluster.start_second_rm();
        }
        cluster.start_converger();
        for host in 1..=cluster.options.hosts {
            cluster.start_host(host);
        }
        cluster.start_proxy();
        cluster.ready(Endpoint::Rm);
        if cluster.options.two_rms {
            cluster.ready(Endpoint::SecondRm);
        }
        cluster.ready(Endpoint::Converger);
        cluster.ready(Endpoint::Proxy);
        for host in 1..=cluster.options.hosts {
            cluster.ready(Endpoint::Host(host));
        }
        cluster
    }

    /// Starts bazooka-rm, again if it was ended.
    pub fn start_rm(&mut self) {
        let mut command = self.daemon("bazooka-rm", &self.at(Endpoint::Rm));
        self.as_identity(&mut command, "rm:rm1", 1);
        command.args(["--name", "rm1"]).arg("--state").arg(self.folder("rm"));
        if self.options.two_rms {
            self.share(&mut command);
        }
        if self.options.ssh {
            command.arg("--ssh-keys").arg(self.folder("authorized_keys"));
            command.args(["--ssh-url", &format!("ssh://root@{}", self.at(Endpoint::Sshd))]);
        }
        self.begin("rm", command);
    }

    /// Starts the second bazooka-rm, again if it was ended.
    pub fn start_second_rm(&mut self) {
        let mut command = self.daemon("bazooka-rm", &self.at(Endpoint::SecondRm));
        self.as_identity(&mut command, "rm:rm2", 2);
        command.args(["--name", "rm2"]).arg("--state").arg(self.folder("rm2"));
        self.share(&mut command);
        self.begin("rm2", command);
    }

    fn share(&self, command: &mut Command) {
        command.args(["--storage", &format!("file://{}", self.folder("storage").display())]);
        let scheme = if self.options.identities { "https" } else { "http" };
        command.args(["--git-url", &format!("{scheme}://{}", self.at(Endpoint::Git))]);
    }

    /// Starts a converger, again if it was ended.
    pub fn start_converger(&mut self) {
        let mut command = Command::new(program("bazooka-pm"));
        command.arg("converge").args(["--name", "converger1"]);
        self.as_identity(&mut command, "converger:converger1", 1);
        self.common(&mut command, &self.at(Endpoint::Converger));
        self.begin("converger", command);
    }

    /// Starts bazooka-proxy with HAProxy, again if it was ended.
    pub fn start_proxy(&mut self) {
        let mut command = self.daemon("bazooka-proxy", &self.at(Endpoint::Proxy));
        self.as_identity(&mut command, "proxy:proxy1", 1);
        command.args(["--name", "proxy1", "--run-haproxy", "--on-exit", "stop", "--domain", "localhost"]);
        command.args(["--public", &self.at(Endpoint::Public)]).args(["--bind", &self.ip(1)]);
        command.args(["--dns", &self.at(Endpoint::Dns)]);
        command.arg("--state").arg(self.folder("proxy"));
        if self.options.two_rms {
            command.args(["--git", &self.at(Endpoint::Git)]);
        }
        self.begin("proxy", command);
    }

    /// Starts the pm of a host, again if it was ended.
    pub fn start_host(&mut self, host: u16) {
        let name = format!("host{host}");
        let share = (PORTS_PER_BLOCK - FIRST_INSTANCE) / self.options.hosts.max(1);
        let first = first_port(self.block) + FIRST_INSTANCE + (host - 1) * share;
        let mut command = self.daemon("bazooka-pm", &self.at(Endpoint::Host(host)));
        self.as_identity(&mut command, &format!("pm:{name}"), 10 + host);
        command.args(["--host", &name, "--address", &self.ip(10 + host), "--on-exit", "stop"]);
        command.args(["--ports", &format!("{first}-{}", first + share - 1)]);
        command.args(["--services", &self.ip(1)]);
        command.arg("--state").arg(self.folder(&name));
        command.args(self.options.slots.map(|slots| format!("--slots={slots}")));
        let log = self.dir.path().join(format!("{name}.log"));
        let part = Part::start(&name, &log, &mut self.inside(command));
        self.hosts.insert(host, part);
    }

    /// Lets each part of it in, and one operator: with the rm's own identity, as the operator who sets it up does.
    fn admit(&self) {
        self.person(OPERATOR);
        let setting_up = self.repo_of("setting-up", "rm:rm1");
        setting_up.bazooka(&["access", "grant", OPERATOR, "--operator"]).ok();
        let operator = self.repo_of("operating", OPERATOR);
        let hosts = (1..=self.options.hosts).map(|host| format!("pm:host{host}"));
        let others = ["converger:converger1", "proxy:proxy1"].map(str::to_owned);
        let second = self.options.two_rms.then(|| "rm:rm2".to_owned());
        for who in hosts.chain(others).chain(second) {
            operator.bazooka(&["access", "grant", &who]).ok();
        }
    }

    /// Makes an identity for a person, if there is none, and returns its folder.
    ///
    /// # Panics
    /// If the cluster has no identities.
    pub fn person(&self, name: &str) -> PathBuf {
        let folder = self.folder("id").join(name);
        if !folder.exists() {
            self.issue(name, &[], &folder, Timestamp::now(), 1);
        }
        folder
    }

    /// Makes an identity, as of some time, for so many days.
    ///
    /// # Panics
    /// If the cluster has no identities.
    pub fn issue(&self, who: &str, addresses: &[String], folder: &Path, at: Timestamp, days: u32) {
        let guarded = self.guarded.as_ref().expect("the cluster has identities");
        issue(&guarded.authority, who, addresses, folder, at, days);
    }

    /// Gives a daemon an identity, made when it is first started, and reached at an address of the block.
    fn as_identity(&self, command: &mut Command, who: &str, last: u16) {
        if self.guarded.is_some() {
            let folder = self.folder("id").join(who);
            if !folder.exists() {
                self.issue(who, &[self.ip(last)], &folder, Timestamp::now(), 1);
            }
            command.arg("--identity").arg(folder);
        }
    }

    /// The coordinator of a cluster with identities.
    ///
    /// # Panics
    /// If it has none.
    pub fn own_etcd(&mut self) -> &mut Etcd {
        &mut self.guarded.as_mut().expect("the cluster has identities").etcd
    }

    /// The daemon of this name: rm, converger or proxy.
    ///
    /// # Panics
    /// If there is none.
    pub fn part(&mut self, name: &str) -> &mut Part {
        self.parts.get_mut(name).unwrap_or_else(|| panic!("there is no part {name}"))
    }

    /// The pm of a host.
    ///
    /// # Panics
    /// If there is none.
    pub fn host(&mut self, host: u16) -> &mut Part {
        self.hosts.get_mut(&host).unwrap_or_else(|| panic!("there is no host {host}"))
    }

    /// A developer's folder in this cluster, named for the app.
    pub fn repo(&self, name: &str) -> Repo {
        Repo::create(&self.dir.path().join("src").join(name), self.client_envs(), self.options.inside.clone())
    }

    /// A folder of somebody's, whose commands have that identity.
    pub fn repo_of(&self, name: &str, who: &str) -> Repo {
        let mut envs = self.client_envs();
        envs.insert("BAZOOKA_IDENTITY".into(), self.folder("id").join(who).display().to_string());
        let folder = self.dir.path().join("src").join(who).join(name);
        Repo::create(&folder, envs, self.options.inside.clone())
    }

    /// A developer's folder with goto-rocket in it, registered and pushed.
    pub fn rocket(&self) -> Repo {
        let repo = self.repo("goto-rocket");
        repo.copy(&example("goto-rocket"));
        repo.commit("go to rocket");
        repo.bazooka(&["init"]).ok();
        repo.git(&["push", "bazooka", "master"]).ok();
        repo
    }

    /// Asks an app's web proc through HAProxy's public port.
    ///
    /// # Errors
    /// What went wrong below HTTP.
    pub fn ask(&self, app: &str) -> Result<Answer, String> {
        try_get(&format!("http://{}/", self.at(Endpoint::Public)), Some(&self.name_of(app)))
    }

    /// Waits until an app answers with 200 and returns the body.
    pub fn answers(&self, app: &str) -> String {
        until(&format!("{app} answers"), SOON, || match self.ask(app)? {
            Answer { status: 200, body } => Ok(body),
            other => Err(format!("{other:?}")),
        })
    }

    /// The Host header that leads to an app's web proc.
    pub fn name_of(&self, app: &str) -> String {
        format!("{app}.localhost:{}", self.socket(Endpoint::Public).port())
    }

    /// Where something listens, or is to: address and port.
    pub fn at(&self, endpoint: Endpoint) -> String {
        let (last, port) = endpoint.place();
        self.address(last, first_port(self.block) + port)
    }

    /// As [`Cluster::at`], to connect to.
    pub fn socket(&self, endpoint: Endpoint) -> SocketAddr {
        self.at(endpoint).parse().expect("an address and a port")
    }

    /// An address of this cluster's block, with a port.
    pub fn address(&self, last: u16, port: u16) -> String {
        format!("{}:{port}", self.ip(last))
    }

    /// An address of this cluster's block, without a port.
    pub fn ip(&self, last: u16) -> String {
        format!("127.77.{}.{last}", self.block)
    }

    /// The coordinator's endpoint.
    pub fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// A folder below the cluster's own.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A look at all of the cluster's state.
    ///
    /// # Panics
    /// If the coordinator doesn't answer.
    pub fn snapshot(&self) -> Snapshot {
        let read = self.visor.read(visor::keys::everything_and_private());
        self.runtime.block_on(read).expect("the coordinator answers")
    }

    /// The handle on the cluster's state, and a runtime to use it on.
    pub fn visor(&self) -> (&Visor, &tokio::runtime::Runtime) {
        (&self.visor, &self.runtime)
    }

    /// The variables that lead a developer's commands to this cluster.
    pub fn client_envs(&self) -> BTreeMap<String, String> {
        repo::developer(&self.coordinator, &self.prefix, &self.folder("home"))
    }

    /// Waits until a daemon listens, itself and nobody else, and says that it is ready.
    ///
    /// # Panics
    /// If it has ended, or doesn't become ready.
    pub fn ready(&mut self, endpoint: Endpoint) {
        let address = self.socket(endpoint);
        let what = format!("{endpoint:?} is ready");
        let part = match endpoint {
            Endpoint::Rm => self.part("rm"),
            Endpoint::SecondRm => self.part("rm2"),
            Endpoint::Converger => self.part("converger"),
            Endpoint::Proxy => self.part("proxy"),
            Endpoint::Host(n) => self.host(n),
            other => panic!("{other:?} is no daemon of the cluster"),
        };
        until(&what, SOON, || {
            assert!(part.is_running(), "{endpoint:?} has ended: {}", part.log());
            if part.listens(address) { Ok(()) } else { Err(format!("it doesn't listen on {address} yet")) }
        });
        let scheme = if self.guarded.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}/readyz");
        until(&what, SOON, || match self.status_of(&url)? {
            200 => Ok(()),
            other => Err(other.to_string()),
        });
    }

    fn status_of(&self, url: &str) -> Result<u16, String> {
        if let Some((first, rest)) = self.options.inside.split_first() {
            let mut curl = Command::new(first);
            curl.args(rest).args(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url]);
            let asked = curl.output().map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&asked.stdout).into_owned();
            return said.parse().map_err(|_| String::from_utf8_lossy(&asked.stderr).into_owned());
        }
        if self.guarded.is_some() {
            let client = http_client(Some(&self.credentials("rm:rm1"))).build().expect("its TLS is made");
            let asked = self.runtime.block_on(client.get(url).send());
            return asked.map(|answer| answer.status().as_u16()).map_err(|error| format!("{error:?}"));
        }
        try_get(url, None).map(|answer| answer.status)
    }

    /// Makes service ports come from the block; every cluster would use the same ones otherwise. A cluster in a network of
    /// its own meets no other, and its coordinator answers only there.
    fn own_service_ports(&self) {
        if !self.options.inside.is_empty() {
            return;
        }
        let last = u64::from(first_port(self.block) + FIRST_SERVICE - 1);
        self.runtime.block_on(async {
            self.visor.set_up().await.expect("the coordinator answers");
            let change = Change::new().put(&Key::PortCounter, &last);
            self.visor.commit(change).await.expect("the coordinator answers");
        });
    }

    /// Somebody's identity.
    ///
    /// # Panics
    /// If it wasn't made.
    pub fn credentials(&self, who: &str) -> Credentials {
        Credentials::open(&self.folder("id").join(who)).expect("it was made")
    }

    fn begin(&mut self, name: &'static str, command: Command) {
        let log = self.dir.path().join(format!("{name}.log"));
        let part = Part::start(name, &log, &mut self.inside(command));
        self.parts.insert(name, part);
    }

    fn daemon(&self, name: &str, listen: &str) -> Command {
        let mut command = Command::new(program(name));
        self.common(&mut command, listen);
        if !self.options.inside.is_empty() {
            // A network namespace's /sys has no control groups.
            command.env("BAZOOKA_WITHOUT", "limits,fence").env("BAZOOKA_BUILD_WITHOUT", "limits,fence");
        }
        command
    }

    fn common(&self, command: &mut Command, listen: &str) {
        command.args(["--coordinator", &self.coordinator, "--prefix", &self.prefix, "--listen", listen]);
        command.envs(&self.options.envs);
    }

    fn inside(&self, command: Command) -> Command {
        let Some((first, rest)) = self.options.inside.split_first() else { return command };
        let mut outer = Command::new(first);
        outer.args(rest).arg(command.get_program()).args(command.get_args());
        outer.envs(command.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
        outer
    }
}

impl Guarded {
    /// An authority, and an etcd that takes its certificates alone.
    fn start(dir: &Path, block: u16, runtime: &tokio::runtime::Runtime) -> Guarded {
        let authority =
            Authority::create(&dir.join("pki"), Timestamp::now(), 1).expect("an authority can be made");
        let id = |who: &str| dir.join("id").join(who);
        let now = Timestamp::now();
        let (last, port) = Endpoint::EtcdPeer.place();
        let peer = SocketAddrV4::new(
            format!("127.77.{block}.{last}").parse().expect("an address"),
            first_port(block) + port,
        );
        let addresses = ["127.0.0.1".to_owned(), peer.ip().to_string()];
        issue(&authority, "etcd:e1", &addresses, &id("etcd:e1"), now, 1);
        issue(&authority, "rm:rm1", &[format!("127.77.{block}.1")], &id("rm:rm1"), now, 1);
        let observer = Credentials::open(&id("rm:rm1")).expect("it was made");
        let etcd = runtime.block_on(Etcd::start_tls(&id("etcd:e1"), peer, observer));
        Guarded { authority, etcd }
    }
}

fn issue(authority: &Authority, who: &str, addresses: &[String], folder: &Path, at: Timestamp, days: u32) {
    let who = who.parse().expect("a valid name");
    let addresses: Vec<Address> = addresses.iter().map(|at| at.parse().expect("an address")).collect();
    let issued = authority.issue(&who, &addresses, at, days).expect("it can be issued");
    issued.write(folder).expect("it can be written");
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All at once: instances may take their grace.
        for host in self.hosts.values() {
            host.signal(nix::sys::signal::Signal::SIGTERM);
        }
        self.hosts.clear();
        self.parts.clear();
    }
}

/// A sample app's folder.
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples").join(name)
}

fn first_port(block: u16) -> u16 {
    FIRST_PORT + (block - 1) * PORTS_PER_BLOCK
}

/// A block that no other test has, and on whose ports nobody else listens either.
fn free_block() -> (u16, Claim) {
    // Two processes begin at different places.
    let begin = u16::try_from(std::process::id() % u32::from(BLOCKS)).expect("it is below BLOCKS");
    (0..BLOCKS)
        .map(|step| 1 + (begin + step) % BLOCKS)
        .find_map(|block| {
            let claim = Claim::take(&format!("block-{block}"))?;
            let first = first_port(block);
            (first..first + PORTS_PER_BLOCK).all(is_free).then_some((block, claim))
        })
        .expect("one of the address blocks 127.77.1.x to 127.77.50.x is free, with its ports")
}
