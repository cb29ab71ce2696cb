//! What bazooka-pm's own end does to its instances: nothing.

use std::time::{Duration, Instant};

use nix::{sys::signal::Signal, unistd::Pid};
use visor::{
    schema::{Desired, State},
    testing::{stand_still, until},
};

use crate::world::{SERVER, SOON, World, ask, has_sandboxes, is_alive, signal};

#[tokio::test]
async fn a_killed_pm_finds_its_instances_as_it_left_them() {
    let mut world = World::start().await;
    let ids = world
        .place_all(vec![
            world.web(SERVER),
            world.job("exec sleep 1000"),
            world.web(SERVER),
            world.job("exit 1"),
        ])
        .await;
    let mut before = Vec::new();
    for id in &ids[..3] {
        before.push(world.until_state(*id, State::Running).await);
    }
    let waiting = world.until_state(ids[3], State::Backoff).await;
    world.kill_pm();
    assert!(before.iter().all(|status| is_alive(status.pid.expect("it runs"))));
    // One ends while nobody looks.
    signal(before[2].pid.expect("it runs") as i32, Signal::SIGKILL);
    world.until_no_process(ids[2]).await;

    let begun = Instant::now();
    world.start_pm();
    let again = world
        .until_status(ids[2], "runs again", |status| status.state == State::Running && status.restarts == 1)
        .await;
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
    assert_eq!(again.port, before[2].port);
    for (id, before) in ids[..2].iter().zip(&before) {
        let after = world.status(*id).await.expect("it was said");
        assert_eq!(
            (after.pid, after.started_at, after.port, after.restarts, after.state),
            (before.pid, before.started_at, before.port, before.restarts, before.state)
        );
    }
    let after = world.until_state(ids[3], State::Backoff).await;
    assert_eq!((after.restarts, after.next_start_at), (waiting.restarts, waiting.next_start_at));
    // And it has them in hand.
    world.want(ids[0], Desired::Stop).await;
    world.until_state(ids[0], State::Exited).await;
    world.until_no_process(ids[0]).await;
}

#[tokio::test]
async fn a_pm_that_dies_at_any_step_of_a_start_leaves_no_orphan_and_starts_nothing_twice() {
    for step in ["folders", "file", "locked", "spec", "spawned"] {
        let mut world = World::without_pm().await;
        world.pm_envs.insert("BAZOOKA_PM_DIE_AT".into(), step.into());
        world.start_pm();
        let id = world.place(world.web(SERVER)).await;
        world.pm_died().await;
        world.pm_envs.clear();
        world.start_pm();
        let status = world.until_state(id, State::Running).await;
        let pid = status.pid.expect("it runs") as i32;
        until("there is exactly one", SOON, || async {
            let (processes, shims) = (world.processes(id), world.shims());
            if processes == [pid] && shims.len() == 1 {
                Ok(())
            } else {
                Err(format!("{processes:?} {shims:?}"))
            }
        })
        .await;
        assert_eq!(ask(status.port.expect("it has a port")).expect("it answers"), "HTTP/1.1 200 OK");
        assert_eq!(status.restarts, 0, "after {step}: {status:#?}");
    }
}

#[tokio::test]
async fn a_killed_shim_takes_its_instance_with_it_and_another_is_started() {
    let sandbox = has_sandboxes().then_some("sandbox");
    for isolation in sandbox.into_iter().chain(["uid", "none"]) {
        let mut world = World::without_pm().await;
        world.pm_args = vec!["--isolation".into(), isolation.into()];
        world.start_pm();
        let id = world.place(world.job("(setsid sleep 1000 &); sleep 1000 & exec sleep 1000")).await;
        world
            .until_status(id, "runs", |status| {
                status.state == State::Running && world.processes(id).len() == 3
            })
            .await;
        let before = world.processes(id);
        let shims = world.shims();
        assert_eq!(shims.len(), 1);
        signal(shims[0], Signal::SIGKILL);
        let status = world
            .until_status(id, "was started again", |status| {
                status.restarts == 1 && status.state == State::Running
            })
            .await;
        assert!(
            status.story.iter().any(|moment| moment.what.contains("its shim, which was killed")),
            "{:#?}",
            status.story
        );
        assert!(before.iter().all(|pid| !is_alive(*pid as u32)), "{isolation}: {before:?}");
    }
}

#[tokio::test]
async fn a_frozen_shim_is_killed_when_its_instance_is_to_end() {
    let world = World::start().await;
    let mut job = world.job("exec sleep 1000");
    job.run.stop_timeout_ms = Some(100);
    let id = world.place(job).await;
    world.until_state(id, State::Running).await;
    stand_still(Pid::from_raw(world.shims()[0]));
    world.want(id, Desired::Stop).await;
    world.until_state(id, State::Exited).await;
    world.until_no_process(id).await;
}

#[tokio::test]
async fn an_instance_that_is_no_longer_assigned_is_ended() {
    let mut world = World::start().await;
    let ids = world.place_all(vec![world.web(SERVER), world.web(SERVER)]).await;
    for id in &ids {
        world.until_state(*id, State::Running).await;
    }
    world.unassign(ids[0]).await;
    world.until_no_process(ids[0]).await;
    // So is one that was taken away while bazooka-pm was not there.
    world.kill_pm();
    world.unassign(ids[1]).await;
    world.start_pm();
    world.until_no_process(ids[1]).await;
}

#[tokio::test]
async fn instances_end_with_their_pm_if_it_was_told_so_and_run_on_if_not() {
    let mut world = World::without_pm().await;
    world.on_exit = "keep";
    world.start_pm();
    let id = world.place(world.web(SERVER)).await;
    let before = world.until_state(id, State::Running).await;
    world.stop_pm();
    assert!(is_alive(before.pid.expect("it runs")));
    world.on_exit = "stop";
    world.start_pm();
    world.registered().await;
    // The row may still be the one of before.
    until("it has them and may speak for them", SOON, || async {
        let log = world.pm_log();
        let (_, since) = log.split_once("taking over").unwrap_or_default();
        if since.contains("registered") { Ok(()) } else { Err(log) }
    })
    .await;
    world.stop_pm();
    assert_eq!(world.all_processes(), [0_i32; 0]);
    assert_eq!(world.status(id).await.expect("it was said").state, State::Exited);
}

#[tokio::test]
async fn an_ordinary_user_can_run_it_with_a_warning() {
    let mut world = World::without_pm().await;
    let nobody = 65_534;
    std::fs::create_dir_all(world.state()).expect("it can be made");
    std::os::unix::fs::chown(world.state(), Some(nobody), Some(nobody)).expect("this test takes root");
    world.setpriv_args =
        ["--reuid", "65534", "--regid", "65534", "--clear-groups"].map(str::to_owned).to_vec();
    world.start_pm();
    let mut web = world.web(SERVER);
    web.run.limits.memory_limit_bytes = Some(64 << 20);
    let ids = world.place_all(vec![web, world.job("(setsid sleep 1000 &); exec sleep 1000")]).await;
    let before = world.until_state(ids[0], State::Running).await;
    world.until_state(ids[1], State::Running).await;
    assert!(world.pm_log().contains("INSTANCES ARE NOT KEPT APART"));
    world.kill_pm();
    world.start_pm();
    for id in &ids {
        world.want(*id, Desired::Stop).await;
        let after = world.until_state(*id, State::Exited).await;
        assert_eq!(after.restarts, 0);
        world.until_no_process(*id).await;
    }
    assert!(!is_alive(before.pid.expect("it ran")));
}
