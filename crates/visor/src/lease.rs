//! A lease that is kept alive, and the time from which it must count as lost.
//!
//! Owns one task, or one thread, that grants, renews and, after a loss, grants again. A lease counts as held only until its time has
//! passed on this process's own monotonic clock, counted from before the last renewal was sent. The store's own count
//! began later, so no other process can have seen the lease end before. The user of the lease decides what a loss means
//! for the keys that were bound to it.
//!
//! ```text
//! lost ──granted──▶ held ──renewed──▶ held
//!   ▲                │ time passed, or the store says that it has ended
//!   └────────────────┘
//! ```

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    deadlines::{LEASE, LEASE_RELEASE, LEASE_RENEWAL},
    pause::Doubling,
    planted::{Bug, planted},
    store::{LeaseId, SharedStore, StoreError},
};

/// The stack of a keeper's own thread: a TLS handshake in a build without optimisation needs half of it.
const STACK: usize = 512 << 10;

/// The lifetime of a lease and the interval of its renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// The lifetime without a renewal, in whole seconds.
    pub ttl: Duration,
    /// The interval between renewals.
    pub renew_every: Duration,
}

impl Default for LeaseTiming {
    /// Returns 10 s with a renewal every 3 s: two renewals may fail, and a lost host is noticed within 10 s.
    fn default() -> Self {
        Self { ttl: LEASE, renew_every: LEASE_RENEWAL }
    }
}

/// The pause after a failed grant.
const GRANT_PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_secs(2));

/// The pause after a failed renewal; shorter than after a failed grant, because the lease is running out.
const RENEWAL_PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_millis(500));

/// The state of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The lease is held. After each loss the `id` is another.
    Held {
        /// The lease to which keys are bound.
        id: LeaseId,
    },
    /// There is no lease, not yet or no longer. Keys bound to the last one are deleted or soon will be.
    Lost,
}

/// The task of a lease's keeper has panicked: the lease ends, and there is no other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task that keeps the lease has panicked")]
pub struct KeeperPanicked;

/// The owner of a lease.
///
/// Dropping it revokes the lease in the background; [`LeaseKeeper::release`] waits for that.
pub struct LeaseKeeper {
    state: watch::Receiver<LeaseState>,
    tenure: Arc<Mutex<Option<Tenure>>>,
    /// Dropped to stop the task.
    stop: Option<oneshot::Sender<()>>,
    /// Completes when the task has ended, however it ended.
    ended: oneshot::Receiver<()>,
}

/// A lease, with the time from which it must count as lost.
#[derive(Clone, Copy)]
struct Tenure {
    id: LeaseId,
    until: Instant,
}

impl LeaseKeeper {
    /// Starts the task that grants and renews.
    pub fn start(store: SharedStore, timing: LeaseTiming) -> Self {
        let (keeper, task) = Self::prepare(store, timing);
        tokio::spawn(task);
        keeper
    }

    /// Starts a thread that grants and renews, so that no work of the caller's runtime can delay a renewal.
    ///
    /// `store` must be a client of this keeper's own, because its connections belong to the thread's runtime.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start_on_thread(store: SharedStore, timing: LeaseTiming) -> io::Result<Self> {
        let (keeper, task) = Self::prepare(store, timing);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("lease".to_owned()).stack_size(STACK);
        thread.spawn(move || runtime.block_on(task))?;
        Ok(keeper)
    }

    fn prepare(store: SharedStore, timing: LeaseTiming) -> (Self, impl Future<Output = ()> + Send) {
        let (says, state) = watch::channel(LeaseState::Lost);
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let tenure = Arc::new(Mutex::new(None));
        let keeping = Keeping { store, timing, says, tenure: tenure.clone() };
        let task = async move {
            // Dropped by a panic too.
            let _ending: oneshot::Sender<()> = ending;
            keeping.run(stopped).await;
        };
        (Self { state, tenure, stop: Some(stop), ended }, task)
    }

    /// Returns the state as it changes. The channel closes if the keeper's task panics.
    ///
    /// The notice of a loss comes only when the task runs: a process that was stopped for a while must ask
    /// [`LeaseKeeper::held`].
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Returns the lease, if it is held at this very moment.
    pub fn held(&self) -> Option<LeaseId> {
        let tenure = *self.tenure.lock().expect("no panic happens while a tenure is locked");
        tenure.filter(|tenure| Instant::now() < tenure.until).map(|tenure| tenure.id)
    }

    /// Returns the time until which the lease is held without a further renewal, if it is held at this very moment.
    pub fn held_until(&self) -> Option<Instant> {
        let tenure = *self.tenure.lock().expect("no panic happens while a tenure is locked");
        tenure.map(|tenure| tenure.until).filter(|until| Instant::now() < *until)
    }

    /// Waits until there is a lease.
    ///
    /// # Panics
    /// If the keeper's task has panicked: there will be no lease any more, and only the caller's owner can notice that.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn wait_held(&self) -> LeaseId {
        let mut state = self.state.clone();
        loop {
            if let Some(id) = self.held() {
                return id;
            }
            // The task ends only with this keeper, or by a panic.
            assert!(state.changed().await.is_ok(), "{KeeperPanicked}");
        }
    }

    /// Revokes the lease and waits until the store has deleted its keys, for at most 2 s.
    pub async fn release(mut self) {
        drop(self.stop.take());
        // The sender is dropped at the end. A task that panicked no longer holds a lease.
        let _ = (&mut self.ended).await;
    }
}

