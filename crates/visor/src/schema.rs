//! What each key of the coordinator holds.
//!
//! Owns the stored shapes and nothing else: no key, no transition. Everything is JSON with names
//! that carry their units. A field that a binary doesn't know survives its read and write
//! (`extra`), so that two versions can run side by side; a field is only ever added, with a default.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    names::{
        AppName, Digest, EnvRef, HostName, InstanceId, Link, ProcName, ReleaseId, RevId, ServicesAddress,
        UserName, ZoneName,
    },
    seal::{PublicKey, Sealed, Vars, WrappedKey},
    store::{Revision, StoreError},
};

/// Fields written by a newer version, kept as they are.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// This build's schema version. From version 2 on config vars are sealed. Version 1 may write beside it: what it
/// doesn't know it can't read, and so leaves alone; what it writes in plain text is sealed by a bazooka-rm.
pub const SCHEMA_VERSION: u32 = 2;

/// `schema`: which versions may read and write the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The version that the state was last migrated to.
    pub version: u32,
    /// The lowest version that understands it.
    pub min_reader: u32,
    /// The lowest version that may change it.
    pub min_writer: u32,
    /// Names the cluster, whatever store it lies in; none: it was set up by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// When it was last restored from a backup, if it ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for Schema {
    fn default() -> Self {
        Schema {
            version: SCHEMA_VERSION,
            min_reader: 1,
            min_writer: 1,
            cluster: None,
            restored: None,
            extra: Extra::new(),
        }
    }
}

impl Schema {
    /// Which cluster this is, and since which restoration.
    pub fn era(&self) -> Era {
        Era { cluster: self.cluster.clone(), restored: self.restored }
    }

    /// Checks that this build understands the cluster's rows.
    ///
    /// # Errors
    /// [`StoreError::SchemaTooNew`].
    pub fn check_reader(&self) -> Result<(), StoreError> {
        if self.min_reader <= SCHEMA_VERSION {
            return Ok(());
        }
        let (version, min_reader) = (self.version, self.min_reader);
        Err(StoreError::SchemaTooNew { version, min_reader, ours: SCHEMA_VERSION })
    }
}

/// Which cluster a word is of, and since which restoration: another one's says nothing of what was before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// [`Schema::cluster`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// [`Schema::restored`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
}

/// `apps/A`: a versioned codebase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Who registered it.
    pub owner: String,
    /// When.
    pub created_at: Timestamp,
    /// Tells one registration of a name from another, and a lost reply's own write from a rival's.
    pub token: String,
    /// Set while the app is being taken down: nothing is placed any more, and all of it goes.
    #[serde(default)]
    pub destroying: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A built rev in the file storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slug {
    /// Its name and its check: the SHA-256 of the compressed archive.
    pub sha256: Digest,
    /// The compressed archive's length.
    pub size_bytes: u64,
}

/// `apps/A/revs/R`: a commit, built once. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rev {
    /// What was built.
    pub slug: Slug,
    /// The Procfile: each proc's command, a line for `/bin/sh -c`.
    pub procs: BTreeMap<ProcName, String>,
    /// How it was built: `node`, `python`, `rust`, `static`, `bin/build` or `procfile`.
    pub kind: String,
    /// Who pushed it.
    pub by: String,
    /// When it was registered.
    pub at: Timestamp,
    /// The commit's first line.
    #[serde(default)]
    pub subject: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// When an instance counts as healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// As soon as its process has been started and has not exited at once.
    Started,
    /// When the instance itself listens on $PORT.
    Listening,
    /// When it listens and `GET path` is answered with a status below 400.
    Http {
        /// Begins with a slash.
        path: String,
    },
}

/// What an instance may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Resident memory, no swap; none is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processor, in thousandths of one; none is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_millis: Option<u32>,
    /// Processes and threads; 1,024 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes_limit: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Limits {
    /// Processes and threads of an instance, unless its proc says otherwise.
    pub const USUAL_PROCESSES: u32 = 1_024;
}

/// What becomes of instances on a host that has lost the coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPartition {
    /// They go on.
    #[default]
    Keep,
    /// They end before their host's lease can run out: two of them would be worse than none.
    Stop,
}

