//! What people get wrong.

use std::time::Duration;

use visor::{keys::Key, schema::Schema};

use crate::rig::{Rig, app};

#[tokio::test]
async fn names_that_are_not_valid_are_exit_2_with_the_rule_and_reach_no_terminal() {
    let rig = Rig::new().await;
    for bad in ["", "_a", "a/b", "a.b", "a\nb", "a;b", "$(id)", "a b", "a\u{1b}[31mb", &"x".repeat(80)] {
        for args in [
            &["init", "--", bad][..],
            &["-a", "names", "scale", "-n", "1", "--", bad],
            &["-a", "names", "why", "--", bad],
            &["-a", bad, "ps"],
            &["-a", "names", "logs", "-p", bad],
        ] {
            let ran = rig.bazooka(args).await.exits(2);
            let rules = ["1 to 40 lower-case letters", "1 to 30 letters, digits"];
            assert!(rules.iter().any(|rule| ran.stderr.contains(rule)), "{args:?}: {ran:?}");
            assert!(!ran.stderr.contains('\u{1b}'), "{args:?}: {ran:?}");
        }
    }
    for args in [&["frobnicate"][..], &["ps", "--frob"], &["scale", "-n", "1"], &[], &["rollback", "3"]] {
        rig.bazooka(&[&["-a", "names"], args].concat()).await.exits(2);
    }
}

#[tokio::test]
async fn an_unknown_name_is_exit_3_with_the_nearest_one() {
    let rig = Rig::with_app("goto-rocket", &["web", "job"]).await;
    for (args, nearest) in [
        (&["-a", "goto-roket", "ps"][..], "goto-rocket"),
        (&["-a", "goto-roket", "scale", "-n", "1", "web"], "goto-rocket"),
        (&["-a", "goto-rocket", "scale", "-n", "1", "wbe"], "'web'"),
        (&["-a", "goto-rocket", "restart", "jobb"], "'job'"),
        (&["-a", "goto-rocket", "why", "wbe"], "'web'"),
        (&["-a", "goto-rocket", "logs", "-p", "wbe"], "'web'"),
        (&["-a", "goto-rocket", "rollback", "v2"], "'v1'"),
        (&["-a", "goto-rocket", "scale", "-r", "16f8cbf", "-n", "1", "web"], "'16f7cbf'"),
        (&["-a", "goto-rocket", "why", "99"], "bazooka ps"),
        (&["-a", "goto-rocket", "restart", "99"], "bazooka ps"),
        (&["-a", "nothing-like-it", "ps"], "bazooka apps"),
    ] {
        let ran = rig.bazooka(args).await.exits(3);
        assert!(ran.stderr.contains(nearest), "{args:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "{args:?}");
    }
}

#[tokio::test]
async fn what_would_be_passed_over_in_silence_is_refused() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    for args in [
        &["scale", "-n", "1", "web", "--json"][..],
        &["restart", "--json"],
        &["rollback", "--json"],
        &["config", "set", "A=1", "--json"],
        &["init", "--json"],
        &["destroy", "--confirm", "goto-rocket", "--json"],
    ] {
        let ran = rig.bazooka(&[&["-a", "goto-rocket"], args].concat()).await.exits(2);
        assert!(ran.stderr.contains("prints no JSON"), "{args:?}: {ran:?}");
    }
    let snapshot = rig.visor.read(visor::keys::everything()).await.expect("the coordinator answers");
    let view = &snapshot.apps[&app("goto-rocket")];
    assert!(view.formation.is_empty() && view.envs.is_empty(), "nothing was changed");
    let ran = rig.bazooka(&["dev", "--coordinator", "http://127.0.0.1:1"]).await.exits(2);
    assert!(ran.stderr.contains("--coordinator-port"), "{ran:?}");
    for args in [&["scale", "-n", "-1", "web"][..], &["logs", "-n", "-1"]] {
        let ran = rig.bazooka(&[&["-a", "goto-rocket"], args].concat()).await.exits(2);
        assert!(ran.stderr.contains("-1 is not in 0..="), "{args:?}: {ran:?}");
    }
    rig.bazooka(&["-a", "goto-rocket", "logs", "-n", "10001"]).await.exits(2);
}

