//! bazooka-pm killed and paused: its instances don't notice, and none runs twice.

use std::time::{Duration, Instant};

use bazooka_tests::{
    Fleet,
    Machine::Host,
    SOON,
    shop::{SHOP, alive, ids, running, shop, told, whole},
    until,
};
use visor::names::HostName;

#[test]
fn a_killed_pm_adopts_its_instances_and_no_line_of_their_output_is_missing() {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    repo.bazooka(&["scale", "-n", "3", "ticker"]).ok();
    let before = whole(&fleet, 6, SOON);
    let load = fleet.load(SHOP, 160);
    fleet.kill(Host(1));
    // A second in which nobody is there to read.
    std::thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    fleet.restart(Host(1));
    let took = begin.elapsed();
    eprintln!("adopted after {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(running(&fleet.snapshot()), before, "the same processes, started when they were");
    let snapshot = fleet.snapshot();
    let assigned = &snapshot.hosts[&"host1".parse::<HostName>().expect("valid")].assigned;
    let tickers: Vec<_> = assigned.iter().filter(|(_, row)| row.proc.as_str() == "ticker").collect();
    assert!(!tickers.is_empty(), "one ticker on each host");
    for (id, _) in tickers {
        // A line each 10 ms, of a second and more.
        let numbers = until("the log holds what was said meanwhile", SOON, || {
            let logs = repo.bazooka(&["logs", "-n", "10000", "-i", &id.to_string()]).ok().stdout;
            let numbers: Vec<u64> =
                logs.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
            if numbers.len() > 100 { Ok(numbers) } else { Err(logs) }
        });
        let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
        assert_eq!((numbers[0], gap), (0, None), "{} lines", numbers.len());
    }
    load.stop().none_lost();
}

#[test]
fn instances_of_a_paused_pm_are_replaced_and_settled_as_soon_as_it_goes_on() {
    paused_for(Duration::ZERO);
}

#[test]
#[ignore = "takes most of a minute"]
fn instances_of_a_pm_paused_for_half_a_minute_are_replaced_and_settled() {
    paused_for(Duration::from_secs(30));
}

/// Pauses a pm until its instances have been replaced, and at least for so long.
fn paused_for(at_least: Duration) {
    let mut fleet = Fleet::start();
    shop(&fleet, 6);
    let load = fleet.load(SHOP, 160);
    let before = running(&fleet.snapshot());
    let old: Vec<_> = before.iter().filter(|one| one.host.as_str() == "host1").collect();
    assert!(!old.is_empty(), "{before:?}");
    let begin = Instant::now();
    fleet.pause(Host(1));
    until("they are replaced", Duration::from_secs(15), || {
        let snapshot = fleet.snapshot();
        let now = running(&snapshot);
        let replaced = now.len() == before.len() && old.iter().all(|one| !ids(&now).contains(&one.id));
        if replaced { Ok(()) } else { Err(told(&snapshot)) }
    });
    eprintln!("replaced after {:?}", begin.elapsed());
    std::thread::sleep(at_least.saturating_sub(begin.elapsed()));
    fleet.resume(Host(1));
    let begin = Instant::now();
    until("what was replaced has ended", SOON, || {
        let left: Vec<_> = old.iter().filter(|one| alive(one.pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let took = begin.elapsed();
    eprintln!("settled {took:?} after it went on");
    assert!(took < Duration::from_secs(8), "{took:?}");
    whole(&fleet, 6, SOON);
    load.stop().no_safe_one_lost();
}
