//! Pushes that are refused: a plain word, and nothing of them is left.

use visor::testing::{Etcd, until};

use crate::rig::{Rig, SOON, ask};

#[tokio::test]
async fn a_faulty_procfile_rejects_the_push_with_its_line() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n");
    let good = folder.commit("good");
    folder.push().await.ok();
    for (procfile, words) in [
        ("web python3 rocket.py\n", "Procfile, line 1: there is no colon"),
        ("web: a\nweb: b\n", "Procfile, line 2: proc 'web' is there already, in line 1"),
        ("web: a\n2web: x\n", "Procfile, line 2: \"2web\" can't name a proc"),
        ("web: a\nWeb: x\n", "proc 'Web' and proc 'web' of line 1 would both be named 'web'"),
        ("web:\n", "Procfile, line 1: proc 'web' has no command"),
        ("# nothing\n", "there is no proc in it"),
        ("", "there is no proc in it"),
        ("web: a\0b\n", "control character"),
    ] {
        folder.write("Procfile", procfile).commit("faulty");
        folder.push().await.rejected(words);
    }
    std::fs::remove_file(folder.dir.join("Procfile")).expect("it is there");
    folder.commit("none");
    folder.push().await.rejected("there is no Procfile");
    std::fs::create_dir(folder.dir.join("Procfile")).expect("made");
    folder.write("Procfile/x", "y").commit("a folder");
    folder.push().await.rejected("there is no Procfile");

    let view = rig.view(&app).await;
    assert_eq!(view.revs.keys().map(|rev| rev.as_str()).collect::<Vec<_>>(), [good.as_str()]);
    assert_eq!(view.releases.len(), 1);
    assert_eq!(rig.left_over(), Vec::<std::path::PathBuf>::new());
    let tip = folder.git(&["ls-remote", "bazooka", "refs/heads/master"]).await.ok().stdout;
    assert!(tip.starts_with(&good), "{tip}");
    rig.fsck(&app);
}

#[tokio::test]
async fn only_master_and_main_are_deployed_and_they_stay() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("one");
    folder.git(&["push", "bazooka", "master:feature"]).await.rejected("only master or main is");
    folder.git_now(&["tag", "t1"]);
    folder.git(&["push", "bazooka", "t1"]).await.rejected("t1 is a tag");
    folder.git(&["push", "bazooka", "HEAD:refs/notes/x"]).await.rejected("refs/notes/x is no branch");
    folder
        .git(&["push", "-o", "nonsense", "bazooka", "master"])
        .await
        .rejected("no push option \"nonsense\"");
    assert!(rig.view(&app).await.revs.is_empty());
    folder.git_now(&["tag", "-a", "-m", "the first", "t2"]);
    folder.git(&["push", "--follow-tags", "bazooka", "master:main", "master:master", "t1"]).await.ok();
    let tags = folder.git(&["ls-remote", "--tags", "bazooka"]).await.ok().stdout;
    assert!(["refs/tags/t1", "refs/tags/t2"].iter().all(|tag| tags.contains(tag)), "{tags}");
    folder.git(&["push", "bazooka", ":master"]).await.rejected("master can't be deleted");
    let view = rig.view(&app).await;
    assert_eq!((view.revs.len(), view.releases.len()), (1, 1), "one commit is one release");
    // A clone has what is deployed.
    let into = rig.dir.path().join("clone").display().to_string();
    folder.git(&["clone", "-q", &format!("{}/pages.git", rig.url), &into]).await.ok();
    assert!(std::path::Path::new(&into).join("Procfile").exists());
}

#[tokio::test]
async fn commits_are_left_behind_only_where_the_repository_lets_them() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("one");
    folder.push().await.ok();
    folder.git_now(&["commit", "-q", "--amend", "-m", "another one"]);
    assert!(!folder.push().await.ok, "git itself asks for --force");
    folder.git(&["push", "--force", "bazooka", "master"]).await.ok();
    assert_eq!(rig.view(&app).await.releases.len(), 2);

    let config = rig.state().join("repos/pages.git/config");
    let denied = std::process::Command::new("git")
        .args(["config", "-f", &config.display().to_string(), "receive.denyNonFastForwards", "true"])
        // Where the tests were unpacked is none of its business.
        .current_dir(rig.state())
        .status();
    assert!(denied.is_ok_and(|status| status.success()));
    folder.write("bin/build", "#!/bin/sh\necho builds\n");
    folder.git_now(&["add", "-A"]);
    folder.git_now(&["commit", "-q", "--amend", "-m", "a third"]);
    let pushed = folder.git(&["push", "--force", "bazooka", "master"]).await;
    assert!(!pushed.stderr.contains("builds"), "nothing is built for it: {pushed:?}");
    pushed.rejected("receive.denyNonFastForwards");
}

#[tokio::test]
async fn a_submodule_or_a_link_out_is_refused_by_name() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n");
    std::os::unix::fs::symlink("/etc/passwd", folder.dir.join("secrets")).expect("made");
    folder.commit("link");
    folder.push().await.rejected("secrets is a symbolic link that leads out of the app: /etc/passwd");
    std::fs::remove_file(folder.dir.join("secrets")).expect("it is there");
    let link = format!("160000,{},vendor/lib", folder.commit("none"));
    folder.git_now(&["update-index", "--add", "--cacheinfo", &link]);
    folder.git_now(&["commit", "-q", "-m", "submodule"]);
    folder.push().await.rejected("vendor/lib is a submodule");
    assert!(rig.view(&app).await.revs.is_empty());
    assert_eq!(rig.left_over(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn nothing_is_built_while_the_coordinator_is_away() {
    let mut etcd = Etcd::start().await;
    let rig = Rig::on(etcd.endpoint()).await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").write("bin/build", "#!/bin/sh\necho builds\n").commit("one");
    etcd.kill();
    let pushed = folder.push().await;
    assert!(!pushed.stderr.contains("builds"), "{pushed:?}");
    pushed.rejected("the coordinator doesn't answer; nothing was built");
    let (status, answer) =
        ask(&rig.url, "POST", "/apps", r#"{"name":"x","owner":"a","token":"t"}"#).await.expect("answered");
    assert!(status == 503 && answer.contains("no coordinator answers"), "{status} {answer}");
    etcd.restart().await;
    until("a push goes through", SOON, || async {
        let pushed = folder.push().await;
        if pushed.ok { Ok(()) } else { Err(pushed.stderr) }
    })
    .await;
    assert_eq!(rig.view(&app).await.releases.len(), 1);
}

#[tokio::test]
async fn a_shallow_clone_is_refused_before_anything_is_built() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").write("bin/build", "#!/bin/sh\necho builds\n").commit("one");
    folder.commit("two");
    let from = format!("file://{}", folder.dir.display());
    let ci = rig.folder("ci", "pages");
    ci.git_now(&["fetch", "-q", "--depth", "1", &from, "master"]);
    ci.git_now(&["reset", "-q", "--hard", "FETCH_HEAD"]);
    let pushed = ci.push().await;
    assert!(!pushed.stderr.contains("builds"), "{pushed:?}");
    pushed.rejected("git fetch --unshallow");
    assert!(rig.view(&app).await.revs.is_empty());
    ci.git_now(&["fetch", "-q", "--unshallow", &from, "master"]);
    ci.push().await.ok();
    // A later shallow clone's history ends at what is deployed.
    folder.commit("three");
    ci.git_now(&["fetch", "-q", "--depth", "2", &from, "master"]);
    ci.git_now(&["reset", "-q", "--hard", "FETCH_HEAD"]);
    ci.push().await.ok();
}
