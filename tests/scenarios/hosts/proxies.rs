//! Proxies and links that fail: the other proxy serves, and nothing waits for ever.

use std::time::{Duration, Instant};

use bazooka_tests::{
    Answer, Fleet,
    Machine::{Converger, Host, Proxy, Rm},
    SOON,
    shop::{SHOP, running, shop, version, whole},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn a_killed_haproxy_is_back_within_a_second_and_the_other_proxy_serves() {
    let fleet = Fleet::start();
    shop(&fleet, 3);
    let (first, second) = (Proxy(1), Proxy(2));
    let load = bazooka_tests::Load::start(bazooka_tests::LoadOptions {
        addresses: vec![second.at(8080).parse().expect("an address")],
        hosts: vec![format!("{SHOP}.localhost:8080")],
        rate: 80,
        connections: 3,
        kinds: bazooka_tests::Kind::ALL.to_vec(),
        deadline: bazooka_tests::PATIENT,
    });
    let all = fleet.processes(first, "haproxy");
    assert!(all.len() >= 2, "a master and a worker: {all:?}");
    let begin = Instant::now();
    for pid in all {
        // A worker may end with its master.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    until("it answers again", SOON, || match fleet.ask(first, SHOP)? {
        Answer { status: 200, .. } => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let took = begin.elapsed();
    eprintln!("HAProxy is back after {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    load.stop().none_lost();
}

#[test]
fn a_rollout_waits_for_a_proxy_that_never_acknowledges_only_until_its_lease_ends() {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 2);
    fleet.pause(Proxy(1));
    version(&repo, "v2");
    let begin = Instant::now();
    repo.git(&["push", "bazooka", "master"]).ok();
    whole(&fleet, 2, Duration::from_secs(60));
    let took = begin.elapsed();
    eprintln!("rolled out after {took:?}");
    assert!(took < Duration::from_secs(40), "{took:?}");
    fleet.resume(Proxy(1));
    for proxy in [Proxy(1), Proxy(2)] {
        until("the new version answers", SOON, || match fleet.ask(proxy, SHOP)? {
            Answer { status: 200, body } if body.starts_with("v2\n") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn a_cluster_with_slow_and_lossy_links_converges() {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    for machine in [Host(1), Host(2), Host(3), Converger(1), Converger(2), Proxy(1), Rm] {
        fleet.nets().slow(machine.number(), Duration::from_millis(200), 0.05);
    }
    let before = running(&fleet.snapshot());
    let begin = Instant::now();
    repo.bazooka(&["scale", "-n", "6", "web"]).ok();
    whole(&fleet, 6, Duration::from_secs(60));
    eprintln!("scaled after {:?}", begin.elapsed());
    version(&repo, "v2");
    let begin = Instant::now();
    repo.git(&["push", "bazooka", "master"]).ok();
    let after = whole(&fleet, 6, Duration::from_secs(90));
    eprintln!("rolled out after {:?}", begin.elapsed());
    assert!(after.iter().all(|one| !before.contains(one)));
    assert!(fleet.snapshot().hosts.values().all(|view| view.host.is_some()), "no host was lost over it");
}
