//! The pause between attempts that fail.
//!
//! Owns the one rule by which every loop of Bazooka waits before it tries again: the pause doubles with each failure in
//! a row, up to a bound, and starts again after a success. [`until`] alone sleeps.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Sleeps until a time; for ever if there is none.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A pause that doubles with each failure in a row, up to a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubling {
    first: Duration,
    longest: Duration,
}

impl Doubling {
    /// Returns a pause that begins at `first` and never exceeds `longest`.
    ///
    /// # Panics
    /// If `first` is zero or exceeds `longest`; in a constant, that fails the build.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        assert!(!first.is_zero(), "a pause of nothing doubles to nothing");
        assert!(first.as_nanos() <= longest.as_nanos(), "the first pause exceeds the longest");
        Doubling { first, longest }
    }

    /// Returns the longest pause.
    pub const fn longest(self) -> Duration {
        self.longest
    }

    /// Returns the pause after one more failure, when `failures` came before it in a row.
    pub fn after(self, failures: u32) -> Duration {
        let doubled = 2_u32.checked_pow(failures).and_then(|times| self.first.checked_mul(times));
        doubled.map_or(self.longest, |pause| pause.min(self.longest))
    }

    /// Returns the pause of [`Doubling::after`], cut by up to a quarter, so that many who failed at once do not return
    /// at once.
    ///
    /// `seed` tells one process from another; the same seed and count give the same pause.
    pub fn jittered(self, failures: u32, seed: u64) -> Duration {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, failures));
        self.after(failures).mul_f64(0.75 + (hash % 1_000) as f64 / 4_000.0)
    }

    /// Returns a counter of failures in a row, for a loop that keeps no count of its own.
    pub const fn begin(self) -> Pauses {
        Pauses { doubling: self, failures: 0 }
    }
}

/// A [`Doubling`] with the number of failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    doubling: Doubling,
    failures: u32,
}

impl Pauses {
    /// Returns the pause that [`Pauses::next`] will return.
    pub fn peek(&self) -> Duration {
        self.doubling.after(self.failures)
    }

    /// Counts a failure, and returns the pause that follows it.
    #[allow(clippy::should_implement_trait, reason = "the pauses have no end, so that an Option would lie")]
    pub fn next(&mut self) -> Duration {
        let pause = self.peek();
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Forgets the failures after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(30));

    #[test]
    fn doubles_up_to_the_bound_and_begins_anew_after_a_success() {
        let mut pauses = SECONDS.begin();
        let seconds: Vec<u64> = (0..7).map(|_| pauses.next().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        pauses.reset();
        assert_eq!(pauses.peek(), Duration::from_secs(1));
        assert_eq!(pauses.next(), Duration::from_secs(1));
    }

    #[test]
    fn stays_at_the_bound_whatever_the_count() {
        for failures in [31, 32, 63, 64, u32::MAX] {
            assert_eq!(SECONDS.after(failures), Duration::from_secs(30));
        }
        let long = Doubling::new(Duration::from_secs(1 << 40), Duration::MAX);
        assert_eq!(long.after(31), Duration::MAX);
    }

    #[test]
    fn jitter_cuts_a_quarter_at_most_and_tells_seeds_apart() {
        let pauses: Vec<Duration> = (0..100).map(|seed| SECONDS.jittered(3, seed)).collect();
        let whole = SECONDS.after(3);
        assert!(pauses.iter().all(|pause| *pause >= whole * 3 / 4 && *pause <= whole), "{pauses:?}");
        assert!(pauses.iter().collect::<std::collections::BTreeSet<_>>().len() > 50, "{pauses:?}");
        assert_eq!(SECONDS.jittered(3, 7), SECONDS.jittered(3, 7));
    }
}
