//! The measurements, each over a cluster of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::{Duration, Instant},
};

use bazooka_tests::{Cluster, Repo, SOON, until};
use visor::{names::InstanceId, schema::State};

use crate::{Row, Value, floor, median, seconds};

/// A server whose answers begin with VERSION.
pub const SERVER: &str = r#"
require("http").createServer((request, response) => {
  response.setHeader("Connection", "close");
  response.end("VERSION " + process.env.BAZOOKA_INSTANCE + "\n");
}).listen(process.env.PORT);
"#;

/// The app of most benches: a server, and a sleep.
pub fn node_app(cluster: &Cluster) -> Repo {
    let repo = cluster.repo("bench");
    repo.write("Procfile", "web: node server.js\nsleep: sleep 1000000\n")
        .write("server.js", &SERVER.replace("VERSION", "v0"));
    repo.commit("v0");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo
}

/// Asks without a pause until an answer satisfies; the time is from the call.
fn first(cluster: &Cluster, begin: Instant, mut satisfies: impl FnMut(&str) -> bool) -> Duration {
    loop {
        if let Ok(answer) = cluster.ask("bench") {
            if answer.status == 200 && satisfies(&answer.body) {
                return begin.elapsed();
            }
        }
        assert!(begin.elapsed() < 4 * SOON, "no such answer");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Begins a request every 5 ms, each on a connection of its own, until one is answered with 200: the time
/// to that from `begin`, and how those were answered that had begun before, with the longest of them.
///
/// A single visitor would not do: HAProxy holds the request that met a dead instance for its turn-around
/// time (1 s) and tries again, so that whoever waits for that one sees nothing of the replacement.
pub fn first_of_many(cluster: &Cluster, begin: Instant) -> (Duration, BTreeMap<u16, usize>, Duration) {
    std::thread::scope(|scope| {
        let (answer, answers) = std::sync::mpsc::channel();
        let mut asked = 0;
        let mut took = None;
        let mut statuses = BTreeMap::new();
        let mut longest = Duration::ZERO;
        loop {
            let wait = match took {
                None => {
                    let answer = answer.clone();
                    scope.spawn(move || {
                        let begun = Instant::now();
                        let status = cluster.ask("bench").map_or(0, |answer| answer.status);
                        let _ = answer.send((status, begun.elapsed(), begin.elapsed()));
                    });
                    asked += 1;
                    Duration::from_millis(5)
                }
                Some(took) if statuses.values().sum::<usize>() == asked => return (took, statuses, longest),
                Some(_) => SOON,
            };
            while let Ok((status, held, at)) = answers.recv_timeout(wait) {
                *statuses.entry(status).or_default() += 1;
                longest = longest.max(held);
                if status == 200 {
                    took = Some(took.map_or(at, |took: Duration| took.min(at)));
                }
                if took.is_some() {
                    break;
                }
            }
            assert!(begin.elapsed() < 4 * SOON, "no such answer");
        }
    })
}

/// `git push` to the first answer of the new version.
pub fn push(runs: usize) -> Row {
    let cluster = Cluster::start();
    let repo = node_app(&cluster);
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let mut whole = Vec::new();
    let times = (1..=runs).map(|run| {
        let version = format!("v{run} ");
        repo.write("server.js", &SERVER.replace("VERSION ", &version));
        repo.commit(&version);
        let begin = Instant::now();
        let mut push = repo.command("git", &["push", "-q", "bazooka", "master"]);
        let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("git can be started");
        let took = first(&cluster, begin, |body| body.starts_with(&version));
        assert!(push.wait().expect("git ends").success());
        whole.push(begin.elapsed());
        took
    });
    let took = median(times.collect());
    Row {
value: Some(Value::Time(took)),
        what: "push without a build to a running one-file Node service: `git push` to the new version's first answer".into(),
        target: "under 0.5 s".into(),
        figure: seconds(took),
        floor: format!("Node alone, start to answer: {}; push and rollout together: {}", seconds(node_alone(&repo, runs)), seconds(median(whole))),
    }
}

fn node_alone(repo: &Repo, runs: usize) -> Duration {
    median((0..runs).map(|_| floor::node_servers(repo.dir(), 1)).collect())
}

fn scale(cluster: &Cluster, repo: &Repo, count: usize) -> Duration {
    let begin = Instant::now();
    let mut scale = repo.command(
        &bazooka_tests::program("bazooka").display().to_string(),
        &["scale", "-n", &count.to_string(), "web"],
    );
    let mut scale = scale.stdout(Stdio::null()).spawn().expect("bazooka can be started");
    let mut seen = BTreeSet::new();
    let took = first(cluster, begin, |body| {
        seen.insert(body.to_owned());
        seen.len() == count
    });
    assert!(scale.wait().expect("it ends").success());
    took
}

/// 0 to 10 Node servers, to the last one's answer.
pub fn scale_to_ten(runs: usize) -> Row {
    let cluster = Cluster::start();
    let repo = node_app(&cluster);
    let times = (0..runs).map(|_| {
        let took = scale(&cluster, &repo, 10);
        repo.bazooka(&["scale", "-n", "0", "web"]).ok();
        took
    });
    let took = median(times.collect());
    let floor = median((0..runs).map(|_| floor::node_servers(repo.dir(), 10)).collect());
    Row {
        value: Some(Value::Time(took)),
        what: "`scale -n 10` of a Node server, until all 10 answer through HAProxy".into(),
        target: "0.6 s".into(),
        figure: seconds(took),
        floor: format!("10 started side by side: {} ({:.2} times)", seconds(floor), ratio(took, floor)),
    }
}

/// 10 to 100 Node servers, to the last one's answer.
pub fn scale_to_hundred(runs: usize) -> Row {
    let cluster = Cluster::start();
    let repo = node_app(&cluster);
    let times = (0..runs).map(|_| {
        repo.bazooka(&["scale", "-n", "10", "web"]).ok();
        let took = scale(&cluster, &repo, 100);
        repo.bazooka(&["scale", "-n", "0", "web"]).ok();
        took
    });
    let took = median(times.collect());
    let floor = median((0..runs).map(|_| floor::node_servers(repo.dir(), 90)).collect());
    Row {
        value: Some(Value::Time(took)),
        what: "10 to 100 Node servers, until all 100 answer".into(),
        target: "1.5 times the floor".into(),
        figure: format!("{} ({:.2} times)", seconds(took), ratio(took, floor)),
        floor: format!("90 started side by side: {}", seconds(floor)),
    }
}

/// 0 to 100 sleeps, to `scale`'s return.
pub fn sleepers(runs: usize) -> Row {
    let cluster = Cluster::start();
    let repo = node_app(&cluster);
    let times = (0..runs).map(|_| {
        let took = repo.bazooka(&["scale", "-n", "100", "sleep"]).ok().took;
        repo.bazooka(&["scale", "-n", "0", "sleep"]).ok();
        took
    });
    let took = median(times.collect());
    let floor = median((0..runs).map(|_| floor::sleepers(100)).collect());
    Row {
        value: Some(Value::Time(took)),
        what: "`scale -n 100` of a sleep, until the command returns".into(),
        target: "0.5 s".into(),
        figure: seconds(took),
        floor: format!("100 spawned side by side: {}", seconds(floor)),
    }
}

fn ratio(took: Duration, floor: Duration) -> f64 {
    took.as_secs_f64() / floor.as_secs_f64()
}

/// kill -9 of the only instance to the first answer of its replacement.
pub fn kill(runs: usize) -> Row {
    let cluster = Cluster::start();
    let repo = node_app(&cluster);
    let (mut statuses, mut held) = (BTreeMap::new(), Duration::ZERO);
    let times = (0..runs).map(|_| {
        // A fresh instance for each: quick restarts are bounded.
        repo.bazooka(&["scale", "-n", "0", "web"]).ok();
        repo.bazooka(&["scale", "-n", "1", "web"]).ok();
        let begin = kill_web(&cluster);
        let (took, seen, longest) = first_of_many(&cluster, begin);
        for (status, n) in seen {
            *statuses.entry(status).or_insert(0) += n;
        }
        held = held.max(longest);
        took
    });
    let took = median(times.collect());
    let alone = node_alone(&repo, runs);
    Row {
        value: Some(Value::Time(took)),
        what: "an instance killed with SIGKILL, until its replacement's first answer".into(),
        target: "the app's own start + 0.2 s".into(),
        figure: format!(
            "{} (start + {}); a request every 5 ms meanwhile: {statuses:?}, the longest {}",
            seconds(took),
            seconds(took.saturating_sub(alone)),
            seconds(held),
        ),
        floor: format!("Node alone, start to answer: {}", seconds(alone)),
    }
}

/// Kills the instance of the only server, and returns when.
pub fn kill_web(cluster: &Cluster) -> Instant {
    let snapshot = cluster.snapshot();
    let app = snapshot.apps.values().flat_map(|app| &app.instances);
    let web: BTreeSet<InstanceId> =
        app.filter(|(_, instance)| instance.proc.as_str() == "web").map(|(id, _)| *id).collect();
    let pid = running(cluster).into_iter().find(|(id, _)| web.contains(id)).expect("it runs").1;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a process id fits"));
    let begin = Instant::now();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    begin
}

/// The running instances, with the process of each.
pub fn running(cluster: &Cluster) -> Vec<(InstanceId, u32)> {
    let snapshot = cluster.snapshot();
    let statuses = snapshot.hosts.values().flat_map(|host| &host.status);
    let running = statuses.filter(|(_, status)| status.state == State::Running);
    running.filter_map(|(id, status)| Some((*id, status.pid?))).collect()
}

/// `bazooka ps` over 1,000 instances.
pub fn ps(runs: usize) -> Row {
    use visor::{
        keys::Key,
        schema::{App, Assignment, Desired, Extra, Instance, Slug, Status},
        visor::Change,
    };
    // Rows under a prefix of their own, which no daemon watches: `ps` reads no more than rows.
    let cluster = Cluster::start();
    let (_, runtime) = cluster.visor();
    let prefix = visor::testing::fresh_prefix();
    let config = visor::store::etcd::EtcdConfig::new(vec![cluster.coordinator().to_owned()], prefix.clone());
    let visor = visor::visor::Visor::new(std::sync::Arc::new(visor::store::etcd::EtcdStore::new(config)));
    let app: visor::names::AppName = "thousand".parse().expect("valid");
    let proc: visor::names::ProcName = "web".parse().expect("valid");
    let rev: visor::names::RevId = "16f7cbf0123456789012345678901234567890ab".parse().expect("valid");
    let now = "2026-01-01T00:00:00Z".parse().expect("valid");
    let release = visor::names::ReleaseId(1);
    runtime.block_on(visor.set_up()).expect("it is written");
    let row = App {
        owner: "bench".into(),
        created_at: now,
        token: "t".into(),
        destroying: false,
        extra: Extra::new(),
    };
    runtime.block_on(visor.commit(Change::new().put(&Key::App(app.clone()), &row))).expect("it is written");
    for batch in (1..=1000_u64).collect::<Vec<_>>().chunks(40) {
        let mut change = Change::new();
        for id in batch {
            let host: visor::names::HostName = format!("host{}", id % 13).parse().expect("valid");
            let id = InstanceId(*id);
            let index = u32::try_from(id.0).expect("it fits");
            let instance = Instance {
                host: host.clone(),
                proc: proc.clone(),
                release,
                rev: rev.clone(),
                index,
                placed_at: now,
                reason: String::new(),
                extra: Extra::new(),
            };
            let assignment = Assignment {
                desired: Desired::Run,
                reason: None,
                app: app.clone(),
                proc: proc.clone(),
                release,
                rev: rev.clone(),
                env: visor::names::EnvRef(0),
                slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
                command: "sleep".into(),
                index,
                run: Default::default(),
                links: Default::default(),
                sources: Vec::new(),
                trial: false,
                extra: Extra::new(),
            };
            let mut status = Status::new(State::Running, now);
            status.ip = Some("1.2.3.4".parse().expect("valid"));
            status.port = Some(21880);
            change = change.put(&Key::Instance(app.clone(), id), &instance);
            change = change.put(&Key::Assigned(host.clone(), id), &assignment);
            change = change.put(&Key::Status(host, id), &status);
        }
        runtime.block_on(visor.commit(change)).expect("it is written");
    }
    let repo = cluster.repo("thousand");
    let times = (0..runs).map(|_| {
        let ran = repo.bazooka(&["--prefix", &prefix, "-a", "thousand", "ps"]).ok();
        assert_eq!(ran.stdout.lines().count(), 1001);
        ran.took
    });
    let took = median(times.collect());
    Row {
        value: Some(Value::Time(took)),
        what: "`bazooka ps` with 1,000 instances".into(),
        target: "under 50 ms".into(),
        figure: format!("{:.0} ms", took.as_secs_f64() * 1000.0),
        floor: format!(
            "`bazooka version`: {:.0} ms",
            median((0..runs).map(|_| repo.bazooka(&["version"]).ok().took).collect()).as_secs_f64() * 1000.0
        ),
    }
}

/// Resident memory of each daemon with 100 instances, and a shim's proportional share.
pub fn memory() -> Vec<Row> {
    let mut cluster = Cluster::start();
    let repo = node_app(&cluster);
    repo.bazooka(&["scale", "-n", "100", "sleep"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    until("101 run", SOON, || match running(&cluster).len() {
        101 => Ok(()),
        other => Err(format!("{other}")),
    });
    let mut rows = Vec::new();
    for (name, pid) in daemons(&mut cluster) {
        let resident = kib(pid, "status", "VmRSS:") / 1024.0;
        rows.push(Row {
            value: Some(Value::Mebibytes(resident)),
            what: format!("resident memory of {name} with 100 instances"),
            target: "under 14 MiB".into(),
            figure: format!("{resident:.1} MiB"),
            floor: format!("its peak: {:.1} MiB", kib(pid, "status", "VmHWM:") / 1024.0),
        });
    }
    let own = cluster.folder("host1").display().to_string();
    let shims: Vec<f64> = std::fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            // Those of this cluster: another may stand beside it.
            read("comm").trim() == "bazooka-shim" && read("cmdline").contains(&own)
        })
        .map(|pid| kib(pid, "smaps_rollup", "Pss:"))
        .collect();
    let mean = shims.iter().sum::<f64>() / shims.len().max(1) as f64;
    rows.push(Row {
        value: Some(Value::Mebibytes(mean / 1024.0)),
        what: format!("a shim's memory (PSS), mean of {}", shims.len()),
        target: "under 2 MiB".into(),
        figure: format!("{:.2} MiB", mean / 1024.0),
        floor: format!("largest: {:.2} MiB", shims.iter().copied().fold(0.0, f64::max) / 1024.0),
    });
    rows
}

/// The daemons of a cluster, with their processes.
pub fn daemons(cluster: &mut Cluster) -> [(&'static str, u32); 4] {
    [
        ("bazooka-pm", cluster.host(1).pid()),
        ("bazooka-pm converge", cluster.part("converger").pid()),
        ("bazooka-rm", cluster.part("rm").pid()),
        ("bazooka-proxy", cluster.part("proxy").pid()),
    ]
}

/// A field of a file in /proc/PID, in KiB.
pub fn kib(pid: u32, file: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}
