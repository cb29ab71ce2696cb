//! A coordinator that is full, and the way out once nothing can be written.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bazooka_tests::{Cluster, ClusterOptions, Ran, Repo, SOON, shop, until};
use jiff::Timestamp;
use visor::{
    keys::Key,
    names::{AppName, EnvRef},
    schema::{Env, Extra},
    seal::Sealed,
    store::StoreError,
    testing::Etcd,
    visor::{Change, VisorError},
};

/// The bytes of the config vars that are written past the command line: as many as fit.
const LARGE: usize = 1_400 << 10;

fn filler() -> AppName {
    "filler".parse().expect("valid")
}

/// Config vars without a release, as one of the app's people can write them straight to the coordinator.
fn written_past(cluster: &Cluster, n: u32) -> Result<(), VisorError> {
    let sealed = Some(Sealed { cipher: "none".into(), payload: "x".repeat(LARGE), form: 2 });
    let (links, by) = (Default::default(), "eve".to_owned());
    let env = Env { sealed, vars: None, links, by, at: Timestamp::now(), extra: Extra::new() };
    let (visor, runtime) = cluster.visor();
    runtime.block_on(visor.commit(Change::new().put(&Key::Env(filler(), EnvRef(n)), &env))).map(drop)
}

/// The commands of a section of docs/disaster.md: its lines that begin with a dollar.
fn commands(heading: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/disaster.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let section =
        page.split("\n## ").find(|section| section.starts_with(heading)).expect("there is such a section");
    section.lines().filter_map(|line| line.trim_start().strip_prefix("$ ")).map(str::to_owned).collect()
}

#[test]
fn a_full_coordinator_is_brought_back_by_the_page() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let etcd = runtime.block_on(Etcd::start_with(&["--quota-backend-bytes=25165824"]));
    let mut cluster = Cluster::with(ClusterOptions {
        coordinator: Some(etcd.endpoint().to_owned()),
        ..ClusterOptions::default()
    });
    let [repo, other] = ["shop", "filler"].map(|name| cluster.repo(name));
    shop::version(&repo, "v1");
    repo.bazooka(&["init"]).ok();
    other.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    cluster.answers("shop");
    // Nobody prunes.
    cluster.part("rm").kill();
    let full = (1..60).find_map(|n| written_past(&cluster, n).err()).expect("it fills up");
    let VisorError::Store(StoreError::Refused { detail }) = &full else { panic!("{full}") };
    assert!(detail.contains("database space exceeded"), "{detail}");
    let refused = repo.bazooka(&["scale", "-n", "2", "web"]);
    assert!(refused.code != 0 && refused.stderr.contains("space exceeded"), "{refused:?}");
    cluster.answers("shop");
    let checked = repo.bazooka(&["check"]);
    assert!(checked.code == 1 && checked.stdout.contains("etcd-full"), "{checked:?}");

    // A bazooka-rm may prune although nothing can be written.
    cluster.start_rm();
    until("it prunes", SOON, || {
        let there = cluster.snapshot().apps[&filler()].envs.len();
        if there == 1 { Ok(()) } else { Err(format!("{there} are left")) }
    });
    let steps = commands("etcd is full");
    for word in ["compact", "defrag", "disarm"] {
        assert!(steps.iter().any(|step| step.contains(word)), "{word} in {steps:?}");
    }
    let mut envs = cluster.client_envs();
    envs.insert("ETCDCTL_ENDPOINTS".into(), etcd.endpoint().to_owned());
    envs.insert("ETCDCTL_API".into(), "3".into());
    let etcdctl: Vec<String> = steps.into_iter().filter(|step| step.contains("etcdctl")).collect();
    let mut shell = Command::new("sh");
    shell.args(["-ec", &etcdctl.join("\n")]).envs(&envs);
    let ran = Ran::of(shell).ok();
    eprintln!("{}", ran.stdout);

    until("it is written to again", SOON, || {
        let scaled = repo.bazooka(&["scale", "-n", "2", "web"]);
        if scaled.code == 0 { Ok(()) } else { Err(format!("{scaled:?}")) }
    });
    until("all is well", Duration::from_secs(60), || {
        let checked = repo.bazooka(&["check"]);
        if checked.code == 0 { Ok(()) } else { Err(format!("{checked:?}")) }
    });
    until("config vars can be set", SOON, || {
        // The rm registers itself again, which it could not before.
        let set = repo.bazooka(&["config", "set", "AFTER=all"]);
        if set.code == 0 { Ok(()) } else { Err(format!("{set:?}")) }
    });
}

/// Sets the filler's config vars again and again, each time all of them anew. Returns how often that was done by `end`.
fn fill(repo: &Repo, writer: u32, end: Instant) -> u32 {
    let mut done = 0;
    while Instant::now() < end {
        let vars = (0..10).map(|n| format!("VAR{n}={writer}-{done}-{}", "x".repeat(99 << 10)));
        let words: Vec<String> = ["config".to_owned(), "set".to_owned()].into_iter().chain(vars).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let program = bazooka_tests::program("bazooka").display().to_string();
        let mut command = repo.command(&program, &words);
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
        let ended = loop {
            match child.try_wait().expect("it is this test's child") {
                Some(status) => break status.success(),
                // The app waits until older ones are pruned.
                None if Instant::now() > end => {
                    child.kill().expect("it is this test's child");
                    break child.wait().expect("it is this test's child").success();
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        done += u32::from(ended);
    }
    done
}

#[test]
fn an_app_whose_config_vars_change_fast_fills_nothing() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let etcd = runtime.block_on(Etcd::start_with(&["--quota-backend-bytes=33554432"]));
    let cluster = Cluster::with(ClusterOptions {
        coordinator: Some(etcd.endpoint().to_owned()),
        ..ClusterOptions::default()
    });
    let [repo, other] = ["shop", "filler"].map(|name| cluster.repo(name));
    shop::version(&repo, "v1");
    repo.bazooka(&["init"]).ok();
    other.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let end = Instant::now() + Duration::from_secs(45);
    let done = std::thread::scope(|scope| {
        let fillers = [1, 2].map(|writer| {
            let other = &other;
            scope.spawn(move || fill(other, writer, end))
        });
        // Others change what they like meanwhile.
        let mut n = 0;
        while Instant::now() < end {
            n += 1;
            repo.bazooka(&["config", "set", &format!("ROUND={n}")]).ok();
        }
        eprintln!("the other app was released {n} times");
        fillers.map(|filler| filler.join().expect("it does not panic"))
    });
    // Sixteen MiB are some twelve of them.
    let done: u32 = done.iter().sum();
    eprintln!("config vars were set {done} times");
    assert!(done >= 12, "what fits is taken: {done}");
    let checked = repo.bazooka(&["check"]).stdout;
    assert!(!checked.contains("etcd-full"), "{checked}");
    shop::version(&repo, "v2");
    repo.git(&["push", "bazooka", "master"]).ok();
}
