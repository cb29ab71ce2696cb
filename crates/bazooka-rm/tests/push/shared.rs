//! Two rms that share a file storage, both alive.

use std::{fs, path::PathBuf};

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use visor::testing::{Etcd, fresh_prefix, stand_still, until};

use crate::{
    rig::{Folder, Rig, SOON, Setup, WAITS, ask, keys_below, releases},
    s3::S3,
};

/// Two rms over a folder.
pub struct Two {
    pub storage: TempDir,
    pub one: Rig,
    pub two: Rig,
}

impl Two {
    pub async fn start() -> Two {
        let storage = tempfile::Builder::new().prefix("bazooka-storage-").tempdir().expect("a folder");
        let args = vec!["--storage".into(), format!("file://{}", storage.path().display())];
        let (one, two) = two(Setup { args, ..Setup::default() }).await;
        Two { storage, one, two }
    }

    /// An app with a folder that has both rms for remotes.
    pub async fn app(&self, name: &str) -> (visor::names::AppName, Folder) {
        let (app, folder) = self.one.app(name).await;
        both(&folder, &self.one, &self.two, name);
        (app, folder)
    }
}

pub async fn two(setup: Setup) -> (Rig, Rig) {
    let one = Rig::with(Etcd::shared().await.endpoint(), fresh_prefix(), setup).await;
    let two = one.other("rm2").await;
    (one, two)
}

/// Names both rms as remotes of a folder.
pub fn both(folder: &Folder, one: &Rig, two: &Rig, app: &str) {
    for (name, rig) in [("one", one), ("two", two)] {
        folder.git_now(&["remote", "add", name, &format!("{}/{app}.git", rig.url)]);
    }
}

/// What a remote's master names.
pub async fn tip(folder: &Folder, remote: &str) -> String {
    let told = folder.git(&["ls-remote", remote, "refs/heads/master"]).await.ok().stdout;
    told.split_whitespace().next().unwrap_or_default().to_owned()
}

