//! What a build can't do, tried by real ones that mean ill, and what becomes of those.

use std::{collections::BTreeMap, fs, net::TcpListener, path::Path, process::Command};

use visor::{
    names::AppName,
    testing::{Etcd, fresh_prefix},
};

use crate::{
    builds::pids,
    rig::{Folder, Ran, Rig, Setup, ask},
};

const PROBE: &str = include_str!("probe.py");

/// Whether builds can have a sandbox here, and the run wasn't told to do without; it is said if not.
fn has_sandboxes() -> bool {
    let has = nix::unistd::geteuid().is_root() && std::env::var_os("BAZOOKA_BUILD_ISOLATION").is_none();
    if !has {
        eprintln!("not tried in a sandbox: it takes root, and a machine that can give one");
    }
    has
}

fn port_of(url: &str) -> &str {
    url.trim_end_matches('/').rsplit(':').next().expect("a URL of ours has a port")
}

/// An app that is built by this script.
async fn app(rig: &Rig, name: &str, script: &str) -> (AppName, Folder, String) {
    let (app, folder) = rig.app(name).await;
    folder.write("Procfile", "web: x\n").write("bin/build", script);
    let commit = folder.commit(name);
    (app, folder, commit)
}

/// Pushes an app that is built so.
async fn push(rig: &Rig, name: &str, script: &str) -> Ran {
    app(rig, name, script).await.1.push().await
}

/// Another app is pushed and built as if nothing was.
async fn a_neighbour_builds(rig: &Rig) {
    push(rig, "neighbour", "#!/bin/sh\ntrue\n").await.ok();
}

/// The files below a folder with what is in them.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap_or_default());
        }
    }
    found
}

/// What the probe said: outcomes by what was tried.
async fn probed(rig: &Rig, name: &str, other: &str) -> BTreeMap<String, String> {
    let (_, folder) = rig.app(name).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let open = listener.local_addr().expect("it listens").port();
    let said = format!(
        "STATE = {:?}\nOTHER = {other:?}\nETCD = {}\nRM = {}\nOPEN = {open}\n",
        rig.state().display().to_string(),
        port_of(rig.endpoint()),
        port_of(&rig.url)
    );
    folder.write("Procfile", "web: x\n").write("given.py", &said);
    folder.write("bin/build", PROBE).commit("probe");
    let pushed = folder.push().await.ok();
    let lines = pushed.remote_lines().into_iter().filter_map(|line| line.split_once(" = "));
    lines.map(|(what, came)| (what.to_owned(), came.to_owned())).collect()
}

fn assert_all(said: &BTreeMap<String, String>, wanted: &[(&str, &str)]) {
    let differs = |(what, wanted): &&(&str, &str)| said.get(*what).map(String::as_str) != Some(*wanted);
    let wrong: Vec<_> = wanted.iter().filter(differs).collect();
    assert!(wrong.is_empty(), "wanted {wrong:?} of {said:#?}");
}

#[tokio::test]
async fn a_build_reaches_what_its_rm_opens_for_it() {
    if !has_sandboxes() {
        return;
    }
    let listener = || TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = |listener: &TcpListener| listener.local_addr().expect("it listens").port();
    let (mirror, other) = (listener(), listener());
    let rig = Rig::told(&["--build-open", &format!("127.0.0.1:{}", port(&mirror))]).await;
    let script = format!(
        "#!/bin/sh\nfor port in {} {}; do\n  /usr/bin/python3 -c \"import socket; \
         socket.create_connection(('127.0.0.1', $port))\" 2>/dev/null && echo reached $port || echo missed $port\ndone\n",
        port(&mirror),
        port(&other)
    );
    let pushed = push(&rig, "mirrored", &script).await.ok();
    let lines = pushed.remote_lines();
    for line in [format!("reached {}", port(&mirror)), format!("missed {}", port(&other))] {
        assert!(lines.iter().any(|said| said.contains(&line)), "{lines:#?}");
    }
}

