//! Config vars: who gets to see them, and what goes on while keys come, go and change.

use std::{fs, path::Path, process::Stdio};

use bazooka_tests::{Cluster, ClusterOptions, Endpoint, Ran, Repo, SOON, program, until};
use nix::sys::signal::Signal;
use visor::{
    names::HostName,
    schema::State,
    snapshot::HostView,
    store::{Keys, Op, PRIVATE, Txn},
};

use crate::versioned_app::{pushed, settles_on, version};

/// A value that nothing but a config var has.
const SECRET: &str = "rosebud-7f3a9c";

/// Sets a config var by standard input, so that it stands in no command line.
fn set_secret(repo: &Repo, name: &str) -> Ran {
    let line = repo.dir().join("../line");
    fs::write(&line, format!("{name}={SECRET}\n")).expect("there is room");
    let mut command = repo.command(&program("bazooka").display().to_string(), &["config", "set", "--stdin"]);
    command.stdin(Stdio::from(fs::File::open(&line).expect("it is there")));
    let ran = Ran::of(command);
    fs::remove_file(line).expect("it is there");
    ran
}

/// Every file below a folder that has the secret in it.
fn files_with_secret(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            files_with_secret(&path, found);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if has_secret(&bytes) {
                found.push(path.display().to_string());
            }
        }
    }
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes())
}

/// Nothing of the coordinator, nor any file of the cluster, logs among them, has the secret.
fn nobody_has_it(cluster: &Cluster) {
    let (visor, runtime) = cluster.visor();
    let mut entries = Vec::new();
    for keys in [Keys::Prefix(String::new()), Keys::Prefix(PRIVATE.to_owned())] {
        let page = runtime.block_on(visor.store().range(keys, None));
        entries.extend(page.expect("the coordinator answers").entries);
    }
    for there in ["apps/pages/envs/", "private/wraps/pages/"] {
        assert!(entries.iter().any(|entry| entry.key.starts_with(there)), "{there}");
    }
    for entry in entries {
        assert!(!has_secret(&entry.value) && !has_secret(entry.key.as_bytes()), "{}", entry.key);
    }
    let mut found = Vec::new();
    files_with_secret(&cluster.folder(""), &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_config_var_is_seen_by_its_app_and_by_nobody_else() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 1);
    let set = set_secret(&repo, "GREETING").ok();
    assert!(set.stdout.contains("v2 released (e1)"), "{set:?}");
    settles_on(&cluster, &format!("one {SECRET}\n"));
    assert_eq!(repo.bazooka(&["config", "get", "GREETING"]).ok().stdout, format!("{SECRET}\n"));
    nobody_has_it(&cluster);

    // A crash, a start of another instance, a rev that can't run with it, and the way back.
    let snapshot = cluster.snapshot();
    let pid = snapshot.hosts.values().flat_map(|view| view.status.values()).find_map(|status| status.pid);
    let pid = i32::try_from(pid.expect("one runs")).expect("it is a process id");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    settles_on(&cluster, &format!("one {SECRET}\n"));
    repo.write("server.py", "raise SystemExit('no such engine')\n");
    repo.commit("broken");
    let push = repo.git(&["push", "bazooka", "master"]);
    assert!(push.code != 0 && !push.stderr.contains(SECRET), "{push:?}");
    version(&repo, "two");
    repo.git(&["push", "bazooka", "master"]).ok();
    let back = repo.bazooka(&["rollback", "v1"]).ok();
    settles_on(&cluster, "one -\n");
    let words = ["ps -l", "releases", "why web", "apps"].map(|words| {
        let args: Vec<&str> = words.split(' ').collect();
        repo.bazooka(&args)
    });
    assert!(
        words.iter().chain([&back, &set]).all(|ran| !has_secret(format!("{ran:?}").as_bytes())),
        "{words:?}"
    );
    nobody_has_it(&cluster);
}

