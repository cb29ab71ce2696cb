//! The history of pruned config vars that etcd still holds: how much of it there is, and when it may be forgotten.
//!
//! Owns two bounds. etcd keeps what was deleted until it is compacted, and nothing younger than [`HISTORY_AGE`] is: lists
//! and watches would have to begin again. So an app may add a quarter of its bytes to the history, and waits with more
//! until that is compacted. Whatever one app's people do, an app then takes no more of etcd than one and a half times
//! its bytes. Pure but for the monotonic clock.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use visor::{names::AppName, quota::Bounds, store::Revision};

/// The most bytes of the history of all apps before it is compacted; less if an app may have less.
const HISTORY_BYTES: u64 = 64 << 20;

/// The age of a revision from which nothing is read of its history: lists and watches are younger by far.
pub const HISTORY_AGE: Duration = Duration::from_secs(30);

/// The history of pruned rows that etcd still holds.
#[derive(Default)]
pub struct History {
    /// The rows, oldest first.
    pruned: VecDeque<Piece>,
    /// The apps with rows that wait for a compaction.
    held: BTreeSet<AppName>,
    /// The apps of which anything was pruned.
    seen: BTreeSet<AppName>,
}

/// Rows of an app that were deleted together.
struct Piece {
    app: AppName,
    bytes: u64,
    /// The revision of their deletion. The image's own revision is no measure: with many scopes it lags for hours.
    until: Revision,
    /// The time of their deletion.
    at: Instant,
}

impl History {
    /// Notes config vars of an app that were deleted just now, at this revision.
    pub fn add(&mut self, app: &AppName, bytes: u64, until: Revision) {
        if bytes > 0 {
            self.seen.insert(app.clone());
            self.pruned.push_back(Piece { app: app.clone(), bytes, until, at: Instant::now() });
        }
    }

    /// Notes whether an app has rows that wait for a compaction.
    pub fn held(&mut self, app: &AppName, waits: bool) {
        if !waits {
            self.held.remove(app);
        } else if self.held.insert(app.clone()) {
            tracing::info!(app = %app, "its config vars change fast: older ones are pruned once etcd has forgotten earlier ones");
        }
    }

    /// Forgets the apps that wait and are no longer there.
    pub fn keep(&mut self, is_there: impl Fn(&AppName) -> bool) {
        self.held.retain(&is_there);
        self.seen.retain(&is_there);
    }

    /// Returns the bytes that an app may add now; the row that exceeds them may still be added.
    ///
    /// The first time it may add all that there is: nobody pruned before, and etcd may be full.
    pub fn room(&self, app: &AppName, bounds: Bounds) -> u64 {
        if !self.seen.contains(app) {
            return u64::MAX;
        }
        let own: u64 = self.pruned.iter().filter(|piece| piece.app == *app).map(|piece| piece.bytes).sum();
        (bounds.bytes / 4).saturating_sub(own)
    }

    /// Returns in what time there is something to do: a compaction, or rows that waited for one. None if there is too
    /// little to forget.
    pub fn due_in(&self, bounds: Bounds) -> Option<Duration> {
        if self.held.iter().any(|app| self.room(app, bounds) > 0) {
            return Some(Duration::ZERO);
        }
        let oldest = self.pruned.front().filter(|_| self.is_much(bounds))?;
        Some(HISTORY_AGE.saturating_sub(oldest.at.elapsed()))
    }

    /// Returns the revision to compact to, if it is time.
    pub fn old(&self, bounds: Bounds) -> Option<Revision> {
        let old = self.pruned.iter().rev().find(|piece| piece.at.elapsed() >= HISTORY_AGE);
        old.filter(|_| self.is_much(bounds)).map(|piece| piece.until)
    }

    /// Forgets what was deleted up to a revision that etcd is compacted to. Returns its bytes.
    pub fn forget(&mut self, to: Revision) -> u64 {
        let before = self.bytes();
        self.pruned.retain(|piece| piece.until > to);
        before - self.bytes()
    }

    fn is_much(&self, bounds: Bounds) -> bool {
        !self.held.is_empty() || self.bytes() >= HISTORY_BYTES.min(bounds.bytes)
    }

    fn bytes(&self) -> u64 {
        self.pruned.iter().map(|piece| piece.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const BOUNDS: Bounds = Bounds { releases: 50, bytes: 16 << 20, instances: 1 };

    fn app(name: &str) -> AppName {
        name.parse().expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn much_is_forgotten_once_it_is_half_a_minute_old() {
        let mut history = History::default();
        history.add(&app("a"), 1 << 20, 10);
        advance(HISTORY_AGE / 2).await;
        assert_eq!((history.due_in(BOUNDS), history.old(BOUNDS)), (None, None), "it is little");
        history.add(&app("b"), 16 << 20, 20);
        assert_eq!((history.due_in(BOUNDS), history.old(BOUNDS)), (Some(HISTORY_AGE / 2), None));
        advance(HISTORY_AGE / 2).await;
        assert_eq!(history.old(BOUNDS), Some(10), "no further than to a revision of half a minute ago");
        assert_eq!(history.forget(10), 1 << 20);
        assert_eq!((history.due_in(BOUNDS), history.old(BOUNDS)), (Some(HISTORY_AGE / 2), None));
        advance(HISTORY_AGE / 2).await;
        assert_eq!(history.old(BOUNDS), Some(20));
        assert_eq!((history.forget(20), history.due_in(BOUNDS)), (16 << 20, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_waits_is_not_kept_waiting_for_others() {
        let mut history = History::default();
        assert_eq!(history.room(&app("a"), BOUNDS), u64::MAX, "nobody pruned it before");
        history.add(&app("a"), 5 << 20, 10);
        assert_eq!((history.room(&app("a"), BOUNDS), history.room(&app("b"), BOUNDS)), (0, u64::MAX));
        history.held(&app("a"), true);
        assert_eq!(history.old(BOUNDS), None, "it is too young");
        advance(HISTORY_AGE).await;
        assert_eq!(history.old(BOUNDS), Some(10));
        history.forget(10);
        assert_eq!(history.room(&app("a"), BOUNDS), 4 << 20);
        assert_eq!(history.due_in(BOUNDS), Some(Duration::ZERO), "what waited may go");
        history.held(&app("a"), false);
        assert_eq!(history.due_in(BOUNDS), None);
    }
}
