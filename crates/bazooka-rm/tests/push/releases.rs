//! From a registered rev to head: trials, verdicts, and pushers that go away between them.

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use visor::{
    names::ReleaseId,
    schema::{Promoter, ReleaseStatus},
    testing::new_env,
    transitions::releases::NewRelease,
};

use crate::rig::{Folder, Rig, kill_all, releases};

const V2: ReleaseId = ReleaseId(2);
const V3: ReleaseId = ReleaseId(3);

/// An app with v1 released and one web wanted, and the next commit ready to be pushed.
async fn running(rig: &Rig) -> (visor::names::AppName, Folder, String) {
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: one\n").commit("one");
    folder.push().await.ok();
    rig.scale(&app, "web", 1).await;
    rig.until_app(&app, "it is scaled", |view| view.formation.len() == 1).await;
    folder.write("Procfile", "web: two\n");
    let two = folder.commit("two");
    (app, folder, two)
}

#[tokio::test]
async fn a_verified_release_becomes_head_once_the_branch_has_moved() {
    let rig = Rig::start().await;
    let (app, folder, two) = running(&rig).await;
    let pushing = folder.git(&["push", "-o", "no-wait", "bazooka", "master"]);
    let (pushed, ()) = tokio::join!(pushing, rig.judge(&app, V2, None));
    let pushed = pushed.ok();
    let lines = pushed.remote_lines();
    let end = lines.iter().position(|line| *line == "build finished").expect("it finished");
    assert_eq!(lines[end + 1..], ["trying v2", "v2 is healthy", "v2 released"]);
    let view = rig.view(&app).await;
    assert_eq!(view.head_release().map(|(id, head)| (id, head.rev.to_string())), Some((V2, two)));
    assert!(view.trial.is_none());
    // A rollback is nobody's to undo.
    let back = NewRelease {
        rev: Some(view.releases[&ReleaseId(1)].rev.clone()),
        reason: "rollback to v1".into(),
        token: "back".into(),
        ..NewRelease::default()
    };
    rig.visor
        .begin_release(&app, &back, Promoter::Converger, None, jiff::Timestamp::now())
        .await
        .expect("begun");
    rig.judge(&app, V3, None).await;
    let mut rig = rig;
    rig.end(Signal::SIGKILL).await;
    rig.restart().await;
    let view = rig.view(&app).await;
    assert_eq!(releases(&view).len(), 3, "{:?}", view.releases);
    assert_eq!(view.head.as_ref().map(|head| head.release), Some(V3));
}

#[tokio::test]
async fn a_failed_release_is_a_rejected_push_that_can_be_pushed_again() {
    let rig = Rig::start().await;
    let (app, folder, _) = running(&rig).await;
    let cause = "web exited with status 1\nno such engine";
    let (pushed, ()) = tokio::join!(folder.push(), rig.judge(&app, V2, Some(cause)));
    let lines = pushed.remote_lines();
    assert!(lines.contains(&"push rejected: v2 failed: web exited with status 1"), "{lines:?}");
    assert!(lines.contains(&"no such engine"), "{lines:?}");
    pushed.rejected("pre-receive hook declined");
    let view = rig.view(&app).await;
    assert_eq!(releases(&view), [(1, ReleaseStatus::Released), (2, ReleaseStatus::Failed)]);
    assert_eq!(view.revs.len(), 2, "the rev stays registered");
    let tip = folder.git(&["ls-remote", "bazooka", "master"]).await.ok().stdout;
    assert!(tip.starts_with(folder.git_now(&["rev-parse", "HEAD~1"]).trim()), "the branch stays: {tip}");

    let again = folder.git(&["push", "-o", "no-wait", "bazooka", "master"]);
    let (again, ()) = tokio::join!(again, rig.judge(&app, V3, None));
    let again = again.ok();
    assert!(again.remote_lines().iter().any(|line| line.contains("is built already")), "{again:?}");
    assert_eq!(rig.view(&app).await.head.map(|head| head.release), Some(V3));
    rig.fsck(&app);
}

#[tokio::test]
async fn a_push_that_nobody_tries_is_told_so_and_given_up() {
    let rig = Rig::start().await;
    let (app, folder, _) = running(&rig).await;
    let pushed = folder.push().await;
    let lines = pushed.remote_lines();
    let missing = "no converger is elected, so that nothing is placed or stopped";
    assert!(lines.contains(&format!("waiting: {missing}").as_str()), "{lines:?}");
    assert!(lines.contains(&format!("push rejected: v2 failed: {missing}").as_str()), "{lines:?}");
    pushed.rejected("pre-receive hook declined");
    let view = rig.view(&app).await;
    assert_eq!(releases(&view), [(1, ReleaseStatus::Released), (2, ReleaseStatus::Failed)]);
    assert!(view.trial.is_none());
    assert!(!view.releases[&V2].by.is_empty(), "who pushed it is known");
}

