//! The model's side: finds an order that explains the real store's answers, and compares.
//!
//! A write's place is its revision; a read goes between that revision's write and the next. An operation without a
//! revision (a grant, a refusal) goes as early as its client's order allows. If no order fits, or an answer, an event
//! or a watch differs, the model is wrong.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::FutureExt;
use tokio::runtime::Runtime;
use visor::store::{
    Event, Keys, LeaseId, Op, Result as Answered, Revision, Store, StoreError, Watch, WatchMessage,
    model::{Fate, ModelStore},
};

use crate::{
    author::EXPIRING,
    calls::{Answer, Call, Done, Leases, Phase, Seen, carry_out, mark},
};

/// The description of a difference between model and etcd.
pub type Mismatch = String;

/// The time that the model's clock must run for the short lease to end; all others last far longer.
const SHORT: std::time::Duration = std::time::Duration::from_secs(2);

/// The number of comparisons of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub operations: usize,
    pub writes: usize,
    pub grants: usize,
    pub renewals: usize,
    pub revocations: usize,
    pub expiries: usize,
    pub compactions: usize,
    pub watches: usize,
    pub cancelled_watches: usize,
    pub events: usize,
    pub lost_replies: usize,
    pub lost_requests: usize,
    pub refusals: usize,
}

/// A model that follows the recorded phases.
pub struct Replay {
    /// The runtime whose clock stands still unless it is told to run.
    runtime: Runtime,
    model: ModelStore,
    leases: Leases,
    audit: Box<dyn Watch>,
    /// The writes of unknown outcome that have not been carried out yet, and still may be.
    ///
    /// A cut connection does not tell when the server carries them out, which can be after its client's next operation.
    in_flight: Vec<Done>,
    pub tally: Tally,
}

/// A watch on the model, with what it saw, beside a real one.
struct Following {
    client: ModelStore,
    watch: Box<dyn Watch>,
    seen: Seen,
    since: usize,
}

/// The moment at which an operation can be carried out.
#[derive(Debug)]
enum When {
    Now,
    /// As the write that makes this revision.
    Making(Revision),
    /// While this is the newest revision.
    At(Revision),
    Later,
}

