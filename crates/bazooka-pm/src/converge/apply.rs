//! The converger's writes: turns a plan's steps into transactions.
//!
//! Owns the changes that the steps become, made against the very image that was planned on, and the outcome of each.
//! It decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use visor::{
    keys::Key,
    links,
    names::AppName,
    planted::{Bug, planted},
    schema::{Assignment, Desired, Extra, Pending, State},
    snapshot::Snapshot,
    store::Revision,
    transitions::{
        envs::{asking, ending_request, handed, handing, taking_back},
        placement::{
            Outcome, Placed, Placement, Term, advance, archiving, ending_service, forgetting, losing,
            pending, sourcing,
        },
        releases::{failure, verification},
    },
    visor::{Change, Visor, VisorError},
};

use super::{
    sources::Sources,
    step::{Act, Plan, Slot, Step},
};

/// The outcome of applying a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// The revision of the last write; 0 if nothing was written.
    pub revision: Revision,
    /// True if some writes may have been carried out, or may yet be. Settle them before the next plan.
    pub doubtful: bool,
    /// Apps of which a step conflicted with a change that the image didn't show yet.
    pub overtaken: BTreeSet<AppName>,
    /// The coordinator's error, if it failed.
    pub error: Option<VisorError>,
}

impl Applied {
    fn note(&mut self, step: &Step, outcome: Outcome) {
        match outcome {
            Outcome::Done(revision) => {
                self.revision = self.revision.max(revision);
                log(step);
            }
            Outcome::Conflict => drop(self.overtaken.insert(step.app.clone())),
            Outcome::Unknown => self.doubtful = true,
        }
    }

    /// Notes the outcome of a step that writes a private row, whose revision tells nothing about the others.
    fn note_private(&mut self, step: &Step, outcome: Outcome) {
        let before = self.revision;
        self.note(step, outcome);
        self.revision = before;
    }

    fn note_placed(&mut self, step: &Step, placed: Placed) {
        match placed {
            Placed::At(id, revision) => {
                self.revision = self.revision.max(revision);
                tracing::info!(
                    app = %step.app, instance = %id, action = "place", what = %ActSubject(&step.act),
                    reason = %step.reason, "placed",
                );
            }
            Placed::Refused => drop(self.overtaken.insert(step.app.clone())),
            Placed::Unknown => self.doubtful = true,
        }
    }

    fn failed(mut self, error: VisorError) -> Self {
        self.doubtful = true;
        self.error = Some(error);
        self
    }
}

/// Applies a plan that was made on this image. The returned future doesn't borrow the image, so that the caller can
/// update it meanwhile.
///
/// # Cancel safety
/// Dropping the future leaves the writes that were carried out, and a few transactions uncertain.
pub fn apply<'a>(
    visor: &'a Visor,
    term: Term,
    snapshot: &Snapshot,
    plan: &'a Plan,
    now: Timestamp,
) -> impl Future<Output = Applied> + use<'a> {
    let (mut places, mut placements) = (Vec::new(), Vec::new());
    let mut sources = Sources::of(snapshot);
    let (mut hands, mut handings) = (Vec::new(), Vec::new());
    let (mut asks, mut requests) = (Vec::new(), Vec::new());
    let (mut others, mut changes) = (Vec::new(), Vec::new());
    for step in &plan.steps {
        if let Act::Place { .. } = step.act {
            if let Some(placement) = placement(snapshot, &mut sources, step) {
                places.push(step);
                placements.push(placement);
            }
        } else if let Some(change) = change(snapshot, step, now) {
            let (steps, all) = match step.act {
                Act::Hand { .. } => (&mut hands, &mut handings),
                Act::Ask { .. } | Act::EndRequest { .. } => (&mut asks, &mut requests),
                _ => (&mut others, &mut changes),
            };
            steps.push(step);
            all.push(change);
        }
    }
    let counter = snapshot.instance_counter.clone();
    async move {
        let mut applied = Applied::default();
        // The answers take a moment, in which the other steps are taken.
        if !requests.is_empty() {
            match visor.commit_all(term, requests).await {
                Ok(outcomes) => {
                    asks.into_iter()
                        .zip(outcomes)
                        .for_each(|(step, outcome)| applied.note_private(step, outcome));
                }
                Err(error) => return applied.failed(error),
            }
        }
        // A new instance's env is handed to its host before the instance is placed, so that it need not wait.
        if !handings.is_empty() {
            match visor.commit_all(term, handings).await {
                Ok(outcomes) => {
                    hands.into_iter().zip(outcomes).for_each(|(step, outcome)| applied.note(step, outcome));
                }
                Err(error) => return applied.failed(error),
            }
        }
        // Then new instances, because people wait for them.
        if !placements.is_empty() {
            match visor.place(term, placements, counter.as_ref(), now).await {
                Ok(placed) => {
                    places
                        .into_iter()
                        .zip(placed)
                        .for_each(|(step, placed)| applied.note_placed(step, placed));
                }
                Err(error) => return applied.failed(error),
            }
        }
        if !changes.is_empty() {
            match visor.commit_all(term, changes).await {
                Ok(outcomes) => {
                    others.into_iter().zip(outcomes).for_each(|(step, outcome)| applied.note(step, outcome));
                }
                Err(error) => return applied.failed(error),
            }
        }
        applied
    }
}

