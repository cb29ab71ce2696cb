//! What a plan is made of.
//!
//! Owns the vocabulary between those who plan and the one who applies: a plan leaves no choice to the latter.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use visor::{
    names::{AppName, EnvRef, HostName, InstanceId, ProcName, ReleaseId},
    rules::placement::{Place, Refusals},
    schema::{Desired, Pending},
};

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// None depends on another.
    pub steps: Vec<Step>,
    /// When each app is to be planned again, even if nothing happens.
    pub look_again: BTreeMap<AppName, Instant>,
    /// The apps that wait for room: to be planned again whenever some may have come free.
    pub waiting_for_capacity: BTreeSet<AppName>,
    /// The apps that can't be acted on, and why.
    pub blocked: BTreeMap<AppName, String>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The app that it is done for.
    pub app: AppName,
    /// What.
    pub act: Act,
    /// Why, for people.
    pub reason: String,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Place an instance.
    Place {
        /// What it is.
        slot: Slot,
        /// Where.
        place: Place,
    },
    /// Move an instance down: to drain, or to stop.
    Advance {
        /// The instance.
        id: InstanceId,
        /// Where to.
        to: Desired,
    },
    /// Say that an instance is lost with its host.
    Lose {
        /// The instance.
        id: InstanceId,
    },
    /// Put an instance away that has ended.
    PutAway {
        /// The instance.
        id: InstanceId,
        /// The oldest stories of its service, which make room for its own.
        oldest: Vec<InstanceId>,
    },
    /// Forget stories that are too many.
    Forget {
        /// The proc.
        proc: ProcName,
        /// Whose stories.
        ids: Vec<InstanceId>,
    },
    /// Say that a release on trial is good.
    Verify {
        /// The release.
        release: ReleaseId,
    },
    /// Say that a release can't become head.
    Fail {
        /// The release.
        release: ReleaseId,
        /// Why, with the last output.
        cause: String,
    },
    /// Hand an env to a host, or to its new key.
    Hand {
        /// The host.
        host: HostName,
        /// The env.
        env: EnvRef,
    },
    /// Take an env back from a host that runs nothing with it.
    TakeBack {
        /// The host.
        host: HostName,
        /// The env.
        env: EnvRef,
    },
    /// Say why a service isn't as it should be; or that nothing is in its way any more.
    Pend {
        /// The proc.
        proc: ProcName,
        /// What is in its way.
        pending: Option<Hindrance>,
    },
}

/// An instance that is to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its proc.
    pub proc: ProcName,
    /// Its release.
    pub release: ReleaseId,
    /// Its place among its kind.
    pub index: u32,
    /// Whether it belongs to a trial.
    pub trial: bool,
}

/// What is in a service's way: a [`Pending`] without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// The release.
    pub release: ReleaseId,
    /// How many instances are missing.
    pub short: u32,
    /// Why.
    pub reason: String,
    /// Each host's refusal.
    pub refusals: Refusals,
}

impl Hindrance {
    /// Whether a row says just that.
    pub(super) fn is_said_by(&self, row: &Pending) -> bool {
        let Hindrance { release, short, reason, refusals } = self;
        row.release == *release && row.short == *short && row.reason == *reason && row.refusals == *refusals
    }
}
