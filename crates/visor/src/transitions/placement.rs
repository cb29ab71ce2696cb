//! The converger's writes (placements, drains, stops, ends), and the election that allows them.

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::{
    keys::Key,
    names::{AppName, HostName, InstanceId, ProcName},
    planted::{Bug, planted},
    schema::{
        App, Assignment, Desired, Ended, Extra, Instance, Leader, Pending, Serving, SlugSource, State, Status,
    },
    snapshot::Versioned,
    stats::Counted,
    store::{LeaseId, MAX_TXN_OPS, Op, Revision, StoreError},
    visor::{Change, Committed, Result, Visor, VisorError},
};

/// The number of ended instances of a service that are kept.
pub const HISTORY_PER_PROC: usize = 20;

/// The term of an elected converger: the right to place, which guards each of its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The revision that created the election key.
    pub create_revision: Revision,
    /// The revision of the election key's last write. A transaction that was sent before that write and arrives later
    /// fails by it.
    pub mod_revision: Revision,
    /// The lease that the election key is bound to.
    pub lease: LeaseId,
}

/// An instance to be placed; the transaction that places it also takes its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The host.
    pub host: HostName,
    /// The revision that created the host's registration; the placement fails if the host was given up.
    pub host_created_at: Revision,
    /// The revision of the app's own row; the placement fails if the app is being destroyed meanwhile.
    pub app_at: Revision,
    /// The assignment to write; its `desired` is [`Desired::Run`].
    pub assignment: Assignment,
    /// The reason, for people.
    pub reason: String,
}

/// So many changes are refused one after the other before the store counts as full.
const MOST_REFUSED: usize = 8;

/// The outcome of a write of the converger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The change was carried out, at this revision.
    Done(Revision),
    /// A condition did not hold; nothing was written.
    Conflict,
    /// The reply was lost: the write may have been carried out, or may yet be. [`Visor::settle`] ends the uncertainty.
    Unknown,
}

/// The outcome of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The instance has this id, since this revision.
    At(InstanceId, Revision),
    /// The host was given up, its app is being destroyed or the term is over; nothing was written.
    Refused,
    /// As [`Outcome::Unknown`].
    Unknown,
}

/// The number of placing transactions that are under way at once: one that etcd carries out, one on its way to it, and
/// one that is being made.
const UNDER_WAY: usize = 3;

/// The most bytes that the values of one transaction with several changes have together; etcd takes requests of 1.5
/// MiB.
const MOST_BYTES: usize = 1 << 20;

/// The right to use instance ids above the instance counter of a view.
#[derive(Clone, Copy, Debug)]
struct Ids {
    /// The revision of the counter's last write, on which each transaction is guarded.
    counter_at: Revision,
    /// The value that the counter will get, until that is written.
    take: Option<u64>,
}

impl Ids {
    fn guard(self, term: Term) -> Change {
        let guard = under(term)
            .unless(Bug::IdsAreTakenUnguarded, |it| it.unchanged(&Key::InstanceCounter, self.counter_at));
        match self.take {
            Some(last) => guard.put(&Key::InstanceCounter, &last),
            None => guard,
        }
    }
}

impl Visor {
    /// Takes the election if no converger holds it.
    ///
    /// # Errors
    /// The store's.
    pub async fn campaign(&self, leader: &Leader, lease: LeaseId) -> Result<Option<Term>> {
        let change = Change::new().absent(&Key::Leader).put_leased(&Key::Leader, leader, Some(lease));
        match self.commit(change).await {
            Ok(Committed::Done(revision)) => {
                return Ok(Some(Term { create_revision: revision, mod_revision: revision, lease }));
            }
            Ok(Committed::Conflict) | Err(VisorError::Store(StoreError::OutcomeUnknown { .. })) => {}
            Err(error) => return Err(error),
        }
        // The write whose reply was lost may have won the election.
        let held: Option<Versioned<Leader>> = self.get(&Key::Leader).await?;
        Ok(held.and_then(|held| Term::of(&held)).filter(|term| term.lease == lease))
    }

