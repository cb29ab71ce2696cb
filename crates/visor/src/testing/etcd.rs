//! A real etcd for tests: own process, own ports, own data, in memory where the machine has it.
//!
//! A shell stands between the test and its etcd and waits for the end of its standard input. It kills the etcd and
//! removes its data however the test ends, even by SIGKILL.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{sync::OnceCell, time::timeout};

use super::{free_port, listeners, stand_still, until};
use crate::identity::Credentials;
use crate::store::{
    Keys, SharedStore, Store,
    etcd::{EtcdConfig, EtcdStore},
};

/// The variable with the endpoint of an etcd that all tests of a run share.
const SHARED: &str = "BAZOOKA_TEST_ETCD";

/// The longest time for a test's own calls: a machine busy enough to hold etcd up for seconds is no fault of what is
/// tested.
///
/// The tested code keeps its usual deadlines.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest time until an etcd answers. It takes a fifth of a second on an idle machine.
const START: Duration = Duration::from_secs(30);

/// The shell that starts the command of its arguments, prints its pid, and kills it at the end of its input.
///
/// It then removes the folder that is its first argument, unless the last word on its input was to keep it.
const GUARD: &str = r#"dir=$1; shift
"$@" < /dev/null > "$dir/log" 2>&1 &
child=$!
exec 2> /dev/null
echo $child
read -r word
kill -9 $child
wait $child
[ "$word" = keep ] || rm -rf "$dir"
"#;

/// A coordinator for tests. Dropping it ends it, if it was started here.
pub struct Etcd {
    endpoint: String,
    member: Option<Member>,
}

/// An etcd process and its folder.
struct Member {
    name: String,
    dir: PathBuf,
    /// The address where it serves clients. Port 0 until its first start: the kernel chooses.
    client: SocketAddrV4,
    /// The arguments about its peers, and those that a test wants.
    arguments: Vec<String>,
    /// With TLS: its own identity, and one that may ask whether it answers.
    tls: Option<(PathBuf, Credentials)>,
    run: Option<Run>,
}

/// One run of an etcd process.
struct Run {
    guard: Child,
    pid: Pid,
}

/// A cluster of several etcds. Dropping it ends them.
pub struct EtcdCluster {
    members: Vec<Member>,
}

impl Etcd {
    /// Starts an etcd of the test's own.
    ///
    /// # Panics
    /// If there is no etcd, or if it doesn't start.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts an etcd with more arguments: `--quota-backend-bytes=...`.
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub async fn start_with(arguments: &[&str]) -> Self {
        let mut member = Member::new("default", alone(arguments));
        member.start();
        member.wait_until_it_answers().await;
        Self { endpoint: member.endpoint(), member: Some(member) }
    }

    /// Starts an etcd that speaks TLS with the identity in a folder.
    ///
    /// The folder has `ca.pem`, `cert.pem` and `key.pem`, for 127.0.0.1; only certificates of that authority are
    /// accepted. It also has `peers.pem`, `peer-cert.pem` and `peer-key.pem`, with which the etcd listens for peers at
    /// `peer`. `observer` is the identity with which this code asks it.
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub async fn start_tls(identity: &Path, peer: SocketAddrV4, observer: Credentials) -> Self {
        let file = |flag: &str, name: &str| format!("--peer-{flag}={}", identity.join(name).display());
        let peers_tls = [
            file("cert-file", "peer-cert.pem"),
            file("key-file", "peer-key.pem"),
            file("trusted-ca-file", "peers.pem"),
            "--peer-client-cert-auth".to_owned(),
        ];
        let mut arguments = alone_at(&format!("https://{peer}"));
        arguments.extend(peers_tls);
        let mut member = Member::new("default", arguments);
        member.tls = Some((identity.to_owned(), observer));
        member.start();
        member.wait_until_it_answers().await;
        Self { endpoint: member.endpoint(), member: Some(member) }
    }

