//! The verdict on a release on trial.
//!
//! Owns when a trial has succeeded and when it has failed. That its instances are started and, after a failure,
//! removed follows from what is wanted, as for any other instance.
//!
//! A trial succeeds once one instance of each concerned proc has been healthy for the minimum ready time. A proc that
//! was failing in the old release is excused: it runs too, but the verdict waits for it no longer than
//! [`EXCUSED_PROC`], and neither success nor failure of it counts.

#[cfg(test)]
mod cases;

use std::{collections::BTreeSet, time::Instant};

use visor::{
    deadlines::{EXCUSED_PROC, NO_ROOM, TRIAL_BEYOND_BOOT},
    keys::Key,
    names::{ProcName, ReleaseId},
    planted::{Bug, planted},
    schema::{Desired, ReleaseStatus},
    transitions::releases::concerned,
};

use super::{
    attempts::{STARTS_A_MINUTE, goes_elsewhere},
    draft::{Context, Draft},
    facts::Facts,
    settings::Settings,
    step::Act,
};

/// The starts that the procs of a trial have together, over the whole cluster; twice their number, if that is more.
///
/// Each proc has its quick restarts on its own host. Without this bound, a rev with many crashing procs would have
/// many starts before the first proc fails the trial.
const STARTS: usize = STARTS_A_MINUTE;

/// The progress of one proc of a trial.
enum Progress {
    /// An instance has been healthy for long enough, or the proc is excused.
    Settled,
    /// Not known yet. More may be known at this time.
    Waits(Option<Instant>),
    /// The proc has failed, for this cause.
    Failed(String),
}

/// Plans the verdict on an app's trial, if there is one.
pub(super) fn plan(context: Context<'_>, draft: &mut Draft) {
    let view = context.view;
    let on_trial = view.trial.as_ref().map(|trial| trial.release);
    let destroying = view.app.as_ref().is_some_and(|app| app.destroying);
    for (id, release) in &view.releases {
        let trying = matches!(release.status, ReleaseStatus::Trying | ReleaseStatus::Verified);
        if trying && destroying {
            fail(*id, "the app is being destroyed".into(), draft);
        } else if trying && on_trial != Some(*id) {
            fail(*id, "the push that tried it has ended".into(), draft);
        }
    }
    let Some(release) = on_trial.filter(|_| !destroying) else { return };
    if view.releases.get(&release).is_some_and(|row| row.status == ReleaseStatus::Trying) {
        judge(context, release, draft);
    }
}

fn fail(release: ReleaseId, cause: String, draft: &mut Draft) {
    let reason = cause.lines().next().unwrap_or_default().to_owned();
    draft.act(Act::Fail { release, cause }, reason);
}

fn judge(context: Context<'_>, release: ReleaseId, draft: &mut Draft) {
    let procs = concerned(context.view, &context.view.releases[&release]);
    let begun = context.memory.trial.as_ref().filter(|noted| noted.release == release);
    let begun = begun.map_or(context.now.clock, |noted| noted.begun);
    let longest = procs.iter().map(|proc| Settings::of(context.view, proc).counted_within).max();
    let deadline = begun + longest.unwrap_or_default() + TRIAL_BEYOND_BOOT;
    if let Some(cause) = overspent(context, release, &procs) {
        return fail(release, cause, draft);
    }
    let mut waits_for = Vec::new();
    for proc in &procs {
        match progress(context, release, proc, begun) {
            Progress::Settled => {}
            Progress::Failed(cause) => return fail(release, cause, draft),
            Progress::Waits(until) => {
                waits_for.push(proc.as_str());
                until.into_iter().for_each(|at| draft.look_again_at(at));
            }
        }
    }
    if waits_for.is_empty() {
        let reason = match procs.len() {
            0 => "nothing of it is wanted any more".to_owned(),
            _ => "an instance of each proc is healthy".to_owned(),
        };
        draft.act(Act::Verify { release, excused: excused(context, release, &procs) }, reason);
    } else if deadline <= context.now.clock {
        let within = deadline.duration_since(begun).as_secs();
        fail(release, format!("{} was not healthy within {within} s", waits_for.join(", ")), draft);
    } else {
        draft.look_again_at(deadline);
    }
}

