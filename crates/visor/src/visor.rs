//! A handle on the cluster's state: typed reads, and guarded commits that also hold to the schema.
//!
//! Owns the rule that a binary older than the schema's `min_writer` changes nothing: the schema key's
//! revision is compared in each transaction. It knows no transition; those are in `transitions`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    identity::Identity,
    keys::{self, Key},
    links::LeadsNowhere,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, UserName, ZoneName},
    schema::{AuditEntry, SCHEMA_VERSION, Schema, Status},
    seal::{Os, Random},
    snapshot::{Snapshot, Versioned, may_read},
    store::{Compare, Entry, Image, Keys, LeaseId, MAX_TXN_OPS, Op, Revision, SharedStore, StoreError, Txn},
};

/// A change that the rules don't allow as things stand. Nothing was written.
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
    #[error("{0} would share out {1} % of its traffic")]
    TooMuchTraffic(ProcName, u32),
    #[error("{1} instances of {0} are to stand in zones: {words}", words = zone_words(.2))]
    InZones(ProcName, u32, BTreeMap<ZoneName, u32>),
    #[error("{0} would have {1} instances")]
    TooMany(ProcName, u32),
    #[error("rev {1} of app '{0}' has no proc '{2}'")]
    NotInRev(AppName, String, ProcName),
    #[error("app '{0}' has no instance {1}")]
    NoSuchInstance(AppName, InstanceId),
    #[error("the config vars of app '{0}' were changed by another meanwhile")]
    EnvMoved(AppName),
    #[error("{link} can't be linked: {why}", link = .0.link, why = .0.why)]
    Unlinkable(LeadsNowhere),
    #[error("the push's turn at app '{0}' has ended: its bazooka-rm was cut off for too long")]
    TurnOver(AppName),
    #[error("the repository of app '{0}' has moved meanwhile")]
    RepoMoved(AppName),
    #[error("no service port is left")]
    NoPortLeft,
    #[error("host '{0}' is registered by another pm")]
    HostTaken(HostName),
    #[error("another {kind} of the name '{name}' is there, at {url}")]
    NameTaken { kind: &'static str, name: HostName, url: String },
    #[error("host '{0}' has lost its lease")]
    HostGone(HostName),
    #[error("host '{0}' is there: its bazooka-pm holds its registration")]
    HostThere(HostName),
    #[error("host '{0}' has instances that aren't replaced yet")]
    HostInUse(HostName),
    #[error("nothing is frozen: hosts that go are given up")]
    NotFrozen,
    #[error("{0} isn't admitted to this cluster")]
    NotAdmitted(Identity),
    #[error("{0} has as many SSH keys as one may have")]
    TooManyKeys(UserName),
    #[error("{0} has no SSH key {1}")]
    NoSuchKey(UserName, String),
    #[error("app '{0}' isn't one of {1}'s")]
    NotTheirs(AppName, UserName),
}

fn zone_words(zones: &BTreeMap<ZoneName, u32>) -> String {
    zones.iter().map(|(zone, n)| format!("{n} in {zone}")).collect::<Vec<_>>().join(", ")
}

/// A failed read or change of the cluster's state.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VisorError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change isn't allowed as things stand.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The cluster's state is of a later schema than this binary can write.
    #[error(
        "the cluster's schema is version {version}, which takes version {min_writer} to change; this is {ours}"
    )]
    SchemaTooNew {
        /// The schema's version.
        version: u32,
        /// The lowest version that may change it.
        min_writer: u32,
        /// What this binary is.
        ours: u32,
    },
    /// The cluster has no schema yet.
    #[error("the coordinator holds no cluster yet")]
    NotSetUp,
    /// A value isn't what the schema says.
    #[error("{key} can't be read: {detail}")]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Rivals changed the same keys each time.
    #[error("others kept changing the same thing; nothing was done")]
    Contended,
}

/// The result of a call on the cluster's state.
pub type Result<T, E = VisorError> = std::result::Result<T, E>;

/// Writes that happen together or not at all, and the conditions for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The conditions.
    pub when: Vec<Compare>,
    /// The writes.
    pub then: Vec<Op>,
}

impl Change {
    /// A change without conditions or writes.
    pub fn new() -> Self {
        Change::default()
    }

    /// Only if the key was last written at this revision (0: isn't there).
    pub fn unchanged(mut self, key: &Key, mod_revision: Revision) -> Self {
        self.when.push(Compare::ModRevision(key.to_string(), mod_revision));
        self
    }

    /// Only if what was read is still so.
    pub fn as_read<T>(self, key: &Key, read: Option<&Versioned<T>>) -> Self {
        self.unchanged(key, read.map_or(0, |v| v.mod_revision))
    }

    /// Only if the key isn't there.
    pub fn absent(self, key: &Key) -> Self {
        self.unchanged(key, 0)
    }

    /// Only if the key is there.
    pub fn exists(mut self, key: &Key) -> Self {
        self.when.push(Compare::Exists(key.to_string()));
        self
    }

    /// Only if the key was created at this revision (0: isn't there).
    pub fn created_at(mut self, key: &Key, create_revision: Revision) -> Self {
        self.when.push(Compare::CreateRevision(key.to_string(), create_revision));
        self
    }

    /// Write a value.
    pub fn put<T: Serialize>(self, key: &Key, value: &T) -> Self {
        self.put_leased(key, value, None)
    }

    /// Write a value, bound to a lease.
    pub fn put_leased<T: Serialize>(mut self, key: &Key, value: &T, lease: Option<LeaseId>) -> Self {
        let value = Bytes::from(serde_json::to_vec(value).expect("the schema's types are always valid JSON"));
        self.then.push(Op::Put { key: key.to_string(), value, lease });
        self
    }

