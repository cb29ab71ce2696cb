//! A daemon's messages to the service manager: that it is ready, its status, that its loop goes on, and that it ends.
//!
//! Owns the messages of systemd's protocol (`sd_notify`) and when they are due. Without a service manager nothing is
//! sent. A daemon's own loop sends its life sign, by [`Pulse::beat`]; systemd restarts a daemon whose loop hangs.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use visor::pause::until;

use crate::Readiness;

/// Announces when the daemon is ready and when it was told to end, for as long as the returned handle is held.
///
/// Nothing waits for this task's end: a daemon that never reports ready is ended by the service manager.
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
    // Without NOTIFY_SOCKET this does nothing. An error can't be reported to a manager that can't be reached.
    let _ = sd_notify::notify(words);
}

/// A loop's life sign and status.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// The time between two signs; none if the manager expects none.
    every: Option<Duration>,
    due: Option<Instant>,
    /// The last status; none if no manager reads it.
    said: Option<String>,
}

impl Pulse {
    /// Creates the pulse that the service manager asks for: a sign after half of its watchdog time.
    pub fn asked_for() -> Pulse {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        let every = sd_notify::watchdog_enabled().filter(|_| listens).map(|within| within / 2);
        Pulse { every, due: every.map(|_| Instant::now()), said: listens.then(String::new) }
    }

    /// Returns when the loop has to wake up for the next sign.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sends a sign if one is due. The loop calls this in each round.
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

    /// Sends the daemon's status, if it has changed.
    pub fn status(&mut self, words: impl FnOnce() -> String) {
        let Some(said) = &mut self.said else { return };
        let words = words();
        if *said != words {
            say(&[NotifyState::Status(&words)]);
            *said = words;
        }
    }

    /// Sends signs for a daemon whose one task waits for several things. It must be joined with these in the same
    /// task, so that it runs only while they do.
    pub async fn keep(mut self) {
        loop {
            until(self.due).await;
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
