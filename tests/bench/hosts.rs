//! What a fleet of machines does when a part of it dies, each figure over a fleet of its own.

mod coordinator;
mod rollouts;
mod seed;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bazooka_tests::{
    Fleet, Kind, Load,
    Machine::{Host, Proxy},
    Report, SOON,
    shop::{SHOP, alive, running, shop, whole},
    until,
};
use visor::{
    keys::Key,
    names::ProcName,
    schema::Proc,
    visor::{Change, Committed},
};

use crate::{Row, median, seconds, thousands};

pub use coordinator::{leader_killed, member_paused, quorum_gone};
pub use rollouts::{crash_loop, instance_killed, rollback, rollouts};
pub use seed::seed;

/// What an answer may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// Between two looks at what should not change.
const LOOK: Duration = Duration::from_millis(50);

fn load(fleet: &Fleet, rate: u32) -> Load {
    fleet.load_of(SHOP, rate, rate.div_ceil(32), &Kind::ALL, DEADLINE)
}

/// `0 of 12,345`, and of what kind those were.
fn lost(report: &Report) -> String {
    let kinds: Vec<String> = report
        .kinds
        .iter()
        .filter(|(_, count)| count.lost() > 0)
        .map(|(kind, count)| format!("{kind}: {:?}", count.lost))
        .collect();
    let told = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join("; ")) };
    format!("{} of {}{told}", report.lost(), thousands(report.sent()))
}

fn p99(report: &Report) -> f64 {
    report.kinds.values().map(|count| count.p99_ms).fold(0.0, f64::max)
}

fn largest(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

/// A host's link cut, to all instances running elsewhere.
pub fn host_lost(runs: usize) -> Row {
    let fleet = Fleet::start();
    shop(&fleet, 6);
    let mut returned = Vec::new();
    let times: Vec<Duration> = (0..runs)
        .map(|run| {
            let host = Host(1 + u8::try_from(run % 3).expect("below 3"));
            let before = running(&fleet.snapshot());
            let old: Vec<u32> =
                before.iter().filter(|one| one.host.as_str() == host.name()).map(|one| one.pid).collect();
            let begin = Instant::now();
            fleet.cut(host);
            until("all run elsewhere", 2 * SOON, || {
                let now = running(&fleet.snapshot());
                if now.len() == 6 && now.iter().all(|one| one.host.as_str() != host.name()) {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            });
            let took = begin.elapsed();
            fleet.heal(host);
            let begin = Instant::now();
            until("what was replaced is gone", 2 * SOON, || {
                if old.iter().any(|pid| alive(*pid)) { Err(format!("{old:?}")) } else { Ok(()) }
            });
            returned.push(begin.elapsed());
            whole(&fleet, 6, 2 * SOON);
            took
        })
        .collect();
    Row {
        value: None,
        what: "a host's link cut, until all instances run elsewhere".into(),
        target: "p99 under 15 s".into(),
        figure: format!(
            "{}, longest of {runs}: {}",
            seconds(median(times.clone())),
            seconds(largest(&times))
        ),
        floor: format!(
            "its lease: 10 s; replaced instances ended {} after the link was back",
            seconds(median(returned))
        ),
    }
}

/// kill -9 of a pm and its start, to its instances adopted.
pub fn pm_killed(runs: usize) -> Row {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    repo.bazooka(&["scale", "-n", "3", "ticker"]).ok();
    let before = whole(&fleet, 6, SOON);
    let times: Vec<Duration> = (0..runs)
        .map(|_| {
            fleet.kill(Host(1));
            std::thread::sleep(Duration::from_millis(500));
            let begin = Instant::now();
            fleet.restart(Host(1));
            let took = begin.elapsed();
            assert_eq!(running(&fleet.snapshot()), before, "the same processes, started when they were");
            took
        })
        .collect();
    let mut lines = 0;
    let mut gaps = 0;
    for one in before.iter().filter(|one| one.host.as_str() == "host1") {
        let logs = repo.bazooka(&["logs", "-n", "10000", "-i", &one.id.to_string()]).ok().stdout;
        let numbers: Vec<u64> =
            logs.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        lines += numbers.len();
        gaps += numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    }
    Row {
        value: None,
        what: "a pm killed with SIGKILL and started again, until it has adopted its instances".into(),
        target: "under 3 s; the same processes, no gap in their output".into(),
        figure: format!("{}, longest: {}", seconds(median(times.clone())), seconds(largest(&times))),
        floor: format!("the same pids and start times; {gaps} gaps in {lines} numbered lines"),
    }
}

/// Many changes that take a reload each, while connections are held.
pub fn routing_changes(changes: u16) -> Row {
    let fleet = Fleet::start();
    shop(&fleet, 3);
    let load = load(&fleet, 100);
    let (visor, runtime) = fleet.visor();
    let app = "churn".parse().expect("valid");
    runtime
        .block_on(visor.register_app(&app, "bench", "t", jiff::Timestamp::UNIX_EPOCH))
        .expect("it is registered");
    let web: ProcName = "web".parse().expect("valid");
    let key = Key::Proc(app, web.clone());
    let begin = Instant::now();
    let mut most = 0;
    for change in 0..changes {
        let proc = Proc::new(&web, 30_000 + change % 10_000);
        let committed = runtime.block_on(visor.commit(Change::new().put(&key, &proc)));
        let Committed::Done(revision) = committed.expect("the coordinator answers") else {
            panic!("nothing stands against it");
        };
        until("both proxies have it", SOON, || {
            let applied: BTreeSet<i64> =
                fleet.snapshot().proxies.values().map(|proxy| proxy.applied).collect();
            if applied.iter().all(|applied| *applied >= revision) {
                Ok(())
            } else {
                Err(format!("{applied:?} of {revision}"))
            }
        });
        for proxy in [Proxy(1), Proxy(2)] {
            // The master is one of them.
            most = most.max(fleet.processes(proxy, "haproxy").len().saturating_sub(1));
        }
    }
    let took = begin.elapsed();
    let report = load.stop();
    Row {
        value: None,
        what: format!("HAProxy workers over {changes} changes that take a reload, with kept connections"),
        target: "at most 3".into(),
        figure: format!("{most}"),
        floor: format!(
            "a change in both proxies: {:.0} ms; requests lost: {}",
            took.as_secs_f64() * 1000.0 / f64::from(changes),
            lost(&report)
        ),
    }
}