/// The state that the task owns.
struct Keeping {
    store: SharedStore,
    timing: LeaseTiming,
    says: watch::Sender<LeaseState>,
    tenure: Arc<Mutex<Option<Tenure>>>,
}

impl Keeping {
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        tokio::select! {
            biased;
            _ = &mut stopped => {}
            () = self.keep() => {}
        }
        let held = self.set(None);
        if let Some(tenure) = held {
            // If this fails, the lease ends by itself.
            let _ = timeout(LEASE_RELEASE, self.store.revoke(tenure.id)).await;
        }
    }

    /// Grants a lease and renews it until it is lost, again and again.
    async fn keep(&self) {
        let mut pauses = GRANT_PAUSE.begin();
        loop {
            let sent = Instant::now();
            match self.store.grant(self.timing.ttl).await {
                Ok(id) => {
                    pauses.reset();
                    self.set(Some(Tenure { id, until: sent + self.timing.ttl }));
                    let cause = self.renew(id, sent + self.timing.ttl).await;
                    self.set(None);
                    tracing::warn!(lease = id, error = %cause, "the lease is lost; granting another");
                    // The store may not know yet that the lease is lost; its keys must not outlive the loss.
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

    /// Renews a lease until it is lost, and returns the reason.
    async fn renew(&self, id: LeaseId, mut until: Instant) -> StoreError {
        let for_ever = planted(Bug::EndedLeaseIsHeld);
        let mut next = Instant::now() + self.timing.renew_every;
        let mut pauses = RENEWAL_PAUSE.begin();
        let mut last = StoreError::LeaseNotFound(id);
        loop {
            sleep_until(next.min(until)).await;
            let sent = Instant::now();
            if sent >= until && !for_ever {
                return last;
            }
            // A renewal may hang for longer than the lease has left.
            let renewed = tokio::select! {
                biased;
                renewed = self.store.keep_alive(id) => renewed,
                () = sleep_until(until), if !for_ever => return last,
            };
            match renewed {
                Ok(left) => {
                    until = sent + left;
                    self.set(Some(Tenure { id, until }));
                    next = sent + self.timing.renew_every;
                    pauses.reset();
                }
                Err(StoreError::LeaseNotFound(_)) if for_ever => {
                    (until, next) = (sent + self.timing.ttl, sent + self.timing.renew_every);
                }
                Err(error @ StoreError::LeaseNotFound(_)) => return error,
                Err(error) => {
                    last = error;
                    next = Instant::now() + pauses.next();
                }
            }
        }
    }

    /// Sets the lease that is held, notifies the receivers, and returns the previous one.
    fn set(&self, tenure: Option<Tenure>) -> Option<Tenure> {
        let before = {
            let mut noted = self.tenure.lock().expect("no panic happens while a tenure is locked");
            std::mem::replace(&mut *noted, tenure)
        };
        let state = tenure.map_or(LeaseState::Lost, |tenure| LeaseState::Held { id: tenure.id });
        self.says.send_if_modified(|said| std::mem::replace(said, state) != state);
        before
    }
}
