//! The coordinator behind one trait: range, transaction, watch, lease.
//!
//! Owns the vocabulary that both implementations speak: [`etcd::EtcdStore`] for a real cluster and, behind the
//! feature `testing`, `model::ModelStore`, a linearizable store in memory for tests and simulation. Keys are relative
//! to the cluster's prefix (`apps/goto-rocket`): an implementation adds and strips it, nobody else
//! knows it. Revisions mean what etcd's documentation says they mean: one counter for the whole
//! store, raised by one for each transaction that writes.
//!
//! It never retries what is not safe to repeat: [`StoreError::OutcomeUnknown`] tells the caller to
//! read back.

pub mod etcd;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod ready;
pub mod users;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use ready::wait_until_ready;

/// A store shared between tasks.
pub type SharedStore = Arc<dyn Store>;

/// A lease's number, given by the store.
pub type LeaseId = i64;

/// A store revision. 0 is before anything was written.
pub type Revision = i64;

/// The most operations that one branch of a transaction may hold (etcd's default `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// One key as it stands at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the cluster's prefix.
    pub key: String,
    /// The stored bytes; JSON for every key of the schema.
    pub value: Bytes,
    /// The revision that created the key (since its last deletion).
    pub create_revision: Revision,
    /// The revision of its last write.
    pub mod_revision: Revision,
    /// The lease that it is bound to, if any.
    pub lease: Option<LeaseId>,
}

/// Which keys: one, or all below a prefix (`""` is the whole cluster).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Exactly this key.
    One(String),
    /// Each key that begins with this.
    Prefix(String),
}

impl Keys {
    /// Whether `key` is one of these.
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Keys::One(one) => one == key,
            Keys::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

/// A complete answer to a range, at one revision, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The store's revision when the range was served.
    pub revision: Revision,
}

/// What a mirror keeps true.
pub trait Image {
    /// Forgets everything.
    fn clear(&mut self);
    /// A key was written.
    fn put(&mut self, entry: &Entry);
    /// A key was deleted.
    fn delete(&mut self, key: &str, revision: Revision);
    /// Everything up to this revision is in.
    fn set_revision(&mut self, revision: Revision);
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's last write was at this revision; 0 says that the key isn't there.
    ModRevision(String, Revision),
    /// The key was created at this revision; 0 says that it isn't there.
    CreateRevision(String, Revision),
    /// The key is there, whatever it holds.
    Exists(String),
}

impl Compare {
    /// The key isn't there.
    pub fn absent(key: impl Into<String>) -> Self {
        Compare::ModRevision(key.into(), 0)
    }
}

/// A step of a transaction. A transaction may write a key once only (etcd refuses a second time).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a key, bound to a lease or to none.
    Put {
        /// The key.
        key: String,
        /// What it will hold.
        value: Bytes,
        /// Deletes the key when it ends.
        lease: Option<LeaseId>,
    },
    /// Delete keys; none there is no error.
    Delete(Keys),
    /// Read keys as they stand at this point of the transaction.
    Get(Keys),
}

impl Op {
    /// How many bytes it writes.
    pub fn value_len(&self) -> usize {
        match self {
            Op::Put { value, .. } => value.len(),
            Op::Delete(_) | Op::Get(_) => 0,
        }
    }
}

/// All of `then` if every condition holds, else all of `otherwise`; either at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; none holds always.
    pub when: Vec<Compare>,
    /// What to do if all hold; [`MAX_TXN_OPS`] at most.
    pub then: Vec<Op>,
    /// What to do if one doesn't; [`MAX_TXN_OPS`] at most.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// Whether neither branch writes: such a transaction is safe to repeat.
    pub fn is_read_only(&self) -> bool {
        let mut ops = self.then.iter().chain(&self.otherwise);
        ops.all(|op| matches!(op, Op::Get(_)))
    }
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    /// Whether the conditions held.
    pub succeeded: bool,
    /// The store's revision after it; the write's own if it wrote.
    pub revision: Revision,
    /// The entries that each `Get` of the branch found, in the branch's order (empty for other steps).
    pub found: Vec<Vec<Entry>>,
}

