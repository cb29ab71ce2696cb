//! Tests of handed envs, case by case.

use std::collections::{BTreeMap, BTreeSet};

use visor::{
    names::EnvRef,
    schema::{Extra, Handed, Rm, Schema, WrapRequest},
    seal::{DataKey, EnvOf, Keyring, Os, PublicKey, SecretKey, WrappedKey},
    transitions::envs::{handed, wraps},
};

use crate::converge::{
    fixture::{World, seconds},
    step::{Act, Step},
};

const E1: EnvRef = EnvRef(1);

/// A cluster in which an app has sealed config vars, and the keys of its hosts and of its rm.
struct Sealed {
    world: World,
    key: DataKey,
    hosts: BTreeMap<String, Keyring>,
    rm: SecretKey,
}

/// Hosts in three zones, and an app with a web whose env is wrapped for the rm and these hosts. The rm is away.
fn sealed(hosts: u32, wrapped_for: &[&str]) -> Sealed {
    let mut world = World::new().hosts(hosts).app("a").linking(&[]).released("web");
    world.snapshot.schema = Some(world.row(Schema::default()));
    let mut keys = BTreeMap::new();
    for n in 1..=hosts {
        let (name, ring) = (format!("host{n}"), Keyring::of(SecretKey::fresh(&mut Os)));
        world.edit_host(&name, |host| {
            host.seal_key = Some(ring.current());
            host.zone = ["north", "south", "west"][n as usize % 3].parse().expect("a zone");
        });
        keys.insert(name, ring);
    }
    let (key, rm, app) = (DataKey::fresh(&mut Os), SecretKey::fresh(&mut Os), world.name("a"));
    let token = world.view().app.as_ref().expect("it is registered").token.clone();
    let of = EnvOf { app: &app, registration: Some(&token), env: E1 };
    let vars = key.seal(of, &Default::default(), &mut Os);
    world.view().envs.get_mut(&E1).expect("it was made").value.sealed = Some(vars);
    let chosen: Vec<PublicKey> = wrapped_for.iter().map(|name| keys[*name].current()).collect();
    let row = world.row(wraps(&key, [&rm.public()], &chosen, &mut Os));
    world.view().wraps.insert(E1, row);
    Sealed { world, key, hosts: keys, rm }
}

impl Sealed {
    fn rm_returns(&mut self) {
        let row = Rm { seal_key: Some(self.rm.public()), ..Rm::at("http://rm") };
        let (name, row) = (self.world.host("rm1"), self.world.row(row));
        self.world.snapshot.rms.insert(name, row);
    }

    /// Carries out the steps of a plan that concern envs. Returns them in words.
    fn settle(&mut self) -> Vec<String> {
        let plan = self.world.plan();
        for step in &plan.steps {
            self.carry_out(step);
        }
        let is_about_envs = |step: &&Step| {
            matches!(
                step.act,
                Act::Hand { .. }
                    | Act::Keep { .. }
                    | Act::TakeBack { .. }
                    | Act::Ask { .. }
                    | Act::EndRequest { .. }
            )
        };
        let steps = plan.steps.iter().filter(is_about_envs);
        steps.map(|step| crate::converge::fixture::told(&step.act)).collect()
    }

    fn carry_out(&mut self, step: &Step) {
        let snapshot = self.world.snapshot.clone();
        let world = &mut self.world;
        match &step.act {
            Act::Hand { host, env } => {
                let view = world.view().clone();
                let row = handed(&snapshot, &view, host, *env).expect("it was planned on this image");
                let row = world.row(row);
                world.view().handed.insert((host.clone(), *env), row);
            }
            Act::Keep { host, env } => {
                let view = world.view().clone();
                let row = handed(&snapshot, &view, host, *env).expect("it was planned on this image");
                let row = world.row(row.key_alone());
                world.view().handed.insert((host.clone(), *env), row);
            }
            Act::TakeBack { host, env } => drop(world.view().handed.remove(&(host.clone(), *env))),
            Act::Ask { by, env, host, to } => {
                let (to, since) = (to.clone(), world.now.wall);
                let row = world.row(WrapRequest { to, since, key: None, extra: Extra::new() });
                world.view().wrap_requests.insert((by.clone(), *env, host.clone()), row);
            }
            Act::EndRequest { by, env, host } => {
                drop(world.view().wrap_requests.remove(&(by.clone(), *env, host.clone())));
            }
            _ => {}
        }
    }

    /// Answers each open request with this key.
    fn answer(&mut self) {
        let key = &self.key;
        for row in self.world.view().wrap_requests.values_mut() {
            let wrapped: WrappedKey = key.wrap(&row.value.to, &mut Os);
            row.value.key = Some(wrapped);
        }
    }

    fn holders(&mut self) -> BTreeSet<String> {
        self.world.view().handed.keys().map(|(host, _)| host.to_string()).collect()
    }
}

#[test]
fn two_more_hosts_in_other_zones_hold_an_env_that_one_runs_with() {
    let mut of = sealed(6, &["host1", "host2", "host3", "host4", "host5", "host6"]);
    of.world = of.world.scaled("web", 1).running(1, "host1");
    assert_eq!(of.settle().len(), 3);
    let holders = of.holders();
    let zones: BTreeSet<u32> =
        holders.iter().map(|host| host[4..].parse::<u32>().expect("a number") % 3).collect();
    assert!(holders.contains("host1") && zones.len() == 3, "{holders:?}");
    assert_eq!(of.settle(), [""; 0]);
}

