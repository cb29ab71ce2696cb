//! Who is routed.

use std::collections::BTreeMap;

use bazooka_proxy::{
    routes::{
        Mode, Routes, concerns_routing, keeping_lost, keeping_unreadable, leaving, routes, routes_after,
    },
    services::MOST_SERVICES,
    zones::Locality,
};
use visor::{mirror::Image, names::InstanceId, store::Entry};

use crate::image::{Rows, entry, service};

const AT: &str = "10.0.0.1:21000";

fn servers(rows: Rows, of: &str) -> Vec<u64> {
    routes(&rows.0, None).services[&service(of)].servers.keys().map(|id| id.0).collect()
}

#[test]
fn an_instance_is_routed_while_it_is_meant_to_run_and_runs() {
    let rows = |desired: &str, state: &str| {
        Rows::default().proc("a/web", 8501).assigned(1, "a/web", desired).status(1, state, AT)
    };
    assert_eq!(servers(rows("run", "running"), "a/web"), [1]);
    for desired in ["drain", "stop"] {
        assert!(servers(rows(desired, "running"), "a/web").is_empty(), "{desired}");
    }
    for state in ["claimed", "backoff", "stopping", "exited", "failed", "lost"] {
        assert!(servers(rows("run", state), "a/web").is_empty(), "{state}");
    }
    let unassigned = Rows::default().proc("a/web", 8501).status(1, "running", AT);
    assert!(servers(unassigned, "a/web").is_empty());
    let silent = Rows::default().proc("a/web", 8501).assigned(1, "a/web", "run");
    assert!(servers(silent, "a/web").is_empty());
}