fn files(folder: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("readable").path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

#[tokio::test]
async fn either_rm_takes_pushes_and_serves_what_the_other_took() {
    let rigs = Two::start().await;
    let (app, folder) = rigs.app("pages").await;
    for (n, remote) in ["one", "two", "two", "one"].into_iter().enumerate() {
        folder.write("Procfile", "web: x\n").write(&format!("file{n}"), "x");
        let commit = folder.commit(&n.to_string());
        let pushed = folder.git(&["push", remote, "master"]).await.ok();
        assert!(pushed.stderr.contains(&format!("v{} released", n + 1)), "{pushed:?}");
        assert_eq!((tip(&folder, "one").await, tip(&folder, "two").await), (commit.clone(), commit));
    }
    rigs.one.fsck(&app);
    rigs.two.fsck(&app);
    let clone = rigs.two.folder("clone", "pages");
    clone.git(&["pull", "-q", "bazooka", "master"]).await.ok();
    assert!(clone.dir.join("file3").exists());
    // A slug that the other one built is passed on; one that is nowhere is missing.
    let view = rigs.one.view(&app).await;
    for rev in view.revs.values() {
        for rig in [&rigs.one, &rigs.two] {
            let slug =
                ask(&rig.url, "GET", &format!("/slugs/{}", rev.slug.sha256), "").await.expect("answered");
            assert_eq!(slug.0, 200);
        }
    }
    let none = ask(&rigs.two.url, "GET", &format!("/slugs/{}", "0".repeat(64)), "").await.expect("answered");
    assert_eq!(none.0, 404);
    // A forced push, and one to the second branch, are the other's too.
    folder.git_now(&["reset", "-q", "--hard", "HEAD~2"]);
    let back = folder.commit("back");
    folder.git(&["push", "-f", "two", "master"]).await.ok();
    assert_eq!(tip(&folder, "one").await, back);
    folder.git(&["push", "one", "master:main"]).await.ok();
    let told = folder.git(&["ls-remote", "two", "main"]).await.ok().stdout;
    assert!(told.starts_with(&back), "{told}");
    rigs.one.fsck(&app);
    rigs.two.fsck(&app);
    assert_eq!(keys_below(&rigs.one.visor, "turns/").await, Vec::<String>::new());
}

#[tokio::test]
async fn of_two_pushes_at_two_rms_the_second_is_told_and_waits() {
    let rigs = Two::start().await;
    let (app, first) = rigs.app("pages").await;
    first.write("Procfile", "web: x\n").commit("base");
    first.git(&["push", "one", "master"]).await.ok();
    let second = rigs.two.folder("second", "pages");
    second.git(&["pull", "-q", "bazooka", "master"]).await.ok();
    first.write("bin/build", WAITS);
    let commit = first.commit("first");
    let late_commit = second.write("second", "x").commit("second");

    let mut slow =
        first.command(&["push", "one", "master"]).stderr(std::process::Stdio::piped()).spawn().expect("git");
    let mut lines = BufReader::new(slow.stderr.take().expect("piped")).lines();
    while !lines.next_line().await.expect("readable").expect("it waits").contains("waits") {}
    let mut late = second
        .command(&["push", "bazooka", "master"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("git");
    let mut late_lines = BufReader::new(late.stderr.take().expect("piped")).lines();
    loop {
        let line = late_lines.next_line().await.expect("readable").expect("it is told");
        if line.contains("another push to 'pages' is being built by rm1; waiting") {
            break;
        }
    }
    rigs.one.open_gate("pages");
    rigs.two.open_gate("pages");
    assert!(slow.wait().await.expect("it is ours").success());
    let mut rest = String::new();
    late_lines.into_inner().read_to_string(&mut rest).await.expect("readable");
    assert!(!late.wait().await.expect("it is ours").success(), "it was based on what has moved: {rest}");
    assert!(rest.contains("has moved meanwhile"), "{rest}");
    assert_eq!(tip(&second, "bazooka").await, commit);
    let view = rigs.one.view(&app).await;
    assert_eq!(releases(&view).len(), 2);
    second.git(&["pull", "-q", "--rebase", "bazooka", "master"]).await.ok();
    second.push().await.ok();
    let log = second.git_now(&["log", "--format=%s"]);
    assert_eq!(log, "second\nfirst\nbase\n", "{late_commit} was based anew");
    rigs.one.fsck(&app);
    rigs.two.fsck(&app);
}

#[tokio::test]
async fn an_rm_that_was_paused_past_its_turn_moves_nothing() {
    let rigs = Two::start().await;
    let (app, folder) = rigs.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("base");
    folder.git(&["push", "one", "master"]).await.ok();
    let base = folder.git_now(&["rev-parse", "HEAD"]);
    folder.write("bin/build", WAITS);
    folder.commit("paused");
    let mut paused =
        folder.command(&["push", "one", "master"]).stderr(std::process::Stdio::piped()).spawn().expect("git");
    let mut lines = BufReader::new(paused.stderr.take().expect("piped")).lines();
    while !lines.next_line().await.expect("readable").expect("it waits").contains("waits") {}
    stand_still(rigs.one.pid());

    let other = rigs.two.folder("other", "pages");
    other.git(&["fetch", "-q", "bazooka", "master"]).await.ok();
    other.git_now(&["reset", "-q", "--hard", base.trim()]);
    let commit = other.write("other", "x").commit("other");
    // It waits for the lease to run out.
    let pushed = other.push().await.ok();
    assert!(pushed.stderr.contains("being built by rm1; waiting"), "{pushed:?}");

    rigs.one.open_gate("pages");
    kill(rigs.one.pid(), Signal::SIGCONT).expect("it is there");
    let mut rest = String::new();
    lines.into_inner().read_to_string(&mut rest).await.expect("readable");
    assert!(!paused.wait().await.expect("it is ours").success(), "{rest}");
    assert!(rest.contains("has moved meanwhile") || rest.contains("turn"), "{rest}");
    assert_eq!((tip(&other, "bazooka").await, tip(&folder, "one").await), (commit.clone(), commit.clone()));
    rigs.one.fsck(&app);
    let view = rigs.two.view(&app).await;
    assert_eq!(releases(&view).len(), 2, "the paused push began no release without its turn");
    assert_eq!(view.head_release().map(|(_, head)| head.rev.to_string()), Some(commit));
}

#[tokio::test]
async fn a_storage_that_fails_in_the_middle_of_a_push_is_told_and_the_branch_stays() {
    let mut s3 = S3::start().await;
    let (one, two) = two(s3.setup()).await;
    let (app, folder) = one.app("pages").await;
    both(&folder, &one, &two, "pages");
    folder.write("Procfile", "web: x\n").commit("good");
    folder.git(&["push", "one", "master"]).await.ok();
    let good = tip(&folder, "two").await;
    assert_eq!(good, folder.git_now(&["rev-parse", "HEAD"]).trim());
    assert!(!files(s3.folder("repos/pages")).is_empty() && !files(s3.folder("slugs")).is_empty());

    folder.write("bin/build", WAITS);
    folder.commit("cut");
    let mut push =
        folder.command(&["push", "one", "master"]).stderr(std::process::Stdio::piped()).spawn().expect("git");
    let mut lines = BufReader::new(push.stderr.take().expect("piped")).lines();
    while !lines.next_line().await.expect("readable").expect("it waits").contains("waits") {}
    s3.shut().await;
    one.open_gate("pages");
    two.open_gate("pages");
    let mut rest = String::new();
    lines.into_inner().read_to_string(&mut rest).await.expect("readable");
    assert!(!push.wait().await.expect("it is ours").success(), "{rest}");
    assert!(rest.contains("push rejected: the file storage failed"), "{rest}");
    assert_eq!(tip(&folder, "one").await, good, "what is here is current, and needs no storage");
    assert_eq!(one.view(&app).await.revs.len(), 1);

    s3.open().await;
    assert_eq!(tip(&folder, "two").await, good);
    folder.git(&["push", "two", "master"]).await.ok();
    assert_eq!(tip(&folder, "one").await, folder.git_now(&["rev-parse", "HEAD"]).trim());
    one.fsck(&app);
    two.fsck(&app);
}

#[tokio::test]
async fn what_is_stored_and_broken_is_not_served() {
    let rigs = Two::start().await;
    let (_, folder) = rigs.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("good");
    folder.git(&["push", "one", "master"]).await.ok();
    let packs: Vec<PathBuf> = files(rigs.storage.path().join("repos"))
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("/packs/"))
        .collect();
    let mut bytes = fs::read(&packs[0]).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packs[0], bytes).expect("written");
    let told = folder.git(&["ls-remote", "two"]).await;
    assert!(!told.ok, "{told:?}");
    assert!(rigs.two.log().contains("is not what its name says"), "{}", rigs.two.log());
    assert_eq!(tip(&folder, "one").await, folder.git_now(&["rev-parse", "HEAD"]).trim());
}

#[tokio::test]
async fn a_copy_that_lost_something_is_made_whole_from_the_storage() {
    let rigs = Two::start().await;
    let (app, folder) = rigs.app("pages").await;
    for n in 0..3 {
        folder.write("Procfile", "web: x\n").write("file", &n.to_string()).commit("a commit");
        folder.git(&["push", "one", "master"]).await.ok();
        tip(&folder, "two").await;
    }
    for path in files(rigs.two.state().join("repos/pages.git/objects")) {
        fs::remove_file(path).expect("removed");
    }
    fs::remove_file(rigs.two.state().join("repos/pages.git/refs/heads/master")).expect("it is there");
    let clone = rigs.two.folder("clone", "pages");
    clone.git(&["pull", "-q", "bazooka", "master"]).await.ok();
    rigs.two.fsck(&app);
}

#[tokio::test]
async fn many_pushes_packs_are_made_one_and_either_rm_goes_on_from_there() {
    let rigs = Two::start().await;
    let (app, folder) = rigs.app("pages").await;
    folder.write("Procfile", "web: x\n");
    for n in 0..27 {
        folder.write("file", &n.to_string()).commit("a commit");
        let remote = if n % 9 == 8 { "two" } else { "one" };
        folder.git(&["push", "-q", "-o", "no-rollout", remote, "master"]).await.ok();
    }
    let manifests = files(rigs.storage.path().join("repos"));
    let newest = manifests
        .iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("27-")));
    let manifest = fs::read_to_string(newest.expect("it is stored")).expect("readable");
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("it is JSON");
    let packs = manifest["packs"].as_array().expect("packs").len();
    assert_eq!(packs, 3, "the twenty-fifth push made them one: {manifest}");
    let three = rigs.one.other("rm3").await;
    let clone = three.folder("clone", "pages");
    clone.git(&["pull", "-q", "bazooka", "master"]).await.ok();
    assert_eq!(clone.git_now(&["rev-list", "--count", "HEAD"]).trim(), "27");
    for rig in [&rigs.one, &rigs.two, &three] {
        ask(&rig.url, "GET", "/pages.git/info/refs?service=git-upload-pack", "").await.expect("answered");
        rig.fsck(&app);
    }
}

