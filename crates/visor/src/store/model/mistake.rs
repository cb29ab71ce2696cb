//! What a model can be told to do wrong, so that tests of the comparison have something to find.

/// One deliberate departure from etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A transaction that deletes nothing raises the revision.
    EmptyDeleteRaisesRevision,
    /// A key that was deleted and is written again keeps its first create revision.
    CreateRevisionSurvivesDelete,
    /// A get doesn't see the writes of its own transaction.
    GetMissesOwnWrites,
    /// A key may be put twice in one transaction.
    AllowsDuplicatePuts,
    /// More operations than the limit are taken.
    AllowsAnyLength,
    /// A put with an ended lease is taken.
    AllowsEndedLease,
    /// The keys of an ended lease go in a revision each.
    LeaseKeysGoOneByOne,
    /// A key that was bound to another lease still goes with its first one.
    RebindKeepsOldLease,
    /// A watch leaves out the changes of the revision that it starts from.
    WatchStartsLate,
    /// A watch forgets deletions.
    WatchForgetsDeletes,
    /// A range may ask for a compacted revision.
    ReadsCompacted,
    /// A watch may start from a compacted revision.
    WatchesCompacted,
    /// A write whose reply is lost isn't carried out.
    LostReplyLosesWrite,
    /// A prefix is taken for a single key.
    PrefixIsExact,
}

impl Mistake {
    /// Each of them.
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
