//! A handle on the cluster's state: typed reads, and guarded commits that also check the schema.
//!
//! Owns the rule that a binary older than the schema's `min_writer` changes nothing: every transaction compares the
//! revision of the schema row. It knows no transition; those are in `transitions`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    bounds::MOST_SERVICES,
    identity::Identity,
    keys::{self, Key},
    links::LeadsNowhere,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, UserName, ZoneName},
    planted::{Bug, planted},
    quota::mebibytes,
    schema::{AuditEntry, SCHEMA_VERSION, Schema, Status},
    seal::{Os, Random},
    snapshot::{Snapshot, Versioned, may_read},
    store::{
        Compare, Entry, Image, Keys, LeaseId, MAX_TXN_OPS, Op, Revision, SharedStore, StoreError, Txn,
        listing::Listing,
    },
};

/// A refused change, which the rules do not allow in the present state. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum Refusal {
    #[error("there is no app '{0}'")]
    NoSuchApp(AppName),
    #[error("there is an app '{0}' already, owned by {1}")]
    AppExists(AppName, String),
    #[error("app '{0}' is being destroyed")]
    Destroying(AppName),
    #[error("app '{0}' has no proc '{1}'")]
    NoSuchProc(AppName, ProcName),
    #[error("app '{0}' has no rev {1}")]
    NoSuchRev(AppName, String),
    #[error("app '{0}' has no release {1}")]
    NoSuchRelease(AppName, ReleaseId),
    #[error("{1} of app '{0}' is pruned; the oldest one kept since is {2}")]
    Pruned(AppName, ReleaseId, ReleaseId),
    #[error("app '{0}' has {1} releases, and none more is made before a bazooka-rm has pruned them")]
    TooManyReleases(AppName, usize),
    #[error(
        "app '{app}' takes {used} of the {most} that it may keep in the coordinator, and this would take {more}: \
         make its config vars smaller, or let an operator start bazooka-rm with a larger --app-bytes",
        used = mebibytes(*.used), more = mebibytes(*.more), most = mebibytes(*.most)
    )]
    OverQuota { app: AppName, used: u64, more: u64, most: u64 },
    #[error(
        "app '{app}' would have {wanted} instances, and {most} is the most: scale another of its procs down, or let an \
         operator start bazooka-rm with a larger --app-instances"
    )]
    OverInstances { app: AppName, wanted: u64, most: u32 },
    #[error("app '{0}' has no number left for a release: {1} has the last one; delete that row with etcdctl")]
    NoNumberLeft(AppName, ReleaseId),
    #[error("app '{0}' has no release yet")]
    NotReleased(AppName),
    #[error("nothing of app '{0}' is being rolled out")]
    NoRollout(AppName),
    #[error("app '{0}' has no release to go back to")]
    NothingToRollBack(AppName),
    #[error("{1} of app '{0}' never ran: it failed when it was tried")]
    NeverRan(AppName, ReleaseId),
    #[error("{1} of app '{0}' is being tried")]
    BeingTried(AppName, ReleaseId),
    #[error("{1} of app '{0}' is no longer being tried")]
    TrialOver(AppName, ReleaseId),
    #[error("rev {1} of app '{0}' runs no {2} beside the current release")]
    NotBeside(AppName, String, ProcName),
    #[error("the shares of {0} would add up to {1} %")]
    TooMuchTraffic(ProcName, u32),
    #[error("{1} instances of {0} are bound to zones: {words}", words = zone_words(.2))]
    InZones(ProcName, u32, BTreeMap<ZoneName, u32>),
    #[error("{0} would have {1} instances")]
    TooMany(ProcName, u32),
    #[error("rev {1} of app '{0}' has no proc '{2}'")]
    NotInRev(AppName, String, ProcName),
    #[error("app '{0}' has no instance {1}")]
    NoSuchInstance(AppName, InstanceId),
    #[error("the config vars of app '{0}' were changed meanwhile")]
    EnvMoved(AppName),
    #[error("{link} can't be linked: {why}", link = .0.link, why = .0.why)]
    Unlinkable(LeadsNowhere),
    #[error("the push's turn at app '{0}' has ended: its bazooka-rm was cut off for too long")]
    TurnOver(AppName),
    #[error("the repository of app '{0}' has moved meanwhile")]
    RepoMoved(AppName),
    #[error("no service port is left; those of destroyed apps are free an hour later")]
    NoPortLeft,
    #[error(
        "app '{0}' would have {1} services, and {MOST_SERVICES} is the most; procs of earlier revs count too"
    )]
    TooManyServices(AppName, usize),
    #[error("host '{0}' is registered by another pm")]
    HostTaken(HostName),
    #[error("another {kind} with the name '{name}' is registered, at {url}")]
    NameTaken { kind: &'static str, name: HostName, url: String },
    #[error("host '{0}' has lost its lease")]
    HostGone(HostName),
    #[error("host '{0}' is still registered: its bazooka-pm runs")]
    HostThere(HostName),
    #[error("host '{0}' has instances that aren't replaced yet")]
    HostInUse(HostName),
    #[error("no host is frozen: instances of lost hosts are replaced")]
    NotFrozen,
    #[error("{0} isn't admitted to this cluster")]
    NotAdmitted(Identity),
    #[error("{0} has the maximum number of SSH keys")]
    TooManyKeys(UserName),
    #[error("{0} has no SSH key {1}")]
    NoSuchKey(UserName, String),
    #[error("{1} has no access to app '{0}'")]
    NotTheirs(AppName, UserName),
}

