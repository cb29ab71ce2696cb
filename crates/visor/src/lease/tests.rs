//! Tests of leases that are renewed, lost and released, on the store in memory.

use tokio::time::{advance, timeout};

use super::*;
use crate::store::{Keys, Op, Store, Txn, model::ModelStore};

async fn bind(store: &ModelStore, id: LeaseId) {
    let then = vec![Op::Put { key: "host".to_owned(), value: bytes::Bytes::new(), lease: Some(id) }];
    store.txn(Txn { then, ..Txn::default() }).await.expect("the lease is there");
}

async fn is_bound(store: &ModelStore) -> bool {
    let page = store.client().range(Keys::One("host".to_owned()), None).await.expect("the model is there");
    !page.entries.is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_held_for_as_long_as_it_is_renewed() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    assert_eq!(keeper.held(), None, "not before the store has granted it");
    let id = keeper.wait_held().await;
    bind(&store, id).await;
    for _ in 0..600 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(keeper.held(), Some(id));
    }
    assert!(is_bound(&store).await);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_lost_before_the_store_gives_it_to_another() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    let id = keeper.wait_held().await;
    bind(&store, id).await;
    sleep(Duration::from_secs(100)).await;
    store.faults().partition(true);
    while keeper.held().is_some() {
        assert!(is_bound(&store).await, "held here, and ended there");
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(*keeper.state().borrow(), LeaseState::Lost, "those who listen know it at the same time");
    sleep(Duration::from_secs(10)).await;
    assert!(!is_bound(&store).await);
}

#[tokio::test]
async fn a_keeper_on_a_thread_renews_while_its_owner_is_busy() {
    let store = ModelStore::new();
    let timing = LeaseTiming { ttl: Duration::from_secs(2), renew_every: Duration::from_millis(100) };
    let keeper = LeaseKeeper::start_on_thread(store.shared(), timing).expect("there is room for a thread");
    let id = keeper.wait_held().await;
    let first = keeper.held_until().expect("it is held");
    // This thread runs nothing else meanwhile, as while it plans for a large cluster.
    while keeper.held_until().expect("it is held") <= first + timing.ttl {
        std::thread::park_timeout(timing.renew_every);
    }
    assert_eq!(keeper.held(), Some(id));
    bind(&store, id).await;
    keeper.release().await;
    assert!(!is_bound(&store).await, "released before it returns");
}

#[tokio::test(start_paused = true)]
async fn two_renewals_may_fail() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    let id = keeper.wait_held().await;
    let mut state = keeper.state();
    state.mark_unchanged();
    for _ in 0..10 {
        // The last successful renewal may be 3 s old.
        store.faults().unreachable(true);
        sleep(Duration::from_secs(6)).await;
        store.faults().unreachable(false);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(keeper.held(), Some(id));
    }
    assert!(!state.has_changed().expect("the keeper is there"), "nobody was told of a loss");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_followed_by_another() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    let first = keeper.wait_held().await;
    let mut state = keeper.state();
    state.mark_unchanged();
    store.faults().unreachable(true);
    state.changed().await.expect("the keeper is there");
    assert_eq!(*state.borrow_and_update(), LeaseState::Lost);
    store.faults().unreachable(false);
    let second = keeper.wait_held().await;
    assert_ne!(first, second);
    state.changed().await.expect("the keeper is there");
    assert_eq!(*state.borrow(), LeaseState::Held { id: second });
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_store_ended_is_noticed_at_the_next_renewal() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    let first = keeper.wait_held().await;
    store.faults().expire_lease(first).expect("it was held");
    let began = Instant::now();
    let mut state = keeper.state();
    state.wait_for(|state| *state != LeaseState::Held { id: first }).await.expect("the keeper is there");
    assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
    assert_ne!(keeper.wait_held().await, first);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_does_not_believe_in_its_lease() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    let id = keeper.wait_held().await;
    // The keeper's task does not run between here and the question.
    let until = keeper.tenure.lock().expect("it doesn't panic").expect("it is held").until;
    assert_eq!(until - Instant::now(), Duration::from_secs(10));
    advance(Duration::from_secs(30)).await;
    assert_ne!(keeper.held(), Some(id));
}

#[tokio::test(start_paused = true)]
async fn releasing_takes_its_keys_away_at_once() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    bind(&store, keeper.wait_held().await).await;
    keeper.release().await;
    assert!(!is_bound(&store).await);
}

#[tokio::test(start_paused = true)]
async fn dropping_takes_its_keys_away_soon() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    bind(&store, keeper.wait_held().await).await;
    drop(keeper);
    sleep(Duration::from_millis(1)).await;
    assert!(!is_bound(&store).await);
}

#[tokio::test(start_paused = true)]
async fn releasing_without_a_store_takes_two_seconds_at_most() {
    let store = ModelStore::new();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    keeper.wait_held().await;
    store.faults().partition(true);
    timeout(LEASE_RELEASE + Duration::from_millis(1), keeper.release()).await.expect("it gives up");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the task that keeps the lease has panicked")]
async fn a_keeper_that_panicked_keeps_nobody_waiting() {
    let store = ModelStore::new();
    store.faults().panic_at_grant();
    let keeper = LeaseKeeper::start(store.shared(), LeaseTiming::default());
    let waited = timeout(Duration::from_secs(60), keeper.wait_held()).await;
    unreachable!("there is no lease: {waited:?}");
}
