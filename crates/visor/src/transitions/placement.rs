//! What the converger writes: placements, drains, stops, ends; and the election that lets it.

use jiff::Timestamp;

use crate::{
    keys::Key,
    names::{AppName, HostName, InstanceId, ProcName},
    schema::{App, Assignment, Desired, Ended, Extra, Instance, Leader, Pending, State, Status},
    snapshot::Versioned,
    store::{LeaseId, MAX_TXN_OPS, Revision, StoreError},
    visor::{Change, Committed, Result, Visor, VisorError},
};

/// How many ended instances of a service are kept.
pub const HISTORY_PER_PROC: usize = 20;

/// The right to place: each write of the converger is guarded by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// The revision that created the election key.
    pub create_revision: Revision,
    /// The lease that it hangs on.
    pub lease: LeaseId,
}

/// An instance to be placed; its id is taken in the transaction that places it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The host.
    pub host: HostName,
    /// The revision that created the host's registration: the placement fails if the host was given up.
    pub host_created_at: Revision,
    /// The revision of the app's own row: the placement fails if the app is being destroyed meanwhile.
    pub app_at: Revision,
    /// What it is to run. `desired` is [`Desired::Run`].
    pub assignment: Assignment,
    /// Why, for people.
    pub reason: String,
}

/// How a write of the converger ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, at this revision.
    Done(Revision),
    /// A condition didn't hold: nothing was written.
    Conflict,
    /// The reply was lost: it may have been carried out, or may yet be. [`Visor::settle`] ends that.
    Unknown,
}

/// How a placement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The instance has this id, since this revision.
    At(InstanceId, Revision),
    /// Its host was given up, its app is being destroyed or the reign is over: nothing was written.
    Refused,
    /// As [`Outcome::Unknown`].
    Unknown,
}

/// The instance counter as the last look or write left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counter {
    last: u64,
    mod_revision: Revision,
}

impl From<Option<&Versioned<u64>>> for Counter {
    fn from(row: Option<&Versioned<u64>>) -> Self {
        row.map_or_else(Counter::default, |row| Counter { last: row.value, mod_revision: row.mod_revision })
    }
}

impl Visor {
    /// Takes the election if nobody holds it.
    ///
    /// # Errors
    /// The store's.
    pub async fn campaign(&self, leader: &Leader, lease: LeaseId) -> Result<Option<Reign>> {
        let change = Change::new().absent(&Key::Leader).put_leased(&Key::Leader, leader, Some(lease));
        match self.commit(change).await {
            Ok(Committed::Done(create_revision)) => return Ok(Some(Reign { create_revision, lease })),
            Ok(Committed::Conflict) | Err(VisorError::Store(StoreError::OutcomeUnknown { .. })) => {}
            Err(error) => return Err(error),
        }
        // A lost reply may have been a win.
        let held: Option<Versioned<Leader>> = self.get(&Key::Leader).await?;
        Ok(held
            .filter(|held| held.lease == Some(lease))
            .map(|held| Reign { create_revision: held.create_revision, lease }))
    }

    /// Gives the election up, if it is still held.
    ///
    /// # Errors
    /// The store's.
    pub async fn abdicate(&self, reign: Reign) -> Result<()> {
        self.commit(under(reign).delete(&Key::Leader)).await.map(drop)
    }

    /// Writes the leader's own row anew.
    ///
    /// # Errors
    /// The store's, bar [`StoreError::OutcomeUnknown`].
    pub async fn proclaim(&self, reign: Reign, leader: &Leader) -> Result<Outcome> {
        self.outcome(under(reign).put_leased(&Key::Leader, leader, Some(reign.lease))).await
    }

    /// Ends all doubt about writes whose reply was lost: once this is done, those that weren't carried out
    /// never will be, and those that were have a lower revision.
    ///
    /// A placement that is still on its way fails by the counter, which is written anew here; every other
    /// write of the converger can be repeated.
    ///
    /// # Errors
    /// The store's, bar [`StoreError::OutcomeUnknown`].
    pub async fn settle(&self, reign: Reign, leader: &Leader) -> Result<Outcome> {
        let counter: Option<Versioned<u64>> = self.get(&Key::InstanceCounter).await?;
        let last = counter.as_ref().map_or(0, |counter| counter.value);
        let change = under(reign)
            .as_read(&Key::InstanceCounter, counter.as_ref())
            .put(&Key::InstanceCounter, &last)
            .put_leased(&Key::Leader, leader, Some(reign.lease));
        self.outcome(change).await
    }

    /// Carries out changes under a reign, as many in a transaction as fit; none depends on another.
    ///
    /// A batch of which one condition fails is carried out one by one. Returns for each change, in order,
    /// how it ended.
    ///
    /// # Errors
    /// The store's, bar [`StoreError::OutcomeUnknown`]. Changes before the failing one may have been carried out.
    pub async fn commit_all(&self, reign: Reign, changes: Vec<Change>) -> Result<Vec<Outcome>> {
        let mut ended = Vec::with_capacity(changes.len());
        for batch in batches(&under(reign), changes, |change| change) {
            let together = batch.iter().cloned().fold(under(reign), Change::and);
            match self.outcome(together).await? {
                Outcome::Conflict if batch.len() > 1 => {
                    for change in batch {
                        ended.push(self.outcome(under(reign).and(change)).await?);
                    }
                }
                outcome => ended.extend(batch.iter().map(|_| outcome)),
            }
        }
        Ok(ended)
    }