#[test]
fn with_every_rm_gone_a_service_starts_on_a_host_that_never_had_its_config_vars() {
    let mut cluster = Cluster::with(ClusterOptions { hosts: 2, ..ClusterOptions::default() });
    cluster.host(2).stop();
    fs::remove_dir_all(cluster.folder("host2")).expect("it was there");
    let repo = pushed(&cluster, 1);
    set_secret(&repo, "GREETING").ok();
    settles_on(&cluster, &format!("one {SECRET}\n"));
    cluster.part("rm").kill();
    fs::remove_dir_all(cluster.folder("rm")).expect("it was there");

    cluster.start_host(2);
    cluster.ready(Endpoint::Host(2));
    repo.bazooka(&["hosts", "drain", "host1"]).ok();
    until("host2 alone runs it", SOON, || {
        let snapshot = cluster.snapshot();
        let running = |(name, view): (&HostName, &HostView)| {
            let running = view.status.values().filter(|status| status.state == State::Running);
            (name.to_string(), running.count())
        };
        let runs: Vec<_> = snapshot.hosts.iter().map(running).filter(|(_, count)| *count > 0).collect();
        if runs == [("host2".to_owned(), 1)] { Ok(()) } else { Err(format!("{runs:?}")) }
    });
    settles_on(&cluster, &format!("one {SECRET}\n"));
    nobody_has_it(&cluster);
}

#[test]
fn whoever_takes_a_free_name_opens_nothing_of_the_app_that_had_it() {
    let cluster = Cluster::start();
    let repo = pushed(&cluster, 1);
    set_secret(&repo, "GREETING").ok();
    let (visor, runtime) = cluster.visor();
    let keys = ["apps/pages/envs/e1", "private/wraps/pages/e1"];
    let read = |key: &str| {
        let page = runtime.block_on(visor.store().range(Keys::One(key.to_owned()), None));
        page.expect("the coordinator answers").entries.remove(0).value
    };
    let kept = keys.map(|key| (key, read(key)));
    repo.bazooka(&["destroy", "--confirm", "pages"]).ok();
    let other = cluster.repo("pages");
    until("the name is free", SOON, || {
        let init = other.bazooka(&["init"]);
        if init.code == 0 { Ok(()) } else { Err(init.stderr) }
    });
    for (key, value) in kept {
        let put = Op::Put { key: key.to_owned(), value, lease: None };
        let txn = Txn { then: vec![put], ..Txn::default() };
        runtime.block_on(visor.store().txn(txn)).expect("the coordinator answers");
    }
    let config = other.bazooka(&["config"]);
    assert!(config.code != 0 && !has_secret(format!("{config:?}").as_bytes()), "{config:?}");
    assert!(config.stderr.contains("belongs to another row or another app"), "{config:?}");
}

#[test]
fn no_rm_is_needed_to_start_and_a_host_that_lacks_a_key_says_so_and_goes_on_once_it_has_one() {
    let mut cluster = Cluster::with(ClusterOptions { hosts: 2, ..ClusterOptions::default() });
    let repo = pushed(&cluster, 2);
    set_secret(&repo, "GREETING").ok();
    cluster.part("rm").kill();
    repo.bazooka(&["scale", "-n", "4", "web"]).ok();
    settles_on(&cluster, &format!("one {SECRET}\n"));
    let config = repo.bazooka(&["config"]).exits(5);
    assert!(config.stderr.contains("no bazooka-rm"), "{config:?}");

    // Both come back with other keys, which no wrap is for: as two new hosts would.
    for host in [1, 2] {
        cluster.host(host).stop();
        fs::remove_file(cluster.folder(&format!("host{host}")).join("seal.key")).expect("it is there");
        cluster.start_host(host);
    }
    until("it is said what is missing", SOON, || {
        let ps = repo.bazooka(&["ps", "-l"]);
        let words = ps.stdout.clone() + &ps.stderr;
        if words.contains("no key to this app's config vars") { Ok(()) } else { Err(words) }
    });
    cluster.start_rm();
    settles_on(&cluster, &format!("one {SECRET}\n"));
    nobody_has_it(&cluster);

    // With an rm there a host's rotation comes to its end.
    let state = cluster.folder("host1");
    cluster.host(1).stop();
    let mut rotate = std::process::Command::new(program("bazooka-pm"));
    rotate.arg("rotate-key").arg("--state").arg(&state);
    Ran::of(rotate).exits(0);
    cluster.start_host(1);
    until("the key before is gone", SOON, || {
        let text = fs::read_to_string(state.join("seal.key")).map_err(|error| error.to_string())?;
        if text.matches("\",\"").count() == 0 { Ok(()) } else { Err("two keys".to_owned()) }
    });
    settles_on(&cluster, &format!("one {SECRET}\n"));
}

