//! A cluster: rm, converger, proxy with HAProxy, and hosts, each a real process.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use bazooka_daemon::http_client;
use bazooka_rm::pki::{Address, Authority};
use jiff::Timestamp;
use tempfile::TempDir;
use visor::{
    identity::Credentials,
    snapshot::Snapshot,
    testing::{Etcd, fresh_prefix, observer_as},
    visor::Visor,
};

use crate::{Answer, Part, Repo, SOON, program, repo, try_get, until};

/// How many clusters can stand at once on a machine, and how many instance ports each gets.
const BLOCKS: u16 = 60;
const PORTS_PER_BLOCK: u16 = 200;

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
    /// Pushes over SSH, too: the rm keeps `authorized_keys` in the cluster's folder, and says that sshd is on port 2222.
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
    // Holding this listener holds the address block.
    _lock: TcpListener,
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
        let (block, lock) = free_block();
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
            _lock: lock,
            dir,
        };
        cluster.start_rm();
        if cluster.guarded.is_some() {
            cluster.ready("rm", &cluster.address(1, 8081));
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
        cluster.ready("rm", &cluster.address(1, 8081));
        if cluster.options.two_rms {
            cluster.ready("rm2", &cluster.address(2, 8081));
        }
        cluster.ready("converger", &cluster.address(1, 8082));
        cluster.ready("proxy", &cluster.address(1, 8083));
        for host in 1..=cluster.options.hosts {
            cluster.ready("pm", &cluster.address(10 + host, 8100));
        }
        cluster
    }

    /// Starts bazooka-rm, again if it was ended.
    pub fn start_rm(&mut self) {
        let mut command = self.daemon("bazooka-rm", &self.address(1, 8081));
        self.as_identity(&mut command, "rm:rm1", 1);
        command.args(["--name", "rm1"]).arg("--state").arg(self.folder("rm"));
        if self.options.two_rms {
            self.share(&mut command);
        }
        if self.options.ssh {
            command.arg("--ssh-keys").arg(self.folder("authorized_keys"));
            command.args(["--ssh-url", &format!("ssh://root@{}", self.address(1, 2222))]);
        }
        self.begin("rm", command);
    }

    /// Starts the second bazooka-rm, again if it was ended.
    pub fn start_second_rm(&mut self) {
        let mut command = self.daemon("bazooka-rm", &self.address(2, 8081));
        self.as_identity(&mut command, "rm:rm2", 2);
        command.args(["--name", "rm2"]).arg("--state").arg(self.folder("rm2"));
        self.share(&mut command);
        self.begin("rm2", command);
    }

    fn share(&self, command: &mut Command) {
        command.args(["--storage", &format!("file://{}", self.folder("storage").display())]);
        let scheme = if self.options.identities { "https" } else { "http" };
        command.args(["--git-url", &format!("{scheme}://{}", self.address(1, 8085))]);
    }

    /// Starts a converger, again if it was ended.
    pub fn start_converger(&mut self) {
        let mut command = Command::new(program("bazooka-pm"));
        command.arg("converge").args(["--name", "converger1"]);
        self.as_identity(&mut command, "converger:converger1", 1);
        self.common(&mut command, &self.address(1, 8082));
        self.begin("converger", command);
    }

    /// Starts bazooka-proxy with HAProxy, again if it was ended.
    pub fn start_proxy(&mut self) {
        let mut command = self.daemon("bazooka-proxy", &self.address(1, 8083));
        self.as_identity(&mut command, "proxy:proxy1", 1);
        command.args(["--name", "proxy1", "--run-haproxy", "--on-exit", "stop", "--domain", "localhost"]);
        command.args(["--public", &self.address(1, 8080)]).args(["--bind", &self.ip(1)]);
        command.args(["--dns", &self.address(1, 8053)]);
        command.arg("--state").arg(self.folder("proxy"));
        if self.options.two_rms {
            command.args(["--git", &self.address(1, 8085)]);
        }
        self.begin("proxy", command);
    }

    /// Starts the pm of a host, again if it was ended.
    pub fn start_host(&mut self, host: u16) {
        let name = format!("host{host}");
        let share = PORTS_PER_BLOCK / self.options.hosts.max(1);
        let first = 20_000 + self.block * PORTS_PER_BLOCK + (host - 1) * share;
        let mut command = self.daemon("bazooka-pm", &self.address(10 + host, 8100));
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
        try_get(&format!("http://{}/", self.address(1, 8080)), Some(&format!("{app}.localhost:8080")))
    }

    /// Waits until an app answers with 200 and returns the body.
    pub fn answers(&self, app: &str) -> String {
        until(&format!("{app} answers"), SOON, || match self.ask(app)? {
            Answer { status: 200, body } => Ok(body),
            other => Err(format!("{other:?}")),
        })
    }

    /// An address of this cluster's block.
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
        let read = self.visor.read(visor::keys::everything());
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

    /// Waits until a daemon says that it is ready.
    pub fn ready(&self, what: &str, address: &str) {
        let url = format!("http://{address}/readyz");
        if !self.options.inside.is_empty() {
            let words = [self.options.inside.as_slice(), &["curl".into(), "-fsS".into(), url]].concat();
            until(&format!("{what} is ready"), SOON, || {
                let asked = Command::new(&words[0]).args(&words[1..]).output().map_err(|e| e.to_string())?;
                if asked.status.success() {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&asked.stderr).into())
                }
            });
            return;
        }
        if self.guarded.is_some() {
            let client = http_client(Some(&self.credentials("rm:rm1"))).build().expect("its TLS is made");
            let url = format!("https://{address}/readyz");
            until(&format!("{what} is ready"), SOON, || {
                let asked =
                    self.runtime.block_on(client.get(&url).send()).map_err(|error| format!("{error:?}"))?;
                if asked.status() == 200 { Ok(()) } else { Err(asked.status().to_string()) }
            });
            return;
        }
        until(&format!("{what} is ready"), SOON, || match try_get(&url, None)? {
            Answer { status: 200, .. } => Ok(()),
            other => Err(format!("{other:?}")),
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
        issue(&authority, "etcd:e1", &["127.0.0.1".to_owned()], &id("etcd:e1"), now, 1);
        issue(&authority, "rm:rm1", &[format!("127.77.{block}.1")], &id("rm:rm1"), now, 1);
        let observer = Credentials::open(&id("rm:rm1")).expect("it was made");
        let etcd = runtime.block_on(Etcd::start_tls(&id("etcd:e1"), observer));
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

fn free_block() -> (u16, TcpListener) {
    // Two runs at once begin at different places.
    let begin = u16::try_from(std::process::id() % u32::from(BLOCKS)).expect("it is below BLOCKS");
    (0..BLOCKS)
        .map(|step| 1 + (begin + step) % BLOCKS)
        .find_map(|block| Some((block, TcpListener::bind((format!("127.77.{block}.1"), 7)).ok()?)))
        .expect("one of the address blocks 127.77.1.x to 127.77.60.x is free")
}
