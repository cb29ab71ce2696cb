//! Cases of an instance's end.

use visor::{
    names::InstanceId,
    schema::{Desired, State},
};

use super::super::fixture::{World, seconds, serving};

#[test]
fn what_serves_is_drained_first_if_there_is_a_proxy() {
    assert_eq!(serving(2).proxy("p", 1, &[]).scaled("web", 1).steps(), ["drain 2"]);
}

#[test]
fn what_never_ran_is_stopped_without_a_drain() {
    let mut world = serving(2).says(2, State::Claimed).proxy("p", 1, &[]).scaled("web", 1);
    assert_eq!(world.steps(), ["stop 2"]);
}

/// Instance 2 drains.
fn draining() -> World {
    serving(2).scaled("web", 1).meant_to(2, Desired::Drain)
}

#[test]
fn it_is_stopped_once_every_proxy_has_taken_it_out() {
    let revision = draining().snapshot.revision;
    assert!(draining().proxy("p", revision, &[]).proxy("q", revision - 1, &[]).steps().is_empty());
    assert_eq!(draining().proxy("p", revision, &[]).proxy("q", revision, &[]).steps(), ["stop 2"]);
}

#[test]
fn it_is_not_stopped_while_a_session_is_left_on_it() {
    let revision = draining().snapshot.revision;
    assert!(draining().proxy("p", revision, &[2]).steps().is_empty());
    assert_eq!(draining().proxy("p", revision, &[1]).steps(), ["stop 2"]);
}

#[test]
fn its_drain_time_ends_after_thirty_seconds() {
    let mut world = draining().proxy("p", 1, &[]);
    let plan = world.plan();
    assert_eq!(plan.look_again.values().next(), Some(&(world.now.clock + seconds(30))));
    assert!(world.after(seconds(29)).steps().is_empty());
    assert_eq!(draining().proxy("p", 1, &[]).after(seconds(30)).steps(), ["stop 2"]);
}

#[test]
fn one_that_crashes_while_it_drains_is_stopped() {
    assert_eq!(draining().proxy("p", 1, &[]).says(2, State::Backoff).steps(), ["stop 2"]);
}

#[test]
fn one_that_has_ended_is_archived() {
    let mut world = serving(2).scaled("web", 1).meant_to(2, Desired::Stop);
    assert!(world.steps().is_empty());
    assert_eq!(world.says(2, State::Exited).steps(), ["archive 2"]);
}

#[test]
fn one_whose_assignment_has_gone_is_archived_and_replaced() {
    let mut world = serving(1);
    let host = world.host("host1");
    world.snapshot.hosts.get_mut(&host).expect("there").assigned.clear();
    assert_eq!(world.steps(), ["archive 1", "place web.0@v1 on host1"]);
}

#[test]
fn stories_stay_few() {
    let mut world = serving(2).scaled("web", 1).meant_to(2, Desired::Stop).says(2, State::Exited);
    let ended = |world: &mut World, ids: std::ops::Range<u64>| {
        let web = world.proc("web");
        let instance = world.view().instances[&InstanceId(2)].value.clone();
        for id in ids {
            let row = world.row(visor::schema::Ended {
                instance: instance.clone(),
                status: None,
                reason: None,
                at: world.now.wall,
                extra: Default::default(),
            });
            world.view().history.insert((web.clone(), InstanceId(id)), row);
        }
    };
    ended(&mut world, 100..120);
    let crate::converge::step::Act::Archive { oldest, .. } = &world.plan().steps[0].act else { panic!() };
    assert_eq!(*oldest, [InstanceId(100)]);
    ended(&mut world, 120..220);
    assert_eq!(world.steps(), ["archive 2", "forget 50"]);
}
