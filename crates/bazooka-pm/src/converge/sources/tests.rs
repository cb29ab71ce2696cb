//! Tests of sources, case by case.

use visor::{
    schema::{Desired, SlugSource, State},
    transitions::placement::Placement,
};

use crate::converge::{
    apply::placement,
    fixture::World,
    sources::Sources,
    step::{Act, Plan},
};

/// An app whose head is v1 with a web, on this many hosts, of which the first two run it and have its slug.
fn world(hosts: u32) -> World {
    let mut world = World::new().hosts(hosts).app("a").released("web").scaled("web", 2);
    world = world.running(1, "host1").running(2, "host2");
    world.has_slugs("host1", &["v1"]);
    world.has_slugs("host2", &["v1"]);
    world
}

fn placements(world: &World, plan: &Plan) -> Vec<Placement> {
    let mut sources = Sources::of(&world.snapshot);
    plan.steps.iter().filter_map(|step| placement(&world.snapshot, &mut sources, step)).collect()
}

fn names(sources: &[SlugSource]) -> Vec<&str> {
    let mut names: Vec<&str> = sources.iter().map(|source| source.host.as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_host_that_lacks_the_slug_is_told_who_has_it() {
    let mut world = world(3).scaled("web", 3);
    let plan = world.plan();
    let placed = placements(&world, &plan);
    assert_eq!(placed.len(), 1);
    assert_eq!(placed[0].host.as_str(), "host3");
    assert_eq!(names(&placed[0].assignment.sources), ["host1", "host2"]);
    assert_eq!(placed[0].assignment.sources[0].url, "http://127.0.0.2:1");
}

#[test]
fn a_host_that_has_the_slug_is_told_nothing() {
    let mut world = world(3).scaled("web", 3);
    world.has_slugs("host3", &["v1"]);
    let plan = world.plan();
    let placed = placements(&world, &plan);
    assert_eq!(placed.len(), 1);
    assert_eq!(placed[0].assignment.sources, []);
}

#[test]
fn three_at_most_are_named_and_those_of_its_zone_first() {
    let mut world = World::new().hosts(9).app("a").released("web");
    for n in 1..=8 {
        world.has_slugs(&format!("host{n}"), &["v1"]);
    }
    for n in [7, 8, 9] {
        world.edit_host(&format!("host{n}"), |host| host.zone = "near".parse().expect("a zone"));
    }
    let slug = world.view().revs.values().next().expect("there is one").slug.sha256.clone();
    let mut sources = Sources::of(&world.snapshot);
    let named = sources.choose(&world.host("host9"), &slug);
    assert_eq!(named.len(), 3);
    assert_eq!(names(&named[..2]), ["host7", "host8"]);
}

#[test]
fn hosts_that_lack_one_slug_do_not_all_ask_one_host_first() {
    let mut world = World::new().hosts(40).app("a").released("web");
    for n in 1..=10 {
        world.has_slugs(&format!("host{n}"), &["v1"]);
    }
    let slug = world.view().revs.values().next().expect("there is one").slug.sha256.clone();
    let mut sources = Sources::of(&world.snapshot);
    let firsts: std::collections::BTreeSet<_> =
        (11..=40).map(|n| sources.choose(&world.host(&format!("host{n}")), &slug)[0].host.clone()).collect();
    assert!(firsts.len() >= 5, "{firsts:?}");
}

#[test]
fn a_host_whose_url_is_no_address_is_no_source() {
    let mut world = world(3).scaled("web", 3);
    for url in ["http://10.0.0.1:80/latest?", "http://metadata/", "10.0.0.1:80"] {
        world.edit_host("host1", |host| host.url = url.into());
        let plan = world.plan();
        assert_eq!(names(&placements(&world, &plan)[0].assignment.sources), ["host2"], "{url}");
    }
}

#[test]
fn what_waits_is_told_of_a_host_that_has_its_slug_by_now() {
    let mut world = World::new().hosts(2).app("a").released("web").scaled("web", 2);
    world = world.running(1, "host1").placed(2, "web@v1", "host2").says(2, State::Claimed);
    let plan = world.plan();
    assert_eq!((plan.steps.len(), plan.lacking_sources.len()), (0, 1));
    world.has_slugs("host1", &["v1"]);
    assert_eq!(world.steps(), ["serve 2 from host1"]);
    let plan = world.plan();
    assert_eq!(plan.lacking_sources.len(), 0);
    world.name_sources(&plan.steps);
    assert_eq!(world.steps(), [""; 0]);
}

#[test]
fn others_are_named_once_the_named_ones_have_gone() {
    let mut world = world(4).scaled("web", 3).placed(3, "web@v1", "host4").says(3, State::Claimed);
    let plan = world.plan();
    world.name_sources(&plan.steps);
    world.lose("host1");
    world.has_slugs("host3", &["v1"]);
    assert_eq!(world.steps(), [""; 0], "host2 is left");
    world.lose("host2");
    let plan = world.plan();
    let told: Vec<_> = plan.steps.iter().map(|step| crate::converge::fixture::told(&step.act)).collect();
    assert_eq!(told, ["serve 3 from host3", "end 3 from host1", "end 3 from host2"]);
    world.name_sources(&plan.steps);
    let left: Vec<_> = world.view().serving.keys().map(|(host, _)| host.as_str().to_owned()).collect();
    assert_eq!(left, ["host3"]);
}

#[test]
fn a_source_is_told_again_if_its_row_was_lost_or_it_moved() {
    let mut world = world(3).scaled("web", 3).placed(3, "web@v1", "host3").says(3, State::Claimed);
    let plan = world.plan();
    world.name_sources(&plan.steps);
    world.view().serving.clear();
    assert_eq!(world.plan().steps.len(), 1);
    let plan = world.plan();
    world.name_sources(&plan.steps);
    for host in ["host1", "host2"] {
        world.edit_host(host, |host| host.url = "http://127.0.0.2:2".into());
    }
    let plan = world.plan();
    let Act::Source { sources, .. } = &plan.steps[0].act else { panic!("{plan:?}") };
    assert_eq!(sources[0].url, "http://127.0.0.2:2");
}

#[test]
fn nothing_is_served_to_what_runs_or_has_the_slug_or_is_not_wanted_any_more() {
    for which in ["runs", "has it", "stops"] {
        let mut world = world(3).scaled("web", 3).placed(3, "web@v1", "host3").says(3, State::Claimed);
        let plan = world.plan();
        world.name_sources(&plan.steps);
        assert_eq!(world.steps(), [""; 0], "{which}");
        match which {
            "runs" => world.say(3, State::Running, |_| {}),
            "has it" => world.has_slugs("host3", &["v1"]),
            _ => world.mean(3, Desired::Stop),
        }
        let plan = world.plan();
        world.name_sources(&plan.steps);
        assert_eq!(world.view().serving.len(), 0, "{which}");
    }
}
