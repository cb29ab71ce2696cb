//! Rollouts: how they are told, held, called off.

use std::sync::atomic::{AtomicU32, Ordering};

use visor::names::ReleaseId;

use crate::{
    player::{Player, Word},
    rig::{Rig, words},
};

const OTHER: &str = "beef000000000000000000000000000000000000";

fn args<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["-a", "goto-rocket"], words].concat()
}

/// Three of v1's web run, and v2 was promoted: the first of it runs, the others don't come up.
async fn halfway() -> (Rig, Player) {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let of_second = AtomicU32::new(0);
    let player = Player::with(&rig.visor, move |_, release| {
        let later = release == ReleaseId(2) && of_second.fetch_add(1, Ordering::Relaxed) > 0;
        if later { Word::Start } else { Word::Run }
    })
    .await;
    rig.bazooka(&args(&["scale", "-n", "3", "web"])).await.ok();
    rig.push("goto-rocket", OTHER, &["web"]).await;
    visor::testing::until(
        "v2 is head, and three of it are placed",
        std::time::Duration::from_secs(20),
        || async {
            let status = rig.bazooka(&args(&["rollout", "status", "--json"])).await.ok().stdout;
            let page: serde_json::Value = serde_json::from_str(&status).map_err(|error| error.to_string())?;
            let placed = rig.bazooka(&args(&["ps"])).await.stdout.lines().count();
            if page["release"] == "v2" && placed == 7 {
                Ok(())
            } else {
                Err(format!("{placed} lines, {page}"))
            }
        },
    )
    .await;
    (rig, player)
}

#[tokio::test]
async fn a_rollout_is_told_held_and_called_off_with_the_old_ones_untouched() {
    let (rig, _player) = halfway().await;
    let before = rig.bazooka(&args(&["ps"])).await.exits(0).stdout;
    let old = before.lines().filter(|line| line.contains("16f7cbf"));
    let old: Vec<&str> = old.filter_map(|line| line.strip_suffix("\trunning")).collect();
    let status = rig.bazooka(&args(&["rollout", "status"])).await.ok().stdout;
    assert_eq!(
        words(&status),
        ["PROC RELEASE WANTED RUNNING OLD STATE CAUSE", "web v2 3 1 3 of v1 rolling -"]
    );

    let pause = args(&["rollout", "pause"]);
    assert_eq!(
        rig.bazooka(&pause).await.ok().stdout,
        "paused: a batch that has begun ends, and no other begins\n"
    );
    assert_eq!(rig.bazooka(&pause).await.ok().stdout, "paused already\n");
    let status = rig.bazooka(&args(&["rollout", "status"])).await.exits(0);
    assert!(status.stderr.starts_with("paused by tester 0s ago"), "{status:?}");
    assert!(status.stdout.contains("pausing"), "{status:?}");

    let abort = rig.bazooka(&args(&["rollout", "abort"])).await.ok().stdout;
    assert_eq!(words(&abort)[0], "v2 aborted; v1 is current again");
    assert!(words(&abort)[1].starts_with("web v2 -> v1"), "{abort}");
    let after = rig.bazooka(&args(&["ps"])).await.ok().stdout;
    assert_eq!(after.lines().skip(1).collect::<Vec<_>>(), old, "the same three run, and no other");
    let releases = rig.bazooka(&args(&["releases"])).await.ok().stdout;
    let told: Vec<(&str, &str)> = releases
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .map(|cells| (cells[3], *cells.last().expect("there are columns")))
        .collect();
    assert_eq!(told[1..], [("aborted", "push: aborted by tester"), ("current", "push")]);
    let status = rig.bazooka(&args(&["rollout", "status"])).await.ok().stdout;
    assert_eq!(words(&status)[1], "web v1 3 3 - done -", "the pause went with it");

    let again = rig.bazooka(&args(&["rollout", "abort"])).await.exits(4);
    assert!(again.stderr.starts_with("error: nothing of app 'goto-rocket' is being rolled out"), "{again:?}");
    let back = rig.bazooka(&args(&["rollback"])).await.exits(4);
    assert!(back.stderr.contains("no release to go back to"), "an aborted one is none: {back:?}");
}

