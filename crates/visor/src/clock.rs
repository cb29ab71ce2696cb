//! The wall clock, for times that people read.
//!
//! Owns only the way in which the wall clock is passed to a loop. No duration is measured on it, because it may jump.

use std::{fmt, sync::Arc};

use jiff::Timestamp;

/// A wall clock: the machine's, or one that a test sets. Cheap to clone.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl WallClock {
    /// Returns the clock that `now` reads.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        WallClock(Arc::new(now))
    }

    /// Returns the present time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for WallClock {
    /// Returns the machine's clock.
    fn default() -> Self {
        WallClock::new(Timestamp::now)
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallClock({})", self.now())
    }
}