    /// Resigns, if the election is still held.
    ///
    /// # Errors
    /// The store's.
    pub async fn resign(&self, term: Term) -> Result<()> {
        self.commit(elected(term).delete(&Key::Leader)).await.map(drop)
    }

    /// Rewrites the leader's own row. The term continues with the revision of that write.
    ///
    /// # Errors
    /// The store's, except [`StoreError::OutcomeUnknown`].
    pub async fn update_leader(&self, term: Term, leader: &Leader) -> Result<Outcome> {
        self.outcome(under(term).put_leased(&Key::Leader, leader, Some(term.lease))).await
    }

    /// Settles all writes whose reply was lost: after this, a write that was not carried out never will be.
    ///
    /// Those that were carried out have a lower revision than this write. Each write of the converger compares the last
    /// write of the election key, and this call rewrites that key. Otherwise a write still on its way, right when it
    /// was planned, might stop the last instance that serves when it arrives. The term continues with the revision of
    /// this write. The counter is rewritten too, so that an earlier `settle` that arrives late fails by it.
    ///
    /// # Errors
    /// The store's, except [`StoreError::OutcomeUnknown`].
    pub async fn settle(&self, term: Term, leader: &Leader) -> Result<Outcome> {
        let counter: Option<Versioned<u64>> = self.get(&Key::InstanceCounter).await?;
        let last = counter.as_ref().map_or(0, |counter| counter.value);
        let change = elected(term)
            .as_read(&Key::InstanceCounter, counter.as_ref())
            .put(&Key::InstanceCounter, &last)
            .put_leased(&Key::Leader, leader, Some(term.lease));
        self.outcome(change).await
    }

    /// Commits changes within a term, as many in a transaction as fit; none depends on another.
    ///
    /// A batch in which a condition fails, or that the store refuses, is committed change by change. A change that the
    /// store refuses (its row is too large) counts as a conflict and keeps no other from being written; a store that
    /// refuses the first few is full. Returns the outcome of each change, in order.
    ///
    /// # Errors
    /// The store's, except [`StoreError::OutcomeUnknown`]. Changes before the failing one may have been carried out.
    pub async fn commit_all(&self, term: Term, changes: Vec<Change>) -> Result<Vec<Outcome>> {
        let mut ended = Vec::with_capacity(changes.len());
        let mut refused = 0;
        for batch in batches(under(term), changes, |change| change) {
            let together = batch.iter().cloned().fold(under(term), Change::and);
            match self.outcome(together).await {
                Ok(Outcome::Conflict) => {}
                Err(error) if is_refused(&error) => {}
                outcome => {
                    let outcome = outcome?;
                    ended.extend(batch.iter().map(|_| outcome));
                    continue;
                }
            }
            for change in batch {
                match self.outcome(under(term).and(change)).await {
                    Err(error) if is_refused(&error) => {
                        refused += 1;
                        let is_any_done = ended.iter().any(|outcome| matches!(outcome, Outcome::Done(_)));
                        if refused >= MOST_REFUSED && !is_any_done {
                            return Err(error);
                        }
                        tracing::error!(error = %error, "a change can't be written; the others are");
                        ended.push(Outcome::Conflict);
                    }
                    outcome => ended.push(outcome?),
                }
            }
        }
        Ok(ended)
    }

