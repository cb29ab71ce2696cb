//! Tests of where links lead, and of the variables that instances get.

use super::*;
use crate::store::{Entry, Image, Revision};

fn link(said: &str) -> Link {
    said.parse().expect("a link")
}

fn links(said: &[&str]) -> BTreeSet<Link> {
    said.iter().map(|said| link(said)).collect()
}

fn image(rows: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (revision, (key, value)) in (1 as Revision..).zip(rows) {
        snapshot.put(&Entry {
            key: (*key).into(),
            value: (*value).to_owned().into(),
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        });
    }
    snapshot
}

const APP: &str = r#"{"owner":"me","created_at":"2026-01-01T00:00:00Z","token":"t"}"#;
const GOING: &str = r#"{"owner":"me","created_at":"2026-01-01T00:00:00Z","token":"t","destroying":true}"#;

#[test]
fn links_that_would_be_one_variable_or_too_many_are_not_had_together() {
    let there = links(&["api:web", "a-b:c"]);
    assert_eq!(with(&there, &links(&["db:web", "api:web"])), Ok(links(&["a-b:c", "api:web", "db:web"])));
    let clash = with(&there, &links(&["a:b-c"])).expect_err("they have one name");
    assert_eq!(clash.to_string(), "a:b-c and a-b:c would both set BAZOOKA_SERVICE_A_B_C");
    let many: BTreeSet<Link> = (0..=MOST_LINKS).map(|n| link(&format!("api{n}:web"))).collect();
    assert_eq!(with(&BTreeSet::new(), &many), Err(Unfit::TooMany(MOST_LINKS + 1)));
    let most: BTreeSet<Link> = many.into_iter().skip(1).collect();
    assert_eq!(with(&most, &most), Ok(most.clone()));
}

#[test]
fn a_link_leads_to_its_services_port_or_says_why_it_leads_nowhere() {
    let proc = |app: &str| format!("apps/{app}/procs/web");
    let image = image(&[
        ("apps/api", APP),
        (&proc("api"), r#"{"port":8501}"#),
        ("apps/db", APP),
        (&proc("db"), r#"{"port":8502}"#),
        ("apps/bare", APP),
        ("apps/going", GOING),
        (&proc("going"), r#"{"port":8503}"#),
        ("apps/torn", APP),
        (&proc("torn"), r#"{"port":"#),
        (&proc("orphan"), r#"{"port":8504}"#),
    ]);
    let found = ports(&image, &links(&["api:web", "db:web"])).expect("they are there");
    assert_eq!(found, BTreeMap::from([(link("api:web"), 8501), (link("db:web"), 8502)]));
    for (said, why) in [
        ("none:web", "links none:web, but there is no such service"),
        ("bare:web", "links bare:web, but there is no such service"),
        ("orphan:web", "links orphan:web, but there is no such service"),
        ("going:web", "links going:web, but its app is being destroyed"),
        ("torn:web", "links torn:web, but its row can't be read"),
    ] {
        let nowhere = ports(&image, &links(&["api:web", said])).expect_err(said);
        assert_eq!(nowhere.to_string(), why);
    }
}

#[test]
fn an_instance_is_told_each_address_or_why_it_can_not_be() {
    let placed = BTreeMap::from([(link("api:web"), 8501)]);
    let here: ServicesAddress = "10.0.0.7".parse().expect("an address");
    let told = variables(&links(&["api:web"]), &placed, Some(&here));
    let wanted = BTreeMap::from([("BAZOOKA_SERVICE_API_WEB".to_owned(), "10.0.0.7:8501".to_owned())]);
    assert_eq!(told, Ok(wanted));
    assert_eq!(variables(&BTreeSet::new(), &BTreeMap::new(), None), Ok(BTreeMap::new()));
    for (links, ports, services, why) in [
        (links(&["api:web"]), placed.clone(), None, "this host has no --services address"),
        (links(&["api:web", "db:web"]), placed, Some(&here), "db:web, and was placed without"),
        (links(&["api:web"]), BTreeMap::new(), Some(&here), "api:web, and was placed without"),
    ] {
        let said = variables(&links, &ports, services).expect_err(why).to_string();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn rows_without_links_are_written_as_they_were_before_there_were_any() {
    let env = r#"{"by":"me","at":"2026-01-01T00:00:00Z"}"#;
    let row: crate::schema::Env = serde_json::from_str(env).expect("readable");
    assert_eq!(serde_json::to_string(&row).expect("writable"), env);
    let linked = r#"{"links":["api:web"],"by":"me","at":"2026-01-01T00:00:00Z"}"#;
    let row: crate::schema::Env = serde_json::from_str(linked).expect("readable");
    assert_eq!(row.links, links(&["api:web"]));
    assert_eq!(serde_json::to_string(&row).expect("writable"), linked);
}
