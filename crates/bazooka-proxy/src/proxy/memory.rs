//! The loop's memory between two rounds.
//!
//! Owns four small states, each pure: failed reloads, a reload that waits for old workers, instances that are being
//! taken out, and servers that are to be deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use visor::{
    names::InstanceId,
    pause::{Doubling, Pauses},
    planted::{Bug, planted},
};

use crate::{
    balancer::InTheWay,
    plan::{InForce, Step},
    routes::ServiceId,
};

/// The pause before a failed configuration is tried again.
const PAUSE: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(60));

/// The last failed reload.
#[derive(Debug, Default)]
pub struct Attempts {
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    hash: String,
    cause: String,
    again_at: Instant,
    pauses: Pauses,
}

impl Attempts {
    /// Returns when the configuration with this structural hash may be tried again; `None` for now. A configuration
    /// with another hash is never delayed.
    pub fn not_before(&self, hash: &str, now: Instant) -> Option<Instant> {
        let failed = self.failed.as_ref()?;
        (failed.hash == hash && now < failed.again_at).then_some(failed.again_at)
    }

    /// Records a failure, and returns when to try again.
    pub fn failed(&mut self, hash: String, cause: String, now: Instant) -> Instant {
        let again = self.failed.as_ref().filter(|failed| failed.hash == hash);
        let mut pauses = again.map_or(PAUSE.begin(), |failed| failed.pauses);
        let again_at = now + pauses.next();
        self.failed = Some(Failed { hash, cause, again_at, pauses });
        again_at
    }

    /// Records that what is wanted is in force.
    pub fn succeeded(&mut self) {
        self.failed = None;
    }

    /// Returns why the last reload failed, until one succeeds.
    pub fn cause(&self) -> Option<&str> {
        self.failed.as_ref().map(|failed| failed.cause.as_str())
    }
}

/// The time that a reload waits for requests on old workers that the reload would end.
const FOR_REQUESTS: Duration = Duration::from_secs(5);

/// The time that a reload waits for idle connections on such workers. A connection in use closes within that time,
/// because the next response asks for it.
const FOR_CONNECTIONS: Duration = Duration::from_secs(1);

/// The interval at which old workers are checked while a reload waits for them.
const LOOK_AT_OLD_WORKERS: Duration = Duration::from_millis(50);

/// A reload that waits because it would end old workers with open connections.
#[derive(Debug, Default)]
pub struct ReloadWait {
    since: Option<Instant>,
}

impl ReloadWait {
    /// Returns when to check again; `None` if the reload shall be made now, ending old workers as needed.
    pub fn wait(&mut self, in_the_way: InTheWay, now: Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert(now);
        let time = match in_the_way {
            InTheWay::Nothing => Duration::ZERO,
            InTheWay::Connections => FOR_CONNECTIONS,
            InTheWay::Requests => FOR_REQUESTS,
        };
        if now < since + time {
            return Some(now + LOOK_AT_OLD_WORKERS);
        }
        self.since = None;
        None
    }
}

/// The instances that are being taken out.
///
/// An instance seen out of the routing and without a session is settled for good: no worker sends it new requests.
#[derive(Debug, Default)]
pub struct Drains {
    settled: BTreeSet<InstanceId>,
    busy: BTreeSet<InstanceId>,
}

impl Drains {
    /// Forgets the instances that are no longer being taken out.
    pub fn keep_only(&mut self, leaving: &BTreeMap<InstanceId, ServiceId>) {
        self.settled.retain(|instance| leaving.contains_key(instance));
        self.busy.retain(|instance| leaving.contains_key(instance));
    }

    /// Returns the instances that may have open sessions.
    pub fn pending(&self, leaving: &BTreeMap<InstanceId, ServiceId>) -> BTreeMap<InstanceId, ServiceId> {
        leaving
            .iter()
            .filter(|(instance, _)| !self.settled.contains(instance))
            .map(|(instance, service)| (*instance, service.clone()))
            .collect()
    }

    /// Records the sessions that were counted after the instances had been taken out of the routing.
    pub fn count(
        &mut self,
        pending: &BTreeMap<InstanceId, ServiceId>,
        open: &BTreeMap<InstanceId, u32>,
        is_out: impl Fn(InstanceId, &ServiceId) -> bool,
    ) {
        for (instance, service) in pending {
            if open.get(instance).is_some_and(|open| *open > 0) {
                self.busy.insert(*instance);
            } else {
                self.busy.remove(instance);
                if is_out(*instance, service) {
                    self.settled.insert(*instance);
                }
            }
        }
    }

    /// Marks all of `pending` busy, because the sessions can't be counted.
    pub fn unknown(&mut self, pending: &BTreeMap<InstanceId, ServiceId>) {
        if !planted(Bug::UncountedSessionsAreNone) {
            self.busy.extend(pending.keys());
        }
    }

    /// Returns the instances that had open sessions at the last count.
    pub fn busy(&self) -> &BTreeSet<InstanceId> {
        &self.busy
    }
}

/// The time that a disabled server stays before it is deleted. A request that is being redispatched may still refer
/// to it, and an instance that restarts meanwhile gets its server back without a new one.
const REST: Duration = Duration::from_secs(10);

/// The disabled servers, with the time from which each may be deleted.
#[derive(Debug, Default)]
pub struct Retired {
    from: BTreeMap<(String, String), Instant>,
}