/// Returns what a step places; none if it places nothing, or the image isn't the one that it was planned on.
pub(super) fn placement(snapshot: &Snapshot, sources: &mut Sources<'_>, step: &Step) -> Option<Placement> {
    let Act::Place { slot, place } = &step.act else { return None };
    let Slot { proc, release, index, trial } = slot;
    let view = snapshot.apps.get(&step.app)?;
    let row = view.releases.get(release)?;
    let rev = view.revs.get(&row.rev)?;
    let assignment = Assignment {
        desired: Desired::Run,
        reason: None,
        app: step.app.clone(),
        proc: proc.clone(),
        release: *release,
        rev: row.rev.clone(),
        env: row.env,
        slug: rev.slug.clone(),
        command: rev.procs.get(proc)?.clone(),
        index: *index,
        run: view.procs.get(proc).map(|row| row.run.clone()).unwrap_or_default(),
        // The plan was made on this very image, which has all of these ports.
        links: match planted(Bug::LinkedPortsAreMissing) {
            true => BTreeMap::new(),
            false => links::ports(snapshot, links::of(view, row.env).into_iter().flatten()).ok()?,
        },
        sources: sources.choose(&place.host, &rev.slug.sha256),
        trial: *trial,
        extra: Extra::new(),
    };
    Some(Placement {
        host: place.host.clone(),
        host_created_at: place.created_at,
        app_at: view.app.as_ref()?.mod_revision,
        assignment,
        reason: step.reason.clone(),
    })
}

fn change(snapshot: &Snapshot, step: &Step, now: Timestamp) -> Option<Change> {
    let app = &step.app;
    let view = snapshot.apps.get(app)?;
    let rows = |id| {
        let row = view.instances.get(id)?;
        let host = snapshot.hosts.get(&row.host);
        let assigned = host.and_then(|host| host.assigned.get(id));
        Some((row, assigned, host.and_then(|host| host.status.get(id))))
    };
    Some(match &step.act {
        Act::Place { .. } => return None,
        Act::Advance { id, to } => {
            let (row, assigned, status) = rows(id)?;
            let assigned = assigned?;
            let change = advance(&row.host, *id, assigned, *to, &step.reason);
            // An instance that serves nobody in this image may have begun to serve since, while it drains too: its host
            // may have started it again, and a proxy that is out of touch still routes to it.
            let serves = status.is_some_and(|status| status.state == State::Running);
            if *to == Desired::Stop && (assigned.desired == Desired::Run || !serves) {
                change.as_read(&Key::Status(row.host.clone(), *id), status)
            } else {
                change
            }
        }
        Act::Lose { id } => {
            let (row, _, status) = rows(id)?;
            losing(&row.host, *id, status, &step.reason, now)
        }
        Act::Archive { id, oldest } => {
            let (row, assigned, status) = rows(id)?;
            archiving(app, *id, row, assigned, status, oldest, now)
        }
        Act::Forget { proc, ids } => forgetting(app, proc, ids),
        Act::Verify { release, excused } => {
            let mut row = view.releases.get(release)?.clone();
            row.value.excuse(excused);
            verification(app, view, *release, &row, view.trial.as_ref()?)
        }
        Act::Fail { release, cause } => failure(app, view, *release, view.releases.get(release)?, cause),
        Act::Hand { host, env } => {
            let before = view.handed.get(&(host.clone(), *env));
            handing(host, app, *env, before, &handed(snapshot, view, host, *env)?)
        }
        Act::Keep { host, env } => {
            let before = view.handed.get(&(host.clone(), *env));
            handing(host, app, *env, before, &handed(snapshot, view, host, *env)?.key_alone())
        }
        Act::TakeBack { host, env } => taking_back(host, app, *env, view.handed.get(&(host.clone(), *env))?),
        Act::Ask { by, env, host, to } => asking((by, host), app, *env, to.clone(), now),
        Act::EndRequest { by, env, host } => {
            let before = view.wrap_requests.get(&(by.clone(), *env, host.clone()))?;
            ending_request((by, host), app, *env, before)
        }
        Act::Source { id, sources } => {
            let (row, assigned, _) = rows(id)?;
            sourcing(&row.host, *id, assigned?, sources)
        }
        Act::EndService { host, id } => {
            ending_service(host, app, *id, view.serving.get(&(host.clone(), *id))?)
        }
        Act::Pend { proc, pending: hindrance } => {
            let before = view.pending.get(proc);
            let row = hindrance.as_ref().map(|hindrance| Pending {
                release: hindrance.release,
                short: hindrance.short,
                reason: hindrance.reason.clone(),
                refusals: hindrance.refusals(),
                reasons: hindrance.reasons.clone(),
                since: before.map_or(now, |before| before.since),
                extra: before.map(|before| before.extra.clone()).unwrap_or_default(),
            });
            pending(app, view.app.as_ref(), proc, before, row.as_ref())
        }
    })
}

