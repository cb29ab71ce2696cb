//! Archives of slugs: kept beside what was unpacked, served to the hosts that were named, and fetched from them.

use std::{collections::BTreeSet, fs, time::Duration};

use axum::{Router, extract::Path, routing::get};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use visor::{
    keys::Key,
    names::{Digest, HostName, InstanceId},
    schema::{Archives, Extra, Serving, Slug, SlugSource, State},
    snapshot::Versioned,
    testing::until,
    visor::Change,
};

use crate::world::{SERVER, SOON, World, shelve};

/// A second host of a world's cluster, with the same slugs on its shelf.
async fn second(world: &World) -> World {
    let mut second = World::without_pm().await;
    second.follow(world);
    (second.visor, second.store) = (world.visor.clone(), world.store.clone());
    second.host = "host2".parse().expect("valid");
    second.slug = world.slug.clone();
    second.shelf = world.shelf.clone();
    second.start_pm();
    second.registered().await;
    second
}

/// Takes every slug from the rm, which is there and has lost its disk.
fn lose_slugs(world: &World) {
    world.shelf.lock().expect("nobody panics with it").slugs.clear();
}

async fn archives(world: &World) -> Option<BTreeSet<Digest>> {
    let row: Option<Versioned<Archives>> =
        world.visor.get(&Key::Archives(world.host.clone())).await.expect("etcd answers");
    row.map(|row| row.value.slugs)
}

async fn until_has(world: &World, slugs: &[&Slug]) {
    let wanted: BTreeSet<Digest> = slugs.iter().map(|slug| slug.sha256.clone()).collect();
    until("the host says which slugs it has", SOON, || async {
        let there = archives(world).await;
        if there.as_ref() == Some(&wanted) { Ok(()) } else { Err(format!("{there:?}\n{}", world.pm_log())) }
    })
    .await;
}

fn serving(source: &HostName, id: InstanceId) -> Key {
    Key::Serving(source.clone(), "rocket".parse().expect("valid"), id)
}

/// Tells a host that it serves a slug to another, as the converger would.
async fn tell(source: &World, id: InstanceId, slug: &Slug, to: &HostName) {
    let row = Serving { slug: slug.sha256.clone(), to: to.clone(), extra: Extra::new() };
    let change = Change::new().put(&serving(&source.host, id), &row);
    source.visor.commit(change).await.expect("etcd answers");
}

fn source(name: &str, url: &str) -> SlugSource {
    SlugSource { host: name.parse().expect("valid"), url: url.into(), extra: Extra::new() }
}

async fn asked(world: &World, slug: &Slug) -> Response {
    let url = world.registered().await.url.clone();
    let client = bazooka_daemon::http_client(None).build().expect("it can be made");
    client.get(format!("{url}/archives/{}", slug.sha256)).send().await.expect("it answers")
}

async fn metric(world: &World, line: &str) -> Option<f64> {
    let url = world.registered().await.url.clone();
    let client = bazooka_daemon::http_client(None).build().expect("it can be made");
    let answer = client.get(format!("{url}/metrics")).send().await.expect("it answers");
    let text = answer.text().await.expect("it is text");
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test]
async fn a_host_gets_from_another_what_no_rm_has_any_more() {
    let world = World::start().await;
    let first = world.place(world.web(SERVER)).await;
    world.until_state(first, State::Running).await;
    until_has(&world, &[&world.slug]).await;
    lose_slugs(&world);
    let second = second(&world).await;
    let id = InstanceId(1_001);
    tell(&world, id, &world.slug, &second.host).await;
    let mut web = second.web(SERVER);
    web.sources = vec![source("host1", &world.registered().await.url)];
    let change = Change::new().put(&Key::Assigned(second.host.clone(), id), &web);
    second.visor.commit(change).await.expect("etcd answers");
    second.until_state(id, State::Running).await;
    until_has(&second, &[&world.slug]).await;
    assert_eq!(metric(&world, "bazooka_pm_archive_requests_total{result=\"served\"}").await, Some(1.0));
    assert_eq!(metric(&world, "bazooka_pm_slug_sources_total{from=\"rm\"}").await, Some(1.0));
    assert_eq!(metric(&second, "bazooka_pm_slug_sources_total{from=\"host\"}").await, Some(1.0));
}