/// How one proc is run; the part of its settings that an instance's host needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSettings {
    /// When it is healthy; unless set, `web*` must listen and others must have started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// Memory and the like.
    #[serde(default)]
    pub limits: Limits,
    /// From SIGTERM to SIGKILL; 30 s unless set (what Heroku gives).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_ms: Option<u64>,
    /// From start to healthy; 60 s unless set (what Heroku gives).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_timeout_ms: Option<u64>,
    /// What happens when its host is cut off.
    #[serde(default)]
    pub on_partition: OnPartition,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl RunSettings {
    /// The check in force for a proc of this name.
    pub fn check_for(&self, proc: &ProcName) -> Check {
        match &self.check {
            Some(check) => check.clone(),
            None if proc.is_web() => Check::Listening,
            None => Check::Started,
        }
    }

    /// From SIGTERM to SIGKILL.
    pub fn stop_timeout(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.stop_timeout_ms.unwrap_or(30_000))
    }

    /// From start to healthy.
    pub fn boot_timeout(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.boot_timeout_ms.unwrap_or(60_000))
    }
}

/// `apps/A/procs/P`: a service, registered once and kept for the app's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// The service's own port on each proxy, fixed for its life.
    pub port: u16,
    /// How it is run.
    #[serde(default)]
    pub run: RunSettings,
    /// How long a new instance must stay healthy before a trial or a batch counts it; 1 s unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_ms: Option<u64>,
    /// How many old instances a rollout may stop before their replacements run; 0 unless set.
    #[serde(default)]
    pub max_unavailable: u32,
    /// How many instances a rollout replaces at a time; a quarter of them, at least one, unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/envs/E`: an app's config vars, sealed, and its links. They never change; what version 1 wrote is sealed once.
///
/// A version 1 that meets a sealed one can't read it, and so takes it neither for absent nor for empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Env {
    /// Names and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// Name to value, as version 1 wrote them: in plain text, until a bazooka-rm seals them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<Vars>,
    /// The services that its instances are told the address of, which is no secret.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<Link>,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Env {
    /// Whether nobody but who has a wrap can read it.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }
}

/// `wraps/A/E`: the data key of an env, wrapped for each who may open it. Besides who sets the env, rms write it.
///
/// One takes some 160 bytes, so that a row for a thousand hosts has 160 kB of the 1.5 MiB that etcd takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wraps {
    /// By an rm's public key.
    #[serde(default)]
    pub rms: BTreeMap<PublicKey, WrappedKey>,
    /// By a host's public key.
    #[serde(default)]
    pub hosts: BTreeMap<PublicKey, WrappedKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `sealed/H/A/E`: an env as one host gets it: a copy of its row's, with that host's wrap alone. It is there
/// while instances are assigned to the host that run with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Names and values.
    pub sealed: Sealed,
    /// The host's public key.
    pub to: PublicKey,
    /// The data key, wrapped for that.
    pub key: WrappedKey,
    /// Its links; so a host knows which ports an instance must have been placed with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<Link>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How far a release has come.
///
/// ```text
/// trying ─▶ verified ─▶ released
///    └────────┴───────▶ failed          beside: never tried, runs by formation alone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// On trial: its first instances have yet to become healthy.
    Trying,
    /// They did; head has not moved yet.
    Verified,
    /// It was made head, and is, or was until a later one.
    Released,
    /// It never became head; the cause says why.
    Failed,
    /// Made by `scale -r` to run beside head.
    Beside,
}

/// `apps/A/releases/N`: rev + env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The rev that it runs.
    pub rev: RevId,
    /// The env that it runs with.
    pub env: EnvRef,
    /// Who made it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why, for people: `push`, `config set A B`, `rollback to v3`.
    pub reason: String,
    /// How far it has come.
    pub status: ReleaseStatus,
    /// Why it failed; of one that was released: who called it off before all of it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Tells a lost reply's own write from a rival's.
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Release {
    /// It was head, and its rollout was called off.
    pub fn was_aborted(&self) -> bool {
        self.status == ReleaseStatus::Released && self.cause.is_some()
    }
}

/// `apps/A/pause`: while it is there, no new instance takes over from one of another release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/head`: the app's current release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number.
    pub release: ReleaseId,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Who moves head once a trial is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promoter {
    /// The push that waits for it, when git has moved the branch.
    Pusher,
    /// The converger.
    Converger,
}

