//! What a sandbox costs: real shims, each starting a sleep, in a sandbox and without one, side by side.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use bazooka_tests::program;
use serde_json::json;

use crate::{Row, Value, median};

/// How many are started one after the other in each run.
const ONE_BY_ONE: usize = 20;

/// How many are started at once.
const AT_ONCE: usize = 100;

/// The users that they get: none of a range that any other test has.
const FIRST_UID: usize = 290_000;

/// A folder for instances, with a control group of version 2 for their own.
struct Place {
    dir: tempfile::TempDir,
    groups: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("there is room");
        for name in ["app", "root", "etc"] {
            fs::create_dir(dir.path().join(name)).expect("there is room");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc is there");
        let unified = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            words.next().filter(|_| words.next() == Some("cgroup2"))
        });
        let unified = unified.expect("control groups of version 2 are mounted, if only beside version 1");
        let groups = Path::new(unified).join(format!("bazooka-bench-{}", std::process::id()));
        fs::create_dir(&groups).expect("root may make control groups");
        Place { dir, groups }
    }

    /// A shim's start of a sleep, until it says that it runs.
    fn begin(&self, number: usize, in_sandbox: bool) -> Shim {
        let own = self.dir.path().join(number.to_string());
        let _ = fs::remove_dir_all(&own);
        fs::create_dir(&own).expect("there is room");
        let path = |name: &str| self.dir.path().join(name);
        let mut spec = json!({
            "protocol": 4, "command": "exec sleep 1000", "folder": path("app"), "uid": FIRST_UID + number,
            "env": {"PATH": "/usr/bin:/bin"}, "log_folder": own, "stop_timeout_ms": 1000, "processes": 1024,
        });
        if in_sandbox {
            let fence = json!({"port": 1, "rules": rules(FIRST_UID + number)});
            spec["sandbox"] = json!({"root": path("root"), "base": "/", "etc": path("etc"), "tmp_bytes": 64 << 20, "fence": fence});
            let folder = self.groups.join(number.to_string());
            spec["groups"] = json!([{"folder": folder, "version": 2, "settings": []}]);
        }
        let file = own.join("run");
        fs::write(&file, format!("{}\n", json!({"spec": spec}))).expect("there is room");
        let open = || fs::File::options().read(true).append(true).open(&file).expect("it is there");
        let begun = Instant::now();
        let mut child = Command::new(program("bazooka-shim"))
            .arg(&file)
            .env_clear()
            .stdin(open())
            .stderr(open())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shim is there");
        let answer = BufReader::new(child.stdout.take().expect("it was asked for"));
        Shim { child, answer, begun }
    }
}

/// A fence with a loopback of its own, and as many addresses as on a usual machine.
fn rules(uid: usize) -> serde_json::Value {
    let span = |address: &str, bits: u8, first: u16, last: u16| json!({"address": address, "bits": bits, "first": first, "last": last});
    let machine = ["10.0.0.5", "10.0.0.255", "169.254.169.254", "255.255.255.255"];
    let machine = machine.map(|address| span(address, 32, 0, u16::MAX)).into_iter();
    let machine6 = ["fe80::5", "fd00::5", "fd00:ec2::254"].map(|address| span(address, 128, 0, u16::MAX));
    json!({
        "host": "10.0.0.5",
        "loopback": {
            "four": format!("127.99.{}.{}", uid >> 8 & 0xff, uid & 0xff),
            "six": format!("fd62:617a:6f6f:6b61::{:x}:{:x}", uid >> 16, uid & 0xffff),
        },
        "closed": [span("127.0.0.0", 8, 2379, 2380), span("10.0.0.1", 32, 2379, 2380), span("::1", 128, 2379, 2380)],
        "open": [span("10.0.0.53", 32, 53, 53), span("10.0.0.5", 32, 21_000, 21_999)],
        "machine": machine.chain(machine6).collect::<Vec<_>>(),
        "reserved": [[21_000, 21_999]],
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.groups);
    }
}

