//! What the service manager is told of a daemon: that it is ready, what it is at, that its loop goes on, that it ends.
//!
//! Owns the words of systemd's protocol (`sd_notify`) and when they are due. Where nobody listens, nothing is said. A daemon's own loop
//! says that it goes on, by [`Pulse::beat`]: one that hangs says nothing, and is started again.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::Readiness;

/// Says when the daemon is ready and when it was told to end, for as long as what it returns is held.
#[must_use = "nothing is said once it is dropped"]
pub fn announce(readiness: Readiness, shutdown: CancellationToken) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::select! {
            () = readiness.reached() => say(&[NotifyState::Ready]),
            () = shutdown.cancelled() => {}
        }
        shutdown.cancelled().await;
        say(&[NotifyState::Stopping, NotifyState::Status("ending")]);
    }))
}

fn say(words: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing; a manager that can't be reached can't be told that either.
    let _ = sd_notify::notify(words);
}

/// A loop's life sign, and what it says of itself.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// How often a sign is wanted; none: nobody waits for one.
    every: Option<Duration>,
    due: Option<Instant>,
    /// The last word; none: nobody reads it.
    said: Option<String>,
}

impl Pulse {
    /// As the service manager asked for it: a sign at half the time after which it would be missed.
    pub fn asked_for() -> Pulse {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        let every = sd_notify::watchdog_enabled().filter(|_| listens).map(|within| within / 2);
        Pulse { every, due: every.map(|_| Instant::now()), said: listens.then(String::new) }
    }

    /// When the loop is to come round again for it.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The loop goes on. Says so if that is due.
    pub fn beat(&mut self) {
        if self.is_due(Instant::now()) {
            say(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        match (self.due, self.every) {
            (Some(due), Some(every)) if due <= now => {
                self.due = Some(now + every);
                true
            }
            _ => false,
        }
    }

    /// Says what the daemon is at, if it is another thing than before.
    pub fn status(&mut self, words: impl FnOnce() -> String) {
        let Some(said) = &mut self.said else { return };
        let words = words();
        if *said != words {
            say(&[NotifyState::Status(&words)]);
            *said = words;
        }
    }

    /// For a daemon whose one task waits for several things: to be joined with them, so that it goes on only as they do.
    pub async fn keep(mut self) {
        loop {
            match self.due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
            self.beat();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sign_is_given_at_once_and_then_when_half_the_time_is_over() {
        let mut pulse = Pulse { every: Some(Duration::from_secs(15)), due: Some(Instant::now()), said: None };
        let begin = Instant::now();
        let mut given = Vec::new();
        for second in 0..40 {
            let now = begin + Duration::from_secs(second);
            if pulse.is_due(now) {
                given.push(second);
            }
        }
        assert_eq!(given, [0, 15, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_waits_for_a_sign_the_loop_is_not_woken_for_it() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.due(), None);
        assert!(!pulse.is_due(Instant::now()));
        pulse.status(|| unreachable!("nobody reads it"));
    }
}
