//! Tests of the store on a real etcd: what only a real server, or its absence, can show.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use visor::{
    lease::{LeaseKeeper, LeaseState, LeaseTiming},
    mirror::{Image, Mirror},
    store::{
        Compare, Entry, Event, Keys, Op, Revision, SharedStore, Store, StoreError, Txn, WatchMessage,
        etcd::{EtcdConfig, EtcdStore},
        wait_until_ready,
    },
    testing::{Etcd, EtcdCluster, LossyProxy, free_port, fresh_prefix, until},
};

const SOON: Duration = Duration::from_secs(10);

/// The deadline of a call, [`EtcdConfig::call_timeout`].
const DEADLINE: Duration = Duration::from_secs(2);

/// The longest time for a call: its deadline, and what a busy machine adds. A call without a deadline would never
/// return.
const HELD: Duration = Duration::from_secs(8);

fn put(key: &str, value: impl Into<Bytes>) -> Op {
    Op::Put { key: key.to_owned(), value: value.into(), lease: None }
}

fn writes(then: impl Into<Vec<Op>>) -> Txn {
    Txn { then: then.into(), ..Txn::default() }
}

fn all() -> Keys {
    Keys::Prefix(String::new())
}

async fn write(store: &dyn Store, key: &str) -> Revision {
    store.txn(writes([put(key, "v")])).await.expect("it is carried out").revision
}

async fn entries(store: &dyn Store) -> Vec<Entry> {
    store.range(all(), None).await.expect("etcd is there").entries
}

async fn keys(store: &dyn Store) -> Vec<String> {
    entries(store).await.into_iter().map(|entry| entry.key).collect()
}

/// Returns a proxy, a store through it, and an undisturbed store on the same keys.
async fn lossy(etcd: &Etcd) -> (LossyProxy, SharedStore, SharedStore) {
    let proxy = LossyProxy::start(etcd.endpoint()).await;
    let config = etcd.config();
    let good: SharedStore = Arc::new(EtcdStore::new(config.clone()));
    let bad = EtcdConfig { endpoints: vec![proxy.endpoint()], ..config };
    (proxy, Arc::new(EtcdStore::new(bad)), good)
}

/// Returns an endpoint where nobody listens.
fn nobody() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// Returns an endpoint that accepts connections and never answers, for as long as the listener is kept.
fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (listener, url)
}

fn store_at(endpoints: Vec<String>) -> EtcdStore {
    EtcdStore::new(EtcdConfig::new(endpoints, fresh_prefix()))
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_named_soon() {
    let (_held, mute) = mute();
    let endpoints = vec![nobody(), mute, nobody()];
    let store = store_at(endpoints.clone());
    let began = Instant::now();
    for call in 0..3 {
        let began = Instant::now();
        let error = match call {
            0 => store.range(all(), None).await.expect_err("nobody answers"),
            1 => store.grant(Duration::from_secs(10)).await.expect_err("nobody answers"),
            _ => store.watch(all(), 1).await.map(drop).expect_err("nobody answers"),
        };
        let StoreError::Unreachable { endpoints: named, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*named, endpoints);
        assert!(began.elapsed() < HELD, "{:?}", began.elapsed());
        let words = error.to_string();
        assert!(endpoints.iter().all(|endpoint| words.contains(endpoint)), "{words}");
    }
    eprintln!("three calls in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_refused_connection_is_said_at_once_and_means_that_nothing_was_done() {
    let store = store_at(vec![nobody()]);
    let began = Instant::now();
    let error = store.txn(writes([put("a", "v")])).await.expect_err("nobody listens");
    assert!(
        matches!(&error, StoreError::Unreachable { detail, .. } if detail.contains("refused")),
        "{error:?}"
    );
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn something_else_than_an_etcd_is_no_coordinator() {
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("it listens");
            // It does not matter if the client has stopped listening.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, page.as_bytes()).await;
        }
    });
    let error = store_at(vec![url]).range(all(), None).await.expect_err("that is no etcd");
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    server.abort();
}

#[tokio::test]
async fn each_prefix_is_a_store_of_its_own() {
    let etcd = Etcd::shared().await;
    let (one, other) = (etcd.store(), etcd.store());
    write(&*one, "apps/a").await;
    assert_eq!(keys(&*one).await, ["apps/a"]);
    assert_eq!(keys(&*other).await, Vec::<String>::new());
    other.txn(writes([Op::Delete(all())])).await.expect("it is carried out");
    assert_eq!(keys(&*one).await, ["apps/a"]);
}