#[tokio::test]
async fn sources_that_are_gone_or_silent_or_wrong_or_too_long_are_passed_over() {
    let world = World::start().await;
    let first = world.place(world.web(SERVER)).await;
    world.until_state(first, State::Running).await;
    lose_slugs(&world);
    let second = second(&world).await;
    let wrong = || async |Path(_): Path<String>| b"this is no slug".to_vec();
    let long = || async |Path(_): Path<String>| vec![0_u8; 8 << 20];
    let routes = Router::new()
        .route("/silent/archives/{slug}", get(async || std::future::pending::<()>().await))
        .route("/wrong/archives/{slug}", get(wrong()))
        .route("/long/archives/{slug}", get(long()));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it listens"));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let id = InstanceId(1_001);
    tell(&world, id, &world.slug, &second.host).await;
    let mut web = second.web(SERVER);
    web.sources = vec![
        source("gone", "http://127.0.0.1:1"),
        source("silent", &format!("{url}/silent")),
        source("wrong", &format!("{url}/wrong")),
        source("long", &format!("{url}/long")),
        source("host1", &world.registered().await.url),
    ];
    let change = Change::new().put(&Key::Assigned(second.host.clone(), id), &web);
    second.visor.commit(change).await.expect("etcd answers");
    second.until_state(id, State::Running).await;
    let log = second.pm_log();
    for words in [
        "gone doesn't answer",
        "silent doesn't begin its answer",
        "what wrong sends is not the slug",
        "it is longer than",
    ] {
        assert!(log.contains(words), "{words:?} in {log}");
    }
    let left = fs::read_dir(second.state().join("slugs")).expect("it is there").count();
    assert_eq!(left, 3, "the slug, its mark and its archive");
}

#[tokio::test]
async fn an_instance_learns_of_a_source_that_is_named_later() {
    let world = World::start().await;
    let first = world.place(world.web(SERVER)).await;
    world.until_state(first, State::Running).await;
    lose_slugs(&world);
    let second = second(&world).await;
    let id = InstanceId(1_001);
    let key = Key::Assigned(second.host.clone(), id);
    let mut web = second.web(SERVER);
    second.visor.commit(Change::new().put(&key, &web)).await.expect("etcd answers");
    second.until_status(id, "waits", |status| status.cause.is_some()).await;
    tell(&world, id, &world.slug, &second.host).await;
    web.sources = vec![source("host1", &world.registered().await.url)];
    second.visor.commit(Change::new().put(&key, &web)).await.expect("etcd answers");
    second.until_state(id, State::Running).await;
}

#[tokio::test]
async fn an_archive_is_served_while_the_converger_says_so_and_as_it_came() {
    let world = World::start().await;
    let id = world.place(world.web(SERVER)).await;
    world.until_state(id, State::Running).await;
    let other = shelve(&world.shelf, &[("serve.py", "another")]);
    assert_eq!(asked(&world, &world.slug).await.status(), StatusCode::FORBIDDEN);
    let (far, waits) = ("host9".parse().expect("valid"), InstanceId(7));
    tell(&world, waits, &world.slug, &far).await;
    assert_eq!(asked(&world, &other).await.status(), StatusCode::FORBIDDEN);
    let answer = asked(&world, &world.slug).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.content_length(), Some(world.slug.size_bytes));
    let bytes = answer.bytes().await.expect("it comes");
    assert_eq!(format!("{:x}", Sha256::digest(&bytes)), world.slug.sha256.as_str());
    tell(&world, waits, &other, &far).await;
    assert_eq!(asked(&world, &other).await.status(), StatusCode::NOT_FOUND, "it was told so, and has it not");
    let change = Change::new().delete(&serving(&world.host, waits));
    world.visor.commit(change).await.expect("etcd answers");
    assert_eq!(asked(&world, &world.slug).await.status(), StatusCode::FORBIDDEN);
    for (result, count) in [("served", 1.0), ("missing", 1.0), ("refused", 3.0)] {
        let line = format!("bazooka_pm_archive_requests_total{{result=\"{result}\"}}");
        assert_eq!(metric(&world, &line).await, Some(count), "{result}");
    }
}