    /// Places instances, many in a transaction, taking an id for each.
    ///
    /// `counter` is the instance counter in the view that the placements were planned on. Nobody but the
    /// converger writes it, so a counter that differs means a write of which the view doesn't know yet: nothing
    /// is placed then. Returns for each placement, in order, how it ended.
    ///
    /// # Errors
    /// As [`Visor::commit_all`].
    pub async fn place(
        &self,
        reign: Reign,
        placements: Vec<Placement>,
        counter: Option<&Versioned<u64>>,
        now: Timestamp,
    ) -> Result<Vec<Placed>> {
        let mut counter = Counter::from(counter);
        // An id that is refused stays unused.
        let ids = (counter.last + 1..).map(InstanceId);
        let placings: Vec<(InstanceId, Change)> =
            ids.zip(&placements).map(|(id, placement)| (id, placing(id, placement, now))).collect();
        let mut ended = Vec::with_capacity(placings.len());
        let room = placing_base(reign, counter).put(&Key::InstanceCounter, &counter.last);
        let mut batches = batches(&room, placings, |(_, change)| change).into_iter();
        while let Some(batch) = batches.next() {
            if self.place_batch(reign, &batch, &mut counter, &mut ended).await? != Outcome::Conflict {
                continue;
            }
            let read: Option<Versioned<u64>> = self.get(&Key::InstanceCounter).await?;
            if Counter::from(read.as_ref()).mod_revision != counter.mod_revision {
                let doubtful = batch.len() + batches.by_ref().map(|batch| batch.len()).sum::<usize>();
                ended.extend(std::iter::repeat_n(Placed::Unknown, doubtful));
                break;
            }
            for one in batch.chunks(1) {
                if self.place_batch(reign, one, &mut counter, &mut ended).await? == Outcome::Conflict {
                    ended.push(Placed::Refused);
                }
            }
        }
        Ok(ended)
    }

    /// Places a batch; says how each of it ended, unless that is a conflict.
    async fn place_batch(
        &self,
        reign: Reign,
        batch: &[(InstanceId, Change)],
        counter: &mut Counter,
        ended: &mut Vec<Placed>,
    ) -> Result<Outcome> {
        let together = batch.iter().map(|(_, change)| change.clone());
        let last = batch.last().map_or(counter.last, |(id, _)| id.0);
        let change =
            together.fold(placing_base(reign, *counter), Change::and).put(&Key::InstanceCounter, &last);
        let outcome = self.outcome(change).await?;
        match outcome {
            Outcome::Done(revision) => {
                *counter = Counter { last, mod_revision: revision };
                ended.extend(batch.iter().map(|(id, _)| Placed::At(*id, revision)));
            }
            Outcome::Unknown => ended.extend(batch.iter().map(|_| Placed::Unknown)),
            Outcome::Conflict => {}
        }
        Ok(outcome)
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

fn under(reign: Reign) -> Change {
    Change::new().created_at(&Key::Leader, reign.create_revision)
}

fn placing_base(reign: Reign, counter: Counter) -> Change {
    under(reign).unchanged(&Key::InstanceCounter, counter.mod_revision)
}

/// Splits changes into runs of which each fits a transaction together with `base`.
fn batches<T>(base: &Change, items: Vec<T>, change: impl Fn(&T) -> &Change) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let (mut when, mut writes) = (base.when.clone(), base.then.len());
    for item in items {
        let own = change(&item);
        let fresh: Vec<_> = own.when.iter().filter(|compare| !when.contains(compare)).cloned().collect();
        // Conditions count against etcd's limit too; one is kept for the schema.
        let fits = writes + own.then.len() <= MAX_TXN_OPS && when.len() + fresh.len() < MAX_TXN_OPS;
        if fits && !batches.is_empty() {
            when.extend(fresh);
            writes += own.then.len();
        } else {
            when = base.clone().and(own.clone()).when;
            writes = base.then.len() + own.then.len();
            batches.push(Vec::new());
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(item);
        }
    }
    batches
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
    let assigned = Key::Assigned(host.clone(), id);
    Change::new()
        .created_at(&Key::Host(host.clone()), *host_created_at)
        .unchanged(&Key::App(assignment.app.clone()), *app_at)
        .absent(&assigned)
        .put(&assigned, assignment)
        .put(&Key::Instance(assignment.app.clone(), id), &instance)
}

/// Moves an assignment down: run to drain, drain to stop.
///
/// To stop what runs without a drain, guard on its status too: it may have begun to serve meanwhile.
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
    Change::new().as_read(&key, Some(assigned)).put(&key, &after)
}

/// Says that an instance is lost with its host, whose registration must be gone still.
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
    Change::new().absent(&Key::Host(host.clone())).as_read(&key, status).put(&key, &lost)
}

/// Puts an instance away that has ended: its rows go, its story is kept with the service's last few.
///
/// `oldest` are ended instances of the service whose stories make room for it.
pub fn putting_away(
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
    Change::new()
        .as_read(&assigned_key, assigned)
        .as_read(&status_key, status)
        .as_read(&own_key, Some(instance))
        .delete(&assigned_key)
        .delete(&status_key)
        .delete(&own_key)
        .put(&Key::Ended(app.clone(), instance.proc.clone(), id), &ended)
        .and(forgetting(app, &instance.proc, oldest))
}

/// Forgets the stories of ended instances.
pub fn forgetting(app: &AppName, proc: &ProcName, ids: &[InstanceId]) -> Change {
    ids.iter().fold(Change::new(), |change, id| change.delete(&Key::Ended(app.clone(), proc.clone(), *id)))
}

/// Says that instances of a service have no place, and why; or that all have one. Only while the app's row is as
/// it was read: of an app that has been forgotten nothing may stay.
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