    /// Returns the etcd that the tests of a run share: the environment's, or one for this process.
    ///
    /// Never stop it, fill it or compact it: other tests are using it.
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub async fn shared() -> &'static Self {
        static ONE: OnceCell<Etcd> = OnceCell::const_new();
        ONE.get_or_init(|| async {
            match std::env::var(SHARED) {
                Ok(endpoint) => Self { endpoint, member: None },
                Err(_) => Self::start().await,
            }
        })
        .await
    }

    /// Returns its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns a store on it, below a prefix of its own.
    pub fn store(&self) -> SharedStore {
        Arc::new(EtcdStore::new(self.config()))
    }

    /// Returns a configuration for it, with a prefix of its own.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig::new(vec![self.endpoint.clone()], fresh_prefix())
    }

    /// Stops its process (SIGSTOP): connections stay open, nothing answers.
    pub fn pause(&self) {
        self.own().pause();
    }

    /// Resumes its process.
    pub fn resume(&self) {
        self.own().signal(Signal::SIGCONT);
    }

    /// Kills it (SIGKILL). Its data stays.
    pub fn kill(&mut self) {
        self.own_mut().kill();
    }

    /// Kills it and deletes its data.
    pub fn lose(&mut self) {
        self.kill();
        // Files that cannot be removed show when it is started again.
        let _ = fs::remove_dir_all(self.data_dir());
    }

    /// Returns the folder of its data.
    pub fn data_dir(&self) -> PathBuf {
        self.own().dir.join("data")
    }

    /// Starts it again, with its data and at its old endpoint.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self) {
        let member = self.own_mut();
        member.kill();
        member.start();
        member.wait_until_it_answers().await;
    }

    fn own(&self) -> &Member {
        self.member.as_ref().expect("the run's shared etcd is not this test's to disturb")
    }

    fn own_mut(&mut self) -> &mut Member {
        self.member.as_mut().expect("the run's shared etcd is not this test's to disturb")
    }
}

/// Returns a store with long deadlines, for a test's own calls.
pub fn observer(endpoint: &str, prefix: &str) -> SharedStore {
    observer_as(endpoint, prefix, None)
}

/// Returns the same store with an identity.
pub fn observer_as(endpoint: &str, prefix: &str, credentials: Option<Credentials>) -> SharedStore {
    let usual = EtcdConfig::new(vec![endpoint.to_owned()], prefix);
    let config = EtcdConfig { connect_timeout: PATIENCE, call_timeout: PATIENCE, credentials, ..usual };
    Arc::new(EtcdStore::new(config))
}

/// Returns a prefix that no other test has, in whatever process.
pub fn fresh_prefix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("/test-{}-{}-{count}", std::process::id(), now.as_nanos())
}

impl EtcdCluster {
    /// Starts a cluster.
    ///
    /// # Panics
    /// If there is no etcd, or if one doesn't start.
    pub async fn start(size: usize) -> Self {
        // Peers must know each other's ports before they start.
        let peers: Vec<String> =
            (0..size).map(|n| format!("m{n}=http://127.0.0.1:{}", free_port())).collect();
        let mut members: Vec<Member> = peers
            .iter()
            .map(|peer| {
                let (name, url) = peer.split_once('=').expect("they were put together so");
                let arguments = vec![
                    format!("--listen-peer-urls={url}"),
                    format!("--initial-advertise-peer-urls={url}"),
                    format!("--initial-cluster={}", peers.join(",")),
                    "--initial-cluster-token=bazooka-test".to_owned(),
                ];
                Member::new(name, arguments)
            })
            .collect();
        members.iter_mut().for_each(Member::start);
        for member in &mut members {
            member.wait_until_it_answers().await;
        }
        Self { members }
    }

    /// Returns a configuration for all members, with a prefix of its own.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig::new(self.members.iter().map(Member::endpoint).collect(), fresh_prefix())
    }

    /// Returns the position of the leading member among the endpoints.
    ///
    /// # Panics
    /// If no member leads.
    pub async fn leader(&self) -> usize {
        until("a member leads", START, || async {
            for (at, member) in self.members.iter().enumerate() {
                let asked = async {
                    let mut client = etcd_client::Client::connect([member.endpoint()], None).await?;
                    let status = client.status().await?;
                    let own = status.header().map(etcd_client::ResponseHeader::member_id);
                    Ok::<_, etcd_client::Error>(own == Some(status.leader()))
                };
                if let Ok(Ok(true)) = timeout(Duration::from_secs(1), asked).await {
                    return Ok(at);
                }
            }
            Err("none says so".to_owned())
        })
        .await
    }

    /// Stops a member (SIGSTOP).
    pub fn pause(&self, at: usize) {
        self.members[at].pause();
    }

    /// Resumes a member.
    pub fn resume(&self, at: usize) {
        self.members[at].signal(Signal::SIGCONT);
    }

    /// Kills a member (SIGKILL). Its data stays.
    pub fn kill(&mut self, at: usize) {
        self.members[at].kill();
    }

    /// Starts a member again.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.kill();
        member.start();
        member.wait_until_it_answers().await;
    }
}

