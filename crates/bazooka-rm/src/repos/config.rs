//! The git configuration of each repository, with the reason for each setting.

/// The name and value of each setting.
pub const SETTINGS: &[(&str, &str)] = &[
    // For `git push -o no-rollout`.
    ("receive.advertisePushOptions", "true"),
    ("http.receivepack", "true"),
    // Pushed objects are checked before anything reads them; harmless faults that old tools are known to write are
    // accepted. Most are in the lines of author and committer, which nothing here goes by.
    ("receive.fsckObjects", "true"),
    ("receive.fsck.zeroPaddedFilemode", "ignore"),
    ("receive.fsck.missingSpaceBeforeDate", "ignore"),
    ("receive.fsck.badTimezone", "ignore"),
    ("receive.fsck.zeroPaddedDate", "ignore"),
    ("receive.fsck.badDate", "ignore"),
    ("receive.fsck.badDateOverflow", "ignore"),
    ("receive.fsck.missingEmail", "ignore"),
    ("receive.fsck.badEmail", "ignore"),
    ("receive.fsck.badName", "ignore"),
    ("receive.fsck.missingNameBeforeEmail", "ignore"),
    ("receive.fsck.missingSpaceBeforeEmail", "ignore"),
    ("receive.fsck.multipleAuthors", "ignore"),
    ("receive.fsck.missingAuthor", "ignore"),
    // A slug may have 500 MB; its history several times that.
    ("receive.maxInputSize", "2147483648"),
    // Large blobs are streamed to disk instead of being held in memory, one thread at a time.
    ("core.bigFileThreshold", "16777216"),
    ("pack.threads", "1"),
    ("pack.windowMemory", "67108864"),
    // An accepted push survives a power cut.
    ("core.fsync", "committed"),
    ("core.fsyncMethod", "batch"),
    // A push never waits for garbage collection; `git gc --auto` collects from 2000 loose objects on, in the foreground.
    ("receive.autoGc", "false"),
    ("gc.auto", "2000"),
    ("gc.autoDetach", "false"),
    ("gc.pruneExpire", "1.day.ago"),
    // The reflog records when each push moved a branch, and by whom.
    ("core.logAllRefUpdates", "true"),
    ("transfer.advertiseSID", "false"),
];

/// The settings that are written once, when the repository is made; its owner may change them later.
///
/// Forced pushes are allowed, as with Heroku: the running code is a release, independent of the branch.
pub const FIRST_SETTINGS: &[(&str, &str)] = &[(DENY_NON_FAST_FORWARDS, "false")];

/// The name of the setting that rejects forced pushes.
pub const DENY_NON_FAST_FORWARDS: &str = "receive.denyNonFastForwards";

/// The name of the setting with the token of the registration that the repository belongs to.
pub const TOKEN: &str = "bazooka.token";

/// The name of the setting that is true once the app is being destroyed.
pub const DOOMED: &str = "bazooka.doomed";
