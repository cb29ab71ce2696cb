//! The plan of a recovery: from the restored rows and the hosts' answers to the changes and the report.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Found, REVISIONS_ABOVE,
    disputes::{Disputes, disputes},
    present,
};
use crate::{
    keys::Key,
    names::{AppName, EnvRef, HostName, InstanceId, ProcName, ReleaseId, ServicePort},
    ports::{PortBook, SERVICE_PORT_BASE, SERVICE_PORT_LAST},
    schema::{
        Assignment, DayStats, Desired, Env, Extra, Formation, Handed, Head, Instance, Proc, Proxy, Release,
        ReleaseStatus, Rev, Schema, Wraps,
    },
    snapshot::{AppView, Snapshot, Versioned},
    store::{LeaseId, Revision},
    transitions::{
        envs::{EMPTY_ENV, key_of_wraps},
        ports,
    },
    visor::Change,
};

/// The number of ids that may have been given, since the backup, to instances that no host reports.
const IDS_ABOVE: u64 = 10_000;

/// The number of ports that may have been given since the backup.
const PORTS_ABOVE: u64 = 100;

/// The name that rows made by a recovery have in `by`.
const BY: &str = "recover";

/// A planned recovery.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Recovery {
    /// The report of what was entered, was changed or cannot be entered, a line each.
    pub report: Vec<String>,
    /// The tasks left to a person, a line each.
    pub by_hand: Vec<String>,
    /// The changes in order, each guarded on the rows that it was planned from.
    #[serde(skip)]
    pub changes: Vec<Change>,
    /// The leases of daemons in the backup; they are ended, so that each daemon registers again.
    #[serde(skip)]
    pub ended_leases: BTreeSet<LeaseId>,
    /// The revision above which the store's must be raised.
    #[serde(skip)]
    pub revision_above: Revision,
}

impl Recovery {
    fn tell(&mut self, line: String) {
        self.report.push(line);
    }

    fn ask(&mut self, line: String) {
        self.by_hand.push(line);
    }
}

/// The moment of the recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before any other program reaches the restored coordinator. The lease is for the rows of the backup's daemons.
    Restored(LeaseId),
    /// After the coordinator is in use again. Only instances that hosts keep are entered, or ended where the app is not
    /// known; the first recovery has done all else.
    Late {
        /// True to end instances that cannot be entered.
        end_unknown: bool,
    },
}

/// Plans a recovery.
///
/// `found` has the answer of each host that answered; `now` becomes the time that names this restoration.
pub fn plan(snapshot: &Snapshot, found: &[Found], moment: Moment, now: Timestamp) -> Recovery {
    let mut recovery = Recovery::default();
    let late = matches!(moment, Moment::Late { .. });
    if !late {
        hosts(snapshot, found, &mut recovery);
    }
    let mut apps: BTreeMap<&AppName, Vec<Live<'_>>> = BTreeMap::new();
    for host in found {
        let live = host.instances.iter().filter(|(_, i)| !i.status.state.is_final() && (i.held || !late));
        for (id, instance) in live {
            let live = Live { host: &host.name, id: *id, assignment: &instance.assignment, of: host };
            apps.entry(&instance.assignment.app).or_default().push(live);
        }
    }
    leave_disputed(snapshot, &mut apps, &mut recovery);
    let mut last_port = last_port(snapshot);
    for (name, live) in &apps {
        match snapshot.apps.get(*name).filter(|view| view.app.is_some()) {
            Some(view) => take_up(snapshot, name, view, live, &mut last_port, now, &mut recovery),
            None if moment == (Moment::Late { end_unknown: true }) => {
                live.iter().for_each(|one| end(name, one, &mut recovery));
            }
            None => {
                for one in live {
                    recovery.ask(format!(
                        "{}: {} {} of app '{name}' runs, and the backup doesn't know the app: its host keeps it, \
                         without requests; `bazooka init {name}` and a push bring the app back, and \
                         `bazooka recover --late --end-unknown` ends what its hosts keep",
                        one.host, one.assignment.proc, one.id
                    ));
                }
            }
        }
    }
    if let Moment::Restored(lease) = moment {
        counters(snapshot, found, last_port, &mut recovery);
        presence(snapshot, found, lease, &mut recovery);
        mark(snapshot, now, &mut recovery);
        let seen = found.iter().map(|host| host.seen).chain([snapshot.revision]).max().unwrap_or(0);
        recovery.revision_above = seen + REVISIONS_ABOVE;
    }
    recovery
}

