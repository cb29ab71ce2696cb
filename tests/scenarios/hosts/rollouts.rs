//! New versions of an app under load: no request is lost, whatever happens meanwhile.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use bazooka_tests::{
    Fleet, Kind,
    Machine::Host,
    PATIENT, Repo, SOON,
    shop::{SHOP, blunt_shop, blunt_version, running, shop, told, version, whole},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use visor::names::ReleaseId;

use crate::hosts::NOTICED;

/// Begins a push and doesn't wait for it.
fn pushing(repo: &Repo) -> Child {
    let mut push = repo.command("git", &["push", "bazooka", "master"]);
    push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("git can be started")
}

/// How many of a release run.
fn of_release(fleet: &Fleet, release: u32) -> usize {
    running(&fleet.snapshot()).iter().filter(|one| one.release == ReleaseId(release)).count()
}

/// Waits until the rollout of a release is under way: some run, and some of the old ones too.
fn under_way(fleet: &Fleet, release: u32) {
    until("the rollout is under way", SOON, || match of_release(fleet, release) {
        0 | 1 => Err(told(&fleet.snapshot())),
        _ => Ok(()),
    });
}

#[test]
fn a_rollout_with_a_reload_in_it_loses_no_request() {
    let fleet = Fleet::start();
    let repo = shop(&fleet, 4);
    let other = fleet.repo("other");
    version(&other, "other");
    other.bazooka(&["init"]).ok();
    let load = fleet.load(SHOP, 160);
    version(&repo, "v2");
    let mut push = pushing(&repo);
    load.answers("v2");
    // Another app's first service opens a port: HAProxy is reloaded in the middle.
    other.git(&["push", "bazooka", "master"]).ok();
    other.bazooka(&["scale", "-n", "1", "web"]).ok();
    assert!(push.wait().expect("git ends").success());
    whole(&fleet, 5, SOON);
    let report = load.stop().none_lost();
    assert!(report.answers.contains_key("v1") && report.answers.contains_key("v2"), "{report:#?}");
}

#[test]
fn a_rollout_of_an_app_that_dies_of_sigterm_at_once_loses_no_request() {
    let fleet = Fleet::start();
    let repo = blunt_shop(&fleet, 4);
    let load = fleet.load(SHOP, 160);
    blunt_version(&repo, "v2");
    repo.git(&["push", "bazooka", "master"]).ok();
    whole(&fleet, 4, SOON);
    let report = load.stop().none_lost();
    assert!(report.answers.contains_key("v2"), "{report:#?}");
}

#[test]
fn a_rollout_goes_on_when_a_host_is_cut_off_in_the_middle() {
    let fleet = Fleet::start();
    let repo = shop(&fleet, 6);
    let load = fleet.load(SHOP, 160);
    version(&repo, "v2");
    let mut push = pushing(&repo);
    under_way(&fleet, 2);
    let cut_at = load.seconds();
    fleet.cut(Host(2));
    until("six of the new release run elsewhere", Duration::from_secs(60), || match of_release(&fleet, 2) {
        6 => Ok(()),
        n => Err(format!("{n}: {}", told(&fleet.snapshot()))),
    });
    fleet.heal(Host(2));
    whole(&fleet, 6, SOON);
    assert!(push.wait().expect("git ends").success());
    let report = load.stop();
    report.tell();
    assert_eq!(report.lost_safe_after(cut_at + NOTICED), 0, "{report:#?}");
}

#[test]
fn an_instance_of_three_killed_loses_no_request_that_is_safe_to_repeat() {
    let fleet = Fleet::start();
    shop(&fleet, 3);
    let load = fleet.load(SHOP, 160);
    for _ in 0..3 {
        let victim = running(&fleet.snapshot())[0].clone();
        kill(Pid::from_raw(i32::try_from(victim.pid).expect("it fits")), Signal::SIGKILL).expect("it runs");
        until("it runs again", SOON, || {
            let now = running(&fleet.snapshot());
            match now.iter().find(|one| one.id == victim.id) {
                Some(one) if one.pid != victim.pid => Ok(()),
                _ => Err(format!("{now:?}")),
            }
        });
    }
    load.stop().no_safe_one_lost();
}

#[test]
fn a_rollout_goes_on_when_the_elected_converger_is_killed_in_the_middle() {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 6);
    let load = fleet.load(SHOP, 160);
    version(&repo, "v2");
    let mut push = pushing(&repo);
    under_way(&fleet, 2);
    let killed = fleet.elected();
    fleet.kill(killed);
    whole_of(&fleet, 2, 6);
    assert_ne!(fleet.elected(), killed);
    assert!(push.wait().expect("git ends").success());
    load.stop().none_lost();
}

#[test]
fn a_converger_that_is_told_to_end_hands_over_at_once() {
    let mut fleet = Fleet::start();
    let repo = shop(&fleet, 2);
    let ended = fleet.elected();
    let begin = Instant::now();
    fleet.stop(ended);
    repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    let took = begin.elapsed();
    eprintln!("the other one placed after {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_ne!(fleet.elected(), ended);
}

/// Waits until so many of a release run, and no other.
pub fn whole_of(fleet: &Fleet, release: u32, instances: usize) {
    until("the new release has taken over", Duration::from_secs(60), || {
        let snapshot = fleet.snapshot();
        let rows: Vec<_> = snapshot.apps.values().flat_map(|view| view.instances.values()).collect();
        let new = rows.iter().filter(|row| row.release == ReleaseId(release)).count();
        if new == instances && rows.len() == new && running(&snapshot).len() == new {
            Ok(())
        } else {
            Err(told(&snapshot))
        }
    });
}

#[test]
fn a_rollback_answers_with_the_old_rev_within_a_second() {
    let fleet = Fleet::start();
    let repo = shop(&fleet, 3);
    version(&repo, "v2");
    repo.git(&["push", "bazooka", "master"]).ok();
    whole_of(&fleet, 2, 3);
    let load = fleet.load_of(SHOP, 100, 2, &[Kind { post: false, new: true }], PATIENT);
    assert_eq!(load.so_far().answers.get("v1"), None);
    let begin = Instant::now();
    let rollback = repo.command(&bazooka_tests::program("bazooka").display().to_string(), &["rollback"]);
    let mut rollback = { rollback }.stdout(Stdio::null()).spawn().expect("it can be started");
    load.answers("v1");
    let took = begin.elapsed();
    eprintln!("the old rev answers after {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(rollback.wait().expect("it ends").success());
    whole_of(&fleet, 3, 3);
    load.stop().none_lost();
}
