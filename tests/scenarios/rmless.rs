//! bazooka-rm's machine gone for good, with its disk: services start on hosts that never had their slug, scale and roll
//! back.

use std::collections::BTreeSet;

use bazooka_daemon::http_client;
use bazooka_tests::{Cluster, ClusterOptions, Endpoint, OPERATOR, SOON, until};
use visor::{
    names::HostName,
    schema::{Desired, State},
    snapshot::Snapshot,
};

use crate::versioned_app::{settles_on, version};

/// The hosts on which an instance of the app is wanted and runs.
fn serving(snapshot: &Snapshot) -> BTreeSet<HostName> {
    let runs = |view: &visor::snapshot::HostView| {
        view.assigned.iter().any(|(id, assigned)| {
            let state = view.status.get(id).map(|status| status.state);
            assigned.desired == Desired::Run && state == Some(State::Running)
        })
    };
    let hosts = snapshot.hosts.iter().filter(|(_, view)| view.host.is_some() && runs(view));
    hosts.map(|(name, _)| name.clone()).collect()
}

fn until_served_by(cluster: &Cluster, count: usize) -> BTreeSet<HostName> {
    until(&format!("{count} hosts serve"), SOON, || {
        let serving = serving(&cluster.snapshot());
        if serving.len() == count { Ok(serving) } else { Err(format!("{serving:?}")) }
    })
}

/// The slugs that a host has fetched from other hosts.
fn from_hosts(cluster: &Cluster, host: u16) -> u32 {
    let (_, runtime) = cluster.visor();
    let client = http_client(Some(&cluster.credentials(OPERATOR))).build().expect("it can be made");
    let url = format!("https://{}/metrics", cluster.at(Endpoint::Host(host)));
    let text = runtime.block_on(async { client.get(url).send().await?.text().await }).expect("it answers");
    let line = "bazooka_pm_slug_sources_total{from=\"host\"} ";
    text.lines().find_map(|found| found.strip_prefix(line)?.parse().ok()).unwrap_or(0)
}

#[test]
fn with_rms_machine_gone_for_good_services_heal_on_any_host_scale_and_roll_back() {
    let mut cluster =
        Cluster::with(ClusterOptions { identities: true, hosts: 3, ..ClusterOptions::default() });
    let repo = cluster.repo_of("pages", OPERATOR);
    // A host on which nothing of the app has ever been.
    repo.bazooka(&["hosts", "cordon", "host3"]).ok();
    version(&repo, "one");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    repo.bazooka(&["config", "set", "GREETING=hello"]).ok();
    version(&repo, "two");
    repo.git(&["push", "bazooka", "master"]).ok();
    settles_on(&cluster, "two hello\n");
    until_served_by(&cluster, 2);

    cluster.part("rm").kill();
    std::fs::remove_dir_all(cluster.folder("rm")).expect("it was there");
    repo.bazooka(&["hosts", "uncordon", "host3"]).ok();

    cluster.host(1).stop();
    let heals: Vec<String> = until_served_by(&cluster, 2).iter().map(ToString::to_string).collect();
    assert_eq!(heals, ["host2", "host3"]);
    assert_eq!(from_hosts(&cluster, 3), 1);
    settles_on(&cluster, "two hello\n");

    cluster.start_host(1);
    cluster.ready(Endpoint::Host(1));
    repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    until_served_by(&cluster, 3);

    // The third host never had the slug of the release before either.
    repo.bazooka(&["rollback"]).ok();
    settles_on(&cluster, "one hello\n");
    until_served_by(&cluster, 3);
    assert_eq!(from_hosts(&cluster, 3), 2);
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    settles_on(&cluster, "one hello\n");
    until("nobody serves slugs any more", SOON, || {
        let snapshot = cluster.snapshot();
        let rows: Vec<_> = snapshot.apps.values().flat_map(|view| view.serving.keys()).cloned().collect();
        if rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    repo.bazooka(&["check"]).ok();
}