#[tokio::test]
async fn a_list_may_be_larger_than_the_clients_own_limit() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    let mut first = 0;
    for n in 0..6 {
        let reply = store.txn(writes([put(&format!("{n}"), value.clone())])).await;
        first = first.max(reply.expect("it is carried out").revision - n);
    }
    assert_eq!(entries(&*store).await.len(), 6);
    let reply = store.txn(writes([Op::Get(all())])).await.expect("it is carried out");
    assert_eq!(reply.found[0].len(), 6);
    let mut watch = store.watch(all(), first - 100.min(first - 1)).await.expect("it is made");
    let mut seen = 0;
    while seen < 6 {
        let message = tokio::time::timeout(SOON, watch.next()).await.expect("it is delivered");
        seen += message.expect("it lives").expect("it lives").events.len();
    }
}

#[tokio::test]
async fn a_reply_that_was_lost_leaves_the_outcome_unknown_and_the_write_done() {
    let etcd = Etcd::shared().await;
    let (proxy, bad, good) = lossy(etcd).await;
    write(&*bad, "before").await;
    proxy.lose_next_reply();
    let error = bad.txn(writes([put("lost", "v")])).await.expect_err("the reply is lost");
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
    assert_eq!(proxy.lost(), 1);
    assert_eq!(keys(&*good).await, ["before", "lost"]);
    write(&*bad, "after").await;
    assert_eq!(keys(&*bad).await, ["after", "before", "lost"]);
}

#[tokio::test]
async fn a_request_that_was_lost_leaves_the_outcome_unknown_and_nothing_done() {
    let etcd = Etcd::shared().await;
    let (proxy, bad, good) = lossy(etcd).await;
    write(&*bad, "before").await;
    proxy.lose_next_request();
    let error = bad.txn(writes([put("lost", "v")])).await.expect_err("the request is lost");
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
    assert_eq!(keys(&*good).await, ["before"]);
}

#[tokio::test]
async fn a_read_whose_reply_was_lost_is_repeated() {
    let etcd = Etcd::shared().await;
    let (proxy, bad, _) = lossy(etcd).await;
    write(&*bad, "a").await;
    proxy.lose_next_reply();
    assert_eq!(keys(&*bad).await, ["a"]);
    proxy.lose_next_reply();
    bad.txn(writes([Op::Get(all())])).await.expect("a transaction that only reads is repeated");
    proxy.lose_next_request();
    let lease = bad.grant(Duration::from_secs(10)).await.expect("a grant is repeated");
    proxy.lose_next_reply();
    bad.keep_alive(lease).await.expect("a renewal is repeated");
    proxy.cut();
    bad.keep_alive(lease).await.expect("a renewal goes over another stream when its own is cut");
    assert_eq!(proxy.lost(), 4);
}

#[tokio::test]
async fn an_etcd_that_stands_still_holds_no_call_beyond_its_deadline() {
    let etcd = Etcd::start().await;
    let store = etcd.store();
    let kept = store.grant(Duration::from_secs(60)).await.expect("etcd is there");
    let revoked = store.grant(Duration::from_secs(60)).await.expect("etcd is there");
    store.keep_alive(kept).await.expect("etcd is there");
    etcd.pause();
    let began = Instant::now();
    let (txn, revoke, keep_alive, range, watch) = tokio::join!(
        store.txn(writes([put("a", "v")])),
        store.revoke(revoked),
        store.keep_alive(kept),
        store.range(all(), None),
        store.watch(all(), 1),
    );
    assert!(began.elapsed() < HELD, "{:?}", began.elapsed());
    assert!(matches!(txn, Err(StoreError::OutcomeUnknown { .. })), "{txn:?}");
    assert!(matches!(revoke, Err(StoreError::OutcomeUnknown { .. })), "{revoke:?}");
    assert!(matches!(keep_alive, Err(StoreError::Unreachable { .. })), "{keep_alive:?}");
    assert!(matches!(range, Err(StoreError::Unreachable { .. })), "{range:?}");
    assert!(matches!(watch.map(drop), Err(StoreError::Unreachable { .. })));
    etcd.resume();
    write(&*store, "b").await;
}

