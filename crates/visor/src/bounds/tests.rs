//! Tests of the bounds: absurd values count as the bound, with words, and usual ones are left as they are.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn read<T: DeserializeOwned + Bounded>(row: &Value) -> (T, Result<Option<OutOfBounds>, TooMuch>) {
    let mut value: T = serde_json::from_value(row.clone()).expect("it has this form");
    let out = value.bound();
    (value, out)
}

#[test]
fn an_absurd_formation_counts_as_the_most_and_says_so() {
    let (row, out) = read::<Formation>(&json!({
        "count": u32::MAX, "beside": { "v2": u32::MAX, "v3": 3 }, "weights": { "v2": u32::MAX },
        "zones": { "a": u32::MAX },
    }));
    let out = out.expect("readable").expect("out of bounds");
    assert_eq!((row.count, row.beside[&ReleaseId(2)], row.beside[&ReleaseId(3)]), (10_000, 10_000, 3));
    assert_eq!((row.weights[&ReleaseId(2)], row.zones.values().sum::<u32>()), (100, 10_000));
    assert_eq!(out.words.len(), 4, "{out:?}");
    assert_eq!(out.words[0], "the number of instances is 4294967295, and counts as 10000");
    assert_eq!(out.instances, u32::MAX, "the sum does not overflow");
}

#[test]
fn a_formation_with_endless_lists_is_unreadable() {
    let many = |n: usize| -> Value {
        (1..=n).map(|n| (format!("v{n}"), json!(1))).collect::<serde_json::Map<_, _>>().into()
    };
    let (_, out) = read::<Formation>(&json!({ "count": 1, "beside": many(64), "weights": many(64) }));
    assert_eq!(out, Ok(None));
    for field in ["beside", "weights"] {
        let (_, out) = read::<Formation>(&json!({ "count": 1, field: many(65) }));
        assert!(matches!(out, Err(TooMuch::Listed { there: 65, most: 64, .. })), "{out:?}");
    }
    let zones: serde_json::Map<_, _> = (0..=256).map(|n| (format!("z{n}"), json!(1))).collect();
    let (_, out) = read::<Formation>(&json!({ "count": 1, "zones": zones }));
    assert!(out.is_err());
    let ids: Vec<String> = (1..=10_001).map(|id| id.to_string()).collect();
    let (_, out) = read::<Formation>(&json!({ "count": 1, "replace": ids }));
    assert!(out.is_err());
}

fn host(address: &str, slots: u32, memory: u64) -> Value {
    json!({
        "address": address, "url": "http://10.0.0.1:1", "zone": "a", "version": "1", "isolation": "none",
        "capacity": { "memory_bytes": memory, "instances": slots }, "boot_id": "b", "token": "t",
        "since": "2026-01-01T00:00:00Z",
    })
}

#[test]
fn a_host_offers_no_more_than_a_machine_has() {
    let (row, out) = read::<Host>(&host("10.0.0.1", u32::MAX, u64::MAX));
    assert_eq!((row.capacity.instances, row.capacity.memory_bytes), (65_535, 64 << 40));
    assert_eq!(out.expect("readable").expect("out of bounds").words.len(), 2);
    let (_, out) = read::<Host>(&host("127.0.0.2", 1_000, 1 << 40));
    assert_eq!(out, Ok(None));
    for address in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
        let (_, out) = read::<Host>(&host(address, 1, 1));
        assert!(matches!(out, Err(TooMuch::Address(_))), "{address}");
    }
}

#[test]
fn a_report_is_short_and_names_no_port_of_the_machines_own() {
    let long = "é".repeat(MOST_LINE_BYTES);
    let (row, out) = read::<Status>(&json!({
        "state": "running", "since": "2026-01-01T00:00:00Z", "ip": "10.0.0.1", "port": 22, "cause": long,
        "last_output": vec!["x"; 10_000],
    }));
    assert_eq!((row.port, row.last_output.len()), (None, MOST_OUTPUT));
    assert!(row.cause.is_some_and(|cause| cause.len() <= MOST_LINE_BYTES && cause.ends_with('é')));
    assert_eq!(out.expect("readable").expect("out of bounds").words.len(), 2);
    let usual = json!({ "state": "running", "since": "2026-01-01T00:00:00Z", "ip": "10.0.0.1", "port": 21000,
        "last_output": vec!["x"; 20] });
    assert_eq!(read::<Status>(&usual).1, Ok(None));
}

fn image(rows: &[(&str, Value)]) -> crate::snapshot::Snapshot {
    use crate::store::Image;
    let mut image = crate::snapshot::Snapshot::default();
    for (revision, (key, value)) in (1..).zip(rows) {
        let value = if value.is_null() { "{".into() } else { value.to_string().into() };
        let entry = crate::store::Entry {
            key: (*key).to_owned(),
            value,
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        };
        image.put(&entry);
    }
    image
}

#[test]
fn an_operators_word_counts_whatever_a_host_says_and_whichever_came_first() {
    let host = || ("hosts/h", host("10.0.0.1", 100, 8 << 30));
    let word = || {
        let word = json!({ "zone": "b", "address": "10.0.0.2", "most_instances": 3, "most_memory_bytes": 9_u64 << 30 });
        ("hostmeta/h", word)
    };
    let taken_back = || ("hostmeta/h", json!({}));
    for (rows, wanted) in [
        (vec![host()], ("a", "10.0.0.1", 100)),
        (vec![host(), word()], ("b", "10.0.0.2", 3)),
        (vec![word(), host()], ("b", "10.0.0.2", 3)),
        (vec![word(), host(), host()], ("b", "10.0.0.2", 3)),
        (vec![host(), word(), taken_back()], ("a", "10.0.0.1", 100)),
        (vec![host(), word(), ("hostmeta/h", Value::Null)], ("b", "10.0.0.2", 3)),
    ] {
        let image = image(&rows);
        let view = &image.hosts[&"h".parse().expect("valid")];
        let host = view.host.as_ref().expect("it is registered");
        let got = (host.zone.as_str(), host.address.to_string(), host.capacity.instances);
        assert_eq!(got, (wanted.0, wanted.1.to_owned(), wanted.2), "{rows:?}");
        assert_eq!(host.capacity.memory_bytes, 8 << 30, "a number only bounds");
        assert_eq!(view.said.is_some(), wanted.0 == "b");
    }
}

#[test]
fn an_image_says_what_is_out_of_bounds_until_the_row_is_within() {
    let formation = |count: u32| ("apps/a/formation/web", json!({ "count": count }));
    let shown = |rows: &[(&str, Value)]| {
        let image = image(rows);
        (image.apps[&"a".parse().expect("valid")].count(&"web".parse().expect("valid")), image.bounded.len())
    };
    assert_eq!(shown(&[formation(20_000)]), (10_000, 1));
    assert_eq!(shown(&[formation(20_000), formation(2)]), (2, 0));
    let large = image(&[("apps/a/procs/web", json!({ "port": 8501, "note": "x".repeat(17 << 10) }))]);
    assert!(large.unreadable["apps/a/procs/web"].starts_with("it has 174"), "{:?}", large.unreadable);
}
