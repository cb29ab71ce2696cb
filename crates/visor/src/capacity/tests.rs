//! Tests of what fits and what would be lost, on small clusters.

use serde_json::json;

use super::*;
use crate::rules::fixture::Cluster;

/// Returns the instances without a place as `app/proc n`.
fn without_place(cluster: &Cluster, part: Part) -> Vec<String> {
    let loss = loss(&cluster.image, part);
    let of_app = |(app, procs): (AppName, BTreeMap<ProcName, u32>)| {
        procs.into_iter().map(move |(proc, n)| format!("{app}/{proc} {n}"))
    };
    loss.without_place.into_iter().flat_map(of_app).collect()
}

fn host(name: &str) -> Part {
    Part::Host(Cluster::host_name(name))
}

fn zone(name: &str) -> Part {
    Part::Zone(name.parse().expect("a valid name"))
}

fn fit(cluster: &Cluster) -> Vec<String> {
    let view = cluster.image.apps.values().next().expect("there is an app");
    let zones = fits(&cluster.image, view, &"web".parse().expect("valid"));
    zones.into_iter().map(|(zone, n)| format!("{zone} {n}")).collect()
}

#[test]
fn slots_and_memory_bound_what_fits_and_a_closed_host_takes_nothing() {
    let mut cluster = Cluster::default();
    cluster.app("a", 0).host("host1", "north", 3, 1000).host("host2", "south", 9, 40);
    cluster.host("host3", "south", 9, 1000);
    assert_eq!(fit(&cluster), ["north 3", "south 11"], "two of 16 MiB on host2");
    cluster.mark("host3", &json!({ "cordoned": true }));
    assert_eq!(fit(&cluster), ["north 3", "south 2"]);
    cluster.put("apps/a/procs/web", &json!({ "port": 1, "run": { "limits": { "memory_limit_bytes": 0 } } }));
    assert_eq!(fit(&cluster), ["north 3", "south 9"], "what takes no memory takes slots still");
}

#[test]
fn nothing_fits_on_a_host_that_cannot_run_the_env() {
    let mut cluster = Cluster::default();
    cluster.app("a", 0).app("b", 0).host("host1", "north", 3, 1000);
    cluster.put(
        "apps/a/envs/e0",
        &json!({ "links": ["b:web"], "by": "ada", "at": "2026-01-01T00:00:00Z", "change": "" }),
    );
    assert_eq!(fit(&cluster), ["north 0"], "the host has no --services address");
    assert_eq!(without_place(cluster.runs("a", 1, "host1", 0), host("host1")), ["a/web 1"]);
}

#[test]
fn what_other_hosts_have_room_for_is_not_lost() {
    let mut cluster = Cluster::default();
    cluster.app("a", 3).app("b", 1).host("host1", "north", 9, 1000).host("host2", "north", 3, 1000);
    cluster.runs("a", 1, "host1", 0).runs("a", 2, "host1", 1).runs("a", 3, "host2", 2);
    assert!(without_place(&cluster, host("host1")).is_empty());
    cluster.runs("b", 4, "host1", 0);
    // The first instance of each service is placed first, so the second of a has no place.
    assert_eq!(without_place(&cluster, host("host1")), ["a/web 1"]);
    assert_eq!(without_place(&cluster, zone("north")), ["a/web 3", "b/web 1"]);
    assert_eq!(loss(&cluster.image, host("host1")).instances, 3);
}

#[test]
fn what_has_ended_or_is_told_to_stop_is_not_lost() {
    let mut cluster = Cluster::default();
    cluster.app("a", 1).host("host1", "north", 9, 1000);
    cluster.runs("a", 1, "host1", 0).reports("host1", 1, "failed");
    let loss = loss(&cluster.image, host("host1"));
    assert_eq!((loss.instances, loss.without_place.len()), (0, 0));
}

#[test]
fn what_is_to_stand_in_the_zone_that_goes_has_no_place_elsewhere() {
    let mut cluster = Cluster::default();
    cluster.app("a", 3).host("host1", "north", 9, 1000).host("host2", "south", 9, 1000);
    cluster.runs("a", 1, "host1", 0).runs("a", 2, "host1", 1).runs("a", 3, "host2", 2);
    assert!(without_place(&cluster, zone("north")).is_empty());
    cluster.put("apps/a/formation/web", &json!({ "count": 3, "zones": { "north": 1 } }));
    assert_eq!(without_place(&cluster, zone("north")), ["a/web 1"], "the other may stand anywhere");
    cluster.host("host3", "north", 1, 1000);
    assert!(without_place(&cluster, host("host1")).is_empty(), "another host of that zone takes it");
}