#[test]
fn an_rm_that_rotates_its_key_loses_nothing_and_another_rm_gets_what_was_set_before_it() {
    let mut cluster = Cluster::start();
    let repo = pushed(&cluster, 1);
    set_secret(&repo, "GREETING").ok();
    let before = cluster.snapshot().rms.values().find_map(|rm| rm.seal_key.clone()).expect("it has a key");
    cluster.part("rm").kill();
    let mut rotate = std::process::Command::new(program("bazooka-rm"));
    rotate.arg("rotate-key").arg("--state").arg(cluster.folder("rm"));
    Ran::of(rotate).exits(0);
    cluster.start_rm();
    until("everything is wrapped for the new key alone", SOON, || {
        let snapshot = cluster.snapshot();
        let wraps: Vec<_> = snapshot.apps.values().flat_map(|view| view.wraps.values()).collect();
        let row = snapshot.rms.values().next().ok_or("no rm")?;
        let now = row.seal_key.clone().ok_or("no key")?;
        let done = row.retired_seal_keys.is_empty()
            && now != before
            && wraps.iter().all(|wraps| wraps.rms.contains_key(&now) && !wraps.rms.contains_key(&before));
        if done { Ok(()) } else { Err(format!("{row:?}")) }
    });
    assert_eq!(repo.bazooka(&["config", "get", "GREETING"]).ok().stdout, format!("{SECRET}\n"));
    repo.bazooka(&["config", "set", "OTHER=1"]).ok();
    settles_on(&cluster, &format!("one {SECRET}\n"));
    nobody_has_it(&cluster);
}

#[test]
fn builds_see_the_config_vars_that_are_shown_to_them_and_no_line_has_a_value() {
    let cluster = Cluster::start();
    let repo = cluster.repo("pages");
    let build =
        "#!/bin/sh\necho \"the build has API=$API and TOKEN=$TOKEN, HIDDEN=$HIDDEN\"\necho \"$API\" >api\n";
    repo.write("bin/build", build).write("Procfile", "web: python3 -m http.server $PORT\n").commit("one");
    repo.bazooka(&["init"]).ok();
    repo.bazooka(&["config", "set", "--build", "API=https://api.example.org", &format!("TOKEN={SECRET}")])
        .ok();
    let set = repo.bazooka(&["config", "set", "HIDDEN=unseen"]).ok();
    assert!(!set.stderr.contains("builds see this"), "{set:?}");
    let push = repo.git(&["push", "bazooka", "master"]).ok();
    let lines = push.remote_lines();
    let line = "the build has API=[API] and TOKEN=[TOKEN], HIDDEN=".to_owned();
    assert!(lines.contains(&line), "{lines:#?}");
    let line = "1 config var is not seen by builds; bazooka config set --build shows one".to_owned();
    assert!(lines.contains(&line), "{lines:#?}");
    let listed = repo.bazooka(&["config"]).ok().stdout;
    assert!(listed.contains("API") && listed.contains("yes"), "{listed}");
    repo.bazooka(&["config", "unset", "API"]).ok();
    repo.commit("two");
    let push = repo.git(&["push", "bazooka", "master"]).ok();
    let line = "the build has API= and TOKEN=[TOKEN], HIDDEN=".to_owned();
    assert!(push.remote_lines().contains(&line), "{push:#?}");
}
