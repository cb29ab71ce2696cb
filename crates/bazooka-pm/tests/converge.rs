//! The converger's real loop over a real store: in memory under paused time, and etcd.

#[path = "converge/cluster.rs"]
mod cluster;

use std::{sync::Arc, time::Duration};

use bazooka_pm::converge::{ConvergeOptions, run};
use cluster::{Cluster, Does};
use tokio_util::sync::CancellationToken;
use visor::{
    schema::{Fault, ReleaseStatus, State},
    store::{
        etcd::{EtcdConfig, EtcdStore},
        model::{Fate, ModelStore},
    },
    testing::{Etcd, fresh_prefix},
    visor::Visor,
};

/// A cluster of so many hosts with a proxy, a converger and an app whose web runs `count` times.
async fn serving(hosts: u32, count: u32) -> Cluster {
    let cluster = Cluster::on_model().await;
    for n in 1..=hosts {
        cluster.host(&format!("host{n}")).await;
    }
    cluster.proxy("proxy1").await;
    cluster.converger("one");
    cluster.release("web").await;
    cluster.scale("web", count).await;
    cluster.until_running("web", count as usize).await;
    cluster.watch_from_now();
    cluster
}

#[tokio::test(start_paused = true)]
async fn what_is_scaled_runs_and_what_is_scaled_down_is_drained_stopped_and_archived() {
    let cluster = Cluster::on_model().await;
    cluster.host("host1").await;
    cluster.proxy("proxy1").await;
    cluster.converger("one");
    cluster.release("web").await;
    cluster.scale("web", 3).await;
    cluster.until_running("web", 3).await;
    cluster.scale("web", 1).await;
    cluster.until_running("web", 1).await;
    cluster
        .until("the others are archived", |snapshot| {
            let view = snapshot.apps.values().next().ok_or("no app")?;
            let (left, ended) = (view.instances.len(), view.history.len());
            if (left, ended) == (1, 2) { Ok(()) } else { Err(format!("{left} left, {ended} ended")) }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_push_is_tried_verified_promoted_and_rolled_out() {
    let cluster = serving(2, 4).await;
    let release = cluster.push("web").await;
    cluster.until_verified(release).await;
    cluster.promote(release).await;
    cluster.until_all_run("web", release, 4).await;
    assert!(cluster.fewest_running() >= 4, "{}", cluster.fewest_running());
    assert_eq!(cluster.placed().await, 8, "four old ones and four new ones");
}

#[tokio::test(start_paused = true)]
async fn a_push_that_fails_says_why_and_leaves_the_old_ones_alone() {
    let cluster = serving(2, 2).await;
    cluster.next_does("web", Does::Fails(Duration::from_millis(30), Fault::App));
    let release = cluster.push("web").await;
    let (status, cause) = cluster.verdict(release).await;
    assert_eq!(status, ReleaseStatus::Failed);
    let cause = cause.expect("a failed release says why");
    assert!(cause.contains("exited with status 1\nno such engine"), "{cause}");
    cluster.until_running("web", 2).await;
    assert_eq!(cluster.placed().await, 3, "one was tried");
    assert!(cluster.fewest_running() >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_starts_to_crash_after_its_trial_does_not_take_the_old_one_with_it() {
    let cluster = serving(2, 4).await;
    let release = cluster.push("web").await;
    cluster.until_verified(release).await;
    cluster.does("web", release, Does::Crashes);
    cluster.promote(release).await;
    let reason = cluster
        .until("the rollout says why it waits", |snapshot| {
            let pending = snapshot.apps.values().flat_map(|view| view.pending.values()).next();
            pending.map(|pending| pending.reason.clone()).ok_or_else(|| "nothing pends".into())
        })
        .await;
    assert!(
        reason.contains("the rollout of v2 waits") && reason.contains("exited with status 1"),
        "{reason}"
    );
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(cluster.fewest_running() >= 4, "{}", cluster.fewest_running());
    assert!(cluster.placed().await <= 6, "{}", cluster.placed().await);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_is_destroyed_ends_whole() {
    let cluster = serving(1, 3).await;
    cluster.destroy().await;
    cluster.until_running("web", 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_replaces_every_instance_before_it_stops_it() {
    let cluster = serving(2, 3).await;
    cluster.restart("web").await;
    cluster
        .until("three others run", |snapshot| {
            let ids: Vec<u64> =
                snapshot.apps.values().flat_map(|view| view.instances.keys()).map(|id| id.0).collect();
            if ids.len() == 3 && ids.iter().all(|id| *id > 3) { Ok(()) } else { Err(format!("{ids:?}")) }
        })
        .await;
    assert!(cluster.fewest_running() >= 3, "{}", cluster.fewest_running());
}

#[tokio::test(start_paused = true)]
async fn the_instances_of_a_lost_host_are_replaced_elsewhere() {
    let cluster = serving(3, 3).await;
    let before = tokio::time::Instant::now();
    cluster.kill_host("host2");
    let host2 = "host2".parse().expect("valid");
    cluster
        .until("three run elsewhere", |snapshot| {
            let hosts: Vec<_> = snapshot.apps.values().flat_map(|view| view.instances.values()).collect();
            let away = hosts.iter().all(|row| row.host != host2);
            if away && hosts.len() == 3 { Ok(()) } else { Err(format!("{hosts:?}")) }
        })
        .await;
    assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_cut_off_and_returns_keeps_its_instances_if_there_was_nowhere_to_go() {
    let cluster = serving(1, 2).await;
    let placed = cluster.placed().await;
    cluster.faults("host1").partition(true);
    cluster
        .until("both are lost", |snapshot| {
            let states: Vec<_> =
                snapshot.hosts.values().flat_map(|view| view.status.values()).map(|s| s.state).collect();
            if states == [State::Lost; 2] { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await;
    cluster.faults("host1").partition(false);
    cluster.until_running("web", 2).await;
    assert_eq!(cluster.placed().await, placed, "nothing new was placed");
}

#[tokio::test(start_paused = true)]
async fn when_half_of_the_hosts_vanish_nothing_is_given_up_until_they_return() {
    let cluster = serving(4, 8).await;
    let placed = cluster.placed().await;
    cluster.faults("host1").partition(true);
    cluster.faults("host2").partition(true);
    cluster
        .until("it is frozen, and says so", |snapshot| {
            let frozen = snapshot.leader.as_ref().and_then(|leader| leader.frozen.clone());
            frozen.map(drop).ok_or_else(|| "it isn't".into())
        })
        .await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(cluster.placed().await, placed);
    cluster.faults("host1").partition(false);
    cluster.faults("host2").partition(false);
    cluster
        .until("it goes on", |s| {
            let frozen = s.leader.as_ref().and_then(|leader| leader.frozen.as_ref());
            if frozen.is_none() { Ok(()) } else { Err("frozen".into()) }
        })
        .await;
    cluster.until_running("web", 8).await;
    assert!(cluster.placed().await <= placed + 2, "only the first to vanish may have been given up");
}

#[tokio::test(start_paused = true)]
async fn an_operators_word_unfreezes_what_is_replaced_then_and_the_word_goes_with_it() {
    let cluster = serving(4, 8).await;
    cluster.faults("host1").partition(true);
    cluster.faults("host2").partition(true);
    cluster
        .until("it is frozen", |snapshot| {
            let frozen = snapshot.leader.as_ref().and_then(|leader| leader.frozen.clone());
            frozen.map(drop).ok_or_else(|| "it isn't".into())
        })
        .await;
    let given_up = cluster.visor.unfreeze("tester", jiff::Timestamp::now()).await.expect("it is frozen");
    assert_eq!(given_up.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["host1", "host2"]);
    cluster
        .until("all run on the two others, and the word has gone", |s| {
            let on: Vec<_> = s.apps.values().flat_map(|view| view.instances.values()).collect();
            let away = on.iter().all(|row| ["host3", "host4"].contains(&row.host.as_str()));
            let left =
                s.leader.as_ref().is_some_and(|leader| leader.frozen.is_some()) || s.unfreeze.is_some();
            if away && on.len() == 8 && !left { Ok(()) } else { Err(format!("{on:?}, {:?}", s.unfreeze)) }
        })
        .await;
    cluster.until_running("web", 8).await;
    let again = cluster.visor.unfreeze("tester", jiff::Timestamp::now()).await;
    assert!(again.is_err_and(|error| error.to_string().contains("no host is frozen")));
}

#[tokio::test(start_paused = true)]
async fn of_many_convergers_one_leads_and_the_next_takes_over_when_it_leaves_or_dies() {
    let cluster = serving(2, 2).await;
    for name in ["two", "three"] {
        cluster.converger(name);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.leader().await.as_deref(), Some("one"));

    let left = tokio::time::Instant::now();
    cluster.stop_converger("one").await;
    let next = cluster.until_led().await;
    assert!(left.elapsed() < Duration::from_secs(1), "it hands over at once: {:?}", left.elapsed());
    cluster.scale("web", 4).await;
    cluster.until_running("web", 4).await;

    cluster.kill_converger(&next);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let last = cluster.until_led().await;
    assert_ne!(last, next);
    cluster.scale("web", 1).await;
    cluster.until_running("web", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_converger_that_was_cut_off_changes_nothing_when_it_returns() {
    let cluster = serving(2, 2).await;
    cluster.converger("two");
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.faults("one").partition(true);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(cluster.until_led().await, "two");
    cluster.faults("one").partition(false);
    cluster.scale("web", 5).await;
    cluster.until_running("web", 5).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(cluster.leader().await.as_deref(), Some("two"));
    assert_eq!(cluster.placed().await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_or_request_places_nothing_twice() {
    let cluster = serving(2, 1).await;
    let mut count = 1;
    for fate in [Fate::LoseReply, Fate::LoseRequest] {
        for lost in 1..4 {
            count += 3;
            cluster.faults("one").next_writes(std::iter::repeat_n(fate, lost));
            cluster.scale("web", count).await;
            cluster.until_running("web", count as usize).await;
            assert_eq!(cluster.placed().await, u64::from(count), "{fate:?} {lost}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_election_whose_request_was_lost_is_stood_for_again() {
    let cluster = Cluster::on_model().await;
    cluster.converger("one");
    // The lease is granted first.
    cluster.faults("one").next_writes([]);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    cluster.until_led().await;
    cluster.converger("two");
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.faults("two").next_writes([Fate::LoseRequest]);
    cluster.stop_converger("one").await;
    assert_eq!(cluster.until_led().await, "two");
}

#[tokio::test(start_paused = true)]
async fn with_the_coordinator_gone_nothing_is_stopped_and_it_goes_on_when_it_is_back() {
    let cluster = serving(2, 3).await;
    cluster.faults("one").unreachable(true);
    tokio::time::sleep(Duration::from_secs(300)).await;
    cluster.scale("web", 5).await;
    cluster.faults("one").unreachable(false);
    cluster.until_running("web", 5).await;
    assert!(cluster.fewest_running() >= 3);
}

#[tokio::test]
async fn on_a_real_etcd_a_hundred_are_placed_and_pushed_over() {
    let etcd = Etcd::shared().await;
    let config = EtcdConfig::new(vec![etcd.endpoint().to_owned()], fresh_prefix());
    let cluster = Cluster::on(Box::new(move || Arc::new(EtcdStore::new(config.clone()))), None).await;
    for n in 1..=3 {
        cluster.host(&format!("host{n}")).await;
    }
    cluster.proxy("proxy1").await;
    cluster.converger("one");
    cluster.release("web").await;
    cluster.settings("web", |proc| proc.min_ready_ms = Some(50)).await;
    cluster.scale("web", 100).await;
    cluster.until_running("web", 100).await;
    cluster.scale("web", 8).await;
    cluster.until_running("web", 8).await;
    cluster.watch_from_now();
    let release = cluster.push("web").await;
    cluster.until_verified(release).await;
    cluster.promote(release).await;
    cluster.until_all_run("web", release, 8).await;
    assert!(cluster.fewest_running() >= 8, "{}", cluster.fewest_running());
    cluster.stop_converger("one").await;
}

#[tokio::test(start_paused = true)]
async fn a_converger_whose_lease_is_kept_no_longer_ends_and_says_so() {
    let store = ModelStore::new();
    store.faults().panic_at_grant();
    let running = run(Visor::new(store.shared()), ConvergeOptions::named("one"), CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(60), running).await.expect("it ends by itself");
    let error = bazooka_daemon::in_words(&ended.expect_err("nobody asked it to end"));
    assert_eq!(error, "this process can't be elected any more: the task that keeps the lease has panicked");
}
