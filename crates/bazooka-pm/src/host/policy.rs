//! The restart policy of crashed instances. Pure.

use std::time::Duration;

use visor::{
    pause::Doubling,
    planted::{Bug, planted},
};

/// The number of crashes in a row after which the instance is started again at once.
pub const QUICK_RESTARTS: u32 = 3;

/// The wait before each later restart.
const WAIT: Doubling = Doubling::new(Duration::from_secs(30), Duration::from_secs(16 * 60));

/// The length of a run that earns a fresh budget.
const PROVEN: Duration = Duration::from_secs(10 * 60);

/// The reaction to a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start the instance at once.
    AtOnce,
    /// Start the instance after this time.
    After(Duration),
    /// Give the instance up.
    GiveUp,
}

/// Returns the number of crashes in a row, including the crash after a run that took `ran`.
pub fn crashes_in_a_row(before: u32, ran: Duration) -> u32 {
    if ran >= PROVEN { 1 } else { before.saturating_add(1) }
}

/// The length of a healthy run after which an instance has proven itself.
pub const SERVED: Duration = Duration::from_secs(10);

/// The number of a service's first places whose proven instances never wait longer than [`SOON`].
///
/// Places are numbered over the cluster, and a replacement takes over its predecessor's number. So this bounds the
/// starts of a service that has broken, however many instances it has; the others wait longer and longer.
pub const LEADING_PLACES: u32 = 4;

/// The longest wait of a proven instance in a leading place: it runs again within a second.
const SOON: Duration = Duration::from_millis(800);

/// The least time from one start of such an instance to the next.
const APART: Duration = Duration::from_millis(100);

/// A crash.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// The number of crashes in a row, this one included.
    pub in_a_row: u32,
    /// The length of the run.
    pub ran: Duration,
    /// True if the run's check had passed.
    pub was_healthy: bool,
}

/// The crashes of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// True if it was placed for a trial.
    pub trial: bool,
    /// True once one of its runs was healthy for [`SERVED`].
    pub proven: bool,
    /// The instance's place among those of its proc and release.
    pub index: u32,
}

/// Returns the reaction to a start that was not healthy within its boot timeout: as after a crash, but never at once. The
/// instance is seen to wait, so that a person who waits for it is told the cause.
pub fn after_time_out(crash: Crash, standing: Standing) -> Next {
    match after_crash(crash, standing) {
        // The instance had its full boot timeout, and a person waits for the trial's result.
        _ if standing.trial && !standing.proven => Next::GiveUp,
        Next::AtOnce => Next::After(SOON),
        next => next,
    }
}

