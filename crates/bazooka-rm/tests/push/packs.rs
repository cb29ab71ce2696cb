//! Pushes that are larger than they look, or than they may be, or named like something else.

use std::{fs, process::Stdio, time::Duration};

use crate::rig::{Folder, Rig};

const BOMB: &str = include_str!("bomb.py");

/// How much memory the processes of a push may take together, in KiB: some objects of the largest size that is let in.
const MOST_KIB: u64 = 1 << 20;

fn kib(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok())
}

/// The memory of what runs in a repository now.
fn memory_of_git(rig: &Rig) -> u64 {
    let repositories = rig.state().join("repos");
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let inside = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.starts_with(&repositories))
    };
    pids.filter(inside).filter_map(|pid| kib(pid, "VmRSS:")).sum()
}

#[tokio::test]
async fn a_pack_that_unpacks_to_gigabytes_is_refused_and_takes_no_memory() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    let script = rig.dir.path().join("bomb.py");
    fs::write(&script, BOMB).expect("there is room");
    let made = std::process::Command::new("python3").arg(&script).output().expect("python is there");
    assert!(made.status.success() && made.stdout.len() < 20_000, "{made:?}");
    let body = rig.dir.path().join("body");
    fs::write(&body, made.stdout).expect("there is room");
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "-H", "Content-Type: application/x-git-receive-pack-request", "--data-binary"]);
    curl.arg(format!("@{}", body.display())).arg(format!("{}/pages.git/git-receive-pack", rig.url));
    let answered = curl.stdin(Stdio::null()).output();
    let mut answered = std::pin::pin!(answered);
    let mut most = 0;
    let answered = loop {
        tokio::select! {
            answered = &mut answered => break answered.expect("curl is there"),
            () = tokio::time::sleep(Duration::from_millis(2)) => most = most.max(memory_of_git(&rig)),
        }
    };
    let said = String::from_utf8_lossy(&answered.stdout);
    assert!(said.contains("ng refs/heads/master unpacker error"), "{said}");
    assert!(most < MOST_KIB, "{most} kB");
    let peak = kib(rig.pid().as_raw().unsigned_abs(), "VmHWM:").expect("it runs");
    assert!(peak < 100 << 10, "{peak} kB");
    assert!(rig.view(&app).await.revs.is_empty());
    folder.write("Procfile", "web: x\n").commit("small");
    folder.push().await.ok();
    rig.fsck(&app);
}

#[tokio::test]
async fn a_pack_that_is_larger_than_it_may_be_is_refused_and_nothing_of_it_stays() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    let config = rig.state().join("repos/pages.git/config");
    let lowered = std::process::Command::new("git")
        .args(["config", "-f", &config.display().to_string(), "receive.maxInputSize", "100000"])
        .current_dir(rig.state())
        .status();
    assert!(lowered.is_ok_and(|status| status.success()));
    let noise: String =
        (0..60_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    folder.write("Procfile", "web: x\n").write("large", &noise).commit("large");
    folder.push().await.rejected("exceeds maximum allowed size");
    assert!(rig.view(&app).await.revs.is_empty());
    fs::remove_file(folder.dir.join("large")).expect("it is there");
    folder.git_now(&["add", "-A"]);
    folder.git_now(&["commit", "-q", "--amend", "-m", "small"]);
    folder.push().await.ok();
    assert_eq!(rig.view(&app).await.revs.len(), 1);
    assert_eq!(rig.left_over(), Vec::<std::path::PathBuf>::new());
    rig.fsck(&app);
}

#[tokio::test]
async fn names_like_options_and_hooks_in_the_tree_are_names_and_files() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    let hook = "#!/bin/sh\ntouch \"$(dirname \"$0\")/ran\"\n";
    folder.write("Procfile", "web: x\n").write("-rf", "x").write("--help", "x").write("--upload-pack=x", "x");
    folder.write("hooks/pre-receive", hook).write(".githooks/post-checkout", hook);
    folder
        .write(".gitattributes", "* filter=x export-subst\n")
        .write(".gitconfig", "[core]\nhooksPath = hooks\n");
    let commit = folder.commit("names");
    folder.push().await.ok();
    folder.git(&["push", "bazooka", "master:refs/heads/--upload-pack=x"]).await.rejected("");
    folder.git(&["push", "bazooka", "master:refs/heads/-d"]).await.rejected("");
    let view = rig.view(&app).await;
    assert_eq!(view.revs.keys().map(|rev| rev.as_str()).collect::<Vec<_>>(), [commit.as_str()]);
    let ran = std::process::Command::new("find").arg(rig.dir.path()).args(["-name", "ran"]).output();
    assert_eq!(ran.expect("find is there").stdout, b"");
    rig.fsck(&app);
}

/// Stores a commit as its bytes are, and returns its id.
fn faulty_commit(folder: &Folder, tree: &str, who: &str) -> String {
    let text = format!("tree {tree}\nauthor {who}\ncommitter {who}\n\nold\n");
    std::fs::write(folder.dir.join("../commit"), text).expect("written");
    let words = ["hash-object", "-t", "commit", "-w", "--literally", "../commit"];
    folder.git_now(&words).trim().to_owned()
}

#[tokio::test]
async fn a_history_with_the_faulty_lines_of_old_tools_is_taken() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("one");
    let tree = folder.git_now(&["rev-parse", "HEAD^{tree}"]).trim().to_owned();
    let old = [
        "Ada 1234567890 +0000",
        "Ada <ada@localhost 1234567890 +0000",
        "<ada@localhost> 1234567890 +0000",
        "Ada<ada@localhost> 1234567890 +0000",
        "Ada <ada@localhost>1234567890 +0000",
        "Ada <ada@localhost> 01234567890 +0000",
        "Ada <ada@localhost> 1234567890 +51800",
    ];
    let parents: Vec<String> = old.iter().map(|who| faulty_commit(&folder, &tree, who)).collect();
    let mut words = vec!["commit-tree".to_owned(), tree, "-m".to_owned(), "merge".to_owned()];
    words.extend(parents.into_iter().flat_map(|parent| ["-p".to_owned(), parent]));
    let merge = folder.git_now(&words.iter().map(String::as_str).collect::<Vec<_>>());
    folder.git_now(&["reset", "-q", "--hard", merge.trim()]);
    folder.push().await.ok();
    assert_eq!(rig.view(&app).await.revs.len(), 1);
    // The last commit itself may have such lines.
    let tree = folder.git_now(&["rev-parse", "HEAD^{tree}"]).trim().to_owned();
    let last = faulty_commit(&folder, &tree, "Ada <ada@localhost> 01234567890 +0000");
    folder.git_now(&["reset", "-q", "--hard", &last]);
    folder.git(&["push", "--force", "bazooka", "master"]).await.ok();
    assert_eq!(rig.view(&app).await.revs.len(), 2);
}
