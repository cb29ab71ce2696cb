//! The store in memory: linearizable, with the semantics of etcd 3.4 for the whole trait.
//!
//! It serves tests and simulation. Nothing inside is random and nothing reads a wall clock: leases run on tokio's
//! clock, so that a test with paused time decides when they end. No task runs in the background either: a lease that
//! has run out is ended by the next call, or by a waiting watch.
//!
//! Each [`ModelStore::client`] has its own [`Faults`], so that one host of a simulated cluster can be cut off while the
//! others continue.

mod mistake;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Entry, Keys, LeaseId, Page, Result, Revision, SharedStore, Store, StoreError, Txn, TxnReply, Watch,
    WatchMessage,
};
pub use mistake::Mistake;
use state::State;

/// The time that a call into a partition waits before it fails, as the real client does.
const PARTITION_TIMEOUT: Duration = Duration::from_secs(2);

/// The endpoint's name in the errors of a model.
const ENDPOINT: &str = "model";

/// An etcd in memory. A clone is the same store through the same client.
#[derive(Clone)]
pub struct ModelStore {
    shared: Arc<Mutex<State>>,
    link: Arc<Mutex<Link>>,
}

/// The faults between one client and the store.
#[derive(Default)]
struct Link {
    unreachable: bool,
    partitioned: bool,
    refusal: Option<String>,
    /// True if granting a lease panics.
    breaks_at_grant: bool,
    /// The number of requested ranges and transactions.
    round_trips: u64,
    /// The fates of the next writes, first one first.
    fates: VecDeque<Fate>,
    /// The watches made through this client; ended ones stay until the next is made.
    watches: Vec<u64>,
    /// The pages that are lost from now on.
    lost_pages: u32,
}

/// The fate of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The write is carried out and answered.
    Arrive,
    /// The write is carried out and its reply is lost.
    LoseReply,
    /// The request is lost: nothing is carried out.
    LoseRequest,
}

/// The switches for the faults of one client.
#[derive(Clone)]
pub struct Faults {
    store: ModelStore,
}

impl Default for ModelStore {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelStore {
    /// Returns an empty store, at revision 1 like a new etcd.
    pub fn new() -> Self {
        Self { shared: Arc::new(Mutex::new(State::new())), link: Arc::default() }
    }

    /// Returns an empty store with one deliberate mistake, to show that a comparison would notice it.
    pub fn with_mistake(mistake: Mistake) -> Self {
        let store = Self::new();
        store.as_it_is().mistake = Some(mistake);
        store
    }

    /// Returns another client of the same store, with its own faults.
    pub fn client(&self) -> Self {
        Self { shared: self.shared.clone(), link: Arc::default() }
    }

    /// Returns this client as the loops take it.
    pub fn shared(&self) -> SharedStore {
        Arc::new(self.clone())
    }

    /// Returns how many ranges and transactions this client has asked for; each costs a round trip to the store.
    pub fn round_trips(&self) -> u64 {
        self.link().round_trips
    }

    /// Returns this client's faults.
    pub fn faults(&self) -> Faults {
        Faults { store: self.clone() }
    }

    /// Returns the store's revision now, by the clock of the tokio runtime in which this is called.
    pub fn revision(&self) -> Revision {
        self.state().revision()
    }

    /// Returns a key's entry at once, without a simulated call: for the rules of a simulation.
    pub fn peek(&self, key: &str) -> Option<Entry> {
        self.as_it_is().entry(key)
    }

    /// Locks the store, and first ends every lease that has run out.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.as_it_is();
        state.end_leases(Instant::now());
        state
    }

    /// Locks the store without looking at the time: for calls outside of tokio, where there is no paused clock.
    fn as_it_is(&self) -> MutexGuard<'_, State> {
        self.shared.lock().expect("no panic happens while the model is locked")
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect("no panic happens while a link is locked")
    }

    /// Simulates the way to the store for a call that is safe to repeat.
    async fn reach(&self) -> Result<()> {
        // A real store never answers in the same poll; without this, two tasks on one thread would
        // never interleave, and their races would stay hidden.
        tokio::task::yield_now().await;
        let partitioned = {
            let link = self.link();
            if link.unreachable {
                return Err(unreachable("connection refused"));
            }
            link.partitioned
        };
        if partitioned {
            sleep(PARTITION_TIMEOUT).await;
            return Err(unreachable("no answer"));
        }
        Ok(())
    }

    /// Simulates a write: calls `commit` unless a fault prevents it.
    async fn write<T>(&self, commit: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        match self.reach().await {
            Err(StoreError::Unreachable { detail, .. }) if self.link().partitioned => {
                return Err(StoreError::OutcomeUnknown { detail });
            }
            other => other?,
        }
        let fate = {
            let mut link = self.link();
            if let Some(detail) = &link.refusal {
                return Err(StoreError::Refused { detail: detail.clone() });
            }
            link.fates.pop_front()
        };
        let unknown = |detail: &str| StoreError::OutcomeUnknown { detail: detail.to_owned() };
        match fate {
            None | Some(Fate::Arrive) => commit(&mut self.state()),
            Some(Fate::LoseRequest) => Err(unknown("the request was lost")),
            Some(Fate::LoseReply) => {
                let mut state = self.state();
                if !state.loses_the_write_with_its_reply() {
                    // The reply that gets lost is the one to this write.
                    let _ = commit(&mut state);
                }
                Err(unknown("the reply was lost"))
            }
        }
    }
}

