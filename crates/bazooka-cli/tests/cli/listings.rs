//! What is listed, for people and for programs.

use std::process::Stdio;

use visor::{
    keys::Key,
    names::{InstanceId, ReleaseId},
    schema::{Instance, State, Status},
    visor::Change,
};

use crate::{
    player::Player,
    rig::{REV, Rig, app, end, proc, words},
};

#[tokio::test]
async fn procs_and_ps_are_the_originals() {
    let rig = Rig::with_app("goto-rocket", &["fail", "job", "web"]).await;
    let _player = Player::start(&rig.visor).await;
    let procs = rig.bazooka(&["-a", "goto-rocket", "procs"]).await.ok().stdout;
    assert_eq!(
        procs,
        "APP\tPROC\tPORT\tMEMLIMIT\tINSTANCES\n\
         goto-rocket\tfail\t8501\t-\t0\ngoto-rocket\tjob\t8502\t-\t0\ngoto-rocket\tweb\t8503\t-\t0\n"
    );
    rig.bazooka(&["-a", "goto-rocket", "scale", "-n", "1", "web"]).await.ok();
    let ps = rig.bazooka(&["-a", "goto-rocket", "ps"]).await.ok().stdout;
    assert_eq!(ps, "ID\tAPP\tPROC\tREV\tIP\tPORT\n1\tgoto-rocket\tweb\t16f7cbf\t1.2.3.4\t21880\n");
    assert_eq!(rig.bazooka(&["ps", "--all"]).await.ok().stdout, ps);
    let long = rig.bazooka(&["-a", "goto-rocket", "ps", "-l"]).await.ok().stdout;
    let lines = words(&long);
    assert_eq!(lines[0], "ID APP PROC REV IP PORT STATE HOST ZONE UP RESTARTS RELEASE ISOLATION CAUSE");
    assert_eq!(lines[1], "1 goto-rocket web 16f7cbf 1.2.3.4 21880 running host1 default 0s 0 v1 none -");
}

#[tokio::test]
async fn what_instances_may_use_is_set_and_shown_and_taken_back() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let set = ["-a", "goto-rocket", "procs", "set", "web"];
    let ran =
        rig.bazooka(&[&set[..], &["--memory", "256M", "--cpu", "0.5", "--pids", "200"]].concat()).await.ok();
    assert_eq!(ran.stdout, "web: memory 256M, cpu 0.5, pids 200\n");
    let procs = rig.bazooka(&["-a", "goto-rocket", "procs"]).await.ok().stdout;
    assert!(procs.ends_with("goto-rocket\tweb\t8501\t256M\t0\n"), "{procs}");
    let ran = rig.bazooka(&[&set[..], &["--memory", "none"]].concat()).await.ok();
    assert_eq!(ran.stdout, "web: memory no limit, cpu 0.5, pids 200\n");
    let refused = rig.bazooka(&[&set[..], &["--memory", "1M"]].concat()).await.exits(2);
    assert!(refused.stderr.contains("no program starts with less than 8M"), "{refused:?}");
    rig.bazooka(&set).await.exits(2);
    rig.bazooka(&["-a", "goto-rocket", "procs", "set", "wbe", "--pids", "9"]).await.exits(3);
}

#[tokio::test]
async fn each_listing_is_json_when_asked_for() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let _player = Player::start(&rig.visor).await;
    rig.bazooka(&["-a", "goto-rocket", "scale", "-n", "1", "web"]).await.ok();
    for (args, pointer, wanted) in [
        (&["apps"][..], "/0/app", serde_json::json!("goto-rocket")),
        (&["procs"], "/0/port", serde_json::json!(8501)),
        (&["scale"], "/0/count", serde_json::json!(1)),
        (&["ps"], "/0/proc", serde_json::json!("web")),
        (&["ps"], "/0/state", serde_json::json!("running")),
        (&["ps", "--all"], "/0/port", serde_json::json!(21880)),
        (&["revs"], "/0/rev", serde_json::json!(REV)),
        (&["releases"], "/0/status", serde_json::json!("released")),
        (&["config"], "", serde_json::json!({})),
        (&["why", "1"], "/status/state", serde_json::json!("running")),
        (&["why", "web"], "/wanted/v1", serde_json::json!(1)),
        (&["version"], "/schema", serde_json::json!(2)),
    ] {
        let ran = rig.bazooka(&[&["-a", "goto-rocket", "--json"], args].concat()).await.ok();
        let value: serde_json::Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
        assert_eq!(value.pointer(pointer), Some(&wanted), "{args:?}: {}", ran.stdout);
    }
}

#[tokio::test]
async fn a_thousand_instances_are_listed_and_a_reader_may_leave_early() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    for batch in (1..=1000_u64).collect::<Vec<_>>().chunks(60) {
        let mut change = Change::new();
        for id in batch.iter().copied().map(InstanceId) {
            let host: visor::names::HostName = format!("host{}", id.0 % 13).parse().expect("valid");
            let instance = Instance {
                host: host.clone(),
                proc: proc("web"),
                release: ReleaseId(1),
                rev: REV.parse().expect("valid"),
                index: u32::try_from(id.0).expect("it fits"),
                placed_at: jiff::Timestamp::now(),
                reason: String::new(),
                extra: Default::default(),
            };
            change = change.put(&Key::Instance(app("goto-rocket"), id), &instance);
            change = change.put(&Key::Status(host, id), &Status::new(State::Running, jiff::Timestamp::now()));
        }
        rig.visor.commit(change).await.expect("the coordinator answers");
    }
    let ps = rig.bazooka(&["-a", "goto-rocket", "ps"]).await.ok().stdout;
    assert_eq!(ps.lines().count(), 1001);
    let mut command = rig.command(env!("CARGO_BIN_EXE_bazooka"), &["-a", "goto-rocket", "ps"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it can be started");
    drop(child.stdout.take());
    let left = end(child).await;
    assert_eq!(left.stderr, "", "no panic when nobody reads: {left:?}");
}

#[tokio::test]
async fn help_names_each_exit_code() {
    let rig = Rig::new().await;
    for args in [&["--help"][..], &["exit-codes"], &["help", "exit-codes"]] {
        let help = rig.bazooka(args).await.exits(0).stdout;
        for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "130"] {
            assert!(help.lines().any(|line| line.trim_start().starts_with(code)), "{code}: {help}");
        }
    }
    let completions = rig.bazooka(&["completions", "bash"]).await.ok().stdout;
    assert!(completions.contains("rollback"), "{completions}");
}
