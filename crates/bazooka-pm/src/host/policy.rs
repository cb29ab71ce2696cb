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

/// Returns the reaction to the last of so many crashes in a row. An instance on trial has only its quick restarts.
pub fn after_crash(in_a_row: u32, trial: bool) -> Next {
    match in_a_row.checked_sub(QUICK_RESTARTS + 1) {
        None => Next::AtOnce,
        Some(_) if trial => Next::GiveUp,
        Some(_) if planted(Bug::CrashIsNotWaitedFor) => Next::After(Duration::from_millis(30)),
        Some(before) => Next::After(WAIT.after(before)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_restarts_come_at_once_and_then_the_wait_doubles_to_sixteen_minutes() {
        let waits: Vec<Next> = (1..=10).map(|crashes| after_crash(crashes, false)).collect();
        let after = |seconds| Next::After(Duration::from_secs(seconds));
        assert_eq!(waits[..3], [Next::AtOnce; 3]);
        let later = [30, 60, 120, 240, 480, 960, 960].map(after);
        assert_eq!(waits[3..], later);
        assert_eq!(after_crash(u32::MAX, false), after(960));
    }

    #[test]
    fn one_on_trial_is_given_up_when_its_quick_restarts_are_spent() {
        let next: Vec<Next> = (1..=5).map(|crashes| after_crash(crashes, true)).collect();
        assert_eq!(next, [Next::AtOnce, Next::AtOnce, Next::AtOnce, Next::GiveUp, Next::GiveUp]);
    }

    #[test]
    fn a_long_run_earns_a_fresh_budget() {
        assert_eq!(crashes_in_a_row(7, Duration::from_secs(599)), 8);
        assert_eq!(crashes_in_a_row(7, Duration::from_secs(600)), 1);
    }
}
