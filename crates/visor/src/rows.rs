//! The rows of the coordinator, each declared once.
//!
//! Owns the table `rows!`: of each row its key, its place in the image, the type of its value, and the facts about it
//! ([`Row`]). What lists rows is made from the table, by a macro that takes it or from [`ROWS`]:
//!
//! ```text
//! keys         Key, its spelling and its parsing; whose it is
//! snapshot     the fields of the image, and where a change of a key goes
//! access       etcd's roles: writers, readers, what an operator may mend
//! check        unreadable rows, rows of no app, leased rows without a lease
//! transitions  what is deleted with an app
//! recover      the leases that end
//! docs         docs/rows.md
//! ```
//!
//! A row is declared as `Variant(names of its key) [segments of its key] in field(rest of the key): type { facts }`,
//! below the owner of its place in the image. Rows of an app are below `App`, wherever their keys begin.

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;

use crate::store::PRIVATE;

/// Most bytes of a row with a few short fields.
const SMALL: usize = 4 << 10;

/// Most bytes of a row with the settings of a proc: each instance's assignment repeats them.
const SETTINGS: usize = 16 << 10;

/// Most bytes of a row with texts of any length: addresses, reasons, names of people. An argument has 128 KiB at most.
const TEXTS: usize = 256 << 10;

/// Most bytes of a row with a list that grows with the cluster, a push or a config: what etcd takes in a request.
///
/// Config vars have 1 MiB at most, and 1.4 MB once they are sealed ([`seal::MOST_BYTES`](crate::seal::MOST_BYTES)).
const LISTS: usize = 1536 << 10;