/// `apps/A/trial`: the release that is being tried, one at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number.
    pub release: ReleaseId,
    /// Who moves head.
    pub promote: Promoter,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/formation/P`: what the user wants to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// How many instances of head. The user's word alone: no daemon writes it.
    pub count: u32,
    /// How many instances of other releases, beside head.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<ReleaseId, u32>,
    /// The share of the traffic of releases beside head, in percent, where it is set. The others have the rest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<ReleaseId, u32>,
    /// How many of `count` are to stand in a zone, where that was said; the others stand anywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<ZoneName, u32>,
    /// Instances with a lower id are to be replaced: `restart` of the whole proc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_before: Option<InstanceId>,
    /// Who scaled it last, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// These instances are to be replaced: `restart` of one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub replace: BTreeSet<InstanceId>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `apps/A/instances/ID`: where an instance was placed; an index by app over `assigned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The host that runs it, for its whole life.
    pub host: HostName,
    /// The proc that it is one of.
    pub proc: ProcName,
    /// What it runs, for its whole life.
    pub release: ReleaseId,
    /// That release's rev.
    pub rev: RevId,
    /// Its place among the instances of its proc and release: 0, 1, ...; replacements take it over.
    pub index: u32,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// Why it was placed, for people.
    pub reason: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What an instance is meant to do. It only ever goes down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Run, and be routed once healthy.
    Run,
    /// Run, but take no new requests.
    Drain,
    /// End.
    Stop,
}

/// `assigned/H/ID`: all that a host needs in order to run an instance, bar the values of its env.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// What it is meant to do.
    pub desired: Desired,
    /// Why `desired` is not `run`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its app.
    pub app: AppName,
    /// Its proc.
    pub proc: ProcName,
    /// Its release.
    pub release: ReleaseId,
    /// Its rev.
    pub rev: RevId,
    /// Its env, to be read from `sealed/H/A/E`.
    pub env: EnvRef,
    /// Its slug.
    pub slug: Slug,
    /// Its command, a line for `/bin/sh -c`.
    pub command: String,
    /// Its place among its kind.
    pub index: u32,
    /// How it is run.
    #[serde(default)]
    pub run: RunSettings,
    /// The port of each service that its env links, as it was when this was placed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<Link, u16>,
    /// Placed as part of a trial: no backoff, it fails for good once the quick restarts are spent.
    #[serde(default)]
    pub trial: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An instance's state, as its host reports it.
///
/// ```text
/// claimed ─▶ running ─▶ stopping ─▶ exited
///   │  ▲        │
///   │  └ backoff ◀┘ (crashed; next start at a known time)
///   └─▶ failed (given up)                    lost: said by the converger, once the host is
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The host has taken it up: fetching, starting, not healthy yet.
    Claimed,
    /// Its check has passed since it last started.
    Running,
    /// It crashed and will be started again at `next_start_at`.
    Backoff,
    /// It has been told to end.
    Stopping,
    /// It ended because it was meant to. Final.
    Exited,
    /// It can't run here: the cause says why. Final.
    Failed,
    /// Its host has gone. Final.
    Lost,
}

impl State {
    /// Its word for people.
    pub fn word(self) -> &'static str {
        match self {
            State::Claimed => "starting",
            State::Running => "running",
            State::Backoff => "backoff",
            State::Stopping => "stopping",
            State::Exited => "exited",
            State::Failed => "failed",
            State::Lost => "lost",
        }
    }

    /// Nothing of the instance runs any more, and nothing will.
    pub fn is_final(self) -> bool {
        matches!(self, State::Exited | State::Failed | State::Lost)
    }
}

/// Why an instance failed, where the difference matters to placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The app's own: exits, doesn't listen, no such command.
    App,
    /// It ran out of memory: the host is avoided by its replacement.
    OutOfMemory,
    /// No port was free: the host is avoided by its replacement.
    NoPort,
    /// The host's: disk full, slug can't be fetched or is broken. Avoided by its replacement.
    Host,
}

/// One end of an instance's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When.
    pub at: Timestamp,
    /// The exit status, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal, if one ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel ended it because it ran out of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// How long it ran.
    pub ran_ms: u64,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Something that happened to an instance, for `why`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// What, in one line, without any value of a config var.
    pub what: String,
}

/// `status/H/ID`: what a host says of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// When it came into that state.
    pub since: Timestamp,
    /// Where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Its port there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When that process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How often it was started again after a crash.
    #[serde(default)]
    pub restarts: u32,
    /// When it will be started again, in `backoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<Timestamp>,
    /// Why it is in this state, where that isn't plain; in one line, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What kind of failure, in `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// The last lines of its output, kept when it failed or crashed; 20 lines and 4 KiB at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_output: Vec<String>,
    /// Its last exits, newest last; 5 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<Exit>,
    /// Its story, newest last; 32 moments at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub story: Vec<Moment>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Status {
    /// A status in this state with everything else empty.
    pub fn new(state: State, since: Timestamp) -> Self {
        Status {
            state,
            since,
            ip: None,
            port: None,
            pid: None,
            started_at: None,
            restarts: 0,
            next_start_at: None,
            cause: None,
            fault: None,
            last_output: Vec::new(),
            exits: Vec::new(),
            story: Vec::new(),
            extra: Extra::new(),
        }
    }
}

