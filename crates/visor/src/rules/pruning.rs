//! The rows of an app that are kept, and those that may go.
//!
//! Owns the rule. A release is kept while something needs it: it is head or on trial, instances run it or are wanted of
//! it, a rollback or an abort goes back to it, a push that died is recognized by it. Of the others the last ones are kept
//! (50, or as an operator says), and fewer where the app would take more bytes than it may. Nothing goes that `stats`
//! has yet to count. Config vars and revs go once no release refers to them.
//!
//! ```text
//! kept: needed ∪ not counted ∪ the last n       n: the operator's bound, or less, so that the bytes fit
//! ```
//!
//! Pure. The order in which rows go does not matter, and each look takes up where the last one ended.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use crate::{
    names::{Day, EnvRef, ReleaseId, RevId},
    planted::{Bug, planted},
    quota::{self, Bounds},
    schema::{DayStats, ReleaseStatus},
    snapshot::{AppView, Many},
    stats::is_counted,
    transitions::{
        envs::EMPTY_ENV,
        pruning::Doomed,
        rollouts::{before, way_back},
    },
};

/// The age from which a push under way can't have registered a rev.
const LONGEST_PUSH: Duration = Duration::from_secs(3_600);

/// The fewest releases and revs that are kept whatever they take.
const LEAST: usize = 2;

/// Returns what of an app may go.
///
/// `days` are the rows of the days' figures. Of an app that is being destroyed nothing may: all of it goes anyway. The
/// view must be complete: rows that cannot be read may refer to anything.
pub fn doomed(view: &AppView, days: &Many<Day, DayStats>, bounds: Bounds, now: Timestamp) -> Doomed {
    let Some(app) = view.app.as_ref().filter(|app| !app.destroying) else { return Doomed::default() };
    let counted = |at, created| is_counted(days, &app.token, (at, created), now);
    let uncounted = view.releases.iter().filter(|(_, row)| !counted(row.at, row.create_revision));
    let mut firm = Firm { releases: needed(view), revs: BTreeSet::new() };
    firm.releases.extend(uncounted.map(|(id, _)| *id));
    let young =
        |at: Timestamp| Duration::try_from(now.duration_since(at)).map_or(true, |age| age < LONGEST_PUSH);
    let revs = view.revs.iter().filter(|(_, row)| young(row.at) || !counted(row.at, row.create_revision));
    firm.revs.extend(revs.map(|(rev, _)| rev));
    let most = usize::try_from(bounds.releases).unwrap_or(usize::MAX);
    let kept = kept(view, &firm, bounds, most.max(LEAST));
    let referred: BTreeSet<EnvRef> = view.releases.values().map(|row| row.env).collect();
    let newest = view.envs.keys().next_back();
    let mut doomed = Doomed::default();
    let goes = |id: &ReleaseId| !kept.releases.contains(id) && !planted(Bug::NothingIsPruned);
    for (id, row) in view.releases.iter().filter(|(id, _)| goes(id)) {
        doomed.releases.insert(*id, row.mod_revision);
    }
    // The next env takes the number after the newest one.
    for (env, row) in view.envs.iter().filter(|(env, _)| !referred.contains(env) && Some(*env) != newest) {
        doomed.envs.insert(*env, row.mod_revision);
    }
    let runs: BTreeSet<&RevId> = view.releases.values().map(|row| &row.rev).collect();
    for (rev, row) in view.revs.iter().filter(|(rev, _)| !runs.contains(rev) && !kept.revs.contains(rev)) {
        doomed.revs.insert(rev.clone(), row.mod_revision);
    }
    doomed
}

