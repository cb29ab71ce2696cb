//! A local image of a part of the store, which a list and a watch keep true.
//!
//! Owns when to list and when to watch; the meaning of a key belongs to the [`Image`]. An image is shown only once it
//! is complete: all scopes are listed at one revision, page by page, and watched from the next revision on.
//! Whatever ends a watch (compaction, a cancel, a broken or silent connection) leads back to the list, which also finds
//! deletions made meanwhile. A schema that this build may not read (`snapshot::may_read`) leads there too: the image
//! stays as it was, and nothing new is applied.
//!
//! ```text
//! waiting ──pause over──▶ opening ──listed, watched──▶ watching
//!    ▲                       │ failed                     │ ended, or silent for 15 s
//!    └───────────────────────┴────────────────────────────┘
//! ```

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture, future::select_all};
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

pub use crate::store::Image;
use crate::{
    deadlines::{LONGEST_RELIST_PAUSE, WATCH_ASKED, WATCH_SILENT},
    keys,
    pause::Doubling,
    pause::until,
    planted::{Bug, planted},
    snapshot::may_read,
    store::{
        Entry, Event, Keys, Result, Revision, SharedStore, StoreError, Watch, WatchMessage, listing::Listing,
    },
};

/// The pause between two attempts to list again.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(100), LONGEST_RELIST_PAUSE);

/// The most messages that one [`Mirror::next`] applies, so that a flood cannot block its loop.
const MOST_MESSAGES: usize = 1_000;

/// The rows of a list that are applied between two turns of the other tasks: about a millisecond.
const ROWS_AT_A_TIME: usize = 200;

/// The revision of the last write of each key. The order does not matter.
type Known = HashMap<String, Revision, BuildHasherDefault<DefaultHasher>>;

/// The changes since the last call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Each key that was written or deleted, once, in key order. After a list: the keys that differ from before,
    /// including those that vanished.
    pub keys: Vec<String>,
    /// True if a new list replaced the image.
    pub relisted: bool,
}

impl Changes {
    /// Adds the changes of a later call.
    pub fn add(&mut self, later: Changes) {
        self.relisted |= later.relisted;
        if self.keys.is_empty() {
            self.keys = later.keys;
        } else {
            self.keys.extend(later.keys);
            self.keys.sort();
            self.keys.dedup();
        }
    }
}

/// An image and the watches that keep it true. Its owner's loop drives it by [`Mirror::next`].
pub struct Mirror<I> {
    store: SharedStore,
    scopes: Vec<Keys>,
    image: I,
    /// The keys in the image, to tell what a new list changed. Shared with a list under way, which only reads it.
    known: Arc<Known>,
    /// The revision that each scope has reached; unchanged while out of touch.
    revisions: Vec<Revision>,
    phase: Phase<I>,
    /// The number of failures in a row, until a watch delivers something.
    failures: u32,
    jitter: u64,
}

enum Phase<I> {
    Waiting { until: Instant },
    Opening(BoxFuture<'static, Result<Opened<I>>>),
    Watching(Vec<Scope>),
}

/// A complete image, and the watches that continue from it.
struct Opened<I> {
    image: I,
    known: Known,
    /// Each key that differs from the image before, in key order.
    changed: Vec<String>,
    /// The entries, for the planted fault that needs them.
    entries: Vec<Entry>,
    revision: Revision,
    watches: Vec<Box<dyn Watch>>,
}

struct Scope {
    watch: Box<dyn Watch>,
    heard: Instant,
    /// The time when it will be asked for a sign of life.
    ask_at: Instant,
}

/// The event that ended a mirror's wait for its watches.
enum Happened {
    Message(usize, Option<Result<WatchMessage>>),
    Silence,
}

impl<I: Image> Mirror<I> {
    /// Returns a mirror of these keys; nothing is read before the first [`Mirror::next`].
    pub fn new(store: SharedStore, scopes: Vec<Keys>, image: I) -> Self {
        // Hosts differ in their scopes, so that they do not all reconnect at the same moment.
        let mut hasher = DefaultHasher::new();
        format!("{scopes:?}").hash(&mut hasher);
        Self {
            revisions: vec![0; scopes.len()],
            store,
            scopes,
            image,
            known: Arc::default(),
            phase: Phase::Waiting { until: Instant::now() },
            failures: 0,
            jitter: hasher.finish(),
        }
    }

    /// Sets a seed for the pauses, where many mirrors have the same scopes.
    pub fn with_jitter(mut self, seed: u64) -> Self {
        self.jitter = seed;
        self
    }

