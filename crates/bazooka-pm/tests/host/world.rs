//! What the tests of a host stand on: a real etcd, a real bazooka-pm, a server of slugs, and a converger's hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path as UrlPath, State as Served},
    http::StatusCode,
    routing::get,
};
use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::{Digest as _, Sha256};
use visor::{
    keys::Key,
    links::Link,
    names::{Digest, EnvRef, HostName, InstanceId, ReleaseId},
    schema::{
        Ask, Assignment, Check, Desired, Env, Extra, Handed, Host, Rm, RunSettings, Slug, State, Status,
    },
    seal::{DataKey, EnvOf, Os, PublicKey, Vars},
    snapshot::Versioned,
    store::SharedStore,
    testing::{Claim, Etcd, fresh_prefix, is_free, observer, until},
    transitions::placement::advance,
    visor::{Change, Visor},
};

/// How long a condition may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// A program that listens on $PORT at once and dies at SIGTERM.
pub const SERVER: &str = "exec python3 -u serve.py";

const SERVE: &str = r#"
import os, socket, sys, time, signal
if "SLOW" in os.environ: time.sleep(float(os.environ["SLOW"]))
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((os.environ.get("BIND", "0.0.0.0"), int(os.environ.get("OTHER_PORT", os.environ["PORT"])))); s.listen(64)
print("listening", flush=True)
while True:
    c, _ = s.accept(); c.recv(4096)
    status = os.environ.get("ANSWER", "200 OK")
    c.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".encode()); c.close()
"#;

/// What the slug server serves.
#[derive(Default)]
pub struct Shelf {
    /// By digest.
    pub slugs: BTreeMap<String, Vec<u8>>,
    /// How often each was asked for.
    pub asked: BTreeMap<String, u32>,
}

type SharedShelf = Arc<Mutex<Shelf>>;

/// One host and what it needs.
pub struct World {
    pub visor: Visor,
    pub store: SharedStore,
    pub host: HostName,
    pub dir: tempfile::TempDir,
    pub shelf: SharedShelf,
    pub slug: Slug,
    /// Where slugs are served.
    pub rm_url: String,
    pub on_exit: &'static str,
    pub pm_args: Vec<String>,
    /// Who bazooka-pm is to be, where not root.
    pub setpriv_args: Vec<String>,
    pub pm_envs: BTreeMap<String, String>,
    /// What the envs that are handed over link.
    pub links: BTreeSet<Link>,
    next_id: AtomicU64,
    endpoint: String,
    prefix: String,
    pm: Option<Child>,
    pub range: (u16, u16),
    _range_claim: Claim,
}

/// Whether this machine can give instances a sandbox; it is said if not.
pub fn has_sandboxes() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let probed = Command::new(program()).arg("probe").output().expect("it can be run");
        if !probed.status.success() {
            eprintln!("not tried in a sandbox: {}", String::from_utf8_lossy(&probed.stderr));
        }
        probed.status.success()
    })
}

impl World {
    /// A host with a running bazooka-pm.
    pub async fn start() -> World {
        let mut world = World::without_pm().await;
        world.start_pm();
        world.registered().await;
        world
    }

    /// All but the bazooka-pm.
    pub async fn without_pm() -> World {
        let etcd = Etcd::shared().await;
        let prefix = fresh_prefix();
        let store = observer(etcd.endpoint(), &prefix);
        World::over(store, etcd.endpoint().to_owned(), prefix).await
    }

