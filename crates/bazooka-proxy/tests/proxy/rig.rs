//! A real bazooka-proxy with a real HAProxy on a real etcd, and instances that answer HTTP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bazooka_proxy::haproxy::{Cli, Processes};
use visor::{
    keys::Key,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, ServicePort},
    schema::{
        App, Assignment, Capacity, Desired, DomainRecord, Extra, Formation, Host, OnPartition, Proc, Proxy,
        Rm, RunSettings, Slug, State, Status,
    },
    settings,
    snapshot::Versioned,
    store::{MAX_TXN_OPS, Revision},
    testing::{Etcd, free_port, fresh_prefix, observer, until},
    visor::{Change, Committed, Visor},
};

use crate::http;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Kills every process whose command line names the folder, once the test has ended, however it did.
const GUARD: &str = r#"
read -r word
exec 2> /dev/null
for entry in /proc/[0-9]*; do
    if [ "${entry#/proc/}" != $$ ] && tr '\0' ' ' < "$entry/cmdline" | grep -qF -- "$1/"; then
        kill -9 "${entry#/proc/}"
    fi
done
rm -rf "$1"
"#;

/// What is tested, with all that it needs.
pub struct Rig {
    pub visor: Visor,
    pub public: SocketAddr,
    pub folder: PathBuf,
    endpoint: String,
    prefix: String,
    haproxy: PathBuf,
    on_exit: &'static str,
    unit: bool,
    git: Option<SocketAddr>,
    dns: Option<SocketAddr>,
    proxy: Option<Child>,
    guard: Child,
    /// The host of each instance.
    hosts: Mutex<BTreeMap<u64, HostName>>,
}

/// What differs between tests.
pub struct Options {
    pub endpoint: Option<String>,
    pub haproxy: PathBuf,
    pub on_exit: &'static str,
    /// HAProxy is run as a unit of its own would be.
    pub unit: bool,
    /// Where git is led to the rms.
    pub git: Option<SocketAddr>,
    /// Where services are found by name.
    pub dns: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            endpoint: None,
            haproxy: "haproxy".into(),
            on_exit: "keep",
            unit: false,
            git: None,
            dns: None,
        }
    }
}

pub fn app(name: &str) -> AppName {
    name.parse().expect("a valid app name")
}

pub fn proc(name: &str) -> ProcName {
    name.parse().expect("a valid proc name")
}

/// The host of an address. A proxy takes only an instance's address that its host has.
fn host_at(address: IpAddr) -> HostName {
    format!("host{}", address.to_string().replace(['.', ':'], "-")).parse().expect("a valid host name")
}

impl Rig {
    /// Starts all of it, and waits until it is ready.
    pub async fn start() -> Self {
        let mut rig = Rig::prepare(Options::default()).await;
        rig.start_proxy();
        rig.wait_ready().await;
        rig
    }

