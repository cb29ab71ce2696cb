//! New versions, crashed instances and ways back, under load.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use bazooka_tests::{
    Fleet, Kind,
    Machine::Host,
    SOON, program,
    shop::{SHOP, blunt_shop, blunt_version, running, shop, version, whole},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{DEADLINE, load, lost, p99};
use crate::{Row, Value, median, seconds, thousands};

/// Rollouts of a running service, one with another app's first port opened in it: HAProxy reloads.
pub fn rollouts(runs: usize, rate: u32) -> Row {
    let fleet = Fleet::start();
    let repo = blunt_shop(&fleet, 6);
    let other = fleet.repo("other");
    version(&other, "other");
    other.bazooka(&["init"]).ok();
    let load = load(&fleet, rate);
    let times: Vec<Duration> = (2..2 + runs)
        .map(|n| {
            blunt_version(&repo, &format!("v{n}"));
            let begin = Instant::now();
            let mut push = repo.command("git", &["push", "-q", "bazooka", "master"]);
            let mut push =
                push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("git can be started");
            if n == 3 {
                load.answers("v3");
                other.git(&["push", "bazooka", "master"]).ok();
            }
            assert!(push.wait().expect("git ends").success());
            whole(&fleet, 6, 4 * SOON);
            begin.elapsed()
        })
        .collect();
    let report = load.stop();
    assert!(report.answers.contains_key(&format!("v{}", 1 + runs)), "{:?}", report.answers);
    Row {
        value: Some(Value::Lost(report.lost())),
        what: format!(
            "requests lost in {runs} rollouts at {}/s (GET and POST, kept and new connections, two proxies, 50 ms handlers, no SIGTERM handler, a reload)",
            thousands(rate.into())
        ),
        target: "0".into(),
        figure: lost(&report),
        floor: format!(
            "a rollout of 6: {}; p99 {:.0} ms; the load itself was up to {:.0} ms late",
            seconds(median(times)),
            p99(&report),
            report.late_ms
        ),
    }
}

/// kill -9 of one of three, again and again.
pub fn instance_killed(kills: usize) -> Row {
    let fleet = Fleet::start();
    shop(&fleet, 3);
    let load = load(&fleet, 500);
    for _ in 0..kills {
        // Each in turn: one that is killed a fourth time waits half a minute before it starts again.
        let victim =
            running(&fleet.snapshot()).into_iter().min_by_key(|one| one.restarts).expect("three run");
        let pid = Pid::from_raw(i32::try_from(victim.pid).expect("it fits"));
        kill(pid, Signal::SIGKILL).expect("it runs");
        until("it runs again", 2 * SOON, || {
            let now = running(&fleet.snapshot());
            if now.len() == 3 && now.iter().all(|one| one.pid != victim.pid) {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        });
    }
    let report = load.stop();
    Row {
        value: None,
        what: format!("requests lost when one of three instances gets SIGKILL, {kills} times at 500/s"),
        target: "0 of those safe to repeat".into(),
        figure: format!("{} safe to repeat", report.lost_safe()),
        floor: format!("of all kinds: {}", lost(&report)),
    }
}

/// A release that crashes at once, and one that passes its trial and then crashes again and again.
pub fn crash_loop(time: Duration) -> Row {
    let fleet = Fleet::start();
    let repo = shop(&fleet, 4);
    let load = load(&fleet, 100);
    version(&repo, "v2");
    let server = std::fs::read_to_string(repo.dir().join("server.js")).expect("it was written");
    let started = || -> usize {
        [Host(1), Host(2), Host(3)]
            .map(|host| fleet.log(host).matches("INFO instance runs").count())
            .iter()
            .sum()
    };
    let starts_of = |code: &str| {
        repo.write("server.js", &format!("{server}\n{code}\n"));
        repo.commit(code);
        let (begin, before) = (Instant::now(), started());
        let mut push = repo.command("git", &["push", "-q", "-f", "-o", "no-wait", "bazooka", "master"]);
        let status = push.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("git can be started");
        std::thread::sleep(time.saturating_sub(begin.elapsed()));
        (started() - before, if status.success() { "taken" } else { "refused" })
    };
    let (at_once, first) = starts_of("process.exit(1)");
    // Long enough to be verified.
    let (later, second) = starts_of("setTimeout(() => process.exit(1), 1500)");
    let report = load.stop();
    Row {
        value: None,
        what: format!("starts of a crash-looping rev over the cluster in {} s", time.as_secs()),
        target: "10 a minute; the old rev serves".into(),
        figure: format!("{at_once} ({first}); of one that passes its trial: {later} ({second})"),
        floor: format!(
            "safe requests lost: {} of {}; v1 answered {} times",
            report.lost_safe(),
            report.sent(),
            report.answers.get("v1").map_or(0, |(times, _)| *times)
        ),
    }
}

/// `rollback` to the first answer of the old rev.
pub fn rollback(runs: usize) -> Row {
    let fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    let times: Vec<Duration> = (0..runs)
        .map(|run| {
            let n = 10 * (run + 1);
            let old = format!("v{n}");
            version(&repo, &old);
            repo.git(&["push", "bazooka", "master"]).ok();
            version(&repo, &format!("v{}", n + 1));
            repo.git(&["push", "bazooka", "master"]).ok();
            whole(&fleet, 3, 2 * SOON);
            let load = fleet.load_of(SHOP, 200, 4, &[Kind { post: false, new: true }], DEADLINE);
            let begin = Instant::now();
            let mut rollback = repo.command(&program("bazooka").display().to_string(), &["rollback"]);
            let mut rollback = rollback.stdout(Stdio::null()).spawn().expect("bazooka can be started");
            load.answers(&old);
            let took = begin.elapsed();
            assert!(rollback.wait().expect("it ends").success());
            whole(&fleet, 3, 2 * SOON);
            took
        })
        .collect();
    Row {
        value: None,
        what: "rollback of a running service, command to the old rev's first answer".into(),
        target: "under 1 s".into(),
        figure: format!("{}, longest: {}", seconds(median(times.clone())), seconds(super::largest(&times))),
        floor: "with a request every 5 ms".into(),
    }
}
