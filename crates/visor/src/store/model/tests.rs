//! The model's promises beyond equality with etcd (which the fidelity test shows): leases on tokio's clock, watches
//! that wake, and faults.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::{Instant, advance, timeout};

use super::*;
use crate::store::{Compare, Entry, Event, Op};

fn put(key: &str) -> Op {
    leased(key, None)
}

fn leased(key: &str, lease: impl Into<Option<LeaseId>>) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::from_static(b"v"), lease: lease.into() }
}

fn all() -> Keys {
    Keys::Prefix(String::new())
}

fn writes(ops: impl Into<Vec<Op>>) -> Txn {
    Txn { then: ops.into(), ..Txn::default() }
}

async fn keys(store: &ModelStore) -> Vec<String> {
    let page = store.range(all(), None).await.expect("the model is there");
    page.entries.into_iter().map(|entry| entry.key).collect()
}

/// Returns the message that a watch has ready.
fn ready(watch: &mut Box<dyn Watch>) -> Option<Option<Result<WatchMessage>>> {
    watch.next().now_or_never()
}

#[tokio::test(start_paused = true)]
async fn a_new_store_is_at_revision_one_and_only_a_change_raises_it() {
    let store = ModelStore::new();
    assert_eq!(store.revision(), 1);
    assert_eq!(store.txn(writes([Op::Delete(all())])).await.expect("it is carried out").revision, 1);
    assert_eq!(store.txn(writes([put("a"), put("b")])).await.expect("it is carried out").revision, 2);
    let page = store.range(all(), None).await.expect("the model is there");
    let entry = |key: &str| Entry {
        key: key.to_owned(),
        value: Bytes::from_static(b"v"),
        create_revision: 2,
        mod_revision: 2,
        lease: None,
    };
    assert_eq!(page, Page { entries: vec![entry("a"), entry("b")], revision: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_transaction_whose_condition_fails_takes_the_other_branch() {
    let store = ModelStore::new();
    let txn = Txn {
        when: vec![Compare::Exists("a".to_owned())],
        then: vec![put("then")],
        otherwise: vec![put("otherwise"), Op::Get(all())],
    };
    let reply = store.txn(txn.clone()).await.expect("it is carried out");
    assert!(!reply.succeeded);
    assert_eq!(reply.found[1][0].key, "otherwise", "a get sees its own transaction's writes");
    store.txn(writes([put("a")])).await.expect("it is carried out");
    assert!(store.txn(txn).await.expect("it is carried out").succeeded);
    assert_eq!(keys(&store).await, ["a", "otherwise", "then"]);
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_a_lease_go_in_one_revision_when_its_time_is_over() {
    let store = ModelStore::new();
    let lease = store.grant(Duration::from_secs(10)).await.expect("it is granted");
    store.txn(writes([leased("b", lease), leased("a", lease), put("c")])).await.expect("it is carried out");
    let mut watch = store.watch(all(), 3).await.expect("it is made");
    let began = Instant::now();
    let message = watch.next().await.expect("it lives").expect("it lives");
    assert_eq!(began.elapsed().as_secs(), 10, "a waiting watch learns of it in time");
    let gone = |key: &str| Event::Delete { key: key.to_owned(), revision: 3 };
    assert_eq!(message, WatchMessage { revision: 3, events: vec![gone("a"), gone("b")] });
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseNotFound(lease)));
    assert_eq!(keys(&store).await, ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_kept_alive_does_not_end() {
    let store = ModelStore::new();
    let lease = store.grant(Duration::from_secs(10)).await.expect("it is granted");
    store.txn(writes([leased("a", lease)])).await.expect("it is carried out");
    for _ in 0..20 {
        advance(Duration::from_secs(9)).await;
        assert_eq!(store.keep_alive(lease).await, Ok(Duration::from_secs(10)));
    }
    assert_eq!(keys(&store).await, ["a"]);
    advance(Duration::from_secs(10)).await;
    assert!(keys(&store).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_watch_learns_of_a_lease_that_ends_before_the_one_it_waited_for() {
    let store = ModelStore::new();
    store.grant(Duration::from_secs(3600)).await.expect("it is granted");
    let mut watch = store.watch(all(), 3).await.expect("it is made");
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    let lease = store.grant(Duration::from_secs(5)).await.expect("it is granted");
    store.txn(writes([leased("a", lease)])).await.expect("it is carried out");
    let message = timeout(Duration::from_secs(6), waiting).await.expect("it comes after 5 s");
    let message = message.expect("it doesn't panic").expect("it lives").expect("it lives");
    assert_eq!(message.revision, 3);
}

#[tokio::test(start_paused = true)]
async fn a_watch_replays_the_past_and_goes_on() {
    let store = ModelStore::new();
    for key in ["a/1", "b/1", "a/2"] {
        store.txn(writes([put(key)])).await.expect("it is carried out");
    }
    let mut watch = store.watch(Keys::Prefix("a/".to_owned()), 3).await.expect("it is made");
    store.txn(writes([Op::Delete(all())])).await.expect("it is carried out");
    let mut seen = Vec::new();
    while let Some(Some(Ok(message))) = ready(&mut watch) {
        seen.extend(message.events.iter().map(|event| (event.key().to_owned(), event.revision())));
    }
    assert_eq!(seen, [("a/2".to_owned(), 4), ("a/1".to_owned(), 5), ("a/2".to_owned(), 5)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_compacted_is_gone_for_ranges_and_watches() {
    let store = ModelStore::new();
    for _ in 0..4 {
        store.txn(writes([put("a")])).await.expect("it is carried out");
    }
    store.compact(4).await.expect("it is compacted");
    let gone = StoreError::Compacted { asked: 3, oldest: 0 };
    assert_eq!(store.range(all(), Some(3)).await, Err(gone));
    assert_eq!(store.range(all(), Some(4)).await.expect("it is there").entries[0].mod_revision, 4);
    let mut watch = store.watch(all(), 3).await.expect("it is made");
    let gone = StoreError::Compacted { asked: 3, oldest: 4 };
    assert_eq!(watch.next().await, Some(Err(gone)));
    assert_eq!(watch.next().await, None, "an error is the end");
    assert_eq!(store.compact(4).await, Err(StoreError::Compacted { asked: 4, oldest: 0 }));
    assert!(matches!(store.compact(6).await, Err(StoreError::Refused { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_carried_out_and_a_lost_request_is_not() {
    let store = ModelStore::new();
    store.faults().next_writes([Fate::LoseReply, Fate::LoseRequest]);
    for key in ["reply", "request"] {
        let reply = store.txn(writes([put(key)])).await;
        assert!(matches!(reply, Err(StoreError::OutcomeUnknown { .. })), "{reply:?}");
    }
    store.txn(writes([put("later")])).await.expect("the third is carried out");
    assert_eq!(keys(&store).await, ["later", "reply"]);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_not_lost_in_place_of_a_write() {
    let store = ModelStore::new();
    store.faults().next_writes([Fate::LoseReply]);
    store.txn(writes([Op::Get(all())])).await.expect("a transaction that only reads is safe to repeat");
    store.range(all(), None).await.expect("a range is safe to repeat");
    let reply = store.txn(writes([put("a")])).await;
    assert!(matches!(reply, Err(StoreError::OutcomeUnknown { .. })), "{reply:?}");
}

#[tokio::test(start_paused = true)]
async fn one_client_cut_off_does_not_disturb_another() {
    let store = ModelStore::new();
    let other = store.client();
    let mut watch = store.watch(all(), 2).await.expect("it is made");
    let mut others = other.watch(all(), 2).await.expect("it is made");
    store.faults().unreachable(true);
    let error = store.range(all(), None).await;
    assert!(matches!(error, Err(StoreError::Unreachable { .. })), "{error:?}");
    assert!(matches!(watch.next().await, Some(Err(StoreError::WatchEnded { .. }))));
    other.txn(writes([put("a")])).await.expect("it is carried out");
    assert_eq!(others.next().await.expect("it lives").expect("it lives").revision, 2);
    store.faults().unreachable(false);
    assert_eq!(keys(&store).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_partition_takes_time_and_leaves_watches_silent() {
    let store = ModelStore::new();
    let mut watch = store.watch(all(), 2).await.expect("it is made");
    store.faults().partition(true);
    let began = Instant::now();
    let reply = store.txn(writes([put("a")])).await;
    assert!(matches!(reply, Err(StoreError::OutcomeUnknown { .. })), "{reply:?}");
    let page = store.range(all(), None).await;
    assert!(matches!(page, Err(StoreError::Unreachable { .. })), "{page:?}");
    assert_eq!(began.elapsed().as_secs(), 4);
    store.client().txn(writes([put("b")])).await.expect("the store itself is well");
    watch.request_progress().await.expect("nobody notices");
    assert_eq!(ready(&mut watch), None);
    store.faults().partition(false);
    assert_eq!(ready(&mut watch), None, "a watch over a dead connection stays silent");
    assert_eq!(keys(&store).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_store_refuses_writes_and_serves_reads() {
    let store = ModelStore::new();
    store.faults().refuse_writes(Some("etcdserver: mvcc: database space exceeded"));
    let reply = store.txn(writes([put("a")])).await;
    assert!(matches!(reply, Err(StoreError::Refused { .. })), "{reply:?}");
    assert!(keys(&store).await.is_empty());
    store.faults().refuse_writes(None);
    store.txn(writes([put("a")])).await.expect("it is carried out");
}

#[tokio::test(start_paused = true)]
async fn progress_is_a_message_without_events() {
    let store = ModelStore::new();
    store.txn(writes([put("a")])).await.expect("it is carried out");
    let mut watch = store.watch(Keys::One("b".to_owned()), 2).await.expect("it is made");
    assert_eq!(ready(&mut watch), None);
    watch.request_progress().await.expect("it lives");
    assert_eq!(ready(&mut watch), Some(Some(Ok(WatchMessage { revision: 2, events: Vec::new() }))));
}

#[tokio::test(start_paused = true)]
async fn a_lease_can_be_made_to_end_now() {
    let store = ModelStore::new();
    let lease = store.grant(Duration::from_secs(3600)).await.expect("it is granted");
    store.txn(writes([leased("a", lease)])).await.expect("it is carried out");
    store.faults().expire_lease(lease).expect("it was there");
    assert!(keys(&store).await.is_empty());
}
