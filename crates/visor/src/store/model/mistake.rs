//! The mistakes that a model can be told to make, so that tests of the comparison have something to find.

/// One deliberate departure from etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A transaction that deletes nothing raises the revision.
    EmptyDeleteRaisesRevision,
    /// A key that was deleted and is written again keeps its first create revision.
    CreateRevisionSurvivesDelete,
    /// A `Get` does not see the writes of its own transaction.
    GetMissesOwnWrites,
    /// A key may be put twice in one transaction.
    AllowsDuplicatePuts,
    /// A transaction with more operations than the limit is accepted.
    AllowsAnyLength,
    /// A put with an ended lease is accepted.
    AllowsEndedLease,
    /// The keys of an ended lease are deleted in a revision each.
    LeaseKeysGoOneByOne,
    /// A key that was bound to a second lease is still deleted with its first one.
    RebindKeepsOldLease,
    /// A watch omits the changes of the revision that it starts from.
    WatchStartsLate,
    /// A watch forgets deletions.
    WatchForgetsDeletes,
    /// A range may ask for a compacted revision.
    ReadsCompacted,
    /// A watch may start from a compacted revision.
    WatchesCompacted,
    /// A write whose reply is lost is not carried out.
    LostReplyLosesWrite,
    /// A prefix is treated as a single key.
    PrefixIsExact,
}

impl Mistake {
    /// All mistakes.
    pub const ALL: [Mistake; 14] = [
        Mistake::EmptyDeleteRaisesRevision,
        Mistake::CreateRevisionSurvivesDelete,
        Mistake::GetMissesOwnWrites,
        Mistake::AllowsDuplicatePuts,
        Mistake::AllowsAnyLength,
        Mistake::AllowsEndedLease,
        Mistake::LeaseKeysGoOneByOne,
        Mistake::RebindKeepsOldLease,
        Mistake::WatchStartsLate,
        Mistake::WatchForgetsDeletes,
        Mistake::ReadsCompacted,
        Mistake::WatchesCompacted,
        Mistake::LostReplyLosesWrite,
        Mistake::PrefixIsExact,
    ];
}
