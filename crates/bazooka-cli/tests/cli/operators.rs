//! What operators ask of the whole: capacity, statistics, and whether the rows fit together.

use std::time::Duration;

use serde_json::{Value, json};
use visor::{
    keys::Key,
    names::HostName,
    schema::{DomainRecord, Extra, Schema},
};

use crate::{
    player::register,
    rig::{Ran, Rig, app, proc, words},
};

fn host(name: &str) -> HostName {
    name.parse().expect("valid")
}

async fn registered(rig: &Rig, names: &[&str]) {
    let lease = rig.visor.store().grant(Duration::from_secs(300)).await.expect("it is granted");
    for name in names {
        register(&rig.visor, &host(name), lease, "http://127.0.0.1:9").await;
    }
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).expect("it is JSON")
}

#[tokio::test]
async fn capacity_tells_each_zone_and_how_many_more_of_a_service_fit() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    registered(&rig, &["host1", "host2"]).await;
    rig.bazooka(&["procs", "set", "-a", "goto-rocket", "web", "--memory", "256M"]).await.exits(0);
    rig.visor.mark_host(&host("host2"), |meta| meta.cordoned = true).await.expect("the coordinator answers");
    let told = json(&rig.bazooka(&["capacity", "--of", "goto-rocket/web", "--json"]).await.ok());
    assert_eq!(told["of"], "goto-rocket/web");
    let total = &told["total"];
    // Each has a GiB.
    assert_eq!((&total["hosts"], &total["closed"], &total["fit"]), (&json!(2), &json!(1), &json!(4)));
    assert_eq!((&total["memory_bytes"], &total["memory_free_bytes"]), (&json!(2_u64 << 30), &json!(1 << 30)));
    assert_eq!(told["zones"]["default"]["fit"], json!(4));
    assert_eq!(told["losses"][0], json!({"part": {"zone": "default"}, "instances": 0, "without_place": {}}));
    let ran = rig.bazooka(&["capacity", "-a", "goto-rocket", "web"]).await.exits(0);
    let lines = words(&ran.stdout);
    assert!(lines[0].starts_with("ZONE HOSTS CLOSED SLOTS") && lines[0].ends_with("FIT"), "{lines:?}");
    assert!(lines[2].starts_with("total 2 1 20000 0 0 10000 2G") && lines[2].ends_with(" 4"), "{lines:?}");
    assert!(ran.stderr.contains("reserved, not measured"), "{}", ran.stderr);
}

#[tokio::test]
async fn capacity_of_what_is_not_there_says_so() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.bazooka(&["capacity", "--of", "goto-rocket/job"]).await.exits(3);
    rig.bazooka(&["capacity", "--of", "rocket/web"]).await.exits(3);
    rig.bazooka(&["capacity", "--of", "goto-rocket"]).await.exits(2);
    let ran = rig.bazooka(&["capacity", "-a", "goto-rocket"]).await.exits(2);
    assert!(ran.stderr.contains("--of APP/PROC"), "{}", ran.stderr);
}

#[tokio::test]
async fn stats_tells_what_there_is_and_each_day_that_was_counted() {
    let rig = Rig::with_app("goto-rocket", &["web", "job"]).await;
    let ran = rig.bazooka(&["stats"]).await.exits(0);
    assert!(ran.stderr.contains("no day has been counted yet"), "{}", ran.stderr);
    let lines = words(&ran.stdout);
    assert_eq!(lines[1..5], ["apps 1", "proc types 2", "revs 1", "releases 1"]);
    for day in ["2026-03-01", "2026-03-02"] {
        let row = json!({"pushed": 2, "released": 3, "started": 4, "counted_at": "2026-03-02T10:00:00Z",
            "totals": {"apps": 1, "procs": 2, "revs": 5, "releases": 6, "instances": 7}, "closed": true});
        rig.write(&Key::Day(day.parse().expect("valid")), &row).await;
    }
    let told = json(&rig.bazooka(&["stats", "--json", "-n", "1"]).await.ok());
    assert_eq!(told["days"].as_array().map(Vec::len), Some(1));
    assert_eq!((&told["days"][0]["day"], &told["days"][0]["started"]), (&json!("2026-03-02"), &json!(4)));
    let lines = words(&rig.bazooka(&["stats"]).await.ok().stdout);
    assert_eq!(lines.last().map(String::as_str), Some("2026-03-02 1 2 5 7 2 3 4"));
}

