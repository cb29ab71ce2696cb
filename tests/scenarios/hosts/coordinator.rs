//! The coordinator's members killed and paused: what runs and serves doesn't notice.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use bazooka_tests::{
    Fleet,
    Machine::{self, Etcd},
    SOON, Setting, etcdctl,
    shop::{SHOP, alive, probe, running, shop, whole},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use visor::store::{Op, Txn};

/// Writes until it is done and returns how long that took.
fn writes_again(fleet: &Fleet) -> Duration {
    let begin = Instant::now();
    until("the coordinator takes writes", SOON, || match probe(fleet, 0) {
        (_, true) => Ok(()),
        (took, false) => Err(format!("the last call took {took:?}")),
    });
    begin.elapsed()
}

#[test]
fn a_coordinator_whose_leader_is_killed_takes_writes_again_and_nothing_stops() {
    let mut fleet = Fleet::start();
    shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    let load = fleet.load(SHOP, 160);
    let leader = fleet.leader();
    let acknowledged = probe(&fleet, 7);
    assert!(acknowledged.1);
    fleet.kill(leader);
    let took = writes_again(&fleet);
    eprintln!("writes again after {took:?}");
    assert!(took < SOON, "{took:?}");
    assert_eq!(running(&fleet.snapshot()), before, "nothing was stopped or started");
    fleet.restart(leader);
    assert_eq!(running(&fleet.snapshot()), before);
    load.stop().none_lost();
}

#[test]
fn a_paused_member_of_the_coordinator_holds_no_call_up_for_long_even_if_it_leads() {
    let mut fleet = Fleet::start();
    shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    slowest_call(&mut fleet, Duration::from_secs(6));
    assert_eq!(running(&fleet.snapshot()), before);
}

#[test]
#[ignore = "takes a minute: each member is paused for 20 s"]
fn members_of_the_coordinator_are_paused_for_twenty_seconds_each() {
    let mut fleet = Fleet::start();
    shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    slowest_call(&mut fleet, Duration::from_secs(20));
    assert_eq!(running(&fleet.snapshot()), before);
}

/// Pauses a member that follows, then the one that leads, and calls all the while.
fn slowest_call(fleet: &mut Fleet, pause: Duration) {
    let leader = fleet.leader();
    let follower = [Etcd(1), Etcd(2), Etcd(3)].into_iter().find(|member| *member != leader);
    for member in [follower.expect("two follow"), leader] {
        fleet.pause(member);
        let begin = Instant::now();
        let mut slowest = Duration::ZERO;
        let mut failed = 0;
        while begin.elapsed() < pause {
            let (took, done) = probe(fleet, 1);
            slowest = slowest.max(took);
            failed += u32::from(!done);
            std::thread::sleep(Duration::from_millis(10));
        }
        fleet.resume(member);
        eprintln!("{member:?} paused: slowest call {slowest:?}, {failed} without a result");
        assert!(slowest < Duration::from_secs(4), "{member:?} was paused: {slowest:?}");
        until("it leads or follows again", SOON, || probe(fleet, 2).1.then_some(()).ok_or_else(String::new));
    }
}

#[test]
fn without_a_quorum_everything_runs_and_serves_on() {
    outlasts_quorum(Duration::from_secs(13));
}

#[test]
#[ignore = "takes ten minutes"]
fn without_a_quorum_for_ten_minutes_everything_runs_and_serves_on() {
    outlasts_quorum(Duration::from_secs(600));
}

