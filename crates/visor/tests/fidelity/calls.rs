//! The operations that run on both stores, and their answers.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use visor::store::{
    Entry, Event, Keys, LeaseId, Op, Page, Result, Revision, Store, StoreError, Txn, TxnReply,
};

/// An operation. Leases have the real store's numbers.
#[derive(Clone, Debug)]
pub enum Call {
    Range {
        keys: Keys,
        at: Option<Revision>,
    },
    Txn(Txn),
    Grant(Duration),
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    NextPage {
        keys: Keys,
        after: String,
        most: usize,
        at: Revision,
    },
    Compact(Revision),
    /// Starts the phase's watch of this number.
    Watch(usize),
}

/// The answer of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Page(Page),
    Txn(TxnReply),
    Lease(LeaseId),
    Left(Duration),
    Done,
}

/// An operation with its result on the real store.
#[derive(Clone, Debug)]
pub struct Done {
    pub call: Call,
    pub result: Result<Answer>,
    /// True if its reply or its request was lost on purpose.
    pub disturbed: bool,
}

/// A watch of a phase: its request, and what the real one saw up to the phase's end.
#[derive(Clone, Debug)]
pub struct Seen {
    pub keys: Keys,
    pub from: Revision,
    /// The number of events after which it is broken off and resumed, each time.
    pub broken_every: Option<usize>,
    pub events: Vec<Event>,
    pub end: Option<StoreError>,
}

/// A series of operations, after which everything that happened is known.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// The operations of each client in order; the clients ran concurrently.
    pub programs: Vec<Vec<Done>>,
    pub watches: Vec<Seen>,
    /// All changes by revision.
    pub history: BTreeMap<Revision, Vec<Event>>,
    pub end: Revision,
}

pub async fn carry_out(store: &dyn Store, call: &Call) -> Result<Answer> {
    match call {
        Call::Range { keys, at } => store.range(keys.clone(), *at).await.map(Answer::Page),
        Call::NextPage { keys, after, most, at } => {
            store.page(keys.clone(), after.clone(), *most, *at).await.map(Answer::Page)
        }
        Call::Txn(txn) => store.txn(txn.clone()).await.map(Answer::Txn),
        Call::Grant(ttl) => store.grant(*ttl).await.map(Answer::Lease),
        Call::KeepAlive(lease) => store.keep_alive(*lease).await.map(Answer::Left),
        Call::Revoke(lease) => store.revoke(*lease).await.map(|()| Answer::Done),
        Call::Compact(revision) => store.compact(*revision).await.map(|()| Answer::Done),
        Call::Watch(_) => Ok(Answer::Done),
    }
}

/// Returns the value that tells an operation's puts from all others.
pub fn mark(call: &Call) -> Option<&Bytes> {
    let Call::Txn(txn) = call else { return None };
    txn.then.iter().find_map(|op| match op {
        Op::Put { value, .. } => Some(value),
        Op::Delete(_) | Op::Get(_) | Op::GetFirst(..) => None,
    })
}

/// The model's lease number for each of the real store's.
#[derive(Default)]
pub struct Leases(BTreeMap<LeaseId, LeaseId>);

impl Leases {
    pub fn note(&mut self, real: LeaseId, model: LeaseId) {
        self.0.insert(real, model);
    }

    /// Returns the model's number; a lease that never existed keeps its number.
    pub fn of(&self, real: LeaseId) -> LeaseId {
        self.0.get(&real).copied().unwrap_or(real)
    }

    pub fn in_call(&self, call: &Call) -> Call {
        let mut call = call.clone();
        match &mut call {
            Call::Txn(txn) => {
                for op in txn.then.iter_mut().chain(&mut txn.otherwise) {
                    if let Op::Put { lease, .. } = op {
                        *lease = lease.map(|lease| self.of(lease));
                    }
                }
            }
            Call::KeepAlive(lease) | Call::Revoke(lease) => *lease = self.of(*lease),
            Call::Range { .. }
            | Call::NextPage { .. }
            | Call::Grant(_)
            | Call::Compact(_)
            | Call::Watch(_) => {}
        }
        call
    }

    pub fn in_events(&self, events: &[Event]) -> Vec<Event> {
        let mut events = events.to_vec();
        for event in &mut events {
            if let Event::Put(entry) = event {
                self.in_entry(entry);
            }
        }
        events
    }

    fn in_entry(&self, entry: &mut Entry) {
        entry.lease = entry.lease.map(|lease| self.of(lease));
    }

    /// Returns a real result with the model's lease numbers.
    pub fn in_result(&self, result: &Result<Answer>) -> Result<Answer> {
        let mut result = result.clone();
        match &mut result {
            Ok(Answer::Page(page)) => page.entries.iter_mut().for_each(|entry| self.in_entry(entry)),
            Ok(Answer::Txn(reply)) => {
                reply.found.iter_mut().flatten().for_each(|entry| self.in_entry(entry));
            }
            Ok(Answer::Lease(_) | Answer::Left(_) | Answer::Done) => {}
            Err(StoreError::LeaseNotFound(lease)) => *lease = self.of(*lease),
            Err(StoreError::OutcomeUnknown { detail }) => detail.clear(),
            Err(_) => {}
        }
        result
    }
}
