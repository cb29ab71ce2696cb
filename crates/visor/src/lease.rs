//! A lease that is kept alive, and the knowledge of when it must be taken for lost.
//!
//! Owns one task that grants, renews and, after a loss, grants again. A lease counts as held only
//! until its time has passed on this process's own monotonic clock, counted from before the last
//! renewal was sent: the store's own count began later, so nobody else can have seen it end before.
//! What a loss means for the keys that were bound to it is the user's business.
//!
//! ```text
//! lost ──granted──▶ held ──renewed──▶ held
//!   ▲                │ time passed, or the store says that it has ended
//!   └────────────────┘
//! ```

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    deadlines::{LEASE, LEASE_RELEASE, LEASE_RENEWAL},
    pause::Doubling,
    store::{LeaseId, SharedStore, StoreError},
};

/// How long a lease lasts, and how often it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// How long it lasts without a renewal; whole seconds.
    pub ttl: Duration,
    /// How often it is renewed.
    pub renew_every: Duration,
}

impl Default for LeaseTiming {
    /// 10 s, renewed every 3 s: two renewals may fail, and a lost host is noticed in 10 s.
    fn default() -> Self {
        Self { ttl: LEASE, renew_every: LEASE_RENEWAL }
    }
}

/// The pause after a failed grant.
const GRANT_PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_secs(2));

/// The pause after a failed renewal, which is shorter: the lease is running out.
const RENEWAL_PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_millis(500));

/// Whether there is a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// It is held. Each loss is followed by another `id`.
    Held {
        /// What keys are bound to.
        id: LeaseId,
    },
    /// There is none: not yet, or no longer. Keys that were bound to the last one are gone or going.
    Lost,
}

/// Keeps a lease. Dropping it gives the lease back in the background, [`LeaseKeeper::release`] waits
/// for that.
pub struct LeaseKeeper {
    state: watch::Receiver<LeaseState>,
    term: Arc<Mutex<Option<Term>>>,
    /// Dropped to stop the task.
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

/// A lease with the moment from which it must be taken for lost.
#[derive(Clone, Copy)]
struct Term {
    id: LeaseId,
    until: Instant,
}

impl LeaseKeeper {
    /// Starts to grant and renew.
    pub fn start(store: SharedStore, timing: LeaseTiming) -> Self {
        let (says, state) = watch::channel(LeaseState::Lost);
        let (stop, stopped) = oneshot::channel();
        let term = Arc::new(Mutex::new(None));
        let keeping = Keeping { store, timing, says, term: term.clone() };
        let task = tokio::spawn(keeping.run(stopped));
        Self { state, term, stop: Some(stop), task: Some(task) }
    }

    /// The state as it changes. Between a loss and its notice lies the time that the task takes to
    /// run: a process that was stopped for a while must ask [`LeaseKeeper::held`].
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// The lease, if it is held at this very moment.
    pub fn held(&self) -> Option<LeaseId> {
        let term = *self.term.lock().expect("no panic happens while a term is locked");
        term.filter(|term| Instant::now() < term.until).map(|term| term.id)
    }

    /// Until when the lease is held without a further renewal, if it is held at this very moment.
    pub fn held_until(&self) -> Option<Instant> {
        let term = *self.term.lock().expect("no panic happens while a term is locked");
        term.map(|term| term.until).filter(|until| Instant::now() < *until)
    }

    /// Waits until there is a lease.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait_held(&self) -> LeaseId {
        let mut state = self.state.clone();
        loop {
            if let Some(id) = self.held() {
                return id;
            }
            if state.changed().await.is_err() {
                // The task ends only with this keeper.
                return std::future::pending().await;
            }
        }
    }

    /// Gives the lease back and waits until the store has deleted its keys, for 2 s at most.
    pub async fn release(mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            // A task that panicked holds no lease any more.
            let _ = task.await;
        }
    }
}

/// What the task owns.
struct Keeping {
    store: SharedStore,
    timing: LeaseTiming,
    says: watch::Sender<LeaseState>,
    term: Arc<Mutex<Option<Term>>>,
}

impl Keeping {
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        tokio::select! {
            biased;
            _ = &mut stopped => {}
            () = self.keep() => {}
        }
        let held = self.set(None);
        if let Some(term) = held {
            // Failing, it ends by itself.
            let _ = timeout(LEASE_RELEASE, self.store.revoke(term.id)).await;
        }
    }

    /// For ever: grants, and renews until that lease is lost.
    async fn keep(&self) {
        let mut pauses = GRANT_PAUSE.begin();
        loop {
            let sent = Instant::now();
            match self.store.grant(self.timing.ttl).await {
                Ok(id) => {
                    pauses.reset();
                    self.set(Some(Term { id, until: sent + self.timing.ttl }));
                    let cause = self.renew(id, sent + self.timing.ttl).await;
                    self.set(None);
                    tracing::warn!(lease = id, error = %cause, "the lease is lost; granting another");
                    // The store may not know yet that it is lost: its keys must not outlive that.
                    if cause != StoreError::LeaseNotFound(id) {
                        let _ = self.store.revoke(id).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %error, "can't get a lease; trying again");
                    sleep(pauses.next()).await;
                }
            }
        }
    }

    /// Renews a lease until it is lost, and says why.
    async fn renew(&self, id: LeaseId, mut until: Instant) -> StoreError {
        let mut next = Instant::now() + self.timing.renew_every;
        let mut pauses = RENEWAL_PAUSE.begin();
        let mut last = StoreError::LeaseNotFound(id);
        loop {
            sleep_until(next.min(until)).await;
            let sent = Instant::now();
            if sent >= until {
                return last;
            }
            // A renewal may hang for longer than the lease has left.
            let renewed = tokio::select! {
                biased;
                renewed = self.store.keep_alive(id) => renewed,
                () = sleep_until(until) => return last,
            };
            match renewed {
                Ok(left) => {
                    until = sent + left;
                    self.set(Some(Term { id, until }));
                    next = sent + self.timing.renew_every;
                    pauses.reset();
                }
                Err(error @ StoreError::LeaseNotFound(_)) => return error,
                Err(error) => {
                    last = error;
                    next = Instant::now() + pauses.next();
                }
            }
        }
    }

    /// Notes the lease that is held, tells who listens, and returns what was noted before.
    fn set(&self, term: Option<Term>) -> Option<Term> {
        let before = {
            let mut noted = self.term.lock().expect("no panic happens while a term is locked");
            std::mem::replace(&mut *noted, term)
        };
        let state = term.map_or(LeaseState::Lost, |term| LeaseState::Held { id: term.id });
        self.says.send_if_modified(|said| std::mem::replace(said, state) != state);
        before
    }
}
