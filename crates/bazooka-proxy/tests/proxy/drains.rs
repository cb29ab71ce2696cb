//! What is taken out ends with what it has under way, on every worker.

use std::time::Duration;

use visor::{
    schema::Desired,
    testing::{free_port, until},
};

use crate::{
    http::{self, Connection},
    rig::{Instance, PATIENCE, Rig},
};

/// Begins a request that takes this long, and returns once it is under way.
async fn slow(
    rig: &Rig,
    instance: u64,
    time: Duration,
) -> tokio::task::JoinHandle<Result<http::Answer, String>> {
    let (public, path) = (rig.public, format!("/slow/{}", time.as_millis()));
    let request = tokio::spawn(async move { http::get(public, "rocket.localhost", &path).await });
    until("the request is under way", PATIENCE, async || {
        let worker = rig.processes().await.worker.ok_or("no worker")?;
        let command = "show stat rocket.web 4 -1".to_owned();
        let answer = rig.cli().worker(worker, &[command]).await.map_err(|error| error.to_string())?.concat();
        let sessions = bazooka_proxy::haproxy::says::sessions(&answer);
        match sessions.get(&("rocket.web".to_owned(), format!("i{instance}"))) {
            Some(sessions) if sessions.open == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    request
}

#[tokio::test]
async fn a_slow_request_keeps_its_instance_busy_until_it_is_answered() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let request = slow(&rig, 1, Duration::from_millis(1500)).await;
    rig.running(("rocket", "web"), &[(2, two.address)]).await;
    let row = rig.applied(rig.desire(("rocket", "web"), &[1], Desired::Drain).await).await;
    assert_eq!(row.busy.iter().map(|id| id.0).collect::<Vec<_>>(), [1], "said together with the revision");
    assert_eq!(rig.spread("rocket.localhost", 5).await.into_keys().collect::<Vec<_>>(), ["two"]);
    let answer = request.await.expect("no panic").expect("it is answered");
    assert_eq!((answer.status, answer.body.as_str()), (200, "one\n"));
    rig.wait_busy(&[]).await;
}

#[tokio::test]
async fn an_old_workers_request_keeps_its_instance_busy_too() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let request = slow(&rig, 1, Duration::from_millis(2500)).await;
    let worker = rig.processes().await.worker;
    rig.service("other", "web").await;
    rig.running(("rocket", "web"), &[(2, two.address)]).await;
    let row = rig.applied(rig.desire(("rocket", "web"), &[1], Desired::Drain).await).await;
    let processes = rig.processes().await;
    assert_ne!(processes.worker, worker, "a new service takes a reload");
    assert_eq!(processes.old.first().copied(), worker);
    assert_eq!(row.busy.iter().map(|id| id.0).collect::<Vec<_>>(), [1]);
    let answer = request.await.expect("no panic").expect("it is answered");
    assert_eq!((answer.status, answer.body.as_str()), (200, "one\n"));
    rig.wait_busy(&[]).await;
}

#[tokio::test]
async fn a_connection_kept_on_an_old_worker_never_reaches_what_was_taken_out() {
    let rig = Rig::start().await;
    let port = rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let own = std::net::SocketAddr::new(rig.public.ip(), port);
    let mut by_host = Connection::open(rig.public).await.expect("it is open");
    let mut by_port = Connection::open(own).await.expect("it is open");
    for connection in [&mut by_host, &mut by_port] {
        let answer = connection.request("GET", "rocket.localhost", "/", "", "").await.expect("it answers");
        assert_eq!(answer.body, "one\n");
    }
    // Two reloads, so that the successor of the connections' worker has one of its own.
    rig.service("other", "web").await;
    rig.applied(rig.running(("rocket", "web"), &[(2, two.address)]).await).await;
    rig.service("another", "web").await;
    let row = rig.applied(rig.desire(("rocket", "web"), &[1], Desired::Drain).await).await;
    assert!(row.busy.is_empty(), "{row:?}");
    for connection in [&mut by_host, &mut by_port] {
        let answer =
            connection.request("GET", "rocket.localhost", "/headers", "", "").await.expect("it answers");
        assert!(answer.head.contains("connection: close"), "{answer:?}");
        let told = answer.body.to_lowercase();
        assert_eq!(told.matches("x-forwarded-for").count(), 1, "{told}");
        assert!(!told.contains("x-bazooka-service"), "{told}");
    }
    // What was asked last went to the second instance: the first one saw nothing but the first requests.
    assert_eq!(rig.spread("rocket.localhost", 5).await.into_keys().collect::<Vec<_>>(), ["two"]);
}

#[tokio::test]
async fn a_reload_waits_for_the_requests_of_old_workers_rather_than_cut_them() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let first = slow(&rig, 1, Duration::from_millis(3000)).await;
    rig.applied(rig.service_at("second", "web", free_port()).await).await;
    let second = slow(&rig, 1, Duration::from_millis(3000)).await;
    rig.applied(rig.service_at("third", "web", free_port()).await).await;
    // There are three workers, each of the old ones with a request: the next reload has to wait for one.
    let full = rig.processes().await;
    assert_eq!(full.old.len(), 2, "{full:?}");
    rig.service("fourth", "web").await;
    let revision = rig.running(("rocket", "web"), &[(2, two.address)]).await;
    // What takes no reload doesn't wait.
    until("the second instance answers", PATIENCE, async || {
        let names = rig.spread("rocket.localhost", 4).await;
        if names.contains_key("two") { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    assert_eq!(rig.processes().await, full, "and the workers are as they were");
    for request in [first, second] {
        let answer = request.await.expect("no panic").expect("it is answered");
        assert_eq!((answer.status, answer.body.as_str()), (200, "one\n"));
    }
    rig.applied(revision).await;
    assert!(rig.processes().await.old.len() <= 2);
}