#[tokio::test]
async fn a_restarted_etcd_is_used_again_at_once() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store();
    let revision = write(&*store, "a").await;
    etcd.kill();
    let error = store.range(all(), None).await.expect_err("it is dead");
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    etcd.restart().await;
    assert_eq!(keys(&*store).await, ["a"]);
    assert_eq!(write(&*store, "b").await, revision + 1);
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left() {
    let etcd = Etcd::shared().await;
    let (_held, mute) = mute();
    let store = store_at(vec![mute, nobody(), etcd.endpoint().to_owned()]);
    let began = Instant::now();
    assert!(keys(&store).await.is_empty());
    assert!(began.elapsed() < HELD, "{:?}", began.elapsed());
    for n in 0..100 {
        write(&store, &format!("{n}")).await;
    }
    // Each failing call would have cost a deadline.
    assert!(began.elapsed() < 20 * DEADLINE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_write_that_hung_is_not_repeated_and_the_next_goes_elsewhere() {
    let etcd = Etcd::shared().await;
    let (_held, mute) = mute();
    let store = store_at(vec![mute, etcd.endpoint().to_owned()]);
    let error =
        store.txn(writes([put("a", "v")])).await.expect_err("the first endpoint takes it and is mute");
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
    let began = Instant::now();
    write(&store, "b").await;
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    assert_eq!(keys(&store).await, ["b"]);
}

#[tokio::test]
async fn a_cluster_that_loses_its_leader_is_written_to_again() {
    let mut cluster = EtcdCluster::start(3).await;
    let store = EtcdStore::new(cluster.config());
    write(&store, "before").await;
    let leader = cluster.leader().await;
    cluster.kill(leader);
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        let call = Instant::now();
        let reply = store.txn(writes([put("after", "v")])).await;
        longest = longest.max(call.elapsed());
        match reply {
            Ok(_) => break,
            Err(error) if began.elapsed() > SOON => panic!("no write is taken: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    assert!(longest < HELD, "{longest:?}");
    assert_eq!(keys(&store).await, ["after", "before"]);
}

#[tokio::test]
async fn a_paused_member_of_three_holds_one_call_up_at_most() {
    let cluster = EtcdCluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    // This endpoint is asked first.
    let mut config = cluster.config();
    config.endpoints.rotate_left(follower);
    let store = EtcdStore::new(config);
    write(&store, "before").await;
    cluster.pause(follower);
    let (mut slow, mut unknown) = (0, 0);
    for n in 0..100 {
        let began = Instant::now();
        let outcome = store.txn(writes([put(&format!("{n}"), "v")])).await;
        unknown += usize::from(outcome.is_err());
        slow += usize::from(began.elapsed() >= DEADLINE);
        assert!(began.elapsed() < HELD, "{:?}", began.elapsed());
    }
    assert!(slow <= 1 && unknown <= 1, "{slow} slow calls, {unknown} of unknown outcome");
    cluster.resume(follower);
}

#[tokio::test]
async fn a_member_that_is_cut_off_ends_its_watches() {
    let cluster = EtcdCluster::start(3).await;
    let mut config = cluster.config();
    config.endpoints.truncate(1);
    let store = EtcdStore::new(config);
    let mut watch = store.watch(all(), 1).await.expect("it is made");
    cluster.pause(1);
    cluster.pause(2);
    let ended = tokio::time::timeout(SOON, watch.next()).await.expect("it is noticed");
    assert!(matches!(ended, Some(Err(StoreError::WatchEnded { .. }))), "{ended:?}");
    let error = store.txn(writes([put("a", "v")])).await.expect_err("there is no quorum");
    assert!(matches!(error, StoreError::OutcomeUnknown { .. } | StoreError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_put_with_an_ended_lease_writes_nothing() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    let lease = store.grant(Duration::from_secs(60)).await.expect("etcd is there");
    let leased = || Op::Put { key: "leased".to_owned(), value: Bytes::new(), lease: Some(lease) };
    store.txn(writes([leased()])).await.expect("it is carried out");
    store.revoke(lease).await.expect("it is held");
    assert!(keys(&*store).await.is_empty());
    let ended = StoreError::LeaseNotFound(lease);
    assert_eq!(store.txn(writes([put("a", "v"), leased()])).await, Err(ended.clone()));
    assert!(keys(&*store).await.is_empty());
    assert_eq!(store.keep_alive(lease).await, Err(ended.clone()));
    assert_eq!(store.revoke(lease).await, Err(ended.clone()));
    // Only the branch that is taken counts.
    let txn = Txn {
        when: vec![Compare::Exists("nothing".to_owned())],
        then: vec![leased()],
        otherwise: vec![put("b", "v")],
    };
    store.txn(txn).await.expect("it is carried out");
}

#[tokio::test]
async fn a_lease_has_whole_seconds_and_two_at_least() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    for (asked, given) in [(1_000, 2), (10_000, 10), (10_001, 11)] {
        let lease = store.grant(Duration::from_millis(asked)).await.expect("etcd is there");
        for _ in 0..3 {
            assert_eq!(store.keep_alive(lease).await, Ok(Duration::from_secs(given)), "{asked} ms");
        }
        store.revoke(lease).await.expect("it is held");
    }
}

#[tokio::test]
async fn a_watch_over_a_line_that_breaks_ends_with_an_error() {
    let etcd = Etcd::shared().await;
    let (proxy, bad, good) = lossy(etcd).await;
    let from = write(&*good, "a").await;
    let mut watch = bad.watch(all(), from).await.expect("it is made");
    let message = watch.next().await.expect("it lives").expect("it lives");
    assert_eq!((message.revision, message.events.len()), (from, 1));
    proxy.cut();
    let ended = watch.next().await;
    assert!(matches!(ended, Some(Err(StoreError::WatchEnded { .. }))), "{ended:?}");
    assert_eq!(watch.next().await, None);
    assert!(watch.request_progress().await.is_err());
}

#[tokio::test]
async fn a_watch_is_asked_for_a_sign_of_life() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    let revision = write(&*store, "a").await;
    let mut watch = store.watch(Keys::One("b".to_owned()), revision).await.expect("it is made");
    watch.request_progress().await.expect("it lives");
    let message = tokio::time::timeout(SOON, watch.next()).await.expect("it answers");
    let message = message.expect("it lives").expect("it lives");
    assert!(message.events.is_empty() && message.revision >= revision, "{message:?}");
}

#[tokio::test]
async fn a_revision_comes_whole_however_large_it_is() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    let mut from = None;
    for turn in 0..20 {
        let puts: Vec<Op> = (0..128).map(|n| put(&format!("{n:03}"), format!("{turn}"))).collect();
        let reply = store.txn(writes(puts)).await.expect("it is carried out");
        from.get_or_insert(reply.revision);
    }
    let from = from.expect("it was written to");
    let mut watch = store.watch(all(), from).await.expect("it is made");
    let mut seen = 0;
    while seen < 20 * 128 {
        let WatchMessage { revision, events } = watch.next().await.expect("it lives").expect("it lives");
        assert_eq!(events.len() % 128, 0, "no revision is split");
        assert_eq!(events.last().map(Event::revision), Some(revision));
        seen += events.len();
    }
}

/// The entries themselves.
#[derive(Default)]
struct Plain(BTreeMap<String, Entry>);

impl Image for Plain {
    fn fresh(&self) -> Plain {
        Plain::default()
    }

    fn put(&mut self, entry: &Entry) {
        self.0.insert(entry.key.clone(), entry.clone());
    }

    fn delete(&mut self, key: &str, _: Revision) {
        self.0.remove(key);
    }

    fn set_revision(&mut self, _: Revision) {}
}

#[tokio::test]
async fn whoever_is_fifty_thousand_changes_behind_comes_to_the_exact_state() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    write(&*store, "first").await;
    let mut mirror = Mirror::new(store.clone(), vec![all()], Plain::default());
    while !mirror.is_synced() {
        tokio::time::timeout(SOON, mirror.next()).await.expect("it begins");
    }
    // Nothing reads it meanwhile.
    let mut last = 0;
    for turn in 0..500 {
        // Some keys are written again and again, some once, and some are deleted again.
        let key = |n: u32| if n < 50 { format!("hot/{n}") } else { format!("{turn}/{n}") };
        let puts: Vec<Op> = (0..90).map(|n| put(&key(n), format!("{turn}"))).collect();
        store.txn(writes(puts)).await.expect("it is carried out");
        let deletes: Vec<Op> = (80..90).map(|n| Op::Delete(Keys::One(key(n)))).collect();
        last = store.txn(writes(deletes)).await.expect("it is carried out").revision;
    }
    while mirror.revision() < last {
        tokio::time::timeout(SOON, mirror.next()).await.expect("it catches up");
    }
    let image: Vec<Entry> = mirror.image().0.values().cloned().collect();
    assert_eq!(image, entries(&*store).await);
}

#[tokio::test]
async fn a_full_etcd_refuses_in_its_own_words_and_goes_on_reading() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=4000000"]).await;
    let store = etcd.store();
    let value = Bytes::from(vec![b'x'; 1_000_000]);
    let error = until("it is full", SOON, || async {
        match store.txn(writes([put("a", value.clone())])).await {
            Ok(reply) => Err(format!("{reply:?}")),
            Err(error) => Ok(error),
        }
    })
    .await;
    assert!(matches!(&error, StoreError::Refused { detail } if detail.contains("space")), "{error:?}");
    assert_eq!(keys(&*store).await, ["a"]);
}

#[tokio::test]
async fn what_an_identity_may_not_do_is_refused() {
    let etcd = Etcd::start().await;
    let store = etcd.store();
    write(&*store, "a").await;
    let mut admin = etcd_client::Client::connect([etcd.endpoint()], None).await.expect("etcd is there");
    admin.user_add("root", "secret", None).await.expect("it is new");
    admin.role_add("root").await.expect("it is new");
    admin.user_grant_role("root", "root").await.expect("both are there");
    admin.auth_enable().await.expect("there is a root");
    let page = store.range(all(), None).await;
    assert!(matches!(page, Err(StoreError::Refused { .. })), "{page:?}");
    let reply = store.txn(writes([put("b", "v")])).await;
    assert!(matches!(reply, Err(StoreError::Refused { .. })), "{reply:?}");
    let refused = match store.watch(all(), 1).await {
        Ok(mut watch) => watch.next().await.expect("it says why").map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    // An identity that is not admitted may be in a moment, so a daemon reports that and waits.
    let (said, mut says) = tokio::sync::mpsc::unbounded_channel();
    let waiting = tokio::spawn(async move {
        let say = |error: &StoreError| said.send(error.is_denied()).expect("the test listens");
        wait_until_ready(&*store, say).await
    });
    assert_eq!(says.recv().await, Some(true));
    let credentials = Some(etcd_client::ConnectOptions::new().with_user("root", "secret"));
    let mut admin =
        etcd_client::Client::connect([etcd.endpoint()], credentials).await.expect("etcd is there");
    admin.auth_disable().await.expect("root may");
    tokio::time::timeout(SOON, waiting).await.expect("it goes on").expect("no panic").expect("it is let in");
}

#[tokio::test]
async fn a_daemon_waits_for_its_coordinator_and_says_so_once() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store();
    etcd.kill();
    let (said, mut says) = tokio::sync::mpsc::unbounded_channel();
    let waiting = tokio::spawn(async move {
        let said = said;
        wait_until_ready(&*store, |error| said.send(error.to_string()).expect("the test listens")).await
    });
    let words = tokio::time::timeout(SOON, says.recv()).await.expect("it says so").expect("it says so");
    assert!(words.contains(etcd.endpoint()), "{words}");
    etcd.restart().await;
    tokio::time::timeout(SOON, waiting).await.expect("it goes on").expect("no panic").expect("no refusal");
    assert_eq!(says.recv().await, None);
}

#[tokio::test]
async fn a_kept_lease_outlives_its_time_and_goes_when_it_is_released() {
    let etcd = Etcd::shared().await;
    let store = etcd.store();
    let timing = LeaseTiming { ttl: Duration::from_secs(2), renew_every: Duration::from_millis(500) };
    let keeper = LeaseKeeper::start(store.clone(), timing);
    let lease = keeper.wait_held().await;
    let host = Op::Put { key: "host".to_owned(), value: Bytes::new(), lease: Some(lease) };
    store.txn(writes([host])).await.expect("it is carried out");
    let mut state = keeper.state();
    let lost = state.wait_for(|state| *state == LeaseState::Lost);
    assert!(tokio::time::timeout(Duration::from_secs(4), lost).await.is_err(), "it is held");
    assert_eq!(keys(&*store).await, ["host"]);
    keeper.release().await;
    assert!(keys(&*store).await.is_empty());
}
