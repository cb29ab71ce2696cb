//! The grace period after a partition: how long replaced instances on this host go on answering requests.
//!
//! A host is seldom cut off alone. The proxies beside it still use the routes that they last knew, with this host's
//! instances among them. Once all are back, these proxies need a moment to learn which instances have been replaced,
//! and to see that the replacements can be reached. Owns that moment. Pure.

use std::time::Duration;

use visor::{
    deadlines::SERVE_AFTER_PARTITION,
    planted::{Bug, planted},
};

use super::model::Tick;

/// A host that registers again within this time was not cut off. Its bazooka-pm may have been paused; its proxies
/// learned of the replacements long ago.
const CUT_OFF: Duration = Duration::from_millis(500);

/// The longest time that replaced instances wait for a registration, because another bazooka-pm may hold this name.
const LONGEST: Duration = Duration::from_secs(60);

/// The host's registration over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionGrace {
    lost_at: Option<Tick>,
    serve_until: Tick,
}

impl PartitionGrace {
    /// Notes whether the host is registered.
    pub fn note(&mut self, registered: bool, now: Tick) {
        match (registered, self.lost_at) {
            (false, None) => {
                self.lost_at = Some(now);
                self.serve_until = Tick(u64::MAX);
            }
            (true, Some(lost_at)) => {
                self.lost_at = None;
                let cut_off = now >= lost_at.after(CUT_OFF) && !planted(Bug::ReplacedEndAtOnce);
                self.serve_until = if cut_off { now.after(SERVE_AFTER_PARTITION) } else { now };
            }
            (false, Some(_)) | (true, None) => {}
        }
    }

    /// Returns until when instances that are no longer assigned go on answering requests, as far as is known now.
    pub fn serve_until(&self, now: Tick) -> Tick {
        self.serve_until.min(now.after(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_cut_off_waits_for_those_who_were_cut_off_with_it() {
        for (what, lost_at, back_at, until) in [
            ("cut off", Some(1_000), 20_000, 40_000),
            ("a registration that was made anew at once", Some(1_000), 1_100, 1_100),
            ("the first registration", None, 20_000, 0),
        ] {
            let mut touch = PartitionGrace::default();
            if let Some(at) = lost_at {
                touch.note(false, Tick(at));
                touch.note(false, Tick(at + 50));
                assert!(touch.serve_until(Tick(at + 50)) > Tick(at + 50), "{what}: not before it is back");
            }
            touch.note(true, Tick(back_at));
            assert_eq!(touch.serve_until(Tick(back_at)), Tick(until), "{what}");
            touch.note(true, Tick(back_at + 1_000));
            assert_eq!(touch.serve_until(Tick(back_at)), Tick(until), "{what}: told once more");
        }
    }
}