    /// Returns the image. It is empty before the first list, and keeps its last state while out of touch.
    pub fn image(&self) -> &I {
        &self.image
    }

    /// Reports whether a complete list has been applied and its watches seem alive.
    pub fn is_synced(&self) -> bool {
        matches!(self.phase, Phase::Watching(_))
    }

    /// Returns the revision up to which every change is in the image: the lowest over the scopes.
    ///
    /// A scope's own revision rises only with changes in it (etcd 3.4 cannot report more), so with several scopes this
    /// may lag: [`Mirror::scope_revision`] tells whether a given write has arrived. With one scope it is exact.
    pub fn revision(&self) -> Revision {
        self.revisions.iter().copied().min().unwrap_or(0)
    }

    /// Returns the revision up to which the changes of one scope are in the image.
    ///
    /// The scope is given by its position. A write to a key of this scope, at this revision or below, has arrived.
    pub fn scope_revision(&self, scope: usize) -> Revision {
        self.revisions.get(scope).copied().unwrap_or(0)
    }

    /// Returns the newest revision of which any change is in the image.
    pub fn newest_revision(&self) -> Revision {
        self.revisions.iter().copied().max().unwrap_or(0)
    }

    /// Waits for a change and applies it, with all others that have arrived already.
    ///
    /// It also returns, without keys, when the mirror falls out of touch. It does not return while it cannot get in
    /// touch, so callers should select over it.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: every applied change has been returned.
    pub async fn next(&mut self) -> Changes {
        loop {
            match &mut self.phase {
                Phase::Waiting { until } => {
                    sleep_until(*until).await;
                    // After a failure the first page is shorter: it may have been too long for the deadline of a call.
                    let first = self.store.first_page() >> self.failures.min(10);
                    let image = self.image.fresh();
                    let listing =
                        list(self.store.clone(), self.scopes.clone(), first, image, self.known.clone());
                    self.phase = Phase::Opening(listing.boxed());
                }
                Phase::Opening(opening) => match opening.await {
                    Ok(opened) => return self.show(opened),
                    Err(error) => self.fall_back(&error),
                },
                Phase::Watching(scopes) => match wait(scopes).await {
                    Happened::Message(scope, message) => return self.apply_all(scope, message),
                    Happened::Silence => {
                        if let Err(error) = ask(scopes).await {
                            self.fall_back(&error);
                            return Changes::default();
                        }
                    }
                },
            }
        }
    }

    /// Replaces the image by a complete list.
    fn show(&mut self, opened: Opened<I>) -> Changes {
        if planted(Bug::NewListKeepsWhatHasGone) {
            opened.entries.iter().for_each(|entry| self.image.put(entry));
            self.image.set_revision(opened.revision);
        } else {
            self.image = opened.image;
        }
        self.known = Arc::new(opened.known);
        self.revisions.fill(opened.revision);
        let now = Instant::now();
        let scope = |watch| Scope { watch, heard: now, ask_at: now + WATCH_ASKED };
        self.phase = Phase::Watching(opened.watches.into_iter().map(scope).collect());
        tracing::debug!(revision = opened.revision, keys = self.known.len(), "in touch with the coordinator");
        Changes { keys: opened.changed, relisted: true }
    }

    /// Applies a message, and each further one that has arrived already.
    fn apply_all(&mut self, scope: usize, message: Option<Result<WatchMessage>>) -> Changes {
        let mut keys = BTreeSet::new();
        let mut next = Some((scope, message));
        let mut applied = 0;
        while let Some((scope, message)) = next.take() {
            let readable = message.unwrap_or_else(|| Err(ended())).and_then(|message| {
                may_read(message.events.iter().filter_map(Event::entry))?;
                Ok(message)
            });
            match readable {
                Ok(message) => self.apply(scope, message, &mut keys),
                Err(error) => {
                    self.fall_back(&error);
                    break;
                }
            }
            applied += 1;
            if applied < MOST_MESSAGES {
                next = self.ready_message();
            }
        }
        self.image.set_revision(self.revision());
        Changes { keys: keys.into_iter().collect(), relisted: false }
    }

    fn apply(&mut self, scope: usize, message: WatchMessage, keys: &mut BTreeSet<String>) {
        self.failures = 0;
        if let Phase::Watching(scopes) = &mut self.phase {
            let scope = &mut scopes[scope];
            scope.heard = Instant::now();
            scope.ask_at = scope.heard + WATCH_ASKED;
        }
        if !message.events.is_empty() {
            let revision = &mut self.revisions[scope];
            *revision = message.revision.max(*revision);
        }
        let known = Arc::make_mut(&mut self.known);
        for event in message.events {
            if !self.image.holds(event.key()) {
                continue;
            }
            match &event {
                Event::Put(entry) => {
                    known.insert(entry.key.clone(), entry.mod_revision);
                    self.image.put(entry);
                }
                Event::Delete { key, revision } => {
                    known.remove(key);
                    self.image.delete(key, *revision);
                }
            }
            keys.insert(event.key().to_owned());
        }
    }