#[tokio::test]
async fn only_so_many_are_served_at_once() {
    let world = World::start().await;
    // Bytes that can't be packed: more than all the buffers on the way hold.
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + u8::try_from(state % 95).expect("less than 95"))
    };
    let noise: String = (0..24 << 20).map(|_| next()).collect();
    let slug = shelve(&world.shelf, &[("serve.py", &noise)]);
    let mut job = world.job("exec sleep 1000");
    job.slug = slug.clone();
    let id = world.place(job).await;
    world.until_state(id, State::Running).await;
    tell(&world, InstanceId(7), &slug, &"host9".parse().expect("valid")).await;
    let mut served = Vec::new();
    for _ in 0..8 {
        let answer = asked(&world, &slug).await;
        assert_eq!(answer.status(), StatusCode::OK);
        served.push(answer);
    }
    assert_eq!(asked(&world, &slug).await.status(), StatusCode::TOO_MANY_REQUESTS);
    served.truncate(7);
    until("a place is free again", SOON, || async {
        let status = asked(&world, &slug).await.status();
        if status == StatusCode::OK { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_host_says_what_it_has_after_a_restart_and_once_it_has_less() {
    let mut world = World::without_pm().await;
    world.on_exit = "keep";
    world.start_pm();
    let other = shelve(&world.shelf, &[("serve.py", "another")]);
    let mut job = world.job("exec sleep 1000");
    job.slug = other.clone();
    for id in [world.place(world.job("exec sleep 1000")).await, world.place(job).await] {
        world.until_state(id, State::Running).await;
    }
    until_has(&world, &[&world.slug, &other]).await;
    // An earlier release unpacked a slug and kept no archive.
    world.stop_pm();
    let archive = world.state().join(format!("slugs/{}.tar.zst", other.sha256));
    fs::remove_file(archive).expect("it was kept");
    world.start_pm();
    until_has(&world, &[&world.slug]).await;
    // The row is of the host's own lease, which has been another one since.
    tokio::time::timeout(Duration::from_secs(15), async {
        let key = Key::Archives(world.host.clone());
        loop {
            let row: Option<Versioned<Archives>> = world.visor.get(&key).await.expect("etcd answers");
            let host = world.registered().await;
            if row.is_some_and(|row| row.lease.is_some() && row.lease == host.lease) {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is of the same lease");
}

#[tokio::test]
async fn an_archive_goes_with_its_slug() {
    let world = World::start().await;
    let mut slugs = Vec::new();
    for number in 0..12 {
        let mut job = world.job("exec sleep 1000");
        job.slug = shelve(&world.shelf, &[("number", &number.to_string())]);
        slugs.push(job.slug.clone());
        let id = world.place(job).await;
        world.until_state(id, State::Running).await;
        world.unassign(id).await;
        world.until_no_process(id).await;
    }
    until("the oldest are gone, and ten are left", SOON, || async {
        let there = archives(&world).await.unwrap_or_default();
        let files = fs::read_dir(world.state().join("slugs")).expect("it is there").count();
        if there.len() == 10 && files == 30 { Ok(()) } else { Err(format!("{there:?}, {files} files")) }
    })
    .await;
    let there = archives(&world).await.unwrap_or_default();
    assert!(there.contains(&slugs[11].sha256) && !there.contains(&slugs[0].sha256));
}
