//! Callers that say nothing, in numbers: idle connections to each daemon's endpoint, while people work.

use std::{
    fs::{self, File},
    io::Read,
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bazooka_daemon::http_client;
use bazooka_tests::{Cluster, ClusterOptions, Endpoint, OPERATOR, Repo, SOON, program, until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::pem::PemObject};

/// How many connections to each endpoint say nothing at all, and how many say nothing after a handshake.
const PLAIN: usize = 1_100;
const TLS: usize = 300;

/// The pause before closed connections are made again. Without one, the test would be about a machine without a free
/// processor: an endpoint holds some of them only, and closes the others at once.
const AGAIN: Duration = Duration::from_secs(1);

const DAEMONS: [Endpoint; 4] = [Endpoint::Rm, Endpoint::Host(1), Endpoint::Proxy, Endpoint::Converger];

/// A server that prints each path that it is asked for.
const TALKER: &str = "import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('asked for', self.path, flush=True)
        self.send_response(200)
        self.send_header('Content-Length', '3')
        self.end_headers()
        self.wfile.write(b'ok\\n')
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Page).serve_forever()
";

/// Connections to one endpoint that say nothing. Each that is closed is made again.
struct Flood {
    end: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn of(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Flood {
        let (end, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_over, count) = (end.clone(), made.clone());
        let thread = std::thread::spawn(move || {
            // Held as long as the server holds them. Where there is no TLS, they are all of the first kind.
            let greeted: Vec<_> = match &tls {
                Some(config) => (0..TLS).filter_map(|_| greeted(address, config.clone())).collect(),
                None => Vec::new(),
            };
            let most = PLAIN + TLS - greeted.len();
            let mut silent: Vec<TcpStream> = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                silent.retain_mut(is_open);
                while silent.len() < most && !is_over.load(Ordering::Relaxed) {
                    let Ok(stream) = TcpStream::connect(address) else { break };
                    stream.set_nonblocking(true).expect("a socket takes it");
                    silent.push(stream);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(AGAIN);
            }
        });
        Flood { end, made, thread: Some(thread) }
    }

    fn is_up(&self) -> bool {
        self.made.load(Ordering::Relaxed) >= PLAIN
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_open(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// A connection after its handshake, without a certificate.
fn greeted(address: SocketAddr, config: Arc<ClientConfig>) -> Option<(ClientConnection, TcpStream)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut connection = ClientConnection::new(config, address.ip().into()).ok()?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).ok()?;
    }
    Some((connection, stream))
}

fn without_certificate(cluster: &Cluster) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authority = cluster.folder("id/rm:rm1/ca.pem");
    let authority = rustls::pki_types::CertificateDer::from_pem_file(authority).expect("a certificate");
    roots.add(authority).expect("a certificate");
    let config = ClientConfig::builder_with_provider(visor::identity::tls_provider())
        .with_safe_default_protocol_versions()
        .expect("ring knows them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// `bazooka logs -f`, with what it has printed in a file.
struct Follower {
    child: Child,
    file: std::path::PathBuf,
}

impl Follower {
    fn of(repo: &Repo, file: std::path::PathBuf) -> Follower {
        let mut command = repo.command(&program("bazooka").display().to_string(), &["logs", "-f"]);
        let out = File::create(&file).expect("it can be made");
        let child = command.stdout(out).stderr(Stdio::null()).spawn().expect("it can be started");
        Follower { child, file }
    }

    fn sees(&self, word: &str) {
        until(&format!("the follower sees {word:?}"), SOON, || {
            let said = fs::read_to_string(&self.file).unwrap_or_default();
            if said.contains(word) { Ok(()) } else { Err(said) }
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ids of HAProxy's processes.
fn haproxy(cluster: &Cluster) -> Vec<i32> {
    let socket = format!("{}/master.sock", cluster.folder("proxy").display());
    let pids = fs::read_dir("/proc")
        .expect("it is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let names = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("haproxy") && line.contains(&socket)
    };
    pids.filter(names).collect()
}

/// The value of a metric of a daemon, summed over its labels.
fn metric(cluster: &Cluster, endpoint: Endpoint, guarded: bool, name: &str) -> f64 {
    let (_, runtime) = cluster.visor();
    let credentials = guarded.then(|| cluster.credentials("rm:rm1"));
    let client = http_client(credentials.as_ref()).timeout(SOON).build().expect("made");
    let scheme = if guarded { "https" } else { "http" };
    let url = format!("{scheme}://{}/metrics", cluster.at(endpoint));
    let text = runtime.block_on(async { client.get(url).send().await?.text().await });
    let text = text.unwrap_or_else(|error| panic!("{endpoint:?} doesn't answer: {error:?}"));
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn idle_connections_disturb_nobody(guarded: bool) {
    // Daemons begin with the kernel's usual limit. This process needs more than that.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked for");
    setrlimit(Resource::RLIMIT_NOFILE, 1_024, hard).expect("it can be lowered");
    let mut cluster = Cluster::with(ClusterOptions { identities: guarded, ..ClusterOptions::default() });
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("it can be raised");
    let repo = if guarded { cluster.repo_of("talker", OPERATOR) } else { cluster.repo("talker") };
    repo.write("server.py", TALKER).write("Procfile", "web: python3 server.py\n");
    repo.commit("talk");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let ask = |cluster: &Cluster, path: &str| {
        let url = format!("http://{}{path}", cluster.at(Endpoint::Public));
        bazooka_tests::get(&url, Some(&cluster.name_of("talker")))
    };
    cluster.answers("talker");
    let follower = Follower::of(&repo, cluster.folder("followed"));
    ask(&cluster, "/before");
    follower.sees("asked for /before");
    let before = haproxy(&cluster);
    assert!(before.len() >= 2, "a master and a worker: {before:?}");

    let tls = guarded.then(|| without_certificate(&cluster));
    let floods: Vec<Flood> =
        DAEMONS.map(|daemon| Flood::of(cluster.socket(daemon), tls.clone())).into_iter().collect();
    until("all endpoints are flooded", SOON * 2, || {
        match floods.iter().filter(|flood| !flood.is_up()).count() {
            0 => Ok(()),
            missing => Err(format!("{missing} endpoints aren't")),
        }
    });

    // The follower that was there stays, and a new one comes in.
    ask(&cluster, "/during");
    follower.sees("asked for /during");
    Follower::of(&repo, cluster.folder("followed too")).sees("asked for /during");
    // Routing goes on, with the same HAProxy.
    repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    assert_eq!(haproxy(&cluster), before, "HAProxy isn't touched");
    // Pushes go on.
    repo.write("more", "more");
    repo.commit("more");
    repo.git(&["push", "bazooka", "master"]).ok();
    assert_eq!(ask(&cluster, "/after").status, 200);
    follower.sees("asked for /after");
    for daemon in DAEMONS {
        let open = metric(&cluster, daemon, guarded, "bazooka_endpoint_connections{");
        assert!(open > 0.0 && open <= 4_096.0, "{daemon:?} has {open} connections");
        let closed = metric(&cluster, daemon, guarded, "bazooka_endpoint_connections_closed_total{");
        assert!(closed > 0.0, "{daemon:?} has closed none");
    }
    drop(floods);
    assert_eq!(haproxy(&cluster), before, "HAProxy isn't touched");
    for name in ["rm", "converger", "proxy"] {
        assert!(cluster.part(name).is_running(), "{name} has ended");
    }
}

#[test]
fn idle_connections_disturb_nobody_in_the_clear() {
    idle_connections_disturb_nobody(false);
}

#[test]
fn idle_connections_disturb_nobody_with_tls() {
    idle_connections_disturb_nobody(true);
}
