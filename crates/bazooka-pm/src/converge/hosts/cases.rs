//! Cases of hosts that are gone.

use visor::schema::{Desired, State};

use super::super::fixture::{World, seconds, serving};

fn lost() -> World {
    let mut world = serving(2);
    world.lose("host1");
    world
}

#[test]
fn its_instances_are_lost_after_a_moment() {
    assert!(lost().steps().is_empty());
    assert_eq!(lost().after(seconds(1)).steps(), ["lose 1"]);
}

#[test]
fn what_is_lost_is_replaced_elsewhere_and_archived_once_its_replacement_runs() {
    let mut world = lost().says(1, State::Lost);
    assert_eq!(world.steps(), ["place web.0@v1 on host2"]);
    world = world.placed(3, "web@v1", "host2");
    assert!(world.steps().is_empty());
    assert_eq!(world.says(3, State::Running).steps(), ["archive 1"]);
}

#[test]
fn if_its_host_returns_before_the_replacement_runs_the_original_stays() {
    let mut world = lost().says(1, State::Lost).placed(3, "web@v1", "host2").says(3, State::Claimed);
    world.register("host1");
    assert_eq!(world.steps(), ["stop 3"]);
    assert_eq!(world.says(1, State::Running).steps(), ["stop 3"]);
}

#[test]
fn with_nowhere_to_go_it_waits_for_its_host() {
    let mut world = World::new().hosts(1).app("a").released("web").scaled("web", 1).running(1, "host1");
    world = world.after(seconds(100));
    world.lose("host1");
    world = world.after(seconds(1));
    assert_eq!(world.steps(), ["lose 1"]);
    world = world.says(1, State::Lost);
    assert_eq!(world.steps(), ["pend web: 1 short of v1: no host is registered"]);
    world.register("host1");
    assert!(world.steps().is_empty(), "it will say what has become of it");
}

#[test]
fn an_end_under_way_there_is_brought_to_its_end() {
    let mut world = serving(2).scaled("web", 1).meant_to(1, Desired::Stop);
    world.lose("host1");
    world = world.after(seconds(1));
    assert_eq!(world.steps(), ["lose 1"]);
    assert_eq!(world.says(1, State::Lost).steps(), ["archive 1"]);
}

#[test]
fn when_too_many_vanish_at_once_none_is_given_up() {
    let mut world = World::new().hosts(4).app("a").released("web").scaled("web", 4);
    for id in 1..=4 {
        world = world.running(id, &format!("host{id}"));
    }
    world = world.after(seconds(100));
    world.lose("host1");
    world.lose("host2");
    world = world.after(seconds(600));
    assert!(world.steps().is_empty());
    assert_eq!(world.memory.hosts.frozen().map(|hosts| hosts.len()), Some(2));
    world.register("host1");
    assert!(world.steps().is_empty(), "the other may follow it");
    assert_eq!(world.after(seconds(10)).steps(), ["lose 2"]);
}