fn unreachable(detail: &str) -> StoreError {
    StoreError::Unreachable { endpoints: vec![ENDPOINT.to_owned()], detail: detail.to_owned() }
}

impl Faults {
    /// Sets the fates of the next writes, in this order; a lost request or reply is reported as an unknown outcome.
    pub fn next_writes(&self, fates: impl IntoIterator<Item = Fate>) {
        self.store.link().fates.extend(fates);
    }

    /// Simulates a coordinator whose process is gone: calls fail at once and watches end.
    pub fn unreachable(&self, yes: bool) {
        self.store.link().unreachable = yes;
        if yes {
            self.end_watches(StoreError::WatchEnded { detail: "the connection broke".to_owned() });
        }
    }

    /// Simulates dropped packets: calls time out and watches fall silent for good.
    pub fn partition(&self, yes: bool) {
        self.store.link().partitioned = yes;
        if yes {
            self.silence_watches();
        }
    }

    /// Makes every write fail with these words (as when etcd is out of space), until `None`.
    pub fn refuse_writes(&self, detail: Option<&str>) {
        self.store.link().refusal = detail.map(str::to_owned);
    }

    /// Makes each grant of a lease panic, as a defect of the client would.
    pub fn panic_at_grant(&self) {
        self.store.link().breaks_at_grant = true;
    }

    /// Ends this client's watches with an error, after they have delivered what they had.
    pub fn end_watches(&self, error: StoreError) {
        let watches = std::mem::take(&mut self.store.link().watches);
        self.store.as_it_is().end_watches(&watches, &error);
    }

    /// Silences this client's watches: they deliver nothing from now on, and do not end either.
    pub fn silence_watches(&self) {
        let watches = self.store.link().watches.clone();
        self.store.as_it_is().silence_watches(&watches);
    }

    /// Loses the answers to so many pages.
    pub fn lose_pages(&self, pages: u32) {
        self.store.link().lost_pages = pages;
    }

    /// Ends a lease now, as if it had run out.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] if it has ended before.
    pub fn expire_lease(&self, lease: LeaseId) -> Result<()> {
        self.store.state().revoke(lease)
    }
}

#[async_trait]
impl Store for ModelStore {
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<Page> {
        self.link().round_trips += 1;
        self.reach().await?;
        self.state().range(&keys, at)
    }

    async fn page(&self, keys: Keys, after: String, most: usize, at: Revision) -> Result<Page> {
        self.link().round_trips += 1;
        self.reach().await?;
        let lost = self.link().lost_pages;
        if lost > 0 {
            self.link().lost_pages = lost - 1;
            return Err(unreachable("no answer"));
        }
        self.state().page(&keys, &after, most, at)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply> {
        self.link().round_trips += 1;
        if txn.is_read_only() {
            self.reach().await?;
            return self.state().txn(&txn);
        }
        self.write(|state| state.txn(&txn)).await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Box<dyn Watch>> {
        self.reach().await?;
        let wake = Arc::new(Notify::new());
        let id = self.state().watch(keys, from, wake.clone());
        self.link().watches.push(id);
        Ok(Box::new(ModelWatch { store: self.clone(), id, wake }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let breaks = self.link().breaks_at_grant;
        assert!(!breaks, "a planted panic");
        self.write(|state| Ok(state.grant(ttl, Instant::now()))).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        self.reach().await?;
        self.state().keep_alive(lease, Instant::now())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.write(|state| state.revoke(lease)).await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.write(|state| state.compact(revision)).await
    }
}

/// A watch on the model.
struct ModelWatch {
    store: ModelStore,
    id: u64,
    wake: Arc<Notify>,
}

#[async_trait]
impl Watch for ModelWatch {
    async fn next(&mut self) -> Option<Result<WatchMessage>> {
        loop {
            let next_end = {
                let mut state = self.store.state();
                match state.next_message(self.id) {
                    Some(message) => return message,
                    None => state.next_lease_end(),
                }
            };
            match next_end {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = self.wake.notified() => {}
                        () = sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    async fn request_progress(&mut self) -> Result<()> {
        self.store.state().request_progress(self.id)
    }
}

impl Drop for ModelWatch {
    fn drop(&mut self) {
        let id = self.id;
        self.store.link().watches.retain(|watch| *watch != id);
        self.store.as_it_is().forget_watch(id);
    }
}
