//! An rm that is killed in each step of a push, and the other one that goes on from there.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use nix::sys::signal::Signal;
use tokio::{io::AsyncReadExt, process::Child};
use visor::{names::AppName, schema::ReleaseStatus, testing::until};

use crate::{
    rig::{Folder, Rig, SOON, WAITS, keys_below},
    s3::S3,
    shared::{both, tip, two},
};

/// Two rms over S3, and an app with one release that was acknowledged; one instance of it is wanted.
struct Takeover {
    s3: S3,
    one: Rig,
    two: Rig,
    app: AppName,
    folder: Folder,
    acknowledged: String,
}

impl Takeover {
    async fn start() -> Takeover {
        let s3 = S3::start().await;
        let (one, two) = two(s3.setup()).await;
        let (app, folder) = one.app("pages").await;
        both(&folder, &one, &two, "pages");
        folder.write("Procfile", "web: x\n");
        for n in 0..3 {
            folder.write("file", &n.to_string()).commit("a commit");
            folder.git(&["push", "-q", "one", "master"]).await.ok();
        }
        let acknowledged = folder.git_now(&["rev-parse", "HEAD"]).trim().to_owned();
        Takeover { s3, one, two, app, folder, acknowledged }
    }

    /// Pushes a new commit to the first rm; it isn't acknowledged.
    fn push(&self) -> (String, Child) {
        let commit = self.folder.write("new", "x").commit("new");
        let push =
            self.folder.command(&["push", "one", "master"]).stderr(Stdio::piped()).spawn().expect("git");
        (commit, push)
    }

    /// Kills the first rm, and has the other serve: all that was acknowledged is there.
    async fn kill(&mut self, mut push: Child, named: &str) {
        self.one.end(Signal::SIGKILL).await;
        let mut told = String::new();
        push.stderr.take().expect("piped").read_to_string(&mut told).await.expect("readable");
        push.wait().await.expect("it is ours");
        assert!(
            !told.contains("master -> master\n") || told.contains("rejected") || told.contains("error"),
            "{told}"
        );
        assert_eq!(tip(&self.folder, "two").await, named, "{told}");
        self.two.fsck(&self.app);
        let clone = self.two.folder("clone", "pages");
        clone.git(&["pull", "-q", "bazooka", "master"]).await.ok();
        clone.git_now(&["merge-base", "--is-ancestor", &self.acknowledged, "HEAD"]);
    }

    /// The push that died is pushed again, at the other rm.
    async fn push_again(&self) {
        self.folder.git(&["push", "-q", "two", "master"]).await.ok();
        assert_eq!(tip(&self.folder, "two").await, self.folder.git_now(&["rev-parse", "HEAD"]).trim());
        self.two.fsck(&self.app);
    }

    async fn until_head_is(&self, commit: &str) {
        self.two
            .until_app(&self.app, "head is the pushed commit", |view| {
                view.head_release().is_some_and(|(_, head)| head.rev.as_str() == commit)
            })
            .await;
    }

    /// Has git stop at this point of moving the first rm's branch. Git's own hook, which bazooka-rm has no use for.
    fn stop_git_when(&self, state: &str) {
        let hook = self.one.state().join("repos/pages.git/hooks/reference-transaction");
        let reached = self.one.dir.path().join("reached");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = {state} ] || exit 0\ncat > /dev/null\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 60\n",
            reached.display()
        );
        fs::write(&hook, text).expect("written");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("set");
    }

    async fn until_git_stops(&self) {
        let reached = self.one.dir.path().join("reached");
        until("git has come to that point", SOON, || async {
            if reached.exists() { Ok(()) } else { Err(self.one.log()) }
        })
        .await;
    }
}

#[tokio::test]
async fn killed_while_it_builds_nothing_has_moved_and_the_other_builds() {
    let mut rigs = Takeover::start().await;
    rigs.folder.write("bin/build", WAITS);
    let (commit, push) = rigs.push();
    rigs.one.until_it_builds("pages").await;
    let acknowledged = rigs.acknowledged.clone();
    rigs.kill(push, &acknowledged).await;
    assert_eq!(keys_below(&rigs.two.visor, "turns/").await, ["turns/pages"], "until its lease runs out");
    rigs.two.open_gate("pages");
    rigs.push_again().await;
    rigs.until_head_is(&commit).await;
}