/// Calls a macro with the table.
macro_rules! rows {
    ($make:ident) => {
        $make! {
App(app) {
    /// The app: its owner and its registration; `destroying` once its owner or an operator has destroyed it.
    App(app: AppName) ["apps", app] in app(): One<App> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: WithApp("the last of its rows"),
        unreadable: Restore, operator_mends: true, without_app: Own, recover: Kept
    }
    /// A rev: its slug, its procs, who pushed it. Immutable.
    Rev(app: AppName, rev: RevId) ["apps", app, "revs", rev] in revs(rev): Many<RevId, Rev> {
        writers: &[Rm], pm_reads: false, most_bytes: LISTS, ends: WithApp("once no release refers to it and newer revs have come"),
        unreadable: Restore, operator_mends: true, without_app: Substance, recover: Entered
    }
    /// The settings of a service. The rm registers it, `bazooka` sets it. Its port is obeyed before version 3 alone.
    Proc(app: AppName, proc: ProcName) ["apps", app, "procs", proc] in procs(proc): Many<ProcName, Proc> {
        writers: &[Rm, Developer], pm_reads: false, most_bytes: SETTINGS, ends: WithApp(""),
        unreadable: Restore, operator_mends: true, without_app: Substance, recover: Entered
    }
    /// Config vars, sealed, and links. Immutable, except that an rm seals the plain ones of version 1.
    Env(app: AppName, env: EnvRef) ["apps", app, "envs", env] in envs(env): Many<EnvRef, Env> {
        writers: &[Developer, Rm], pm_reads: false, most_bytes: LISTS, ends: WithApp("once no release refers to it"),
        unreadable: Restore, operator_mends: true, without_app: Substance, recover: Entered
    }
    /// The key of an env, wrapped for each rm; in the first minutes also for hosts.
    Wraps(app: AppName, env: EnvRef) ["private", "wraps", app, env] in wraps(env): Many<EnvRef, Wraps> {
        writers: &[Developer, Rm], pm_reads: false, most_bytes: LISTS, ends: WithApp("with its env"),
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Entered
    }
    /// The key of an env as before version 4: wrapped for each rm and host. An rm moves it.
    EarlierWraps(app: AppName, env: EnvRef) ["wraps", app, env] in earlier_wraps(env): Many<EnvRef, Wraps> {
        writers: &[Developer, Rm], pm_reads: false, most_bytes: LISTS, ends: WithApp("with its env"),
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Entered
    }
    /// The converger's request to wrap the key of an env for another host; an rm answers, or the host that the key names first.
    WrapRequest(host: HostName, app: AppName, env: EnvRef, to: HostName) ["private", "wrapping", host, app, env, to]
    in wrap_requests(host, env, to): Many<(HostName, EnvRef, HostName), WrapRequest> {
        writers: &[Converger, Pm, Rm], pm_reads: false, most_bytes: SMALL, ends: When("the env is handed to that host"),
        unreadable: Useless, operator_mends: false, without_app: OwnRule, recover: Kept
    }
    /// An env for one host, with the wrap for that host alone.
    Handed(host: HostName, app: AppName, env: EnvRef) ["sealed", host, app, env]
    in handed(host, env): Many<(HostName, EnvRef), Handed> {
        writers: &[Converger], pm_reads: true, most_bytes: LISTS, ends: When("no instance on the host runs with it"),
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Kept
    }
    /// The slug that a host serves to another host, for an instance there.
    Serving(host: HostName, app: AppName, id: InstanceId) ["serving", host, app, id]
    in serving(host, id): Many<(HostName, InstanceId), Serving> {
        writers: &[Converger], pm_reads: true, most_bytes: SMALL,
        ends: When("the instance has its slug, or is not wanted any more"),
        unreadable: Useless, operator_mends: true, without_app: OwnRule, recover: Kept
    }
    /// A release: rev, env, who, why; status and cause, which the converger sets.
    Release(app: AppName, release: ReleaseId) ["apps", app, "releases", release]
    in releases(release): Many<ReleaseId, Release> {
        writers: &[Developer, Rm, Converger], pm_reads: false, most_bytes: TEXTS, ends: WithApp("once 50 newer ones have come, if nothing needs it"),
        unreadable: Restore, operator_mends: true, without_app: Substance, recover: Entered
    }
    /// The current release.
    Head(app: AppName) ["apps", app, "head"] in head(): One<Head> {
        writers: &[Rm, Developer, Converger], pm_reads: false, most_bytes: SMALL, ends: WithApp(""),
        unreadable: Restore, operator_mends: true, without_app: Substance, recover: Entered
    }
    /// The release on trial; a push writes it under its lease.
    Trial(app: AppName) ["apps", app, "trial"] in trial(): One<Trial> {
        writers: &[Rm, Developer, Converger], pm_reads: false, most_bytes: SMALL,
        ends: WithApp("once the release is head, or has failed; a push's also with the push"),
        unreadable: Restore, operator_mends: true, without_app: Delete, recover: LeaseEnded
    }
    /// While this row exists, the app's rollout does not go on.
    Pause(app: AppName) ["apps", app, "pause"] in pause(): One<Pause> {
        writers: &[Developer], pm_reads: false, most_bytes: SMALL, ends: WithApp("by `bazooka rollout resume` or `abort`"),
        unreadable: Restore, operator_mends: true, without_app: Delete, recover: Kept
    }
    /// How many instances should run, of head and beside it; requests for restarts.
    Formation(app: AppName, proc: ProcName) ["apps", app, "formation", proc]
    in formation(proc): Many<ProcName, Formation> {
        writers: &[Developer], pm_reads: false, most_bytes: LISTS, ends: WithApp(""),
        unreadable: Restore, operator_mends: true, without_app: Delete, recover: Raised
    }
    /// Where an instance was placed: the index by which `ps` reads the app's rows alone.
    Instance(app: AppName, id: InstanceId) ["apps", app, "instances", id] in instances(id): Many<InstanceId, Instance> {
        writers: &[Converger], pm_reads: false, most_bytes: TEXTS, ends: When("the instance is archived"),
        unreadable: Restore, operator_mends: true, without_app: Substance, recover: Entered
    }
    /// How many instances have no place, and how many hosts refuse them for which reason.
    Pending(app: AppName, proc: ProcName) ["apps", app, "pending", proc] in pending(proc): Many<ProcName, Pending> {
        writers: &[Converger], pm_reads: false, most_bytes: LISTS, ends: WithApp("once each instance has its place"),
        unreadable: Useless, operator_mends: true, without_app: Delete, recover: Kept
    }
    /// How far the app's repository is set up.
    Repo(app: AppName) ["repos", app] in repo(): One<Repo> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: WithApp(""),
        unreadable: Restore, operator_mends: true, without_app: Delete, recover: Kept
    }
    /// The push under way, where several rms share a file storage.
    Turn(app: AppName) ["turns", app] in turn(): One<Turn> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: LeaseEnded
    }
    /// What the file storage has of the repository: each branch, and the manifest's digest. An rm writes it in its turn.
    Stored(app: AppName) ["stored", app] in stored(): One<Stored> {
        writers: &[Rm], pm_reads: false, most_bytes: LISTS, ends: WithApp(""),
        unreadable: Restore, operator_mends: true, without_app: Delete, recover: Kept
    }
    /// The people of an app.
    Access(app: AppName) ["access", app] in access(): One<Access> {
        writers: &[Rm], pm_reads: true, most_bytes: LISTS, ends: WithApp(""),
        unreadable: Restore, operator_mends: false, without_app: Destroy, recover: Kept
    }
    /// An ended instance.
    Ended(app: AppName, proc: ProcName, id: InstanceId) ["history", app, proc, id]
    in history(proc, id): Many<(ProcName, InstanceId), Ended> {
        writers: &[Converger], pm_reads: false, most_bytes: TEXTS,
        ends: WithApp("once 20 newer ones of the service have ended"),
        unreadable: Useless, operator_mends: true, without_app: Delete, recover: Kept
    }
}
Host(host) {
    /// A live host, with its zone and its capacity.
    Host(host: HostName) ["hosts", host] in host(): One<Host> {
        writers: &[Pm], pm_reads: false, most_bytes: TEXTS, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: Present
    }
    /// The slugs whose archives a live host has, and can serve to other hosts.
    Archives(host: HostName) ["archives", host] in archives(): One<Archives> {
        writers: &[Pm], pm_reads: false, most_bytes: TEXTS, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: LeaseEnded
    }
    /// An operator's marks on a host: cordoned, draining; and its zone, address and most capacity, where an operator names them.
    HostMeta(host: HostName) ["hostmeta", host] in meta(): One<HostMeta> {
        writers: &[Operator], pm_reads: false, most_bytes: SMALL, ends: When("an operator forgets the host"),
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Kept
    }
    /// All that a host needs to run an instance; desired state run, drain or stop.
    Assigned(host: HostName, id: InstanceId) ["assigned", host, id] in assigned(id): Many<InstanceId, Assignment> {
        writers: &[Converger], pm_reads: true, most_bytes: LISTS, ends: When("the instance is archived"),
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Entered
    }
    /// What the host reports of an instance; the converger marks it `lost`.
    Status(host: HostName, id: InstanceId) ["status", host, id] in status(id): Many<InstanceId, Status> {
        writers: &[Pm, Converger], pm_reads: false, most_bytes: TEXTS, ends: When("the instance is archived"),
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Entered
    }
}
Cluster() {
    /// `{version, min_reader, min_writer, cluster, restored}`, which every transaction compares.
    Schema ["schema"] in schema(): One<Schema> {
        writers: &[First], pm_reads: true, most_bytes: SMALL, ends: Never,
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Marked
    }
    /// The last instance id that was taken.
    InstanceCounter ["counters", "instance"] in instance_counter(): One<u64> {
        writers: &[Converger], pm_reads: false, most_bytes: SMALL, ends: Never,
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Raised
    }
    /// The last service port that was taken on the way up. Later ones may lie below: `ports/` has all.
    PortCounter ["counters", "port"] in port_counter(): One<u64> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: Never,
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Raised
    }
    /// The service that a port is given to; from `freed_at` on the port rests, and then the row is deleted.
    Port(port: ServicePort) ["ports", port] in ports(port): Many<ServicePort, Port> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: When("an hour has passed since its app was destroyed"),
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Entered
    }
    /// A proxy that serves, with its zone and the revision that HAProxy has applied.
    Proxy(proxy: HostName) ["proxies", proxy] in proxies(proxy): Many<HostName, Proxy> {
        writers: &[Proxy], pm_reads: false, most_bytes: LISTS, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: Present
    }
    /// A bazooka-rm that serves.
    Rm(rm: HostName) ["rms", rm] in rms(rm): Many<HostName, Rm> {
        writers: &[Rm], pm_reads: true, most_bytes: TEXTS, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: Present
    }
    /// The secret with which developers ask that rm for vars, in a cluster without identities.
    Ask(rm: HostName) ["private", "asks", rm] in asks(rm): Many<HostName, Ask> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: Leased,
        unreadable: Rewritten, operator_mends: false, without_app: OwnRule, recover: LeaseEnded
    }
    /// The same secret where `bazooka` before version 4 looks for it.
    EarlierAsk(rm: HostName) ["asks", rm] in earlier_asks(rm): Many<HostName, Ask> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: LeaseEnded
    }
    /// A domain of an app.
    Domain(domain: Domain) ["domains", domain] in domains(domain): Many<Domain, DomainRecord> {
        writers: &[Rm], pm_reads: false, most_bytes: SMALL, ends: When("`bazooka check --repair` finds its app gone"),
        unreadable: Restore, operator_mends: true, without_app: OwnRule, recover: Kept
    }
    /// The elected converger.
    Leader ["election", "converger"] in leader(): One<Leader> {
        writers: &[Candidate], pm_reads: false, most_bytes: LISTS, ends: Leased,
        unreadable: Rewritten, operator_mends: true, without_app: OwnRule, recover: LeaseEnded
    }
    /// An operator's acknowledgement that the named hosts are gone for good.
    Unfreeze ["unfreeze"] in unfreeze(): One<Unfreeze> {
        writers: &[Operator, Converger], pm_reads: false, most_bytes: LISTS,
        ends: When("each host that it names has returned or has no instances left"),
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Kept
    }
    /// A person or a daemon that takes part, and whether as operator.
    Admission(who: Identity) ["identities", who] in identities(who): Many<Identity, Admission> {
        writers: &[Rm], pm_reads: true, most_bytes: SMALL, ends: When("an operator expels the identity"),
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Kept
    }
    /// Who did what; in the image by its id and so by time.
    Audit(who: Identity, entry: AuditId) ["audit", who, entry]
    in audit(entry, who): Many<(AuditId, Identity), AuditEntry> {
        writers: &[Author], pm_reads: false, most_bytes: SMALL, ends: When("the rm deletes old and too many entries"),
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Kept
    }
    /// The SSH keys with which a person pushes.
    SshKeys(user: UserName) ["keys", user] in ssh_keys(user): Many<UserName, SshKeys> {
        writers: &[Rm], pm_reads: false, most_bytes: LISTS, ends: When("the person has no key left"),
        unreadable: Restore, operator_mends: false, without_app: OwnRule, recover: Kept
    }
    /// The figures of one day.
    Day(day: Day) ["stats", day] in days(day): Many<Day, DayStats> {
        writers: &[Converger], pm_reads: false, most_bytes: LISTS, ends: When("400 days have passed"),
        unreadable: Useless, operator_mends: true, without_app: OwnRule, recover: Continued
    }
}
        }
    };
}
pub(crate) use rows;

