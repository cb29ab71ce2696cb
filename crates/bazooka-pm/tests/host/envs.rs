//! Config vars on a host: sealed until the moment of a start, and in the open in the instance's environment alone.

use std::{fs, path::Path, process::Command};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use visor::{
    keys::Key,
    links::Link,
    names::{AppName, EnvRef, HostName},
    schema::{Extra, Fault, Handed, Host, State, WrapRequest},
    seal::{Keyring, Os, SecretKey},
    snapshot::Versioned,
    testing::until,
    visor::Change,
};

use crate::world::{SERVER, SOON, World, ask, signal};

const SECRET: &str = "rosebud-7f3a9c";

/// Every file of a folder that has the secret in it.
fn files_with_secret(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_with_secret(&path));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(14).any(|part| part == SECRET.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn has_it(world: &World, id: visor::names::InstanceId) -> bool {
    let environ = |pid| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let var = format!("ANSWER=200 {SECRET}");
    let is_in = |environ: Vec<u8>| environ.split(|byte| *byte == 0).any(|own| own == var.as_bytes());
    world.processes(id).into_iter().any(|pid| is_in(environ(pid)))
}

#[tokio::test]
async fn what_is_set_reaches_the_instance_and_no_disk_log_or_other_process() {
    let mut world = World::start().await;
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("ANSWER", &format!("200 {SECRET}"))]).await;
    let id = world.place(web).await;
    let status = world.until_state(id, State::Running).await;
    assert!(has_it(&world, id));
    signal(status.pid.expect("it runs") as i32, Signal::SIGKILL);
    world.until_status(id, "runs again", |s| s.state == State::Running && s.restarts == 1).await;
    assert!(has_it(&world, id));
    for shim in world.shims() {
        let shown = fs::read(format!("/proc/{shim}/environ")).expect("it is ours");
        assert!(shown.is_empty(), "a shim's own environment is empty");
    }
    world.kill_pm();
    assert_eq!(files_with_secret(&world.state()), Vec::<String>::new());
    assert!(!world.pm_log().contains(SECRET));
    world.start_pm();
    world.registered().await;
}

#[tokio::test]
async fn an_env_that_is_for_another_key_is_waited_for_and_told() {
    let world = World::start().await;
    let to = world.env(2, &[]).await;
    assert_eq!(to, EnvRef(2));
    let mut web = world.web(SERVER);
    web.env = EnvRef(1);
    world.hand(EnvRef(1), &SecretKey::fresh(&mut Os).public(), &[("ANSWER", "200 no")]).await;
    let id = world.place(web).await;
    let status = world
        .until_status(id, "says why", |status| {
            status.cause.as_ref().is_some_and(|cause| cause.contains("has no key"))
        })
        .await;
    assert_eq!(status.state, State::Claimed);
    assert_eq!(
        status.cause.as_deref(),
        Some(
            "host1 has no key to this app's config vars (e1) yet; a bazooka-rm adds it, or a host that has one"
        )
    );
    world.env(1, &[("ANSWER", "204 No Content")]).await;
    let status = world.until_state(id, State::Running).await;
    assert_eq!(ask(status.port.expect("it has one")).expect("it answers"), "HTTP/1.1 204 No Content");
}

#[tokio::test]
async fn an_env_that_version_1_left_in_plain_text_is_read_and_kept_sealed() {
    let mut world = World::start().await;
    let mut web = world.web(SERVER);
    web.env = world.plain_env(1, &[("ANSWER", &format!("200 {SECRET}"))]).await;
    let id = world.place(web).await;
    world.until_state(id, State::Running).await;
    assert!(has_it(&world, id));
    world.kill_pm();
    assert_eq!(files_with_secret(&world.state()), Vec::<String>::new());
    world.start_pm();
    world.registered().await;
}

