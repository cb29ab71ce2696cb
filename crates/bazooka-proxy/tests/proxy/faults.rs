//! What breaks around the proxy, and what must be seen then.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use visor::{
    schema::{Desired, State},
    testing::{Etcd, free_port, stand_still, until},
};

use crate::{
    http,
    load::{Load, Local},
    rig::{Options, PATIENCE, Rig},
};

fn kill_now(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("it can be killed");
}

/// Waits until another HAProxy answers than the one that was killed.
async fn wait_other_master(rig: &Rig, before: u32) {
    until("HAProxy is back", Duration::from_secs(5), async || match rig.cli().processes().await {
        Ok(processes) if processes.master != before && processes.worker.is_some() => Ok(()),
        other => Err(format!("{other:?}\n{}", rig.log())),
    })
    .await;
}

/// HAProxy in an envelope that runs a line of shell first.
pub fn wrapped_haproxy(folder: &std::path::Path, first: &str) -> PathBuf {
    let program = folder.join("wrapped");
    let script = format!("#!/bin/sh\n{first}\nexec haproxy \"$@\"\n");
    std::fs::write(&program, script).expect("it can be written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it can be set");
    program
}

/// HAProxy in an envelope that refuses every configuration while a file is there.
fn stubborn_haproxy(folder: &std::path::Path) -> (PathBuf, PathBuf) {
    let refuse = folder.join("refuse");
    let first = format!(
        "if [ \"$1\" = -c ] && [ -e '{}' ]; then echo '[ALERT] (1) : config : no' >&2; exit 1; fi",
        refuse.display()
    );
    (wrapped_haproxy(folder, &first), refuse)
}

#[tokio::test]
async fn a_killed_haproxy_is_back_with_the_right_members() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Local::start(Some("one")).await, Local::start(Some("two")).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    // The second is known to the worker alone until the file is written: it must be in the file too.
    rig.applied(rig.running(("rocket", "web"), &[(2, two.address)]).await).await;
    rig.applied(rig.state(&[1], State::Backoff).await).await;
    for which in ["master", "worker"] {
        let before = rig.processes().await;
        kill_now(if which == "master" { before.master } else { before.worker.expect("there is one") });
        wait_other_master(&rig, before.master).await;
        let back = rig.ask("rocket.localhost").await.expect("it answers");
        assert_eq!(back.body, "two", "after its {which} was killed");
    }
    assert_eq!(rig.metric("bazooka_proxy_haproxy_restarts_total").await, 2.0);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    assert_eq!(rig.spread("rocket.localhost", 10).await.len(), 2);
}

#[tokio::test]
async fn a_haproxy_that_answers_nothing_any_more_is_replaced() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Local::start(Some("one")).await, Local::start(Some("two")).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let before = rig.processes().await;
    for pid in [Some(before.master), before.worker].into_iter().flatten() {
        stand_still(Pid::from_raw(i32::try_from(pid).expect("a pid")));
    }
    // It is noticed by what it doesn't do.
    rig.running(("rocket", "web"), &[(2, two.address)]).await;
    until("another HAProxy answers", 2 * PATIENCE, async || match rig.cli().processes().await {
        Ok(processes) if processes.master != before.master && processes.worker.is_some() => Ok(()),
        other => Err(format!("{other:?}\n{}", rig.log())),
    })
    .await;
    rig.wait_answer("rocket.localhost", "two").await;
}

#[tokio::test]
async fn traffic_goes_on_without_bazooka_proxy_which_finds_haproxy_again() {
    let mut rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Local::start(Some("one")).await, Local::start(Some("two")).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let load = Load::start(rig.public, "rocket.localhost", 4);
    load.more(50).await;
    let before = rig.processes().await;
    rig.end_proxy(Signal::SIGKILL);
    load.more(50).await;
    // What happens meanwhile is done when it is back.
    rig.running(("rocket", "web"), &[(2, two.address)]).await;
    let drained = rig.desire(("rocket", "web"), &[1], Desired::Drain).await;
    load.more(50).await;
    rig.start_proxy();
    rig.applied(drained).await;
    // A request that was under way keeps it busy for that long.
    rig.wait_busy(&[]).await;
    rig.wait_ready().await;
    assert_eq!(rig.processes().await, before, "the same processes, no reload");
    assert_eq!(rig.spread("rocket.localhost", 5).await.into_keys().collect::<Vec<_>>(), ["two"]);
    rig.end_proxy(Signal::SIGTERM);
    assert!(rig.row().await.is_some(), "a proxy that may come back keeps its row until its lease ends");
    load.more(50).await;
    let (answered, failed) = load.end().await;
    assert!(failed.is_empty(), "{} of {answered} failed: {:?}", failed.len(), failed.first());
}