/// Returns the arguments of an etcd without peers, and more.
fn alone(more: &[&str]) -> Vec<String> {
    // Port 0: the kernel chooses. No peer will call there.
    let mut arguments = alone_at("http://127.0.0.2:0");
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    arguments
}

/// Returns the arguments of an etcd without peers that listens for them at a URL.
fn alone_at(peer: &str) -> Vec<String> {
    vec![
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ]
}

impl Member {
    fn new(name: &str, arguments: Vec<String>) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new()
            .prefix("bazooka-test-etcd-")
            .tempdir_in(parent)
            .expect("a folder for etcd's data can be made");
        let client = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        // From here on, the guard removes it.
        Self { name: name.to_owned(), dir: dir.keep(), client, arguments, tls: None, run: None }
    }

    fn endpoint(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.client)
    }

    fn start(&mut self) {
        let client = self.endpoint();
        let own = [
            format!("--name={}", self.name),
            format!("--data-dir={}", self.dir.join("data").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let tls = self.tls.iter().flat_map(|(identity, _)| {
            let file = |flag: &str, name: &str| format!("--{flag}={}", identity.join(name).display());
            [
                file("cert-file", "cert.pem"),
                file("key-file", "key.pem"),
                file("trusted-ca-file", "ca.pem"),
                "--client-cert-auth".to_owned(),
            ]
        });
        let tls: Vec<String> = tls.collect();
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(&self.dir)
            .arg("etcd")
            .args(own.iter().chain(&tls).chain(&self.arguments))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let mut line = String::new();
        BufReader::new(guard.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("the guard says the pid of its child");
        let pid = line.trim().parse().expect("the guard says a pid");
        self.run = Some(Run { guard, pid: Pid::from_raw(pid) });
    }

    /// Waits until its own process listens at the right address, and answers.
    async fn wait_until_it_answers(&mut self) {
        let pid = self.run.as_ref().expect("it was started").pid;
        let (ip, port) = (*self.client.ip(), self.client.port());
        let found = until("etcd listens", START, || async {
            let listening = listeners(u32::try_from(pid.as_raw()).expect("a process id fits"));
            let found = listening.iter().find(|at| *at.ip() == ip && (port == 0 || at.port() == port));
            if let Some(at) = found {
                return Ok(*at);
            }
            if !Path::new(&format!("/proc/{pid}/exe")).exists() {
                panic!("{}", self.why_it_ended());
            }
            Err(format!("{listening:?}"))
        })
        .await;
        self.client = found;
        let credentials = self.tls.as_ref().map(|(_, observer)| observer.clone());
        let config = EtcdConfig::new(vec![self.endpoint()], "/probe");
        let store = EtcdStore::new(EtcdConfig { credentials, ..config });
        until("etcd answers", START, || async {
            let answer = store.range(Keys::One("probe".to_owned()), None).await;
            match answer {
                // A refusal for lack of rights is an answer too.
                Err(error) if !error.is_denied() => Err(format!("{error:?}")),
                _ => Ok(()),
            }
        })
        .await;
    }

    fn why_it_ended(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        if log.contains("not found") {
            "there is no etcd on this machine; hint: apt-get install etcd-server".to_owned()
        } else {
            format!("etcd ended as it started; its log:\n{log}")
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(run) = &self.run {
            kill(run.pid, signal).expect("the guard hasn't reaped it: it is still there");
        }
    }

    fn pause(&self) {
        if let Some(run) = &self.run {
            stand_still(run.pid);
        }
    }

    fn kill(&mut self) {
        self.end("keep\n");
    }

    fn end(&mut self, word: &str) {
        let Some(mut run) = self.run.take() else { return };
        if let Some(mut input) = run.guard.stdin.take() {
            // If the guard has gone, nothing is left to end.
            let _ = input.write_all(word.as_bytes());
        }
        let _ = run.guard.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.run.is_some() {
            self.end("");
        } else {
            // The guard of its last run was told to keep the folder.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
