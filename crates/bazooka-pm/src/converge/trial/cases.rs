//! Cases of a release on trial.

use std::time::Duration;

use visor::{
    names::{InstanceId, ReleaseId},
    schema::{Fault, ReleaseStatus, State},
};

use super::super::fixture::{World, seconds, serving};

#[test]
fn one_instance_of_each_proc_that_is_wanted_runs_beside_the_old_ones() {
    let mut world = World::new().hosts(1).app("a").released("job web").scaled("web", 1).scaled("job", 0);
    world = world.running(1, "host1").trying("job web other");
    assert_eq!(world.steps(), ["try web.0@v2 on host1"]);
}

#[test]
fn it_is_verified_once_it_has_been_healthy_for_a_second() {
    let world = || serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
    assert!(world().after(Duration::from_millis(999)).steps().is_empty());
    assert_eq!(world().after(seconds(1)).steps(), ["verify v2"]);
}

#[test]
fn a_proc_can_ask_for_a_longer_time() {
    let world = || {
        let world = serving(2).trying("web").settings("web", |proc| proc.min_ready_ms = Some(5_000));
        world.placed(3, "web@v2", "host1").says(3, State::Running)
    };
    assert!(world().after(Duration::from_millis(4_999)).steps().is_empty());
    assert_eq!(world().after(seconds(5)).steps(), ["verify v2"]);
}

#[test]
fn a_crash_meanwhile_begins_the_time_anew() {
    let mut world = serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
    world = world.after(Duration::from_millis(900));
    world.say(3, State::Running, |status| status.restarts = 1);
    world = world.after(Duration::from_millis(900));
    assert!(world.steps().is_empty());
    assert_eq!(world.after(Duration::from_millis(100)).steps(), ["verify v2"]);
}

#[test]
fn one_that_fails_fails_the_release_with_its_last_words_and_is_not_started_again() {
    let mut world = serving(2).trying("web").placed(3, "web@v2", "host1");
    world.say(3, State::Failed, |status| {
        status.cause = Some("exited with status 1".into());
        status.last_output = vec!["no such engine".into()];
    });
    assert_eq!(world.steps(), ["fail v2: web 3 on host1: exited with status 1\nno such engine"]);
    let failed = world.view().releases.get_mut(&ReleaseId(2)).expect("it is there");
    failed.value.status = ReleaseStatus::Failed;
    world.view().trial = None;
    assert_eq!(world.steps(), ["archive 3"]);
}

#[test]
fn the_procs_of_a_trial_share_ten_starts_over_the_cluster() {
    let trial = |restarts: u32| {
        let mut world = World::new().hosts(2).app("a").released("web job cron");
        for (id, proc) in [(1, "web"), (2, "job"), (3, "cron")] {
            world = world.scaled(proc, 1).placed(id, &format!("{proc}@v1"), "host1").says(id, State::Running);
        }
        world = world.after(seconds(100)).trying("web job cron");
        for (id, proc) in [(4, "web"), (5, "job"), (6, "cron")] {
            world = world.placed(id, &format!("{proc}@v2"), "host2");
            world.say(id, State::Claimed, |status| {
                status.restarts = restarts;
                status.cause = Some("exited with status 1".into());
            });
        }
        world.steps()
    };
    assert!(trial(2).is_empty(), "nine starts");
    let failed = trial(3);
    let wanted = "fail v2: its procs crashed 9 times in 12 starts; ";
    assert!(failed.iter().any(|step| step.starts_with(wanted)), "{failed:?}");
}

#[test]
fn the_hosts_own_fault_is_tried_elsewhere_before_it_is_the_releases() {
    let mut world = serving(2).trying("web").placed(3, "web@v2", "host1");
    world.say(3, State::Failed, |status| status.fault = Some(Fault::Host));
    assert_eq!(world.steps(), ["archive 3", "try web.0@v2 on host2"]);
    world = world.placed(4, "web@v2", "host2");
    world.view().instances.remove(&InstanceId(3));
    world.say(4, State::Failed, |status| status.fault = Some(Fault::Host));
    assert_eq!(world.steps(), ["fail v2: web 4 on host2: no cause given"]);
}

#[test]
fn no_room_for_fifteen_seconds_fails_it() {
    let mut world = serving(2).trying("web");
    for host in ["host1", "host2"] {
        world.edit_host(host, |host| host.capacity.instances = 1);
    }
    world = world.after(Duration::from_millis(14_999));
    assert_eq!(world.steps(), ["pend web: 1 short of v2: none of 2 hosts can take it"]);
    let steps = world.after(Duration::from_millis(1)).steps();
    assert!(steps[0].starts_with("fail v2: no instance of web could be placed within 15 s"), "{steps:?}");
}

#[test]
fn one_that_never_becomes_healthy_fails_it_after_what_it_may_take_and_thirty_seconds() {
    let world = || serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Claimed);
    assert!(world().after(seconds(90)).steps().is_empty());
    // The boot timeout, the minimum ready time, and 30 s.
    assert_eq!(world().after(seconds(91)).steps(), ["fail v2: web was not healthy within 91 s"]);
    let patient = || world().settings("web", |proc| proc.min_ready_ms = Some(600_000));
    assert!(patient().after(seconds(600)).steps().is_empty());
    assert_eq!(patient().after(seconds(690)).steps(), ["fail v2: web was not healthy within 690 s"]);
}

#[test]
fn a_trial_whose_push_has_ended_fails() {
    let mut world = serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
    world.view().trial = None;
    assert_eq!(world.steps(), ["fail v2: the push that tried it has ended", "stop 3"]);
}

#[test]
fn a_trial_of_which_nothing_is_wanted_any_more_is_good() {
    let mut world = serving(0).trying("web");
    assert_eq!(world.steps(), ["verify v2"]);
}

#[test]
fn a_proc_that_crashed_before_is_no_reason_to_refuse_the_new_release() {
    let mut world = World::new().hosts(1).app("a").released("fail web").scaled("web", 1).scaled("fail", 1);
    world = world.running(1, "host1").placed(2, "fail@v1", "host1").says(2, State::Backoff);
    world = world.trying("fail web");
    assert_eq!(world.steps(), ["try fail.0@v2 on host1", "try web.0@v2 on host1"]);
    world = world.placed(3, "web@v2", "host1").placed(4, "fail@v2", "host1");
    world = world.says(3, State::Running).says(4, State::Failed).after(seconds(1));
    assert_eq!(world.steps(), ["verify v2"]);
}

#[test]
fn a_proc_that_crashed_before_is_waited_for_ten_seconds_at_most() {
    let mut world = serving(1).says(1, State::Backoff).trying("web").placed(2, "web@v2", "host1");
    world = world.says(2, State::Claimed).after(Duration::from_millis(9_999));
    assert!(world.steps().is_empty());
    assert_eq!(world.after(Duration::from_millis(1)).steps(), ["verify v2"]);
}

#[test]
fn while_it_is_verified_its_instance_stays() {
    let mut world = serving(2).trying("web").placed(3, "web@v2", "host1").says(3, State::Running);
    world.view().releases.get_mut(&ReleaseId(2)).expect("there").value.status = ReleaseStatus::Verified;
    assert!(world.after(seconds(100)).steps().is_empty());
}