    /// Delete a key.
    pub fn delete(self, key: &Key) -> Self {
        self.delete_all(Keys::One(key.to_string()))
    }

    /// Delete keys.
    pub fn delete_all(mut self, keys: Keys) -> Self {
        self.then.push(Op::Delete(keys));
        self
    }

    /// Both, together.
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

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It was carried out, at this revision.
    Done(Revision),
    /// A condition didn't hold: nothing was written.
    Conflict,
}

/// What came of a transition, and since when it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided<T> {
    /// What the transition tells.
    pub value: T,
    /// A view of the cluster that has come to this revision has the change in it. 0 if nothing was written and the
    /// transition doesn't know when it came about.
    pub revision: Revision,
}

impl<T> Decided<T> {
    /// The value alone.
    pub fn into_value(self) -> T {
        self.value
    }
}

/// What a transition makes of what it reads.
pub(crate) enum Decision<T> {
    /// It is so already (or a lost reply's write had been carried out).
    Already(T),
    /// The same, and the row that says so was last written at this revision.
    AlreadyAt(T, Revision),
    /// This change brings it about.
    Change(Change, T),
}

/// How often a transition is decided anew when rivals get in first. Each conflict means that another
/// one got through, so this bounds how many may queue at one key: faults.md's hundred scales at once, twice.
const MAX_ROUNDS: usize = 200;

#[derive(Clone, Copy)]
struct SchemaGuard {
    /// The schema's row was last written then, and lets this build write.
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

/// A handle on the cluster's state. Cheap to clone.
#[derive(Clone)]
pub struct Visor {
    /// Written with each change, so that no change is without it.
    record: Option<Arc<(Key, AuditEntry)>>,
    store: SharedStore,
    guard: Arc<Mutex<Option<SchemaGuard>>>,
}

impl Visor {
    /// A handle over a store. Nothing is read or written yet.
    pub fn new(store: SharedStore) -> Self {
        Visor { record: None, store, guard: Arc::default() }
    }

    /// The same, for one thing that somebody does: whatever is changed through it, an entry of the audit is written in the
    /// same transaction. Several changes share one entry. `random` tells it from others of the same moment.
    pub fn audited(&self, who: &Identity, entry: AuditEntry, random: u32) -> Visor {
        let id = format!("{:013}-{random:08x}", entry.at.as_millisecond().clamp(0, 9_999_999_999_999));
        let id = id.parse().expect("it is put together by the rule");
        Visor { record: Some(Arc::new((Key::Audit(who.clone(), id), entry))), ..self.clone() }
    }

    /// The store below.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Writes the schema if the cluster has none. Daemons do so at start; several at once are fine.
    ///
    /// # Errors
    /// The store's; [`VisorError::SchemaTooNew`].
    pub async fn set_up(&self) -> Result<()> {
        // Most may only read it.
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
        let (entries, revision) = self.entries(scopes).await?;
        let mut snapshot = Snapshot::default();
        entries.iter().for_each(|entry| snapshot.put(entry));
        snapshot.set_revision(revision);
        Ok(snapshot)
    }

    /// The same, as it is stored.
    pub(crate) async fn entries(&self, scopes: Vec<Keys>) -> Result<(Vec<Entry>, Revision)> {
        let then = scopes.into_iter().chain([keys::schema()]).map(Op::Get).collect();
        let txn = Txn { then, ..Txn::default() };
        let mut reply = match self.store.txn(txn.clone()).await {
            // It only reads, so it is safe to repeat.
            Err(StoreError::OutcomeUnknown { .. }) => self.store.txn(txn).await?,
            other => other?,
        };
        let schema = reply.found.pop().unwrap_or_default();
        may_read(&schema)?;
        self.keep_guard(&schema);
        Ok((reply.found.into_iter().flatten().collect(), reply.revision))
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

    /// What their hosts say of these instances, as far as they say anything.
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
        // A read has the schema's row besides.
        let pages = keys.chunks(MAX_TXN_OPS - 1).map(|chunk| self.read(chunk.to_vec()));
        let mut statuses = BTreeMap::new();
        for snapshot in futures::future::try_join_all(pages).await? {
            for view in snapshot.hosts.into_values() {
                statuses.extend(view.status);
            }
        }
        Ok(statuses)
    }

    /// Carries out a change, if its conditions hold and the schema lets this binary write.
    ///
    /// # Errors
    /// The store's ([`StoreError::OutcomeUnknown`]: read back); [`VisorError::SchemaTooNew`];
    /// [`VisorError::NotSetUp`].
    pub async fn commit(&self, change: Change) -> Result<Committed> {
        // Twice at most: once more if only the schema had been written anew.
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

    /// Reads, decides, commits; again when a rival got in between or a reply was lost. Two round trips, if neither happens.
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
                    // What was read next says whether it was carried out.
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

    /// Keeps the guard that a read brought along, so that the commit after it needs no read of its own. Of two reads
    /// that overlap the later row stands; a row that forbids writing is left to [`Visor::load_guard`], which says so.
    fn keep_guard(&self, schema: &[Entry]) {
        let Some(Ok(schema)) = schema.first().map(Versioned::<Schema>::read) else { return };
        let Ok(guard) = SchemaGuard::of(&schema) else { return };
        let mut held = self.guard.lock().expect("no holder of this lock panics");
        if held.is_none_or(|held| held.mod_revision < guard.mod_revision) {
            *held = Some(guard);
        }
    }
}
