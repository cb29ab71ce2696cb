//! How often a release may be started, and where no more.
//!
//! Owns the brakes on a release that fails: a pause that doubles, a number of starts a minute over the cluster, and
//! hosts that are avoided or not tried again yet. A trial and a service ask the same.

use std::{collections::BTreeMap, time::Duration};

use visor::{
    names::{HostName, ProcName, ReleaseId},
    pause::Doubling,
    rules::placement::{Refusals, elsewhere},
    schema::Fault,
};

use super::{
    draft::{Context, Draft},
    facts::Facts,
    memory::{Failure, START_WINDOW},
};

/// How many instances of a release that has failed are started within [`START_WINDOW`] over the whole cluster.
pub const STARTS_A_MINUTE: usize = 10;

/// The pause before an instance that failed for good is replaced.
const PAUSE: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(60));

/// How many hosts a trial's instance may fail on for the hosts' own faults, before that is the release's.
const HOSTS_TRIED: usize = 3;

/// How many instances of a release may start now, given how it failed lately. It says when more may.
///
/// One failure is replaced at once. Each further one doubles the pause, and [`STARTS_A_MINUTE`] bounds the
/// starts over the cluster, so that a bad rev can't tour the hosts. A fault of the host's is none of the
/// release's: there the host is avoided instead.
pub(super) fn allowance(
    context: Context<'_>,
    proc: &ProcName,
    release: ReleaseId,
    failures: &[&Failure],
    draft: &mut Draft,
) -> usize {
    let own: Vec<_> =
        failures.iter().filter(|failure| matches!(failure.fault, Fault::App | Fault::OutOfMemory)).collect();
    let now = context.now.clock;
    let Some(last) = own.last().filter(|_| own.len() > 1) else { return usize::MAX };
    let again = last.at + pause(own.len() - 2);
    if again > now {
        draft.look_again_at(again);
        return 0;
    }
    let starts = context.memory.starts_of(proc, release);
    let allowed = STARTS_A_MINUTE.saturating_sub(starts.len());
    if allowed == 0
        && let Some(first) = starts.first()
    {
        // They count until the window is past.
        draft.look_again_at((*first + START_WINDOW + Duration::from_millis(1)).max(now));
    }
    allowed
}

/// The pause after so many failures, of which each but the first doubles it.
fn pause(step: usize) -> Duration {
    PAUSE.after(u32::try_from(step).unwrap_or(u32::MAX))
}

/// The hosts where a release failed for want of something that the host has: memory, ports, disk.
pub(super) fn avoided(failures: &[&Failure]) -> Refusals {
    failures
        .iter()
        .filter(|failure| failure.fault != Fault::App)
        .map(|failure| (failure.host.clone(), failure.cause.clone()))
        .collect()
}

/// The hosts where a release failed by the host's fault so lately that they aren't tried again yet.
pub(super) fn refused(context: Context<'_>, failures: &[&Failure], draft: &mut Draft) -> Refusals {
    let mut by_host: BTreeMap<&HostName, (usize, &Failure)> = BTreeMap::new();
    for failure in failures.iter().filter(|f| matches!(f.fault, Fault::Host | Fault::NoPort)) {
        let (times, last) = by_host.entry(&failure.host).or_insert((0, failure));
        *times += 1;
        *last = failure;
    }
    let mut refused = BTreeMap::new();
    for (host, (times, last)) in by_host {
        let again = last.at + pause(times - 1);
        if again > context.now.clock {
            draft.look_again_at(again);
            refused.insert(host.clone(), format!("failed it just now: {}", last.cause));
        }
    }
    refused
}

/// Whether a trial's instance failed by its host's fault and can still be tried on another.
pub(super) fn goes_elsewhere(
    context: Context<'_>,
    proc: &ProcName,
    release: ReleaseId,
    facts: &Facts<'_>,
) -> bool {
    let fault = facts.status.and_then(|status| status.fault);
    let failures = context.memory.failures_of(proc, release);
    matches!(fault, Some(Fault::Host | Fault::NoPort))
        && failures.len() <= HOSTS_TRIED
        && elsewhere(context.snapshot, &avoided(&failures))
}
