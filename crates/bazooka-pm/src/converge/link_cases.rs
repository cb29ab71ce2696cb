//! Tests of the planner for apps that link services, case by case.

use super::{
    agenda::Agenda,
    facts::Reader,
    fixture::World,
    plan::plan_apps,
    sources::Sources,
    step::{Act, Step},
    tally::Tally,
};

/// An app that links another's web, on two hosts.
fn linking() -> World {
    World::new().hosts(2).app("api").released("web").app("a").linking(&["api:web"]).released("web")
}

#[test]
fn what_links_a_service_is_placed_as_any_other() {
    let mut world = linking().scaled("web", 2);
    assert_eq!(world.steps(), ["place web.0@v1 on host1", "place web.1@v1 on host2"]);
}

#[test]
fn a_host_that_was_not_told_where_services_are_takes_nothing_that_has_links_and_says_so() {
    let mut world = linking().scaled("web", 2);
    world.edit_host("host1", |host| host.services = None);
    assert_eq!(world.steps(), ["place web.0@v1 on host2", "place web.1@v1 on host2"]);
    world.edit_host("host2", |host| host.services = None);
    let said = world.plan().steps.iter().find_map(|step| match &step.act {
        Act::Pend { pending: Some(pending), .. } => Some(pending.clone()),
        _ => None,
    });
    let said = said.expect("it has no place");
    assert_eq!((said.short, said.reason.as_str()), (2, "none of 2 hosts can take it"));
    let why = "wasn't told where the services are that this app links (bazooka-pm --services)";
    assert_eq!(said.reasons[why].words(), "host1, host2");
}

#[test]
fn one_without_links_needs_no_address_of_services() {
    let mut world = World::new().hosts(1).app("a").released("web").scaled("web", 1);
    world.edit_host("host1", |host| host.services = None);
    assert_eq!(world.steps(), ["place web.0@v1 on host1"]);
}

#[test]
fn a_link_whose_service_has_gone_is_the_reason_why_nothing_new_has_a_place() {
    let mut world = linking().scaled("web", 2).running(1, "host1");
    world.unregister("api", "web");
    let said = "pend web: 1 short of v1: v1 links api:web, but there is no such service";
    assert_eq!(world.steps(), [said], "what runs goes on");
    world.turn_to("a");
    world.link(&[]);
    world.push("web");
    assert!(world.steps().contains(&"try web.0@v2 on host2".to_owned()), "the next release doesn't link it");
}

#[test]
fn a_link_to_an_app_that_goes_is_no_place_either() {
    let mut world = World::new().hosts(1).app("api").released("web").destroying();
    world = world.app("a").linking(&["api:web"]).released("web").scaled("web", 1);
    let steps = world.steps();
    let said = "pend web: 1 short of v1: v1 links api:web, but its app is being destroyed";
    assert!(steps.contains(&said.to_owned()), "{steps:?}");
}

#[test]
fn what_waits_for_a_service_is_looked_at_again_when_that_comes() {
    let mut world = linking().scaled("web", 1);
    let row = world.snapshot.apps[&world.name("api")].procs[&world.proc("web")].clone();
    world.unregister("api", "web");
    let (a, api) = (world.name("a"), world.name("api"));
    let plan = world.plan();
    let mut agenda = Agenda::default();
    agenda.planned(&[a.clone(), api.clone()].into(), &plan);
    let web = world.proc("web");
    world.snapshot.apps.get_mut(&api).expect("it is there").procs.insert(web, row);
    let keys = vec![visor::keys::Key::Proc(api, world.proc("web")).to_string()];
    agenda.note(&visor::mirror::Changes { keys, relisted: false }, &world.snapshot, &world.memory);
    let due = agenda.due(&world.snapshot, world.now);
    assert!(due.contains(&a), "{due:?}");
    let instances = Reader::of(&world.snapshot).apps(&due);
    let plan = plan_apps(&world.snapshot, &Tally::of(&world.snapshot), &world.memory, &instances, world.now);
    assert!(plan.steps.iter().any(|step| step.app == a && matches!(step.act, Act::Place { .. })));
}

#[test]
fn an_instance_is_placed_with_the_ports_of_what_it_links() {
    let mut world = linking().scaled("web", 1);
    let plan = world.plan();
    let is_place = |step: &&Step| matches!(step.act, Act::Place { .. });
    let step = plan.steps.iter().find(is_place).expect("it has a place");
    let placement = super::apply::placement(&world.snapshot, &mut Sources::of(&world.snapshot), step)
        .expect("it was planned on this image");
    let links: Vec<(String, u16)> =
        placement.assignment.links.into_iter().map(|(link, port)| (link.to_string(), port)).collect();
    assert_eq!(links, [("api:web".to_owned(), 8501)]);
}

#[test]
fn the_copy_that_a_host_gets_of_an_env_has_its_links() {
    use visor::{
        names::EnvRef,
        seal::{DataKey, EnvOf, Os, SecretKey},
        transitions::envs::{handed, wraps},
    };
    let mut world = linking();
    let (host, secret) = (world.host("host1"), SecretKey::fresh(&mut Os));
    world.edit_host("host1", |host| host.seal_key = Some(secret.public()));
    let key = DataKey::fresh(&mut Os);
    let of = EnvOf { app: &world.name("a"), registration: None, env: EnvRef(1) };
    let sealed = key.seal(of, &Default::default(), &mut Os);
    let none: [visor::seal::PublicKey; 0] = [];
    let wrapped = world.row(wraps(&key, &none, &[secret.public()], &mut Os));
    world.view().wraps.insert(EnvRef(1), wrapped);
    world.view().envs.get_mut(&EnvRef(1)).expect("it was made").value.sealed = Some(sealed);
    let view = world.view().clone();
    let handed = handed(&world.snapshot, &view, &host, EnvRef(1)).expect("it is wrapped for it");
    assert_eq!(handed.links, view.envs[&EnvRef(1)].links);
    // An env that an earlier converger handed over without the links is handed over anew.
    world = world.scaled("web", 1).running(1, "host1");
    for (links, steps) in [(handed.links.clone(), vec![]), (Default::default(), vec!["hand e1 to host1"])] {
        let row = world.row(visor::schema::Handed { links, ..handed.clone() });
        world.view().handed.insert((host.clone(), EnvRef(1)), row);
        assert_eq!(world.steps(), steps);
    }
}