    /// Everything but the proxy.
    pub async fn prepare(options: Options) -> Self {
        let (endpoint, prefix) = match options.endpoint {
            Some(endpoint) => (endpoint, fresh_prefix()),
            None => (Etcd::shared().await.endpoint().to_owned(), fresh_prefix()),
        };
        let visor = Visor::new(observer(&endpoint, &prefix));
        visor.set_up().await.expect("etcd takes the schema");
        let folder = tempfile::Builder::new().prefix("bazooka-proxy.").tempdir().expect("a folder").keep();
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&folder).stdin(Stdio::piped()).stdout(Stdio::null());
        let guard = guard.spawn().expect("sh runs");
        Rig {
            visor,
            public: SocketAddr::new([127, 0, 0, 1].into(), free_port()),
            folder,
            endpoint,
            prefix,
            haproxy: options.haproxy,
            on_exit: options.on_exit,
            unit: options.unit,
            git: options.git,
            dns: options.dns,
            proxy: None,
            guard,
            hosts: Mutex::default(),
        }
    }

    /// Starts bazooka-proxy, anew if it was ended.
    pub fn start_proxy(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bazooka-proxy"));
        command.args(["--coordinator", &self.endpoint, "--prefix", &self.prefix, "--name", "proxy1"]);
        command.args(["--public", &self.public.to_string(), "--bind", "127.0.0.1", "--domain", "localhost"]);
        if let Some(git) = self.git {
            command.arg("--git").arg(git.to_string());
        }
        if let Some(dns) = self.dns {
            command.arg("--dns").arg(dns.to_string());
        }
        if self.unit {
            command.arg("--haproxy-socket").arg(self.folder.join("master.sock"));
        } else {
            command.arg("--run-haproxy");
        }
        command.args(["--on-exit", self.on_exit, "--haproxy"]).arg(&self.haproxy);
        command.arg("--state").arg(&self.folder).env("BAZOOKA_LOG", "bazooka_proxy=debug,warn");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("proxy.log"))
            .expect("the log can be opened");
        self.proxy = Some(command.stderr(log).spawn().expect("bazooka-proxy runs"));
    }

    #[allow(dead_code, reason = "the bench asks it")]
    pub fn proxy_pid(&self) -> u32 {
        self.proxy.as_ref().expect("bazooka-proxy runs").id()
    }

    /// Ends bazooka-proxy.
    pub fn end_proxy(&mut self, signal: nix::sys::signal::Signal) {
        let mut child = self.proxy.take().expect("bazooka-proxy runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("it can be signalled");
        child.wait().expect("it ends");
    }

    /// What bazooka-proxy wrote on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("proxy.log")).unwrap_or_default()
    }

    /// Starts HAProxy as its unit would. It belongs to nobody here: the guard ends it.
    #[allow(dead_code, reason = "the bench has no use for it")]
    pub fn start_unit(&self) {
        let mut command = Command::new("sh");
        command.args(["-c", "haproxy -W -q -S \"$0/master.sock\" -f \"$0/haproxy.cfg\" &"]).arg(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("sh runs").success());
    }

    pub fn cli(&self) -> Cli {
        Cli::new(self.folder.join("master.sock"))
    }

    pub async fn processes(&self) -> Processes {
        self.cli().processes().await.expect("HAProxy answers")
    }

    /// The proxy's row.
    pub async fn row(&self) -> Option<Versioned<Proxy>> {
        let key = Key::Proxy("proxy1".parse().expect("valid"));
        self.visor.get(&key).await.expect("etcd answers")
    }

    /// Asks bazooka-proxy's own endpoint.
    pub async fn endpoint(&self, path: &str) -> Result<http::Answer, String> {
        let row = self.row().await.ok_or("no row")?;
        let address = row.url.trim_start_matches("http://").parse().map_err(|_| "no address")?;
        http::get(address, "localhost", path).await
    }

    pub async fn wait_ready(&self) {
        until("the proxy is ready", PATIENCE, async || match self.endpoint("/readyz").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}\n{}", self.log())),
        })
        .await;
    }

    async fn commit(&self, change: Change) -> Revision {
        match self.visor.commit(change).await.expect("etcd takes it") {
            Committed::Done(revision) => revision,
            Committed::Conflict => panic!("a change without conditions has no conflict"),
        }
    }

    /// Registers a service, and returns its own port.
    pub async fn service(&self, app_name: &str, proc_name: &str) -> u16 {
        let port = free_port();
        self.service_at(app_name, proc_name, port).await;
        port
    }

    pub async fn service_at(&self, app_name: &str, proc_name: &str, port: u16) -> Revision {
        let (name, proc) = (app(app_name), proc(proc_name));
        let at = jiff::Timestamp::UNIX_EPOCH;
        let own = App {
            owner: "ada".into(),
            created_at: at,
            token: String::new(),
            destroying: false,
            extra: Extra::new(),
        };
        let given = visor::transitions::ports::row(&name, &own, &proc, at);
        let change = Change::new().put(&Key::App(name.clone()), &own);
        let change = change.put(&Key::Port(ServicePort(port)), &given);
        let row = Proc::new(&proc, port);
        self.commit(change.put(&Key::Proc(name, proc), &row)).await
    }

    /// Has a service speak HTTP, as `procs set --protocol http` does.
    pub async fn speaks_http(&self, app_name: &str, proc_name: &str) -> Revision {
        let (proc, key) = (proc(proc_name), Key::Proc(app(app_name), proc(proc_name)));
        let mut row = self.visor.get::<Proc>(&key).await.expect("it answers").expect("it is there").value;
        settings::PROTOCOL.parse("http").expect("a word of it").apply(&proc, &mut row);
        self.commit(Change::new().put(&key, &row)).await
    }

    pub async fn forget_service(&self, app_name: &str, proc_name: &str) -> Revision {
        self.commit(Change::new().delete(&Key::Proc(app(app_name), proc(proc_name)))).await
    }

    pub async fn domain(&self, domain: &str, app_name: &str) -> Revision {
        let row = DomainRecord { app: app(app_name), extra: Extra::new() };
        self.commit(Change::new().put(&Key::Domain(domain.parse().expect("valid")), &row)).await
    }

    pub async fn forget_domain(&self, domain: &str) -> Revision {
        self.commit(Change::new().delete(&Key::Domain(domain.parse().expect("valid")))).await
    }

    /// Says that an rm serves.
    #[allow(dead_code, reason = "the bench has no use for it")]
    pub async fn rm(&self, name: &str, url: &str) -> Revision {
        let row = Rm::at(url);
        self.commit(Change::new().put(&Key::Rm(name.parse().expect("valid")), &row)).await
    }

    /// Says that instances run.
    pub async fn running(&self, of: (&str, &str), instances: &[(u64, SocketAddr)]) -> Revision {
        let addresses: BTreeSet<IpAddr> = instances.iter().map(|(_, address)| address.ip()).collect();
        let register = |change: Change, address: &IpAddr| {
            change.put(&Key::Host(host_at(*address)), &registered(*address))
        };
        let mut revision = self.commit(addresses.iter().fold(Change::new(), register)).await;
        for some in instances.chunks(MAX_TXN_OPS / 4) {
            let mut change = Change::new();
            for (id, address) in some {
                let host = host_at(address.ip());
                self.hosts().insert(*id, host.clone());
                let id = InstanceId(*id);
                let mut status = Status::new(State::Running, jiff::Timestamp::UNIX_EPOCH);
                status.ip = Some(address.ip());
                status.port = Some(address.port());
                change = change
                    .put(&Key::Assigned(host.clone(), id), &assignment(of, Desired::Run))
                    .put(&Key::Status(host, id), &status);
            }
            revision = self.commit(change).await;
        }
        revision
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<u64, HostName>> {
        self.hosts.lock().expect("no holder of this lock panics")
    }

    /// Returns the host of an instance.
    fn host(&self, id: u64) -> HostName {
        self.hosts()[&id].clone()
    }

    /// Says that instances run that are of another release than v1.
    #[allow(dead_code, reason = "the bench has no use for it")]
    pub async fn running_of(
        &self,
        of: (&str, &str),
        release: &str,
        instances: &[(u64, SocketAddr)],
    ) -> Revision {
        self.running(of, instances).await;
        let put = |change: Change, (id, _): &(u64, SocketAddr)| {
            let mut assigned = assignment(of, Desired::Run);
            assigned.release = release.parse().expect("a release");
            change.put(&Key::Assigned(self.host(*id), InstanceId(*id)), &assigned)
        };
        self.commit(instances.iter().fold(Change::new(), put)).await
    }

    /// Says that v2 runs beside v1, and how much of the traffic it gets.
    #[allow(dead_code, reason = "the bench has no use for it")]
    pub async fn share(&self, of: (&str, &str), percent: Option<u32>) -> Revision {
        let v2: ReleaseId = "v2".parse().expect("a release");
        let formation = Formation {
            count: 1,
            beside: [(v2, 1)].into(),
            weights: percent.map(|percent| (v2, percent)).into_iter().collect(),
            ..Formation::default()
        };
        self.commit(Change::new().put(&Key::Formation(app(of.0), proc(of.1)), &formation)).await
    }

    /// Says that instances are to be drained or stopped.
    pub async fn desire(&self, of: (&str, &str), ids: &[u64], desired: Desired) -> Revision {
        let put = |change: Change, id: &u64| {
            change.put(&Key::Assigned(self.host(*id), InstanceId(*id)), &assignment(of, desired))
        };
        self.commit(ids.iter().fold(Change::new(), put)).await
    }

    /// Says that instances are in a state.
    pub async fn state(&self, ids: &[u64], state: State) -> Revision {
        let status = Status::new(state, jiff::Timestamp::UNIX_EPOCH);
        let put =
            |change: Change, id: &u64| change.put(&Key::Status(self.host(*id), InstanceId(*id)), &status);
        self.commit(ids.iter().fold(Change::new(), put)).await
    }

    /// Takes instances' rows away.
    pub async fn forget(&self, ids: &[u64]) -> Revision {
        let delete = |change: Change, id: &u64| {
            change
                .delete(&Key::Assigned(self.host(*id), InstanceId(*id)))
                .delete(&Key::Status(self.host(*id), InstanceId(*id)))
        };
        self.commit(ids.iter().fold(Change::new(), delete)).await
    }

    /// Waits until the proxy says that a revision is in force.
    pub async fn applied(&self, revision: Revision) -> Proxy {
        until("the revision is in force", PATIENCE, async || match self.row().await {
            Some(row) if row.applied >= revision => Ok(row.value),
            other => Err(format!("wanted {revision}, got {:?}\n{}", other.map(|row| row.value), self.log())),
        })
        .await
    }

    /// Waits until these instances, and no others, have sessions that end.
    pub async fn wait_busy(&self, expected: &[u64]) {
        until("busy is as expected", PATIENCE, async || {
            let row = self.row().await.ok_or("no row")?;
            let busy: Vec<u64> = row.busy.iter().map(|id| id.0).collect();
            if busy == expected { Ok(()) } else { Err(format!("{busy:?}\n{}", self.log())) }
        })
        .await;
    }

    /// Asks an app through the public port.
    pub async fn ask(&self, host: &str) -> Result<http::Answer, String> {
        http::get(self.public, host, "/").await
    }

    /// Waits until a host is answered by this instance.
    pub async fn wait_answer(&self, host: &str, name: &str) {
        until("the host is answered", PATIENCE, async || match self.ask(host).await {
            Ok(answer) if answer.status == 200 && answer.body.trim() == name => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// How often each instance answers.
    pub async fn spread(&self, host: &str, times: usize) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for _ in 0..times {
            let answer = self.ask(host).await.expect("it answers");
            assert_eq!(answer.status, 200, "{answer:?}");
            *spread.entry(answer.body.trim().to_owned()).or_default() += 1;
        }
        spread
    }

    /// A metric's value.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.endpoint("/metrics").await.expect("the endpoint answers").body;
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            let _ = proxy.kill();
            let _ = proxy.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn registered(address: IpAddr) -> Host {
    Host {
        address,
        url: format!("http://{address}:1"),
        zone: "default".parse().expect("valid"),
        version: "0".into(),
        capacity: Capacity { memory_bytes: 1 << 30, instances: 100, extra: Extra::new() },
        isolation: "none".into(),
        boot_id: "b".into(),
        schema: None,
        seal_key: None,
        services: None,
        since: jiff::Timestamp::UNIX_EPOCH,
        token: "t".into(),
        extra: Extra::new(),
    }
}

fn assignment(of: (&str, &str), desired: Desired) -> Assignment {
    Assignment {
        desired,
        reason: None,
        app: app(of.0),
        proc: proc(of.1),
        release: "v1".parse().expect("valid"),
        rev: "0".repeat(40).parse().expect("valid"),
        env: "e0".parse().expect("valid"),
        slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
        command: "true".into(),
        index: 0,
        run: RunSettings { on_partition: OnPartition::Keep, ..RunSettings::default() },
        links: Default::default(),
        sources: Vec::new(),
        trial: false,
        extra: Extra::new(),
    }
}

/// An instance as a process of its own, so that it can be killed: Python's HTTP server.
pub struct Instance {
    child: Child,
    pub address: SocketAddr,
}

const SERVER: &str = r#"
import sys, time, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer goes out whole: one that is cut by a kill could not be repeated by anyone.
    wbufsize = 65536
    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        if self.path.startswith("/slow/"):
            time.sleep(int(self.path.split("/")[2]) / 1000)
        body = (sys.argv[2] + "\n").encode()
        if self.path == "/headers":
            body = str(self.headers).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = do_PUT = answer
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

impl Instance {
    pub async fn start(name: &str, folder: &Path) -> Self {
        Self::start_at(name, free_port(), folder).await
    }

    pub async fn start_at(name: &str, port: u16, folder: &Path) -> Self {
        let address = SocketAddr::new([127, 0, 0, 1].into(), port);
        let mut command = Command::new("python3");
        // The folder's name is how the guard finds it.
        command.args(["-c", SERVER, &port.to_string(), name]).arg(format!("{}/", folder.display()));
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("python3 runs");
        let instance = Instance { child, address };
        until("the instance answers", PATIENCE, async || http::get(address, "x", "/").await.map(drop)).await;
        instance
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}
