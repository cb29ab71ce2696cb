//! What is done about a difference, and in which order.

use std::collections::BTreeSet;

use bazooka_proxy::{
    haproxy::ServerState,
    plan::{InForce, Plan, Step, Wanted, plan},
    routes::routes,
};
use proptest::prelude::*;
use visor::names::InstanceId;

use crate::image::{Rows, service, settings};

fn wanted(rows: Rows) -> Wanted {
    Wanted { routes: routes(&rows.0, None), settings: settings() }
}

/// A HAProxy that runs just what is wanted.
fn in_force(wanted: &Wanted) -> InForce {
    let mut in_force = InForce::of(wanted, 1, 2);
    in_force.backends.extend(["successor".to_owned()]);
    in_force
}

fn base() -> Rows {
    Rows::default().proc("a/web", 8501).proc("b/web", 8502).running(1, "a/web", "10.0.0.1:21001").running(
        2,
        "a/web",
        "10.0.0.1:21002",
    )
}

/// In short: what is to be done to go from the base to this.
fn to(rows: Rows) -> Vec<String> {
    short(&plan(&in_force(&wanted(base())), &wanted(rows)))
}

fn short(plan: &Plan) -> Vec<String> {
    let mut all: Vec<String> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Add { instance, address, .. } => format!("add {instance} at {address}"),
            Step::Enable { instance, address, moved: true, .. } => format!("move {instance} to {address}"),
            Step::Enable { instance, .. } => format!("enable {instance}"),
            Step::Weigh { instance, weight, .. } => format!("weigh {instance} {weight}"),
            Step::Disable { server, .. } => format!("disable {server}"),
            Step::Delete { server, .. } => format!("delete {server}"),
            Step::SetHost { host, backend, .. } => format!("host {host} to {backend}"),
            Step::DeleteHost { host } => format!("no host {host}"),
        })
        .collect();
    all.extend(plan.reload.as_ref().map(|reload| format!("reload: {reload}")));
    all
}

#[test]
fn what_is_in_force_is_left_alone() {
    assert!(to(base()).is_empty());
}

/// Two instances of v1, one of v2 beside them with this share.
fn canary(share: Option<u32>) -> Rows {
    base().running_of(3, "a/web", "v2", "10.0.0.1:21003").shared("a/web", share)
}

#[test]
fn another_share_is_other_weights_and_no_reload() {
    let from = |share, to: Rows| short(&plan(&in_force(&wanted(canary(share))), &wanted(to)));
    assert_eq!(from(Some(10), canary(Some(20))), ["weigh 3 128"]);
    assert_eq!(from(Some(10), canary(Some(100))), ["weigh 1 0", "weigh 2 0", "weigh 3 256"]);
    let another = canary(Some(10)).running(4, "a/web", "10.0.0.1:21004");
    assert_eq!(from(Some(10), another), ["weigh 3 85", "add 4 at 10.0.0.1:21004"]);
    assert!(from(Some(10), canary(Some(10))).is_empty());
}

#[test]
fn the_first_share_of_a_service_and_the_last_are_another_way_of_taking_turns() {
    let from = |share, to| short(&plan(&in_force(&wanted(canary(share))), &wanted(canary(to))));
    let reload = "reload: a port or a setting has changed";
    assert_eq!(from(None, Some(10)), ["weigh 1 256", "weigh 2 256", "weigh 3 57", reload]);
    assert_eq!(from(Some(10), None), ["weigh 1 100", "weigh 2 100", "weigh 3 100", reload]);
}

#[test]
fn new_instances_come_before_old_ones_go() {
    let rows = base().running(3, "a/web", "10.0.0.1:21003").assigned(1, "a/web", "drain");
    assert_eq!(to(rows), ["add 3 at 10.0.0.1:21003", "disable i1", "delete i1"]);
}

#[test]
fn an_instance_that_crashed_is_disabled_and_enabled_again_when_it_is_back() {
    let before = in_force(&wanted(base()));
    let down = plan(&before, &wanted(base().status(1, "backoff", "10.0.0.1:21001")));
    assert_eq!(short(&down), ["disable i1", "delete i1"]);
    let mut now = before.clone();
    now.note(&down.steps[0]);
    assert_eq!(short(&plan(&now, &wanted(base()))), ["enable 1"]);
    let moved = base().status(1, "running", "10.0.0.1:21009");
    assert_eq!(short(&plan(&now, &wanted(moved))), ["move 1 to 10.0.0.1:21009"]);
}

