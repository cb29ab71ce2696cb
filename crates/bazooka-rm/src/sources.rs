//! The sources of what a push can't decide by itself: the time of day, and ids that nobody can guess.
//!
//! A simulation gives its own, so that a seed makes every choice.

use std::sync::Arc;

use jiff::Timestamp;
use visor::clock::WallClock;

/// The two sources. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    wall: WallClock,
    random: Arc<dyn Fn() -> u128 + Send + Sync>,
}

impl Sources {
    /// Returns sources of this clock and this randomness.
    pub fn new(wall: WallClock, random: impl Fn() -> u128 + Send + Sync + 'static) -> Sources {
        Sources { wall, random: Arc::new(random) }
    }

    /// Returns the present time.
    pub fn now(&self) -> Timestamp {
        self.wall.now()
    }

    /// Returns a new random id.
    pub fn id(&self) -> String {
        format!("{:032x}", (self.random)())
    }

    /// Returns a random number.
    pub fn number(&self) -> u32 {
        u32::try_from((self.random)() & u128::from(u32::MAX)).expect("it is masked")
    }
}

impl Default for Sources {
    /// Returns the machine's clock and the kernel's randomness.
    fn default() -> Self {
        Sources::new(WallClock::default(), rand::random::<u128>)
    }
}
