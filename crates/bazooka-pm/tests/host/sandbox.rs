//! What an instance in its sandbox can't do, tried by real ones that mean ill.

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    process::Command,
};

use bazooka_sandbox::scopes_abstract_sockets;
use serde_json::{Value, json};
use visor::{
    names::InstanceId,
    schema::{Desired, State},
    testing::until,
};

use crate::world::{SOON, World, has_sandboxes, shelve};

const PROBE: &str = include_str!("probe.py");

/// A line of an instance's output that is JSON.
async fn report(world: &World, id: InstanceId) -> Value {
    until(&format!("{id} reports"), SOON, || async {
        let logs = world.logs(&format!("app=rocket&instance={id}")).await;
        let lines: Vec<&str> = logs.iter().filter_map(|line| line["line"].as_str()).collect();
        let report =
            lines.iter().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
        report.ok_or_else(|| format!("{lines:#?}"))
    })
    .await
}

async fn lines(world: &World, id: InstanceId) -> Vec<String> {
    let logs = world.logs(&format!("app=rocket&instance={id}")).await;
    let said = logs.iter().filter(|line| line["stream"] != "sys");
    said.filter_map(|line| Some(line["line"].as_str()?.to_owned())).collect()
}

/// Whether the kernel has turns of a process's own: Linux from 6.12 on.
fn turns_can_be_set() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux says its version");
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

/// An address of this machine outside of its loopback, if it has one.
fn own_address() -> String {
    // Nothing is sent: connecting only chooses a route.
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a port is free");
    let chosen = socket.connect(("192.0.2.1", 9)).and_then(|()| socket.local_addr());
    chosen.map_or_else(|_| "169.254.169.254".to_owned(), |own| own.ip().to_string())
}

fn port_of(url: &str) -> String {
    url.rsplit(':').next().expect("a URL of ours has a port").to_owned()
}

/// The probe's report of an instance that sees only its own and may touch only that.
fn expected() -> Vec<(&'static str, Value)> {
    let (refused, nobody) = ("ENOSYS", "ECONNREFUSED");
    vec![
        ("rights", json!([0, 0, 0, 0, 0])),
        ("no_new_rights", json!(["1", "2", ""])),
        ("open", json!(3)),
        ("processes", json!([1, 2])),
        ("strangers", json!(0)),
        ("user", json!([true, true, ["app"]])),
        ("places", json!(["/app", "/app", "/tmp"])),
        ("hidden", json!([])),
        ("of_others", json!("EACCES")),
        (
            "written",
            json!({"/app/x": "done", "/usr/x": "EROFS", "/etc/x": "EROFS", "/x": "EROFS",
                "/proc/sys/kernel/core_pattern": "EROFS", "/tmp/x": "done"}),
        ),
        ("own_terminal", json!("done")),
        (
            "calls",
            json!({"mount": refused, "keyctl": refused, "ptrace": refused, "unshare": refused, "setns": refused,
                "clone_user": refused, "clone3": refused, "bpf": refused, "io_uring": refused, "perf": refused,
                "chroot": refused, "longer_turn": refused, "unknown": refused}),
        ),
        (
            "sockets",
            json!({"raw": "EPERM", "packet": refused, "vsock": refused, "mptcp": refused, "tcp6": "done",
                "unix": "done", "unix_pair": "done", "other_pair": refused}),
        ),
        (
            "binds",
            json!({"own": "done", "own6": "done", "any": "done", "next": "EADDRINUSE", "next6": "EADDRINUSE",
                "datagrams": "EADDRINUSE", "second": "done", "privileged": "EACCES"}),
        ),
        (
            "connects",
            json!({"coordinator": nobody, "by_another_address": nobody, "by_no_address": nobody, "mapped": nobody,
                "ipv6": nobody, "bazooka_pm": nobody, "bazooka_rm": nobody, "another": nobody, "opened": "done",
                "closed": nobody, "metadata": "EPERM", "metadata6": "EPERM", "of_machine": "EPERM"}),
        ),
        // The coordinator is among those that were tried, and none is reached.
        ("reached", json!([true, []])),
        ("sends", json!({"wildcard": nobody, "mapped": nobody, "metadata": "EPERM"})),
        ("abstract", json!([if scopes_abstract_sockets() { "EPERM" } else { "done" }, "done"])),
        (
            "loopback",
            json!({"four": [["127.0.0.1", 9464], ["127.0.0.1", 9464], "127.0.0.1", "127.0.0.1"],
                "every": [["127.0.0.1", 9466], ["127.0.0.1", 9466], "127.0.0.1", "127.0.0.1"],
                "six": [["::1", 9465], ["::1", 9465], "::1", "::1"],
                "dual": "done", "only_six": "done", "picked": "done",
                "datagrams": ["127.0.0.1", ["127.0.0.1", 8125], "back"],
                "datagrams_every": ["127.0.0.1", ["127.0.0.1", 8126], "back"],
                "datagrams6": ["::1", ["::1", 8127], "back"]}),
        ),
        ("core", json!([[0, 0], "refused"])),
        ("setuid", json!([true, [true]])),
        ("too_much_in_tmp", json!("ENOSPC")),
        ("shared_memory", json!("done")),
        ("too_many_files", json!(["EMFILE", true])),
    ]
}