impl Retired {
    /// Starts over with a new worker: the time of each server disabled in it counts from now.
    pub fn restart(&mut self, in_force: &InForce, now: Instant) {
        self.from = in_force
            .servers
            .iter()
            .flat_map(|(backend, servers)| {
                servers.iter().map(move |(server, state)| (backend, server, state))
            })
            .filter(|(_, _, state)| state.maintenance)
            .map(|(backend, server, _)| ((backend.clone(), server.clone()), now + REST))
            .collect();
    }

    /// Reports whether a step may be taken now. Only a delete may have to wait.
    pub fn may(&self, step: &Step, now: Instant) -> bool {
        match step {
            Step::Delete { backend, server } => {
                self.from.get(&(backend.clone(), server.clone())).is_some_and(|from| *from <= now)
            }
            _ => true,
        }
    }

    /// Records the steps that were carried out.
    pub fn note(&mut self, steps: &[Step], now: Instant) {
        for step in steps {
            match step {
                Step::Disable { backend, server } => {
                    self.from.insert((backend.clone(), server.clone()), now + REST);
                }
                Step::Delete { backend, server } => {
                    self.from.remove(&(backend.clone(), server.clone()));
                }
                Step::Enable { service, instance, .. } => {
                    self.from.remove(&(service.backend(), crate::config::server_name(*instance)));
                }
                Step::Add { .. } | Step::Weigh { .. } | Step::SetHost { .. } | Step::DeleteHost { .. } => {}
            }
        }
    }

    /// Postpones a delete that HAProxy refused.
    pub fn later(&mut self, step: &Step, now: Instant) {
        if let Step::Delete { backend, server } = step {
            self.from.insert((backend.clone(), server.clone()), now + REST);
        }
    }

    /// Returns when the next server may be deleted.
    pub fn next_at(&self) -> Option<Instant> {
        self.from.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_configuration_waits_longer_each_time_and_another_one_not_at_all() {
        let mut attempts = Attempts::default();
        let mut now = Instant::now();
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let at = attempts.failed("one".into(), "refused".into(), now);
            assert_eq!(at - now, Duration::from_secs(expected));
            assert_eq!(attempts.not_before("one", now), Some(at));
            assert_eq!(attempts.not_before("other", now), None);
            assert_eq!(attempts.not_before("one", at), None);
            now = at;
        }
        assert_eq!(attempts.cause(), Some("refused"));
        attempts.succeeded();
        assert_eq!(attempts.cause(), None);
    }

    #[test]
    fn a_reload_waits_for_old_workers_for_a_while_and_each_reload_anew() {
        let (mut reload_wait, begin) = (ReloadWait::default(), Instant::now());
        assert_eq!(reload_wait.wait(InTheWay::Nothing, begin), None);
        for (what, time) in [(InTheWay::Connections, FOR_CONNECTIONS), (InTheWay::Requests, FOR_REQUESTS)] {
            for _ in 0..2 {
                assert_eq!(reload_wait.wait(what, begin), Some(begin + LOOK_AT_OLD_WORKERS));
                let late = begin + time - Duration::from_millis(1);
                assert_eq!(reload_wait.wait(what, late), Some(late + LOOK_AT_OLD_WORKERS));
                assert_eq!(reload_wait.wait(what, begin + time), None);
            }
        }
        assert_eq!(reload_wait.wait(InTheWay::Requests, begin), Some(begin + LOOK_AT_OLD_WORKERS));
        assert_eq!(reload_wait.wait(InTheWay::Nothing, begin + LOOK_AT_OLD_WORKERS), None, "they have ended");
    }

    #[test]
    fn an_instance_is_busy_until_it_was_seen_out_and_without_a_session() {
        let service = ServiceId { app: "a".parse().expect("valid"), proc: "web".parse().expect("valid") };
        let id = InstanceId(7);
        let leaving = BTreeMap::from([(id, service)]);
        let mut drains = Drains::default();
        drains.unknown(&drains.pending(&leaving));
        assert!(drains.busy().contains(&id), "it may be, for all that is known");
        drains.count(&drains.pending(&leaving), &BTreeMap::from([(id, 2)]), |_, _| true);
        assert!(drains.busy().contains(&id));
        // No open session, but new requests may still arrive.
        drains.count(&drains.pending(&leaving), &BTreeMap::new(), |_, _| false);
        assert!(!drains.busy().contains(&id));
        assert_eq!(drains.pending(&leaving).len(), 1);
        drains.count(&drains.pending(&leaving), &BTreeMap::new(), |_, _| true);
        assert!(drains.pending(&leaving).is_empty());
        drains.unknown(&drains.pending(&leaving));
        assert!(drains.busy().is_empty(), "what is settled stays so");
        drains.keep_only(&BTreeMap::new());
        assert_eq!(drains.pending(&leaving).len(), 1, "an id that comes anew is counted anew");
    }

    #[test]
    fn a_disabled_server_is_deleted_after_its_rest() {
        let (backend, server) = ("a.web".to_owned(), "i1".to_owned());
        let delete = Step::Delete { backend: backend.clone(), server: server.clone() };
        let mut retired = Retired::default();
        let now = Instant::now();
        assert!(!retired.may(&delete, now), "it was never disabled here");
        retired.note(&[Step::Disable { backend, server }], now);
        assert!(!retired.may(&delete, now));
        assert_eq!(retired.next_at(), Some(now + REST));
        assert!(retired.may(&delete, now + REST));
        retired.later(&delete, now + REST);
        assert!(!retired.may(&delete, now + REST));
        retired.note(&[delete], now + REST * 2);
        assert_eq!(retired.next_at(), None);
    }
}