/// `apps/A/pending/P`: instances that have no place yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What they would run.
    pub release: ReleaseId,
    /// How many.
    pub short: u32,
    /// Why, in one line.
    pub reason: String,
    /// Each host's refusal.
    #[serde(default)]
    pub refusals: BTreeMap<HostName, String>,
    /// Since when there has been a shortfall.
    pub since: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a host has to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Memory for instances.
    pub memory_bytes: u64,
    /// How many instances.
    pub instances: u32,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `hosts/H`, leased: a host that runs bazooka-pm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Where its instances are reached.
    pub address: IpAddr,
    /// The base of its pm's endpoint (`http://127.0.0.2:41234`).
    pub url: String,
    /// Where it stands.
    pub zone: ZoneName,
    /// Its pm's version.
    pub version: String,
    /// What it has to give.
    pub capacity: Capacity,
    /// How instances are kept apart there, in words: `sandbox`, `sandbox without fence`, `uid`, `none`.
    pub isolation: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The schema's version that its build writes; none: an early one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// What config vars are sealed to for it; none: its pm is of a version that can't open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<PublicKey>,
    /// Where its instances reach the services that they link; none: it wasn't told, or its pm is of a version that
    /// knows no links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServicesAddress>,
    /// When this registration was made.
    pub since: Timestamp,
    /// Names the pm's state folder, so that a restarted pm takes over its own registration and a second
    /// pm of the same name is refused.
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `hostmeta/H`: what the operator says of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMeta {
    /// Nothing new is placed there.
    #[serde(default)]
    pub cordoned: bool,
    /// What runs there is replaced elsewhere, then stopped.
    #[serde(default)]
    pub draining: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `proxies/X`, leased: a proxy, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// The base of bazooka-proxy's own endpoint.
    pub url: String,
    /// Where it takes requests for `<app>.<domain>`, as `address:port`.
    pub public: String,
    /// The domain below which each app has its name.
    pub domain: String,
    /// Where it stands; none: it is of a version that didn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// Its version.
    pub version: String,
    /// The schema's version that its build writes; none: an early one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// Everything up to this revision is in force in HAProxy, old workers included in `busy`.
    pub applied: Revision,
    /// Instances that were taken out and still have a session on some worker.
    #[serde(default)]
    pub busy: BTreeSet<InstanceId>,
    /// Names its state folder, so that one which is started again takes over its own row and another of its name is
    /// refused; none: it is of a version that didn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Services that it can't serve, and why (`goto-rocket/web`: `port 8511 is taken`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `rms/X`, leased: a bazooka-rm that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rm {
    /// The base of its endpoint: `{url}/A.git`, `{url}/slugs/SHA256`.
    pub url: String,
    /// Its version.
    pub version: String,
    /// The schema's version that its build writes; none: an early one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The base of the URL that is pushed to over SSH, where that can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_url: Option<String>,
    /// What config vars are sealed to for it; none: it is of a version that can't open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<PublicKey>,
    /// The keys that this one replaced. Their wraps go once there is one for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_seal_keys: Vec<PublicKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Rm {
    /// One with an endpoint and no more.
    pub fn at(url: impl Into<String>) -> Rm {
        let (url, version) = (url.into(), String::new());
        Rm {
            url,
            version,
            schema: None,
            ssh_url: None,
            seal_key: None,
            retired_seal_keys: Vec::new(),
            extra: Extra::new(),
        }
    }
}