impl Replay {
    pub fn new(model: ModelStore) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let audit = runtime.block_on(model.watch(Keys::Prefix(String::new()), 2));
        let audit = audit.expect("the model is there");
        Self {
            runtime,
            model,
            leases: Leases::default(),
            audit,
            in_flight: Vec::new(),
            tally: Tally::default(),
        }
    }

    pub fn phase(&mut self, phase: &Phase) -> Result<(), Mismatch> {
        let marks: BTreeMap<&Bytes, Revision> = phase
            .history
            .iter()
            .flat_map(|(revision, events)| events.iter().map(move |event| (*revision, event)))
            .filter_map(|(revision, event)| match event {
                Event::Put(entry) => Some((&entry.value, revision)),
                Event::Delete { .. } => None,
            })
            .collect();
        let mut following: BTreeMap<usize, Following> = BTreeMap::new();
        let mut places = vec![0; phase.programs.len()];
        loop {
            let mut moved = false;
            // First everything that belongs before the next write.
            for (program, place) in phase.programs.iter().zip(&mut places) {
                while let Some(done) = program.get(*place) {
                    let now = self.revision();
                    match self.when(done, phase, &marks)? {
                        When::Now => self.carry_out(done, false, phase, &mut following)?,
                        When::At(revision) if revision == now => {
                            self.carry_out(done, false, phase, &mut following)?;
                        }
                        When::Making(_) if is_unknown(done) => {}
                        When::At(_) | When::Making(_) | When::Later => break,
                    }
                    if is_unknown(done) {
                        self.in_flight.push(done.clone());
                    }
                    *place += 1;
                    moved = true;
                }
            }
            if moved {
                continue;
            }
            // Then that write.
            let next = self.revision() + 1;
            let late = self.in_flight.iter().position(|done| made(done, &marks) == Some(next));
            let mut writer = None;
            for (at, program) in phase.programs.iter().enumerate() {
                if let Some(done) = program.get(places[at])
                    && matches!(self.when(done, phase, &marks)?, When::Making(revision) if revision == next)
                {
                    writer = Some((at, done));
                    break;
                }
            }
            if let Some(late) = late {
                let done = self.in_flight.swap_remove(late);
                self.carry_out(&done, true, phase, &mut following)?;
            } else if let Some((at, done)) = writer {
                self.carry_out(done, true, phase, &mut following)?;
                places[at] += 1;
            } else if self.is_expiry(phase, next) {
                self.runtime.block_on(async { tokio::time::advance(SHORT).await });
                self.tally.expiries += 1;
            } else if places.iter().zip(&phase.programs).all(|(place, program)| *place == program.len()) {
                break;
            } else {
                let waiting: Vec<String> = phase
                    .programs
                    .iter()
                    .zip(&places)
                    .filter_map(|(program, place)| program.get(*place))
                    .map(|done| format!("{done:?}, to be done {:?}", self.when(done, phase, &marks)))
                    .collect();
                let events = phase.history.get(&next);
                return Err(format!(
                    "no operation explains revision {next} ({events:?}); waiting:\n{}",
                    waiting.join("\n")
                ));
            }
            self.audit(phase)?;
            // Some watches fall behind by a few revisions, as real ones do.
            if let Some(follower) = following.get_mut(&(next as usize % phase.watches.len().max(1))) {
                follower.follow(&self.runtime);
            }
        }
        if self.revision() != phase.end {
            return Err(format!("the model ends at {}, etcd at {}", self.revision(), phase.end));
        }
        self.compare_watches(phase, following)
    }

    /// Returns the model's revision, by its own clock.
    fn revision(&self) -> Revision {
        self.runtime.block_on(async { self.model.revision() })
    }

    /// Returns the place of an operation, judged by its answer.
    fn when(&self, done: &Done, phase: &Phase, marks: &BTreeMap<&Bytes, Revision>) -> Result<When, Mismatch> {
        Ok(match (&done.call, &done.result) {
            (_, Ok(Answer::Page(page))) => When::At(page.revision),
            (Call::Txn(txn), Ok(Answer::Txn(reply))) => {
                let branch = if reply.succeeded { &txn.then } else { &txn.otherwise };
                if self.writes(branch, reply.revision, phase) {
                    When::Making(reply.revision)
                } else {
                    When::At(reply.revision)
                }
            }
            (_, Err(StoreError::OutcomeUnknown { .. })) => match made(done, marks) {
                Some(revision) => When::Making(revision),
                None => When::Now,
            },
            // The lease got another key before it ended.
            (Call::Revoke(lease), Ok(_))
                if self.in_flight.iter().any(|done| made(done, marks).is_some() && binds(done, *lease)) =>
            {
                When::Later
            }
            (Call::Revoke(lease), Ok(_)) => {
                let next = self.revision() + 1;
                let bound = self.bound_to(self.leases.of(*lease));
                if bound.is_empty() {
                    When::Now
                } else if deleted_alone(phase, next).is_some_and(|keys| bound.iter().eq(&keys)) {
                    When::Making(next)
                } else {
                    When::Later
                }
            }
            // The lease ran out, so this cannot come earlier than its end.
            (Call::KeepAlive(lease) | Call::Revoke(lease), Err(StoreError::LeaseNotFound(_)))
                if !self.bound_to(self.leases.of(*lease)).is_empty() =>
            {
                When::Later
            }
            (Call::Compact(revision), Ok(_)) if *revision > self.revision() => When::Later,
            _ => When::Now,
        })
    }

    /// Reports whether a branch wrote, when the store answered with this revision.
    fn writes(&self, branch: &[Op], revision: Revision, phase: &Phase) -> bool {
        if branch.iter().any(|op| matches!(op, Op::Put { .. })) {
            return true;
        }
        if self.revision() + 1 != revision {
            return false;
        }
        // The order counts: of two steps that delete the same key, the second finds nothing left.
        let mut gone: Vec<String> = Vec::new();
        for op in branch {
            if let Op::Delete(keys) = op {
                for key in self.present(keys) {
                    if !gone.contains(&key) {
                        gone.push(key);
                    }
                }
            }
        }
        !gone.is_empty() && deleted_alone(phase, revision).is_some_and(|keys| keys == gone)
    }

    fn present(&self, keys: &Keys) -> Vec<String> {
        let page = self.runtime.block_on(self.model.range(keys.clone(), None));
        page.expect("the model is there").entries.into_iter().map(|entry| entry.key).collect()
    }

    /// Returns the keys that are bound to a lease of the model.
    fn bound_to(&self, lease: LeaseId) -> BTreeSet<String> {
        let page = self.runtime.block_on(self.model.range(Keys::Prefix(String::new()), None));
        let entries = page.expect("the model is there").entries.into_iter();
        entries.filter(|entry| entry.lease == Some(lease)).map(|entry| entry.key).collect()
    }

    fn is_expiry(&self, phase: &Phase, revision: Revision) -> bool {
        deleted_alone(phase, revision).is_some_and(|keys| keys.iter().all(|key| key.starts_with(EXPIRING)))
    }

    /// Carries an operation out on the model and compares the answers.
    fn carry_out(
        &mut self,
        done: &Done,
        writes: bool,
        phase: &Phase,
        following: &mut BTreeMap<usize, Following>,
    ) -> Result<(), Mismatch> {
        if let Call::Watch(number) = done.call {
            let seen = &phase.watches[number];
            let follower = Following::new(self.model.client(), seen, &self.runtime);
            following.insert(number, follower);
            self.tally.operations += 1;
            return Ok(());
        }
        if done.disturbed && matches!(done.result, Err(StoreError::Unreachable { .. })) {
            // The connection was cut before it was even sent.
            return Ok(());
        }
        let unknown = is_unknown(done);
        if unknown && !done.disturbed {
            return Err(format!("nobody disturbed {:?}, and its outcome is unknown", done.call));
        }
        if unknown {
            let fate = if writes { Fate::LoseReply } else { Fate::LoseRequest };
            self.model.faults().next_writes([fate]);
        }
        let call = self.leases.in_call(&done.call);
        let mut result = self.runtime.block_on(carry_out(&self.model, &call));
        if let (Ok(Answer::Lease(real)), Ok(Answer::Lease(model))) = (&done.result, &mut result) {
            self.leases.note(*real, *model);
            *model = *real;
        }
        if let Err(StoreError::OutcomeUnknown { detail }) = &mut result {
            detail.clear();
        }
        let expected = self.leases.in_result(&done.result);
        if result != expected {
            return Err(format!("{call:?}\n  etcd:  {expected:?}\n  model: {result:?}"));
        }
        self.count(done, writes);
        Ok(())
    }

    fn count(&mut self, done: &Done, writes: bool) {
        let tally = &mut self.tally;
        tally.operations += 1;
        tally.writes += usize::from(writes);
        match (&done.call, &done.result) {
            (_, Err(StoreError::OutcomeUnknown { .. })) if writes => tally.lost_replies += 1,
            (_, Err(StoreError::OutcomeUnknown { .. })) => tally.lost_requests += 1,
            (_, Err(_)) => tally.refusals += 1,
            (Call::Grant(_), _) => tally.grants += 1,
            (Call::KeepAlive(_), _) => tally.renewals += 1,
            (Call::Revoke(_), _) => tally.revocations += 1,
            (Call::Compact(_), _) => tally.compactions += 1,
            _ => {}
        }
    }

    /// Compares the changes of the model's newest revision with etcd's.
    fn audit(&mut self, phase: &Phase) -> Result<(), Mismatch> {
        while let Some(message) = now(&self.runtime, &mut *self.audit) {
            let message = message.ok_or("the model's watch ended")?.map_err(|error| error.to_string())?;
            let real = phase.history.get(&message.revision).map(Vec::as_slice).unwrap_or_default();
            let real = self.leases.in_events(real);
            if message.events != real {
                return Err(format!(
                    "revision {}\n  etcd:  {real:?}\n  model: {:?}",
                    message.revision, message.events
                ));
            }
        }
        Ok(())
    }

    fn compare_watches(
        &mut self,
        phase: &Phase,
        following: BTreeMap<usize, Following>,
    ) -> Result<(), Mismatch> {
        for (number, mut follower) in following {
            follower.follow(&self.runtime);
            let seen = &phase.watches[number];
            let real = self.leases.in_events(&seen.events);
            self.tally.watches += 1;
            self.tally.cancelled_watches += usize::from(seen.end.is_some() || seen.broken_every.is_some());
            self.tally.events += real.len();
            if follower.seen.events != real || follower.seen.end != seen.end {
                let same =
                    follower.seen.events.iter().zip(&real).take_while(|(model, real)| model == real).count();
                return Err(format!(
                    "watch of {:?} from {}, broken off every {:?} events: {same} events are the same, then\n  \
                     etcd:  {:?} (of {}), {:?}\n  model: {:?} (of {}), {:?}",
                    seen.keys,
                    seen.from,
                    seen.broken_every,
                    real.get(same),
                    real.len(),
                    seen.end,
                    follower.seen.events.get(same),
                    follower.seen.events.len(),
                    follower.seen.end
                ));
            }
        }
        Ok(())
    }
}

