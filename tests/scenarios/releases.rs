//! Releases: what a push, a config change and a rollback do to an app that runs.

use bazooka_tests::{Cluster, Repo, SOON, until};

use crate::versioned_app::{pushed, settles_on, version};

#[test]
fn a_push_to_a_running_app_rolls_it_and_a_rollback_goes_back() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 2);
    version(&repo, "two");
    let push = repo.git(&["push", "bazooka", "master"]).ok();
    let lines = push.remote_lines();
    let finished = lines.iter().position(|line| line == "build finished").expect("the build finished");
    assert!(
        lines[finished..].iter().any(|line| line.contains("v2")),
        "the rollout is told after it: {lines:#?}"
    );
    settles_on(&cluster, "two -\n");

    let rollback = repo.bazooka(&["rollback"]).ok();
    assert!(rollback.stdout.contains("v3"), "{rollback:?}");
    settles_on(&cluster, "one -\n");
    let releases = repo.bazooka(&["releases"]).ok().stdout;
    assert!(releases.contains("v3") && releases.contains("rollback to v1"), "{releases}");
}

#[test]
fn a_config_change_is_a_release_and_rolls_the_app() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 2);
    let set = repo.bazooka(&["config", "set", "GREETING=hello world"]).ok();
    assert!(set.stdout.contains("v2") && set.stdout.contains("e1"), "{set:?}");
    settles_on(&cluster, "one hello world\n");
    assert!(repo.bazooka(&["config"]).ok().stdout.contains("GREETING"));
    repo.bazooka(&["config", "unset", "GREETING"]).ok();
    settles_on(&cluster, "one -\n");
    let releases = repo.bazooka(&["releases"]).ok().stdout;
    assert!(!releases.contains("hello world"), "no value of a config var is shown: {releases}");
}

#[test]
fn a_rev_that_cannot_run_is_a_rejected_push_and_the_old_one_serves_on() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 2);
    repo.write("server.py", "raise SystemExit('no such engine')\n");
    let bad = repo.commit("broken");
    let push = repo.git(&["push", "bazooka", "master"]);
    assert_ne!(push.code, 0, "{push:?}");
    assert!(push.stderr.contains("exited with status 1"), "the cause is told: {}", push.stderr);
    assert!(push.stderr.contains("no such engine"), "with the last output: {}", push.stderr);
    settles_on(&cluster, "one -\n");
    let tip = repo.git(&["ls-remote", "bazooka", "refs/heads/master"]).ok().stdout;
    assert!(!tip.contains(&bad), "the branch stays: {tip}");
    let releases = repo.bazooka(&["releases"]).ok().stdout;
    assert!(releases.contains("failed"), "{releases}");
}

#[test]
fn a_restart_replaces_each_instance_before_it_stops_it() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 2);
    let ids = |repo: &Repo| -> Vec<String> {
        let ps = repo.bazooka(&["ps"]).ok().stdout;
        ps.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    let before = ids(&repo);
    repo.bazooka(&["restart", "web"]).ok();
    let after = ids(&repo);
    assert_eq!(after.len(), 2);
    assert!(before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
    repo.bazooka(&["restart", &after[0]]).ok();
    let last = ids(&repo);
    assert!(!last.contains(&after[0]) && last.contains(&after[1]), "{after:?} {last:?}");
}

#[test]
fn a_canary_runs_beside_the_current_release() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 2);
    let new = version(&repo, "two");
    repo.git(&["push", "-o", "no-rollout", "bazooka", "master"]).ok();
    assert_eq!(cluster.answers("pages"), "one -\n");
    let scale = repo.bazooka(&["scale", "-r", &new[..7], "-n", "1", "web"]).ok();
    assert_eq!(scale.stdout.trim_end(), format!("web@{} 0 -> 1 .", &new[..7]));
    let mut seen = std::collections::BTreeSet::new();
    until("both answer", SOON, || {
        seen.insert(cluster.ask("pages")?.body);
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let away = repo.bazooka(&["scale", "-r", &new[..7], "-n", "0", "web"]).ok();
    assert_eq!(away.stdout.trim_end(), format!("web@{} 1 -> 0 .", &new[..7]));
    settles_on(&cluster, "one -\n");
}