/// Returns the procs that are excused and have no instance that has proved itself.
fn excused(context: Context<'_>, release: ReleaseId, procs: &[&ProcName]) -> BTreeSet<ProcName> {
    let Some(noted) = &context.memory.trial else { return BTreeSet::new() };
    let is_proven = |proc: &ProcName| {
        let settings = Settings::of(context.view, proc);
        let mut tried = context.of_proc(proc).filter(|facts| facts.row.release == release);
        tried.any(|facts| context.memory.is_ready(facts.id, settings.min_ready, context.now))
    };
    let excused = procs.iter().filter(|proc| noted.excused.contains(**proc) && !is_proven(proc));
    excused.map(|proc| (*proc).clone()).collect()
}

/// Returns the cause if a trial has exceeded its number of starts. Starts of excused procs don't count.
fn overspent(context: Context<'_>, release: ReleaseId, procs: &[&ProcName]) -> Option<String> {
    let excused = context.memory.trial.as_ref().map(|noted| &noted.excused);
    let counts = |proc: &&&ProcName| !excused.is_some_and(|excused| excused.contains(**proc));
    let tried: Vec<_> = procs
        .iter()
        .filter(counts)
        .flat_map(|proc| context.of_proc(proc))
        .filter(|facts| facts.row.release == release && facts.desired() == Desired::Run)
        .collect();
    let restarts = |facts: &Facts<'_>| facts.status.map_or(0, |status| status.restarts);
    let crashes = tried.iter().map(restarts).fold(0, u32::saturating_add);
    let starts = tried.len().saturating_add(usize::try_from(crashes).unwrap_or(usize::MAX));
    if starts <= STARTS.max(2 * procs.len()) {
        return None;
    }
    let worst = tried.iter().max_by_key(|facts| restarts(facts))?;
    Some(format!("its procs crashed {crashes} times in {starts} starts; {}", story(worst)))
}

fn progress(context: Context<'_>, release: ReleaseId, proc: &ProcName, begun: Instant) -> Progress {
    let Context { view, memory, now, .. } = context;
    let excused = memory.trial.as_ref().is_some_and(|noted| noted.excused.contains(proc));
    let settings = Settings::of(view, proc);
    let tried: Vec<_> = context
        .of_proc(proc)
        .filter(|facts| facts.row.release == release && facts.desired() == Desired::Run)
        .collect();
    let is_ready = |facts: &Facts<'_>| memory.is_ready(facts.id, settings.min_ready, now);
    if tried.iter().any(is_ready) || (planted(Bug::TrialSucceedsAtOnce) && !tried.is_empty()) {
        return Progress::Settled;
    }
    let crashed = |facts: &&Facts<'_>| facts.is_failing() || facts.status.is_some_and(|s| s.restarts > 0);
    if excused && (tried.iter().any(|facts| crashed(&facts)) || begun + EXCUSED_PROC <= now.clock) {
        return Progress::Settled;
    }
    if let Some(facts) = tried.iter().find(|facts| facts.is_failing())
        && !goes_elsewhere(context, proc, release, facts)
    {
        return Progress::Failed(story(facts));
    }
    let mut until = tried.iter().find_map(|facts| memory.ready_at(facts.id, settings.min_ready));
    if excused {
        until = Some(until.map_or(begun + EXCUSED_PROC, |at| at.min(begun + EXCUSED_PROC)));
    }
    if tried.is_empty()
        && let Some(since) = memory.short_since(proc, release)
    {
        if since + NO_ROOM <= now.clock {
            return Progress::Failed(shortfall(context, proc));
        }
        until = Some(until.map_or(since + NO_ROOM, |at| at.min(since + NO_ROOM)));
    }
    Progress::Waits(until)
}

/// Returns why an instance failed, with its last output.
fn story(facts: &Facts<'_>) -> String {
    let mut story = facts.failure();
    for line in facts.status.iter().flat_map(|status| &status.last_output) {
        story.push('\n');
        story.push_str(line);
    }
    story
}

/// Returns why an instance got no place.
fn shortfall(context: Context<'_>, proc: &ProcName) -> String {
    let seconds = NO_ROOM.as_secs();
    match context.view.pending.get(proc) {
        Some(pending) => {
            let mut cause = format!("no room for {proc} within {seconds} s: {}", pending.reason);
            for (host, refusal) in &pending.refusals {
                cause.push_str(&format!("\n{host} {refusal}"));
            }
            cause
        }
        None => {
            let key = Key::Pending(context.name.clone(), proc.clone());
            format!("no instance of {proc} could be placed within {seconds} s (see {key})")
        }
    }
}
