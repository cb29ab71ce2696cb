//! The git configuration of each repository, and why it is so.

/// Name and value of each setting.
pub const SETTINGS: &[(&str, &str)] = &[
    // `git push -o no-rollout`.
    ("receive.advertisePushOptions", "true"),
    ("http.receivepack", "true"),
    // What a push brings is checked before anything reads it; what old tools are known to have written
    // harmlessly wrong is let pass.
    ("receive.fsckObjects", "true"),
    ("receive.fsck.zeroPaddedFilemode", "ignore"),
    ("receive.fsck.missingSpaceBeforeDate", "ignore"),
    ("receive.fsck.badTimezone", "ignore"),
    // A slug may be 500 MB; its history some times that.
    ("receive.maxInputSize", "2147483648"),
    // Large blobs are streamed to the disk instead of being held in memory, one thread at a time.
    ("core.bigFileThreshold", "16777216"),
    ("pack.threads", "1"),
    ("pack.windowMemory", "67108864"),
    // What is accepted survives a power cut.
    ("core.fsync", "committed"),
    ("core.fsyncMethod", "batch"),
    // The daemon itself tidies up when no push waits for it.
    ("receive.autoGc", "false"),
    ("gc.auto", "2000"),
    ("gc.autoDetach", "false"),
    ("gc.pruneExpire", "1.day.ago"),
    // Who pushed what when.
    ("core.logAllRefUpdates", "true"),
    ("transfer.advertiseSID", "false"),
];

/// Settings that are written once, with the repository, and are its owner's from then on.
///
/// Pushes may be forced, as with Heroku: what runs is a release, whatever becomes of the branch.
pub const FIRST_SETTINGS: &[(&str, &str)] = &[(DENY_NON_FAST_FORWARDS, "false")];

/// Whether a push may leave commits behind.
pub const DENY_NON_FAST_FORWARDS: &str = "receive.denyNonFastForwards";

/// The registration that the repository belongs to.
pub const TOKEN: &str = "bazooka.token";

/// Set once the app is being destroyed.
pub const DOOMED: &str = "bazooka.doomed";