    /// All but the bazooka-pm, over this store.
    pub async fn over(store: SharedStore, endpoint: String, prefix: String) -> World {
        let visor = Visor::new(store.clone());
        visor.set_up().await.expect("etcd answers");
        let dir = tempfile::Builder::new().prefix("bazooka-pm-test.").tempdir().expect("a folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the mode can be set");
        let shelf = SharedShelf::default();
        let slug = shelve(&shelf, &[("serve.py", SERVE)]);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let routes = Router::new().route("/slugs/{digest}", get(serve)).with_state(shelf.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let lease = store.grant(Duration::from_secs(600)).await.expect("etcd answers");
        let rm = Rm::at(url.clone());
        visor
            .publish_rm(&"rm1".parse().expect("valid"), &rm, &Ask::new("word"), lease)
            .await
            .expect("etcd answers");
        let (first, lock) = free_range();
        World {
            visor,
            store,
            host: "host1".parse().expect("valid"),
            dir,
            shelf,
            slug,
            rm_url: url,
            on_exit: "stop",
            pm_args: Vec::new(),
            setpriv_args: Vec::new(),
            pm_envs: BTreeMap::new(),
            links: BTreeSet::new(),
            next_id: AtomicU64::new(1),
            endpoint,
            prefix,
            pm: None,
            range: (first + 1, first + 199),
            _range_claim: lock,
        }
    }

    /// Makes this world's bazooka-pm one of another world's cluster.
    pub fn follow(&mut self, other: &World) {
        self.endpoint.clone_from(&other.endpoint);
        self.prefix.clone_from(&other.prefix);
    }

    /// Where the coordinator is.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts bazooka-pm, again if it was ended.
    pub fn start_pm(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("pm.log"));
        let log = log.expect("it can be written");
        let mut setpriv = Command::new("setpriv");
        if self.setpriv_args.is_empty() && !has_sandboxes() && nix::unistd::geteuid().is_root() {
            setpriv.env("BAZOOKA_ISOLATION", "uid");
        }
        // It ends with this test, however that ends.
        let child = setpriv
            .args(["--pdeathsig", "TERM"])
            .args(&self.setpriv_args)
            .args(["--", &program()])
            .args(["--coordinator", &self.endpoint, "--prefix", &self.prefix])
            .args(["--host", self.host.as_str(), "--address", "127.0.0.1", "--listen", "127.0.0.1:0"])
            .args(["--ports", &format!("{}-{}", self.range.0, self.range.1)])
            .args(["--on-exit", self.on_exit])
            .arg("--state")
            .arg(self.state())
            .args(&self.pm_args)
            .env("BAZOOKA_LOG", std::env::var("BAZOOKA_LOG").unwrap_or_else(|_| "debug".into()))
            .envs(&self.pm_envs)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.pm = Some(child.expect("setpriv is there"));
    }

    /// Kills bazooka-pm (SIGKILL).
    pub fn kill_pm(&mut self) {
        if let Some(mut pm) = self.pm.take() {
            pm.kill().expect("it is not reaped yet");
            pm.wait().expect("it is ours");
        }
    }