/// The facts about a row that the table declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The kind of row.
    pub kind: RowKind,
    /// The segments of its key, between slashes.
    pub key: &'static [Segment],
    /// The row's content, in words.
    pub holds: &'static str,
    /// The owner of its place in the image.
    pub owner: Owner,
    /// The writers.
    pub writers: &'static [Writer],
    /// True if a pm may read it although it does not write it. Everyone but pms may read every row that is not private.
    pub pm_reads: bool,
    /// The most bytes of its value.
    pub most_bytes: usize,
    /// When it is deleted.
    pub ends: Ends,
    /// The remedy for a value that cannot be read.
    pub unreadable: Unreadable,
    /// True if an operator may write it, so that `bazooka check --repair` can mend it.
    pub operator_mends: bool,
    /// The verdict of `check` if its app has no row.
    pub without_app: WithoutApp,
    /// The effect of a recovery from a backup.
    pub recover: Recover,
}

/// A segment of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A fixed word.
    Word(&'static str),
    /// A name that differs from row to row; the text says which.
    Name(&'static str),
}

/// The owner of a row's place in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The app that the key names.
    App,
    /// The host that the key names.
    Host,
    /// The cluster as a whole.
    Cluster,
}

/// A writer of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The first part of the cluster that starts, and `bazooka migrate`.
    First,
    /// bazooka-rm.
    Rm,
    /// The elected converger.
    Converger,
    /// A converger that stands for election.
    Candidate,
    /// The pm of the host that the key names.
    Pm,
    /// The proxy that the key names.
    Proxy,
    /// The people of the app that the key names, by `bazooka`.
    Developer,
    /// An operator.
    Operator,
    /// The identity that the key names.
    Author,
}

