//! `bazooka dev` with every real part: it becomes ready, it mends itself, and it leaves nothing behind.
//!
//! The daemons are looked for beside `bazooka`, as `dev` does.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// What should take a moment may take this long on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn until<T>(what: &str, condition: impl Fn() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match condition() {
            Ok(found) => return found,
            Err(seen) if begin.elapsed() > SOON => panic!("{what}: not after {SOON:?}; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A local cluster in a folder and on ports of its own.
struct Dev {
    child: Child,
    dir: TempDir,
    ports: [u16; 3],
    runs: u32,
    before: &'static [&'static str],
}

impl Dev {
    fn start() -> Dev {
        Dev::under(&[])
    }

    /// Started by these words.
    fn under(before: &'static [&'static str]) -> Dev {
        let dir = tempfile::Builder::new().prefix("bazooka-dev.").tempdir().expect("a temporary folder");
        // Instances have users of their own, and their slugs lie below.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).expect("the mode can be set");
        let ports = free_ports();
        let child = spawn(before, dir.path(), ports, 0);
        let dev = Dev { child, dir, ports, runs: 1, before };
        dev.ready();
        dev
    }

    fn again(&mut self) {
        self.child = spawn(self.before, self.dir.path(), self.ports, self.runs);
        self.runs += 1;
        self.ready();
    }

    fn ready(&self) -> String {
        until("dev is ready", || {
            let said = self.said();
            if said.lines().any(|line| line.starts_with("ready")) { Ok(said) } else { Err(said) }
        })
    }

    /// What the present run has written.
    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join(format!("dev.{}.log", self.runs - 1))).unwrap_or_default()
    }

    fn state(&self) -> PathBuf {
        state_in(self.dir.path())
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id fits");
        kill(Pid::from_raw(pid), signal).expect("it is not waited for yet");
    }

    /// Processes that were started for this cluster, whoever their parent is: id and command line.
    fn processes(&self) -> Vec<(i32, String)> {
        let state = format!("{}/", self.state().display());
        let coordinator = format!("http://127.0.0.1:{}", self.ports[0]);
        let read = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = |pid: i32| String::from_utf8_lossy(&read(pid)).replace('\0', " ");
        let pids = fs::read_dir("/proc")
            .expect("/proc is there")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.map(|pid| (pid, text(pid)))
            .filter(|(pid, text)| {
                let at = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                // An app's own process is told by where it works.
                text.contains(&state) || text.contains(&coordinator) || at.starts_with(self.state())
            })
            .filter(|(pid, _)| u32::try_from(*pid) != Ok(self.child.id()))
            .collect()
    }

    /// The address of etcd's peers: no port, but a socket where nobody else may look: a caller there writes any key.
    fn has_no_peer_port(&self) {
        let etcd = u32::try_from(self.process("etcd --name")).expect("a process id");
        let client = format!("127.0.0.1:{}", self.ports[0]).parse().expect("an address");
        assert_eq!(visor::testing::listeners(etcd), [client]);
        let folder = fs::metadata(self.state().join("etcd-peer")).expect("it is there");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&folder.permissions()) & 0o777, 0o700);
        assert!(self.state().join("etcd-peer/peer:0").exists());
    }

    fn process(&self, word: &str) -> i32 {
        let all = self.processes();
        let found = all.iter().find(|(_, command)| command.contains(word));
        found.unwrap_or_else(|| panic!("no {word} in {all:#?}")).0
    }

    fn leaves_nothing(&self) {
        until("nothing is left", || {
            let left = self.processes();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        });
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let folder = self.dir.path().join("hello");
        fs::create_dir_all(&folder).expect("the folder can be made");
        let mut command = Command::new(program);
        command.args(args).current_dir(folder).env("HOME", self.dir.path());
        command.env("BAZOOKA_COORDINATOR", format!("http://127.0.0.1:{}", self.ports[0]));
        for (who, name, email) in [("AUTHOR", "Test", "t@localhost"), ("COMMITTER", "Test", "t@localhost")] {
            command.env(format!("GIT_{who}_NAME"), name).env(format!("GIT_{who}_EMAIL"), email);
        }
        command.stdin(Stdio::null()).output().expect("it can be started")
    }

    #[track_caller]
    fn ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(program, args);
        assert!(output.status.success(), "{program} {args:?}: {output:#?}\n{}", self.said());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn bazooka(&self, args: &[&str]) -> String {
        self.ok(env!("CARGO_BIN_EXE_bazooka"), args)
    }

    /// A page of the app through HAProxy's public port.
    fn page(&self) -> Result<String, String> {
        let url = format!("http://127.0.0.1:{}/", self.ports[1]);
        let host = format!("Host: hello.localhost:{}", self.ports[1]);
        let asked = Command::new("curl").args(["-fsS", "--max-time", "5", "-H", &host, &url]).output();
        let asked = asked.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if asked.status.success() { Ok(text(&asked.stdout)) } else { Err(text(&asked.stderr)) }
    }

    /// HAProxy has the public port and the service's at 127.0.0.1, and at no other address.
    fn is_reached_by_this_machine_alone(&self) {
        let procs: serde_json::Value =
            serde_json::from_str(&self.bazooka(&["procs", "--json"])).expect("it is JSON");
        let web = procs.as_array().and_then(|rows| rows.iter().find(|row| row["proc"] == "web"));
        let service = web.and_then(|row| row["port"].as_u64()).expect("it has a port");
        for port in [self.ports[1], u16::try_from(service).expect("it is a port")] {
            TcpStream::connect(("127.0.0.1", port)).expect("HAProxy listens there");
            let elsewhere = TcpListener::bind(("127.0.0.99", port));
            assert!(elsewhere.is_ok(), "port {port} is taken on another address: {elsewhere:?}");
        }
        let said = self.said();
        assert!(said.contains("to this machine alone; --public-address 0.0.0.0 opens"), "{said}");
    }

    /// Deploys an app whose `web` says hello and whose `stubborn` doesn't heed SIGTERM.
    fn deploy(&self) {
        let folder = self.dir.path().join("hello");
        fs::create_dir_all(&folder).expect("the folder can be made");
        let server = "import http.server, os\n\
            class Page(http.server.BaseHTTPRequestHandler):\n    \
                def do_GET(self):\n        \
                    self.send_response(200)\n        \
                    self.send_header('Content-Length', '6')\n        \
                    self.end_headers()\n        \
                    self.wfile.write(b'hello\\n')\n\
            http.server.ThreadingHTTPServer(('0.0.0.0', int(os.environ['PORT'])), Page).serve_forever()\n";
        fs::write(folder.join("server.py"), server).expect("it can be written");
        fs::write(folder.join("Procfile"), "web: python3 server.py\njob: sleep 1000000\n")
            .expect("it can be written");
        self.ok("git", &["-c", "init.defaultBranch=master", "init", "-q"]);
        self.ok("git", &["add", "-A"]);
        self.ok("git", &["commit", "-q", "-m", "hello"]);
        self.bazooka(&["init"]);
        self.ok("git", &["push", "-q", "bazooka", "master"]);
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- dev said\n{}", self.said());
            // What a failed test found to be left, instances and HAProxy last.
            for (pid, _) in self.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// Where the state is: a folder in one that isn't there yet.
fn state_in(dir: &Path) -> PathBuf {
    dir.join("var/dev")
}

/// Three ports that are free, on any address, and no other test's.
fn free_ports() -> [u16; 3] {
    [0; 3].map(|_| visor::testing::free_port())
}

fn spawn(before: &[&str], dir: &Path, ports: [u16; 3], run: u32) -> Child {
    let log = File::create(dir.join(format!("dev.{run}.log"))).expect("the log can be written");
    // Some keep all they make from others: instances must reach their slugs all the same.
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$@\"", "sh"]).args(before).arg(env!("CARGO_BIN_EXE_bazooka"));
    command.arg("dev").arg("--state").arg(state_in(dir)).args(["--hosts", "2"]);
    command.args(["--coordinator-port", &ports[0].to_string(), "--public-port", &ports[1].to_string()]);
    command.args(["--rm-port", &ports[2].to_string()]);
    // What is meant for some other cluster must not reach its daemons.
    command.env("BAZOOKA_PREFIX", "/elsewhere").env("BAZOOKA_LISTEN", "127.0.0.1:1").env("ETCD_NAME", "x");
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log).spawn();
    child.expect("bazooka can be started")
}