fn log(step: &Step) {
    let (app, what, reason) = (&step.app, ActSubject(&step.act), &step.reason);
    let action = step.act.kind();
    match &step.act {
        Act::Pend { pending: Some(_), .. } => {
            tracing::warn!(%app, action, %what, %reason, "a service isn't as it should be");
        }
        Act::Forget { .. }
        | Act::Hand { .. }
        | Act::Keep { .. }
        | Act::TakeBack { .. }
        | Act::Ask { .. }
        | Act::EndRequest { .. }
        | Act::Source { .. }
        | Act::EndService { .. } => {
            tracing::debug!(%app, action, %what, %reason, "done")
        }
        _ => tracing::info!(%app, action, %what, %reason, "converged a step"),
    }
}

impl Act {
    /// Returns the act's name, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Act::Place { .. } => "place",
            Act::Advance { to: Desired::Drain, .. } => "drain",
            Act::Advance { .. } => "stop",
            Act::Lose { .. } => "lose",
            Act::Archive { .. } => "put_away",
            Act::Forget { .. } => "forget",
            Act::Verify { .. } => "verify",
            Act::Fail { .. } => "fail",
            Act::Hand { .. } => "hand",
            Act::Keep { .. } => "keep",
            Act::TakeBack { .. } => "take_back",
            Act::Ask { .. } => "ask_for_key",
            Act::EndRequest { .. } => "end_request",
            Act::Source { .. } => "source",
            Act::EndService { .. } => "end_service",
            Act::Pend { .. } => "pend",
        }
    }
}

/// Displays a step's subject, for logs.
struct ActSubject<'a>(&'a Act);

impl std::fmt::Display for ActSubject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Act::Place { slot, place } => {
                write!(f, "{}.{} of {} on {}", slot.proc, slot.index, slot.release, place.host)
            }
            Act::Advance { id, .. } | Act::Lose { id } | Act::Archive { id, .. } => write!(f, "{id}"),
            Act::Verify { release, .. } | Act::Fail { release, .. } => write!(f, "{release}"),
            Act::Hand { host, env } | Act::Keep { host, env } | Act::TakeBack { host, env } => {
                write!(f, "{env} for {host}")
            }
            Act::Ask { by, env, host, .. } | Act::EndRequest { by, env, host } => {
                write!(f, "{env} for {host} by {by}")
            }
            Act::Source { id, .. } => write!(f, "the slug of {id}"),
            Act::EndService { host, id } => write!(f, "the slug of {id} by {host}"),
            Act::Forget { proc, .. } | Act::Pend { proc, .. } => write!(f, "{proc}"),
        }
    }
}