#[tokio::test]
async fn who_waits_for_a_rollout_is_told_that_it_was_called_off() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.rm().await;
    let of_second = AtomicU32::new(0);
    let _player = Player::with(&rig.visor, move |_, release| {
        let later = release == ReleaseId(2) && of_second.fetch_add(1, Ordering::Relaxed) > 0;
        if later { Word::Start } else { Word::Run }
    })
    .await;
    rig.bazooka(&args(&["scale", "-n", "2", "web"])).await.ok();
    let waits = rig.start(&args(&["config", "set", "A=1"]));
    visor::testing::until("v2 is head", std::time::Duration::from_secs(20), || async {
        let status = rig.bazooka(&args(&["rollout", "status", "--json"])).await.ok().stdout;
        if status.contains("\"release\": \"v2\"") { Ok(()) } else { Err(status) }
    })
    .await;
    rig.bazooka(&args(&["rollout", "abort", "--no-wait"])).await.ok();
    let told = crate::rig::end(waits).await.exits(4);
    assert_eq!(told.stderr, "error: v2 was aborted by tester\ncause: v1 is current again\n");
}

#[tokio::test]
async fn a_trial_is_called_off_and_what_was_current_stays() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.rm().await;
    let _player = Player::with(&rig.visor, |_, release| match release {
        ReleaseId(1) => Word::Run,
        _ => Word::Start,
    })
    .await;
    rig.bazooka(&args(&["scale", "-n", "1", "web"])).await.ok();
    rig.bazooka(&args(&["config", "set", "A=1", "--no-wait"])).await.ok();
    let status = rig.bazooka(&args(&["rollout", "status"])).await.exits(0);
    assert_eq!(status.stderr, "v2 is being tried; hint: bazooka rollout abort\n");
    let abort = rig.bazooka(&args(&["rollout", "abort"])).await.ok().stdout;
    assert_eq!(abort, "v2 aborted; v1 stays current\n");
    assert_eq!(rig.bazooka(&args(&["rollout", "resume"])).await.ok().stdout, "not paused\n");
}

#[tokio::test]
async fn a_share_of_the_traffic_is_given_to_what_runs_beside_and_goes_with_it() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    rig.add_rev("goto-rocket", OTHER, &["web"]).await;
    let _player = Player::start(&rig.visor).await;
    rig.bazooka(&args(&["scale", "-n", "2", "web"])).await.ok();
    let early = rig.bazooka(&args(&["traffic", "web", "beef=10"])).await.exits(4);
    assert!(early.stderr.contains("runs no web beside"), "{early:?}");
    rig.bazooka(&args(&["scale", "-r", "beef", "-n", "1", "web"])).await.ok();
    assert_eq!(
        rig.bazooka(&args(&["traffic", "web", "beef=10"])).await.ok().stdout,
        "web: 10 % to beef000, 90 % to the current release\n"
    );
    let shown = rig.bazooka(&args(&["traffic", "web"])).await.ok().stdout;
    let table = ["PROC RELEASE REV COUNT PERCENT", "web v1 16f7cbf 2 90", "web v2 beef000 1 10"];
    assert_eq!(words(&shown), table);
    let much = rig.bazooka(&args(&["traffic", "web", "beef=101"])).await.exits(2);
    assert!(much.stderr.contains("REV=PERCENT"), "{much:?}");
    rig.bazooka(&args(&["scale", "-r", "beef", "-n", "0", "web"])).await.ok();
    let shown = rig.bazooka(&args(&["traffic", "web", "--json"])).await.ok().stdout;
    let rows: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
    assert_eq!((rows.as_array().map(Vec::len), &rows[0]["percent"]), (Some(1), &serde_json::Value::Null));
}