#[test]
fn a_cluster_comes_up_runs_an_app_mends_itself_and_leaves_nothing_behind() {
    let mut dev = Dev::start();
    let said = dev.said();
    let order: Vec<usize> = ["etcd ", "rm ", "converger ", "host1 ", "host2 ", "proxy ", "ready"]
        .map(|word| {
            said.lines()
                .position(|line| line.starts_with(word))
                .unwrap_or_else(|| panic!("no {word:?}: {said}"))
        })
        .into();
    assert!(order.is_sorted(), "{said}");

    dev.deploy();
    assert!(dev.bazooka(&["scale", "web=2", "job=1"]).contains("0 -> 2 .."));
    assert_eq!(dev.page(), Ok("hello\n".into()));
    dev.is_reached_by_this_machine_alone();
    dev.has_no_peer_port();

    // Each daemon dies once, all at the same time: the app answers on, and what comes next works.
    for word in ["etcd --name", "bazooka-rm ", "converge --name", "--host host1", "bazooka-proxy "] {
        kill(Pid::from_raw(dev.process(word)), Signal::SIGKILL).expect("it runs");
    }
    assert_eq!(dev.page(), Ok("hello\n".into()));
    until("each is started again", || {
        let said = dev.said();
        let told = ["etcd:", "rm:", "converger:", "host1:", "proxy:"].map(|part| {
            said.lines()
                .any(|line| line.starts_with(part) && line.contains("SIGKILL") && line.contains("again"))
        });
        if told == [true; 5] { Ok(()) } else { Err(said) }
    });
    until("scale works again", || {
        let output = dev.run(env!("CARGO_BIN_EXE_bazooka"), &["scale", "-n", "1", "web"]);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    });
    assert_eq!(dev.page(), Ok("hello\n".into()));

    // A second one on the same folder is refused; the first doesn't notice.
    let second = Command::new(env!("CARGO_BIN_EXE_bazooka"))
        .args(["dev", "--state"])
        .arg(dev.state())
        .output()
        .expect("it can be started");
    assert_eq!(second.status.code(), Some(4), "{second:?}");

    dev.signal(Signal::SIGTERM);
    let ended = dev.child.wait().expect("it can be waited for");
    assert_eq!(ended.code(), Some(0), "{}", dev.said());
    assert_eq!(dev.processes(), [], "nothing is left when it has ended");

    // Its state is still there, and what should run runs again.
    dev.again();
    until("it answers again", || dev.page());
}

