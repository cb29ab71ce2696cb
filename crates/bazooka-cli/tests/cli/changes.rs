//! Changes: what they say, and when they return.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use visor::{
    keys::{self, Key},
    names::ReleaseId,
    schema::{Extra, Pending, Promoter, Proxy},
    testing::{new_env, until},
    transitions::releases::NewRelease,
};

use crate::{
    player::{Player, Word},
    rig::{Rig, app, end, hears, proc},
};

const OTHER: &str = "beef000000000000000000000000000000000000";
const APP: &[&str] = &["-a", "goto-rocket"];

fn args<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [APP, words].concat()
}

#[tokio::test]
async fn scale_tells_each_instance_by_a_dot_and_says_when_there_is_nothing_to_do() {
    let rig = Rig::with_app("goto-rocket", &["web", "job"]).await;
    let _player = Player::start(&rig.visor).await;
    for (words, said) in [
        (&["scale", "-n", "1", "web"][..], "web@16f7cbf 0 -> 1 .\n"),
        (&["scale", "-n", "1", "web"], "web@16f7cbf is at 1 already\n"),
        (&["scale", "-n", "3", "web"], "web@16f7cbf 1 -> 3 ..\n"),
        (&["scale", "web=1", "job=2"], "web@16f7cbf 3 -> 1 ..\njob@16f7cbf 0 -> 2 ..\n"),
        (&["scale", "-n", "0", "web", "job"], "web@16f7cbf 1 -> 0 .\njob@16f7cbf 2 -> 0 ..\n"),
    ] {
        assert_eq!(rig.bazooka(&args(words)).await.ok().stdout, said);
    }
}

#[tokio::test]
async fn a_rev_runs_beside_the_current_one() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.add_rev("goto-rocket", OTHER, &["web"]).await;
    let _player = Player::start(&rig.visor).await;
    rig.bazooka(&args(&["scale", "-n", "2", "web"])).await.ok();
    let scale = |n: &'static str| args(&["scale", "-r", "beef", "-n", n, "web"]);
    assert_eq!(rig.bazooka(&scale("1")).await.ok().stdout, "web@beef000 0 -> 1 .\n");
    assert_eq!(rig.bazooka(&scale("1")).await.ok().stdout, "web@beef000 is at 1 already\n");
    assert_eq!(rig.bazooka(&scale("0")).await.ok().stdout, "web@beef000 1 -> 0 .\n");
}

#[tokio::test]
async fn a_proc_that_fails_is_exit_1_with_the_cause_and_the_others_are_still_told() {
    let rig = Rig::with_app("goto-rocket", &["web", "fail"]).await;
    let script = |proc: &_, _| match proc == &crate::rig::proc("fail") {
        true => Word::Crash("exited with status 1, 4 times"),
        false => Word::Run,
    };
    let _player = Player::with(&rig.visor, script).await;
    let ran = rig.bazooka(&args(&["scale", "fail=1", "web=1"])).await.exits(1);
    assert_eq!(ran.stdout, "fail@16f7cbf 0 -> 1\nweb@16f7cbf 0 -> 1 .\n");
    assert!(ran.stderr.contains("exited with status 1"), "{ran:?}");
    assert!(ran.stderr.contains("the engine is not there"), "its output, made harmless: {ran:?}");
    let again = rig.bazooka(&args(&["scale", "-n", "1", "fail"])).await.exits(1);
    assert_eq!(again.stdout, "fail@16f7cbf is at 1 already\n");

    let ps = rig.bazooka(&args(&["ps"])).await.exits(0);
    assert!(ps.stdout.contains("backoff"), "{ps:?}");
    assert!(ps.stderr.contains("fail fails: exited with status 1"), "{ps:?}");
}