/// Longer than any lease.
fn outlasts_quorum(time: Duration) {
    let mut fleet = Fleet::start();
    shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    let load = fleet.load(SHOP, 160);
    let killed: [Machine; 2] = [Etcd(1), Etcd(2)];
    killed.iter().for_each(|member| fleet.kill(*member));
    let begin = Instant::now();
    while begin.elapsed() < time {
        assert!(before.iter().all(|one| alive(one.pid)), "{before:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    killed.iter().for_each(|member| fleet.begin(*member));
    killed.iter().for_each(|member| fleet.ready(*member));
    // Its leases have ended or have not: all hosts come back, and have what they had.
    until("each host is registered", SOON, || {
        let snapshot = fleet.snapshot();
        let here = snapshot.hosts.values().filter(|view| view.host.is_some()).count();
        if here == 3 { Ok(()) } else { Err(format!("{here}")) }
    });
    assert_eq!(whole(&fleet, 3, SOON), before, "nothing was stopped or started");
    load.stop().none_lost();
}

/// Writes beside the cluster's own until the coordinator takes no more.
fn fill(fleet: &Fleet) {
    let (visor, runtime) = fleet.visor();
    let store = visor.store().clone();
    for n in 0.. {
        let put = Op::Put { key: format!("ballast/{n}"), value: vec![b'x'; 1 << 20].into(), lease: None };
        if let Err(error) = runtime.block_on(store.txn(Txn { then: vec![put], ..Txn::default() })) {
            eprintln!("after {n} MiB: {error}");
            return;
        }
    }
}

/// What an operator does when the coordinator is full.
fn make_room() {
    let members = Fleet::coordinator();
    etcdctl(&members, &["del", "--prefix", "/bazooka/ballast/"]);
    let status = etcdctl(&members, &["endpoint", "status", "--write-out=json"]);
    let revision = status.split("\"revision\":").nth(1).expect("it says its revision");
    let revision: String = revision.chars().take_while(char::is_ascii_digit).collect();
    etcdctl(&members, &["compact", &revision]);
    // One at a time, since each stands still meanwhile.
    for member in members.clone() {
        etcdctl(&[member], &["defrag"]);
    }
    etcdctl(&members, &["alarm", "disarm"]);
}

#[test]
fn a_full_coordinator_stops_nothing_is_told_plainly_and_all_goes_on_once_there_is_room() {
    let fleet = Fleet::start_so(Setting { quota_bytes: 16 << 20, ..Setting::default() });
    let repo = shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    let load = fleet.load(SHOP, 160);
    fill(&fleet);
    let refused = repo.bazooka(&["scale", "-n", "4", "web"]);
    assert!(refused.code != 0, "{refused:?}");
    assert!(refused.stderr.contains("the coordinator is full"), "{refused:?}");
    assert!(refused.stderr.contains("hint: what runs goes on"), "{refused:?}");
    // What dies meanwhile is mended where it is; nobody can be told.
    let victim = before[0].pid;
    kill(Pid::from_raw(i32::try_from(victim).expect("it fits")), Signal::SIGKILL).expect("it runs");
    until("what was killed is gone", SOON, || if alive(victim) { Err("it runs".to_owned()) } else { Ok(()) });
    // Longer than a host's lease.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(before.iter().filter(|one| alive(one.pid)).count(), 2, "the others run on");
    make_room();
    let begin = Instant::now();
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    whole(&fleet, 4, SOON);
    let took = begin.elapsed();
    eprintln!("converged after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Its host tells of it when it next tries to.
    until("what was killed is said to run anew", SOON, || {
        let now = running(&fleet.snapshot());
        let same = now.iter().filter(|one| before.contains(one)).count();
        if now.len() == 4 && same == 2 { Ok(()) } else { Err(format!("{before:?}, {now:?}")) }
    });
    load.stop().no_safe_one_lost();
}

/// Makes each sync of a process take so much longer, until it is dropped.
struct SlowDisk(Child);

impl SlowDisk {
    fn under(process: u32, delay: Duration) -> SlowDisk {
        let inject = format!("inject=fdatasync:delay_enter={}", delay.as_micros());
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject]);
        SlowDisk(strace.args(["-p", &process.to_string()]).spawn().expect("it can be started"))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // It lets go of what it traced.
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).expect("it fits")), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

#[test]
fn a_coordinator_on_slow_disks_loses_no_host() {
    let traces =
        Command::new("strace").args(["-o", "/dev/null", "true"]).output().expect("strace is installed");
    if !traces.status.success() {
        eprintln!("not tried: this machine lets nobody trace a process: {traces:?}");
        return;
    }
    let fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    let load = fleet.load(SHOP, 160);
    let registered = |fleet: &Fleet| -> Vec<_> {
        let snapshot = fleet.snapshot();
        snapshot
            .hosts
            .iter()
            .map(|(name, view)| (name.clone(), view.host.as_ref().map(|row| row.mod_revision)))
            .collect()
    };
    let hosts = registered(&fleet);
    let slow: Vec<SlowDisk> = [Etcd(1), Etcd(2), Etcd(3)]
        .map(|member| SlowDisk::under(fleet.part(member).pid(), Duration::from_millis(500)))
        .into();
    until("a write takes as long as a sync", SOON, || match probe(&fleet, 0) {
        (took, true) if took >= Duration::from_millis(500) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Longer than a host's lease.
    std::thread::sleep(Duration::from_secs(13));
    assert_eq!(registered(&fleet), hosts, "no host was lost, nor registered again");
    assert_eq!(running(&fleet.snapshot()), before);
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    let now = whole(&fleet, 4, SOON);
    assert!(before.iter().all(|one| now.contains(one)), "{before:?}, {now:?}");
    drop(slow);
    load.stop().none_lost();
}