#[test]
fn on_a_machine_without_control_groups_it_says_so_and_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not tried: it takes root");
        return;
    }
    let dev = Dev::under(&["unshare", "-m", "sh", "-c", "umount -R /sys/fs/cgroup && exec \"$@\"", "sh"]);
    let said = dev.said();
    let warned = "warning: instances and builds run without limits and fence: isolation sandbox can't be had here: \
        the control groups' controllers for memory and cpu aren't mounted\n";
    assert!(said.contains(warned), "{said}");
    dev.deploy();
    dev.bazooka(&["scale", "web=1"]);
    until("it answers", || dev.page());
    let hosts = dev.bazooka(&["hosts"]);
    assert!(hosts.contains("sandbox without limits and fence"), "{hosts}");
}

#[test]
fn killed_outright_it_leaves_nothing_behind_either_and_starts_again() {
    let mut dev = Dev::start();
    dev.deploy();
    dev.bazooka(&["scale", "web=1", "job=1"]);
    dev.signal(Signal::SIGKILL);
    dev.child.wait().expect("it can be waited for");
    dev.leaves_nothing();
    dev.again();
    until("it answers again", || dev.page());
    let proxy = dev.process("bazooka-proxy ");
    kill(Pid::from_raw(proxy), Signal::SIGKILL).expect("it runs");
    dev.signal(Signal::SIGINT);
    dev.child.wait().expect("it can be waited for");
    assert_eq!(dev.processes(), [], "its HAProxy is gone too");
}

