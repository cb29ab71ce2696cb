//! The coordinator behind one trait: range, transaction, watch, lease.
//!
//! Owns the vocabulary of both implementations: [`etcd::EtcdStore`] for a real cluster and, behind the feature
//! `testing`, `model::ModelStore`, a linearizable store in memory for tests and simulation. Keys are relative to the
//! cluster's prefix (`apps/goto-rocket`), which only an implementation adds and strips. Revisions have the meaning of
//! etcd's documentation: one counter for the whole store, raised by one for each transaction that writes.
//!
//! It never repeats a call that is not safe to repeat: [`StoreError::OutcomeUnknown`] tells the caller to read back.

pub mod etcd;
pub mod listing;
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

/// The number of a lease, which the store assigns.
pub type LeaseId = i64;

/// A revision of the store. 0 is before anything was written.
pub type Revision = i64;

/// The most operations that one branch of a transaction may hold (etcd's default `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// A key with its value at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, relative to the cluster's prefix.
    pub key: String,
    /// The stored bytes; JSON for every key of the schema.
    pub value: Bytes,
    /// The revision that created the key (since its last deletion).
    pub create_revision: Revision,
    /// The revision of its last write.
    pub mod_revision: Revision,
    /// The lease that the key is bound to, if any.
    pub lease: Option<LeaseId>,
}

/// The beginning of each private key. Private keys lie outside the range of all others, so that etcd can grant the right
/// to read everything else without them.
pub const PRIVATE: &str = "private/";

/// Returns a key as etcd has it. `prefix` is the cluster's, without a slash at its end.
///
/// ```
/// use visor::store::in_cluster;
/// assert_eq!(in_cluster("/bazooka", "apps/shop"), "/bazooka/apps/shop");
/// assert_eq!(in_cluster("/bazooka", "private/wraps/shop/e1"), "/bazooka.private/wraps/shop/e1");
/// ```
pub fn in_cluster(prefix: &str, key: &str) -> String {
    let joint = if key.starts_with(PRIVATE) { '.' } else { '/' };
    format!("{prefix}{joint}{key}")
}

/// A set of keys: one, or all below a prefix (`""` is the whole cluster, except private keys).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Exactly this key.
    One(String),
    /// Each key that begins with this string.
    Prefix(String),
}

impl Keys {
    /// Reports whether `key` is in this set.
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Keys::One(one) => one == key,
            Keys::Prefix(prefix) => {
                key.starts_with(prefix.as_str()) && prefix.starts_with(PRIVATE) == key.starts_with(PRIVATE)
            }
        }
    }
}

/// The answer to a range, at one revision, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries in key order.
    pub entries: Vec<Entry>,
    /// The store's revision when the range was served.
    pub revision: Revision,
}

/// An image that a mirror keeps true.
///
/// A new list is read into an image of its own, beside the one that is shown.
pub trait Image: Send + 'static {
    /// Returns an empty image of the same kind.
    fn fresh(&self) -> Self;
    /// Reports whether the image holds rows of this key. The mirror keeps nothing of any other key, not even its name.
    fn holds(&self, _key: &str) -> bool {
        true
    }
    /// Applies the write of a key.
    fn put(&mut self, entry: &Entry);
    /// Applies the deletion of a key.
    fn delete(&mut self, key: &str, revision: Revision);
    /// Notes that everything up to this revision has been applied.
    fn set_revision(&mut self, revision: Revision);
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's last write was at this revision; 0 means that the key does not exist.
    ModRevision(String, Revision),
    /// The key was created at this revision; 0 means that it does not exist.
    CreateRevision(String, Revision),
    /// The key exists, whatever it holds.
    Exists(String),
    /// No key of the set was written after this revision. A deletion does not count.
    NoneSince(Keys, Revision),
}

impl Compare {
    /// Returns the condition that the key does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Compare::ModRevision(key.into(), 0)
    }
}

/// A step of a transaction. A transaction may write a key only once (etcd refuses a second write).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a key, bound to a lease or to none.
    Put {
        /// The key.
        key: String,
        /// The value to store.
        value: Bytes,
        /// The lease whose end deletes the key.
        lease: Option<LeaseId>,
    },
    /// Delete keys; it is no error if none exists.
    Delete(Keys),
    /// Read keys as they stand at this point of the transaction.
    Get(Keys),
    /// Read the first keys of a set, in key order: at most so many.
    GetFirst(Keys, usize),
}

impl Op {
    /// Returns the number of bytes that the step writes.
    pub fn value_len(&self) -> usize {
        match self {
            Op::Put { value, .. } => value.len(),
            Op::Delete(_) | Op::Get(_) | Op::GetFirst(..) => 0,
        }
    }
}