#[tokio::test]
async fn killed_while_it_stores_the_slug_or_the_pack_nothing_has_moved() {
    for part in ["/slugs/", "/packs/"] {
        let mut rigs = Takeover::start().await;
        rigs.s3.hold(Some(part));
        let (commit, push) = rigs.push();
        until("it is being stored", SOON, || async {
            let waiting = rigs.s3.waiting.lock().expect("no holder panics").clone();
            if waiting.is_empty() { Err(rigs.one.log()) } else { Ok(()) }
        })
        .await;
        let acknowledged = rigs.acknowledged.clone();
        rigs.kill(push, &acknowledged).await;
        rigs.s3.hold(None);
        let is_registered = rigs.two.view(&rigs.app).await.revs.len() == 4;
        assert_eq!(is_registered, part == "/packs/", "a rev is registered once its slug is stored");
        rigs.push_again().await;
        rigs.until_head_is(&commit).await;
    }
}

#[tokio::test]
async fn killed_while_it_tries_the_release_nothing_has_moved() {
    let mut rigs = Takeover::start().await;
    rigs.one.scale(&rigs.app, "web", 1).await;
    let (commit, push) = rigs.push();
    rigs.one
        .until_app(&rigs.app, "its release is tried", |view| {
            view.releases.values().any(|row| row.status == ReleaseStatus::Trying)
        })
        .await;
    let acknowledged = rigs.acknowledged.clone();
    rigs.kill(push, &acknowledged).await;
    rigs.one.scale(&rigs.app, "web", 0).await;
    rigs.push_again().await;
    rigs.until_head_is(&commit).await;
}

#[tokio::test]
async fn killed_once_the_push_is_stored_it_has_gone_through_and_is_released() {
    // Before git moves the first rm's own branch, and after.
    for state in ["prepared", "committed"] {
        let mut rigs = Takeover::start().await;
        rigs.one.scale(&rigs.app, "web", 1).await;
        rigs.stop_git_when(state);
        let (commit, push) = rigs.push();
        rigs.one.judge(&rigs.app, "v4".parse().expect("valid"), None).await;
        rigs.until_git_stops().await;
        // A fetch meanwhile leaves the branch to git.
        let named = if state == "prepared" { rigs.acknowledged.clone() } else { commit.clone() };
        assert_eq!(tip(&rigs.folder, "one").await, named);
        assert!(!rigs.one.log().contains("made anew"), "{}", rigs.one.log());
        rigs.kill(push, &commit).await;
        // The dead push's trial ends with its lease; what it left is tried again, by the converger's word alone.
        rigs.two
            .until_app(&rigs.app, "the dead push's trial is over", |view| {
                view.trial.as_ref().is_none_or(|trial| trial.release != "v4".parse().expect("valid"))
            })
            .await;
        if state == "prepared" {
            rigs.two.judge(&rigs.app, "v5".parse().expect("valid"), None).await;
            rigs.until_head_is(&commit).await;
        } else {
            // One that fails then is not tried for ever.
            rigs.two.judge(&rigs.app, "v5".parse().expect("valid"), Some("it crashes")).await;
        }
        let next = rigs.folder.write("next", "x").commit("next");
        rigs.two.scale(&rigs.app, "web", 0).await;
        rigs.folder.git(&["push", "-q", "two", "master"]).await.ok();
        rigs.until_head_is(&next).await;
        assert_eq!(
            rigs.two.view(&rigs.app).await.releases.len(),
            6,
            "it was released once more, and once only"
        );

        // The one that died comes back, and is brought up.
        fs::remove_file(rigs.one.state().join("repos/pages.git/hooks/reference-transaction"))
            .expect("it is there");
        rigs.one.restart().await;
        rigs.folder.git_now(&["remote", "set-url", "one", &format!("{}/pages.git", rigs.one.url)]);
        assert_eq!(tip(&rigs.folder, "one").await, next);
        rigs.one.fsck(&rigs.app);
        let left = fs::read_to_string(rigs.one.dir.path().join("reached")).expect("readable");
        let left = nix::unistd::Pid::from_raw(left.trim().parse().expect("a pid"));
        nix::sys::signal::kill(left, Signal::SIGKILL).expect("it is there");
    }
}

#[tokio::test]
async fn an_rm_that_comes_back_takes_over_the_turn_that_it_left() {
    let mut rigs = Takeover::start().await;
    rigs.folder.write("bin/build", WAITS);
    let (commit, push) = rigs.push();
    rigs.one.until_it_builds("pages").await;
    let acknowledged = rigs.acknowledged.clone();
    rigs.kill(push, &acknowledged).await;
    rigs.one.open_gate("pages");
    rigs.one.restart().await;
    rigs.folder.git_now(&["remote", "set-url", "one", &format!("{}/pages.git", rigs.one.url)]);
    assert_eq!(keys_below(&rigs.two.visor, "turns/").await, ["turns/pages"], "the lease has not run out");
    let pushed = rigs.folder.git(&["push", "one", "master"]).await.ok();
    assert!(!pushed.stderr.contains("waiting"), "{pushed:?}");
    rigs.until_head_is(&commit).await;
}