/// Takes out the instances about which there are contradictions, by rule 7.
fn leave_disputed(
    snapshot: &Snapshot,
    apps: &mut BTreeMap<&AppName, Vec<Live<'_>>>,
    recovery: &mut Recovery,
) {
    let mut taken: BTreeMap<InstanceId, BTreeSet<&HostName>> = BTreeMap::new();
    for one in apps.values().flatten() {
        taken.entry(one.id).or_default().insert(one.host);
    }
    for (name, live) in apps.iter_mut() {
        let Disputes { instances, told } = disputes(name, snapshot.apps.get(*name), live, &taken);
        live.retain(|one| !instances.contains(&(one.host.clone(), one.id)));
        for words in told {
            recovery.ask(format!(
                "{words}: none of these is entered, their hosts keep them, without requests; find out which host is \
                 wrong and end what it runs, then: bazooka recover --late"
            ));
        }
    }
}

/// An instance that runs, or is about to.
pub(super) struct Live<'a> {
    pub(super) host: &'a HostName,
    pub(super) id: InstanceId,
    pub(super) assignment: &'a Assignment,
    of: &'a Found,
}

impl Live<'_> {
    /// Reports whether it is meant to run and is not on trial.
    fn counts(&self) -> bool {
        self.assignment.desired == Desired::Run && !self.assignment.trial
    }
}

/// Adds the end of an instance that its host keeps and whose app does not exist.
fn end(name: &AppName, one: &Live<'_>, recovery: &mut Recovery) {
    let key = Key::Assigned(one.host.clone(), one.id);
    let reason = Some("its app isn't known".to_owned());
    let row = Assignment { desired: Desired::Stop, reason, ..one.assignment.clone() };
    let change = Change::new().absent(&Key::App(name.clone())).absent(&key).put(&key, &row);
    recovery.changes.push(change);
    recovery.tell(format!("{}: {} {} of app '{name}' is ended", one.host, one.assignment.proc, one.id));
    recovery.ask("once they have ended: `bazooka check --repair` takes their rows away".into());
}

/// Applies rules 1 and 2 to each host that answered.
fn hosts(snapshot: &Snapshot, found: &[Found], recovery: &mut Recovery) {
    for host in found {
        let view = snapshot.hosts.get(&host.name);
        let is_live = |id: &InstanceId| host.instances.get(id).is_some_and(|i| !i.status.state.is_final());
        let known = view.into_iter().flat_map(|view| view.assigned.iter());
        for (id, row) in known.filter(|(id, _)| !is_live(id)) {
            let status = view.and_then(|view| view.status.get(id));
            let (key, said) = (Key::Assigned(host.name.clone(), *id), Key::Status(host.name.clone(), *id));
            let index = Key::Instance(row.app.clone(), *id);
            let change = Change::new().as_read(&key, Some(row)).as_read(&said, status).delete(&key);
            recovery.changes.push(change.delete(&said).delete(&index));
            recovery.tell(format!("{}: {} {id} of {} ended after the backup", host.name, row.proc, row.app));
        }
    }
    for (name, view) in &snapshot.hosts {
        if view.assigned.is_empty() || found.iter().any(|host| host.name == *name) {
            continue;
        }
        // These addresses may belong to other instances by now, so nothing is routed there until the host reports
        // again.
        for (id, row) in &view.status {
            let key = Key::Status(name.clone(), *id);
            recovery.changes.push(Change::new().as_read(&key, Some(row)).delete(&key));
        }
        recovery.ask(format!(
            "{name} didn't answer: {} instances of the backup wait for it, and what it runs beside is kept by it, \
             without requests; once it is back: `bazooka recover --late --host URL`",
            view.assigned.len()
        ));
    }
}

