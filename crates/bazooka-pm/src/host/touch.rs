//! Whether this host was cut off, and how long what was replaced meanwhile still answers requests.
//!
//! A host is seldom cut off alone: the proxies that stand beside it have gone on with what they were last told, its
//! instances among them. Once all are back, they need a moment to hear what has been replaced, and to see that what runs
//! instead can be reached. Owns that moment. Pure.

use std::time::Duration;

use visor::deadlines::SERVE_AFTER_PARTITION;

use super::model::Tick;

/// Who loses a registration and has another sooner was not cut off: a bazooka-pm that was paused, say, whose proxies have
/// long been told.
const CUT_OFF: Duration = Duration::from_millis(500);

/// At most so long it is waited for a registration, which another may hold under this name.
const LONGEST: Duration = Duration::from_secs(60);

/// Registered or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touch {
    lost_at: Option<Tick>,
    serve_until: Tick,
}

impl Touch {
    /// Takes note of whether the host is registered.
    pub fn note(&mut self, registered: bool, now: Tick) {
        match (registered, self.lost_at) {
            (false, None) => {
                self.lost_at = Some(now);
                self.serve_until = Tick(u64::MAX);
            }
            (true, Some(lost_at)) => {
                self.lost_at = None;
                let cut_off = now >= lost_at.after(CUT_OFF);
                self.serve_until = if cut_off { now.after(SERVE_AFTER_PARTITION) } else { now };
            }
            (false, Some(_)) | (true, None) => {}
        }
    }

    /// Until when what is no longer assigned goes on answering requests, as far as that can be said now.
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
            ("cut off", Some(1_000), 20_000, 25_000),
            ("a registration that was made anew at once", Some(1_000), 1_100, 1_100),
            ("the first registration", None, 20_000, 0),
        ] {
            let mut touch = Touch::default();
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