#[test]
fn an_instance_is_routed_at_an_address_of_its_host_alone() {
    let at =
        |address: &str| Rows::default().proc("a/web", 8501).host("host1", "a").running(1, "a/web", address);
    let routed = |rows: &Rows, before: Option<&Routes>| {
        let routes = routes_after(before, &rows.0, None);
        routes.services[&service("a/web")].servers.values().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(routed(&at(AT), None), [AT]);
    for elsewhere in ["10.0.0.9:21000", "127.0.0.1:21000", "[fd00::1]:21000", "10.0.0.1:22"] {
        assert!(routed(&at(elsewhere), None).is_empty(), "{elsewhere}");
    }
    // A host that has just moved, or is away, keeps the addresses that were checked before, and gets no others.
    let before = routes(&at(AT).0, None);
    let moved = at(AT).put("hostmeta/host1", r#"{"address":"10.0.0.2"}"#);
    assert_eq!((routed(&moved, Some(&before)), routed(&moved, None)), (vec![AT.to_owned()], vec![]));
    let away = |address: &str| Rows::default().proc("a/web", 8501).running(1, "a/web", address);
    assert_eq!(routed(&away(AT), Some(&before)), [AT]);
    assert!(routed(&away("10.0.0.9:21000"), Some(&before)).is_empty());
    assert_eq!(
        routed(&away(AT), None),
        [AT],
        "a proxy that starts while a host is away serves what runs there"
    );
}

#[test]
fn of_two_services_that_name_one_port_the_one_that_was_registered_first_has_it() {
    let at = |mut rows: Rows, revision: i64, key: &str, value: &str| {
        rows.0.put(&Entry { create_revision: revision, mod_revision: revision, ..entry(key, value) });
        rows
    };
    let rev = format!("revs/{}", "1".repeat(40));
    let registered = r#"{"slug":{"sha256":"0000000000000000000000000000000000000000000000000000000000000000",
        "size_bytes":1},"procs":{"web":"run"},"kind":"procfile","by":"me","at":"2026-01-01T00:00:00Z"}"#;
    let app = |rows: Rows, name: &str, revision: i64, port: u16| {
        let rows = at(rows, revision, &format!("apps/{name}/{rev}"), registered);
        at(rows, revision, &format!("apps/{name}/procs/web"), &format!(r#"{{"port":{port}}}"#))
    };
    let ports = |rows: &Rows| {
        let routes = routes(&rows.0, None);
        let denied: Vec<String> = routes.denied.values().map(ToString::to_string).collect();
        (["aaa/web", "shop/web"].map(|of| routes.services[&service(of)].port), denied.join("; "))
    };
    let both = || app(app(Rows::default(), "shop", 7, 8501), "aaa", 9, 8502);
    assert_eq!(ports(&both()), ([Some(8502), Some(8501)], String::new()));
    // Somebody of aaa names the port of shop, and one of the machine's own.
    let stolen = at(both(), 10, "apps/aaa/procs/web", r#"{"port":8501}"#);
    let why = "port 8501 is that of shop/web, which was registered first";
    assert_eq!(ports(&stolen), ([None, Some(8501)], why.to_owned()));
    let own = at(both(), 10, "apps/aaa/procs/web", r#"{"port":22}"#);
    assert_eq!(ports(&own), ([None, Some(8501)], "port 22 is none of a service's".to_owned()));
    // An elder app has no better claim to a port that an rm gave to another.
    let elder = app(app(Rows::default(), "aaa", 5, 8502), "shop", 7, 8501);
    let elder = at(elder, 10, "apps/aaa/procs/web", r#"{"port":8501}"#);
    assert_eq!(ports(&elder).0, [None, Some(8501)]);
}

#[test]
fn a_service_keeps_its_port_while_the_row_of_the_port_cannot_be_read() {
    let app = r#"{"owner":"me","created_at":"2026-01-01T00:00:00Z","token":"t"}"#;
    let given = r#"{"app":"a","proc":"web","token":"t","at":"2026-01-01T00:00:00Z"}"#;
    let schema = r#"{"version":3,"min_reader":3,"min_writer":3}"#;
    let rows = || Rows::default().put("schema", schema).put("apps/a", app).proc("a/web", 22);
    let port = |routes: &Routes| routes.services[&service("a/web")].port;
    let before = routes(&rows().put("ports/8501", given).0, None);
    assert_eq!((port(&before), before.denied.len()), (Some(8501), 0));
    let without = routes(&rows().0, None);
    assert_eq!((port(&without), without.denied.len()), (None, 1), "a proc's own row gives none");
    let unreadable = rows().put("ports/8501", "{").0;
    let kept = keeping_unreadable(routes(&unreadable, None), &before, &unreadable);
    assert_eq!((port(&kept), kept.denied.len()), (Some(8501), 0));
}

#[test]
fn an_app_has_so_many_services_and_no_more_the_first_ones() {
    let mut rows = Rows::default().proc("a/web", 8501);
    for n in 0..10_000 {
        let row = entry(&format!("apps/a/procs/b{n}"), r#"{"port":9000}"#);
        rows.0.put(&Entry { create_revision: 2, mod_revision: 2, ..row });
    }
    let routes = routes(&rows.0, None);
    assert_eq!(routes.services.len(), MOST_SERVICES);
    assert_eq!(routes.services.values().filter(|service| service.port.is_some()).count(), 2);
    assert_eq!(routes.services[&service("a/web")].port, Some(8501));
}

#[test]
fn an_instance_on_trial_is_routed_like_any_other() {
    let rows = Rows::default().proc("a/web", 8501).running(1, "a/web", AT);
    let mut snapshot = rows.0;
    for host in snapshot.hosts.values_mut() {
        host.assigned.values_mut().for_each(|assigned| assigned.value.trial = true);
    }
    assert_eq!(routes(&snapshot, None).servers(), 1);
}

#[test]
fn each_registered_proc_is_a_service_with_or_without_instances() {
    let rows = Rows::default().proc("a/web", 8501).proc("a/job", 8502).proc("a/web-admin", 8503);
    let routes = routes(&rows.0, None);
    let modes: Vec<_> =
        routes.services.iter().map(|(id, service)| (id.to_string(), service.mode, service.port)).collect();
    assert_eq!(
        modes,
        [
            ("a/job".to_owned(), Mode::Tcp, Some(8502)),
            ("a/web".to_owned(), Mode::Http, Some(8501)),
            ("a/web-admin".to_owned(), Mode::Http, Some(8503)),
        ]
    );
}

#[test]
fn an_instance_of_no_registered_proc_is_not_routed() {
    let rows = Rows::default().running(1, "a/web", AT);
    assert!(routes(&rows.0, None).services.is_empty());
}

#[test]
fn a_share_counts_while_its_release_is_wanted_beside_and_stays_while_it_cannot_be_read() {
    let rows = |formation: &str| {
        Rows::default()
            .proc("a/web", 8501)
            .running(1, "a/web", AT)
            .running_of(2, "a/web", "v2", AT)
            .put("apps/a/formation/web", formation)
    };
    let weights = |routes: &Routes| {
        let weights = routes.services[&service("a/web")].weights.clone();
        weights.map(|weights| weights.into_values().collect::<Vec<_>>())
    };
    let shared = routes(&rows(r#"{"count":1,"beside":{"v2":1},"weights":{"v2":50,"v7":50}}"#).0, None);
    assert_eq!(weights(&shared), Some(vec![256, 256]));
    assert_eq!(weights(&routes(&rows(r#"{"count":1,"weights":{"v2":50}}"#).0, None)), None);
    let garbled = rows("{").0;
    assert_eq!(weights(&keeping_unreadable(routes(&garbled, None), &shared, &garbled)), weights(&shared));
    assert!(concerns_routing([&"apps/a/formation/web".to_owned()]));
}

#[test]
fn a_proxy_prefers_the_instances_of_its_zone_by_weight_and_within_each_share() {
    // Two in the north, two in the south, of which the last is of a canary.
    let two_zones = |formation: &str| {
        let rows = Rows::default().host("host1", "north").host("host2", "south").proc("a/web", 8501);
        let rows = rows.proxy("p1", "north").proxy("p2", "south").put("apps/a/formation/web", formation);
        let rows = rows.running(1, "a/web", AT).running(2, "a/web", AT).running(3, "a/web", AT);
        rows.running_of(4, "a/web", "v2", AT).moved(3, "host2").moved(4, "host2")
    };
    let weights = |rows: &Rows, own: &str| {
        let locality = Locality::of(&own.parse().expect("valid"), &rows.0);
        let weights = routes(&rows.0, locality.as_ref()).services[&service("a/web")].weights.clone();
        weights.map(|weights| weights.into_values().collect::<Vec<_>>())
    };
    let plain = two_zones(r#"{"count":4}"#);
    assert_eq!(weights(&plain, "north"), Some(vec![256, 256, 1, 1]));
    assert_eq!(weights(&plain, "south"), Some(vec![1, 1, 256, 256]));
    assert_eq!(weights(&plain, "west"), Some(vec![256; 4]), "nothing is there");
    assert_eq!(weights(&plain, "default"), None, "it hasn't been told a zone");
    // The canary keeps its share in the zone where it isn't.
    let shared = two_zones(r#"{"count":3,"beside":{"v2":1},"weights":{"v2":50}}"#);
    assert_eq!(weights(&shared, "north"), Some(vec![128, 128, 1, 256]));
    assert_eq!(weights(&shared, "south"), Some(vec![26, 26, 205, 256]), "one of three is too few for half");
    // A host that has gone is no place to prefer.
    let mut gone = two_zones(r#"{"count":4}"#);
    gone.0.hosts.get_mut(&"host1".parse().expect("valid")).expect("it was there").host = None;
    assert_eq!(weights(&gone, "north"), Some(vec![1, 1, 256, 256]));
    assert!(concerns_routing([&"hosts/host1".to_owned()]));
}

#[test]
fn who_is_being_taken_out_is_known_until_its_row_goes() {
    let rows = Rows::default().assigned(1, "a/web", "run").assigned(2, "a/web", "drain");
    let rows = rows.assigned(3, "a/job", "stop");
    let expected = BTreeMap::from([(InstanceId(2), service("a/web")), (InstanceId(3), service("a/job"))]);
    assert_eq!(leaving(&rows.0), expected);
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    let rows = Rows::default().proc("a/web", 8501).running(1, "a/web", AT).running(2, "a/web", AT);
    let before = routes(&rows.domain("a.example.org", "a").0, None);
    let garbled = Rows::default()
        .put("apps/a/procs/web", "{")
        .assigned(1, "a/web", "run")
        .put("status/host1/1", "?")
        .put("assigned/host1/2", "{\"desired\":\"dance\"}")
        .put("domains/a.example.org", "[]");
    let bare = routes(&garbled.0, None);
    assert!(bare.services.is_empty());
    assert_eq!(keeping_unreadable(bare, &before, &garbled.0), before);
    // Gone is another thing than unreadable.
    let gone = Rows::default().proc("a/web", 8501);
    assert_eq!(keeping_unreadable(routes(&gone.0, None), &before, &gone.0).servers(), 0);
}

#[test]
fn who_is_lost_stays_where_it_was_as_the_last_choice_until_it_is_replaced() {
    let rows = || {
        let rows = Rows::default().host("host1", "north").host("host2", "north").proxy("p1", "north");
        rows.proc("a/web", 8501).running(1, "a/web", AT).running(2, "a/web", AT).moved(2, "host2")
    };
    let locality = Locality::of(&"north".parse().expect("valid"), &rows().0);
    let before = routes(&rows().0, locality.as_ref());
    let kept = |rows: Rows, before: &Routes| {
        let kept = keeping_lost(routes(&rows.0, locality.as_ref()), before, &rows.0);
        let service = &kept.services[&service("a/web")];
        service.servers.keys().map(|id| (id.0, service.weight(*id))).collect::<Vec<_>>()
    };
    assert_eq!(kept(rows(), &before), [(1, 256), (2, 256)]);
    assert_eq!(kept(rows().status(1, "lost", AT), &before), [(1, 1), (2, 256)]);
    assert_eq!(kept(rows().status(1, "lost", AT), &Routes::default()), [(2, 256)], "it was never routed");
    assert_eq!(kept(rows().status(1, "claimed", AT), &before), [(2, 256)], "its host says otherwise");
    assert_eq!(kept(rows().status(1, "lost", AT).assigned(1, "a/web", "stop"), &before), [(2, 256)]);
}

#[test]
fn only_some_keys_can_change_what_is_routed() {
    for key in [
        "apps/a",
        "apps/a/procs/web",
        "assigned/h/1",
        "status/h/1",
        "hosts/h",
        "hostmeta/h",
        "domains/a.b",
        "ports/1",
        "schema",
    ] {
        assert!(concerns_routing(&[key.to_owned()]), "{key}");
    }
    for key in ["apps/a/head", "apps/a/envs/e1", "proxies/x", "history/a/web/1", "counters/port", ""] {
        assert!(!concerns_routing(&[key.to_owned()]), "{key}");
    }
}