#[test]
fn an_rm_is_asked_first_and_then_a_host_that_has_the_env() {
    let mut of = sealed(3, &["host1"]);
    of.rm_returns();
    of.world = of.world.scaled("web", 1).running(1, "host1");
    let first = of.settle();
    assert_eq!(first, ["hand e1 to host1", "ask host2 for e1 for host2", "ask host3 for e1 for host3"]);
    assert_eq!(of.settle(), [""; 0], "the answers are awaited");
    of.world = of.world.after(seconds(4));
    assert_eq!(of.settle(), [""; 0]);
    of.world = of.world.after(seconds(2));
    let others = of.settle();
    assert!(others.contains(&"ask host1 for e1 for host2".to_owned()), "{others:?}");
    assert!(others.contains(&"end host2's e1 for host2".to_owned()), "{others:?}");
    of.answer();
    let last = of.settle();
    assert!(last.contains(&"keep e1 at host2".to_owned()), "{last:?}");
    assert!(of.world.view().wrap_requests.is_empty());
    assert_eq!(of.holders().len(), 3);
    let (host2, app) = (of.world.host("host2"), of.world.name("a"));
    let kept = of.world.view().handed[&(host2.clone(), E1)].value.clone();
    assert!(!kept.sealed.is_whole() && of.hosts["host2"].open(&app, E1, &kept).is_err());
    // Once instances run there too, the rest comes; the key is there.
    of.world = of.world.scaled("web", 2).running(2, "host2");
    assert_eq!(of.settle(), ["hand e1 to host2"]);
    let opened = of.world.view().handed[&(host2, E1)].value.clone();
    assert!(of.hosts["host2"].open(&app, E1, &opened).is_ok());
}

#[test]
fn with_no_rm_a_host_that_has_the_env_is_asked_at_once() {
    let mut of = sealed(3, &["host1"]);
    of.world = of.world.scaled("web", 1).running(1, "host1");
    of.settle();
    let asked = of.world.view().wrap_requests.keys().cloned().collect::<Vec<_>>();
    assert_eq!(asked.len(), 2, "{asked:?}");
    of.world.view().wrap_requests.clear();
    assert_eq!(of.settle(), ["ask host1 for e1 for host2", "ask host1 for e1 for host3"]);
}

#[test]
fn a_host_that_replaced_its_key_is_asked_for_its_own_wrap_where_nobody_else_can() {
    let mut of = sealed(1, &["host1"]);
    of.world = of.world.scaled("web", 1).running(1, "host1");
    assert_eq!(of.settle(), ["hand e1 to host1"]);
    let after = SecretKey::fresh(&mut Os).public();
    of.world.edit_host("host1", |host| host.seal_key = Some(after));
    assert_eq!(of.settle(), ["ask host1 for e1 for host1"]);
    of.world = of.world.after(seconds(60));
    assert_eq!(of.settle(), [""; 0], "there is nobody else to ask");
    of.answer();
    assert_eq!(of.settle(), ["hand e1 to host1", "end host1's e1 for host1"]);
}

#[test]
fn an_answer_for_another_key_is_none() {
    let mut of = sealed(1, &[]);
    of.world = of.world.scaled("web", 1).running(1, "host1");
    assert_eq!(of.settle(), ["ask host1 for e1 for host1"]);
    of.answer();
    let after = SecretKey::fresh(&mut Os).public();
    of.world.edit_host("host1", |host| host.seal_key = Some(after));
    assert_eq!(of.settle(), ["ask host1 for e1 for host1", "end host1's e1 for host1"]);
}

#[test]
fn nobody_gives_an_env_up_before_those_who_shall_hold_it_have_it() {
    let mut of = sealed(4, &["host1", "host2", "host3", "host4"]);
    of.world = of.world.scaled("web", 1).running(1, "host1");
    of.settle();
    let spare = of.holders().into_iter().find(|host| host != "host1").expect("there are two");
    // The host goes for good while no key to the env is there for another one.
    let none = of.world.row(wraps(&of.key, [&of.rm.public()], [], &mut Os));
    of.world.view().wraps.insert(E1, none);
    of.world.lose(&spare);
    let steps = of.settle();
    assert!(!steps.iter().any(|step| step.starts_with("take")), "{steps:?}");
    assert!(steps.iter().any(|step| step.starts_with("ask")), "{steps:?}");
    of.answer();
    of.settle();
    let steps = of.settle();
    assert_eq!(steps, [format!("take e1 from {spare}")]);
    assert_eq!(of.holders().len(), 3);
}

#[test]
fn vars_that_are_bound_to_an_earlier_registration_are_handed_anew() {
    let mut of = sealed(1, &["host1"]);
    of.world = of.world.scaled("web", 1).running(1, "host1");
    of.settle();
    let registration = Some("an earlier one".to_owned());
    let key = (of.world.host("host1"), E1);
    let row = of.world.view().handed[&key].value.clone();
    let row = of.world.row(Handed { registration, ..row });
    of.world.view().handed.insert(key, row);
    assert_eq!(of.settle(), ["hand e1 to host1"]);
}