fn zone_words(zones: &BTreeMap<ZoneName, u32>) -> String {
    zones.iter().map(|(zone, n)| format!("{n} in {zone}")).collect::<Vec<_>>().join(", ")
}

/// An error of a read or change of the cluster's state.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VisorError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change is not allowed in the present state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The cluster's schema is of a later version than this binary can write.
    #[error(
        "the cluster's schema is version {version}; a change requires version {min_writer}, and this program has {ours}"
    )]
    SchemaTooNew {
        /// The version of the schema.
        version: u32,
        /// The lowest version that may change the state.
        min_writer: u32,
        /// The version of this binary.
        ours: u32,
    },
    /// The cluster has no schema yet.
    #[error("the coordinator holds no cluster yet")]
    NotSetUp,
    /// A value does not match the schema.
    #[error("{key} can't be read: {detail}")]
    Unreadable {
        /// The key.
        key: String,
        /// The reason why it cannot be read.
        detail: String,
    },
    /// Rivals changed the same keys in every round.
    #[error("the same rows kept changing; nothing was done")]
    Contended,
}

/// The result of a call on the cluster's state.
pub type Result<T, E = VisorError> = std::result::Result<T, E>;

/// A set of writes that happen together or not at all, with their conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The conditions.
    pub when: Vec<Compare>,
    /// The writes.
    pub then: Vec<Op>,
}

impl Change {
    /// Returns a change without conditions or writes.
    pub fn new() -> Self {
        Change::default()
    }

    /// Adds a condition or a write by `add`, unless this fault is planted.
    pub fn unless(self, bug: Bug, add: impl FnOnce(Change) -> Change) -> Self {
        if planted(bug) { self } else { add(self) }
    }

    /// Requires that the key was last written at this revision (0: does not exist).
    pub fn unchanged(mut self, key: &Key, mod_revision: Revision) -> Self {
        self.when.push(Compare::ModRevision(key.to_string(), mod_revision));
        self
    }

    /// Requires that the row is still as it was read.
    pub fn as_read<T>(self, key: &Key, read: Option<&Versioned<T>>) -> Self {
        self.unchanged(key, read.map_or(0, |v| v.mod_revision))
    }

    /// Requires that the key does not exist.
    pub fn absent(self, key: &Key) -> Self {
        self.unchanged(key, 0)
    }

