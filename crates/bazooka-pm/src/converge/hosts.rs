//! The hosts that are gone, and whether so many left at once that none is given up.
//!
//! Owns the judgement on a host's absence, timed on this process's own clock:
//!
//! ```text
//! here ──lease ended──▶ gone ──a short reprieve──▶ lost: its instances are replaced
//!   ▲                     │
//!   └───registers again───┘     more than max(1, a third) gone within one lease time: frozen,
//!                               no host is lost until enough of them return, or an operator
//!                               acknowledges that they will not
//! ```

#[cfg(test)]
mod cases;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use visor::{
    deadlines::{FIRST_HOST_REPRIEVE, GONE_AT_ONCE, HOST_REPRIEVE},
    keys::Key,
    names::HostName,
    planted::{Bug, planted},
    snapshot::{HostView, Snapshot},
    store::Revision,
};

/// The converger's view of which hosts are here and which are gone.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    here: BTreeSet<HostName>,
    gone: BTreeMap<HostName, Gone>,
    frozen: Option<BTreeSet<HostName>>,
    given_up: GivenUp,
    begun: bool,
}

/// The hosts that an operator has given up and that have not returned since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct GivenUp {
    said_at: Revision,
    hosts: BTreeSet<HostName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone {
    since: Instant,
    /// The time from which the host is lost.
    lost_at: Instant,
}

impl Hosts {
    /// Takes note of an image. Returns whether anything about any host's absence changed.
    pub(super) fn observe(&mut self, snapshot: &Snapshot, now: Instant) -> bool {
        let unreadable = |name: &HostName| {
            !snapshot.unreadable.is_empty()
                && snapshot.unreadable.contains_key(&Key::Host(name.clone()).to_string())
        };
        let is_registered = |name: &HostName, view: &HostView| view.host.is_some() || unreadable(name);
        let registered = |name: &HostName| {
            snapshot.hosts.get(name).map_or_else(|| unreadable(name), |view| is_registered(name, view))
        };
        let has_work = |view: &HostView| !view.assigned.is_empty() || !view.status.is_empty();
        let before = (self.frozen.clone(), self.gone.len(), self.given_up.clone());
        let reprieve = if self.begun { HOST_REPRIEVE } else { FIRST_HOST_REPRIEVE };
        let gone = Gone { since: now, lost_at: now + reprieve };
        let here =
            || snapshot.hosts.iter().filter(|(name, view)| is_registered(name, view)).map(|(name, _)| name);
        // The set of hosts is nearly always unchanged. To compare a thousand names is cheap, to copy them is not.
        let as_before = here().eq(&self.here);
        if !as_before {
            let here: BTreeSet<HostName> = here().cloned().collect();
            for name in self.here.difference(&here) {
                self.gone.entry(name.clone()).or_insert(gone);
            }
            self.here = here;
        }
        for (name, view) in &snapshot.hosts {
            if has_work(view) && !is_registered(name, view) && !self.gone.contains_key(name) {
                self.gone.insert(name.clone(), gone);
            }
        }
        self.gone.retain(|name, gone| {
            let works = || snapshot.hosts.get(name).is_some_and(has_work);
            let returned = registered(name) && !planted(Bug::ReturnedHostIsGone);
            !returned && (now.duration_since(gone.since) < GONE_AT_ONCE || works())
        });
        self.begun = true;
        self.heed(snapshot);
        self.judge(now);
        !as_before || before != (self.frozen.clone(), self.gone.len(), self.given_up.clone())
    }

    /// Reads the operator's `unfreeze` row. It no longer applies to hosts that have returned.
    fn heed(&mut self, snapshot: &Snapshot) {
        let said_at = snapshot.unfreeze.as_ref().map_or(0, |word| word.mod_revision);
        if said_at != self.given_up.said_at {
            let hosts = snapshot.unfreeze.as_ref().map(|word| word.hosts.clone()).unwrap_or_default();
            self.given_up = GivenUp { said_at, hosts };
        }
        self.given_up.hosts.retain(|name| !self.here.contains(name));
    }

    fn judge(&mut self, now: Instant) {
        let most = ((self.here.len() + self.gone.len()) / 3).max(1);
        self.frozen = match self.frozen.take() {
            None => {
                let recent = self.gone.iter().filter(|(name, gone)| {
                    now.duration_since(gone.since) < GONE_AT_ONCE && !self.given_up.hosts.contains(*name)
                });
                let recent: BTreeSet<HostName> = recent.map(|(name, _)| name.clone()).collect();
                (recent.len() > most).then_some(recent)
            }
            Some(mut frozen) => {
                // A host that vanishes while hosts are frozen belongs to the same trouble.
                frozen.extend(self.gone.keys().cloned());
                frozen.retain(|name| self.gone.contains_key(name) && !self.given_up.hosts.contains(name));
                if frozen.len() <= most {
                    // The repair that brought some of them back is likely to bring the others back a moment later.
                    let waited_for =
                        self.gone.iter_mut().filter(|(name, _)| !self.given_up.hosts.contains(*name));
                    waited_for.for_each(|(_, gone)| gone.lost_at = now + FIRST_HOST_REPRIEVE);
                }
                (frozen.len() > most).then_some(frozen)
            }
        };
    }

    /// Returns when a host that is gone is given up. None while it is here, or while hosts are frozen, unless an
    /// operator gave it up.
    pub fn lost_at(&self, name: &HostName) -> Option<Instant> {
        if self.frozen.is_some() && !self.given_up.hosts.contains(name) {
            return None;
        }
        self.gone.get(name).map(|gone| gone.lost_at)
    }

    /// Returns the hosts that are gone, while so many are that none is given up.
    pub fn frozen(&self) -> Option<&BTreeSet<HostName>> {
        self.frozen.as_ref()
    }