#[test]
fn an_instance_that_listens_elsewhere_now_is_followed() {
    let rows = base().status(2, "running", "10.0.0.1:21009");
    assert_eq!(to(rows), ["move 2 to 10.0.0.1:21009"]);
}

#[test]
fn domains_come_and_go_without_a_reload() {
    let rows = || base().domain("www.a.org", "a");
    assert_eq!(to(rows()), ["host www.a.org to a.web"]);
    let before = in_force(&wanted(rows()));
    assert_eq!(short(&plan(&before, &wanted(base()))), ["no host www.a.org"]);
    let other = wanted(base().domain("www.a.org", "b"));
    assert_eq!(short(&plan(&before, &other)), ["host www.a.org to b.web"]);
}

#[test]
fn a_new_service_takes_a_reload_and_nothing_is_done_for_it_before() {
    let rows = base().proc("c/web", 8503).running(9, "c/web", "10.0.0.1:21009").domain("www.c.org", "c");
    assert_eq!(to(rows), ["reload: new: c.web"]);
}

#[test]
fn what_needs_no_reload_does_not_wait_for_one() {
    let rows = base().proc("c/web", 8503).assigned(1, "a/web", "drain");
    assert_eq!(to(rows), ["disable i1", "delete i1", "reload: new: c.web"]);
}

#[test]
fn a_service_that_goes_takes_its_servers_out_first() {
    let rows = Rows::default().proc("b/web", 8502);
    assert_eq!(
        to(rows),
        ["disable i1", "disable i2", "no host a.localhost", "delete i1", "delete i2", "reload: gone: a.web"]
    );
}

#[test]
fn a_port_that_could_not_be_opened_takes_a_reload_once_it_can() {
    let with = wanted(base());
    let without =
        Wanted { routes: with.routes.clone().without_ports(&[service("a/web")]), settings: settings() };
    assert_eq!(short(&plan(&in_force(&without), &with)), ["reload: a port or a setting has changed"]);
}

#[test]
fn servers_that_are_not_ours_are_let_be() {
    let mut before = in_force(&wanted(base()));
    let server = ServerState { address: None, maintenance: false, weight: 1 };
    before.servers.entry("successor".into()).or_default().insert("next".into(), server);
    assert!(short(&plan(&before, &wanted(base()))).is_empty());
}

/// Any small cluster: which services there are, and where their instances stand.
fn any_rows() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec((0..3_u8, 0..6_u8, 0..3_u8), 0..12)
}

fn rows_of(all: &[(u8, u8, u8)]) -> Rows {
    let names = ["a/web", "b/web", "c/job"];
    let mut rows = Rows::default();
    let mut services = BTreeSet::new();
    for (service, id, how) in all {
        let name = names[usize::from(*service)];
        if services.insert(name) {
            rows = rows.proc(name, 8501 + u16::from(*service));
        }
        // An instance belongs to one service for its life.
        let id = u64::from(*service) * 10 + u64::from(*id);
        let address = format!("10.0.0.1:{}", 21_000 + id + u64::from(*how) * 100);
        rows = match how {
            0 => rows.running(id, name, &address),
            1 => rows.assigned(id, name, "drain"),
            _ => rows.running(id, name, &address),
        };
    }
    rows
}

proptest! {
    #[test]
    fn a_plan_that_is_carried_out_leaves_nothing_to_do(before in any_rows(), after in any_rows()) {
        let (before, after) = (wanted(rows_of(&before)), wanted(rows_of(&after)));
        let mut now = in_force(&before);
        let first = plan(&now, &after);
        // Never without a server in between, where there is one before and after.
        for step in &first.steps {
            now.note(step);
            for (id, service) in &after.routes.services {
                let had = before.routes.services.get(id).is_some_and(|before| !before.servers.is_empty());
                let any = (0..100).any(|n| now.takes(id, InstanceId(n)));
                prop_assert!(any || !had || service.servers.is_empty(), "{id} is without a server after {step:?}");
            }
        }
        if first.reload.is_some() {
            now = in_force(&after);
        }
        prop_assert_eq!(plan(&now, &after), Plan::default());
    }
}