    /// Places instances and takes an id for each, many in a transaction and a few transactions under way at once.
    ///
    /// `counter` is the instance counter in the view on which the placements were planned. Only the converger writes
    /// it, so a counter that differs means a write that the view does not have yet; then nothing is placed. The first
    /// transaction takes the ids for all. The others are guarded by the counter as the first one left it, so that any
    /// later write of the counter makes all of them fail. Returns the outcome of each placement, in order.
    ///
    /// # Errors
    /// As [`Visor::commit_all`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves what has been carried out, and a few transactions of unknown outcome.
    pub async fn place(
        &self,
        term: Term,
        placements: Vec<Placement>,
        counter: Option<&Versioned<u64>>,
        now: Timestamp,
    ) -> Result<Vec<Placed>> {
        let all = placements.len();
        let (before, counter_at) = counter.map_or((0, 0), |counter| (counter.value, counter.mod_revision));
        // The id of a refused placement stays unused.
        let last = before + all as u64;
        let mut ids = Ids { counter_at, take: Some(last) };
        let placings = (before + 1..).map(InstanceId).zip(placements);
        let placings = placings.map(|(id, placement)| (id, placing(id, &placement, now)));
        let mut batches = batches(ids.guard(term), placings, |(_, change)| change);
        let mut ended = Vec::with_capacity(all);
        while ids.take.is_some()
            && let Some(batch) = batches.next()
        {
            ended.extend(self.place_batch(term, &mut ids, &batch).await?);
            if ended.contains(&Placed::Unknown) {
                break;
            }
        }
        if ids.take.is_some() {
            ended.resize(all, Placed::Unknown);
            return Ok(ended);
        }
        let rest = batches.map(|batch| async move {
            let mut ids = ids;
            self.place_batch(term, &mut ids, &batch).await
        });
        let rest: Vec<Vec<Placed>> = stream::iter(rest).buffered(UNDER_WAY).try_collect().await?;
        ended.extend(rest.into_iter().flatten());
        Ok(ended)
    }

    /// Places a batch, one by one if one of its conditions fails.
    async fn place_batch(
        &self,
        term: Term,
        ids: &mut Ids,
        batch: &[(InstanceId, Change)],
    ) -> Result<Vec<Placed>> {
        if let Some(placed) = self.place_together(term, ids, batch).await? {
            return Ok(placed);
        }
        let counter: Option<Versioned<u64>> = self.get(&Key::InstanceCounter).await?;
        if counter.map_or(0, |counter| counter.mod_revision) != ids.counter_at {
            return Ok(vec![Placed::Unknown; batch.len()]);
        }
        let mut ended = Vec::with_capacity(batch.len());
        for one in batch.chunks(1) {
            let placed = self.place_together(term, ids, one).await?;
            ended.extend(placed.unwrap_or_else(|| vec![Placed::Refused]));
        }
        Ok(ended)
    }

    /// Places a batch in one transaction, which also takes the ids if they are not taken yet; none if a condition
    /// fails.
    async fn place_together(
        &self,
        term: Term,
        ids: &mut Ids,
        batch: &[(InstanceId, Change)],
    ) -> Result<Option<Vec<Placed>>> {
        let changes = batch.iter().map(|(_, change)| change.clone());
        match self.outcome(changes.fold(ids.guard(term), Change::and)).await? {
            Outcome::Done(revision) => {
                if ids.take.take().is_some() {
                    ids.counter_at = revision;
                }
                Ok(Some(batch.iter().map(|(id, _)| Placed::At(*id, revision)).collect()))
            }
            Outcome::Unknown => Ok(Some(vec![Placed::Unknown; batch.len()])),
            Outcome::Conflict => Ok(None),
        }
    }

    async fn outcome(&self, change: Change) -> Result<Outcome> {
        match self.commit(change).await {
            Ok(Committed::Done(revision)) => Ok(Outcome::Done(revision)),
            Ok(Committed::Conflict) => Ok(Outcome::Conflict),
            Err(VisorError::Store(StoreError::OutcomeUnknown { .. })) => Ok(Outcome::Unknown),
            Err(error) => Err(error),
        }
    }
}

impl Term {
    /// Returns the term of the elected converger.
    pub fn of(leader: &Versioned<Leader>) -> Option<Term> {
        let Versioned { create_revision, mod_revision, lease, .. } = leader;
        lease.map(|lease| Term { create_revision: *create_revision, mod_revision: *mod_revision, lease })
    }
}

/// Reports whether the store refused the change itself, not its author.
fn is_refused(error: &VisorError) -> bool {
    matches!(error, VisorError::Store(error @ StoreError::Refused { .. }) if !error.is_denied())
}

