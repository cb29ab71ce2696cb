//! What people get wrong: a clear word, and nothing lost.

use std::time::Duration;

use bazooka_tests::Cluster;

#[test]
fn names_that_are_not_valid_are_refused_with_the_rule() {
    let cluster = Cluster::start();
    let repo = cluster.repo("names");
    for bad in ["", "_x", "a/b", "a.b", "a\nb", "a;b", "$(id)", "a b", "-x", &"x".repeat(80)] {
        let init = repo.bazooka(&["init", "--", bad]);
        assert_eq!(init.code, 2, "{bad:?}: {init:?}");
        assert!(init.stderr.contains("lower-case letters"), "{bad:?}: {init:?}");
        let scale = repo.bazooka(&["-a", "names", "scale", "-n", "1", "--", bad]);
        assert_eq!(scale.code, 2, "{bad:?}: {scale:?}");
    }
    assert!(cluster.snapshot().apps.is_empty());
}

#[test]
fn an_unknown_app_or_proc_is_told_with_the_nearest_name() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    let ps = repo.bazooka(&["-a", "goto-roket", "ps"]).exits(3);
    assert!(ps.stderr.contains("goto-rocket"), "{ps:?}");
    let scale = repo.bazooka(&["scale", "-n", "1", "wbe"]).exits(3);
    assert!(scale.stderr.contains("web"), "{scale:?}");
}

#[test]
fn a_coordinator_out_of_reach_is_told_within_three_seconds() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    let gone = "http://127.0.0.1:1,http://127.0.0.1:2";
    let ps = repo.bazooka(&["--coordinator", gone, "ps"]).exits(6);
    assert!(ps.took < Duration::from_secs(3), "{ps:?}");
    assert!(ps.stderr.contains("127.0.0.1:1") && ps.stderr.contains("127.0.0.1:2"), "{ps:?}");
}

#[test]
fn a_faulty_procfile_rejects_the_push_with_its_line_and_the_last_good_rev_runs_on() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let before = cluster.snapshot();
    for (procfile, wanted) in [
        ("web python3 rocket.py\n", "line 1"),
        ("web: python3 rocket.py\nweb: python3 other.py\n", "line 2"),
        ("web: python3 rocket.py\n2web: x\n", "line 2"),
        ("web:\n", "line 1"),
        ("# nothing\n", "no proc"),
    ] {
        repo.write("Procfile", procfile);
        repo.commit("faulty");
        let push = repo.git(&["push", "bazooka", "master"]);
        assert_ne!(push.code, 0, "{procfile:?}: {push:?}");
        assert!(push.stderr.contains(wanted), "{procfile:?}: {}", push.stderr);
    }
    std::fs::remove_file(repo.dir().join("Procfile")).expect("it is there");
    repo.commit("none");
    let push = repo.git(&["push", "bazooka", "master"]);
    assert!(push.code != 0 && push.stderr.contains("Procfile"), "{push:?}");
    let branch = repo.git(&["push", "bazooka", "HEAD:refs/heads/feature"]);
    assert!(branch.code != 0 && branch.stderr.contains("master or main"), "{branch:?}");

    let after = cluster.snapshot();
    let (before, after) = (before.apps.values().next(), after.apps.values().next());
    assert_eq!(before.map(|app| &app.revs), after.map(|app| &app.revs));
    assert_eq!(before.map(|app| &app.releases), after.map(|app| &app.releases));
    assert_eq!(cluster.answers("goto-rocket").lines().next(), Some("go to rocket"));
}

#[test]
fn a_push_to_an_app_that_was_destroyed_is_refused() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let wrong = repo.bazooka(&["destroy", "--confirm", "goto"]);
    assert_ne!(wrong.code, 0, "{wrong:?}");
    let url = repo.git(&["remote", "get-url", "bazooka"]).ok().stdout;
    repo.bazooka(&["destroy", "--confirm", "goto-rocket"]).ok();
    repo.commit("again");
    let push = repo.git(&["push", url.trim(), "master"]);
    assert!(push.code != 0 && push.stderr.contains("goto-rocket"), "{push:?}");
    assert!(!cluster.snapshot().apps.values().any(|app| !app.instances.is_empty()));
}

#[test]
fn a_schema_newer_than_the_binary_is_read_and_not_written() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    let (visor, runtime) = cluster.visor();
    let newer = visor::schema::Schema { version: 99, min_reader: 1, min_writer: 99, ..Default::default() };
    let change = visor::visor::Change::new().put(&visor::keys::Key::Schema, &newer);
    runtime.block_on(visor.commit(change)).expect("it is written");
    let scale = repo.bazooka(&["scale", "-n", "1", "web"]);
    assert!(scale.code != 0 && scale.stderr.contains("schema"), "{scale:?}");
    repo.bazooka(&["procs"]).ok();
    assert!(cluster.snapshot().apps.values().all(|app| app.formation.is_empty()));
}
