//! The deadlines with which each part waits for another, and their order.
//!
//! Owns every deadline that two parts must agree on. The assertions check the order at compile time: the part that
//! knows the cause gives its verdict before the part that waits for it gives up. A time that concerns a single part
//! stays with that part.
//!
//! ```text
//! lease  0 ──────── 3 renewed ─────────── 7 stops what mustn't run twice ── 10 ends ── 11 its instances are lost
//! trial  boot timeout ──── +30 the converger's verdict ──── +40 a push gives up ──── +45 a command gives up
//! room   nobody could place it ──── 15 a trial fails; a push, `scale` and `hosts drain` report it
//! ```

use std::time::Duration;

/// The time that a lease lasts without a renewal: a dead host, converger or rm is noticed after this time.
pub const LEASE: Duration = Duration::from_secs(10);

/// The interval between renewals of a lease.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(3);

/// The time that revoking a lease may take; after that it ends by itself.
pub const LEASE_RELEASE: Duration = Duration::from_secs(2);

/// The silence after which a watch is asked for a sign of life, repeatedly.
pub const WATCH_ASKED: Duration = Duration::from_secs(5);

/// The silence after which a watch that was asked is given up.
pub const WATCH_SILENT: Duration = Duration::from_secs(15);

/// The longest pause between two attempts of a mirror to list again.
pub const LONGEST_RELIST_PAUSE: Duration = Duration::from_secs(2);

/// The interval at which the end of a host's lease is written to disk for the shims that need it.
pub const LEASE_NOTE: Duration = Duration::from_secs(1);

/// The time before the end of its host's lease at which an instance that must not run twice is told to end.
pub const STOP_BEFORE_LEASE_ENDS: Duration = Duration::from_secs(3);

/// The interval at which such an instance's shim reads the end of the lease.
pub const LEASE_LOOK: Duration = Duration::from_millis(500);

/// The longest stop timeout that such an instance gets then.
pub const STOP_ON_PARTITION: Duration = Duration::from_secs(2);

/// The time from the end of a host's lease until the host is given up, for a bazooka-pm that was only slow.
pub const HOST_REPRIEVE: Duration = Duration::from_secs(1);

/// The reprieve of a host that was gone when the converger began, or that is still gone after a freeze.
///
/// The converger cannot know for how long such a host has been gone. When a whole cluster starts, its hosts return
/// within one lease time.
pub const FIRST_HOST_REPRIEVE: Duration = LEASE;

/// The time within which vanished hosts count as vanished at once.
pub const GONE_AT_ONCE: Duration = LEASE;

/// The time that a host that was just stopped may take to disappear.
pub const HOST_DISAPPEARS: Duration = Duration::from_secs(15);

/// The time for which replaced instances go on serving after their host returns from a partition.
///
/// The proxies that were cut off with it need this time to learn what was replaced. A proxy may be back later than the
/// host: its watch may be silent for a while before it lists again, and on a busy machine everything takes longer.
pub const SERVE_AFTER_PARTITION: Duration = Duration::from_secs(20);

/// The time within which HAProxy checks a server again that it could not reach.
pub const SERVER_CHECK: Duration = Duration::from_millis(500);

/// The longest time that an instance may drain.
pub const DRAIN: Duration = Duration::from_secs(30);

/// The time without a place after which an instance counts as failed.
///
/// A trial fails then, and a push or a command that waits for the instance gives up.
pub const NO_ROOM: Duration = Duration::from_secs(15);

/// The time that a push or a command waits while no converger or no host is there at all.
pub const NOBODY: Duration = Duration::from_secs(15);

/// The time that a command waits for a coordinator that is out of touch.
pub const OUT_OF_TOUCH: Duration = Duration::from_secs(15);

/// The silence after which a command reports a missing part.
pub const COMMAND_QUIET: Duration = Duration::from_secs(2);

/// The silence after which a push reports what it waits for.
pub const PUSH_QUIET: Duration = Duration::from_secs(3);

/// The time for a trial beyond its procs' boot timeout, until the converger's verdict.
pub const TRIAL_BEYOND_BOOT: Duration = Duration::from_secs(30);

/// The time beyond the boot timeout that a push waits for that verdict.
pub const PUSH_BEYOND_BOOT: Duration = Duration::from_secs(40);

/// The time beyond the boot timeout that a command waits for that verdict.
pub const COMMAND_BEYOND_BOOT: Duration = Duration::from_secs(45);

