//! The coordinator's data destroyed under a running cluster, and restored from a backup of before.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bazooka_tests::{
    Cluster, ClusterOptions, Endpoint, Kind, Load, LoadOptions, OPERATOR, Ran, SOON, program,
    shop::{self, alive},
    until,
};
use visor::{
    names::InstanceId,
    schema::{Desired, SCHEMA_VERSION, State},
    snapshot::Snapshot,
    testing::Etcd,
};

/// A script of `deploy`, in a developer's environment.
fn deploy(script: &str, envs: &BTreeMap<String, String>, args: &[&str]) -> Ran {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(script);
    let programs = program("bazooka").parent().expect("it is in a folder").display().to_string();
    let mut command = Command::new(path);
    command
        .args(args)
        .envs(envs)
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").expect("there is one")));
    Ran::of(command)
}

/// What runs of an app and is meant to: each instance with its process.
fn running(snapshot: &Snapshot, app: &str) -> BTreeMap<InstanceId, u32> {
    let rows = snapshot.hosts.values().flat_map(|view| {
        view.assigned
            .iter()
            .filter(|(_, row)| row.app.as_str() == app && row.desired == Desired::Run)
            .filter_map(|(id, _)| Some((*id, view.status.get(id)?)))
    });
    rows.filter(|(_, status)| status.state == State::Running)
        .map(|(id, status)| (id, status.pid.expect("what runs has a process")))
        .collect()
}

#[test]
fn a_cluster_whose_coordinator_was_destroyed_and_restored_goes_on_as_it_ran() {
    drill(false);
}

#[test]
fn so_does_one_that_tells_its_parts_and_people_apart() {
    drill(true);
}

/// The coordinator of a cluster with identities is the cluster's, else the test's.
fn coordinator<'a>(cluster: &'a mut Cluster, own: &'a mut Option<Etcd>) -> &'a mut Etcd {
    own.as_mut().unwrap_or_else(|| cluster.own_etcd())
}