/// Requires that the converger is elected, and that the last write of the election key is the one of this term.
fn under(term: Term) -> Change {
    if planted(Bug::DeposedConvergerWrites) {
        return Change::new();
    }
    if planted(Bug::LateWriteIsCarriedOut) {
        return elected(term);
    }
    Change::new().unchanged(&Key::Leader, term.mod_revision)
}

/// Requires that the converger is elected.
fn elected(term: Term) -> Change {
    Change::new().created_at(&Key::Leader, term.create_revision)
}

/// Splits changes, lazily, into batches that each fit a transaction together with `base`.
fn batches<T>(
    base: Change,
    items: impl IntoIterator<Item = T>,
    change: impl Fn(&T) -> &Change,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let (mut when, mut writes) = (base.when.clone(), base.then.len());
        let mut bytes = 0;
        while let Some(item) = items.peek() {
            let own = change(item);
            let fresh: Vec<_> = own.when.iter().filter(|compare| !when.contains(compare)).cloned().collect();
            // Conditions count against etcd's limit too; one is kept for the schema.
            let own_bytes: usize = own.then.iter().map(Op::value_len).sum();
            let fits = writes + own.then.len() <= MAX_TXN_OPS
                && when.len() + fresh.len() < MAX_TXN_OPS
                && bytes + own_bytes <= MOST_BYTES;
            if !fits && !batch.is_empty() {
                break;
            }
            bytes += own_bytes;
            when.extend(fresh);
            writes += own.then.len();
            batch.extend(items.next());
        }
        (!batch.is_empty()).then_some(batch)
    })
}

fn placing(id: InstanceId, placement: &Placement, now: Timestamp) -> Change {
    let Placement { host, host_created_at, app_at, assignment, reason } = placement;
    let instance = Instance {
        host: host.clone(),
        proc: assignment.proc.clone(),
        release: assignment.release,
        rev: assignment.rev.clone(),
        index: assignment.index,
        placed_at: now,
        reason: reason.clone(),
        extra: Extra::new(),
    };
    // The counter implies that no rows of this id exist.
    let change = Change::new()
        .unless(Bug::GoneHostIsPlacedOn, |it| it.created_at(&Key::Host(host.clone()), *host_created_at))
        .unchanged(&Key::App(assignment.app.clone()), *app_at)
        // The release may have been pruned since the view was read.
        .exists(&Key::Release(assignment.app.clone(), assignment.release))
        .put(&Key::Assigned(host.clone(), id), assignment)
        .put(&Key::Instance(assignment.app.clone(), id), &instance);
    serving(change, host, id, assignment)
}

/// Tells each source of an assignment that it serves the slug to the instance's host.
fn serving(change: Change, host: &HostName, id: InstanceId, assignment: &Assignment) -> Change {
    let row = Serving { slug: assignment.slug.sha256.clone(), to: host.clone(), extra: Extra::new() };
    assignment.sources.iter().fold(change, |change, source| {
        change.put(&Key::Serving(source.host.clone(), assignment.app.clone(), id), &row)
    })
}

/// Returns the change that names other sources of the slug of an instance, and tells them.
pub fn sourcing(
    host: &HostName,
    id: InstanceId,
    assigned: &Versioned<Assignment>,
    sources: &[SlugSource],
) -> Change {
    let key = Key::Assigned(host.clone(), id);
    let after = Assignment { sources: sources.to_vec(), ..assigned.value.clone() };
    let change = Change::new().as_read(&key, Some(assigned)).put(&key, &after);
    serving(change, host, id, &after)
}

/// Returns the change after which a host no longer serves the slug of an instance to another host.
pub fn ending_service(host: &HostName, app: &AppName, id: InstanceId, row: &Versioned<Serving>) -> Change {
    let key = Key::Serving(host.clone(), app.clone(), id);
    Change::new().as_read(&key, Some(row)).delete(&key)
}