/// When a row is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Never.
    Never,
    /// With its app at the latest; the text says what may delete it earlier.
    WithApp(&'static str),
    /// With the lease of the daemon that wrote it, which is always bound to one.
    Leased,
    /// Once this is so.
    When(&'static str),
}

/// The remedy for a value that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A person writes it as it was in the last backup.
    Restore,
    /// The daemon writes it anew when it restarts.
    Rewritten,
    /// The row is only a report, and nothing depends on it.
    Useless,
}

/// The verdict of `check` on a row whose app has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutApp {
    /// The app's own row.
    Own,
    /// The app is more than leftovers, so a person decides.
    Substance,
    /// A leftover, which is deleted.
    Delete,
    /// Only the destruction of the app deletes it.
    Destroy,
    /// No row of an app, or one that another rule covers.
    OwnRule,
}

/// The effect of a recovery from a backup on a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recover {
    /// The row stays as the backup has it.
    Kept,
    /// The row is entered as the hosts have it.
    Entered,
    /// The value is raised above all that may have been used since, or to what runs.
    Raised,
    /// The count goes on from the raised counter.
    Continued,
    /// The row says when the cluster was restored.
    Marked,
    /// The row is written again under a lease of the recovery until its daemon returns; its own lease is ended.
    Present,
    /// The lease is ended, so that the row goes.
    LeaseEnded,
}

