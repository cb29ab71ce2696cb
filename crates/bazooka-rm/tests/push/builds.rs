//! Builds: what they print, what they may see, and what is left of them.

use std::{path::PathBuf, time::Duration};

use nix::sys::signal::{Signal, kill};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use visor::{
    schema::{Check, Protocol},
    testing::until,
};

use crate::rig::{Rig, SOON, WAITS, ask, kill_all, releases};

/// A build that forks away as far as it can, and goes on for ever.
const HANGS: &str = r#"#!/bin/sh
setsid sh -c 'sleep 1000; :' &
(trap '' TERM INT HUP; sleep 1000; :) &
echo "it begins"
sleep 1000; :
"#;

/// How many processes that has.
const HANGING: usize = 6;

/// The processes of a commit's build, wherever they went: each has its variables.
pub fn pids(commit: &str) -> Vec<nix::unistd::Pid> {
    let mark = format!("BAZOOKA_REV={commit}");
    let has_mark = |environ: &[u8]| environ.split(|byte| *byte == 0).any(|var| var == mark.as_bytes());
    let all = std::fs::read_dir("/proc").expect("it is there").filter_map(Result::ok);
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_it = |pid: &i32| std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|vars| has_mark(&vars));
    pids.filter(of_it).map(nix::unistd::Pid::from_raw).collect()
}

async fn until_none_is_left(pids: &[nix::unistd::Pid]) {
    until("no process of the build is left", SOON, || async {
        let left: Vec<_> = pids.iter().filter(|pid| kill(**pid, None).is_ok()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_push_waits_for_a_repository_that_is_being_made() {
    let rig = Rig::start().await;
    let folder = rig.folder("goto-rocket", "goto-rocket");
    folder.write("Procfile", "web: python3 rocket.py\n").write("rocket.py", "x");
    folder.commit("go to rocket");
    rig.register("goto-rocket").await;
    let pushed = folder.push().await.ok();
    assert!(pushed.remote_lines().contains(&"v1 released"), "{pushed:?}");
}

#[tokio::test]
async fn procs_are_named_as_foreman_names_them_and_release_is_none() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("mailer").await;
    folder
        .write("Procfile", "Mail_Worker: x\nrelease: bin/migrate\nwebhook-sender: y\nweb: z\n")
        .commit("one");
    let said = folder.push().await.ok();
    let lines = said.remote_lines();
    assert!(
        lines.iter().any(|line| line.starts_with("the Procfile's release command is NOT RUN")),
        "{lines:?}"
    );
    assert!(lines.contains(&"pty registered: Mail_Worker"), "{lines:?}");
    let view = rig.view(&app).await;
    let rows = view.procs.iter().map(|(proc, row)| {
        let (speaks, check) = (row.run.protocol_for(proc), row.run.check_for(proc));
        (proc.as_str(), view.spelling(proc), speaks, check)
    });
    assert_eq!(
        rows.collect::<Vec<_>>(),
        [
            ("mail-worker", "Mail_Worker", Protocol::Tcp, Check::Started),
            ("web", "web", Protocol::Http, Check::Listening),
            ("webhook-sender", "webhook-sender", Protocol::Tcp, Check::Started),
        ]
    );
}

#[tokio::test]
async fn a_push_tells_the_words_of_the_original_in_their_order() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("goto-rocket").await;
    folder.write("Procfile", "web: python3 rocket.py\njob: python3 job.py\n").write("rocket.py", "x");
    let commit = folder.commit("go to rocket");
    let pushed = folder.push().await.ok();
    assert_eq!(
        pushed.remote_lines(),
        [
            "change-set accepted",
            "uploading container to file storage",
            "registering revisions in coordinator",
            "pty registered: job",
            "pty registered: web",
            "build finished",
            "v1 released",
            "nothing of it runs yet; to start it: bazooka scale -n 1 web",
        ]
    );
    let view = rig.view(&app).await;
    let (rev, row) = view.revs.first_key_value().expect("it is registered");
    assert_eq!((rev.as_str(), row.kind.as_str()), (commit.as_str(), "procfile"));
    assert_eq!((row.subject.as_str(), row.by.as_str()), ("go to rocket", "Ada"));
    let ports: Vec<u16> = view.procs.values().map(|proc| proc.port).collect();
    assert!(ports[0] < ports[1] && ports[0] > 8500, "{ports:?}");
    let path = format!("/slugs/{}", row.slug.sha256);
    let (status, _) = ask(&rig.url, "GET", &path, "").await.expect("answered");
    assert_eq!(status, 200);
    rig.fsck(&app);
}

#[tokio::test]
async fn the_same_files_are_the_same_slug_whoever_pushes_them_when() {
    let rig = Rig::start().await;
    let mut slugs = Vec::new();
    for name in ["one", "two"] {
        let (app, folder) = rig.app(name).await;
        folder.write("Procfile", "web: x\n").write("a/b", "c").write("bin/x", "#!/bin/sh\n").commit(name);
        folder.push().await.ok();
        let view = rig.view(&app).await;
        slugs.push(view.revs.values().next().expect("registered").slug.clone());
    }
    assert_eq!(slugs[0], slugs[1]);
}

#[tokio::test]
async fn a_failed_build_is_told_as_it_goes_and_leaves_nothing() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("good");
    folder.push().await.ok();
    folder.write("bin/build", "#!/bin/sh\necho one; echo 'two \u{1b}[31mred' >&2; exit 3\n").commit("bad");
    let pushed = folder.push().await;
    let lines = pushed.remote_lines();
    let place = |words: &str| {
        lines.iter().position(|line| *line == words).unwrap_or_else(|| panic!("no {words:?} in {lines:?}"))
    };
    let wanted = ["one", "two red", "push rejected: `./bin/build` exited with status 3"].map(place);
    assert!(wanted.is_sorted() && !pushed.ok, "{lines:?}");
    let view = rig.view(&app).await;
    assert_eq!((view.revs.len(), view.releases.len()), (1, 1));
    assert_eq!(rig.left_over(), Vec::<PathBuf>::new());
    let tip = folder.git(&["ls-remote", "bazooka", "master"]).await.ok().stdout;
    assert!(tip.starts_with(folder.git_now(&["rev-parse", "HEAD~1"]).trim()));
    let metrics = ask(&rig.url, "GET", "/metrics", "").await.expect("answered").1;
    for line in [
        r#"bazooka_rm_builds_total{result="failed",kind="bin/build"} 1"#,
        r#"bazooka_rm_builds_total{result="done",kind="procfile"} 1"#,
        r#"bazooka_rm_pushes_total{result="rejected"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn a_build_sees_its_own_tree_and_none_of_the_operators_variables() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").write("bin/build", "#!/bin/sh\nenv\npwd\nls -a\necho made > made\n");
    let commit = folder.commit("one");
    let pushed = folder.push().await.ok();
    let lines = pushed.remote_lines();
    assert!(!pushed.stderr.contains("told-nobody") && !pushed.stderr.contains("BAZOOKA_PUSH"), "{lines:?}");
    for wanted in ["BAZOOKA_APP=pages", &format!("BAZOOKA_REV={commit}"), "Procfile"] {
        assert!(lines.contains(&wanted), "no {wanted}: {lines:?}");
    }
    assert!(!lines.contains(&".git"), "{lines:?}");
    let slug = rig.view(&app).await.revs.values().next().expect("registered").slug.sha256.clone();
    let file = std::fs::File::open(rig.state().join(format!("slugs/{slug}"))).expect("it is stored");
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).expect("it is zstd"));
    let names: Vec<String> = archive
        .entries()
        .expect("it is tar")
        .map(|entry| entry.expect("readable").path().expect("a path").display().to_string())
        .collect();
    assert_eq!(names, ["Procfile", "bin", "bin/build", "made"]);
}