/// Returns the reaction to a crash.
///
/// An instance that has proven itself crashes because of what it is asked, or for lack of something that it needs, and
/// may serve again any moment. If all instances of a service waited for minutes, a few requests that kill would take
/// the service out. So in the leading places such an instance starts again at once as long as it comes up healthy, and
/// within a second otherwise. An instance on trial that has not proven itself has only its quick restarts.
pub fn after_crash(crash: Crash, standing: Standing) -> Next {
    let Crash { in_a_row, ran, was_healthy } = crash;
    let Standing { trial, proven, index } = standing;
    if proven && index < LEADING_PLACES && !planted(Bug::ProvenServiceWaits) {
        return match APART.saturating_sub(ran) {
            _ if !was_healthy && in_a_row > QUICK_RESTARTS => Next::After(SOON),
            Duration::ZERO => Next::AtOnce,
            wait => Next::After(wait),
        };
    }
    match in_a_row.checked_sub(QUICK_RESTARTS + 1) {
        None => Next::AtOnce,
        Some(_) if trial && !proven => Next::GiveUp,
        Some(_) if planted(Bug::CrashIsNotWaitedFor) => Next::After(Duration::from_millis(30)),
        Some(before) => Next::After(WAIT.after(before)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEW: Standing = Standing { trial: false, proven: false, index: 0 };

    fn crash(in_a_row: u32) -> Crash {
        Crash { in_a_row, ran: Duration::from_secs(1), was_healthy: false }
    }

    fn after(millis: u64) -> Next {
        Next::After(Duration::from_millis(millis))
    }

    #[test]
    fn three_restarts_come_at_once_and_then_the_wait_doubles_to_sixteen_minutes() {
        for standing in [NEW, Standing { proven: true, index: LEADING_PLACES, ..NEW }] {
            let waits: Vec<Next> = (1..=10).map(|crashes| after_crash(crash(crashes), standing)).collect();
            assert_eq!(waits[..3], [Next::AtOnce; 3]);
            let later = [30, 60, 120, 240, 480, 960, 960].map(|seconds| after(seconds * 1_000));
            assert_eq!(waits[3..], later);
            assert_eq!(after_crash(crash(u32::MAX), standing), after(960_000));
        }
    }

    #[test]
    fn one_on_trial_is_given_up_when_its_quick_restarts_are_spent() {
        let trial = Standing { trial: true, ..NEW };
        let next: Vec<Next> = (1..=5).map(|crashes| after_crash(crash(crashes), trial)).collect();
        assert_eq!(next, [Next::AtOnce, Next::AtOnce, Next::AtOnce, Next::GiveUp, Next::GiveUp]);
    }

    #[test]
    fn one_that_has_not_come_up_in_time_is_seen_to_wait_and_one_on_trial_is_given_up() {
        assert_eq!(after_time_out(crash(1), NEW), after(800));
        assert_eq!(after_time_out(crash(4), NEW), after(30_000));
        let trial = Standing { trial: true, ..NEW };
        assert_eq!(after_time_out(crash(1), trial), Next::GiveUp);
        assert_eq!(after_time_out(crash(1), Standing { proven: true, ..trial }), after(800));
    }

    #[test]
    fn one_that_has_proven_itself_runs_again_within_a_second() {
        for trial in [false, true] {
            let proven = Standing { proven: true, index: LEADING_PLACES - 1, trial };
            let next = |in_a_row, millis, was_healthy| {
                after_crash(Crash { in_a_row, ran: Duration::from_millis(millis), was_healthy }, proven)
            };
            assert_eq!(next(50, 150, true), Next::AtOnce, "it had served");
            assert_eq!(next(50, 30, true), after(70), "so soon that its start is put off");
            assert_eq!(next(3, 150, false), Next::AtOnce, "a quick restart");
            assert_eq!(next(3, 30, false), after(70));
            assert_eq!(next(4, 150, false), after(800), "it did not come up");
            assert_eq!(next(u32::MAX, 60_000, false), after(800));
        }
    }

    #[test]
    fn a_long_run_earns_a_fresh_budget() {
        assert_eq!(crashes_in_a_row(7, Duration::from_secs(599)), 8);
        assert_eq!(crashes_in_a_row(7, Duration::from_secs(600)), 1);
    }

    proptest! {
        /// Whatever its crashes, a proven service is tried again within a second in its leading places, and starts no
        /// more often than ten times a second there; in all other places as an unproven one.
        #[test]
        fn a_proven_service_is_tried_again_within_a_second_and_in_its_leading_places_alone(
            in_a_row: u32, ran in 0_u64..2_000, was_healthy: bool, index in 0_u32..10, trial: bool
        ) {
            let crash = Crash { in_a_row, ran: Duration::from_millis(ran), was_healthy };
            let next = after_crash(crash, Standing { trial, proven: true, index });
            if index < LEADING_PLACES {
                let wait = match next {
                    Next::AtOnce => Duration::ZERO,
                    Next::After(wait) => wait,
                    Next::GiveUp => panic!("it is given up"),
                };
                prop_assert!(wait < Duration::from_secs(1));
                prop_assert!(crash.ran + wait >= APART);
            } else {
                prop_assert_eq!(next, after_crash(crash, Standing { trial: false, proven: false, index }));
            }
        }
    }
}
