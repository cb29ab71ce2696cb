//! What parts of a cluster may die without anyone noticing.

use std::time::Duration;

use bazooka_tests::{Cluster, Endpoint, SOON, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use visor::{names::InstanceId, schema::State};

/// The instances that run, with process and number of restarts.
fn running(cluster: &Cluster) -> Vec<(InstanceId, u32, u32)> {
    let snapshot = cluster.snapshot();
    let statuses = snapshot.hosts.values().flat_map(|host| &host.status);
    let running = statuses.filter(|(_, status)| status.state == State::Running);
    running.map(|(id, status)| (*id, status.pid.expect("it runs"), status.restarts)).collect()
}

fn alive(pid: u32) -> bool {
    kill(Pid::from_raw(i32::try_from(pid).expect("a process id fits")), None).is_ok()
}

#[test]
fn a_killed_pm_finds_its_instances_as_it_left_them() {
    let mut cluster = Cluster::start();
    let repo = cluster.rocket();
    repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    let before = running(&cluster);
    assert_eq!(before.len(), 3);

    cluster.host(1).kill();
    assert!(before.iter().all(|(_, pid, _)| alive(*pid)), "they run without their pm");
    assert_eq!(cluster.ask("goto-rocket").expect("HAProxy answers").status, 200);
    // One ends while nobody looks: the new pm must notice.
    let (lost, pid, _) = before[0];
    kill(Pid::from_raw(i32::try_from(pid).expect("a process id fits")), Signal::SIGKILL)
        .expect("it is there");
    cluster.start_host(1);
    cluster.ready(Endpoint::Host(1));
    let after = until("the ended one runs again", SOON, || {
        let after = running(&cluster);
        match after.iter().find(|(id, ..)| *id == lost) {
            Some((_, new, 1)) if *new != pid => Ok(after),
            _ => Err(format!("{after:?}")),
        }
    });
    assert_eq!(after[1..], before[1..], "the others were adopted");
}

#[test]
fn a_killed_instance_is_back_in_place() {
    let cluster = Cluster::start();
    let repo = cluster.rocket();
    repo.bazooka(&["scale", "-n", "1", "web"]).ok();
    let (id, pid, _) = running(&cluster)[0];
    kill(Pid::from_raw(i32::try_from(pid).expect("a process id fits")), Signal::SIGKILL)
        .expect("it is there");
    until("it runs again", SOON, || {
        let after = running(&cluster);
        if after.iter().any(|row| row.0 == id && row.1 != pid && row.2 == 1) {
            Ok(())
        } else {
            Err(format!("{after:?}"))
        }
    });
    assert_eq!(cluster.answers("goto-rocket").lines().next(), Some("go to rocket"));
    let why = repo.bazooka(&["why", &id.to_string()]).ok().stdout;
    assert!(why.contains("signal 9") || why.contains("SIGKILL"), "{why}");
}

#[test]
fn routing_and_instances_outlive_every_daemon() {
    let mut cluster = Cluster::start();
    let repo = cluster.rocket();
    repo.bazooka(&["scale", "-n", "2", "web"]).ok();
    let before = running(&cluster);
    for part in ["rm", "converger"] {
        cluster.part(part).kill();
    }
    cluster.host(1).kill();
    assert_eq!(cluster.ask("goto-rocket").expect("HAProxy answers").status, 200);
    assert!(before.iter().all(|(_, pid, _)| alive(*pid)));
    cluster.start_rm();
    cluster.start_converger();
    cluster.start_host(1);
    cluster.ready(Endpoint::Host(1));
    let scaled = repo.bazooka(&["scale", "-n", "3", "web"]).ok();
    assert!(scaled.took < Duration::from_secs(60));
    assert_eq!(running(&cluster)[..2], before[..]);
}