    /// Requires that the key exists.
    pub fn exists(mut self, key: &Key) -> Self {
        self.when.push(Compare::Exists(key.to_string()));
        self
    }

    /// Requires that no key of a set was written after this revision. Deletions do not count.
    pub fn none_since(mut self, keys: Keys, revision: Revision) -> Self {
        self.when.push(Compare::NoneSince(keys, revision));
        self
    }

    /// Requires that the key was created at this revision (0: does not exist).
    pub fn created_at(mut self, key: &Key, create_revision: Revision) -> Self {
        self.when.push(Compare::CreateRevision(key.to_string(), create_revision));
        self
    }

    /// Adds the write of a value.
    pub fn put<T: Serialize>(self, key: &Key, value: &T) -> Self {
        self.put_leased(key, value, None)
    }

    /// Adds the write of a value that is bound to a lease.
    pub fn put_leased<T: Serialize>(mut self, key: &Key, value: &T, lease: Option<LeaseId>) -> Self {
        let value = Bytes::from(serde_json::to_vec(value).expect("the schema's types are always valid JSON"));
        debug_assert!(value.len() <= key.row().most_bytes, "{key} has {} bytes", value.len());
        self.then.push(Op::Put { key: key.to_string(), value, lease });
        self
    }

    /// Adds the deletion of a key.
    pub fn delete(self, key: &Key) -> Self {
        self.delete_all(Keys::One(key.to_string()))
    }

    /// Adds the deletion of keys.
    pub fn delete_all(mut self, keys: Keys) -> Self {
        self.then.push(Op::Delete(keys));
        self
    }

    /// Joins the conditions and writes of both changes.
    pub fn and(mut self, other: Change) -> Self {
        for compare in other.when {
            if !self.when.contains(&compare) {
                self.when.push(compare);
            }
        }
        self.then.extend(other.then);
        self
    }
}

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The change was carried out, at this revision.
    Done(Revision),
    /// A condition did not hold; nothing was written.
    Conflict,
}

/// The outcome of a transition, and the revision since which it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided<T> {
    /// The value that the transition returns.
    pub value: T,
    /// The revision at which a view of the cluster has the change in it. 0 if nothing was written and the transition
    /// does not know when the state came about.
    pub revision: Revision,
}

impl<T> Decided<T> {
    /// Returns the value without the revision.
    pub fn into_value(self) -> T {
        self.value
    }
}

/// The decision of a transition about the state that it read.
pub(crate) enum Decision<T> {
    /// The state is as asked for already, perhaps by this call's own write whose reply was lost.
    Already(T),
    /// The same, with the revision of the last write of the row that shows it.
    AlreadyAt(T, Revision),
    /// This change is needed, and then the value holds.
    Change(Change, T),
}

/// The most rounds in which a transition is decided again because rivals wrote first.
///
/// Each conflict means that another writer succeeded, so this bounds how many may queue at one key: twice the hundred
/// scales at once that the tests run.
const MAX_ROUNDS: usize = 200;

#[derive(Clone, Copy)]
struct SchemaGuard {
    /// The revision of the last write of the schema row, which lets this build write.
    mod_revision: Revision,
}

impl SchemaGuard {
    fn of(schema: &Versioned<Schema>) -> Result<SchemaGuard> {
        if schema.min_writer > SCHEMA_VERSION {
            return Err(VisorError::SchemaTooNew {
                version: schema.version,
                min_writer: schema.min_writer,
                ours: SCHEMA_VERSION,
            });
        }
        Ok(SchemaGuard { mod_revision: schema.mod_revision })
    }
}

/// A handle on the cluster's state; cheap to clone.
#[derive(Clone)]
pub struct Visor {
    /// The audit entry that every change through this handle writes too.
    record: Option<Arc<(Key, AuditEntry)>>,
    store: SharedStore,
    guard: Arc<Mutex<Option<SchemaGuard>>>,
}

impl Visor {
    /// Returns a handle over a store. Nothing is read or written yet.
    pub fn new(store: SharedStore) -> Self {
        Visor { record: None, store, guard: Arc::default() }
    }