struct Shim {
    child: Child,
    answer: BufReader<ChildStdout>,
    begun: Instant,
}

impl Shim {
    fn started(&mut self) -> Duration {
        let mut line = String::new();
        self.answer.read_line(&mut line).expect("it answers");
        let said: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        assert!(said["started"].is_object(), "{line}");
        self.begun.elapsed()
    }

    fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("it fits"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1);
        let _ = self.child.wait();
    }
}

fn one_by_one(place: &Place, in_sandbox: bool) -> Duration {
    let took = (0..ONE_BY_ONE).map(|number| {
        let mut shim = place.begin(number, in_sandbox);
        let took = shim.started();
        shim.end();
        took
    });
    median(took.collect())
}

/// The time until all run, and the memory that they and the kernel take for each, in KiB.
fn at_once(place: &Place, in_sandbox: bool) -> (Duration, f64) {
    let before = kernel_kib();
    let begun = Instant::now();
    let mut shims: Vec<Shim> = (0..AT_ONCE).map(|number| place.begin(number, in_sandbox)).collect();
    for shim in &mut shims {
        shim.started();
    }
    let took = begun.elapsed();
    let own: f64 = shims.iter().map(|shim| below(shim.child.id())).sum();
    let all = own + kernel_kib() - before;
    for shim in &shims {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(shim.child.id()).expect("it fits"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1);
    }
    shims.into_iter().for_each(Shim::end);
    (took, all / AT_ONCE as f64)
}

/// A shim's memory and that of its processes, the sleep too, as their share of what they have in common.
fn below(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let own = number(&text, "Pss:");
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    own + children.split_whitespace().filter_map(|child| child.parse().ok()).map(below).sum::<f64>()
}

/// What the kernel itself takes, in KiB.
fn kernel_kib() -> f64 {
    let info = fs::read_to_string("/proc/meminfo").expect("/proc is there");
    let fields = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:", "VmallocUsed:", "Shmem:"];
    fields.iter().map(|field| number(&info, field)).sum()
}

fn number(text: &str, field: &str) -> f64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// The three rows. It takes root.
pub fn isolation(runs: usize) -> Vec<Row> {
    let place = Place::new();
    let (mut single, mut many, mut memory) =
        ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    // The programs are read from the disk once, whoever comes first.
    one_by_one(&place, true);
    for _ in 0..runs {
        for in_sandbox in [false, true] {
            let at = usize::from(in_sandbox);
            single[at].push(one_by_one(&place, in_sandbox));
            let (took, kib) = at_once(&place, in_sandbox);
            many[at].push(took);
            memory[at].push(kib);
        }
    }
    let ms = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1_000.0);
    let [plain, own] = single.map(median);
    let [plain_many, own_many] = many.map(median);
    let [plain_memory, own_memory] = memory.map(|mut kib| {
        kib.sort_by(f64::total_cmp);
        kib[kib.len() / 2] / 1_024.0
    });
    vec![
        Row {
            value: Some(Value::Time(own)),
            what: "start of a sandboxed instance, shim to running".into(),
            target: "6 ms more than without".into(),
            figure: format!("{} ({} more)", ms(own), ms(own.saturating_sub(plain))),
            floor: format!("without a sandbox: {}", ms(plain)),
        },
        Row {
            value: Some(Value::Time(own_many)),
            what: format!("{AT_ONCE} of them started at once, until the last one runs"),
            target: "1.6 times as long as without".into(),
            figure: format!(
                "{} ({:.2} times)",
                ms(own_many),
                own_many.as_secs_f64() / plain_many.as_secs_f64()
            ),
            floor: format!("without a sandbox: {}", ms(plain_many)),
        },
        Row {
            value: Some(Value::Mebibytes(own_memory)),
            what: format!("memory for each of {AT_ONCE}, its own and the kernel's"),
            target: "2 MiB more than without".into(),
            figure: format!("{own_memory:.2} MiB ({:.2} more)", own_memory - plain_memory),
            floor: format!("without a sandbox: {plain_memory:.2} MiB"),
        },
    ]
}
