//! Two zones that lose each other: each serves its own clients from its own instances.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bazooka_tests::{
    Fleet, Kind, Load, LoadOptions,
    Machine::{Clients, Host, Proxy},
    Repo, Report, SOON, Setting,
    shop::{Running, SHOP, alive, ids, running, told, whole},
    until,
};
use visor::schema::State;

/// Answers after 50 ms with its instance.
const SERVER: &str = r#"
const server = require("http").createServer((request, response) =>
  setTimeout(() => response.end(`${process.env.BAZOOKA_INSTANCE}\n`), 50));
server.listen(process.env.PORT);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"#;

/// How many hosts are in zone a, and in zone b: a third of them, which is given up when it goes at once.
const HOSTS: (u8, u8) = (4, 2);

/// Requests a second in each zone.
const RATE: u32 = 160;

/// When a request counts as lost. What was with an instance that has vanished is sent to another after 4 s, if it is safe to
/// repeat.
const DEADLINE: Duration = Duration::from_secs(10);

/// What was sent no more than this many seconds before a cut may have been with an instance of the other zone.
const UNDER_WAY: f64 = 0.2;

/// How soon, in seconds, a busy machine has taken the link down after it was told to.
const CUT: f64 = 0.2;

fn fleet() -> Fleet {
    Fleet::start_so(Setting { hosts: HOSTS, zoned_proxies: true, ..Setting::default() })
}

/// The app, without an instance.
fn app(fleet: &Fleet) -> Repo {
    let repo = fleet.repo(SHOP);
    repo.write("Procfile", "web: node server.js\n").write("server.js", SERVER).commit("v1");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo
}

/// A steady load of a zone's clients on their own proxy.
fn load(fleet: &Fleet, zone: u8) -> Load {
    let proxy = Proxy(zone);
    fleet.on(Clients(zone), || {
        until("the app answers", SOON, || match fleet.ask(proxy, SHOP)?.status {
            200 => Ok(()),
            other => Err(other.to_string()),
        });
        Load::start(LoadOptions {
            addresses: vec![proxy.at(8080).parse().expect("an address")],
            hosts: vec![format!("{SHOP}.localhost:8080")],
            rate: RATE,
            connections: 12,
            kinds: Kind::ALL.to_vec(),
            deadline: DEADLINE,
        })
    })
}

fn beyond(one: &Running) -> bool {
    (HOSTS.0 + 1..=HOSTS.0 + HOSTS.1).any(|n| Host(n).name() == one.host.as_str())
}

/// The part of the answers between two reports that came from these instances.
fn share(earlier: &Report, later: &Report, of: &[Running]) -> f64 {
    let before = |id: &String| earlier.answers.get(id).map_or(0, |(times, _)| *times);
    let answers: BTreeMap<&String, u64> =
        later.answers.iter().map(|(id, (times, _))| (id, times - before(id))).collect();
    let of: BTreeSet<String> = of.iter().map(|one| one.id.to_string()).collect();
    let theirs: u64 = answers.iter().filter(|(id, _)| of.contains(**id)).map(|(_, times)| times).sum();
    theirs as f64 / answers.values().sum::<u64>().max(1) as f64
}

/// Waits until an instance's share of the answers is as wanted, looking at a second of them at a time.
fn until_share(load: &Load, what: &str, of: &[Running], wanted: impl Fn(f64) -> bool) {
    let mut last = (Instant::now(), load.so_far());
    until(what, SOON, || {
        if last.0.elapsed() < Duration::from_secs(1) {
            return Err("not looked at yet".to_owned());
        }
        let earlier = std::mem::replace(&mut last, (Instant::now(), load.so_far()));
        let share = share(&earlier.1, &last.1, of);
        if wanted(share) { Ok(()) } else { Err(format!("{share:.3}")) }
    });
}

/// Fails the test if anything was lost but what was under way to the other zone at the moment of a cut and isn't safe to
/// repeat.
fn only_what_was_under_way_is_lost(report: &Report, cut_at: f64) {
    report.tell();
    assert_eq!(report.lost_safe(), 0, "{report:#?}");
    let under_way = cut_at - UNDER_WAY..cut_at + CUT;
    assert!(report.lost_at.iter().all(|(at, _)| under_way.contains(at)), "cut at {cut_at}: {report:#?}");
    assert!(report.lost() <= 12, "more than a proxy has under way: {report:#?}");
}