#[tokio::test]
async fn check_finds_what_does_not_fit_mends_what_it_can_and_leaves_the_rest_to_a_person() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let clean = rig.bazooka(&["check"]).await.exits(0);
    assert!(clean.stderr.contains("all is as it should be"), "{clean:?}");
    let record = DomainRecord { app: app("gone"), extra: Extra::new() };
    let domain = Key::Domain("www.example.org".parse().expect("valid"));
    rig.write(&domain, &record).await;
    rig.write(&Key::Formation(app("goto-rocket"), proc("job")), &json!({"count": 1})).await;
    rig.write(&Key::Access(app("gone")), &json!({})).await;
    let told = json(&rig.bazooka(&["check", "--json"]).await.exits(1));
    let rules: Vec<&Value> =
        told["findings"].as_array().expect("a list").iter().map(|finding| &finding["rule"]).collect();
    assert_eq!(rules, ["row-of-no-app", "formation-without-proc", "domain-without-app"]);
    let ran = rig.bazooka(&["check"]).await.exits(1);
    assert!(ran.stderr.contains("bazooka check --repair"), "{}", ran.stderr);
    let ran = rig.bazooka(&["check", "--repair"]).await.exits(1);
    assert!(ran.stdout.contains("domains/www.example.org: delete it: done"), "{}", ran.stdout);
    assert!(ran.stdout.contains("access/gone") && ran.stdout.contains("a person"), "{}", ran.stdout);
    let left = rig.visor.stock().await.expect("the coordinator answers");
    assert_eq!(visor::check::findings(&left.snapshot).len(), 1);
    assert!(left.snapshot.audit.values().any(|entry| entry.what.starts_with("check --repair")));
}

#[tokio::test]
async fn check_changes_nothing_of_a_newer_schema_and_recover_takes_a_word() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.bazooka(&["recover"]).await.exits(2);
    rig.write(&Key::Formation(app("goto-rocket"), proc("job")), &json!({"count": 1})).await;
    let later = Schema { version: 9, min_reader: 1, min_writer: 9, ..Schema::default() };
    rig.write(&Key::Schema, &later).await;
    rig.bazooka(&["check", "--repair"]).await.exits(4);
}

#[tokio::test]
async fn migrate_shuts_out_nobody_who_is_there_and_is_done_once() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.write(&Key::Schema, &json!({"version": 2, "min_reader": 1, "min_writer": 1})).await;
    let schema = async || rig.visor.read(vec![visor::keys::schema()]).await.expect("it answers").schema;
    let mins =
        async || schema().await.map(|row| (row.value.version, row.value.min_reader, row.value.min_writer));
    let proxy = json!({"url": "http://x", "public": "x:80", "domain": "x", "version": "0.0.9", "applied": 1});
    let proxy_key = Key::Proxy("p9".parse().expect("a name"));
    rig.write(&proxy_key, &proxy).await;
    for words in [&["migrate"][..], &["migrate", "--dry-run"]] {
        let ran = rig.bazooka(words).await.exits(4);
        assert!(ran.stderr.contains("proxy p9 (0.0.9) would be shut out"), "{ran:?}");
    }
    assert_eq!(mins().await, Some((2, 1, 1)));
    rig.visor.commit(visor::visor::Change::new().delete(&proxy_key)).await.expect("it answers");
    let ran = rig.bazooka(&["migrate", "--dry-run"]).await.ok();
    assert!(ran.stdout.starts_with("to come: "), "{ran:?}");
    assert_eq!(mins().await, Some((2, 1, 1)));
    assert_eq!(rig.bazooka(&["migrate"]).await.ok().stdout.lines().count(), 3);
    let once = schema().await;
    assert_eq!(mins().await, Some((4, 4, 4)));
    let ran = rig.bazooka(&["migrate"]).await.ok();
    assert!(ran.stdout.starts_with("the cluster is at version 4"), "{ran:?}");
    assert_eq!(schema().await, once, "nothing was written");
}