/// A change that a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key was written.
    Put(Entry),
    /// A key was deleted, by a transaction or by the end of its lease.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Event::Put(entry) => &entry.key,
            Event::Delete { key, .. } => key,
        }
    }

    /// What was written; none: it was deleted.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Event::Put(entry) => Some(entry),
            Event::Delete { .. } => None,
        }
    }

    /// The revision that changed it.
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put(entry) => entry.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// What a watch delivers: whole revisions only, in order. No events: a sign of life alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchMessage {
    /// All changes up to this revision have been delivered, unless `events` is empty: then the
    /// stream lives, and on etcd 3.4 no more than that.
    pub revision: Revision,
    /// In revision order; the last revision in it is complete.
    pub events: Vec<Event>,
}

/// A running watch. Dropping it ends it.
#[async_trait]
pub trait Watch: Send {
    /// The next message. `None` and every error end the watch for good: list again.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if events were lost to compaction, [`StoreError::WatchEnded`] if
    /// the server or the connection ended it.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    async fn next(&mut self) -> Option<Result<WatchMessage, StoreError>>;

    /// Asks for a sign of life, which [`Watch::next`] delivers as a message without events.
    ///
    /// # Errors
    /// [`StoreError::WatchEnded`] if the stream is closed.
    async fn request_progress(&mut self) -> Result<(), StoreError>;
}

/// A failed call on the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No endpoint took the call: it has not been carried out.
    #[error("no coordinator answers at {}: {detail}", endpoints.join(", "))]
    Unreachable {
        /// Each endpoint that was tried.
        endpoints: Vec<String>,
        /// What the last of them said.
        detail: String,
    },
    /// The call may or may not have been carried out: read back before doing it again.
    #[error("the coordinator did not say whether the call was carried out: {detail}")]
    OutcomeUnknown {
        /// What went wrong.
        detail: String,
    },
    /// The revision asked for has been compacted away.
    #[error("revision {asked} is compacted (oldest: {oldest})")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest that is left; 0 if the store did not say.
        oldest: Revision,
    },
    /// A watch ended: cancelled by the server, or its connection broke.
    #[error("the watch ended: {detail}")]
    WatchEnded {
        /// Why, in the server's words where it said so.
        detail: String,
    },
    /// What is there is of a later schema than this build can read.
    #[error(
        "the cluster's schema is version {version}, which takes version {min_reader} to read; this is {ours}"
    )]
    SchemaTooNew {
        /// The schema's version.
        version: u32,
        /// The lowest version that understands it.
        min_reader: u32,
        /// What this build is.
        ours: u32,
    },
    /// The lease has ended or never was.
    #[error("lease {0} has ended")]
    LeaseNotFound(LeaseId),
    /// The store answered, and refused: out of space, not allowed, malformed.
    #[error("the coordinator refused: {detail}")]
    Refused {
        /// In the store's words.
        detail: String,
    },
}

impl StoreError {
    /// Whether the store refused because of who asks (etcd's words, the same from 3.4 to 3.6).
    pub fn is_denied(&self) -> bool {
        const DENIED: [&str; 3] = ["permission denied", "user name not found", "user name is empty"];
        matches!(self, StoreError::Refused { detail } if DENIED.iter().any(|words| detail.contains(words)))
    }
}

/// The result of a call on the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What Bazooka needs of a coordinator.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Every key asked for, at one revision: `at`, or the newest.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `at` is too old, [`StoreError::Unreachable`]. Reads are safe to
    /// repeat, so this never says that the outcome is unknown.
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<Page>;

    /// Carries out a transaction.
    ///
    /// # Errors
    /// [`StoreError::OutcomeUnknown`] if the reply was lost: it may have been carried out.
    /// [`StoreError::LeaseNotFound`] if a put names a lease that has ended: nothing was written.
    async fn txn(&self, txn: Txn) -> Result<TxnReply>;

    /// Watches keys from a revision on, that revision's own changes included.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`]. A `from` that is compacted is reported by the watch itself.
    async fn watch(&self, keys: Keys, from: Revision) -> Result<Box<dyn Watch>>;

    /// Makes a lease. `ttl` is whole seconds; the store may round up.
    ///
    /// # Errors
    /// As [`Store::txn`]; a lease whose grant was lost ends by itself.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId>;

    /// Renews a lease once and returns the time that it has left.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] if it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration>;

    /// Ends a lease and deletes its keys, in one revision.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] if it has ended before.
    async fn revoke(&self, lease: LeaseId) -> Result<()>;

    /// Forgets the history before a revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if that was done before, [`StoreError::Refused`] if it is in the future.
    async fn compact(&self, revision: Revision) -> Result<()>;
}