/// The time that a trial waits for a proc that was failing in the release before.
pub const EXCUSED_PROC: Duration = Duration::from_secs(10);

/// The time that a push or a command waits for the end of another's trial.
pub const OTHER_TRIAL: Duration = Duration::from_secs(60);

/// The interval at which the converger counts the days' figures. What is not counted yet is not pruned.
pub const COUNTED_EVERY: Duration = Duration::from_secs(60);

/// The time that a command waits until older releases are pruned.
pub const PRUNED_WITHIN: Duration = Duration::from_secs(90);

/// The time that a command grants beyond its instances' own limits: for fetching a slug, or a busy machine.
pub const COMMAND_SLACK: Duration = Duration::from_secs(30);

/// The time that a command waits for proxies once everything runs; a hanging proxy does not make the change fail.
pub const PROXIES_FOLLOW: Duration = Duration::from_secs(3);

const fn sum(one: Duration, other: Duration) -> Duration {
    one.saturating_add(other)
}

const fn is_shorter(one: Duration, other: Duration) -> bool {
    one.as_nanos() < other.as_nanos()
}

// The order of the times of leases and watches.
const _: () = {
    assert!(is_shorter(LEASE_RENEWAL.saturating_mul(3), LEASE), "two renewals may fail before a lease ends");
    assert!(LEASE.subsec_nanos() == 0, "etcd counts a lease in whole seconds");
    assert!(is_shorter(LEASE_RELEASE, LEASE), "a lease that isn't given back in time ends by itself");
    assert!(is_shorter(WATCH_ASKED.saturating_mul(2), WATCH_SILENT), "a silent watch is asked twice");
    assert!(is_shorter(LEASE, WATCH_SILENT), "a pause that costs nobody a lease costs nobody a watch");
};

// An instance that must not run twice has ended before its host's lease ends.
const _: () = {
    let ends = sum(LEASE_LOOK, STOP_ON_PARTITION);
    assert!(is_shorter(ends, STOP_BEFORE_LEASE_ENDS), "it ends before the lease can");
    let noted = sum(LEASE_RENEWAL.saturating_mul(2), LEASE_NOTE);
    assert!(!is_shorter(LEASE, sum(noted, STOP_BEFORE_LEASE_ENDS)), "one failed renewal ends no instance");
};

// Hosts that go and return.
const _: () = {
    assert!(is_shorter(sum(LEASE, HOST_REPRIEVE), HOST_DISAPPEARS), "a stopped host is gone by then");
    // An attempt to list takes no longer than a pause.
    let told = sum(sum(WATCH_SILENT, LONGEST_RELIST_PAUSE.saturating_mul(2)), SERVER_CHECK);
    assert!(is_shorter(told, SERVE_AFTER_PARTITION), "a proxy is back in touch by then");
};

// The part that knows the cause reports first.
const _: () = {
    assert!(is_shorter(TRIAL_BEYOND_BOOT, PUSH_BEYOND_BOOT), "the converger's verdict precedes a push's");
    assert!(is_shorter(PUSH_BEYOND_BOOT, COMMAND_BEYOND_BOOT), "a push's verdict precedes a command's");
    assert!(is_shorter(NO_ROOM, TRIAL_BEYOND_BOOT), "a trial without a place fails for that");
    assert!(is_shorter(EXCUSED_PROC, TRIAL_BEYOND_BOOT), "an excused proc can't decide a trial");
};

// Waiting outlasts what heals by itself.
const _: () = {
    assert!(is_shorter(COUNTED_EVERY, PRUNED_WITHIN), "what is in the way is counted and pruned by then");
    assert!(is_shorter(sum(LEASE, HOST_REPRIEVE), NO_ROOM), "a host that restarts is back by then");
    assert!(is_shorter(sum(LEASE, HOST_REPRIEVE), NOBODY), "another converger is elected by then");
    assert!(is_shorter(sum(LEASE, HOST_REPRIEVE), OUT_OF_TOUCH), "etcd has another leader by then");
    assert!(is_shorter(sum(LEASE, HOST_REPRIEVE), COMMAND_SLACK), "a lost host's instances are replaced");
    assert!(is_shorter(COMMAND_QUIET, NOBODY) && is_shorter(PUSH_QUIET, NOBODY), "words precede giving up");
};