fn drill(identities: bool) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let mut own = (!identities).then(|| runtime.block_on(Etcd::start()));
    let mut cluster = Cluster::with(ClusterOptions {
        hosts: 2,
        identities,
        coordinator: own.as_ref().map(|etcd| etcd.endpoint().to_owned()),
        ..ClusterOptions::default()
    });
    let repo_as =
        |name: &str, who: &str| if identities { cluster.repo_of(name, who) } else { cluster.repo(name) };
    let (repo, late) = (repo_as("shop", OPERATOR), repo_as("late", OPERATOR));
    let recovering = repo_as("recovering", "rm:rm1");
    shop::version(&repo, "v1");
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    repo.bazooka(&["config", "set", "WHEN=before"]).ok();

    let mut envs = cluster.client_envs();
    let id = |who: &str| cluster.folder("id").join(who).display().to_string();
    if identities {
        envs.insert("BAZOOKA_IDENTITY".into(), id("rm:rm1"));
    }
    let etcd_identity = id("etcd:e1");
    let backup = cluster.folder("backup").display().to_string();
    let rm_state = cluster.folder("rm").display().to_string();
    let backed_up = deploy("backup", &envs, &[&backup, "--rm-state", &rm_state]).ok();
    eprintln!("{}", backed_up.stdout);
    let known = running(&cluster.snapshot(), "shop");

    // What the backup knows nothing of: another rev, other vars, other instances, more of them, another app.
    shop::version(&repo, "v2");
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["config", "set", "WHEN=after"]).ok();
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    shop::version(&late, "late");
    late.bazooka(&["init"]).ok();
    late.git(&["push", "bazooka", "master"]).ok();
    late.bazooka(&["scale", "-n", "1", "web"]).ok();
    let (before, unknown) = until("what was replaced has gone", SOON, || {
        let snapshot = cluster.snapshot();
        let rows: usize = snapshot.apps.values().map(|view| view.instances.len()).sum();
        let (own, other) = (running(&snapshot, "shop"), running(&snapshot, "late"));
        if rows == 5 && own.len() == 4 && other.len() == 1 {
            Ok((own, other))
        } else {
            Err(shop::told(&snapshot))
        }
    });
    assert!(before.keys().all(|id| !known.contains_key(id)), "the backup knows none of them");
    let load = Load::start(LoadOptions {
        addresses: vec![cluster.socket(Endpoint::Public)],
        hosts: vec![cluster.name_of("shop")],
        rate: 100,
        connections: 4,
        kinds: Kind::ALL.to_vec(),
        deadline: Duration::from_secs(10),
    });
    load.answers("v2");

    coordinator(&mut cluster, &mut own).lose();
    // Until each lease has long run out, by everyone's own clock.
    let lost_at = load.seconds();
    until("leases run out", SOON, || {
        let gone_for = load.seconds() - lost_at;
        if gone_for > 13.0 { Ok(()) } else { Err(format!("{gone_for} s")) }
    });
    let data = coordinator(&mut cluster, &mut own).data_dir().display().to_string();
    let peer = match identities {
        true => format!("https://{}", cluster.at(Endpoint::EtcdPeer)),
        false => "http://127.0.0.2:0".to_owned(),
    };
    let mut args = vec![&*backup, "--data-dir", &data, "--peer-url", &peer];
    args.extend(if identities { vec!["--etcd-identity", &etcd_identity] } else { Vec::new() });
    let restored = deploy("restore", &envs, &args).ok();
    eprintln!("restored in {:?}:\n{}", restored.took, restored.stdout);
    for said in [
        "shop: config vars e2 are newer than the backup",
        "shop: web was scaled from 2 to 4 after the backup",
        "it is head now",
        "of app 'late' runs, and the backup doesn't know the app",
    ] {
        assert!(restored.stdout.contains(said), "{said:?} in {}", restored.stdout);
    }
    runtime.block_on(coordinator(&mut cluster, &mut own).restart());

    let back_at = load.seconds();
    let after = until("all are back", SOON, || {
        let snapshot = cluster.snapshot();
        let leases: BTreeSet<_> =
            snapshot.hosts.values().filter_map(|view| view.host.as_ref()?.lease).collect();
        let proxies = snapshot.proxies.values().filter(|proxy| proxy.applied > 0).count();
        // Each under a lease of its own again.
        if leases.len() == 2 && proxies == 1 && snapshot.leader.is_some() && snapshot.rms.len() == 1 {
            Ok(running(&snapshot, "shop"))
        } else {
            Err(format!("{leases:?} {proxies} {:?}; {}", snapshot.leader, shop::told(&snapshot)))
        }
    });
    eprintln!("all were back {:.1} s after etcd was", load.seconds() - back_at);
    assert_eq!(after, before, "the same instances, in the same processes");
    assert_eq!(cluster.snapshot().days.len(), 1, "whoever led first has counted the day");
    // Nor do they notice a bazooka-pm that begins anew with what its folder says.
    cluster.host(1).kill();
    cluster.start_host(1);
    cluster.ready(Endpoint::Host(1));
    assert_eq!(running(&cluster.snapshot(), "shop"), before);
    assert!(before.values().chain(unknown.values()).all(|pid| alive(*pid)), "nothing was ended");
    repo.bazooka(&["check"]).exits(0);
    assert_eq!(repo.bazooka(&["config", "get", "WHEN"]).ok().stdout, "after\n");

    // It is a cluster like any other.
    shop::version(&repo, "v3");
    repo.git(&["push", "bazooka", "master"]).ok();
    load.answers("v3");
    let pushed = running(&cluster.snapshot(), "shop");
    assert_eq!(pushed.len(), 4);
    let last = before.keys().chain(unknown.keys()).max().expect("there are some");
    assert!(pushed.keys().all(|id| id.0 > last.0 + 1_000), "no id is given twice: {pushed:?}");
    repo.bazooka(&["config", "set", "WHEN=then"]).ok();
    let report = load.stop().none_lost();
    eprintln!("requests sent: {}, lost: {}", report.sent(), report.lost());

    // What nobody knows runs on, until somebody says otherwise.
    assert!(unknown.values().all(|pid| alive(*pid)));
    let told = recovering.bazooka(&["recover", "--late", "--dry-run"]).ok().stdout;
    assert!(told.contains("of app 'late' runs"), "{told}");
    recovering.bazooka(&["recover", "--late", "--end-unknown"]).exits(0);
    until("it has ended", SOON, || {
        if unknown.values().any(|pid| alive(*pid)) { Err("it runs".into()) } else { Ok(()) }
    });
    until("nothing is left of it", SOON, || {
        let checked = repo.bazooka(&["check", "--repair"]);
        if checked.code == 0 { Ok(()) } else { Err(format!("{checked:?}")) }
    });
    assert!(cluster.part("converger").is_running());
}