/// A transaction: all of `then` if every condition holds, else all of `otherwise`; either at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; an empty list always holds.
    pub when: Vec<Compare>,
    /// The steps if all conditions hold; at most [`MAX_TXN_OPS`].
    pub then: Vec<Op>,
    /// The steps if a condition does not hold; at most [`MAX_TXN_OPS`].
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// Reports whether neither branch writes, so that the transaction is safe to repeat.
    pub fn is_read_only(&self) -> bool {
        let mut ops = self.then.iter().chain(&self.otherwise);
        ops.all(|op| matches!(op, Op::Get(_) | Op::GetFirst(..)))
    }
}

/// The result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    /// True if the conditions held.
    pub succeeded: bool,
    /// The store's revision after it; the revision of its own write if it wrote.
    pub revision: Revision,
    /// The entries that each `Get` and `GetFirst` of the branch found, in the branch's order (empty for other steps).
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

    /// Returns the written entry; none if the key was deleted.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Event::Put(entry) => Some(entry),
            Event::Delete { .. } => None,
        }
    }

    /// Returns the revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put(entry) => entry.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// A message of a watch: whole revisions only, in order. Without events it is only a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchMessage {
    /// The revision up to which all changes have been delivered.
    ///
    /// If `events` is empty, the message only says that the stream is alive; on etcd 3.4 this revision means nothing
    /// then.
    pub revision: Revision,
    /// The changes in revision order; the last revision among them is complete.
    pub events: Vec<Event>,
}

/// A running watch. Dropping it ends it.
#[async_trait]
pub trait Watch: Send {
    /// Returns the next message. `None` and every error end the watch for good: list again.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if events were lost to compaction, [`StoreError::WatchEnded`] if the server or the
    /// connection ended it.
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

/// An error of a call on the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No endpoint took the call, so it has not been carried out.
    #[error("no coordinator answers at {}: {detail}", endpoints.join(", "))]
    Unreachable {
        /// The endpoints that were tried.
        endpoints: Vec<String>,
        /// The last endpoint's failure.
        detail: String,
    },
    /// The call may or may not have been carried out: read back before doing it again.
    #[error("the coordinator did not say whether the call was carried out: {detail}")]
    OutcomeUnknown {
        /// The cause.
        detail: String,
    },
    /// The requested revision has been compacted away.
    #[error("revision {asked} is compacted (oldest: {oldest})")]
    Compacted {
        /// The requested revision.
        asked: Revision,
        /// The oldest revision that is left; 0 if the store did not report it.
        oldest: Revision,
    },
    /// A watch ended: cancelled by the server, or its connection broke.
    #[error("the watch ended: {detail}")]
    WatchEnded {
        /// The reason, in the server's words where it gave one.
        detail: String,
    },
    /// The cluster's schema is of a later version than this build can read.
    #[error(
        "the cluster's schema is version {version}; reading it requires version {min_reader}, and this program has {ours}"
    )]
    SchemaTooNew {
        /// The version of the schema.
        version: u32,
        /// The lowest version that may read the state.
        min_reader: u32,
        /// The version of this build.
        ours: u32,
    },
    /// The lease has ended or never existed.
    #[error("lease {0} has ended")]
    LeaseNotFound(LeaseId),
    /// The store answered and refused: out of space, not allowed, malformed.
    #[error("the coordinator refused: {detail}")]
    Refused {
        /// The reason in the store's words.
        detail: String,
    },
}

impl StoreError {
    /// Reports whether the store refused because of the caller's identity (by etcd's words, the same from 3.4 to 3.6).
    pub fn is_denied(&self) -> bool {
        const DENIED: [&str; 3] = ["permission denied", "user name not found", "user name is empty"];
        matches!(self, StoreError::Refused { detail } if DENIED.iter().any(|words| detail.contains(words)))
    }
}

/// The result of a call on the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The coordinator as Bazooka uses it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads every requested key at one revision: `at`, or the newest.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `at` is too old; [`StoreError::Unreachable`]. Reads are safe to repeat, so this
    /// never fails with an unknown outcome.
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<Page>;

    /// Returns how many rows of each scope the first page of a list has.
    fn first_page(&self) -> usize {
        listing::FIRST_PAGE
    }

    /// Reads the next `most` keys of a set after a key, in key order, at a revision: less than `most` are the last ones.
    ///
    /// # Errors
    /// As [`Store::range`].
    async fn page(&self, keys: Keys, after: String, most: usize, at: Revision) -> Result<Page>;

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

    /// Makes a lease. `ttl` is in whole seconds; the store may round up.
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

    /// Deletes the history before a revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if that was done before, [`StoreError::Refused`] if it is in the future.
    async fn compact(&self, revision: Revision) -> Result<()>;
}