#[tokio::test]
async fn a_destroyed_apps_repository_leaves_storage_and_copies() {
    let rigs = Two::start().await;
    let (_, folder) = rigs.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("one");
    folder.git(&["push", "two", "master"]).await.ok();
    let (status, _) = ask(&rigs.two.url, "DELETE", "/apps/pages", "").await.expect("answered");
    assert_eq!(status, 202);
    until("all of it has gone", SOON, || async {
        let mut left = files(rigs.storage.path().join("repos"));
        for rig in [&rigs.one, &rigs.two] {
            left.extend(Some(rig.state().join("repos/pages.git")).filter(|path| path.exists()));
        }
        let keys: Vec<String> = keys_below(&rigs.one.visor, "").await;
        let keys: Vec<&String> = keys.iter().filter(|key| key.contains("pages")).collect();
        if left.is_empty() && keys.is_empty() { Ok(()) } else { Err(format!("{left:?} {keys:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_repository_that_was_kept_by_one_rm_is_stored_when_it_gets_a_storage() {
    let mut one = Rig::start().await;
    let (app, folder) = one.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("before");
    folder.push().await.ok();
    one.end(Signal::SIGTERM).await;
    let storage = tempfile::tempdir().expect("a folder");
    one.set_up(&["--storage".into(), format!("file://{}", storage.path().display())]);
    one.restart().await;
    let stored = "stored/pages".to_owned();
    until("it is stored", SOON, || async {
        let keys = keys_below(&one.visor, "stored/").await;
        if keys == [stored.clone()] { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;
    let two = one.other("rm2").await;
    both(&folder, &one, &two, "pages");
    assert_eq!(tip(&folder, "two").await, folder.git_now(&["rev-parse", "HEAD"]).trim());
    folder.write("new", "x");
    let commit = folder.commit("after");
    folder.git(&["push", "two", "master"]).await.ok();
    assert_eq!(tip(&folder, "one").await, commit);
    one.fsck(&app);
    two.fsck(&app);
    assert_eq!(releases(&one.view(&app).await).len(), 2, "what was there before is not released again");
}