#[tokio::test]
async fn what_scale_said_holds_at_once_at_each_proxy() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let _player = Player::start(&rig.visor).await;
    let key = Key::Proxy("proxy1".parse().expect("valid"));
    let mut proxy = Proxy {
        token: None,
        schema: None,
        url: "http://127.0.0.1:9".into(),
        public: "0.0.0.0:8080".into(),
        domain: "localhost".into(),
        zone: None,
        version: "0".into(),
        applied: 1,
        busy: Default::default(),
        refused: Default::default(),
        extra: Extra::new(),
    };
    rig.write(&key, &proxy).await;
    let mut scale = rig.start(&args(&["scale", "-n", "1", "web"]));
    let revision = until("it runs", Duration::from_secs(10), || async {
        let all = rig.visor.read(keys::everything()).await.map_err(|error| error.to_string())?;
        let statuses = all.hosts.values().flat_map(|host| host.status.values());
        statuses.map(|status| status.mod_revision).max().ok_or_else(|| "no status".into())
    })
    .await;
    // It must not return before the proxy has it.
    let early = tokio::time::timeout(Duration::from_millis(300), scale.wait()).await;
    assert!(early.is_err(), "it returned before the proxy had applied it: {early:?}");
    proxy.applied = revision;
    rig.write(&key, &proxy).await;
    assert_eq!(end(scale).await.ok().stdout, "web@16f7cbf 0 -> 1 .\n");
}

#[tokio::test]
async fn a_proxy_that_cannot_serve_what_runs_is_warned_of_in_its_own_words() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.rm().await;
    let _player = Player::start(&rig.visor).await;
    let proxy = Proxy {
        token: None,
        schema: None,
        url: "http://127.0.0.1:9".into(),
        public: "0.0.0.0:8080".into(),
        domain: "localhost".into(),
        zone: None,
        version: "0".into(),
        applied: i64::MAX,
        busy: Default::default(),
        refused: [("goto-rocket/web".to_owned(), "port 8511 is taken".to_owned())].into(),
        extra: Extra::new(),
    };
    rig.write(&Key::Proxy("proxy1".parse().expect("valid")), &proxy).await;
    let warned = "warning: proxy proxy1 can't serve goto-rocket/web: port 8511 is taken\n";
    for words in [
        &["scale", "-n", "1", "web"][..],
        &["scale", "-n", "1", "web"],
        &["restart"],
        &["config", "set", "A=1"],
    ] {
        assert_eq!(rig.bazooka(&args(words)).await.exits(0).stderr, warned, "{words:?}");
    }
    assert_eq!(rig.bazooka(&args(&["ps"])).await.exits(0).stderr, warned);
    let why = rig.bazooka(&args(&["why", "web"])).await.ok().stdout;
    assert!(why.contains("can't serve goto-rocket/web: port 8511 is taken"), "{why}");
    // What isn't to run is missed by nobody.
    rig.bazooka(&args(&["scale", "-n", "0", "web"])).await.ok();
}

#[tokio::test]
async fn a_proc_that_fails_after_its_release_hides_nothing_of_the_others() {
    let rig = Rig::with_app("goto-rocket", &["fail", "web"]).await;
    rig.rm().await;
    let tried = std::sync::atomic::AtomicBool::new(false);
    let script = move |proc: &_, release| {
        // The trial goes well, and what comes after it doesn't.
        let later = || tried.swap(true, std::sync::atomic::Ordering::Relaxed);
        match proc == &crate::rig::proc("fail") && release == ReleaseId(2) && later() {
            true => Word::Crash("exited with status 1, 4 times"),
            false => Word::Run,
        }
    };
    let _player = Player::with(&rig.visor, script).await;
    rig.bazooka(&args(&["scale", "fail=2", "web=2"])).await.ok();
    let ran = rig.bazooka(&args(&["config", "set", "A=1"])).await.exits(1);
    assert!(ran.stdout.ends_with("\nweb v1 -> v2 ..\n"), "{ran:?}");
    assert!(ran.stderr.starts_with("error: v2 is current, but its rollout stops: fail fails\n"), "{ran:?}");
}

#[tokio::test]
async fn an_interrupted_scale_says_that_the_change_stands() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let _player = Player::with(&rig.visor, |_, _| Word::Start).await;
    let mut scale = rig.start(&args(&["scale", "-n", "1", "web"]));
    // The words come after the write; a signal before them would find nothing changed.
    let heard = hears(&mut scale.stdout, "0 -> 1").await;
    let pid = scale.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("it runs");
    let ran = end(scale).await.exits(130);
    assert_eq!(heard + &ran.stdout, "web@16f7cbf 0 -> 1\n");
    assert!(ran.stderr.contains("stands and goes on"), "{ran:?}");
}

