//! Hosts that vanish, half vanish, and come back.

use std::time::{Duration, Instant};

use bazooka_tests::{
    Fleet,
    Machine::{Converger, Host},
    SOON, program,
    shop::{Running, SHOP, alive, ids, running, shop, told, version, whole},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use visor::schema::Desired;

use crate::rollouts::whole_of;

/// The lease time of a host, and what a replacement may take on top.
const LOST_WITHIN: Duration = Duration::from_secs(15);

/// How soon, in seconds, HAProxy has noticed that a host answers nothing: by a refused connection, or by its checks.
pub const NOTICED: f64 = 3.5;

/// Waits until so many run on hosts that are here, whatever is left of others.
fn serves(fleet: &Fleet, instances: usize, within: Duration) {
    until(&format!("{instances} instances run"), within, || {
        let snapshot = fleet.snapshot();
        let running = running(&snapshot);
        if running.len() == instances { Ok(()) } else { Err(format!("{running:?}, {}", told(&snapshot))) }
    });
}

#[test]
fn what_ran_on_a_lost_host_runs_elsewhere_and_a_host_that_returns_gives_it_up() {
    let fleet = Fleet::start();
    shop(&fleet, 6);
    let before = running(&fleet.snapshot());
    let on_first: Vec<_> = before.iter().filter(|one| one.host.as_str() == "host1").cloned().collect();
    assert_eq!(on_first.len(), 2, "they are spread: {before:?}");
    let load = fleet.load(SHOP, 160);

    let begin = Instant::now();
    let cut_at = load.seconds();
    fleet.cut(Host(1));
    until("the host is missed", LOST_WITHIN, || {
        let snapshot = fleet.snapshot();
        let gone = snapshot.hosts.iter().any(|(name, view)| name.as_str() == "host1" && view.host.is_none());
        if gone { Ok(()) } else { Err("it is registered".into()) }
    });
    serves(&fleet, 6, LOST_WITHIN.saturating_sub(begin.elapsed()));
    eprintln!("all run elsewhere after {:?}", begin.elapsed());
    let pids = |ours: &[Running]| ours.iter().map(|one| one.pid).collect::<Vec<_>>();
    let old = pids(&on_first);
    assert!(old.iter().all(|pid| alive(*pid)), "what is cut off isn't stopped for that");

    fleet.heal(Host(1));
    let begin = Instant::now();
    until("what was replaced is gone from it", 2 * SOON, || {
        let left: Vec<_> = old.iter().filter(|pid| alive(**pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    eprintln!("the old ones are gone {:?} after the link came back", begin.elapsed());
    let after = whole(&fleet, 6, SOON);
    assert!(on_first.iter().all(|one| !ids(&after).contains(&one.id)), "{after:?}");
    // What was with the host just then can't be saved: nobody knows that it has gone before it is missed.
    let report = load.stop();
    report.tell();
    assert_eq!(report.lost_safe_after(cut_at + NOTICED), 0, "{report:#?}");
}

#[test]
fn a_host_that_is_not_heard_is_lost_once_and_for_all_though_it_hears() {
    let mut fleet = Fleet::start();
    shop(&fleet, 3);
    fleet.nets().mute(Host(1).number());
    serves(&fleet, 2, LOST_WITHIN);
    serves(&fleet, 3, LOST_WITHIN);
    let settled = ids(&running(&fleet.snapshot()));
    // Longer than a lease: a host that flaps would show.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(12) {
        let snapshot = fleet.snapshot();
        assert_eq!(ids(&running(&snapshot)), settled, "no flapping: {}", told(&snapshot));
        std::thread::sleep(Duration::from_millis(100));
    }
    fleet.heal(Host(1));
    whole(&fleet, 3, SOON);
}

/// Waits until the converger says that hosts are frozen, and returns how many.
fn frozen(fleet: &Fleet) -> usize {
    until("the converger says that it is frozen", Duration::from_secs(20), || {
        let snapshot = fleet.snapshot();
        let frozen = snapshot.leader.as_ref().and_then(|leader| leader.frozen.as_ref());
        frozen.map(|frozen| frozen.hosts.len()).ok_or_else(|| told(&snapshot))
    })
}

#[test]
fn on_an_operators_word_the_hosts_that_went_at_once_are_given_up() {
    let fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    fleet.cut(Host(1));
    fleet.cut(Host(2));
    assert_eq!(frozen(&fleet), 2);
    repo.bazooka(&["hosts", "unfreeze"]).ok();
    serves(&fleet, 3, SOON);
    fleet.heal(Host(1));
    fleet.heal(Host(2));
    whole(&fleet, 3, SOON);
}

#[test]
fn two_of_three_hosts_gone_at_once_are_not_given_up_until_one_returns() {
    let fleet = Fleet::start();
    shop(&fleet, 6);
    let before = ids(&running(&fleet.snapshot()));
    fleet.cut(Host(1));
    fleet.cut(Host(2));
    assert_eq!(frozen(&fleet), 2);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        let snapshot = fleet.snapshot();
        let rows = snapshot.hosts.values().flat_map(|view| &view.assigned);
        assert!(rows.clone().all(|(_, row)| row.desired == Desired::Run), "{}", told(&snapshot));
        assert_eq!(rows.count(), 6, "nothing is replaced: {}", told(&snapshot));
        std::thread::sleep(Duration::from_millis(100));
    }
    fleet.heal(Host(1));
    fleet.heal(Host(2));
    until("it is not frozen any more", SOON, || {
        let frozen = fleet.snapshot().leader.as_ref().and_then(|leader| leader.frozen.clone());
        if frozen.is_none() { Ok(()) } else { Err(format!("{frozen:?}")) }
    });
    assert_eq!(ids(&whole(&fleet, 6, SOON)), before, "all of them ran through");
}

/// Where Debian's faketime package puts its library.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What stands before a command whose clock shall be wrong by so many seconds; how time passes stays true.
fn clock_off_by(seconds: i32) -> Vec<String> {
    let envs = [
        format!("LD_PRELOAD={FAKETIME}"),
        format!("FAKETIME={seconds:+}"),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    ["env".to_owned()].into_iter().chain(envs).collect()
}

#[test]
fn clocks_that_are_wrong_by_an_hour_lose_no_lease_and_start_nothing_twice() {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 6);
    // A host's shims go by the same clock.
    let folder = tempfile::tempdir().expect("a folder can be made");
    let open: fn(u32) -> std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(folder.path(), open(0o755)).expect("the mode can be set");
    let shim = folder.path().join("bazooka-shim");
    let (fast, slow) = (clock_off_by(3_600), clock_off_by(-3_600));
    let script = format!("#!/bin/sh\nexec {} {} \"$@\"\n", fast.join(" "), program("bazooka-shim").display());
    std::fs::write(&shim, script).expect("there is room");
    std::fs::set_permissions(&shim, open(0o755)).expect("the mode can be set");
    fleet.restart_under(Host(1), &fast, &["--shim".to_owned(), shim.display().to_string()]);
    let elected = fleet.elected();
    fleet.restart_under(elected, &slow, &[]);
    let other = if elected == Converger(1) { Converger(2) } else { Converger(1) };
    fleet.restart_under(other, &slow, &[]);
    let before = whole(&fleet, 6, SOON);
    let on_first: Vec<_> = before.iter().filter(|one| one.host.as_str() == "host1").collect();
    let ahead = on_first.first().and_then(|one| one.started_at).expect("its host has room");
    assert!(ahead > jiff::Timestamp::now(), "its clock is ahead: {on_first:?}");

    let load = fleet.load(SHOP, 160);
    // Longer than a host's lease.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(running(&fleet.snapshot()), before, "nothing was lost, and nothing started again");
    // A push is tried, proven and rolled out, wherever its instances are.
    version(&repo, "v2");
    repo.git(&["push", "bazooka", "master"]).ok();
    whole_of(&fleet, 2, 6);
    load.stop().none_lost();
    // One that dies is started again at once.
    let victim = running(&fleet.snapshot()).into_iter().find(|one| one.host.as_str() == "host1");
    let victim = victim.expect("its host has room");
    kill(Pid::from_raw(i32::try_from(victim.pid).expect("it fits")), Signal::SIGKILL).expect("it runs");
    until("it runs again", SOON, || {
        let now = running(&fleet.snapshot());
        let again = now.iter().any(|one| one.id == victim.id && one.pid != victim.pid);
        if again { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let ps = repo.bazooka(&["ps", "-l"]).ok().stdout;
    let hours =
        ps.split_whitespace().filter(|word| word.ends_with('h') || word.starts_with('-') && word.len() > 1);
    assert_eq!(hours.count(), 0, "nothing runs for an hour, nor since a time to come: {ps}");
}
