//! Who is named, and how.

use std::collections::BTreeSet;

use bazooka_proxy::directory::{Directory, daemons, services, targets::targets};
use serde_json::{Value, json};
use visor::names::InstanceId;

use crate::image::{Rows, service};

const AT: &str = "10.0.0.1:21000";

fn directory(rows: &Rows, before: &Directory) -> Directory {
    Directory::of(services(&rows.0, &before.services).into(), daemons(&rows.0, &before.daemons))
}

fn host(zone: &str) -> String {
    json!({
        "address": "10.0.0.1", "url": "http://10.0.0.1:8100", "zone": zone, "version": "1",
        "capacity": { "memory_bytes": 1, "instances": 1 }, "isolation": "none", "boot_id": "b",
        "since": "2026-01-01T00:00:00Z", "token": "t",
    })
    .to_string()
}

fn proxy(url: &str) -> String {
    json!({
        "url": url, "public": "10.0.0.9:80", "domain": "localhost", "zone": "north", "version": "1", "applied": 1,
    })
    .to_string()
}

#[test]
fn an_instance_is_named_while_it_runs_and_is_routed_while_it_is_meant_to() {
    let seen = |desired: &str, state: &str| {
        let rows = Rows::default().proc("a/web", 8501).assigned(1, "a/web", desired).status(1, state, AT);
        services(&rows.0, &Default::default())[&service("a/web")]
            .get(&InstanceId(1))
            .map(|place| place.routed)
    };
    assert_eq!(seen("run", "running"), Some(true));
    assert_eq!(seen("drain", "running"), Some(false));
    for state in ["claimed", "backoff", "stopping", "exited", "failed", "lost"] {
        assert_eq!(seen("run", state), None, "{state}");
    }
}

#[test]
fn an_instance_of_a_host_that_has_lost_its_registration_stands_where_it_stood() {
    let rows = |rows: Rows| rows.proc("a/web", 8501).running(1, "a/web", AT);
    let zone = |directory: &Directory| directory.services[&service("a/web")][&InstanceId(1)].zone.clone();
    let before = directory(&rows(Rows::default().put("hosts/host1", &host("north"))), &Directory::default());
    assert_eq!(zone(&before).map(|zone| zone.to_string()), Some("north".to_owned()));
    assert_eq!(zone(&directory(&rows(Rows::default()), &before)), zone(&before));
    assert_eq!(zone(&directory(&rows(Rows::default()), &Directory::default())), None);
}

#[test]
fn what_cannot_be_read_is_left_as_it_was() {
    let whole = || {
        Rows::default()
            .proc("a/web", 8501)
            .running(1, "a/web", AT)
            .put("hosts/host1", &host("north"))
            .put("proxies/proxy1", &proxy("http://10.0.0.9:8083"))
            .put("rms/rm1", r#"{"url":"http://10.0.0.8:8081","version":"1"}"#)
            .put(
                "election/converger",
                r#"{"name":"c1","since":"2026-01-01T00:00:00Z","url":"http://10.0.0.7:8082"}"#,
            )
    };
    let before = directory(&whole(), &Directory::default());
    for key in [
        "apps/a/procs/web",
        "assigned/host1/1",
        "status/host1/1",
        "hosts/host1",
        "proxies/proxy1",
        "rms/rm1",
        "election/converger",
    ] {
        assert_eq!(directory(&whole().put(key, "{"), &before), before, "{key}");
    }
    let nothing = directory(&Rows::default(), &before);
    assert_eq!(nothing, Directory::default(), "what has gone is named no more");
}

#[test]
fn prometheus_is_told_of_every_instance_and_every_daemon() {
    let rows = Rows::default()
        .proc("v2/web", 8501)
        .proc("v2/job", 8502)
        .running_of(4617216, "v2/web", "v12", AT)
        .assigned(4617217, "v2/web", "drain")
        .status(4617217, "running", "10.0.0.1:21001")
        .assigned(4617218, "v2/web", "stop")
        .status(4617218, "exited", "10.0.0.1:21002")
        .put("hosts/host1", &host("north"))
        .put("proxies/proxy1", &proxy("https://10.0.0.9:8083"))
        .put("rms/rm1", r#"{"url":"http://rm1.example.org:8081/","version":"1"}"#)
        .put("election/converger", r#"{"name":"c1","since":"2026-01-01T00:00:00Z"}"#);
    let told = serde_json::to_value(targets(&directory(&rows, &Directory::default()))).expect("JSON");
    let instance = |id: &str, release: &str, at: &str| {
        json!({ "targets": [at], "labels": {
            "__meta_bazooka_role": "instance", "app": "v2", "proc": "web", "service": "v2/web", "instance": id,
            "release": release, "rev": "0000000", "host": "host1", "zone": "north",
        }})
    };
    let wanted = json!([
        instance("4617216", "v12", AT),
        instance("4617217", "v1", "10.0.0.1:21001"),
        { "targets": ["10.0.0.1:8100"], "labels": {
            "__meta_bazooka_role": "pm", "__scheme__": "http", "instance": "pm:host1", "host": "host1", "zone": "north",
        }},
        { "targets": ["rm1.example.org:8081"], "labels": {
            "__meta_bazooka_role": "rm", "__scheme__": "http", "instance": "rm:rm1",
        }},
        { "targets": ["10.0.0.9:8083"], "labels": {
            "__meta_bazooka_role": "proxy", "__scheme__": "https", "instance": "proxy:proxy1", "zone": "north",
        }},
        { "targets": ["10.0.0.9:8083"], "labels": {
            "__meta_bazooka_role": "haproxy", "__scheme__": "https", "__metrics_path__": "/haproxy/metrics",
            "instance": "haproxy:proxy1", "haproxy": "proxy1", "zone": "north",
        }},
    ]);
    let sorted = |value: &Value| -> BTreeSet<String> {
        value.as_array().expect("a list").iter().map(Value::to_string).collect()
    };
    assert_eq!(sorted(&told), sorted(&wanted), "a converger that doesn't say where it is can't be scraped");
}
