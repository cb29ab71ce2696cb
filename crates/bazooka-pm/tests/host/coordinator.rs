//! A coordinator that is not there: what runs goes on.

use std::time::Duration;

use nix::{sys::signal::Signal, unistd::Pid};
use visor::{
    keys::Key,
    schema::{OnPartition, State},
    store::{SharedStore, etcd::EtcdStore},
    testing::{Etcd, stand_still, until},
    visor::Change,
};

use crate::world::{SERVER, SOON, World, is_alive, signal};

/// A host over an etcd of its own, which may be stopped.
async fn with_own_etcd() -> (Etcd, World) {
    let etcd = Etcd::start().await;
    let config = etcd.config();
    let prefix = config.prefix.clone();
    let store: SharedStore = std::sync::Arc::new(EtcdStore::new(config));
    let mut world = World::over(store, etcd.endpoint().to_owned(), prefix).await;
    world.start_pm();
    world.registered().await;
    (etcd, world)
}

#[tokio::test]
async fn instances_run_on_and_are_restarted_while_the_coordinator_is_away() {
    let (mut etcd, mut world) = with_own_etcd().await;
    let mut web = world.web(SERVER);
    web.env = world.env(1, &[("ANSWER", "204 No Content")]).await;
    let ids = world.place_all(vec![web.clone(), web]).await;
    let before = world.until_state(ids[0], State::Running).await;
    let other = world.until_state(ids[1], State::Running).await;
    etcd.kill();

    // A crash is answered on the spot.
    signal(before.pid.expect("it runs") as i32, Signal::SIGKILL);
    until("it runs again", SOON, || async {
        match world.processes(ids[0])[..] {
            [pid] if Some(pid as u32) != before.pid => Ok(()),
            ref other => Err(format!("{other:?}")),
        }
    })
    .await;
    // By a bazooka-pm too that has never seen the coordinator, with the env that it had.
    world.kill_pm();
    world.start_pm();
    signal(world.processes(ids[0])[0], Signal::SIGKILL);
    until("it runs again and answers as before", SOON, || async {
        match crate::world::ask(before.port.expect("it has one")) {
            Ok(answer) if answer == "HTTP/1.1 204 No Content" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(is_alive(other.pid.expect("it runs")));

    etcd.restart().await;
    let after = world.until_status(ids[0], "is told of", |status| status.restarts == 2).await;
    assert_eq!((after.state, after.port), (State::Running, before.port));
    let unchanged = world.until_state(ids[1], State::Running).await;
    assert_eq!((unchanged.pid, unchanged.restarts), (other.pid, 0));
}

#[tokio::test]
async fn a_lost_registration_is_made_again_and_everything_is_said_anew() {
    let world = World::start().await;
    let id = world.place(world.job("exec sleep 1000")).await;
    let before = world.until_state(id, State::Running).await;
    let host = world.registered().await;
    // As the end of the lease has it; and the converger has given the instance up.
    let (host_key, status_key) = (Key::Host(world.host.clone()), Key::Status(world.host.clone(), id));
    let lost = visor::schema::Status { state: State::Lost, ..before.clone() };
    let change = Change::new().delete(&host_key).put(&status_key, &lost);
    world.visor.commit(change).await.expect("etcd answers");
    world.store.revoke(host.lease.expect("it is leased")).await.expect("etcd answers");
    let again = until("the host is registered anew", SOON, || async {
        match world.visor.get::<visor::schema::Host>(&host_key).await {
            Ok(Some(row)) => Ok(row),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_ne!(again.create_revision, host.create_revision);
    let after = world.until_state(id, State::Running).await;
    assert_eq!((after.pid, after.started_at), (before.pid, before.started_at));
}

#[tokio::test]
async fn a_second_pm_of_the_same_name_starts_nothing() {
    let world = World::start().await;
    let mut second = World::without_pm().await;
    second.follow(&world);
    second.start_pm();
    let id = world.place(world.job("exec sleep 1000")).await;
    world.until_state(id, State::Running).await;
    until("the second complains", SOON, || async {
        let log = second.pm_log();
        if log.contains("is registered by another pm") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(second.all_processes().is_empty());
}

#[tokio::test]
async fn one_that_must_not_run_twice_ends_before_its_hosts_lease_does() {
    let (mut etcd, world) = with_own_etcd().await;
    let mut careful = world.job("exec sleep 1000");
    careful.run.on_partition = OnPartition::Stop;
    let ids = world.place_all(vec![careful, world.job("exec sleep 1000")]).await;
    for id in &ids {
        world.until_state(*id, State::Running).await;
    }
    // Nobody but its shim can do it then.
    stand_still(Pid::from_raw(world.pm_pid() as i32));
    etcd.kill();
    let begun = std::time::Instant::now();
    world.until_no_process(ids[0]).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert_eq!(world.processes(ids[1]).len(), 1, "the other runs on");
    signal(world.pm_pid() as i32, Signal::SIGCONT);
}