#[tokio::test]
async fn a_scale_that_another_has_overtaken_does_not_say_that_all_is_well() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let first = rig.start(&args(&["scale", "-n", "2", "web"]));
    until("it is wanted", Duration::from_secs(10), || async {
        let key = Key::Formation(app("goto-rocket"), proc("web"));
        let row = rig.visor.get::<visor::schema::Formation>(&key).await.map_err(|error| error.to_string())?;
        row.map(drop).ok_or_else(|| "no formation".into())
    })
    .await;
    rig.bazooka(&args(&["scale", "-n", "1", "web", "--no-wait"])).await.ok();
    let _player = Player::start(&rig.visor).await;
    let ran = end(first).await.exits(1);
    assert!(ran.stderr.contains("web was scaled to 1 by tester meanwhile"), "{ran:?}");
}

#[tokio::test]
async fn no_wait_returns_with_the_change_made() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let ran = rig.bazooka(&args(&["scale", "-n", "2", "web", "--no-wait"])).await.ok();
    assert_eq!(ran.stdout, "web@16f7cbf 0 -> 2\n");
    let shown = rig.bazooka(&args(&["scale"])).await.ok().stdout;
    assert_eq!(shown, "PROC\tRELEASE\tREV\tCOUNT\tINSTANCES\nweb\tv1\t16f7cbf\t2\t0\n");
}

#[tokio::test]
async fn a_config_change_is_tried_released_and_rolled_out() {
    let rig = Rig::with_app("goto-rocket", &["web", "job"]).await;
    rig.rm().await;
    let _player = Player::start(&rig.visor).await;
    let set = rig.bazooka(&args(&["config", "set", "A=1", "B=two words"])).await.ok();
    assert_eq!(set.stdout, "v2 released (e1)\n", "nothing runs, so nothing is tried");
    rig.bazooka(&args(&["scale", "-n", "3", "web"])).await.ok();
    let set = rig.bazooka(&args(&["config", "set", "A=2"])).await.ok();
    assert_eq!(set.stdout, "v3 released (e2)\nweb v2 -> v3 ...\n");
    assert_eq!(rig.bazooka(&args(&["config"])).await.ok().stdout, "NAME\tVALUE\nA\t2\nB\ttwo words\n");
    assert_eq!(rig.bazooka(&args(&["config", "get", "B"])).await.ok().stdout, "two words\n");
    let same = rig.bazooka(&args(&["config", "set", "A=2"])).await.ok();
    assert_eq!(same.stdout, "nothing changes: v3 has these already\n");
    let unset = rig.bazooka(&args(&["config", "unset", "A", "B"])).await.ok();
    assert!(unset.stdout.starts_with("v4 released (e3)\n"), "{unset:?}");
    let unset = rig.bazooka(&args(&["config", "unset", "A"])).await.exits(0);
    assert_eq!(
        unset.stderr, "app 'goto-rocket' has no config var A\n",
        "a slip is no failure, but it is told"
    );
    let missing = rig.bazooka(&args(&["config", "get", "B"])).await.exits(3);
    assert_eq!(missing.stdout, "");
    let back = rig.bazooka(&args(&["rollback", "v2"])).await.ok();
    assert_eq!(back.stdout, "v5 released (e1)\nweb v4 -> v5 ...\nto go forward again: bazooka rollback v4\n");
    let releases = rig.bazooka(&args(&["releases"])).await.ok().stdout;
    assert!(releases.contains("rollback to v2") && releases.contains("config unset A B"), "{releases}");
    assert!(!releases.contains("two words"), "{releases}");
}

#[tokio::test]
async fn a_release_that_cannot_run_is_exit_1_and_head_stays() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.rm().await;
    let script = |_: &_, release| {
        if release == ReleaseId(1) { Word::Run } else { Word::Crash("exited with status 7") }
    };
    let _player = Player::with(&rig.visor, script).await;
    rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.ok();
    let ran = rig.bazooka(&args(&["config", "set", "A=secret"])).await.exits(1);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("v2 can't run") && ran.stderr.contains("exited with status 7"), "{ran:?}");
    assert!(ran.stderr.contains("v1 stays current") && !ran.stderr.contains("secret"), "{ran:?}");
    let refused = rig.bazooka(&args(&["rollback", "v2"])).await.exits(4);
    assert!(refused.stderr.contains("never ran"), "{refused:?}");
}

