//! Rows with absurd values, by someone who may write them: the plan costs no more, and nothing that runs is ended.

use proptest::prelude::*;
use serde_json::{Value, json};
use visor::{mirror::Image, names::InstanceId, schema::Desired, store::Entry};

use super::super::{
    fixture::{World, serving},
    step::{Act, Plan},
};

/// Writes a row as someone would who needs no `bazooka` for it.
fn write(world: &mut World, key: &str, value: &Value) {
    let revision = world.snapshot.revision + 1;
    let value = value.to_string().into();
    let entry =
        Entry { key: key.to_owned(), value, create_revision: revision, mod_revision: revision, lease: None };
    world.snapshot.put(&entry);
    world.snapshot.set_revision(revision);
}

fn ends(plan: &Plan) -> Vec<&Act> {
    let ends = |act: &&Act| matches!(act, Act::Advance { to: Desired::Drain | Desired::Stop, .. });
    plan.steps.iter().map(|step| &step.act).filter(ends).collect()
}

fn pending(plan: &Plan) -> Vec<(u32, String)> {
    let said = |act: &Act| match act {
        Act::Pend { pending: Some(hindrance), .. } => Some((hindrance.short, hindrance.reason.clone())),
        _ => None,
    };
    plan.steps.iter().filter_map(|step| said(&step.act)).collect()
}

#[test]
fn a_count_of_all_that_a_number_holds_asks_for_the_room_that_there_is() {
    let mut world = serving(3);
    write(&mut world, "apps/a/formation/web", &json!({ "count": u32::MAX }));
    let plan = world.plan();
    let placed = plan.steps.iter().filter(|step| matches!(step.act, Act::Place { .. })).count();
    assert_eq!(
        (placed, ends(&plan).len()),
        (197, 0),
        "two hosts with a hundred slots each, of which three are taken"
    );
    assert_eq!(pending(&plan), [(10_000 - 200, "none of 2 hosts can take it".to_owned())]);
}

#[test]
fn an_unbounded_count_costs_no_more_than_the_places_either() {
    // The fixture writes past the image's bounds.
    let mut world = serving(3).scaled("web", u32::MAX);
    let plan = world.plan();
    assert_eq!(plan.steps.len(), 198);
    assert_eq!(pending(&plan), [(u32::MAX - 200, "none of 2 hosts can take it".to_owned())]);
}

#[test]
fn a_formation_beyond_the_bound_says_so_where_there_is_room_for_all() {
    let mut world = serving(3);
    for host in ["host1", "host2"] {
        world.edit_host(host, |host| {
            (host.capacity.instances, host.capacity.memory_bytes) = (60_000, 1 << 40)
        });
    }
    write(&mut world, "apps/a/formation/web", &json!({ "count": 10_001 }));
    let plan = world.plan();
    assert_eq!(pending(&plan), [(1, "the number of instances is 10001, and counts as 10000".to_owned())]);
}

#[test]
fn a_restart_of_all_instances_that_will_ever_be_is_not_obeyed() {
    let mut world = serving(3);
    let row = world.row(3_u64);
    world.snapshot.instance_counter = Some(row);
    write(&mut world, "apps/a/formation/web", &json!({ "count": 3, "replace_before": u64::MAX.to_string() }));
    assert_eq!(world.steps(), [""; 0]);
    write(&mut world, "apps/a/formation/web", &json!({ "count": 3, "replace_before": "4" }));
    assert_eq!(world.steps().len(), 1, "a restart of those that there are");
}

#[test]
fn a_check_that_would_ask_another_host_leaves_the_app_as_it_is() {
    let mut world = serving(3);
    let check = json!({ "http": { "path": "@169.254.169.254/latest/meta-data/" } });
    write(&mut world, "apps/a/procs/web", &json!({ "port": 8501, "run": { "check": check } }));
    let plan = world.scaled("web", 0).plan();
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    let why: Vec<&String> = plan.blocked.values().collect();
    assert!(
        why[0].starts_with("apps/a/procs/web can't be read: the path of a check begins with a slash"),
        "{why:?}"
    );
}

#[test]
fn ten_thousand_formations_of_no_proc_are_no_steps() {
    let mut world = serving(3);
    for n in 0..10_000 {
        write(&mut world, &format!("apps/a/formation/p{n}"), &json!({ "count": u32::MAX }));
    }
    assert_eq!(world.steps(), [""; 0]);
}

/// A number as nobody would write it, or as anybody would.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..5,
        Just(10_000),
        Just(u64::from(u32::MAX)),
        Just(1 << 63),
        Just(u64::MAX),
        any::<u64>()
    ]
}

fn numbers(name: &'static str) -> impl Strategy<Value = Value> {
    prop::collection::btree_map(1_u32..80, number(), 0..80).prop_map(move |all| {
        let all = all.into_iter().map(|(n, value)| (format!("{name}{n}"), json!(value)));
        Value::Object(all.collect())
    })
}

prop_compose! {
    fn formation()(
        count in number(), beside in numbers("v"), weights in numbers("v"), zones in numbers("z"),
        replace_before in number(), which in 0_u8..32,
    ) -> Value {
        let mut row = json!({ "count": count });
        for (bit, name, value) in [
            (1, "beside", beside), (2, "weights", weights), (4, "zones", zones),
            (8, "replace_before", json!(replace_before.to_string())),
        ] {
            if which & bit != 0 {
                row[name] = value;
            }
        }
        row
    }
}

prop_compose! {
    fn proc()(
        port in number(), stop in number(), boot in number(), ready in number(), pids in number(), batch in number(),
        away in number(), memory in number(), path in "[@/a-z:.]{0,12}", which in any::<bool>(),
    ) -> Value {
        let mut row = json!({
            "port": port, "min_ready_ms": ready, "batch": batch, "max_unavailable": away,
            "run": {
                "stop_timeout_ms": stop, "boot_timeout_ms": boot,
                "limits": { "processes_limit": pids, "memory_limit_bytes": memory },
            },
        });
        if which {
            row["run"]["check"] = json!({ "http": { "path": path } });
        }
        row
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_an_apps_people_write_others_are_planned_as_before(formation in formation(), proc in proc()) {
        let mut world = serving(3).app("b").released("web").scaled("web", 2);
        let row = world.row(3_u64);
        world.snapshot.instance_counter = Some(row);
        let meant = |world: &mut World| -> Vec<Act> {
            let plan = world.plan();
            plan.steps.into_iter().filter(|step| step.app.as_str() == "b").map(|step| step.act).collect()
        };
        let before = meant(&mut world);
        write(&mut world, "apps/a/formation/web", &formation);
        write(&mut world, "apps/a/procs/web", &proc);
        let plan = world.plan();
        prop_assert!(plan.steps.len() <= 200 + 4, "{} steps", plan.steps.len());
        prop_assert_eq!(meant(&mut world).len(), before.len(), "b has its two places");
        // What is wanted within the bounds is never ended for a value beyond them.
        let unreadable = !world.snapshot.unreadable.is_empty();
        let wanted = world.snapshot.apps[&world.name("a")].count(&world.proc("web"));
        let restarted = formation["replace_before"].as_str().is_some_and(|id| ["1", "2", "3", "4"].contains(&id));
        if unreadable {
            prop_assert!(ends(&plan).is_empty(), "{plan:?}");
        } else if wanted >= 3 && !restarted && formation["zones"].is_null() {
            let kept = |id| !ends(&plan).iter().any(|act| matches!(act, Act::Advance { id: other, .. } if *other == id));
            prop_assert!((1..=3).map(InstanceId).all(kept), "{:?}", ends(&plan));
        }
    }
}