impl Following {
    fn new(client: ModelStore, seen: &Seen, runtime: &Runtime) -> Self {
        let seen = Seen { events: Vec::new(), end: None, ..seen.clone() };
        let watch = open(&client, &seen, runtime);
        Self { client, watch, seen, since: 0 }
    }

    /// Takes what the watch has ready, and breaks it off where the real one was broken off.
    fn follow(&mut self, runtime: &Runtime) {
        while let Some(Some(message)) = now(runtime, &mut *self.watch) {
            match message {
                Ok(message) => {
                    self.since += message.events.len();
                    self.seen.events.extend(message.events);
                    if self.seen.broken_every.is_some_and(|every| self.since >= every) {
                        self.since = 0;
                        let broken = StoreError::WatchEnded { detail: "it was cancelled".to_owned() };
                        self.client.faults().end_watches(broken);
                    }
                }
                Err(StoreError::WatchEnded { .. }) => self.watch = open(&self.client, &self.seen, runtime),
                Err(error) => self.seen.end = Some(error),
            }
        }
    }
}

fn is_unknown(done: &Done) -> bool {
    matches!(done.result, Err(StoreError::OutcomeUnknown { .. }))
}

/// Returns the revision that an operation made, by its mark.
fn made(done: &Done, marks: &BTreeMap<&Bytes, Revision>) -> Option<Revision> {
    mark(&done.call).and_then(|mark| marks.get(mark)).copied()
}

