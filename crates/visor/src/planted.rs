//! Faults that the simulation plants: each switch takes one rule out of the production code.
//!
//! Owns the list of switches and the question whether one is on. Without the feature `planted` the answer is a
//! constant `false`, and the compiler removes each fault. Only the program `bazooka-simulation`, built on its own, turns
//! the feature on; the workspace's programs never contain a fault.

macro_rules! bugs {
    ($($(#[doc = $words:literal])+ $name:ident,)+) => {
        /// A fault that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $words])+ $name,)+
        }

        impl Bug {
            /// Every fault.
            pub const ALL: &[Bug] = &[$(Bug::$name,)+];

            /// Describes the fault: the first line of its documentation.
            pub fn words(self) -> &'static str {
                match self {
                    $(Bug::$name => [$($words,)+][0].trim(),)+
                }
            }
        }
    };
}

bugs! {
    /// A mirror whose watch ended waits for days before it lists again.
    LostWatchIsNotListedAgain,
    /// A new list keeps the rows that have gone meanwhile.
    NewListKeepsWhatHasGone,
    /// A watch that has been silent for too long counts as alive.
    SilentWatchIsBelieved,
    /// A watch begins one revision after the next one of its list.
    WatchBeginsLate,
    /// A write whose reply was lost counts as done.
    LostReplyCountsAsDone,
    /// A host that was given up still reports.
    GivenUpHostReports,
    /// A host reports on instances that are not assigned to it.
    ForeignInstanceIsReported,
    /// A converger that was deposed still writes.
    DeposedConvergerWrites,
    /// A placement does not check that its ids are still free.
    ///
    /// The election key's last write guards each placement too, so the fault shows only beside
    /// [`Bug::LateWriteIsCarriedOut`].
    IdsAreTakenUnguarded,
    /// An instance is placed on a host that has gone.
    GoneHostIsPlacedOn,
    /// An instance is marked lost although its host is back.
    ReturnedHostLosesInstances,
    /// An assignment is moved although it is another one by now.
    ///
    /// As [`Bug::IdsAreTakenUnguarded`], the fault shows only beside [`Bug::LateWriteIsCarriedOut`].
    AssignmentIsMovedUnguarded,
    /// A formation is written over another user's change.
    FormationIsWrittenUnguarded,
    /// A lease that ran out counts as held.
    EndedLeaseIsHeld,
    /// A converger does not notice that it was deposed.
    DeposedConvergerGoesOn,
    /// A serving instance is stopped without a drain.
    ServingInstanceIsNotDrained,
    /// A drain does not wait until the proxies have let go.
    DrainIgnoresProxies,
    /// A drain does not wait until the sessions have ended.
    DrainIgnoresSessions,
    /// A rollout stops old instances before new ones serve.
    OldGoBeforeNewServe,
    /// A scale down stops the healthy instances first.
    ScaleDownTakesHealthy,
    /// The converger does not look at what hosts report.
    ReportsWakeNobody,
    /// A host that returned still counts as gone.
    ReturnedHostIsGone,
    /// A host whose list is not complete yet has nothing to run.
    IncompleteListEndsInstances,
    /// A host that returns from a partition ends at once what was replaced meanwhile.
    ReplacedEndAtOnce,
    /// A port is given to two instances.
    PortIsGivenTwice,
    /// A host does not look for instances that ran before it started.
    RunningInstanceIsNotFound,
    /// A report that was refused is not repeated.
    ///
    /// A refusal comes from one of three causes, and each has another rule behind it. Under another registration, the
    /// next one reports everything ([`Bug::RegistrationReportsNothing`], beside which the fault shows). An instance that
    /// is no longer assigned has no report. Another report in place of the known one is read and replaced by the same
    /// call.
    RefusedReportIsDropped,
    /// A new registration does not report all instances again.
    RegistrationReportsNothing,
    /// A report that failed is not repeated.
    FailedReportIsDropped,
    /// A registration that was lost is not renewed.
    LostRegistrationIsNotRenewed,
    /// An answer about an earlier start counts for the current one.
    EarlierStartAnswers,
    /// An instance is placed on a host that is cordoned.
    ClosedHostIsPlacedOn,
    /// An instance that crashes is started again without a wait.
    CrashIsNotWaitedFor,
    /// An instance that has proven itself waits like any other after its crashes.
    ProvenServiceWaits,
    /// A trial succeeds before its instances are ready.
    TrialSucceedsAtOnce,
    /// A user id is given to two instances.
    UserIsGivenTwice,
    /// An instance is started before its slug has arrived.
    StartIgnoresSlug,
    /// An instance is started before its config vars have arrived.
    StartIgnoresVars,
    /// A write that was sent before a settlement is carried out after it.
    LateWriteIsCarriedOut,
    /// A proxy reports no instance as busy.
    BusyIsNotReported,
    /// Sessions that can't be counted count as none.
    UncountedSessionsAreNone,
    /// An instance that drains is still routed.
    DrainingInstanceIsRouted,
    /// A step that HAProxy did not answer counts as applied.
    UnansweredStepIsApplied,
    /// A disabled server stays disabled although its instance serves again.
    ReturnedInstanceStaysOut,
    /// A step that HAProxy refused counts as applied.
    RefusedStepIsApplied,
    /// A HAProxy that has gone is not started again.
    GoneHaproxyIsNotStarted,
    /// A service has the port that its proc's row names, whatever the row of the port says.
    NamedPortCounts,
    /// An instance is placed without the ports of the services that it links.
    LinkedPortsAreMissing,
    /// A host goes on serving a slug for which nothing waits any more.
    SourcesServeForEver,
    /// A host serves a slug to a host that the converger did not name.
    UnnamedHostIsServed,
    /// An instance that waits for its slug has no hosts named that have it.
    NoSourceIsNamed,
    /// A release is pruned although instances run it or are wanted of it.
    PruningForgetsWhatRuns,
    /// A release is pruned although it is one of the last ones.
    PruningForgetsTheLast,
    /// Old releases are not pruned.
    NothingIsPruned,
    /// A host wraps the key of config vars for no other host.
    NoHostWrapsForOthers,
    /// No host holds config vars that it does not run with.
    NobodyElseHoldsVars,
    /// A request for a wrap stays although it is answered.
    RequestsNeverEnd,
}