#[tokio::test]
async fn a_trial_ends_with_its_pusher_and_the_branch_stays() {
    let rig = Rig::start().await;
    let (app, folder, _) = running(&rig).await;
    let mut push = folder
        .command(&["push", "bazooka", "master"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("git");
    let mut lines = BufReader::new(push.stderr.take().expect("piped")).lines();
    while !lines.next_line().await.expect("readable").expect("it is tried").contains("trying v2") {}
    kill_all(&mut push).await;
    drop(lines);
    let view = rig
        .until_app(&app, "the trial ends", |view| {
            view.trial.is_none()
                && view.releases.get(&V2).is_some_and(|row| row.status == ReleaseStatus::Failed)
        })
        .await;
    assert_eq!(view.releases[&V2].cause.as_deref(), Some("the push that tried it has ended"));
    let tip = folder.git(&["ls-remote", "bazooka", "master"]).await.ok().stdout;
    assert!(tip.starts_with(folder.git_now(&["rev-parse", "HEAD~1"]).trim()), "{tip}");
    rig.fsck(&app);
}

#[tokio::test]
async fn a_push_that_is_only_to_be_registered_leaves_what_runs() {
    let rig = Rig::start().await;
    let (app, folder, _) = running(&rig).await;
    let pushed = folder.git(&["push", "-o", "no-rollout", "bazooka", "master"]).await.ok();
    assert!(pushed.remote_lines().iter().any(|line| line.contains("is registered")), "{pushed:?}");
    let mut rig = rig;
    rig.end(Signal::SIGTERM).await;
    rig.restart().await;
    let view = rig.view(&app).await;
    assert_eq!((view.revs.len(), view.releases.len()), (2, 1));
    assert!(view.trial.is_none());
}

#[tokio::test]
async fn a_branch_that_moved_without_its_release_is_released_after_all() {
    let mut rig = Rig::start().await;
    let (app, folder, two) = running(&rig).await;
    // The push is registered, and its objects are there, for main; as if git had moved master and died.
    folder.git(&["push", "-o", "no-rollout", "bazooka", "master:main"]).await.ok();
    rig.end(Signal::SIGKILL).await;
    let moved = std::process::Command::new("git")
        .args(["update-ref", "refs/heads/master", &two])
        .current_dir(rig.state().join("repos/pages.git"))
        .status();
    assert!(moved.is_ok_and(|status| status.success()));
    rig.restart().await;
    rig.judge(&app, V2, None).await;
    let view =
        rig.until_app(&app, "it is head", |view| view.head.as_ref().is_some_and(|h| h.release == V2)).await;
    assert_eq!(view.releases[&V2].rev.as_str(), two);
    assert!(view.releases[&V2].reason.contains("whose pusher went away"));
    rig.end(Signal::SIGKILL).await;
    rig.restart().await;
    assert_eq!(rig.view(&app).await.releases.len(), 2, "once is enough");
}

#[tokio::test]
async fn a_push_waits_for_the_trial_of_another_and_takes_its_place() {
    let rig = Rig::start().await;
    let (app, folder, two) = running(&rig).await;
    let config = NewRelease {
        config: Some(new_env(&rig.visor, &app, &[("A", "b")]).await),
        reason: "config set A".into(),
        token: "config".into(),
        ..NewRelease::default()
    };
    rig.visor
        .begin_release(&app, &config, Promoter::Converger, None, jiff::Timestamp::now())
        .await
        .expect("begun");
    let mut push = folder.command(&["push", "-o", "no-wait", "bazooka", "master"]);
    let mut push = push.stderr(std::process::Stdio::piped()).spawn().expect("git");
    let mut lines = BufReader::new(push.stderr.take().expect("piped")).lines();
    while !lines.next_line().await.expect("readable").expect("told").contains("v2 is being tried; waiting") {}
    rig.judge(&app, V2, None).await;
    rig.judge(&app, V3, None).await;
    while lines.next_line().await.expect("readable").is_some() {}
    assert!(push.wait().await.expect("it is ours").success());
    let view = rig.view(&app).await;
    let (id, head) = view.head_release().expect("it has one");
    assert_eq!((id, head.rev.as_str(), head.env.to_string().as_str()), (V3, two.as_str(), "e1"));
}