/// Reports whether an operation puts something under a lease.
fn binds(done: &Done, to: LeaseId) -> bool {
    let Call::Txn(txn) = &done.call else { return false };
    let mut ops = txn.then.iter().chain(&txn.otherwise);
    ops.any(|op| matches!(op, Op::Put { lease: Some(lease), .. } if *lease == to))
}

fn open(client: &ModelStore, seen: &Seen, runtime: &Runtime) -> Box<dyn Watch> {
    let next = seen.events.last().map_or(seen.from, |last| last.revision() + 1);
    runtime.block_on(client.watch(seen.keys.clone(), next)).expect("the model is there")
}

/// Returns what a watch has ready, if anything.
fn now(runtime: &Runtime, watch: &mut dyn Watch) -> Option<Option<Answered<WatchMessage>>> {
    // The model's watches need the runtime's clock.
    runtime.block_on(async { watch.next().now_or_never() })
}

/// Returns the keys that a revision deleted, in order, if it did nothing else.
fn deleted_alone(phase: &Phase, revision: Revision) -> Option<Vec<String>> {
    let events = phase.history.get(&revision)?;
    let keys = events.iter().map(|event| match event {
        Event::Delete { key, .. } => Some(key.clone()),
        Event::Put(_) => None,
    });
    keys.collect()
}
