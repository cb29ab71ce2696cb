//! A company's whole size on one machine: each of its apps rolled out once under the load of all of them.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bazooka_tests::{
    Fleet, Kind, Load, LoadOptions, Machine::Proxy, Report, SOON, Setting, program, shop::whole, try_get,
    until,
};

use super::{DEADLINE, lost, p99};
use crate::{Row, Value, median, seconds, thousands};

/// Apps, and instances of each.
const APPS: usize = 20;
const EACH: usize = 3;

/// For how long the floor is measured.
const FLOOR: Duration = Duration::from_secs(15);

/// How much of the processors is busy, from one look to the next.
struct Busy {
    at: Instant,
    ticks: f64,
}

impl Busy {
    fn look() -> Busy {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let all: Vec<f64> = all.filter_map(|ticks| ticks.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq; the rest is another machine's, or in these.
        let ticks = all.iter().take(7).enumerate().filter(|(n, _)| !matches!(n, 3 | 4)).map(|(_, t)| t).sum();
        Busy { at: Instant::now(), ticks }
    }

    /// In seconds of processor a second since this look.
    fn cores(&self) -> f64 {
        // The kernel counts hundredths of a second for who reads this file.
        (Busy::look().ticks - self.ticks) / 100.0 / self.at.elapsed().as_secs_f64()
    }
}

/// 20 apps on 13 hosts behind two proxies, each rolled out once.
pub fn seed(rate: u32, kinds: &[Kind]) -> Row {
    let beside = floor(rate, kinds);
    let fleet = Fleet::start_so(Setting { hosts: (7, 6), zoned_proxies: true, ..Setting::default() });
    let names: Vec<String> = (1..=APPS).map(|n| format!("app{n}")).collect();
    let repos: Vec<_> = names.iter().map(|name| fleet.repo(name)).collect();
    for repo in &repos {
        let server = repo.dir().join("quick_server");
        std::fs::copy(program("quick_server"), &server).expect("it can be copied");
        // Without what only a debugger reads, which a slug needn't carry.
        let _ = Command::new("strip").arg(server).status();
        repo.write("Procfile", "web: exec ./quick_server v1\n").commit("v1");
        repo.bazooka(&["init"]).ok();
        repo.git(&["push", "-q", "bazooka", "master"]).ok();
        repo.bazooka(&["scale", "-n", &EACH.to_string(), "web"]).ok();
    }
    whole(&fleet, APPS * EACH, 2 * SOON);
    let proxies = [Proxy(1), Proxy(2)];
    for (proxy, name) in proxies.iter().flat_map(|proxy| names.iter().map(move |name| (*proxy, name))) {
        until(&format!("{name} answers"), SOON, || match fleet.ask(proxy, name)?.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        });
    }
    let load = begin(
        proxies.map(|proxy| proxy.at(8080)).into(),
        names.iter().map(|name| format!("{name}.localhost:8080")).collect(),
        rate,
        kinds,
    );
    let busy = Busy::look();
    let times: Vec<Duration> = repos
        .iter()
        .map(|repo| {
            repo.write("Procfile", "web: exec ./quick_server v2\n").commit("v2");
            let begin = Instant::now();
            repo.git(&["push", "-q", "bazooka", "master"]).ok();
            whole(&fleet, APPS * EACH, 4 * SOON);
            begin.elapsed()
        })
        .collect();
    let cores = busy.cores();
    let report = load.stop();
    assert!(report.answers.contains_key("v2"), "{:?}", report.answers);
    let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    Row {
        value: Some(Value::Lost(report.lost())),
        what: format!(
            "a rollout of each of {APPS} apps ({EACH} instances each, 13 hosts in two zones, 2 proxies, 1 rm, 3 etcds, 2 convergers) at {}/s over all of them ({})",
            thousands(rate.into()),
            kinds.join(", ")
        ),
        target: "0 lost at 5,000/s".into(),
        figure: format!(
            "{}; p99 {:.0} ms; the load itself was up to {:.0} ms late; {cores:.2} cores busy",
            lost(&report),
            p99(&report),
            report.late_ms
        ),
        floor: format!("{beside}; a rollout: {}", seconds(median(times))),
    }
}

fn begin(addresses: Vec<String>, hosts: Vec<String>, rate: u32, kinds: &[Kind]) -> Load {
    Load::start(LoadOptions {
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        hosts,
        rate,
        connections: rate.div_ceil(128),
        kinds: kinds.to_vec(),
        deadline: DEADLINE,
    })
}

/// Ends a process when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) -> Ended {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ended(child.unwrap_or_else(|error| panic!("{command:?} can't be started: {error}")))
}

/// The same load on one HAProxy with the same servers, and nothing of ours.
fn floor(rate: u32, kinds: &[Kind]) -> String {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let ports: Vec<u16> = (0..=EACH)
        .map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free"))
        .collect::<Vec<_>>()
        .iter()
        .map(|listener| listener.local_addr().expect("it listens").port())
        .collect();
    let _servers: Vec<Ended> = ports[1..]
        .iter()
        .map(|port| run(Command::new(program("quick_server")).arg("v1").env("PORT", port.to_string())))
        .collect();
    let _haproxy = run(Command::new("haproxy").arg("-db").arg("-f").arg(written(folder.path(), &ports)));
    let (address, host) = (format!("127.0.0.1:{}", ports[0]), "app.localhost");
    until("HAProxy answers", SOON, || match try_get(&format!("http://{address}/"), Some(host))?.status {
        200 => Ok(()),
        other => Err(other.to_string()),
    });
    let load = begin(vec![address], vec![host.to_owned()], rate, kinds);
    let busy = Busy::look();
    std::thread::sleep(FLOOR);
    let cores = busy.cores();
    let report: Report = load.stop();
    format!(
        "one HAProxy and {EACH} such servers without us: {}, p99 {:.0} ms, up to {:.0} ms late, {cores:.2} cores busy",
        lost(&report),
        p99(&report),
        report.late_ms
    )
}

fn written(folder: &Path, ports: &[u16]) -> std::path::PathBuf {
    let servers: String =
        ports[1..].iter().map(|port| format!("    server s{port} 127.0.0.1:{port}\n")).collect();
    let path = folder.join("haproxy.cfg");
    let config = format!(
        "defaults\n    mode http\n    timeout connect 500ms\n    timeout client 1m\n    timeout server 1m\n\
         frontend f\n    bind 127.0.0.1:{}\n    default_backend b\nbackend b\n    balance roundrobin\n{servers}",
        ports[0]
    );
    std::fs::write(&path, config).expect("it can be written");
    path
}
