//! The coordinator's members killed and paused.

use std::time::{Duration, Instant};

use bazooka_tests::{
    Fleet,
    Machine::{Etcd, Host},
    SOON,
    shop::{alive, probe, running, shop, whole},
    until,
};

use super::{LOOK, load, lost};
use crate::{Row, median, seconds};

/// The leader cut off, to the next write that is done.
pub fn leader_killed(runs: usize) -> Row {
    let fleet = Fleet::start();
    shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    let mut lost_writes = 0;
    let times = (1..=runs).map(|run| {
        let run = u64::try_from(run).expect("small");
        let leader = fleet.leader();
        until("a write is done", SOON, || probe(&fleet, run).1.then_some(()).ok_or_else(String::new));
        let begin = Instant::now();
        fleet.cut(leader);
        lost_writes += u32::from(read(&fleet) != Some(run));
        until("a write is done", SOON, || probe(&fleet, run).1.then_some(()).ok_or_else(String::new));
        let took = begin.elapsed();
        fleet.heal(leader);
        until("it follows", SOON, || {
            let health = bazooka_tests::try_get(&format!("http://{}/health", leader.at(2379)), None)?;
            if health.status == 200 { Ok(()) } else { Err(format!("{health:?}")) }
        });
        took
    });
    let times: Vec<Duration> = times.collect();
    let same = running(&fleet.snapshot()) == before;
    Row {
        value: None,
        what: "etcd's leader cut off, until writes succeed again".into(),
        target: "under 4 s; none lost, nothing stopped".into(),
        figure: format!("{}, longest: {}", seconds(median(times.clone())), seconds(super::largest(&times))),
        floor: format!(
            "{lost_writes} acknowledged writes lost; instances {}; an election takes 1 to 2 s",
            if same { "as before" } else { "NOT as before" }
        ),
    }
}

/// What the probe's key holds, once somebody answers.
fn read(fleet: &Fleet) -> Option<u64> {
    let (visor, runtime) = fleet.visor();
    let store = visor.store().clone();
    let key = || visor::store::Keys::One("probe".into());
    let page = until("the coordinator answers", SOON, || {
        runtime.block_on(store.range(key(), None)).map_err(|error| format!("{error:?}"))
    });
    String::from_utf8_lossy(&page.entries.first()?.value).parse().ok()
}

/// Two of three members killed for a while.
pub fn quorum_gone(time: Duration) -> Row {
    let mut fleet = Fleet::start();
    shop(&fleet, 6);
    let before = running(&fleet.snapshot());
    let load = load(&fleet, 500);
    for member in [Etcd(1), Etcd(2)] {
        fleet.kill(member);
    }
    let begin = Instant::now();
    let mut stopped = 0;
    while begin.elapsed() < time {
        stopped = stopped.max(before.iter().filter(|one| !alive(one.pid)).count());
        std::thread::sleep(LOOK);
    }
    for member in [Etcd(1), Etcd(2)] {
        fleet.begin(member);
    }
    let begin = Instant::now();
    until("each host is registered", 2 * SOON, || {
        let snapshot = fleet.snapshot();
        let here = snapshot.hosts.values().filter(|view| view.host.is_some()).count();
        if here == 3 { Ok(()) } else { Err(format!("{here}")) }
    });
    let back = begin.elapsed();
    let after = whole(&fleet, 6, 2 * SOON);
    let report = load.stop();
    let changed = before.iter().filter(|one| !after.contains(one)).count();
    Row {
        value: None,
        what: format!("etcd's quorum gone for {} s", time.as_secs()),
        target: "0 instances stopped, 0 requests lost".into(),
        figure: format!("{stopped} stopped then, {changed} after; requests lost: {}", lost(&report)),
        floor: format!("all hosts registered {} after it was back", seconds(back)),
    }
}

/// A member that follows, then the leader, stopped where it stands.
pub fn member_paused(pause: Duration) -> Row {
    let mut fleet = Fleet::start();
    shop(&fleet, 3);
    let before = running(&fleet.snapshot());
    let mut slowest = Vec::new();
    let mut failed = 0;
    let leader = fleet.leader();
    let follower = [Etcd(1), Etcd(2), Etcd(3)].into_iter().find(|member| *member != leader);
    for member in [follower.expect("two follow"), leader] {
        fleet.pause(member);
        let begin = Instant::now();
        let mut worst = Duration::ZERO;
        while begin.elapsed() < pause {
            let (took, done) = probe(&fleet, 1);
            worst = worst.max(took);
            failed += u32::from(!done);
            std::thread::sleep(Duration::from_millis(10));
        }
        slowest.push(worst);
        fleet.resume(member);
        until("it is well", SOON, || probe(&fleet, 2).1.then_some(()).ok_or_else(String::new));
    }
    let hosts = [Host(1), Host(2), Host(3)];
    let registered = hosts.map(|host| fleet.log(host).matches("INFO registered").count());
    Row {
        value: None,
        what: format!("an etcd member paused for {} s: slowest visor call", pause.as_secs()),
        target: "4 s".into(),
        figure: format!(
            "{} with a follower paused, {} with the leader",
            seconds(slowest[0]),
            seconds(slowest[1])
        ),
        floor: format!(
            "a call's own deadline: 2 s; {failed} calls of unknown outcome; instances {}, registrations {registered:?}",
            if running(&fleet.snapshot()) == before { "as before" } else { "NOT as before" }
        ),
    }
}