impl Row {
    /// Reports whether only rms, convergers and the row's writers may read it.
    pub fn is_private(&self) -> bool {
        matches!(self.key[0], Segment::Word(word) if PRIVATE.strip_suffix('/') == Some(word))
    }
}

impl Ends {
    /// Reports whether the row goes with its app.
    pub fn is_with_app(self) -> bool {
        matches!(self, Ends::WithApp(_))
    }
}

impl Recover {
    /// Reports whether the lease of the row is ended.
    pub fn ends_lease(self) -> bool {
        matches!(self, Recover::Present | Recover::LeaseEnded)
    }
}

impl RowKind {
    /// Returns the facts about rows of this kind.
    pub fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }
}

macro_rules! facts {
    ($($owner:ident $of:tt { $(
        $(#[doc = $holds:literal])+
        $kind:ident $(($($name:ident: $type:ty),+))? [$($segment:tt),+] in $field:ident $at:tt: $shape:ty {
            $($facts:tt)*
        }
    )+ })+) => {
        /// The kinds of rows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RowKind {
            $($($(#[doc = $holds])+ $kind,)+)+
        }

        /// All rows, in the order of [`RowKind`].
        pub static ROWS: &[Row] = {
            use self::{
                Ends::{Leased, Never, When, WithApp},
                Recover::{Continued, Entered, Kept, LeaseEnded, Marked, Present, Raised},
                Unreadable::{Restore, Rewritten, Useless},
                WithoutApp::{Delete, Destroy, Own, OwnRule, Substance},
                Writer::*,
            };
            &[$($(Row {
                kind: RowKind::$kind,
                key: &[$(key_segment!($segment)),+],
                holds: concat!($($holds),+),
                owner: Owner::$owner,
                $($facts)*
            },)+)+]
        };
    };
}

macro_rules! key_segment {
    ($word:literal) => {
        Segment::Word($word)
    };
    ($name:ident) => {
        Segment::Name(stringify!($name))
    };
}

rows!(facts);