#[tokio::test]
async fn a_change_waits_for_the_trial_before_it() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.rm().await;
    let player = Player::start(&rig.visor).await;
    rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.ok();
    drop(player);
    let new = NewRelease { token: "other".into(), reason: "push".into(), ..NewRelease::default() };
    let config = new_env(&rig.visor, &app("goto-rocket"), &[("X", "1")]).await;
    let new = NewRelease { config: Some(config), ..new };
    let now = jiff::Timestamp::now();
    let begun = rig.visor.begin_release(&app("goto-rocket"), &new, Promoter::Converger, None, now).await;
    begun.expect("nothing else is being tried");
    let mut set = rig.start(&args(&["config", "set", "A=1"]));
    hears(&mut set.stderr, "v2 is being tried; waiting for that").await;
    rig.visor.fail_trial(&app("goto-rocket"), ReleaseId(2), "no").await.expect("it is on");
    // Nobody acts any more, so the second one stays on trial: that it has begun is what matters.
    until("the next one is being tried", Duration::from_secs(10), || async {
        let key = Key::Release(app("goto-rocket"), ReleaseId(3));
        rig.visor
            .get::<visor::schema::Release>(&key)
            .await
            .map_err(|error| error.to_string())?
            .map(drop)
            .ok_or_else(|| "no v3".into())
    })
    .await;
    drop(set);
}

#[tokio::test]
async fn a_restart_returns_when_each_instance_is_another() {
    let rig = Rig::with_app("goto-rocket", &["web", "job"]).await;
    let _player = Player::start(&rig.visor).await;
    assert_eq!(rig.bazooka(&args(&["restart"])).await.ok().stdout, "nothing runs that could be restarted\n");
    rig.bazooka(&args(&["scale", "web=2"])).await.ok();
    rig.bazooka(&args(&["scale", "job=1"])).await.ok();
    assert_eq!(rig.bazooka(&args(&["restart", "web"])).await.ok().stdout, "web restart 2 ..\n");
    let ids = rig.bazooka(&args(&["ps"])).await.ok().stdout;
    let ids: Vec<&str> = ids.lines().skip(1).filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(ids, ["3", "4", "5"], "job's stayed");
    assert_eq!(rig.bazooka(&args(&["restart", "4"])).await.ok().stdout, "web restart 1 .\n");
}

#[tokio::test]
async fn before_the_first_push_it_is_told_what_to_do() {
    let rig = Rig::new().await;
    rig.rm().await;
    rig.register("goto-rocket").await;
    let scale = rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.exits(3);
    assert!(scale.stderr.contains("git push bazooka master"), "{scale:?}");
    let back = rig.bazooka(&args(&["rollback"])).await.exits(4);
    assert!(back.stderr.contains("git push bazooka master"), "{back:?}");
    let set = rig.bazooka(&args(&["config", "set", "A=1"])).await.ok();
    assert_eq!(set.stdout, "e1 set; it goes with the first push\n");
    assert_eq!(rig.bazooka(&args(&["config"])).await.ok().stdout, "NAME\tVALUE\nA\t1\n");
    rig.bazooka(&args(&["config", "set", "A=", "B=x\ny=\tz"])).await.ok();
    let shown = rig.bazooka(&args(&["config"])).await.ok().stdout;
    assert_eq!(shown, "NAME\tVALUE\nA\t''\nB\tx\\ny=\\tz\n", "a value is seen whole, on its line");
    assert_eq!(rig.bazooka(&args(&["config", "get", "B"])).await.ok().stdout, "x\ny=\tz\n");
}

