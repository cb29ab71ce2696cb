//! The order in which instances of a release stay where there are too many.
//!
//! Instances that serve stay before those that start, and those before instances that fail; among equals, the lowest
//! index stays first.

use crate::{names::InstanceId, schema::State};

use super::failing::is_failing;

/// The health of an instance, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// The instance runs.
    Serves,
    /// The instance was placed, or is starting.
    Starts,
    /// The instance has crashed and waits for its next start, or has failed for good.
    Fails,
    /// Nothing of it runs any more, or soon nothing will.
    Over,
}

impl Health {
    /// Returns the health for the state that the host reports; none means that there is no report yet.
    pub fn of(state: Option<State>) -> Health {
        match state {
            Some(State::Running) => Health::Serves,
            None | Some(State::Claimed) => Health::Starts,
            Some(state) if is_failing(state) => Health::Fails,
            Some(_) => Health::Over,
        }
    }
}

/// Returns an instance's rank among those of its release; where there are too many, those with the lowest rank stay.
pub fn staying(health: Health, index: u32, id: InstanceId) -> (Health, u32, InstanceId) {
    (health, index, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serves_stays_then_what_starts_then_the_lowest_place() {
        let mut all = [
            (1, Some(State::Failed), 0),
            (2, Some(State::Backoff), 1),
            (3, None, 2),
            (4, Some(State::Claimed), 3),
            (5, Some(State::Running), 5),
            (6, Some(State::Running), 4),
            (7, Some(State::Lost), 6),
            (8, Some(State::Exited), 7),
        ];
        all.sort_by_key(|(id, state, index)| staying(Health::of(*state), *index, InstanceId(*id)));
        assert_eq!(all.map(|(id, ..)| id), [6, 5, 3, 4, 1, 2, 7, 8]);
    }
}