#[tokio::test]
async fn without_a_coordinator_it_is_exit_6_within_three_seconds() {
    let rig = Rig::new().await;
    let gone = "http://127.0.0.1:1,http://127.0.0.1:2";
    for args in
        [&["ps"][..], &["scale", "-n", "1", "web"], &["events"], &["config", "set", "A=secret"], &["apps"]]
    {
        let ran = rig.bazooka(&[&["--coordinator", gone, "-a", "x"], args].concat()).await.exits(6);
        assert!(ran.took < Duration::from_secs(3), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains("127.0.0.1:1") && ran.stderr.contains("127.0.0.1:2"), "{ran:?}");
        assert!(!ran.stderr.contains("secret"), "{ran:?}");
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent = format!("http://{}", silent.local_addr().expect("it has an address"));
    let ran = rig.bazooka(&["--coordinator", &silent, "-a", "x", "ps"]).await.exits(6);
    assert!(ran.took < Duration::from_secs(3), "one that takes the connection and says nothing: {ran:?}");
    rig.bazooka(&["--coordinator", "127.0.0.1", "-a", "x", "ps"]).await.exits(2);
}

#[tokio::test]
async fn a_later_schema_is_read_but_not_written() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let later = Schema { version: 9, min_reader: 1, min_writer: 9, ..Schema::default() };
    rig.write(&Key::Schema, &later).await;
    rig.bazooka(&["-a", "goto-rocket", "procs"]).await.ok();
    let ran = rig.bazooka(&["-a", "goto-rocket", "scale", "-n", "1", "web"]).await.exits(4);
    assert!(ran.stderr.contains("version 9"), "{ran:?}");
    let snapshot = rig.visor.read(visor::keys::everything()).await.expect("the coordinator answers");
    assert!(snapshot.apps[&app("goto-rocket")].formation.is_empty());
}

#[tokio::test]
async fn a_schema_that_takes_a_later_build_to_read_isnt_read() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.write(&Key::Schema, &Schema { version: 9, min_reader: 9, ..Schema::default() }).await;
    for command in [&["procs"][..], &["scale", "-n", "1", "web"], &["ps"], &["migrate"]] {
        let ran = rig.bazooka(&[&["-a", "goto-rocket"], command].concat()).await.exits(4);
        assert!(ran.stderr.contains("reading it requires version 9"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_value_of_a_config_var_is_in_no_error() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    for bad in ["PORT=secret", "BAZOOKA_APP=secret", "1A=secret", "=secret", "secret", "A B=secret"] {
        let ran = rig.bazooka(&["-a", "goto-rocket", "config", "set", bad]).await.exits(2);
        assert!(!ran.stderr.contains("secret"), "{bad}: {ran:?}");
    }
    let long = format!("A={}", "s".repeat(110 * 1024));
    let ran = rig.bazooka(&["-a", "goto-rocket", "config", "set", &long]).await.exits(2);
    assert!(ran.stderr.len() < 500, "{}", ran.stderr.len());
}

#[tokio::test]
async fn without_an_app_it_is_told_how_to_name_one() {
    let rig = Rig::new().await;
    let ran = rig.bazooka(&["ps"]).await.exits(2);
    assert!(ran.stderr.contains("-a APP") && ran.stderr.contains("bazooka init"), "{ran:?}");
}

#[tokio::test]
async fn a_config_file_says_where_the_coordinator_is_unless_something_nearer_does() {
    let rig = Rig::new().await;
    let dir = rig.home().join(".config/bazooka");
    std::fs::create_dir_all(&dir).expect("the folder can be made");
    std::fs::write(dir.join("config.toml"), "coordinator = 'http://127.0.0.1:3'").expect("written");
    rig.bazooka(&["apps"]).await.ok();
    let mut without = rig.command(env!("CARGO_BIN_EXE_bazooka"), &["apps"]);
    let child = without.env_remove("BAZOOKA_COORDINATOR").spawn().expect("it can be started");
    let ran = crate::rig::end(child).await.exits(6);
    assert!(ran.stderr.contains("127.0.0.1:3"), "{ran:?}");
    std::fs::write(dir.join("config.toml"), "coordinator = ").expect("written");
    let child = without.spawn().expect("it can be started");
    let ran = crate::rig::end(child).await.exits(2);
    assert!(ran.stderr.contains("config.toml"), "{ran:?}");
}
