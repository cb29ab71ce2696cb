//! The vocabulary of a plan.
//!
//! Owns the types between the planners and the part that applies their plan. A plan leaves no choice to that part.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use visor::{
    names::{AppName, EnvRef, HostName, InstanceId, ProcName, ReleaseId},
    rules::placement::{Place, Reasons, Refusals},
    schema::{Desired, Pending, Refusing, SlugSource},
    seal::PublicKey,
};

/// The converger's next steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps. None depends on another one.
    pub steps: Vec<Step>,
    /// The time at which each app is to be planned again, even if nothing happens.
    pub look_again: BTreeMap<AppName, Instant>,
    /// The apps that wait for capacity. They are planned again whenever some may have come free.
    pub waiting_for_capacity: BTreeSet<AppName>,
    /// The apps of which an instance waits for a slug that no host can serve to its host. They are planned again when
    /// hosts say what they have.
    pub lacking_sources: BTreeSet<AppName>,
    /// The apps whose rows can't be acted on, and why.
    pub blocked: BTreeMap<AppName, String>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The app that the step is for.
    pub app: AppName,
    /// The change that it makes.
    pub act: Act,
    /// The reason, for people.
    pub reason: String,
}

/// The change that a step makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Places an instance.
    Place {
        /// The instance to place.
        slot: Slot,
        /// The host that takes it.
        place: Place,
    },
    /// Moves an instance towards its end: to drain, or to stop.
    Advance {
        /// The instance.
        id: InstanceId,
        /// The new desired state.
        to: Desired,
    },
    /// Marks an instance `lost` with its host.
    Lose {
        /// The instance.
        id: InstanceId,
    },
    /// Archives an instance that has ended.
    Archive {
        /// The instance.
        id: InstanceId,
        /// The oldest archived instances of its service, deleted to make room for it.
        oldest: Vec<InstanceId>,
    },
    /// Deletes surplus archived instances.
    Forget {
        /// The proc.
        proc: ProcName,
        /// The archived instances.
        ids: Vec<InstanceId>,
    },
    /// Marks a release on trial as verified.
    Verify {
        /// The release.
        release: ReleaseId,
        /// The procs that failed before it, and still do or may.
        excused: BTreeSet<ProcName>,
    },
    /// Marks a release as failed: it can't become head.
    Fail {
        /// The release.
        release: ReleaseId,
        /// The cause, with the last output.
        cause: String,
    },
    /// Hands an env to a host, or seals it to the host's new key.
    Hand {
        /// The host.
        host: HostName,
        /// The env.
        env: EnvRef,
    },
    /// Hands the key of an env to a host that keeps it for others, or takes the rest back from it.
    Keep {
        /// The host.
        host: HostName,
        /// The env.
        env: EnvRef,
    },
    /// Takes an env back from a host that runs nothing with it.
    TakeBack {
        /// The host.
        host: HostName,
        /// The env.
        env: EnvRef,
    },
    /// Asks for the key of an env, wrapped for a host that lacks it.
    Ask {
        /// The host that is asked, besides every rm.
        by: HostName,
        /// The env.
        env: EnvRef,
        /// The host that lacks it.
        host: HostName,
        /// That host's public key.
        to: PublicKey,
    },
    /// Ends such a request.
    EndRequest {
        /// The host that was asked.
        by: HostName,
        /// The env.
        env: EnvRef,
        /// The host that lacked it.
        host: HostName,
    },
    /// Names the hosts that serve an instance's slug to its host, and tells them.
    Source {
        /// The instance.
        id: InstanceId,
        /// The hosts, in the order in which to ask them.
        sources: Vec<SlugSource>,
    },
    /// Ends the service of a slug to the host of an instance.
    EndService {
        /// The host that serves.
        host: HostName,
        /// The instance.
        id: InstanceId,
    },
    /// Writes down why a service isn't as it should be; or that nothing is in its way any more.
    Pend {
        /// The proc.
        proc: ProcName,
        /// The reason; none if nothing is in its way any more.
        pending: Option<Hindrance>,
    },
}

/// An instance that is to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The instance's proc.
    pub proc: ProcName,
    /// The instance's release.
    pub release: ReleaseId,
    /// The index among the instances of its proc and release.
    pub index: u32,
    /// True if it belongs to a trial.
    pub trial: bool,
}

/// The obstacle in a service's way: a [`Pending`] without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// The release that is short of instances.
    pub release: ReleaseId,
    /// The number of missing instances.
    pub short: u32,
    /// The reason, for people.
    pub reason: String,
    /// The hosts that cannot take an instance, by the reason.
    pub reasons: Reasons,
}

impl Hindrance {
    /// Reports whether a row already says this, small changes of many hosts left out.
    pub(super) fn is_said_by(&self, row: &Pending) -> bool {
        let Hindrance { release, short, reason, reasons } = self;
        let about = |(why, hosts): (&String, &Refusing)| {
            row.reasons.get(why).is_some_and(|said| hosts.is_about(said))
        };
        row.release == *release
            && row.short == *short
            && row.reason == *reason
            && row.reasons.len() == reasons.len()
            && reasons.iter().all(about)
            // A row of the release before lists every host.
            && row.refusals.len() <= reasons.len() * Refusing::MOST_EXAMPLES
    }

    /// Returns the refusals of the examples, for readers of the release before.
    pub(super) fn refusals(&self) -> Refusals {
        let all = self.reasons.iter();
        all.flat_map(|(why, hosts)| hosts.examples.iter().map(|host| (host.clone(), why.clone()))).collect()
    }
}
