//! The mistakes that a model of etcd can make on purpose. The test that compares the model with etcd must detect each.

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
    /// Each key of an ended lease is deleted in a revision of its own.
    LeaseKeysGoOneByOne,
    /// A key that was bound to a second lease is still deleted with its first one.
    RebindKeepsOldLease,
    /// A watch omits the changes of the revision that it starts from.
    WatchStartsLate,
    /// A watch forgets deletions.
    WatchForgetsDeletes,
    /// A read at a compacted revision is accepted.
    ReadsCompacted,
    /// A watch from a compacted revision is accepted.
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