pub use switches::{plant, planted};

/// Bytes that each program with switches contains, and no other program.
pub const MARKER: &[u8; 32] = b"bazooka was built to hold faults";

#[cfg(not(feature = "planted"))]
mod switches {
    use super::Bug;

    /// Plants nothing and returns false, because this build has no switches.
    pub const fn plant(_: &[Bug]) -> bool {
        false
    }

    /// Reports whether a fault is planted: never, in this build.
    #[inline(always)]
    pub const fn planted(_: Bug) -> bool {
        false
    }
}

#[cfg(feature = "planted")]
mod switches {
    use std::{
        hint::black_box,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::{Bug, MARKER};

    static MARK: [u8; 32] = *MARKER;

    /// A bit for each fault.
    static ON: AtomicU64 = AtomicU64::new(0);

    const _: () = assert!(Bug::ALL.len() <= 64, "there is a bit for each fault");

    /// Plants these faults and no others, in the whole process. Returns true, because this build has switches.
    pub fn plant(bugs: &[Bug]) -> bool {
        // Keeps the marker in the program.
        black_box(&MARK);
        ON.store(bugs.iter().fold(0, |on, bug| on | (1 << *bug as u64)), Ordering::SeqCst);
        true
    }

    /// Reports whether a fault is planted.
    #[inline]
    pub fn planted(bug: Bug) -> bool {
        ON.load(Ordering::Relaxed) & (1 << bug as u64) != 0
    }
}