/// A backup of a cluster without any daemon.
fn small_backup() -> (tempfile::TempDir, BTreeMap<String, String>, PathBuf) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let backup = folder.path().join("backup");
    let envs = runtime.block_on(async {
        let etcd = Etcd::start().await;
        let visor = visor::visor::Visor::new(visor::testing::observer(etcd.endpoint(), "/small"));
        visor.set_up().await.expect("the coordinator answers");
        let envs = BTreeMap::from([
            ("BAZOOKA_COORDINATOR".to_owned(), etcd.endpoint().to_owned()),
            ("BAZOOKA_PREFIX".to_owned(), "/small".to_owned()),
        ]);
        deploy("backup", &envs, &[&backup.display().to_string()]).ok();
        let elsewhere = BTreeMap::from([
            ("BAZOOKA_COORDINATOR".to_owned(), etcd.endpoint().to_owned()),
            ("BAZOOKA_PREFIX".to_owned(), "/other".to_owned()),
        ]);
        let no = deploy("backup", &elsewhere, &[&folder.path().join("none").display().to_string()]).exits(1);
        assert!(no.stderr.contains("there is no cluster below /other"), "{no:?}");
        assert!(!folder.path().join("none").exists());
        envs
    });
    (folder, envs, backup)
}

#[test]
fn a_backup_that_is_broken_newer_or_of_another_cluster_is_refused_with_what_to_do() {
    let (folder, envs, backup) = small_backup();
    let manifest = std::fs::read_to_string(backup.join("manifest.json")).expect("it is there");
    let good = || {
        std::fs::write(backup.join("manifest.json"), &manifest).expect("there is room");
    };
    let data = folder.path().join("data");
    let restore = |more: &[&str], envs: &BTreeMap<String, String>| {
        let (backup, data) = (backup.display().to_string(), data.display().to_string());
        let mut args = vec![&*backup, "--data-dir", &data];
        args.extend(more);
        deploy("restore", envs, &args)
    };
    let refused = |ran: Ran, what: &str| {
        let ran = ran.exits(1);
        assert!(ran.stderr.contains(what) && ran.stderr.contains("hint: "), "{what:?} in {ran:?}");
        assert!(!data.join("member").exists());
    };
    let edit = |from: &str, to: &str| {
        assert!(manifest.contains(from), "{manifest}");
        std::fs::write(backup.join("manifest.json"), manifest.replace(from, to)).expect("there is room");
    };
    edit(&format!("\"schema\": {SCHEMA_VERSION}"), "\"schema\": 99");
    refused(restore(&[], &envs), "the backup is of schema 99");
    edit("\"format\": 1", "\"format\": 2");
    refused(restore(&[], &envs), "the backup is of format 2");
    edit("\n}\n", "");
    refused(restore(&[], &envs), "is broken");
    good();
    refused(restore(&["--cluster", "another"], &envs), "not another");
    let mut other = envs.clone();
    other.insert("BAZOOKA_PREFIX".into(), "/other".into());
    refused(restore(&[], &other), "not /other");
    refused(restore(&["--rm-state", "/nowhere/rm"], &envs), "the backup has nothing of bazooka-rm");
    std::fs::create_dir(&data).expect("there is room");
    std::fs::write(data.join("left"), "all that is left").expect("there is room");
    refused(restore(&[], &envs), "isn't empty");
    assert!(data.join("left").exists());
    std::fs::remove_dir_all(&data).expect("it is there");

    let snapshot = std::fs::read(backup.join("etcd.db")).expect("it is there");
    std::fs::write(backup.join("etcd.db"), &snapshot[..snapshot.len() / 2]).expect("there is room");
    refused(restore(&[], &envs), "etcd.db isn't what was backed up");
    std::fs::remove_file(backup.join("etcd.db")).expect("it is there");
    refused(restore(&[], &envs), "etcd.db is missing");
    std::fs::write(backup.join("etcd.db"), &snapshot).expect("there is room");
    let restored = restore(&["--peer-url", "http://127.0.0.2:0"], &envs).ok();
    assert!(restored.stdout.contains("nothing that runs is newer than the backup"), "{restored:?}");
    assert!(data.join("member").exists());
}
