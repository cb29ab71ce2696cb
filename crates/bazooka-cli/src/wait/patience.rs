//! Patience: how long a command has waited, and its next step.
//!
//! Pure: the caller passes the time; nothing here sleeps or prints.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use visor::deadlines::{COMMAND_QUIET, NO_ROOM, NOBODY, OUT_OF_TOUCH};

use super::{Service, Waiting};

/// The next step of a command that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sleep until a change or this time, then observe again.
    Sleep {
        /// The time to observe again at the latest.
        until: Instant,
    },
    /// Check whether a daemon that should act is missing.
    AskWhoActs {
        /// True if the command gives up when one is missing.
        is_last: bool,
    },
    /// Give up.
    GiveUp(Why),
}

/// The reason for giving up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The coordinator has been out of touch for too long.
    OutOfTouch,
    /// These services have had an instance without a place for too long.
    NoRoom(Vec<Service>),
    /// There has been no progress for this long.
    Late(Duration),
}

/// The number of times that the daemons have been checked since the last progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Never,
    Once,
    ForTheLastTime,
}

/// The times since which a command has been waiting.
#[derive(Debug)]
pub struct Patience<S> {
    /// The state at the last progress, which was at `since`.
    seen: Option<S>,
    since: Instant,
    asked: Asked,
    out_of_touch: Option<Instant>,
    no_room: BTreeMap<Service, Instant>,
}

impl<S: PartialEq> Patience<S> {
    /// Begins to wait.
    pub fn new(now: Instant) -> Self {
        Patience { seen: None, since: now, asked: Asked::Never, out_of_touch: None, no_room: BTreeMap::new() }
    }

    /// Returns the next step while the view is incomplete.
    pub fn out_of_touch(&mut self, now: Instant) -> Step {
        let until = *self.out_of_touch.get_or_insert(now) + OUT_OF_TOUCH;
        if now < until { Step::Sleep { until } } else { Step::GiveUp(Why::OutOfTouch) }
    }

    /// Returns the next step while the change hasn't taken effect.
    pub fn waits(&mut self, now: Instant, waiting: Waiting<S>) -> Step {
        let Waiting { seen, limit, without_room } = waiting;
        self.out_of_touch = None;
        if self.seen.as_ref() != Some(&seen) {
            (self.seen, self.since, self.asked) = (Some(seen), now, Asked::Never);
        }
        self.no_room.retain(|service, _| without_room.contains(service));
        for service in without_room {
            self.no_room.entry(service).or_insert(now);
        }
        let stuck = self.no_room.iter().filter(|(_, since)| now >= **since + NO_ROOM);
        let stuck: Vec<Service> = stuck.map(|(service, _)| service.clone()).collect();
        if !stuck.is_empty() {
            return Step::GiveUp(Why::NoRoom(stuck));
        }
        if now >= self.since + limit {
            return Step::GiveUp(Why::Late(limit));
        }
        let ask = match self.asked {
            Asked::Never => Some((self.since + COMMAND_QUIET, Asked::Once)),
            Asked::Once => Some((self.since + NOBODY, Asked::ForTheLastTime)),
            Asked::ForTheLastTime => None,
        };
        if let Some((at, next)) = ask
            && now >= at
        {
            self.asked = next;
            return Step::AskWhoActs { is_last: next == Asked::ForTheLastTime };
        }
        let no_room = self.no_room.values().min().map(|since| *since + NO_ROOM);
        let alarms = [ask.map(|(at, _)| at), no_room, Some(self.since + limit)];
        Step::Sleep { until: alarms.into_iter().flatten().min().unwrap_or(self.since + limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(90);

    fn waiting(seen: u32) -> Waiting<u32> {
        Waiting { seen, limit: LIMIT, without_room: Vec::new() }
    }

    /// Returns the steps other than sleep, each with its second, if `seen` gives the state at each second.
    fn steps(seen: impl Fn(u64) -> Waiting<u32>) -> Vec<(u64, Step)> {
        let begin = Instant::now();
        let mut patience = Patience::new(begin);
        let mut steps = Vec::new();
        for second in 0..200 {
            let now = begin + SECOND * u32::try_from(second).expect("it is small");
            loop {
                match patience.waits(now, seen(second)) {
                    Step::Sleep { until } => {
                        assert!(until > now, "it never spins");
                        break;
                    }
                    Step::GiveUp(why) => {
                        steps.push((second, Step::GiveUp(why)));
                        return steps;
                    }
                    ask => steps.push((second, ask)),
                }
            }
        }
        steps
    }

    #[test]
    fn quiet_is_asked_about_twice_and_ends_at_the_limit() {
        let ask = |is_last| Step::AskWhoActs { is_last };
        let late = Step::GiveUp(Why::Late(LIMIT));
        assert_eq!(steps(|_| waiting(0)), [(2, ask(false)), (15, ask(true)), (90, late.clone())]);
        // The change at the tenth second starts the waiting over.
        let seen = |second| waiting(u32::from(second >= 10));
        assert_eq!(steps(seen), [(2, ask(false)), (12, ask(false)), (25, ask(true)), (100, late)]);
    }

    #[test]
    fn a_service_that_has_room_for_a_moment_begins_anew() {
        let service = || ("a".parse().expect("a name"), "web".parse().expect("a name"));
        let seen = |second: u64| {
            let without_room = if second == 10 { Vec::new() } else { vec![service()] };
            Waiting { without_room, ..waiting(u32::try_from(second).expect("it is small")) }
        };
        assert_eq!(steps(seen), [(26, Step::GiveUp(Why::NoRoom(vec![service()])))]);
    }

    #[test]
    fn a_coordinator_may_be_out_of_touch_for_a_while_each_time() {
        let begin = Instant::now();
        let mut patience = Patience::new(begin);
        let sleeps = |step| matches!(step, Step::Sleep { .. });
        assert!(sleeps(patience.out_of_touch(begin)));
        assert!(sleeps(patience.out_of_touch(begin + SECOND * 14)));
        assert!(sleeps(patience.waits(begin + SECOND, waiting(0))));
        assert!(sleeps(patience.out_of_touch(begin + SECOND * 20)));
        assert_eq!(patience.out_of_touch(begin + SECOND * 35), Step::GiveUp(Why::OutOfTouch));
    }
}
