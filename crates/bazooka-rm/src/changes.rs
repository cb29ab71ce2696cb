//! The number of changes of something, which any number of tasks wait for.
//!
//! Tasks are woken in the order in which they began to wait. (Those of a tokio `watch` channel are woken in an order that
//! its own generator draws, so that a simulated day would differ from its replay.)

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// The side that reports changes. When it is dropped, waiting ends.
#[derive(Debug, Default)]
pub struct Changing(Arc<Shared>);

/// The side that waits for changes. A clone has seen the same ones.
#[derive(Clone, Debug)]
pub struct Changes {
    shared: Arc<Shared>,
    seen: u64,
}

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    has_ended: AtomicBool,
    changed: Notify,
}

/// The error of waiting: the other side is gone, and with it all later changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source of these changes has ended")]
pub struct ChangesEnded;

impl Changing {
    /// Reports a change.
    pub fn report(&self) {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Returns a receiver of later changes.
    pub fn subscribe(&self) -> Changes {
        Changes { shared: self.0.clone(), seen: self.0.count.load(Ordering::SeqCst) }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Changes {
    /// Waits for a change since the last one that was waited for or marked.
    ///
    /// # Errors
    /// [`ChangesEnded`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) -> Result<(), ChangesEnded> {
        loop {
            // Before the look, so that no change is missed.
            let changed = self.shared.changed.notified();
            let count = self.shared.count.load(Ordering::SeqCst);
            if count != self.seen {
                self.seen = count;
                return Ok(());
            }
            if self.shared.has_ended.load(Ordering::SeqCst) {
                return Err(ChangesEnded);
            }
            changed.await;
        }
    }

    /// Marks all changes so far as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.count.load(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_are_woken_in_the_order_in_which_they_began_to_wait() {
        let (changing, woken) = (Changing::default(), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = Vec::new();
        for number in 0..50 {
            let (mut changes, woken) = (changing.subscribe(), woken.clone());
            tasks.push(tokio::spawn(async move {
                changes.changed().await.expect("the source is there");
                woken.lock().expect("nobody panics with it").push(number);
            }));
        }
        // All of them wait.
        tokio::task::yield_now().await;
        changing.report();
        for task in tasks {
            task.await.expect("it doesn't panic");
        }
        assert_eq!(*woken.lock().expect("nobody panics with it"), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn no_change_is_missed_and_the_end_is_told_after_the_last_one() {
        let changing = Changing::default();
        let mut changes = changing.subscribe();
        changing.report();
        changing.report();
        assert_eq!(changes.changed().await, Ok(()));
        changing.report();
        changes.mark_unchanged();
        let mut other = changing.subscribe();
        changing.report();
        drop(changing);
        for changes in [&mut changes, &mut other] {
            assert_eq!((changes.changed().await, changes.changed().await), (Ok(()), Err(ChangesEnded)));
        }
    }
}