#[tokio::test]
async fn a_build_sees_and_changes_only_what_is_its_own() {
    if !has_sandboxes() {
        return;
    }
    let rig = Rig::start().await;
    push(&rig, "other", "#!/bin/sh\necho theirs > \"$HOME/kept\"\n").await.ok();
    let watched = ["repos/other.git", "cache/other", "slugs"].map(|name| rig.state().join(name));
    let before = files(&watched[0]);
    assert!(!files(&watched[1]).is_empty() && !files(&watched[2]).is_empty());
    let said = probed(&rig, "probe", "other").await;
    assert_all(
        &said,
        &[
            ("is root", "False"),
            ("rights", "[0, 0, 0, 0, 0]"),
            ("no new rights", "['1', '2', '']"),
            ("places", "['/app', True, True]"),
            ("state", "['cache']"),
            ("caches", "['probe']"),
            ("hidden", "[]"),
            ("strangers", "0"),
            ("environment of process 1", "EACCES"),
            ("write /x", "EROFS"),
            ("write /etc/x", "EROFS"),
            ("write /usr/x", "EROFS"),
            ("write /proc/sys/kernel/core_pattern", "EROFS"),
            ("write another's repository", "ENOENT"),
            ("write another's cache", "ENOENT"),
            ("write a slug", "ENOENT"),
            ("write /app/x", "done"),
            ("write the cache", "done"),
            ("write /tmp/x", "done"),
            ("connect etcd", "ECONNREFUSED"),
            ("connect etcd by another address", "ECONNREFUSED"),
            ("connect rm", "ECONNREFUSED"),
            ("connect another", "ECONNREFUSED"),
            ("etcd is among the listeners", "True"),
            ("reached", "[]"),
            ("connect hooks", "ENOENT"),
            ("bind a port", "done"),
            ("bind any port", "done"),
            ("make a device", "EPERM"),
            ("mount", "ENOSYS"),
            ("operator's variable", "None"),
        ],
    );
    assert_eq!(files(&watched[0]), before);
    assert_eq!(fs::read_to_string(watched[1].join("home/kept")).expect("it is there"), "theirs\n");
    rig.fsck(&"other".parse().expect("valid"));
}

#[tokio::test]
async fn with_a_user_of_its_own_alone_a_build_reads_nothing_of_the_others() {
    if !has_sandboxes() {
        return;
    }
    let rig = Rig::told(&["--build-isolation", "uid"]).await;
    push(&rig, "other", "#!/bin/sh\necho theirs > \"$HOME/kept\"\n").await.ok();
    let said = probed(&rig, "probe", "other").await;
    assert_all(
        &said,
        &[
            ("is root", "False"),
            ("no new rights", "['1', '0', '']"),
            ("write another's repository", "EACCES"),
            ("write another's cache", "EACCES"),
            ("write a slug", "EACCES"),
            ("write /etc/x", "EACCES"),
            ("connect hooks", "EACCES"),
            ("write the cache", "done"),
        ],
    );
}

#[tokio::test]
async fn an_ordinary_user_builds_without_a_sandbox_and_is_warned() {
    if !has_sandboxes() {
        return;
    }
    let setup = Setup { uid: Some(65_534), ..Setup::default() };
    let rig = Rig::with(Etcd::shared().await.endpoint(), fresh_prefix(), setup).await;
    push(&rig, "pages", "#!/bin/sh\ntest $(id -u) = 65534\n").await.ok();
    assert!(rig.log().contains("BUILDS ARE NOT KEPT APART"), "{}", rig.log());
}

#[tokio::test]
async fn the_same_tree_is_the_same_slug_however_it_is_kept_apart() {
    if !has_sandboxes() {
        return;
    }
    let mut slugs = Vec::new();
    for kind in ["sandbox", "uid", "none"] {
        let rig = Rig::told(&["--build-isolation", kind]).await;
        let (app, folder, _) =
            app(&rig, "pages", "#!/bin/sh\numask 077\nmkdir made; echo x > made/x; ln -s x made/y\n").await;
        folder.push().await.ok();
        slugs.push(rig.view(&app).await.revs.values().next().expect("registered").slug.clone());
    }
    assert!(slugs.iter().all(|slug| *slug == slugs[0]), "{slugs:?}");
}

