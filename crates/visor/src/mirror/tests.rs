//! Tests of the mirror: complete lists, watches that end, and random faults.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::FutureExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, advance, sleep, timeout};

use super::*;
use crate::store::{
    Entry, Op, Store, Txn,
    model::{Fate, ModelStore},
};

/// The entries themselves, and how often they were replaced.
#[derive(Default)]
struct Plain {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    cleared: usize,
}

impl Image for Plain {
    fn fresh(&self) -> Plain {
        Plain { cleared: self.cleared + 1, ..Plain::default() }
    }

    fn put(&mut self, entry: &Entry) {
        self.entries.insert(entry.key.clone(), entry.clone());
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        let gone = self.entries.remove(key);
        assert!(
            gone.is_none_or(|gone| gone.mod_revision < revision),
            "{key} is deleted before it is written"
        );
    }

    fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }
}

fn all() -> Vec<Keys> {
    vec![Keys::Prefix(String::new())]
}

fn mirror(store: &ModelStore, scopes: Vec<Keys>) -> Mirror<Plain> {
    Mirror::new(store.shared(), scopes, Plain::default())
}

async fn put(store: &ModelStore, key: &str) -> Revision {
    write(store, vec![Op::Put { key: key.to_owned(), value: Bytes::from_static(b"v"), lease: None }]).await
}

async fn delete(store: &ModelStore, key: &str) -> Revision {
    write(store, vec![Op::Delete(Keys::One(key.to_owned()))]).await
}

async fn write(store: &ModelStore, then: Vec<Op>) -> Revision {
    store.txn(Txn { then, ..Txn::default() }).await.expect("nothing is in the way").revision
}

fn keys(mirror: &Mirror<Plain>) -> Vec<&str> {
    mirror.image().entries.keys().map(String::as_str).collect()
}

fn changed(keys: &[&str], relisted: bool) -> Changes {
    Changes { keys: keys.iter().map(|key| (*key).to_owned()).collect(), relisted }
}

/// The entries below `a/`.
#[derive(Default)]
struct Half(Plain);

impl Image for Half {
    fn holds(&self, key: &str) -> bool {
        key.starts_with("a/")
    }

    fn fresh(&self) -> Half {
        Half(self.0.fresh())
    }

    fn put(&mut self, entry: &Entry) {
        self.0.put(entry);
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        self.0.delete(key, revision);
    }