#[tokio::test]
async fn why_tells_of_what_has_no_place_and_of_what_has_ended() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let player = Player::start(&rig.visor).await;
    rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.ok();
    rig.bazooka(&args(&["scale", "-n", "0", "web"])).await.ok();
    let ended = rig.bazooka(&args(&["why", "1"])).await.ok().stdout;
    assert!(ended.contains("web.1 of goto-rocket") && ended.contains("archived"), "{ended}");
    drop(player);
    rig.bazooka(&args(&["scale", "-n", "2", "web", "--no-wait"])).await.ok();
    assert_eq!(rig.bazooka(&args(&["ps"])).await.ok().stdout.lines().count(), 1);
    let pending = Pending {
        release: ReleaseId(1),
        short: 2,
        reason: "no host has room".into(),
        refusals: [("host1".parse().expect("valid"), "needs 512M, has 12M".to_owned())].into(),
        reasons: Default::default(),
        since: jiff::Timestamp::now(),
        extra: Extra::new(),
    };
    rig.write(&Key::Pending(app("goto-rocket"), proc("web")), &pending).await;
    let ps = rig.bazooka(&args(&["ps"])).await.exits(0);
    let said = "web has no place for 2 instances: no host has room; hint: bazooka why web\n";
    assert_eq!(ps.stderr, said, "what isn't there is seen without asking");
    let why = rig.bazooka(&args(&["why", "web"])).await.ok().stdout;
    for wanted in ["2 of v1, 0 run", "no host has room", "host1: needs 512M, has 12M", "web.1 of goto-rocket"]
    {
        assert!(why.contains(wanted), "{wanted:?} in:\n{why}");
    }
}

#[tokio::test]
async fn destroy_wants_the_name_said_again() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let ran = rig.bazooka(&args(&["destroy"])).await.exits(2);
    assert!(ran.stderr.contains("--confirm goto-rocket"), "nobody is there to be asked: {ran:?}");
    rig.bazooka(&args(&["destroy", "--confirm", "goto-roket"])).await.exits(2);
    let ran = rig.bazooka(&args(&["destroy", "--confirm", "goto-rocket"])).await.exits(5);
    assert!(ran.stderr.contains("bazooka-rm"), "{ran:?}");
}

#[tokio::test]
async fn of_two_opposite_scales_the_later_stands_and_both_callers_are_told() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let placed = AtomicU32::new(0);
    let _player = Player::with(&rig.visor, move |_, _| match placed.fetch_add(1, Ordering::Relaxed) {
        0 => Word::Run,
        _ => Word::Start,
    })
    .await;
    rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.ok();
    let up = rig.start(&args(&["scale", "-n", "5", "web"]));
    until("five are wanted", Duration::from_secs(20), || async {
        let shown = rig.bazooka(&args(&["scale"])).await.ok().stdout;
        if shown.contains("\t5\t5\n") { Ok(()) } else { Err(shown) }
    })
    .await;
    let down = rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.exits(0);
    assert!(down.stdout.starts_with("web@16f7cbf 5 -> 1"), "{down:?}");
    assert_eq!(down.stderr, "web was scaled to 5 by tester and had not come to that\n");
    let up = end(up).await.exits(1);
    assert!(up.stdout.starts_with("web@16f7cbf 1 -> 5"), "{up:?}");
    let told = "error: web was scaled to 1 by tester meanwhile, and that holds\n";
    assert!(up.stderr.starts_with(told), "{up:?}");
}

/// A change needs the app twice, for itself and for its entry in the audit.
#[tokio::test]
async fn git_is_asked_once_which_app_is_meant() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.git(&["init", "-q"]).await.ok();
    rig.git(&["remote", "add", "bazooka", "http://127.0.0.1:1/goto-rocket.git"]).await.ok();
    let counting = rig.home().join("counting");
    std::fs::create_dir(&counting).expect("the folder can be made");
    let script = "#!/bin/sh\necho \"$@\" >>\"$HOME/asked\"\nPATH=${PATH#*:} exec git \"$@\"\n";
    std::fs::write(counting.join("git"), script).expect("it can be written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(counting.join("git"), executable).expect("the mode can be set");
    let path = format!("{}:{}", counting.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = rig.command(env!("CARGO_BIN_EXE_bazooka"), &["scale", "-n", "1", "--no-wait", "web"]);
    let ran = end(command.env("PATH", path).spawn().expect("bazooka can be started")).await.ok();
    assert_eq!(ran.stdout, "web@16f7cbf 0 -> 1\n");
    let asked = std::fs::read_to_string(rig.home().join("asked")).expect("git was asked");
    assert_eq!(asked, "remote get-url bazooka\n");
    let audit = rig.bazooka(&["audit", "--json"]).await.ok().stdout;
    assert!(audit.contains("\"app\": \"goto-rocket\""), "{audit}");
}