#[tokio::test]
async fn a_build_ends_with_its_pusher_and_so_does_all_that_it_started() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    // Processes are found by the commit, so that its name must differ from that of a test which runs in the same second.
    let commit = folder
        .write("Procfile", "web: x\n")
        .write("bin/build", HANGS)
        .commit("hangs until its pusher leaves");
    let mut push = folder
        .command(&["push", "bazooka", "master"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("git");
    let mut lines = BufReader::new(push.stderr.take().expect("piped")).lines();
    loop {
        let line = lines.next_line().await.expect("readable").expect("it begins");
        if line.contains("it begins") {
            break;
        }
    }
    let all = until("the processes are there", SOON, || async {
        let pids = pids(&commit);
        if pids.len() == HANGING { Ok(pids) } else { Err(format!("{pids:?}")) }
    })
    .await;
    kill_all(&mut push).await;
    drop(lines);
    until_none_is_left(&all).await;
    until("its folders are empty", SOON, || async {
        let left = rig.left_over();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert!(rig.view(&app).await.revs.is_empty());
    folder.write("bin/build", "#!/bin/sh\ntrue\n").commit("builds");
    folder.push().await.ok();
    rig.fsck(&app);
}

#[tokio::test]
async fn a_build_ends_with_its_rm_and_the_next_one_takes_up_its_work() {
    let mut rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    let commit =
        folder.write("Procfile", "web: x\n").write("bin/build", HANGS).commit("hangs until its rm ends");
    let mut push = folder
        .command(&["push", "bazooka", "master"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("git");
    let all = until("the processes are there", SOON, || async {
        let pids = pids(&commit);
        if pids.len() == HANGING { Ok(pids) } else { Err(format!("{pids:?}")) }
    })
    .await;
    rig.end(Signal::SIGKILL).await;
    assert!(!push.wait().await.expect("it is ours").success());
    until_none_is_left(&all).await;
    rig.restart().await;
    assert_eq!(rig.left_over(), Vec::<PathBuf>::new());
    assert!(rig.view(&app).await.revs.is_empty());
    folder.git_now(&["remote", "set-url", "bazooka", &format!("{}/pages.git", rig.url)]);
    folder.write("bin/build", "#!/bin/sh\ntrue\n").commit("builds");
    until("the next push goes through", SOON, || async {
        let pushed = folder.push().await;
        if pushed.ok { Ok(()) } else { Err(pushed.stderr) }
    })
    .await;
    assert_eq!(rig.view(&app).await.revs.len(), 1);
    rig.fsck(&app);
}

#[tokio::test]
async fn of_two_pushes_at_once_the_second_is_told_and_waits() {
    let rig = Rig::start().await;
    let (app, first) = rig.app("pages").await;
    first.write("Procfile", "web: x\n").commit("base");
    first.push().await.ok();
    let second = rig.folder("second", "pages");
    second.git(&["pull", "-q", "bazooka", "master"]).await.ok();
    first.write("bin/build", WAITS);
    let commit = first.commit("first");
    second.write("second", "x").commit("second");

    let mut slow = first
        .command(&["push", "bazooka", "master"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("git");
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
        if line.contains("another push to 'pages' is being built; waiting") {
            break;
        }
    }
    rig.open_gate("pages");
    assert!(slow.wait().await.expect("it is ours").success());
    let mut rest = String::new();
    late_lines.into_inner().read_to_string(&mut rest).await.expect("readable");
    assert!(!late.wait().await.expect("it is ours").success(), "it was based on what has moved: {rest}");
    assert!(rest.contains("has moved meanwhile"), "{rest}");
    let view = rig.view(&app).await;
    assert_eq!(releases(&view).len(), 2);
    assert_eq!(view.head_release().map(|(_, head)| head.rev.to_string()), Some(commit));
    rig.fsck(&app);
}

#[tokio::test]
async fn a_fetch_that_git_compresses_is_answered() {
    let rig = Rig::start().await;
    let (_, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("base");
    folder.push().await.ok();
    let other = rig.folder("other", "pages");
    other.git(&["pull", "-q", "bazooka", "master"]).await.ok();
    // Git compresses requests of more than 1,024 bytes; each of these commits is offered before the one
    // that the rm knows, which no other ref names.
    other.git_now(&["update-ref", "-d", "refs/remotes/bazooka/master"]);
    for n in 0..60 {
        other.git_now(&["commit", "-q", "--allow-empty", "-m", &n.to_string()]);
    }
    folder.write("new", "x");
    let new = folder.commit("new");
    folder.push().await.ok();
    let fetched =
        other.command(&["fetch", "-q", "bazooka"]).env("GIT_TRACE_CURL", "1").output().await.expect("git");
    let trace = String::from_utf8_lossy(&fetched.stderr).into_owned();
    assert!(fetched.status.success(), "{trace}");
    assert!(trace.to_lowercase().contains("content-encoding: gzip"), "git was to compress: {trace}");
    assert_eq!(other.git_now(&["rev-parse", "bazooka/master"]).trim(), new);
}

#[tokio::test]
async fn a_folder_of_static_files_gets_a_server_and_hides_what_is_not_its_pages() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("index.html", "<p>hello\n").write("css/a.css", "p {}\n").write(".secret", "x").commit("one");
    folder.push().await.ok();
    let view = rig.view(&app).await;
    let row = view.revs.values().next().expect("registered");
    assert_eq!(row.kind, "static");
    let unpacked = rig.dir.path().join("unpacked");
    let file = std::fs::File::open(rig.state().join(format!("slugs/{}", row.slug.sha256))).expect("stored");
    tar::Archive::new(zstd::Decoder::new(file).expect("zstd")).unpack(&unpacked).expect("it is tar");
    let port = visor::testing::free_port();
    let _server = tokio::process::Command::new("sh")
        .args(["-c", row.procs.values().next().expect("web")])
        .current_dir(&unpacked)
        .env("PORT", port.to_string())
        .kill_on_drop(true)
        .spawn()
        .expect("sh");
    let url = format!("http://127.0.0.1:{port}");
    until("the page is served", SOON, || async {
        match ask(&url, "GET", "/", "").await {
            Ok((200, body)) if body == "<p>hello\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for (path, wanted) in [
        ("/css/a.css", 200),
        ("/.secret", 404),
        ("/%2esecret", 404),
        ("/bin/bazooka-static", 404),
        ("/bin/%62azooka-static", 404),
        ("/../../rm.log", 404),
        ("/nothing", 404),
    ] {
        let (status, body) = ask(&url, "GET", path, "").await.expect("answered");
        assert_eq!(status, wanted, "{path}: {} bytes", body.len());
    }
}

#[tokio::test]
async fn a_step_is_ended_at_its_limit_with_all_that_it_started() {
    use bazooka_rm::{
        build::{BuildError, place::Place, run::Runner},
        voice::Voice,
    };
    let dir = tempfile::tempdir().expect("a folder");
    let (voice, mut lines) = Voice::new();
    let script = dir.path().join("hangs");
    std::fs::write(
        &script,
        "setsid sh -c 'echo $$; sleep 1000' &\nsetsid sh -c 'trap \"\" TERM; echo $$; sleep 1000'\n",
    )
    .expect("written");
    let environment = std::collections::BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]);
    let place = Place::plain(dir.path(), environment);
    let live = tokio_util::sync::CancellationToken::new();
    let runner = |limit| Runner::new(env!("CARGO_BIN_EXE_bazooka-rm").as_ref(), &place, &voice, &live, limit);
    let ended = runner(Duration::from_secs(1)).run("sh".as_ref(), &[&script]).await.expect_err("it hangs");
    assert!(matches!(ended, BuildError::TimedOut(_)), "{ended}");
    let mut pids = Vec::new();
    while let Ok(line) = lines.try_recv() {
        pids.push(nix::unistd::Pid::from_raw(line.parse().expect("a pid")));
    }
    assert_eq!(pids.len(), 2, "both had begun");
    assert!(pids.iter().all(|pid| kill(*pid, None).is_err()), "none is left when it returns");

    let runner = runner(SOON);
    let ended = runner.run("no-such-program".as_ref(), &["x"]).await.expect_err("there is none").to_string();
    assert!(ended.contains("no-such-program x"), "{ended}");
    let killed =
        runner.run("sh".as_ref(), &["-c", "kill -9 $$"]).await.expect_err("it is killed").to_string();
    assert!(killed.contains("SIGKILL"), "{killed}");
    runner.run("sh".as_ref(), &["-c", "sleep 1000 & exit 0"]).await.expect("what it leaves is ended");
}

/// A push whose lines are read as they come.
struct Pushing {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
}

impl Pushing {
    fn start(folder: &crate::rig::Folder) -> Pushing {
        let mut command = folder.command(&["push", "bazooka", "master"]);
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("git");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        Pushing { child, lines }
    }

    async fn reads(&mut self, words: &str) {
        while !self.lines.next_line().await.expect("readable").expect(words).contains(words) {}
    }
}

#[tokio::test]
async fn builds_wait_in_a_queue_that_the_pusher_sees_and_leaves() {
    let rig = Rig::told(&["--builds", "1"]).await;
    let mut folders = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let (_, folder) = rig.app(name).await;
        folder.write("Procfile", "web: x\n");
        if name == "one" {
            folder.write("bin/build", WAITS);
        }
        folder.commit("first");
        folders.push(folder);
    }
    let mut first = Pushing::start(&folders[0]);
    first.reads("waits").await;
    let mut second = Pushing::start(&folders[1]);
    second.reads("waiting for a build: 1st in the queue").await;
    let mut third = Pushing::start(&folders[2]);
    third.reads("waiting for a build: 2nd in the queue").await;
    let metrics = crate::rig::ask(&rig.url, "GET", "/metrics", "").await.expect("answered").1;
    assert!(metrics.contains("bazooka_rm_builds_waiting 2"), "{metrics}");
    // The second goes away, and the third moves up.
    kill_all(&mut second.child).await;
    drop(second.lines);
    third.reads("waiting for a build: 1st in the queue").await;
    let mut fourth = Pushing::start(&folders[3]);
    fourth.reads("waiting for a build: 2nd in the queue").await;
    rig.open_gate("one");
    for mut pushing in [first, third, fourth] {
        pushing.reads("build finished").await;
        while pushing.lines.next_line().await.expect("readable").is_some() {}
        assert!(pushing.child.wait().await.expect("it is ours").success());
    }
}