#[tokio::test]
async fn a_proxy_that_is_to_stop_takes_haproxy_and_its_row_with_it() {
    let mut rig = Rig::prepare(Options { on_exit: "stop", ..Options::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    rig.service("rocket", "web").await;
    let before = rig.processes().await;
    rig.end_proxy(Signal::SIGTERM);
    for pid in before.worker.into_iter().chain([before.master]) {
        let gone = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty();
        assert!(gone, "process {pid} is there still");
    }
    assert!(rig.row().await.is_none());
    assert!(TcpListener::bind(rig.public).is_ok());
}

#[tokio::test]
async fn a_second_proxy_in_the_same_folder_is_refused() {
    let rig = Rig::start().await;
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_bazooka-proxy"));
    second.arg("--run-haproxy").arg("--state").arg(&rig.folder);
    let output = second.output().expect("it runs");
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("another bazooka-proxy uses"), "{words}");
}

#[tokio::test]
async fn a_haproxy_that_a_unit_of_its_own_runs_is_driven_too() {
    let mut rig = Rig::prepare(Options { unit: true, ..Options::default() }).await;
    rig.start_proxy();
    until("there is a file for the unit to start with", PATIENCE, async || {
        if rig.folder.join("haproxy.cfg").exists() { Ok(()) } else { Err(rig.log()) }
    })
    .await;
    rig.start_unit();
    rig.wait_ready().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Local::start(Some("one")).await, Local::start(Some("two")).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    rig.wait_answer("rocket.localhost", "one").await;
    // The unit starts it again, while something changes.
    let killed = rig.processes().await.master;
    kill_now(killed);
    rig.running(("rocket", "web"), &[(2, two.address)]).await;
    let drained = rig.desire(("rocket", "web"), &[1], Desired::Drain).await;
    rig.start_unit();
    wait_other_master(&rig, killed).await;
    rig.applied(drained).await;
    rig.wait_answer("rocket.localhost", "two").await;
    rig.end_proxy(Signal::SIGTERM);
    assert_eq!(rig.ask("rocket.localhost").await.expect("it answers").body, "two");
}

#[tokio::test]
async fn a_port_that_an_outsider_holds_costs_that_port_alone_until_it_is_free() {
    let rig = Rig::start().await;
    rig.service("before", "web").await;
    let local = Local::start(Some("x")).await;
    rig.applied(rig.running(("before", "web"), &[(1, local.address)]).await).await;
    let load = Load::start(rig.public, "before.localhost", 4);
    let outsider = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = outsider.local_addr().expect("it listens");
    rig.service_at("rocket", "web", taken.port()).await;
    rig.service("after", "web").await;
    let row = rig.applied(rig.running(("rocket", "web"), &[(2, local.address)]).await).await;
    assert_eq!(row.refused["rocket/web"], format!("port {} is taken", taken.port()));
    assert_eq!(row.refused.len(), 1, "{row:?}");
    // By its name it is served all the same, and so are the others.
    rig.wait_answer("rocket.localhost", "x").await;
    assert_eq!(rig.ask("after.localhost").await.expect("it answers").status, 503);
    drop(outsider);
    until("the port is served", PATIENCE, async || {
        let answer = http::get(taken, "rocket.localhost", "/").await?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    until("nothing is refused any more", PATIENCE, async || {
        let row = rig.row().await.ok_or("no row")?;
        if row.refused.is_empty() { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await;
    let (answered, failed) = load.end().await;
    assert!(failed.is_empty(), "{} of {answered} failed: {:?}", failed.len(), failed.first());
}

#[tokio::test]
async fn a_public_port_that_an_outsider_holds_is_told_and_taken_once_it_is_free() {
    let mut rig = Rig::prepare(Options::default()).await;
    let outsider = TcpListener::bind(rig.public).expect("it was free");
    rig.start_proxy();
    let port = rig.service("rocket", "web").await;
    let local = Local::start(Some("x")).await;
    let row = rig.applied(rig.running(("rocket", "web"), &[(1, local.address)]).await).await;
    assert_eq!(row.refused["public"], format!("port {} is taken", rig.public.port()));
    let own = SocketAddr::new(rig.public.ip(), port);
    assert_eq!(http::get(own, "rocket", "/").await.expect("it answers").body, "x");
    assert_eq!(rig.endpoint("/readyz").await.expect("it answers").status, 503);
    drop(outsider);
    rig.wait_ready().await;
    rig.wait_answer("rocket.localhost", "x").await;
}

#[tokio::test]
async fn a_configuration_that_haproxy_refuses_leaves_the_last_one_in_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let (program, refuse) = stubborn_haproxy(folder.path());
    let mut rig = Rig::prepare(Options { haproxy: program, ..Options::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Local::start(Some("one")).await, Local::start(Some("two")).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let worker = rig.processes().await.worker;
    std::fs::write(&refuse, "").expect("it can be written");
    let revision = rig.service_at("pocket", "web", free_port()).await;
    let row = rig.applied(revision).await;
    assert!(row.refused["pocket/web"].contains("HAProxy refuses the configuration"), "{row:?}");
    assert_eq!(rig.processes().await.worker, worker);
    assert_eq!(rig.metric("bazooka_proxy_refused_reloads_total").await, 1.0);
    assert!(rig.log().contains("the new configuration is not in force"), "{}", rig.log());
    // What needs no reload goes on, and lasts.
    rig.running(("rocket", "web"), &[(2, two.address)]).await;
    rig.applied(rig.desire(("rocket", "web"), &[1], Desired::Drain).await).await;
    rig.wait_answer("rocket.localhost", "two").await;
    until("the file has the members", PATIENCE, async || {
        let text =
            std::fs::read_to_string(rig.folder.join("haproxy.cfg")).map_err(|error| error.to_string())?;
        let good = text.contains("server i2 ") && !text.contains("server i1 ") && !text.contains("pocket");
        if good { Ok(()) } else { Err(text) }
    })
    .await;
    std::fs::remove_file(&refuse).expect("it is there");
    rig.service("locket", "web").await;
    until("both are served", PATIENCE, async || {
        for host in ["pocket.localhost", "locket.localhost"] {
            let answer = rig.ask(host).await?;
            if answer.status != 503 {
                return Err(format!("{host}: {answer:?}"));
            }
        }
        Ok(())
    })
    .await;
    until("nothing is refused any more", PATIENCE, async || {
        let row = rig.row().await.ok_or("no row")?;
        if row.refused.is_empty() { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await;
}

#[tokio::test]
async fn without_the_coordinator_the_last_configuration_stays_whatever_happens_to_haproxy() {
    let mut etcd = Etcd::start().await;
    let options = Options { endpoint: Some(etcd.endpoint().to_owned()), ..Options::default() };
    let mut rig = Rig::prepare(options).await;
    rig.start_proxy();
    rig.wait_ready().await;
    rig.service("rocket", "web").await;
    let local = Local::start(Some("x")).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, local.address)]).await).await;
    etcd.kill();
    let back = async |what: &str| {
        until(what, Duration::from_secs(10), async || {
            let answer = rig.ask("rocket.localhost").await?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}\n{}", rig.log())) }
        })
        .await;
    };
    back("traffic flows without etcd").await;
    // Somebody writes nonsense where HAProxy would read it, and then it is killed.
    std::fs::write(rig.folder.join("haproxy.cfg"), "nonsense\n").expect("it can be written");
    let killed = rig.processes().await.master;
    kill_now(killed);
    wait_other_master(&rig, killed).await;
    back("the same is served without etcd").await;
    // Even when nobody remembers what was wanted.
    rig.end_proxy(Signal::SIGKILL);
    std::fs::write(rig.folder.join("haproxy.cfg"), "nonsense\n").expect("it can be written");
    let killed = rig.processes().await.master;
    kill_now(killed);
    rig.start_proxy();
    wait_other_master(&rig, killed).await;
    until("HAProxy runs the last good configuration", Duration::from_secs(10), async || {
        let answer = rig.ask("rocket.localhost").await?;
        let known = answer.body.contains("rocket/web") || answer.status == 200;
        if known { Ok(()) } else { Err(format!("{answer:?}\n{}", rig.log())) }
    })
    .await;
    etcd.restart().await;
    let other = Local::start(Some("y")).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, other.address)]).await).await;
    rig.wait_answer("rocket.localhost", "y").await;
}

/// Changes the routes again and again while connections are held, and looks at HAProxy's workers.
async fn many_changes(changes: usize) {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let locals = [Local::start(Some("x")).await, Local::start(Some("x")).await];
    rig.applied(rig.running(("rocket", "web"), &[(0, locals[0].address)]).await).await;
    let load = Load::start(rig.public, "rocket.localhost", 2);
    let mut held = Vec::new();
    for change in 1..=changes {
        // A connection that has had an answer and is kept.
        let mut connection = http::Connection::open(rig.public).await.expect("it is open");
        connection.request("GET", "rocket.localhost", "/", "", "").await.expect("it answers");
        held.push(connection);
        let port = free_port();
        let id = u64::try_from(change).expect("small");
        rig.running(("rocket", "web"), &[(id, locals[change % 2].address)]).await;
        let revision = rig.service_at("other", "web", port).await;
        rig.applied(revision).await;
        rig.desire(("rocket", "web"), &[id - 1], Desired::Drain).await;
        rig.forget(&[id - 1]).await;
        let processes = rig.processes().await;
        let workers = processes.old.len() + usize::from(processes.worker.is_some());
        assert!(workers <= 3, "after {change} changes: {processes:?}");
        if held.len() > 50 {
            held.remove(0);
        }
    }
    assert!(rig.metric("bazooka_proxy_reloads_total").await >= 1.0);
    let (answered, failed) = load.end().await;
    // A kept connection whose worker had to make room is closed between two requests, as any server may do.
    let lost: Vec<&String> = failed.iter().filter(|error| !error.starts_with("cut after \"\"")).collect();
    assert!(lost.is_empty(), "{} of {answered} failed: {:?}", lost.len(), lost.first());
}

#[tokio::test]
async fn there_are_three_workers_at_most_however_often_the_routes_change() {
    many_changes(12).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn there_are_three_workers_at_most_after_a_thousand_changes() {
    many_changes(1000).await;
}
