//! When a crashed instance is started again. Pure.

use std::time::Duration;

use visor::pause::Doubling;

/// So many crashes in a row are answered by a start at once.
pub const QUICK_RESTARTS: u32 = 3;

/// The wait after those.
const WAIT: Doubling = Doubling::new(Duration::from_secs(30), Duration::from_secs(16 * 60));

/// A run of this length earns a fresh budget.
const PROVEN: Duration = Duration::from_secs(10 * 60);

/// What follows a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A start at once.
    AtOnce,
    /// A start after this time.
    After(Duration),
    /// Nothing: it is given up.
    GiveUp,
}

/// How many crashes in a row there are now, with the one of a run that took `ran`.
pub fn crashes_in_a_row(before: u32, ran: Duration) -> u32 {
    if ran >= PROVEN { 1 } else { before.saturating_add(1) }
}

/// What follows the last of so many crashes in a row. One on trial has its quick restarts only.
pub fn after_crash(in_a_row: u32, trial: bool) -> Next {
    match in_a_row.checked_sub(QUICK_RESTARTS + 1) {
        None => Next::AtOnce,
        Some(_) if trial => Next::GiveUp,
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