/// `asks/X`, leased: what an rm wants to hear from whoever asks it to open something. Who can read this row may ask.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The word. Another with each process.
    pub word: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Ask {
    /// With this word.
    pub fn new(word: impl Into<String>) -> Ask {
        Ask { word: word.into(), extra: Extra::new() }
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

/// `repos/A`: how far an app's repository is set up. Each field is set when that is so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// Where to push.
    pub url: String,
    /// The bare repository is there.
    #[serde(default)]
    pub created: bool,
    /// Its configuration is written.
    #[serde(default)]
    pub configured: bool,
    /// Its hooks are in place.
    #[serde(default)]
    pub hooks: bool,
    /// The registration that it belongs to ([`App::token`]).
    #[serde(default)]
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `access/A`: who may change an app, beside operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// By name.
    #[serde(default)]
    pub users: BTreeMap<UserName, Granted>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Who gave a right, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `identities/NAME`: a person or a daemon that takes part. A certificate alone lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// It may do what concerns the whole cluster: hosts, and each app.
    #[serde(default)]
    pub operator: bool,
    /// Who let it in.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `keys/USER`: the SSH keys with which somebody pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeys {
    /// By fingerprint (`SHA256:...`, as `ssh-keygen -l` says it).
    #[serde(default)]
    pub keys: BTreeMap<String, SshKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKey {
    /// Its kind and itself, in OpenSSH's form, without a comment.
    pub key: String,
    /// What its owner calls it.
    #[serde(default)]
    pub comment: String,
    /// When it was added.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `audit/NAME/ID`: what somebody did, written in the transaction that did it. etcd lets nobody write under another's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// What, as the command says it; never a config var's value.
    pub what: String,
    /// The app that it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// For whom, where the writer is a daemon that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The machine's name, as a person's command says it, or the address that a daemon saw.
    #[serde(default)]
    pub from: String,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `turns/A`, leased: the push to an app that is under way. There is one at a time, whichever rm takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The rm that takes it.
    pub rm: HostName,
    /// That rm's process, so that its next one knows the turn for one that has ended.
    pub process: String,
    /// The push.
    pub push: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `stored/A`: what the file storage has of an app's repository, where several rms share one. This row is
/// what a push moves: a branch names what is said here, and each rm brings its own copy up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The registration that it belongs to ([`App::token`]).
    pub token: String,
    /// Counts the pushes that moved it.
    pub generation: u64,
    /// The SHA-256 of the manifest in the file storage that names the packs.
    pub manifest: Digest,
    /// Each branch, by its whole name.
    pub branches: BTreeMap<String, Branch>,
    /// The branch that a clone checks out.
    pub head: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A branch of a stored repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// What it names.
    pub commit: RevId,
    /// The push that moved it, which is its release's token; empty: it was there before.
    #[serde(default)]
    pub push: String,
    /// That push asked for no release.
    #[serde(default)]
    pub no_rollout: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `domains/FQDN`: a name that leads to an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// The app.
    pub app: AppName,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `election/converger`, leased: who places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The process, for people.
    pub name: String,
    /// Since when.
    pub since: Timestamp,
    /// The base of its endpoint.
    #[serde(default)]
    pub url: String,
    /// Set while so many hosts are gone at once that none of them is taken for lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// More hosts vanished at once than a converger gives up by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Since when.
    pub since: Timestamp,
    /// The hosts that are gone.
    pub hosts: BTreeSet<HostName>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `unfreeze`: an operator's word that these hosts are gone for good, though too many went at once.
///
/// It holds until each of them has returned or left nothing behind; the converger takes it away then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfreeze {
    /// The hosts.
    pub hosts: BTreeSet<HostName>,
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `history/A/P/ID`: an instance that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Where and what it was.
    pub instance: Instance,
    /// The last that its host said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why it was ended, where someone decided that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was put away.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `stats/DAY`: what a day brought, counted by the elected converger. `stats` has how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayStats {
    /// Revs that were registered on that day.
    #[serde(default)]
    pub pushed: u64,
    /// Releases that were made.
    #[serde(default)]
    pub released: u64,
    /// Instances that were placed: ids that were taken.
    #[serde(default)]
    pub started: u64,
    /// What there was when it was last counted on that very day; none if nobody counted then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<DayTotals>,
    /// The instance counter then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_instance: Option<u64>,
    /// By the registration of an app ([`App::token`]), while the day is open.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_app: BTreeMap<String, AppDay>,
    /// It is counted no more.
    #[serde(default)]
    pub closed: bool,
    /// When it was counted last.
    pub counted_at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a day brought to an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDay {
    /// Revs.
    #[serde(default)]
    pub revs: u64,
    /// Releases.
    #[serde(default)]
    pub releases: u64,
}

/// How many there are of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTotals {
    /// Apps.
    pub apps: u64,
    /// Proc types: services.
    pub procs: u64,
    /// Revs.
    pub revs: u64,
    /// Releases.
    pub releases: u64,
    /// Instances that have a place.
    pub instances: u64,
}