#[tokio::test]
async fn a_rotated_key_opens_what_was_there_before_it_and_then_stands_alone() {
    let mut world = World::start().await;
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("ANSWER", &format!("200 {SECRET}"))]).await;
    let id = world.place(web).await;
    let before = world.until_state(id, State::Running).await;
    let row = world.registered().await;
    world.kill_pm();
    let pm = env!("CARGO_BIN_EXE_bazooka-pm");
    let rotated = Command::new(pm).arg("rotate-key").arg("--state").arg(world.state()).status();
    assert!(rotated.expect("it can be started").success());
    world.start_pm();
    let now: Versioned<Host> = until("it is registered with another key", SOON, || async {
        let found: Option<Versioned<Host>> =
            world.visor.get(&Key::Host(world.host.clone())).await.map_err(|error| error.to_string())?;
        found.filter(|now| now.seal_key != row.seal_key).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    // What it had is its own still, though nothing was handed to it anew.
    signal(before.pid.expect("it runs") as i32, Signal::SIGKILL);
    world.until_status(id, "runs again", |s| s.state == State::Running && s.restarts == 1).await;
    assert!(has_it(&world, id));
    let keys = || fs::read_to_string(world.state().join("seal.key")).expect("it is there");
    assert_eq!(keys().matches("\",\"").count(), 1, "two keys, as long as what is handed needs the first");
    let to = now.seal_key.clone().expect("it has one");
    world.hand(EnvRef(1), &to, &[("ANSWER", "200 OK")]).await;
    until("the first is gone", SOON, || async {
        if keys().matches("\",\"").count() == 0 { Ok(()) } else { Err("two keys".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn what_is_linked_reaches_the_instance_and_no_config_var_stands_above_it() {
    let mut world = World::without_pm().await;
    world.pm_args = ["--services", "10.0.0.7"].map(str::to_owned).to_vec();
    world.start_pm();
    let link: Link = "api:web".parse().expect("a link");
    world.links.insert(link.clone());
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("BAZOOKA_SERVICE_API_WEB", "elsewhere:1")]).await;
    web.links = [(link, 8501)].into();
    let id = world.place(web.clone()).await;
    let status = world.until_state(id, State::Running).await;
    let said = |pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let vars = String::from_utf8_lossy(&environ).into_owned();
        vars.split('\0')
            .filter_map(|var| var.strip_prefix("BAZOOKA_SERVICE_"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(said(status.pid.expect("it runs")), ["API_WEB=10.0.0.7:8501"]);

    // Placed by a converger that knows no links: it isn't started without what it calls.
    let unplaced = world.place(visor::schema::Assignment { links: Default::default(), ..web }).await;
    let status = world.until_state(unplaced, State::Failed).await;
    assert_eq!(status.fault, Some(Fault::Host));
    assert!(
        status.cause.as_ref().is_some_and(|cause| cause.contains("without that service's port")),
        "{status:?}"
    );

    // It runs on under a bazooka-pm that wasn't told; once it crashes it goes where it can be told.
    world.kill_pm();
    world.pm_args.clear();
    world.start_pm();
    let pid = world.until_state(id, State::Running).await.pid.expect("it runs");
    assert_eq!(said(pid), ["API_WEB=10.0.0.7:8501"]);
    signal(pid as i32, Signal::SIGKILL);
    let status = world.until_state(id, State::Failed).await;
    assert_eq!(status.fault, Some(Fault::Host));
    assert!(
        status.cause.as_ref().is_some_and(|cause| cause.contains("has no --services address")),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_host_that_has_an_env_wraps_its_key_for_another_host_and_for_no_env_that_it_lacks() {
    let world = World::start().await;
    let env = world.env(1, &[("ANSWER", SECRET)]).await;
    let other = Keyring::of(SecretKey::fresh(&mut Os));
    let (app, to) = ("rocket".parse().expect("valid"), "host9".parse().expect("valid"));
    let key = |env| Key::WrapRequest(world.host.clone(), AppName::clone(&app), env, HostName::clone(&to));
    let asked =
        WrapRequest { to: other.current(), since: Timestamp::UNIX_EPOCH, key: None, extra: Extra::new() };
    for env in [EnvRef(9), env] {
        world.visor.commit(Change::new().put(&key(env), &asked)).await.expect("etcd answers");
    }
    let answer = until("it is answered", SOON, async || {
        let row: Option<Versioned<WrapRequest>> =
            world.visor.get(&key(env)).await.map_err(|error| error.to_string())?;
        row.and_then(|row| row.value.key).ok_or_else(|| "no answer".to_owned())
    })
    .await;
    let row: Versioned<Handed> = world
        .visor
        .get(&Key::Handed(world.host.clone(), app.clone(), env))
        .await
        .expect("etcd answers")
        .expect("it was handed");
    let handed = Handed { to: other.current(), key: answer, ..row.value };
    let vars = other.open(&app, env, &handed).expect("it is wrapped for that host");
    assert_eq!(vars.as_map()["ANSWER"], SECRET);
    let open: Versioned<WrapRequest> =
        world.visor.get(&key(EnvRef(9))).await.expect("etcd answers").expect("it is there");
    assert_eq!(open.value.key, None, "the host has no such env");
}