    /// Returns a message that a watch has ready.
    fn ready_message(&mut self) -> Option<(usize, Option<Result<WatchMessage>>)> {
        let Phase::Watching(scopes) = &mut self.phase else { return None };
        scopes
            .iter_mut()
            .enumerate()
            .find_map(|(at, scope)| scope.watch.next().now_or_never().map(|message| (at, message)))
    }

    /// Falls out of touch: a pause, then another list.
    fn fall_back(&mut self, error: &StoreError) {
        let pause = PAUSE.jittered(self.failures, self.jitter);
        if self.failures == 0 {
            tracing::warn!(error = %error, "out of touch with the coordinator; will list again");
        }
        self.failures = self.failures.saturating_add(1);
        let pause = if planted(Bug::LostWatchIsNotListedAgain) { pause * 1_000_000 } else { pause };
        self.phase = Phase::Waiting { until: Instant::now() + pause };
    }
}

/// Lists every scope at one revision into `image`, and watches each from the next one on.
///
/// Other tasks run between a few rows and the next ones, since a large list takes seconds to apply.
async fn list<I: Image>(
    store: SharedStore,
    scopes: Vec<Keys>,
    first: usize,
    mut image: I,
    before: Arc<Known>,
) -> Result<Opened<I>> {
    let (mut listing, schema) = Listing::begin(store.clone(), scopes.clone(), keys::schema(), first).await?;
    may_read(&schema)?;
    let (mut known, mut changed, mut entries) = (Known::default(), Vec::new(), Vec::new());
    while let Some(page) = listing.next().await? {
        for (at, entry) in page.into_iter().enumerate() {
            if at % ROWS_AT_A_TIME == ROWS_AT_A_TIME - 1 {
                yield_now().await;
            }
            if !image.holds(&entry.key) {
                continue;
            }
            image.put(&entry);
            if planted(Bug::NewListKeepsWhatHasGone) {
                entries.push(entry.clone());
            }
            if before.get(&entry.key) != Some(&entry.mod_revision) {
                changed.push(entry.key.clone());
            }
            known.insert(entry.key, entry.mod_revision);
        }
    }
    changed.extend(before.keys().filter(|key| !known.contains_key(*key)).cloned());
    changed.sort_unstable();
    changed.dedup();
    let revision = listing.revision();
    image.set_revision(revision);
    let mut watches = Vec::with_capacity(scopes.len());
    let next = revision + if planted(Bug::WatchBeginsLate) { 2 } else { 1 };
    for scope in scopes {
        watches.push(store.watch(scope, next).await?);
    }
    Ok(Opened { image, known, changed, entries, revision, watches })
}

/// Waits for a message of any watch, or until one has been silent for too long.
async fn wait(scopes: &mut [Scope]) -> Happened {
    let silence = scopes.iter().map(|scope| scope.ask_at).min();
    if scopes.is_empty() {
        return std::future::pending().await;
    }
    let messages = select_all(scopes.iter_mut().map(|scope| scope.watch.next()));
    let silence = pin!(until(silence));
    tokio::select! {
        // A message that has arrived proves that the watch is alive, however late it is read.
        biased;
        (message, at, _) = messages => Happened::Message(at, message),
        () = silence => Happened::Silence,
    }
}

/// Asks each watch that has been silent for a sign of life.
///
/// # Errors
/// A watch has been silent for too long, or cannot be asked.
async fn ask(scopes: &mut [Scope]) -> Result<()> {
    let now = Instant::now();
    for scope in scopes {
        if scope.ask_at > now {
            continue;
        }
        let silent = now.duration_since(scope.heard);
        if silent >= WATCH_SILENT && !planted(Bug::SilentWatchIsBelieved) {
            let detail = format!("no sign of life for {} s", silent.as_secs());
            return Err(StoreError::WatchEnded { detail });
        }
        // Set before the request, so that a dropped future does not ask twice.
        scope.ask_at = now + WATCH_ASKED;
        scope.watch.request_progress().await?;
    }
    Ok(())
}

fn ended() -> StoreError {
    StoreError::WatchEnded { detail: "the stream ended".to_owned() }
}
