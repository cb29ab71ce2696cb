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
    let ran = rig
        .bazooka(&[&set[..], &["--memory", "256M", "--cpu", "0.5", "--pids", "200"]].concat())
        .await
        .exits(0);
    assert_eq!(ran.stdout, "web: memory 256M, cpu 0.5, pids 200\n");
    assert_eq!(ran.stderr, "memory, cpu and pids hold from the next instance on\n");
    let procs = rig.bazooka(&["-a", "goto-rocket", "procs"]).await.ok().stdout;
    assert!(procs.ends_with("goto-rocket\tweb\t8501\t256M\t0\n"), "{procs}");
    let ran = rig.bazooka(&[&set[..], &["--memory", "none"]].concat()).await.exits(0);
    assert_eq!(ran.stdout, "web: memory no limit, cpu 0.5, pids 200\n");
    rig.bazooka(&set).await.exits(2);
    rig.bazooka(&["-a", "goto-rocket", "procs", "set", "wbe", "--pids", "9"]).await.exits(3);
}

#[tokio::test]
async fn every_setting_is_set_and_listed_and_taken_back() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let set = ["-a", "goto-rocket", "procs", "set", "web"];
    let all = "--memory 256M --cpu 0.5 --pids 200 --disk 1G --tmp 64M --protocol tcp --check http:/healthz \
               --boot-timeout 90s --stop-timeout 45s \
               --min-ready 5s --batch 2 --max-unavailable 1 --on-partition stop";
    let ran = rig.bazooka(&[&set[..], &all.split(' ').collect::<Vec<_>>()].concat()).await.exits(0);
    assert_eq!(
        ran.stdout,
        "web: memory 256M, cpu 0.5, pids 200, disk 1G, tmp 64M, protocol tcp, check http:/healthz, boot-timeout 90s, \
         stop-timeout 45s, min-ready 5s, batch 2, max-unavailable 1, on-partition stop\n"
    );
    assert_eq!(
        ran.stderr,
        "min-ready, batch and max-unavailable hold at once\n\
         memory, cpu, pids, disk, tmp, protocol, check, boot-timeout, stop-timeout and on-partition hold from the next \
         instance on\n"
    );
    let long = rig.bazooka(&["-a", "goto-rocket", "procs", "-l"]).await.ok().stdout;
    assert_eq!(
        long,
        "APP\tPROC\tPORT\tMEMLIMIT\tCPULIMIT\tPIDS\tDISK\tTMP\tPROTOCOL\tCHECK\tBOOT\tSTOP\tMIN-READY\tBATCH\t\
         MAX-UNAVAILABLE\tON-PARTITION\tINSTANCES\n\
         goto-rocket\tweb\t8501\t256M\t0.5\t200\t1G\t64M\ttcp\thttp:/healthz\t90s\t45s\t5s\t2\t1\tstop\t0\n"
    );
    let json = rig.bazooka(&["-a", "goto-rocket", "--json", "procs"]).await.ok().stdout;
    let rows: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(
        rows[0],
        serde_json::json!({
            "app": "goto-rocket", "proc": "web", "spelling": "web", "port": 8501, "instances": 0, "wanted": 0,
            "command": rows[0]["command"], "memory_limit_bytes": 256 << 20, "cpu_limit_millis": 500,
            "processes_limit": 200, "disk_bytes": 1 << 30, "tmp_bytes": 64 << 20, "protocol": "tcp",
            "check": "http:/healthz", "boot_timeout_ms": 90_000, "stop_timeout_ms": 45_000,
            "min_ready_ms": 5_000, "batch": 2, "max_unavailable": 1, "on_partition": "stop",
        })
    );
    let back: Vec<&str> =
        all.split(' ').map(|word| if word.starts_with("--") { word } else { "default" }).collect();
    rig.bazooka(&[&set[..], &back].concat()).await.exits(0);
    let long = rig.bazooka(&["-a", "goto-rocket", "procs", "-l"]).await.ok().stdout;
    let row = "goto-rocket\tweb\t8501\t-\t-\t1024\t512M\t512M\thttp\tlistening\t60s\t30s\t1s\ta quarter\t0\tkeep\t0\n";
    assert!(long.ends_with(row), "{long}");
}

#[tokio::test]
async fn a_bad_value_of_a_setting_gets_one_line_and_a_hint() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    for (option, value, error) in [
        ("--memory", "1M", "error: --memory 1M: no program starts with less than 8M\n"),
        ("--boot-timeout", "2h", "error: --boot-timeout 2h: it goes from 1s to 1h\n"),
        ("--batch", "0", "error: --batch 0: it goes from 1 to 10000\n"),
        (
            "--check",
            "/healthz",
            "error: --check /healthz: it takes started, listening, http:/PATH or default\n",
        ),
    ] {
        let set = ["-a", "goto-rocket", "procs", "set", "web", option, value];
        let stderr = rig.bazooka(&set).await.exits(2).stderr;
        assert!(stderr.starts_with(error), "{stderr}");
        assert!(
            stderr.lines().count() == 2 && stderr.contains(&format!("\nhint: for example {option} ")),
            "{stderr}"
        );
    }
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
        (&["version"], "/schema", serde_json::json!(visor::schema::SCHEMA_VERSION)),
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