/// Returns the releases that something needs.
pub fn needed(view: &AppView) -> BTreeSet<ReleaseId> {
    let mut needed: BTreeSet<ReleaseId> = view.head.iter().map(|head| head.release).collect();
    needed.extend(view.trial.iter().map(|trial| trial.release));
    if !planted(Bug::PruningForgetsWhatRuns) {
        needed.extend(view.instances.values().map(|row| row.release));
        needed.extend(view.formation.values().flat_map(|row| row.beside.keys().copied()));
    }
    // The next release takes the number after the last one.
    needed.extend(view.releases.keys().next_back());
    if let Some(head) = &view.head {
        needed.extend(before(view, head.release).map(|(id, _)| id));
        needed.extend(way_back(view).map(|(id, _)| id));
    }
    let open = |status| matches!(status, ReleaseStatus::Trying | ReleaseStatus::Verified);
    needed.extend(view.releases.iter().filter(|(_, row)| open(row.status)).map(|(id, _)| *id));
    // By these an rm knows that a branch was released: else it would release the branch again.
    let branches = view.stored.iter().flat_map(|stored| stored.branches.values());
    let tokens: BTreeSet<String> =
        branches.flat_map(|branch| [branch.push.clone(), branch.again()]).collect();
    let of_push = |token: &String| !token.is_empty() && tokens.contains(token);
    needed.extend(view.releases.iter().filter(|(_, row)| of_push(&row.token)).map(|(id, _)| *id));
    needed
}

/// Returns the bytes that an app takes once all is pruned that may go.
pub fn least_bytes(view: &AppView) -> u64 {
    let last = view.releases.keys().rev().take(LEAST);
    let releases = needed(view).into_iter().chain(last.copied()).collect();
    bytes_of(view, &Kept { releases, revs: BTreeSet::new() })
}

/// The rows that are kept whatever they take.
struct Firm<'a> {
    releases: BTreeSet<ReleaseId>,
    revs: BTreeSet<&'a RevId>,
}

/// The rows that are kept.
struct Kept<'a> {
    releases: BTreeSet<ReleaseId>,
    revs: BTreeSet<&'a RevId>,
}

/// Returns what is kept: the last `most` releases and revs, or as many as the bytes allow.
fn kept<'a>(view: &'a AppView, firm: &Firm<'a>, bounds: Bounds, most: usize) -> Kept<'a> {
    let mut revs: Vec<_> = view.revs.iter().map(|(rev, row)| (row.create_revision, rev)).collect();
    revs.sort_unstable();
    let with_last = |n: usize| {
        let last = view.releases.keys().rev().take(n);
        let releases: BTreeSet<ReleaseId> = firm.releases.iter().chain(last).copied().collect();
        let mut kept = firm.revs.clone();
        kept.extend(revs.iter().rev().take(n).map(|(_, rev)| *rev));
        kept.extend(releases.iter().filter_map(|id| view.releases.get(id)).map(|row| &row.rev));
        Kept { releases, revs: kept }
    };
    if quota::bytes(view) <= bounds.pruned_to() {
        return with_last(if planted(Bug::PruningForgetsTheLast) { 0 } else { most });
    }
    let there = most.min(view.releases.len().max(view.revs.len()));
    let fits = |kept: &Kept<'_>| bytes_of(view, kept) <= bounds.pruned_to();
    (LEAST..=there).rev().map(with_last).find(fits).unwrap_or_else(|| with_last(LEAST))
}

/// Returns the bytes that the kept rows take.
fn bytes_of(view: &AppView, kept: &Kept<'_>) -> u64 {
    let releases: Vec<_> = kept.releases.iter().filter_map(|id| view.releases.get(id)).collect();
    let mut envs: BTreeSet<EnvRef> = releases.iter().map(|row| row.env).collect();
    envs.extend(view.envs.keys().next_back());
    envs.remove(&EMPTY_ENV);
    let of_releases: u64 = releases.iter().map(|row| quota::release_bytes(row)).sum();
    let of_envs: u64 =
        envs.iter().filter_map(|env| view.envs.get(env)).map(|row| quota::env_bytes(row)).sum();
    let of_revs: u64 =
        kept.revs.iter().filter_map(|rev| view.revs.get(*rev)).map(|row| quota::rev_bytes(row)).sum();
    of_releases + of_envs + of_revs
}

#[cfg(test)]
mod tests;