    /// Reports whether the `unfreeze` row has done its work: each host that it names has returned or has no instances
    /// left.
    pub fn unfreeze_is_over(&self) -> bool {
        !self.given_up.hosts.iter().any(|name| self.gone.contains_key(name))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::converge::fixture::World;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_host_is_given_up_a_moment_after_its_lease_ended() {
        let mut world = World::new().hosts(3);
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        world.lose("host2");
        assert!(hosts.observe(&world.snapshot, start + seconds(5)));
        assert_eq!(hosts.lost_at(&world.host("host2")), Some(start + seconds(6)));
        assert_eq!(hosts.lost_at(&world.host("host1")), None);
        world.register("host2");
        assert!(hosts.observe(&world.snapshot, start + seconds(6)));
        assert_eq!(hosts.lost_at(&world.host("host2")), None);
    }

    #[test]
    fn the_only_host_is_given_up_like_any_other() {
        let mut world = World::new().hosts(1);
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        world.lose("host1");
        hosts.observe(&world.snapshot, start + seconds(1));
        assert_eq!(hosts.frozen(), None);
        assert!(hosts.lost_at(&world.host("host1")).is_some());
    }

    #[test]
    fn more_than_a_third_at_once_are_not_given_up_until_enough_return() {
        let mut world = World::new().hosts(6);
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        for (n, at) in [("host1", 0), ("host2", 3)] {
            world.lose(n);
            hosts.observe(&world.snapshot, start + seconds(at));
            assert_eq!(hosts.frozen(), None);
        }
        world.lose("host3");
        hosts.observe(&world.snapshot, start + seconds(6));
        assert_eq!(hosts.frozen().map(BTreeSet::len), Some(3));
        assert_eq!(hosts.lost_at(&world.host("host1")), None);
        world.register("host3");
        hosts.observe(&world.snapshot, start + seconds(7));
        assert_eq!(hosts.frozen(), None);
        assert_eq!(hosts.lost_at(&world.host("host1")), Some(start + seconds(7) + FIRST_HOST_REPRIEVE));
    }

    #[test]
    fn hosts_with_work_stay_frozen_until_they_return() {
        let mut world = World::new().hosts(3).app("a").released("web").scaled("web", 3);
        for (id, host) in [(1, "host1"), (2, "host2"), (3, "host3")] {
            world = world.running(id, host);
        }
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        world.lose("host1");
        world.lose("host2");
        hosts.observe(&world.snapshot, start + seconds(1));
        hosts.observe(&world.snapshot, start + seconds(600));
        assert_eq!(hosts.frozen().map(BTreeSet::len), Some(2));
        world.register("host1");
        hosts.observe(&world.snapshot, start + seconds(601));
        assert_eq!(hosts.frozen(), None);
        let lost_at = start + seconds(601) + FIRST_HOST_REPRIEVE;
        assert_eq!(hosts.lost_at(&world.host("host2")), Some(lost_at), "it may be about to return too");
    }

    #[test]
    fn an_operators_word_gives_up_the_hosts_that_were_frozen_and_no_others() {
        let mut world = World::new().hosts(6).app("a").released("web").scaled("web", 6);
        for id in 1..=6 {
            world = world.running(id, &format!("host{id}"));
        }
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        ["host1", "host2", "host3"].into_iter().for_each(|name| world.lose(name));
        hosts.observe(&world.snapshot, start + seconds(1));
        assert_eq!((hosts.frozen().map(BTreeSet::len), hosts.lost_at(&world.host("host1"))), (Some(3), None));
        world.unfreeze(&["host1", "host2", "host3"]);
        assert!(hosts.observe(&world.snapshot, start + seconds(60)));
        assert_eq!(hosts.frozen(), None);
        assert_eq!(hosts.lost_at(&world.host("host1")), Some(start + seconds(1) + HOST_REPRIEVE));
        assert!(!hosts.unfreeze_is_over());
        // A host that returns is like any other from then on, even while the row exists.
        world.register("host1");
        hosts.observe(&world.snapshot, start + seconds(61));
        ["host1", "host4", "host5"].into_iter().for_each(|name| world.lose(name));
        hosts.observe(&world.snapshot, start + seconds(62));
        let frozen: Vec<&str> = hosts.frozen().into_iter().flatten().map(HostName::as_str).collect();
        assert_eq!(frozen, ["host1", "host4", "host5"]);
        assert_eq!(hosts.lost_at(&world.host("host4")), None);
        assert!(hosts.lost_at(&world.host("host2")).is_some());
    }

    #[test]
    fn the_unfreeze_is_over_when_each_host_has_returned() {
        let mut world = World::new().hosts(3).app("a").released("web").scaled("web", 2);
        world = world.running(1, "host1").running(2, "host2");
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        ["host1", "host2"].into_iter().for_each(|name| world.lose(name));
        world.unfreeze(&["host1", "host2"]);
        hosts.observe(&world.snapshot, start + seconds(1));
        assert!(!hosts.unfreeze_is_over());
        ["host1", "host2"].into_iter().for_each(|name| world.register(name));
        hosts.observe(&world.snapshot, start + seconds(2));
        assert!(hosts.unfreeze_is_over());
    }

    #[test]
    fn hosts_that_were_gone_when_it_began_have_a_lease_time_to_come_back() {
        let mut world = World::new().hosts(4).app("a").released("web").scaled("web", 1).running(1, "host1");
        world.lose("host1");
        let (start, mut hosts) = (Instant::now(), Hosts::default());
        hosts.observe(&world.snapshot, start);
        assert_eq!(hosts.lost_at(&world.host("host1")), Some(start + FIRST_HOST_REPRIEVE));
    }
}