    /// Returns a handle for one action of an identity, whose changes write an entry of the audit in the same
    /// transaction.
    ///
    /// Several changes share one entry. `random` tells the entry from others of the same moment.
    pub fn audited(&self, who: &Identity, entry: AuditEntry, random: u32) -> Visor {
        let id = format!("{:013}-{random:08x}", entry.at.as_millisecond().clamp(0, 9_999_999_999_999));
        let id = id.parse().expect("it is put together by the rule");
        Visor { record: Some(Arc::new((Key::Audit(who.clone(), id), entry))), ..self.clone() }
    }

    /// Returns the store below.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Writes the schema if the cluster has none.
    ///
    /// Every daemon calls this at its start; several may do so at once.
    ///
    /// # Errors
    /// The store's; [`VisorError::SchemaTooNew`].
    pub async fn set_up(&self) -> Result<()> {
        // Most identities may only read the schema.
        match self.load_guard().await {
            Err(VisorError::NotSetUp) => {}
            other => return other.map(drop),
        }
        let mut name = [0; 8];
        Os.fill(&mut name);
        let cluster = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let schema = Schema { cluster: Some(cluster), ..Schema::default() };
        let change = Change::new().absent(&Key::Schema).put(&Key::Schema, &schema);
        let txn = Txn { when: change.when, then: change.then, otherwise: Vec::new() };
        match self.store.txn(txn).await {
            Ok(_) | Err(StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.load_guard().await.map(drop)
    }

    /// Reads whole scopes at one revision.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(&self, scopes: Vec<Keys>) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        let mut listing = self.list(scopes).await?;
        while let Some(page) = listing.next().await? {
            page.iter().for_each(|entry| snapshot.put(entry));
        }
        snapshot.set_revision(listing.revision());
        Ok(snapshot)
    }

    /// Reads whole scopes at one revision, as stored entries.
    pub(crate) async fn entries(&self, scopes: Vec<Keys>) -> Result<(Vec<Entry>, Revision)> {
        let mut listing = self.list(scopes).await?;
        let mut entries = Vec::new();
        while let Some(page) = listing.next().await? {
            entries.extend(page);
        }
        Ok((entries, listing.revision()))
    }

    async fn list(&self, scopes: Vec<Keys>) -> Result<Listing> {
        let (listing, schema) =
            Listing::begin(self.store.clone(), scopes, keys::schema(), self.store.first_page()).await?;
        may_read(&schema)?;
        self.keep_guard(&schema);
        Ok(listing)
    }

    /// Reads one key.
    ///
    /// # Errors
    /// The store's; [`VisorError::Unreadable`].
    pub async fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<Versioned<T>>> {
        let page = self.store.range(Keys::One(key.to_string()), None).await?;
        page.entries
            .first()
            .map(Versioned::read)
            .transpose()
            .map_err(|error| VisorError::Unreadable { key: key.to_string(), detail: error.to_string() })
    }

    /// Reads the statuses of these instances; instances without a status are left out.
    ///
    /// Costs one call for each 128 instances, all under way at once.
    ///
    /// # Errors
    /// The store's.
    pub async fn statuses(
        &self,
        of: impl IntoIterator<Item = (HostName, InstanceId)>,
    ) -> Result<BTreeMap<InstanceId, Versioned<Status>>> {
        let keys: Vec<Keys> =
            of.into_iter().map(|(host, id)| Keys::One(Key::Status(host, id).to_string())).collect();
        // Each read contains the schema row too.
        let pages = keys.chunks(MAX_TXN_OPS - 1).map(|chunk| self.read(chunk.to_vec()));
        let mut statuses = BTreeMap::new();
        for snapshot in futures::future::try_join_all(pages).await? {
            for view in snapshot.hosts.into_values() {
                statuses.extend(view.status);
            }
        }
        Ok(statuses)
    }

    /// Commits a change, if its conditions hold and the schema lets this binary write.
    ///
    /// # Errors
    /// The store's (after [`StoreError::OutcomeUnknown`], read back); [`VisorError::SchemaTooNew`];
    /// [`VisorError::NotSetUp`].
    pub async fn commit(&self, change: Change) -> Result<Committed> {
        // At most twice: a second time if only the schema row had been rewritten.
        for _ in 0..2 {
            let guard = self.guard().await?;
            let mut when = change.when.clone();
            when.push(Compare::ModRevision(Key::Schema.to_string(), guard.mod_revision));
            let otherwise = vec![Op::Get(Keys::One(Key::Schema.to_string()))];
            let mut then = change.then.clone();
            if let Some(record) = &self.record {
                then.extend(Change::new().put(&record.0, &record.1).then);
            }
            let reply = self.store.txn(Txn { when, then, otherwise }).await?;
            if reply.succeeded {
                return Ok(Committed::Done(reply.revision));
            }
            let now =
                reply.found.first().and_then(|found| found.first()).map_or(0, |entry| entry.mod_revision);
            if now == guard.mod_revision {
                return Ok(Committed::Conflict);
            }
            *self.guard.lock().expect("no holder of this lock panics") = None;
        }
        Ok(Committed::Conflict)
    }

    /// Reads, decides and commits; starts again after a rival's write or a lost reply.
    ///
    /// Takes two round trips if neither happens.
    pub(crate) async fn decide<T>(
        &self,
        scopes: Vec<Keys>,
        decide: impl Fn(&Snapshot) -> Result<Decision<T>>,
    ) -> Result<Decided<T>> {
        let mut unknown = None;
        for _ in 0..MAX_ROUNDS {
            let snapshot = self.read(scopes.clone()).await?;
            match decide(&snapshot)? {
                Decision::Already(value) => return Ok(Decided { value, revision: 0 }),
                Decision::AlreadyAt(value, revision) => return Ok(Decided { value, revision }),
                Decision::Change(change, value) => match self.commit(change).await {
                    Ok(Committed::Done(revision)) => return Ok(Decided { value, revision }),
                    Ok(Committed::Conflict) => {}
                    Err(VisorError::Store(StoreError::OutcomeUnknown { .. }))
                        if planted(Bug::LostReplyCountsAsDone) =>
                    {
                        return Ok(Decided { value, revision: 0 });
                    }
                    // The next read shows whether it was carried out.
                    Err(VisorError::Store(error @ StoreError::OutcomeUnknown { .. })) => {
                        if unknown.replace(error.clone()).is_some() {
                            return Err(error.into());
                        }
                    }
                    Err(error) => return Err(error),
                },
            }
        }
        Err(VisorError::Contended)
    }

    async fn guard(&self) -> Result<SchemaGuard> {
        let held = *self.guard.lock().expect("no holder of this lock panics");
        match held {
            Some(guard) => Ok(guard),
            None => self.load_guard().await,
        }
    }

    async fn load_guard(&self) -> Result<SchemaGuard> {
        let schema: Versioned<Schema> = self.get(&Key::Schema).await?.ok_or(VisorError::NotSetUp)?;
        let guard = SchemaGuard::of(&schema)?;
        *self.guard.lock().expect("no holder of this lock panics") = Some(guard);
        Ok(guard)
    }

    /// Keeps the guard that a read has fetched, so that the commit after it needs no read of its own.
    ///
    /// Of two overlapping reads the later row counts. A row that forbids writing is left to [`Visor::load_guard`],
    /// which reports it.
    fn keep_guard(&self, schema: &[Entry]) {
        let Some(Ok(schema)) = schema.first().map(Versioned::<Schema>::read) else { return };
        let Ok(guard) = SchemaGuard::of(&schema) else { return };
        let mut held = self.guard.lock().expect("no holder of this lock panics");
        if held.is_none_or(|held| held.mod_revision < guard.mod_revision) {
            *held = Some(guard);
        }
    }
}