#[tokio::test]
async fn an_instance_sees_and_may_only_what_is_its_own() {
    if !has_sandboxes() {
        return;
    }
    let mut world = World::without_pm().await;
    let listener = || TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = |listener: &TcpListener| listener.local_addr().expect("it listens").port().to_string();
    // Open is everything of 127.0.0.1 that isn't closed, and then only one port.
    let (opened, closed) = (listener(), listener());
    let rm = world.rm_url.trim_start_matches("http://").to_owned();
    world.pm_args = vec!["--closed".into(), format!("{rm},127.0.0.1:{}", port(&closed))];
    world.pm_args.push("--open".into());
    world.pm_args.push(format!("127.0.0.1:{},127.0.0.1:{}", port(&opened), port(&closed)));
    world.start_pm();
    let host = world.registered().await;
    // A neighbour with a slug of its own.
    let mut neighbour = world.job("exec sleep 1000");
    neighbour.slug = shelve(&world.shelf, &[("secret", "of another app")]);
    let foreign = world.state().join("slugs").join(neighbour.slug.sha256.as_str());
    let neighbour = world.place(neighbour).await;
    world.until_state(neighbour, State::Running).await;
    assert!(foreign.join("secret").exists());

    // On every address, so that the machine's own one leads there.
    let other = TcpListener::bind(("0.0.0.0", 0)).expect("a port is free");
    let datagrams = UdpSocket::bind(("0.0.0.0", 0)).expect("a port is free");
    datagrams.set_nonblocking(true).expect("it can be set");
    let datagram_port = datagrams.local_addr().expect("it is bound").port().to_string();
    let name = format!("bazooka-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    let _abstract = UnixListener::bind_addr(&address).expect("nobody has it");
    let endpoint = world.endpoint();
    let state = world.state().display().to_string();
    let mut web = world.job("exec python3 probe.py");
    web.slug = shelve(&world.shelf, &[("probe.py", PROBE)]);
    let hidden = format!(
        "{state}:{}:/root:/home:/var/lib:/sys/class:/sys/kernel:/run/bazooka/uids:/etc/shadow",
        foreign.display()
    );
    web.env = world
        .env(
            1,
            &[
                ("HIDDEN", &hidden),
                ("COORDINATOR_PORT", &port_of(&endpoint)),
                ("PM_PORT", &port_of(&host.url)),
                ("RM_PORT", &port_of(&world.rm_url)),
                ("OTHER_PORT", &port(&other)),
                ("OPEN_PORT", &port(&opened)),
                ("CLOSED_PORT", &port(&closed)),
                ("DATAGRAM_PORT", &datagram_port),
                ("RANGE", &format!("{}-{}", world.range.0, world.range.1)),
                ("ABSTRACT", &name),
                ("OWN_ADDRESS", &own_address()),
            ],
        )
        .await;
    let id = world.place(web).await;
    let report = report(&world, id).await;
    let mut wrong = Vec::new();
    for (what, expected) in expected() {
        if report[what] != expected {
            wrong.push(format!("{what}: {}, not {expected}", report[what]));
        }
    }
    if report["masked"].as_array().is_none_or(|lengths| lengths.iter().any(|length| *length != 0)) {
        wrong.push(format!("masked: {}", report["masked"]));
    }
    let hidden = &report["hidden_folders"];
    if hidden.as_array().is_none_or(|seen| seen.iter().any(|seen| *seen != "EACCES")) {
        wrong.push(format!("folders of /proc that cost the kernel much: {hidden}"));
    }
    if turns_can_be_set() && report["turn"] != 500_000 {
        wrong.push(format!("turn: {} ns", report["turn"]));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let heard = datagrams.recv(&mut [0; 16]).expect_err("no instance reaches it");
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
    let open = if scopes_abstract_sockets() { "" } else { ", abstract sockets open" };
    assert_eq!(host.isolation, format!("sandbox{open}"));
}

#[tokio::test]
async fn processor_and_processes_are_limited_as_its_proc_says() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let count = "import os, sys\n\
        made = 0\n\
        try:\n \
            while made < 500:\n  \
                if os.fork() == 0: os.execvp('sleep', ['sleep', '1000'])\n  \
                made += 1\n\
        except OSError as error: print(made, error.strerror, flush=True)\n\
        os.execvp('sleep', ['sleep', '1000'])\n";
    let mut job = world.job("exec python3 count.py");
    job.slug = shelve(&world.shelf, &[("count.py", count)]);
    job.run.limits.processes_limit = Some(20);
    job.run.limits.cpu_limit_millis = Some(500);
    job.run.limits.memory_limit_bytes = Some(200 << 20);
    let id = world.place(job).await;
    world.until_logged(&format!("app=rocket&instance={id}"), "19 Resource temporarily unavailable").await;
    let pid = world.status(id).await.and_then(|status| status.pid).expect("it runs");
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
    let of = |name: &str| {
        let found = groups.lines().find(|line| line.split(':').nth(1) == Some(name));
        found.and_then(|line| line.split(':').nth(2)).unwrap_or_default().to_owned()
    };
    // Where version 1 has the controllers; of version 2 the group is one.
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (file, wanted) = if unified {
        (format!("/sys/fs/cgroup{}/cpu.max", of("")), "50000 100000\n")
    } else {
        (format!("/sys/fs/cgroup/cpu{}/cpu.cfs_quota_us", of("cpu")), "50000\n")
    };
    assert_eq!(
        fs::read_to_string(&file).unwrap_or_else(|error| format!("{file}: {error}: {groups}")),
        wanted
    );
    world.want(id, Desired::Stop).await;
    world.until_state(id, State::Exited).await;
    assert!(!Path::new(&file).exists(), "its groups go with it");
}

/// A root tree of a shell and a sleep, with the libraries that they need.
fn stack(at: &Path) {
    let listed = Command::new("ldd").args(["/bin/sh", "/bin/sleep"]).output().expect("ldd is there");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with("/lib"));
    let libraries: Vec<&str> = libraries.map(|word| word.trim_end_matches(':')).collect();
    for file in libraries.iter().copied().chain(["/bin/sh", "/bin/sleep"]) {
        let to = at.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("it has one")).expect("it can be made");
        fs::copy(file, &to).expect("it can be copied");
    }
    fs::create_dir_all(at.join("etc")).expect("it can be made");
    fs::write(at.join("etc/mark"), "of the stack\n").expect("there is room");
    fs::write(at.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("there is room");
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[tokio::test]
async fn a_stack_takes_the_place_of_the_machines_programs() {
    if !has_sandboxes() {
        return;
    }
    let mut world = World::without_pm().await;
    let tree = world.dir.path().join("stack");
    stack(&tree);
    world.pm_args = vec!["--stack".into(), tree.display().to_string()];
    world.start_pm();
    let id = world
        .place(world.job(
            "read mark </etc/mark; echo $mark; { read root; read own; } </etc/passwd; echo ${own%%:*}; \
                 test -e /usr/bin/python3 || echo bare; exec sleep 1000",
        ))
        .await;
    world.until_state(id, State::Running).await;
    world.until_logged(&format!("app=rocket&instance={id}"), "bare").await;
    assert_eq!(lines(&world, id).await, ["of the stack", "app", "bare"]);
}

#[tokio::test]
async fn what_cant_be_had_is_refused_at_start_and_named() {
    if !has_sandboxes() {
        return;
    }
    let without = |right: &str| vec!["--bounding-set".to_owned(), format!("-{right}")];
    for (arguments, rights, words) in [
        (vec!["--stack", "/there/is/none"], Vec::new(), "can't use the stack /there/is/none: No such file"),
        (vec!["--stack", "/etc"], Vec::new(), "/etc is no stack"),
        (vec![], without("sys_admin"), "isolation sandbox can't be had here: can't"),
        (vec![], without("sys_admin"), "go on with the weaker --isolation uid"),
    ] {
        let mut world = World::without_pm().await;
        world.pm_args = arguments.into_iter().map(str::to_owned).collect();
        world.setpriv_args = rights;
        world.start_pm();
        world.pm_died().await;
        assert!(world.pm_log().contains(words), "{}", world.pm_log());
    }
}

#[tokio::test]
async fn a_part_that_is_done_without_is_shown() {
    if !has_sandboxes() {
        return;
    }
    let mut world = World::without_pm().await;
    world.pm_args = vec!["--without".into(), "fence,limits".into()];
    world.start_pm();
    assert_eq!(world.registered().await.isolation, "sandbox without limits and fence");
    let id = world.place(world.job("exec sleep 1000")).await;
    world.until_state(id, State::Running).await;
}

#[tokio::test]
async fn two_instances_have_each_a_loopback_of_its_own() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let serve = "import os, socket, threading, time\n\
        own = socket.create_server(('127.0.0.1', 9464))\n\
        def answer():\n \
            while True:\n  \
                caller, _ = own.accept()\n  \
                caller.sendall(os.environ['BAZOOKA_INSTANCE'].encode())\n  \
                caller.close()\n\
        threading.Thread(target=answer, daemon=True).start()\n\
        socket.create_server(('', int(os.environ['PORT'])))\n\
        print('asked', socket.create_connection(('127.0.0.1', 9464)).recv(16).decode(), flush=True)\n\
        time.sleep(1000)\n";
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut job = world.web("exec python3 second.py");
        job.slug = shelve(&world.shelf, &[("second.py", serve)]);
        ids.push(world.place(job).await);
    }
    for id in &ids {
        world.until_logged(&format!("app=rocket&instance={id}"), &format!("asked {id}")).await;
    }
    let refused = std::net::TcpStream::connect(("127.0.0.1", 9464)).expect_err("it is theirs alone");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}
