//! Limits on the starts of a failing release: how often, and on which hosts.
//!
//! Owns the brakes on a release that fails: a pause that doubles, a number of starts a minute over the cluster, hosts
//! that are avoided, and hosts that are not tried again yet. Trials and services obey the same limits.

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

/// The most starts, within [`START_WINDOW`] and over the whole cluster, of a release that has failed.
pub const STARTS_A_MINUTE: usize = 10;

/// The pause before an instance that failed for good is replaced.
const PAUSE: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(60));

/// The number of hosts on which a trial's instance may fail by the hosts' own fault. The next such failure counts
/// against the release.
const HOSTS_TRIED: usize = 3;

/// Returns how many instances of a release may start now, given its recent failures. Notes in the draft when more may.
///
/// The first failure is replaced at once. Each further one doubles the pause, and [`STARTS_A_MINUTE`] bounds the
/// starts over the cluster, so that a bad rev can't visit one host after the other. A failure by the host's fault
/// doesn't count against the release; the host is avoided instead.
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
        // Starts count until the window is past.
        draft.look_again_at((*first + START_WINDOW + Duration::from_millis(1)).max(now));
    }
    allowed
}

/// Returns the first pause, doubled `step` times, up to the longest one.
fn pause(step: usize) -> Duration {
    PAUSE.after(u32::try_from(step).unwrap_or(u32::MAX))
}

/// Returns the hosts where a release failed because the host lacked something: memory, ports, disk.
pub(super) fn avoided(failures: &[&Failure]) -> Refusals {
    failures
        .iter()
        .filter(|failure| failure.fault != Fault::App)
        .map(|failure| (failure.host.clone(), failure.cause.clone()))
        .collect()
}

/// Returns the hosts where a release failed by the host's fault so recently that they aren't tried again yet.
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

/// Reports whether a trial's instance failed by its host's fault and can still be tried on another host.
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