/// Returns the change that moves an assignment down: from run to drain, or from drain to stop.
///
/// A caller that stops a running instance without a drain must guard on its status too, because it may have begun to
/// serve meanwhile.
pub fn advance(
    host: &HostName,
    id: InstanceId,
    assigned: &Versioned<Assignment>,
    desired: Desired,
    reason: &str,
) -> Change {
    let key = Key::Assigned(host.clone(), id);
    let reason = assigned.reason.clone().or_else(|| Some(reason.to_owned()));
    let after = Assignment { desired, reason, ..assigned.value.clone() };
    Change::new()
        .unless(Bug::AssignmentIsMovedUnguarded, |it| it.as_read(&key, Some(assigned)))
        .put(&key, &after)
}

/// Returns the change that marks an instance `lost`, guarded on its host's registration being still gone.
pub fn losing(
    host: &HostName,
    id: InstanceId,
    status: Option<&Versioned<Status>>,
    cause: &str,
    now: Timestamp,
) -> Change {
    let key = Key::Status(host.clone(), id);
    let mut lost = status.map_or_else(|| Status::new(State::Lost, now), |status| status.value.clone());
    lost.state = State::Lost;
    lost.since = now;
    lost.cause = Some(cause.to_owned());
    Change::new()
        .unless(Bug::ReturnedHostLosesInstances, |it| {
            it.absent(&Key::Host(host.clone())).as_read(&key, status)
        })
        .put(&key, &lost)
}

/// Returns the change that archives an ended instance: its rows are deleted, and its story joins the service's last
/// few.
///
/// `oldest` are the ended instances of the service whose stories are deleted to make room.
pub fn archiving(
    app: &AppName,
    id: InstanceId,
    instance: &Versioned<Instance>,
    assigned: Option<&Versioned<Assignment>>,
    status: Option<&Versioned<Status>>,
    oldest: &[InstanceId],
    now: Timestamp,
) -> Change {
    let host = &instance.host;
    let (assigned_key, status_key, own_key) =
        (Key::Assigned(host.clone(), id), Key::Status(host.clone(), id), Key::Instance(app.clone(), id));
    let ended = Ended {
        instance: instance.value.clone(),
        status: status.map(|status| status.value.clone()),
        reason: assigned.and_then(|assigned| assigned.reason.clone()),
        at: now,
        extra: Extra::new(),
    };
    let sources = assigned.into_iter().flat_map(|assigned| &assigned.sources);
    let change = sources.fold(Change::new(), |change, source| {
        change.delete(&Key::Serving(source.host.clone(), app.clone(), id))
    });
    change
        .as_read(&assigned_key, assigned)
        .as_read(&status_key, status)
        .as_read(&own_key, Some(instance))
        .delete(&assigned_key)
        .delete(&status_key)
        .delete(&own_key)
        .put(&Key::Ended(app.clone(), instance.proc.clone(), id), &ended)
        .and(forgetting(app, &instance.proc, oldest))
}

/// Returns the change that deletes the stories of ended instances.
pub fn forgetting(app: &AppName, proc: &ProcName, ids: &[InstanceId]) -> Change {
    ids.iter().fold(Change::new(), |change, id| change.delete(&Key::Ended(app.clone(), proc.clone(), *id)))
}

/// Returns the change that writes the figures of a day, or deletes them.
pub fn counting(counted: &Counted) -> Change {
    let key = Key::Day(counted.day);
    let change = Change::new().as_read(&key, counted.before.as_ref());
    match &counted.after {
        Some(after) => change.put(&key, after),
        None => change.delete(&key),
    }
}

/// Returns the change that reports instances of a service without a place and why, or deletes that report.
///
/// It is guarded on the app's row as it was read: nothing may be left of an app that has been deleted.
pub fn pending(
    app: &AppName,
    row: Option<&Versioned<App>>,
    proc: &ProcName,
    before: Option<&Versioned<Pending>>,
    after: Option<&Pending>,
) -> Change {
    let key = Key::Pending(app.clone(), proc.clone());
    let change = Change::new().as_read(&Key::App(app.clone()), row).as_read(&key, before);
    match after {
        Some(pending) => change.put(&key, pending),
        None => change.delete(&key),
    }
}