/// Sends a request as its bytes are, and returns the answer's head and what came of its body in a moment.
fn raw(address: std::net::SocketAddrV4, request: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket takes it");
    // A server that refuses may not read all of it.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let mut piece = [0; 4_096];
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..read]);
        if answer.len() > 64 << 10 {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request of a page's, with these headers beside the length.
fn of_a_page(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// The requests that a web page in this machine's browser can send to any listener of it: those across sites that need no
/// permission, the question for permission, and anything at all after the page's own name was made to lead here.
#[test]
fn a_web_page_can_do_nothing_to_it() {
    let dev = Dev::start();
    let all = dev.processes();
    let listeners: std::collections::BTreeSet<std::net::SocketAddrV4> = all
        .iter()
        .filter_map(|(pid, _)| u32::try_from(*pid).ok())
        .flat_map(visor::testing::listeners)
        .collect();
    let at = |port: u16| std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
    let [coordinator, _, rm] = dev.ports.map(at);
    // rm, etcd, HAProxy, proxy, converger and two hosts; etcd's peers have no port.
    assert!(listeners.contains(&rm) && listeners.contains(&coordinator), "{listeners:?}");
    assert!(listeners.len() >= 7, "{listeners:?}");
    let etcd = u32::try_from(dev.process("etcd --name")).expect("it fits");
    assert_eq!(visor::testing::listeners(etcd), [coordinator], "etcd listens for clients alone");

    let app = r#"{"name": "evil", "owner": "eve", "token": "t"}"#;
    // `/bazooka/apps/evil`, and a row for it.
    let put = r#"{"key": "L2Jhem9va2EvYXBwcy9ldmls", "value": "e30="}"#;
    let writes = [
        ("POST", "/apps", "application/json", app),
        ("POST", "/access/grant", "application/json", r#"{"who": "eve"}"#),
        ("DELETE", "/apps/hello", "application/json", "{}"),
        ("POST", "/hello.git/git-receive-pack", "application/x-git-receive-pack-request", "0000"),
        ("POST", "/v3/kv/put", "application/json", put),
        ("POST", "/raft", "application/protobuf", "x"),
    ];
    let reads = [
        "/",
        "/live",
        "/metrics",
        "/sd",
        "/found",
        "/logs?app=hello",
        "/hello.git/info/refs?service=git-upload-pack",
    ];
    let mut let_in = Vec::new();
    for address in &listeners {
        let own = format!("host: {address}");
        let rebound = format!("host: evil.example:{}", address.port());
        let same = format!("origin: http://evil.example:{}", address.port());
        let mut asked: Vec<(String, String)> = Vec::new();
        for (method, path, kind, body) in writes {
            let mut ask = |what: &str, method: &str, headers: &[&str]| {
                let what = format!("{address}: {what}: {method} {path}");
                asked.push((
                    what,
                    of_a_page(method, path, headers, if method == "OPTIONS" { "" } else { body }),
                ));
            };
            let origin = "origin: https://evil.example";
            for simple in ["text/plain", "application/x-www-form-urlencoded"] {
                let simple = format!("content-type: {simple}");
                ask("simple", method, &[&own, origin, &simple, "sec-fetch-site: cross-site"]);
                ask("simple, of an old browser", method, &[&own, origin, &simple]);
                ask("simple, of a sandboxed frame", method, &[&own, "origin: null", &simple]);
            }
            let kind = format!("content-type: {kind}");
            ask("asked first", "OPTIONS", &[&own, origin, "access-control-request-method: POST"]);
            ask("rebound", method, &[&rebound, &same, &kind, "sec-fetch-site: same-origin"]);
            ask("rebound, of an old browser", method, &[&rebound, &kind]);
        }
        for path in reads {
            let what = format!("{address}: rebound: GET {path}");
            asked.push((what, of_a_page("GET", path, &[&rebound, "sec-fetch-site: same-origin"], "")));
        }
        for (what, request) in asked {
            let answer = raw(*address, &request);
            let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
            let is_well = head.starts_with("http/1.1 2");
            // etcd answers the question whether a page may with 200, and doesn't say that it may.
            let is_mute = *address == coordinator && request.starts_with("OPTIONS");
            if (is_well && !is_mute)
                || head.contains("access-control-allow-origin: *")
                || head.contains("evil.example")
            {
                let_in.push(format!("{what}: {answer}"));
            }
        }
    }
    assert!(let_in.is_empty(), "{}", let_in.join("\n"));
    assert_eq!(dev.bazooka(&["apps"]).matches("evil").count(), 0, "nothing has come of it");

    // The same, as a client of the cluster sends it.
    let own = format!("host: {rm}");
    let answer = raw(rm, &of_a_page("POST", "/apps", &[&own, "content-type: application/json"], app));
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}