#[allow(clippy::too_many_lines, reason = "one app's rows, one after the other")]
fn take_up(
    snapshot: &Snapshot,
    name: &AppName,
    view: &AppView,
    live: &[Live<'_>],
    last_port: &mut u64,
    now: Timestamp,
    recovery: &mut Recovery,
) {
    let newer: BTreeSet<ReleaseId> = live
        .iter()
        .map(|one| one.assignment.release)
        .filter(|release| !view.releases.contains_key(release))
        .collect();
    let head = new_head(view, live);
    revs(name, view, live, now, recovery);
    envs(name, view, live, now, recovery);
    for release in &newer {
        let one = live.iter().find(|one| one.assignment.release == *release).map(|one| one.assignment);
        let Some(Assignment { rev, env, .. }) = one else { continue };
        let is_head = head == Some(*release);
        let key = Key::Release(name.clone(), *release);
        let row = Release {
            rev: rev.clone(),
            env: *env,
            by: BY.into(),
            at: now,
            reason: "found running after the backup".into(),
            status: if is_head { ReleaseStatus::Released } else { ReleaseStatus::Beside },
            cause: None,
            token: format!("recover-{now}-{release}"),
            extra: Extra::new(),
        };
        recovery.changes.push(Change::new().absent(&key).put(&key, &row));
        let stays = if is_head { "it is head now" } else { "it stays beside head, until it is scaled to 0" };
        recovery
            .tell(format!("{name}: {release} ({}, {env}) is newer than the backup: {stays}", rev.short()));
    }
    if let Some(head) = head {
        move_head(name, view, head, recovery);
    }
    for one in live {
        instance(snapshot, name, view, one, now, recovery);
    }
    let head = head.or(view.head.as_ref().map(|head| head.release));
    counts(name, view, live, head, &newer, recovery);
    let procs: BTreeSet<&ProcName> = live.iter().map(|one| &one.assignment.proc).collect();
    for proc in procs.into_iter().filter(|proc| !view.procs.contains_key(*proc)) {
        let Some(one) = live.iter().find(|one| one.assignment.proc == *proc) else { continue };
        let Some(app) = &view.app else { continue };
        let book = PortBook::of(snapshot);
        let given = book.given(name, proc);
        let Some(port) = given.or_else(|| book.free(*last_port).next()) else {
            recovery.ask(format!("{name}: {proc} is newer than the backup, and no port is left for it"));
            continue;
        };
        let own = Key::Proc(name.clone(), proc.clone());
        let row = Proc { run: one.assignment.run.clone(), ..Proc::new(proc, port) };
        let mut change = Change::new().absent(&own).put(&own, &row);
        if given.is_none() {
            *last_port = (*last_port).max(u64::from(port));
            let key = Key::Port(ServicePort(port));
            let row = ports::row(name, app, proc, now);
            change = change.as_read(&Key::App(name.clone()), Some(app)).absent(&key).put(&key, &row);
        }
        recovery.changes.push(change);
        recovery.ask(format!(
            "{name}: {proc} is newer than the backup; its port is {port} now, whatever it was before"
        ));
    }
}

/// Returns the release to which head moves: the one that most instances run, if it is newer than head.
fn new_head(view: &AppView, live: &[Live<'_>]) -> Option<ReleaseId> {
    let mut of: BTreeMap<ReleaseId, usize> = BTreeMap::new();
    live.iter()
        .filter(|one| one.counts())
        .for_each(|one| *of.entry(one.assignment.release).or_default() += 1);
    let (most, _) = of.into_iter().max_by_key(|(release, n)| (*n, *release))?;
    let before = view.head.as_ref().map(|head| head.release);
    let beside = view.formation.values().any(|row| row.beside.contains_key(&most));
    (before.is_none_or(|before| most > before) && !beside).then_some(most)
}

fn move_head(name: &AppName, view: &AppView, release: ReleaseId, recovery: &mut Recovery) {
    let key = Key::Head(name.clone());
    let extra = view.head.as_ref().map(|head| head.extra.clone()).unwrap_or_default();
    let mut change = Change::new().as_read(&key, view.head.as_ref()).put(&key, &Head { release, extra });
    // The release was on trial at the backup, and was verified since.
    if let Some(row) = view.releases.get(&release).filter(|row| row.status != ReleaseStatus::Released) {
        let own = Key::Release(name.clone(), release);
        let after = Release { status: ReleaseStatus::Released, cause: None, ..row.value.clone() };
        change = change.as_read(&own, Some(row)).put(&own, &after);
        recovery.tell(format!("{name}: {release} was being tried, and runs: it is head now"));
    }
    if let Some(trial) = &view.trial {
        let trial_key = Key::Trial(name.clone());
        change = change.as_read(&trial_key, Some(trial)).delete(&trial_key);
    }
    recovery.changes.push(change);
}

/// Adds the revs that only hosts know, each with the procs that run.
fn revs(name: &AppName, view: &AppView, live: &[Live<'_>], now: Timestamp, recovery: &mut Recovery) {
    let mut made: BTreeMap<_, Rev> = BTreeMap::new();
    for Live { assignment, .. } in live.iter().filter(|one| !view.revs.contains_key(&one.assignment.rev)) {
        let rev = made.entry(&assignment.rev).or_insert_with(|| Rev {
            slug: assignment.slug.clone(),
            procs: BTreeMap::new(),
            kind: "found".into(),
            by: BY.into(),
            at: now,
            subject: "found running after the backup".into(),
            extra: Extra::new(),
        });
        rev.procs.insert(assignment.proc.clone(), assignment.command.clone());
    }
    for (id, rev) in made {
        let key = Key::Rev(name.clone(), id.clone());
        let procs: Vec<&str> = rev.procs.keys().map(ProcName::as_str).collect();
        recovery.ask(format!(
            "{name}: of rev {} only what runs is known ({}): push again for the rest of its Procfile",
            id.short(),
            procs.join(", ")
        ));
        recovery.changes.push(Change::new().absent(&key).put(&key, &rev));
    }
}

/// Adds the config vars that only hosts have.
fn envs(name: &AppName, view: &AppView, live: &[Live<'_>], now: Timestamp, recovery: &mut Recovery) {
    let wanted: BTreeSet<EnvRef> = live.iter().map(|one| one.assignment.env).collect();
    for env in wanted.into_iter().filter(|env| *env != EMPTY_ENV && !view.envs.contains_key(env)) {
        let of_hosts = live.iter().flat_map(|one| &one.of.envs);
        let token = view.app.as_ref().map(|app| &app.token);
        // Vars of an earlier app of the same name open for nobody any more.
        let is_own = |handed: &Handed| handed.registration.is_none() || handed.registration.as_ref() == token;
        let all: Vec<_> = of_hosts
            .filter(|found| found.app == *name && found.env == env && is_own(&found.handed))
            .collect();
        let Some(first) = all.first() else {
            recovery.ask(format!(
                "{name}: no host has its config vars {env}: set them anew before it is restarted"
            ));
            continue;
        };
        let own = Key::Env(name.clone(), env);
        let wraps_key = key_of_wraps(name, env, Some(&first.handed.sealed));
        let sealed = Some(first.handed.sealed.clone());
        let links = first.handed.links.clone();
        let row = Env { sealed, vars: None, links, by: BY.into(), at: now, extra: Extra::new() };
        let mut wraps = Wraps::default();
        for found in &all {
            wraps.hosts.insert(found.handed.to.clone(), found.handed.key.clone());
            wraps.rms.extend(found.rms.clone());
        }
        if wraps.rms.is_empty() {
            recovery.ask(format!("{name}: its config vars {env} run, but no bazooka-rm can read them"));
        }
        let change = Change::new().absent(&own).absent(&wraps_key).put(&own, &row).put(&wraps_key, &wraps);
        recovery.changes.push(change);
        recovery.tell(format!("{name}: config vars {env} are newer than the backup"));
    }
}

fn instance(
    snapshot: &Snapshot,
    name: &AppName,
    view: &AppView,
    one: &Live<'_>,
    now: Timestamp,
    recovery: &mut Recovery,
) {
    let Live { host, id, assignment, of } = one;
    let (key, said) = (Key::Assigned((*host).clone(), *id), Key::Status((*host).clone(), *id));
    let index = Key::Instance(name.clone(), *id);
    let before = snapshot.hosts.get(*host).and_then(|host| host.assigned.get(id));
    let status = snapshot.hosts.get(*host).and_then(|host| host.status.get(id));
    let found = &of.instances[id];
    let row = view.instances.get(id);
    let after = Instance {
        host: (*host).clone(),
        proc: assignment.proc.clone(),
        release: assignment.release,
        rev: assignment.rev.clone(),
        index: assignment.index,
        placed_at: row.map_or(found.status.started_at.unwrap_or(now), |row| row.placed_at),
        reason: row.map_or_else(|| "found running after the backup".into(), |row| row.reason.clone()),
        extra: row.map_or_else(Extra::new, |row| row.extra.clone()),
    };
    let mut change = Change::new().as_read(&key, before).as_read(&said, status).as_read(&index, row);
    if before.is_none_or(|before| before.value != **assignment) {
        change = change.put(&key, assignment);
    }
    if row.is_none_or(|row| row.value != after) {
        change = change.put(&index, &after);
    }
    change = change.put(&said, &found.status);
    if before.is_none() {
        recovery.tell(format!(
            "{host}: {} {id} of {name} ({}) is newer than the backup: taken up",
            assignment.proc, assignment.release
        ));
    }
    recovery.changes.push(change);
}

/// Raises counts, by rule 4.
fn counts(
    name: &AppName,
    view: &AppView,
    live: &[Live<'_>],
    head: Option<ReleaseId>,
    newer: &BTreeSet<ReleaseId>,
    recovery: &mut Recovery,
) {
    let mut of: BTreeMap<&ProcName, BTreeMap<ReleaseId, u32>> = BTreeMap::new();
    for one in live.iter().filter(|one| one.assignment.desired == Desired::Run) {
        *of.entry(&one.assignment.proc).or_default().entry(one.assignment.release).or_default() += 1;
    }
    let procs: BTreeSet<&ProcName> = of.keys().copied().chain(view.formation.keys()).collect();
    for proc in procs {
        let before = view.formation.get(proc);
        let mut after: Formation = before.map(|row| row.value.clone()).unwrap_or_default();
        for (release, n) in of.get(proc).into_iter().flatten() {
            if Some(*release) == head {
                after.count = after.count.max(*n);
            } else if newer.contains(release) || after.beside.contains_key(release) {
                let beside = after.beside.entry(*release).or_default();
                *beside = (*beside).max(*n);
            }
        }
        let runs = head.and_then(|head| of.get(proc)?.get(&head).copied()).unwrap_or(0);
        if after.count > runs && before.is_some() {
            recovery.ask(format!(
                "{name}: the backup wants {} of {proc}, and {runs} run: the others are started; scale it if it was \
                 scaled down since",
                after.count
            ));
        }
        if before.is_none_or(|before| before.value != after) {
            let key = Key::Formation(name.clone(), proc.clone());
            if before.map(|row| row.count) != Some(after.count) {
                let was = before.map_or(0, |row| row.count);
                recovery.tell(format!(
                    "{name}: {proc} was scaled from {was} to {} after the backup",
                    after.count
                ));
            }
            recovery.changes.push(Change::new().as_read(&key, before).put(&key, &after));
        }
    }
}

fn last_port(snapshot: &Snapshot) -> u64 {
    let given = snapshot.ports.keys().map(|port| u64::from(port.0));
    let named = snapshot.apps.values().flat_map(|view| view.procs.values().map(|proc| u64::from(proc.port)));
    let named = named.filter(|_| !PortBook::of(snapshot).is_strict());
    let counter = snapshot.port_counter.as_ref().map_or(u64::from(SERVICE_PORT_BASE), |row| row.value);
    given.chain(named).chain([counter]).max().unwrap_or(counter)
}

/// Raises counters, by rule 5.
fn counters(snapshot: &Snapshot, found: &[Found], last_port: u64, recovery: &mut Recovery) {
    let told = found.iter().flat_map(|host| host.instances.keys().map(|id| id.0));
    let counter = snapshot.instance_counter.as_ref();
    let last = told.chain(counter.map(|row| row.value)).max().unwrap_or(0) + IDS_ABOVE;
    let key = Key::InstanceCounter;
    recovery.changes.push(Change::new().as_read(&key, counter).put(&key, &last));
    // The skipped ids were never started, so the day must not count them.
    let day = snapshot.days.iter().rfind(|(_, row)| row.last_instance.is_some());
    if let Some((day, row)) = day {
        let (key, after) = (Key::Day(*day), DayStats { last_instance: Some(last), ..row.value.clone() });
        recovery.changes.push(Change::new().as_read(&key, Some(row)).put(&key, &after));
    }
    let (key, before) = (Key::PortCounter, snapshot.port_counter.as_ref());
    let end = u64::from(SERVICE_PORT_LAST);
    let last = if last_port + PORTS_ABOVE <= end { last_port + PORTS_ABOVE } else { last_port };
    recovery.changes.push(Change::new().as_read(&key, before).put(&key, &last));
}

/// Restores presence, by rule 6.
fn presence(snapshot: &Snapshot, found: &[Found], lease: LeaseId, recovery: &mut Recovery) {
    for host in found {
        recovery.changes.push(present(&Key::Host(host.name.clone()), &host.host, lease));
    }
    for (name, view) in &snapshot.hosts {
        let Some(row) = &view.host else { continue };
        if !found.iter().any(|host| host.name == *name) {
            recovery.changes.push(present(&Key::Host(name.clone()), &row.value, lease));
        }
    }
    for (name, row) in &snapshot.proxies {
        // Draining waits until the proxy reports anew what it has applied.
        let row = Proxy { applied: 0, ..row.value.clone() };
        recovery.changes.push(present(&Key::Proxy(name.clone()), &row, lease));
    }
    for (name, row) in &snapshot.rms {
        recovery.changes.push(present(&Key::Rm(name.clone()), &row.value, lease));
    }
    let leased = snapshot.rows(|kind| kind.row().recover.ends_lease());
    let mut ended: BTreeSet<LeaseId> = leased.into_iter().filter_map(|(_, row)| row.lease).collect();
    ended.remove(&lease);
    recovery.ended_leases = ended;
}

/// Marks the coordinator as restored, so that hosts do not end older instances for lack of an assignment.
fn mark(snapshot: &Snapshot, now: Timestamp, recovery: &mut Recovery) {
    let before: Option<&Versioned<Schema>> = snapshot.schema.as_ref();
    let after = Schema { restored: Some(now), ..before.map(|row| row.value.clone()).unwrap_or_default() };
    let key = Key::Schema;
    // This comes last, because every other change is guarded on the schema as it was read.
    recovery.changes.push(Change::new().as_read(&key, before).put(&key, &after));
}
