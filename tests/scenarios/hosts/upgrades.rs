//! Each daemon replaced by a newer build while requests flow, and builds of two versions side by side.

use std::{collections::BTreeSet, path::Path};

use bazooka_tests::{
    Fleet,
    Machine::{Converger, Host, Proxy, Rm},
    SOON, Setting, etcdctl, program,
    shop::{SHOP, running, shop, version, whole},
    until,
};

use crate::rollouts::whole_of;

const OWN: &[u8] = env!("CARGO_PKG_VERSION").as_bytes();
const NEXT: &[u8] = b"0.1.1";

/// The programs as a build calls itself that is one version newer.
fn next_build(folder: &Path) {
    assert_eq!(OWN.len(), NEXT.len(), "so that nothing else in a program moves");
    for name in ["bazooka-pm", "bazooka-shim", "bazooka-rm", "bazooka-proxy"] {
        let mut bytes = std::fs::read(program(name)).expect("it was built");
        let found: Vec<usize> =
            (0..bytes.len() - OWN.len()).filter(|at| bytes[*at..].starts_with(OWN)).collect();
        assert!(name == "bazooka-shim" || !found.is_empty(), "{name} says its version");
        found.into_iter().for_each(|at| bytes[at..at + OWN.len()].copy_from_slice(NEXT));
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("there is room");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("the mode can be set");
    }
}

/// Adds to a row what this version knows nothing of.
fn add_later_field(key: &str) {
    let row = etcdctl(&Fleet::coordinator(), &["get", "--print-value-only", key]);
    let rest = row.trim().strip_prefix('{').expect("a row is an object").to_owned();
    etcdctl(&Fleet::coordinator(), &["put", key, &format!(r#"{{"later":{{"kept":true}},{rest}"#)]);
}

fn has_later_field(key: &str) -> bool {
    etcdctl(&Fleet::coordinator(), &["get", "--print-value-only", key]).contains(r#""later":{"kept":true}"#)
}

#[test]
fn each_daemon_is_replaced_by_a_newer_build_and_no_instance_or_request_notices() {
    let mut fleet = Fleet::start_so(Setting { lasting: true, ..Setting::default() });
    let repo = shop(&fleet, 6);
    let build = tempfile::tempdir().expect("a folder can be made");
    // Instances have users of their own, and their shims are started from there.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(build.path(), open).expect("the mode can be set");
    next_build(build.path());
    let rows = ["/bazooka/apps/shop", "/bazooka/apps/shop/formation/web", "/bazooka/hostmeta/host3"];
    repo.bazooka(&["hosts", "cordon", "host3"]).ok();
    repo.bazooka(&["hosts", "uncordon", "host3"]).ok();
    rows.iter().for_each(|key| add_later_field(key));

    let before = running(&fleet.snapshot());
    let load = fleet.load(SHOP, 160);
    let elected = fleet.elected();
    let first = [elected, Rm, Host(1), Proxy(1)];
    first.iter().for_each(|machine| fleet.upgrade(*machine, build.path()));
    assert_eq!(whole(&fleet, 6, SOON), before, "the same processes, started when they were");

    // Both versions at work: a push and a scale go through all of them.
    version(&repo, "v2");
    repo.git(&["push", "bazooka", "master"]).ok();
    whole_of(&fleet, 2, 6);
    repo.bazooka(&["scale", "-n", "5", "web"]).ok();
    let between = whole(&fleet, 5, SOON);
    assert_eq!(between.iter().map(|one| one.host.clone()).collect::<BTreeSet<_>>().len(), 3, "{between:?}");
    repo.bazooka(&["hosts", "cordon", "host3"]).ok();

    let other = if elected == Converger(1) { Converger(2) } else { Converger(1) };
    for machine in [other, Host(2), Host(3), Proxy(2)] {
        fleet.upgrade(machine, build.path());
    }
    assert_eq!(whole(&fleet, 5, SOON), between, "the same processes, started when they were");
    load.stop().none_lost();

    let versions = until("all are of the next version", SOON, || {
        let snapshot = fleet.snapshot();
        let hosts = snapshot.hosts.values().filter_map(|view| Some(view.host.as_ref()?.version.clone()));
        let versions: Vec<String> =
            hosts.chain(snapshot.proxies.values().map(|row| row.version.clone())).collect();
        if versions.len() == 5 { Ok(versions) } else { Err(format!("{versions:?}")) }
    });
    assert!(versions.iter().all(|version| version.as_bytes() == NEXT), "{versions:?}");
    let lost: Vec<_> = rows.iter().filter(|key| !has_later_field(key)).collect();
    assert!(lost.is_empty(), "what a later version wrote is gone from {lost:?}");
}
