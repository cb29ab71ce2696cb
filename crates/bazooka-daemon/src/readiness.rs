//! The readiness of a daemon, which is ready once each of its parts is.
//!
//! Owns the latch behind `/readyz` and the message to systemd. It never closes again.

use tokio::sync::watch;

/// Readiness as a latch: ready once each part that asked for time has dropped its [`NotReady`].
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<usize>);

/// Delays readiness until it is dropped.
#[derive(Debug)]
pub struct NotReady(watch::Sender<usize>);

impl Default for Readiness {
    fn default() -> Self {
        Readiness(watch::Sender::new(0))
    }
}

impl Readiness {
    /// Delays readiness for one more part.
    pub fn hold(&self) -> NotReady {
        self.0.send_modify(|held| *held += 1);
        NotReady(self.0.clone())
    }

    /// Reports whether every part is ready.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow() == 0
    }

    /// Waits until every part is ready.
    pub async fn reached(&self) {
        // The channel can't close while this value holds a sender.
        let _ = self.0.subscribe().wait_for(|held| *held == 0).await;
    }
}

impl Drop for NotReady {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}
