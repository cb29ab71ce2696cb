//! The coordinator's members killed and paused: what runs and serves doesn't notice.

use std::time::{Duration, Instant};

use bazooka_tests::{
    Fleet,
    Machine::{self, Etcd},
    SOON,
    shop::{SHOP, alive, probe, running, shop, whole},
    until,
};
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
    assert!(took < Duration::from_secs(4), "{took:?}");
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
#[ignore = "takes two minutes"]
fn without_a_quorum_for_two_minutes_everything_runs_and_serves_on() {
    outlasts_quorum(Duration::from_secs(120));
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