#[test]
fn a_zone_that_is_cut_off_serves_its_own_clients_and_the_other_makes_itself_whole() {
    let fleet = fleet();
    let repo = app(&fleet);
    repo.bazooka(&["scale", "-n", "6", "web"]).ok();
    let before = whole(&fleet, 6, SOON);
    let (there, here): (Vec<Running>, Vec<Running>) = before.iter().cloned().partition(beyond);
    assert_eq!((here.len(), there.len()), (3, 3), "{before:?}");
    let loads = [load(&fleet, 1), load(&fleet, 2)];
    until_share(&loads[0], "zone a's clients are answered there", &here, |share| share > 0.95);
    until_share(&loads[1], "zone b's clients are answered there", &there, |share| share > 0.95);

    let (begin, cut_at) = (Instant::now(), loads.each_ref().map(Load::seconds));
    fleet.part_zones();
    until("all run in the zone with the coordinator's majority", SOON, || {
        let snapshot = fleet.snapshot();
        let now = running(&snapshot);
        if now.len() == 6 && !now.iter().any(beyond) { Ok(()) } else { Err(told(&snapshot)) }
    });
    let took = begin.elapsed();
    eprintln!("whole in zone a after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let cut = loads[1].so_far();
    until_share(&loads[1], "zone b's clients are answered there and nowhere else", &there, |share| {
        share >= 1.0
    });
    assert!(there.iter().all(|one| alive(one.pid)), "what is cut off isn't stopped for that");
    assert!(share(&cut, &loads[1].so_far(), &there) >= 1.0);

    let begin = Instant::now();
    fleet.join_zones();
    until("what was replaced has ended", 2 * SOON, || {
        let left: Vec<_> = there.iter().filter(|one| alive(one.pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let after = whole(&fleet, 6, SOON);
    let took = begin.elapsed();
    eprintln!("what was replaced had ended {took:?} after the link came back");
    assert!(took < Duration::from_secs(45), "{took:?}");
    assert!(ids(&after).is_disjoint(&ids(&there)) && here.iter().all(|one| after.contains(one)), "{after:?}");
    until_share(&loads[1], "zone b's clients are answered by those of zone a", &after, |share| share >= 1.0);

    // A rollout spreads them again, and each zone has its own.
    repo.write("note", "2").commit("v2");
    repo.git(&["push", "bazooka", "master"]).ok();
    let (there, here): (Vec<Running>, Vec<Running>) = whole(&fleet, 6, SOON).into_iter().partition(beyond);
    assert_eq!((here.len(), there.len()), (3, 3), "{there:?}");
    until_share(&loads[0], "zone a's clients are answered there again", &here, |share| share > 0.95);
    until_share(&loads[1], "zone b's clients are answered there again", &there, |share| share > 0.95);
    for (load, cut_at) in loads.into_iter().zip(cut_at) {
        only_what_was_under_way_is_lost(&load.stop(), cut_at);
    }
}

#[test]
fn a_zone_with_one_instance_goes_on_with_that_alone_and_loses_nothing_when_it_is_back() {
    let fleet = fleet();
    let repo = app(&fleet);
    repo.bazooka(&["scale", "--zone", "a", "-n", "4", "web"]).ok();
    repo.bazooka(&["scale", "--zone", "b", "-n", "1", "web"]).ok();
    let before = whole(&fleet, 5, SOON);
    let (there, here): (Vec<Running>, Vec<Running>) = before.iter().cloned().partition(beyond);
    assert_eq!((here.len(), there.len()), (4, 1), "{before:?}");
    let load = load(&fleet, 2);
    until_share(&load, "half of zone b's clients are answered by zone a", &here, |share| share > 0.4);

    let cut_at = load.seconds();
    fleet.part_zones();
    // Its place is in zone b: it isn't replaced elsewhere.
    until("what can't be reached is lost, and nothing else can take its place", SOON, || {
        let snapshot = fleet.snapshot();
        let mut said = snapshot.hosts.values().flat_map(|view| &view.status);
        let lost = said.any(|(id, status)| *id == there[0].id && status.state == State::Lost);
        if lost { Ok(()) } else { Err(told(&snapshot)) }
    });
    assert_eq!(running(&fleet.snapshot()), here);
    until_share(&load, "one instance answers all of zone b's clients", &there, |share| share >= 1.0);

    let begin = Instant::now();
    fleet.join_zones();
    until("all is as it was: the same processes, started when they were", SOON, || {
        let now = running(&fleet.snapshot());
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    eprintln!("as before {:?} after the link came back", begin.elapsed());
    until_share(&load, "half of zone b's clients are answered by zone a again", &here, |share| share > 0.4);
    assert_eq!(whole(&fleet, 5, SOON), before);
    only_what_was_under_way_is_lost(&load.stop(), cut_at);
}