    fn set_revision(&mut self, revision: Revision) {
        self.0.set_revision(revision);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_holds_a_part_knows_the_revision_of_the_whole_and_no_other_key() {
    let store = ModelStore::new();
    put(&store, "a/1").await;
    let listed = put(&store, "b/1").await;
    let mut mirror = Mirror::new(store.shared(), all(), Half::default());
    assert_eq!(mirror.next().await, changed(&["a/1"], true));
    assert_eq!((mirror.image().0.revision, mirror.known.len()), (listed, 1));
    let written = put(&store, "b/2").await;
    assert_eq!(mirror.next().await, changed(&[], false));
    assert_eq!(mirror.image().0.revision, written, "what it doesn't hold raises the revision too");
    let deleted = delete(&store, "b/1").await;
    assert_eq!(mirror.next().await, changed(&[], false));
    assert_eq!(mirror.image().0.revision, deleted);
    put(&store, "a/2").await;
    assert_eq!(mirror.next().await, changed(&["a/2"], false));
    let held: Vec<&str> = mirror.image().0.entries.keys().map(String::as_str).collect();
    assert_eq!((held, mirror.known.len()), (vec!["a/1", "a/2"], 2));
}

#[tokio::test(start_paused = true)]
async fn the_first_change_is_the_complete_list_at_one_revision() {
    let store = ModelStore::new();
    put(&store, "a/1").await;
    put(&store, "b/1").await;
    put(&store, "c").await;
    let scopes = vec![Keys::Prefix("a/".to_owned()), Keys::Prefix("b/".to_owned())];
    let mut mirror = mirror(&store, scopes);
    assert!(!mirror.is_synced());
    assert_eq!(mirror.next().await, changed(&["a/1", "b/1"], true));
    assert!(mirror.is_synced());
    assert_eq!((mirror.revision(), mirror.image().revision), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn changes_that_are_there_already_come_together() {
    let store = ModelStore::new();
    put(&store, "a").await;
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    put(&store, "b").await;
    put(&store, "c").await;
    put(&store, "b").await;
    delete(&store, "a").await;
    assert_eq!(mirror.next().await, changed(&["a", "b", "c"], false));
    assert_eq!(keys(&mirror), ["b", "c"]);
    assert_eq!(mirror.revision(), 6);
    assert_eq!(mirror.next().now_or_never(), None, "nothing more has changed");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_vanished_while_out_of_touch_is_found_and_told() {
    let store = ModelStore::new();
    put(&store, "stays").await;
    put(&store, "vanishes").await;
    put(&store, "changes").await;
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    store.faults().unreachable(true);
    assert_eq!(mirror.next().await, changed(&[], false), "the loss of touch is told");
    assert!(!mirror.is_synced());
    let other = store.client();
    delete(&other, "vanishes").await;
    put(&other, "changes").await;
    put(&other, "comes").await;
    let waited = timeout(Duration::from_secs(60), mirror.next()).await;
    assert!(waited.is_err(), "out of touch, nothing is told");
    assert_eq!(keys(&mirror), ["changes", "stays", "vanishes"], "the image stays as it was");
    store.faults().unreachable(false);
    assert_eq!(mirror.next().await, changed(&["changes", "comes", "vanishes"], true));
    assert!(mirror.is_synced());
    assert_eq!(keys(&mirror), ["changes", "comes", "stays"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_lost_events_to_compaction_leads_to_a_new_list() {
    let store = ModelStore::new();
    put(&store, "a").await;
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    store.faults().end_watches(StoreError::Compacted { asked: 3, oldest: 9 });
    assert_eq!(mirror.next().await, changed(&[], false));
    let began = Instant::now();
    assert_eq!(mirror.next().await, changed(&[], true));
    assert!(began.elapsed() <= PAUSE.after(0), "{:?}", began.elapsed());
    assert_eq!(keys(&mirror), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_takes_a_later_build_to_read_is_not_taken_in_and_the_image_stays() {
    let store = ModelStore::new();
    let schema = |min_reader: u32| {
        let row = crate::schema::Schema { version: 9, min_reader, ..crate::schema::Schema::default() };
        let value = Bytes::from(serde_json::to_vec(&row).expect("JSON"));
        Op::Put { key: "schema".into(), value, lease: None }
    };
    write(&store, vec![schema(1)]).await;
    put(&store, "a").await;
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    assert!(mirror.is_synced());
    // The same transaction brings what this build cannot understand.
    write(&store, vec![schema(9), Op::Delete(Keys::One("a".into()))]).await;
    assert_eq!(mirror.next().await, Changes::default());
    assert!(!mirror.is_synced());
    assert_eq!(keys(&mirror), ["a", "schema"], "nothing that was known is given up");
    assert!(timeout(Duration::from_secs(60), mirror.next()).await.is_err(), "nor taken in by a new list");
    write(&store, vec![schema(1)]).await;
    mirror.next().await;
    assert_eq!(keys(&mirror), ["schema"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_given_up_after_fifteen_seconds() {
    let store = ModelStore::new();
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    store.faults().silence_watches();
    put(&store, "unseen").await;
    let began = Instant::now();
    assert_eq!(mirror.next().await, changed(&[], false));
    assert_eq!(began.elapsed().as_secs(), 15);
    assert_eq!(mirror.next().await, changed(&["unseen"], true));
}

#[tokio::test(start_paused = true)]
async fn a_watch_with_nothing_to_tell_is_left_alone() {
    let store = ModelStore::new();
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    let mut seen = Changes::default();
    let waited = timeout(Duration::from_secs(3600), async {
        loop {
            let changes = mirror.next().await;
            assert_eq!(changes, Changes::default(), "signs of life alone");
            seen.relisted |= changes.relisted;
        }
    });
    assert!(waited.await.is_err());
    assert!(mirror.is_synced());
    assert_eq!(mirror.image().cleared, 1, "listed once");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_asked_ever_more_rarely() {
    let store = ModelStore::new();
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    store.faults().unreachable(true);
    mirror.next().await;
    let mut pauses = Vec::new();
    for _ in 0..40 {
        let Phase::Waiting { until } = mirror.phase else { panic!("it waits") };
        pauses.push(until - Instant::now());
        let _ = timeout(until - Instant::now() + Duration::from_millis(1), mirror.next()).await;
    }
    assert!(pauses[0] <= PAUSE.after(0) && pauses[0] >= PAUSE.after(0).mul_f64(0.75), "{pauses:?}");
    assert!(pauses[1] > pauses[0], "{pauses:?}");
    assert!(pauses[6..].iter().all(|pause| *pause >= PAUSE.longest().mul_f64(0.75)), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= PAUSE.longest()), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn lists_whose_watches_end_at_once_are_not_repeated_at_full_speed() {
    let store = ModelStore::new();
    let mut mirror = mirror(&store, all());
    let ended = || StoreError::WatchEnded { detail: "cancelled".to_owned() };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        mirror.next().await;
        store.faults().end_watches(ended());
    }
    assert!(mirror.image().cleared < 60, "listed {} times in a minute", mirror.image().cleared);
}

#[tokio::test(start_paused = true)]
async fn each_scope_tells_how_far_it_has_come() {
    let store = ModelStore::new();
    let scopes = vec![Keys::Prefix("a/".to_owned()), Keys::Prefix("b/".to_owned())];
    let mut mirror = mirror(&store, scopes);
    mirror.next().await;
    let revision = put(&store, "b/1").await;
    mirror.next().await;
    assert_eq!(mirror.scope_revision(1), revision);
    assert_eq!(mirror.revision(), revision - 1, "nothing is known of the other");
    assert_eq!(mirror.image().revision, revision - 1);
}

/// Runs random writes, faults, pauses and dropped futures; in the end the image equals the store.
async fn survive(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let store = ModelStore::new();
    let writer = store.client();
    let scopes = vec![Keys::Prefix("a".to_owned()), Keys::One("b".to_owned()), Keys::Prefix("c/".to_owned())];
    let mut mirror = mirror(&store, scopes.clone());
    let mut told: BTreeMap<String, Revision> = BTreeMap::new();
    for _ in 0..300 {
        match rng.random_range(0..100) {
            0..50 => {
                let key = ["a", "a/1", "a2", "b", "b/1", "c", "c/1", "c/2"][rng.random_range(0..8)];
                if rng.random_bool(0.3) {
                    delete(&writer, key).await;
                } else {
                    put(&writer, key).await;
                }
            }
            50..53 => store.faults().unreachable(true),
            53..60 => store.faults().unreachable(false),
            60..62 => store.faults().partition(true),
            62..70 => store.faults().partition(false),
            70..72 => store.faults().silence_watches(),
            72..75 => store.faults().end_watches(StoreError::WatchEnded { detail: "cancelled".to_owned() }),
            75..77 => drop(writer.compact(writer.revision()).await),
            77..80 => advance(Duration::from_millis(rng.random_range(0..20_000))).await,
            _ => {
                let patience = Duration::from_millis(rng.random_range(0..3_000));
                if let Ok(changes) = timeout(patience, mirror.next()).await {
                    note(&mut told, &mirror, &changes);
                }
            }
        }
        // A partial list is never shown: every key is of one of the scopes.
        assert!(mirror.image().entries.keys().all(|key| scopes.iter().any(|scope| scope.contains(key))));
    }
    store.faults().unreachable(false);
    store.faults().partition(false);
    let _ = timeout(Duration::from_secs(60), async {
        loop {
            let changes = mirror.next().await;
            note(&mut told, &mirror, &changes);
        }
    })
    .await;
    assert!(mirror.is_synced());
    let mut expected = BTreeMap::new();
    for scope in scopes {
        let page = writer.range(scope, None).await.expect("nothing is in the way");
        expected.extend(page.entries.into_iter().map(|entry| (entry.key.clone(), entry)));
    }
    assert_eq!(mirror.image().entries, expected);
    let expected: BTreeMap<String, Revision> =
        expected.into_iter().map(|(key, entry)| (key, entry.mod_revision)).collect();
    assert_eq!(told, expected, "who follows the keys that were told arrives at the same");
}

fn note(told: &mut BTreeMap<String, Revision>, mirror: &Mirror<Plain>, changes: &Changes) {
    for key in &changes.keys {
        match mirror.image().entries.get(key) {
            Some(entry) => told.insert(key.clone(), entry.mod_revision),
            None => told.remove(key),
        };
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_the_image_ends_up_true() {
    for seed in 0..200 {
        eprintln!("seed {seed}");
        survive(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn writes_with_lost_replies_are_seen_once() {
    let store = ModelStore::new();
    let mut mirror = mirror(&store, all());
    mirror.next().await;
    let writer = store.client();
    writer.faults().next_writes([Fate::LoseReply]);
    let lost = Txn {
        then: vec![Op::Put { key: "a".to_owned(), value: Bytes::new(), lease: None }],
        ..Txn::default()
    };
    assert!(writer.txn(lost).await.is_err());
    assert_eq!(mirror.next().await, changed(&["a"], false));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(mirror.next().now_or_never(), None);
}