    /// Waits until bazooka-pm has died by itself.
    pub async fn pm_died(&mut self) {
        let pm = Mutex::new(self.pm.take().expect("it was started"));
        until("bazooka-pm has died", SOON, || async {
            match pm.lock().expect("nobody panics with it").try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Ends bazooka-pm (SIGTERM), and waits.
    pub fn stop_pm(&mut self) {
        if let Some(mut pm) = self.pm.take() {
            signal(i32::try_from(pm.id()).expect("process ids fit"), Signal::SIGTERM);
            pm.wait().expect("it is ours");
        }
    }

    /// Waits until the host is registered.
    pub async fn registered(&self) -> Versioned<Host> {
        until("the host is registered", SOON, || async {
            let host =
                self.visor.get(&Key::Host(self.host.clone())).await.map_err(|error| error.to_string())?;
            host.ok_or_else(|| format!("no row; bazooka-pm says:\n{}", self.pm_log()))
        })
        .await
    }

    pub fn pm_pid(&self) -> u32 {
        self.pm.as_ref().expect("it was started").id()
    }

    pub fn pm_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("pm.log")).unwrap_or_default()
    }

    /// An assignment of this command as proc `web`.
    pub fn web(&self, command: &str) -> Assignment {
        self.assignment("web", command)
    }

    /// An assignment of this command as proc `job`.
    pub fn job(&self, command: &str) -> Assignment {
        self.assignment("job", command)
    }

    fn assignment(&self, proc: &str, command: &str) -> Assignment {
        Assignment {
            desired: Desired::Run,
            reason: None,
            app: "rocket".parse().expect("valid"),
            proc: proc.parse().expect("valid"),
            release: ReleaseId(1),
            rev: "16f7cbf0123456789012345678901234567890ab".parse().expect("valid"),
            env: EnvRef(0),
            slug: self.slug.clone(),
            command: command.into(),
            index: 0,
            run: RunSettings { stop_timeout_ms: Some(2_000), ..RunSettings::default() },
            links: Default::default(),
            sources: Vec::new(),
            trial: false,
            extra: Extra::new(),
        }
    }

    /// Writes an env and returns its ref.
    pub async fn env(&self, number: u32, vars: &[(&str, &str)]) -> EnvRef {
        let env = EnvRef(number);
        let host: Versioned<Host> = until("the host is registered", SOON, || async {
            let row =
                self.visor.get(&Key::Host(self.host.clone())).await.map_err(|error| error.to_string())?;
            row.ok_or_else(|| "no row".to_owned())
        })
        .await;
        let to = host.seal_key.clone().expect("it can open envs");
        self.hand(env, &to, vars).await;
        env
    }

    /// Hands an env to this host as the converger would, wrapped for this key.
    pub async fn hand(&self, env: EnvRef, to: &PublicKey, vars: &[(&str, &str)]) {
        let app = "rocket".parse().expect("valid");
        let (key, vars) = (DataKey::fresh(&mut Os), vars_of(vars));
        let registration = "of-rocket";
        let of = EnvOf { app: &app, registration: Some(registration), env };
        let (sealed, key) = (key.seal(of, &vars, &mut Os), key.wrap(to, &mut Os));
        let (links, registration) = (self.links.clone(), Some(registration.to_owned()));
        let handed = Handed { sealed, to: to.clone(), key, links, registration, extra: Extra::new() };
        let row = Key::Handed(self.host.clone(), app, env);
        self.visor.commit(Change::new().put(&row, &handed)).await.expect("etcd answers");
    }

    /// Writes an env as version 1 did.
    pub async fn plain_env(&self, number: u32, vars: &[(&str, &str)]) -> EnvRef {
        let (env, vars) = (EnvRef(number), Some(vars_of(vars)));
        let row = Env {
            sealed: None,
            vars,
            links: Default::default(),
            by: "test".into(),
            at: Timestamp::now(),
            extra: Extra::new(),
        };
        let key = Key::Env("rocket".parse().expect("valid"), env);
        self.visor.commit(Change::new().put(&key, &row)).await.expect("etcd answers");
        env
    }

    /// Places one instance here.
    pub async fn place(&self, assignment: Assignment) -> InstanceId {
        self.place_all(vec![assignment]).await[0]
    }

    /// Places instances here, as many in a transaction as the converger would.
    pub async fn place_all(&self, assignments: Vec<Assignment>) -> Vec<InstanceId> {
        let first = self.next_id.fetch_add(assignments.len() as u64, Ordering::Relaxed);
        let rows: Vec<_> = (first..).map(InstanceId).zip(assignments).collect();
        for batch in rows.chunks(60) {
            let change = batch.iter().fold(Change::new(), |change, (id, assignment)| {
                change.put(&Key::Assigned(self.host.clone(), *id), assignment)
            });
            self.visor.commit(change).await.expect("etcd answers");
        }
        rows.into_iter().map(|(id, _)| id).collect()
    }

    /// Tells what is wanted of an instance from now on.
    pub async fn want(&self, id: InstanceId, desired: Desired) {
        let key = Key::Assigned(self.host.clone(), id);
        let assigned: Versioned<Assignment> =
            self.visor.get(&key).await.expect("etcd answers").expect("it is assigned");
        let change = advance(&self.host, id, &assigned, desired, "the test wants it");
        self.visor.commit(change).await.expect("etcd answers");
    }

    /// Takes an assignment away without a word.
    pub async fn unassign(&self, id: InstanceId) {
        let change = Change::new().delete(&Key::Assigned(self.host.clone(), id));
        self.visor.commit(change).await.expect("etcd answers");
    }

    pub async fn status(&self, id: InstanceId) -> Option<Status> {
        let key = Key::Status(self.host.clone(), id);
        let row: Option<Versioned<Status>> = self.visor.get(&key).await.expect("etcd answers");
        row.map(|row| row.value)
    }

    /// Waits until an instance's status is as wanted.
    pub async fn until_status(&self, id: InstanceId, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        until(&format!("{id} {what}"), SOON, || async {
            match self.status(id).await {
                Some(status) if is(&status) => Ok(status),
                other => Err(format!("{other:#?}\nbazooka-pm says:\n{}", tail(&self.pm_log()))),
            }
        })
        .await
    }

    /// Waits until an instance is in a state.
    pub async fn until_state(&self, id: InstanceId, state: State) -> Status {
        self.until_status(id, &format!("is {state:?}"), |status| status.state == state).await
    }

    /// What bazooka-pm answers to `GET /logs?query`.
    pub async fn logs(&self, query: &str) -> Vec<serde_json::Value> {
        let url = self.registered().await.url.clone();
        let client = bazooka_daemon::http_client(None).build().expect("it can be made");
        let answer = client.get(format!("{url}/logs?{query}")).send().await.expect("it answers");
        let text = answer.text().await.expect("it is text");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    /// Waits until a line was written, and returns all of the answer.
    pub async fn until_logged(&self, query: &str, wanted: &str) -> Vec<serde_json::Value> {
        self.until_logged_within(SOON, query, wanted).await
    }

    /// Waits until a line is logged, and returns all lines. For an instance that has seconds of work before it.
    pub async fn until_logged_within(
        &self,
        within: Duration,
        query: &str,
        wanted: &str,
    ) -> Vec<serde_json::Value> {
        until(&format!("{wanted:?} is logged"), within, || async {
            let logs = self.logs(query).await;
            if logs.iter().any(|line| line["line"] == wanted) { Ok(logs) } else { Err(format!("{logs:#?}")) }
        })
        .await
    }

    /// The processes of an instance; dead ones don't count.
    pub fn processes(&self, id: InstanceId) -> Vec<i32> {
        self.processes_with(&format!("BAZOOKA_INSTANCE={id}"))
    }

    /// All processes of instances of this world.
    pub fn all_processes(&self) -> Vec<i32> {
        self.processes_with("BAZOOKA_APP=rocket")
    }

    /// Ports tell a world's instances from another's.
    fn processes_with(&self, var: &str) -> Vec<i32> {
        all_pids()
            .filter(|pid| {
                let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let vars: Vec<_> = environ.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
                let port = vars.iter().find_map(|own| own.strip_prefix("PORT=")?.parse().ok());
                vars.iter().any(|own| own == var)
                    && port.is_some_and(|port: u16| (self.range.0..=self.range.1).contains(&port))
            })
            .collect()
    }

    /// The shims of this world, without their copies that are process 1 of a sandbox.
    pub fn shims(&self) -> Vec<i32> {
        let root = self.state().display().to_string();
        all_pids()
            .filter(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
                ids.split_whitespace().count() == 1
            })
            .filter(|pid| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words);
                words.contains("bazooka-shim") && words.contains(&root)
            })
            .collect()
    }

    pub async fn until_no_process(&self, id: InstanceId) {
        until("nothing of it runs", SOON, || async {
            let left = self.processes(id);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.pm.is_none() && !self.shims().is_empty() {
            self.pm_envs.clear();
            self.on_exit = "stop";
            self.start_pm();
            // It is there as soon as it has the lock; until then it would not know whom to end.
            let begun = std::time::Instant::now();
            while self.pm_log().matches("taking over").count() == 0 && begun.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.stop_pm();
        if std::thread::panicking() {
            eprintln!("--- bazooka-pm says\n{}", tail(&self.pm_log()));
        }
        for pid in self.shims().into_iter().chain(self.all_processes()) {
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// Puts a slug of these files on the shelf.
pub fn shelve(shelf: &SharedShelf, files: &[(&str, &str)]) -> Slug {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, content.as_bytes()).expect("it is in memory");
    }
    let tar = builder.into_inner().expect("it is in memory");
    let bytes = zstd::encode_all(&tar[..], 3).expect("it is in memory");
    let digest = format!("{:x}", Sha256::digest(&bytes));
    let slug = Slug { sha256: digest.parse::<Digest>().expect("a digest"), size_bytes: bytes.len() as u64 };
    shelf.lock().expect("nobody panics with it").slugs.insert(digest, bytes);
    slug
}

async fn serve(
    Served(shelf): Served<SharedShelf>,
    UrlPath(digest): UrlPath<String>,
) -> Result<Vec<u8>, StatusCode> {
    let mut shelf = shelf.lock().expect("nobody panics with it");
    *shelf.asked.entry(digest.clone()).or_insert(0) += 1;
    shelf.slugs.get(&digest).cloned().ok_or(StatusCode::NOT_FOUND)
}

/// The bazooka-pm to be tested: this build's, or another one for a measurement.
fn program() -> String {
    std::env::var("BAZOOKA_TEST_PM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_bazooka-pm").into())
}

/// The web check, over HTTP.
pub fn http_check(path: &str) -> Option<Check> {
    Some(Check::Http { path: path.parse().expect("valid") })
}

pub fn signal(pid: i32, signal: Signal) {
    // It may have gone by itself.
    let _ = kill(Pid::from_raw(pid), signal);
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn all_pids() -> impl Iterator<Item = i32> {
    let listed = fs::read_dir("/proc").expect("there is /proc");
    listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Asks an instance, and returns the first line of its answer.
pub fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Two hundred ports for one test, on which nobody listens.
fn free_range() -> (u16, Claim) {
    let begin = u16::try_from(std::process::id() % 40).expect("it is below 40");
    (0..40)
        .map(|step| 22_000 + (begin + step) % 40 * 200)
        .find_map(|first| {
            let claim = Claim::take(&format!("range-{first}"))?;
            (first..first + 200).all(is_free).then_some((first, claim))
        })
        .expect("one of the ranges is free")
}

fn vars_of(vars: &[(&str, &str)]) -> Vars {
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    vars.collect::<BTreeMap<_, _>>().into()
}