#[test]
fn what_cant_be_had_is_refused_at_start_and_named() {
    if !has_sandboxes() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("ours");
    let refused = |before: &[&str], args: &[&str]| {
        let rm = env!("CARGO_BIN_EXE_bazooka-rm");
        let words =
            [before, &[rm, "--coordinator", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"], args].concat();
        let state = dir.path().join(format!("rm{}", words.len()));
        let ran =
            Command::new(words[0]).args(&words[1..]).arg("--state").arg(state).output().expect("it is there");
        assert!(!ran.status.success(), "{ran:?}");
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let said = refused(&nobody, &["--build-isolation", "sandbox"]);
    assert!(said.contains("takes root") && said.contains("--build-isolation none"), "{said}");
    let bare = ["unshare", "-m", "sh", "-c", "umount -R /sys/fs/cgroup && exec \"$@\"", "sh"];
    let said = refused(&bare, &[]);
    assert!(said.contains("aren't mounted") && said.contains("--build-without limits"), "{said}");
    let said = refused(&bare, &["--build-without", "limits"]);
    assert!(said.contains("sockets are fenced") && said.contains("--build-without fence"), "{said}");
    let said = refused(&["env"], &["--build-path", "/no/such/toolchain"]);
    assert!(said.contains("/no/such/toolchain: No such file"), "{said}");
}

#[tokio::test]
async fn a_build_that_hangs_is_ended_at_its_limit_and_whatever_forked_away_too() {
    let rig = Rig::told(&["--build-time", "2"]).await;
    let script = "#!/bin/sh\nsetsid sh -c 'trap \"\" TERM; sleep 1000; :' &\necho begun\nsleep 1000\n";
    let (_, folder, commit) = app(&rig, "pages", script).await;
    let pushed = folder.push().await.rejected("the build took longer than 2 seconds and was ended");
    assert!(pushed.remote_lines().contains(&"begun"), "{pushed:?}");
    assert_eq!(pids(&commit), []);
    a_neighbour_builds(&rig).await;
}

#[tokio::test]
async fn daemons_that_a_build_leaves_end_with_it() {
    let script = "#!/usr/bin/python3\nimport os, time\n\
        for n in range(20):\n \
            if os.fork() == 0:\n  \
                os.setsid()\n  \
                if os.fork() == 0:\n   \
                    [os.close(fd) for fd in range(3)]\n   \
                    time.sleep(1000)\n  \
                os._exit(0)\n \
            os.wait()\n";
    // By the supervisor alone, and by the kernel with process 1.
    for kind in ["none", "sandbox"] {
        if kind == "none" || has_sandboxes() {
            let rig = Rig::told(&["--build-isolation", kind]).await;
            let (_, folder, commit) = app(&rig, "pages", script).await;
            folder.push().await.ok();
            assert_eq!(pids(&commit), [], "{kind}");
        }
    }
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_the_rm_stays_small() {
    let rig = Rig::start().await;
    let script = "#!/bin/sh\nyes $(head -c 900 /dev/zero | tr '\\0' x) | head -c 200000000\necho the end\n";
    let pushed = push(&rig, "pages", script).await.ok();
    let lines = pushed.remote_lines();
    assert!(lines.contains(&"(the build has printed 16 MiB; the rest is left out)"), "{}", lines.len());
    assert!(!lines.contains(&"the end"));
    assert!(pushed.stderr.len() < 24 << 20, "{}", pushed.stderr.len());
    let status = fs::read_to_string(format!("/proc/{}/status", rig.pid())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.expect("the kernel says so").parse().expect("a number");
    assert!(peak < 100 << 10, "{peak} kB");
}

#[tokio::test]
async fn a_build_that_takes_too_much_memory_ends_alone_and_is_told_its_limit() {
    if !has_sandboxes() {
        return;
    }
    let rig = Rig::told(&["--build-memory", "67108864"]).await;
    let script = "#!/usr/bin/python3\nkept = [bytearray(1 << 20) for _ in range(500)]\n";
    push(&rig, "pages", script).await.rejected("out of memory: limit 64 MiB");
    a_neighbour_builds(&rig).await;
}

#[tokio::test]
async fn a_fork_bomb_is_held_and_ends() {
    if !has_sandboxes() {
        return;
    }
    let rig = Rig::told(&["--build-processes", "60", "--build-time", "3"]).await;
    // Without its limit it would be the machine's.
    let script = "#!/usr/bin/python3\nimport os\n\
        assert os.getuid() != 0\n\
        while True:\n \
            try: os.fork()\n \
            except OSError: print('held', flush=True)\n";
    let (_, folder, commit) = app(&rig, "pages", script).await;
    let pushed = folder.push();
    let mut most = 0;
    let mut pushed = std::pin::pin!(pushed);
    let pushed = loop {
        tokio::select! {
            pushed = &mut pushed => break pushed,
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => most = most.max(pids(&commit).len()),
        }
    };
    let pushed = pushed.rejected("was ended");
    assert!(pushed.remote_lines().contains(&"held"), "it was to reach its limit");
    assert!((30..=60).contains(&most), "{most}");
    assert_eq!(pids(&commit), []);
    a_neighbour_builds(&rig).await;
}

#[tokio::test]
async fn what_a_slug_must_not_hold_is_refused_and_what_is_of_no_harm_is_made_plain() {
    let rig = Rig::start().await;
    for (name, script, words) in [
        ("pipe", "mkfifo p", "p is a pipe; an app may have regular files, folders and links"),
        (
            "absolute",
            "ln -s /etc/passwd out",
            "out is a symbolic link that leads out of the app: /etc/passwd",
        ),
        (
            "upward",
            "mkdir a; ln -s ../../x a/out",
            "a/out is a symbolic link that leads out of the app: ../../x",
        ),
        ("large", "truncate -s 3G large", "the slug's files are larger than 2000 MB"),
        ("deep", "for n in $(seq 300); do mkdir d && cd d || exit 1; done", "the slug's files are larger"),
    ] {
        push(&rig, name, &format!("#!/bin/sh\n{script}\n")).await.rejected(words);
    }
    let script = "#!/bin/sh\necho x > a; chmod 6755 a; ln a b; ln -s a c\n";
    let (app, folder, _) = app(&rig, "plain", script).await;
    folder.push().await.ok();
    let slug = rig.view(&app).await.revs.values().next().expect("registered").slug.sha256.clone();
    let (status, _) = ask(&rig.url, "GET", &format!("/slugs/{slug}"), "").await.expect("answered");
    assert_eq!(status, 200);
    let file = fs::File::open(rig.state().join(format!("slugs/{slug}"))).expect("it is stored");
    let mut archive = tar::Archive::new(zstd::Decoder::new(file).expect("it is zstd"));
    let entries = archive.entries().expect("it is tar").map(|entry| {
        let entry = entry.expect("readable");
        let path = entry.path().expect("a path").display().to_string();
        (path, entry.header().entry_type(), entry.header().mode().expect("a mode"))
    });
    let found: Vec<_> = entries.filter(|(path, ..)| path.len() == 1).collect();
    let wanted = [
        ("a".to_owned(), tar::EntryType::Regular, 0o755),
        ("b".to_owned(), tar::EntryType::Regular, 0o755),
        ("c".to_owned(), tar::EntryType::Symlink, 0o777),
    ];
    assert_eq!(found, wanted);
    assert_eq!(rig.left_over(), Vec::<std::path::PathBuf>::new());
}
