//! The rule that a service which has proven itself never waits for long: its instances run again within a second.
//!
//! Owns what the rows show of an instance's runs. A bazooka-pm that dies may forget a run that it could not write down, so
//! a proof counts only within the life of the bazooka-pm that saw it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::SignedDuration;
use tokio::time::Instant;
use visor::{
    names::{HostName, InstanceId},
    schema::{State, Status},
};

/// The length of a healthy run that is a proof.
const SERVED: Duration = Duration::from_secs(10);

/// The places of a service that the rule is about.
const LEADING_PLACES: u32 = 4;

/// The longest wait there.
const SOON: SignedDuration = SignedDuration::from_secs(1);

/// How late a report may arrive.
const LAG: Duration = Duration::from_secs(13);

/// The instances that have proven themselves.
#[derive(Default)]
pub(super) struct Proven {
    /// By host, the begin of its bazooka-pm's life, and those that it has seen serve.
    lives: BTreeMap<HostName, (Option<Instant>, BTreeSet<InstanceId>)>,
    /// The instances of which any process lived for long.
    lived: BTreeSet<InstanceId>,
}

impl Proven {
    /// A host's bazooka-pm begins a life.
    pub fn begin(&mut self, host: &HostName) {
        self.lives.insert(host.clone(), (Some(Instant::now()), BTreeSet::new()));
    }

    /// A process of an instance has ended after this time.
    pub fn ended(&mut self, id: InstanceId, ran: Duration) {
        if ran >= SERVED {
            self.lived.insert(id);
        }
    }

    /// Reports whether an instance may have proven itself.
    pub fn may_be(&self, id: InstanceId) -> bool {
        self.lived.contains(&id)
    }

    /// Judges a report over the one before it. Returns what is wrong with it.
    pub fn judge(
        &mut self,
        host: &HostName,
        id: InstanceId,
        index: u32,
        before: Option<&Status>,
        now: &Status,
    ) -> Option<String> {
        let (begun, proven) = self.lives.entry(host.clone()).or_default();
        if let (Some(begun), Some(before), Some(exit)) = (begun, before, now.exits.last()) {
            let ran = Duration::from_millis(exit.ran_ms);
            let same = before.started_at.is_some_and(|at| {
                let ended = at + SignedDuration::try_from(ran).expect("a day is short");
                exit.at.duration_since(ended).abs() <= SignedDuration::from_millis(5)
            });
            if before.state == State::Running && same && ran >= SERVED && begun.elapsed() >= ran + LAG {
                proven.insert(id);
            }
        }
        let wait = now.next_start_at?.duration_since(now.since);
        let waits = now.state == State::Backoff && index < LEADING_PLACES && wait > SOON;
        (waits && proven.contains(&id)).then(|| format!("{id} has served on {host}, and waits for {wait:#}"))
    }
}
