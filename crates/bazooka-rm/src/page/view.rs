//! The content of the page: a cluster at one revision.
//!
//! Owns the choice and the order of the content. Pure. Never contains a config var, nor any output of an instance
//! except the cause of its end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use visor::{
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, ZoneName},
    ports::PortBook,
    progress::{self, Observed, Verdict, progress},
    rules::usage::Used,
    schema::{Ended, Fault, Release, ReleaseStatus, State},
    snapshot::{AppView, HostView, Snapshot},
    store::Revision,
};

/// The number of events shown.
const EVENTS: usize = 40;

/// The number of a host's instances that are drawn one by one.
const DRAWN: usize = 200;

/// A cluster at one revision.
#[derive(Debug, PartialEq, Serialize)]
pub struct View {
    /// When the view was made.
    pub at: Timestamp,
    /// The revision.
    pub revision: Revision,
    /// The missing part that keeps desired state from being applied, in words.
    pub missing: Option<String>,
    /// The zones with their hosts.
    pub zones: Vec<Zone>,
    /// The apps.
    pub apps: Vec<App>,
    /// The proxies, rms and convergers.
    pub daemons: Vec<Daemon>,
    /// The latest events, newest first.
    pub events: Vec<Event>,
}

/// A zone. The zone without a name has the hosts that are gone.
#[derive(Debug, PartialEq, Serialize)]
pub struct Zone {
    name: Option<ZoneName>,
    hosts: Vec<Host>,
}

/// A host.
#[derive(Debug, PartialEq, Serialize)]
pub struct Host {
    name: HostName,
    state: &'static str,
    instances: Vec<Instance>,
    /// The number of instances that are not in `instances`.
    more: usize,
    used: u32,
    capacity: Option<u32>,
    memory_used_bytes: u64,
    memory_bytes: Option<u64>,
    isolation: Option<String>,
}

/// An instance.
#[derive(Debug, PartialEq, Serialize)]
pub struct Instance {
    id: InstanceId,
    app: AppName,
    proc: ProcName,
    release: ReleaseId,
    state: &'static str,
}

/// An app.
#[derive(Debug, PartialEq, Serialize)]
pub struct App {
    name: AppName,
    owner: String,
    head: Option<Head>,
    procs: Vec<Proc>,
    /// The running change of the app, in words.
    rollout: Option<String>,
}

/// An app's current release.
#[derive(Debug, PartialEq, Serialize)]
pub struct Head {
    release: ReleaseId,
    rev: String,
    by: String,
    at: Timestamp,
    reason: String,
}

/// A service.
#[derive(Debug, PartialEq, Serialize)]
pub struct Proc {
    name: ProcName,
    port: u16,
    wanted: u32,
    running: u32,
    /// The verdict: `ok`, `paused`, `underway` or `stuck`.
    verdict: &'static str,
    /// The obstacle, in words.
    cause: Option<String>,
}

/// A daemon that is not a host's.
#[derive(Debug, PartialEq, Serialize)]
pub struct Daemon {
    kind: &'static str,
    name: String,
    version: String,
    note: Option<String>,
}

/// An event.
#[derive(Debug, PartialEq, Serialize)]
pub struct Event {
    at: Timestamp,
    app: AppName,
    /// The mood: `good`, `bad` or `plain`.
    mood: &'static str,
    text: String,
}

/// Returns the page's view of an image.
pub fn view(snapshot: &Snapshot, now: Timestamp) -> View {
    View {
        at: now,
        revision: snapshot.revision,
        missing: progress::missing(snapshot),
        zones: zones(snapshot),
        apps: snapshot.apps.iter().filter_map(|(name, view)| app(snapshot, name, view)).collect(),
        daemons: daemons(snapshot),
        events: events(snapshot),
    }
}

fn zones(snapshot: &Snapshot) -> Vec<Zone> {
    let mut zones: BTreeMap<Option<ZoneName>, Vec<Host>> = BTreeMap::new();
    for (name, view) in &snapshot.hosts {
        let meta = view.meta.as_ref();
        let here = view.host.as_ref();
        let state = match here {
            None => "gone",
            Some(_) if meta.is_some_and(|meta| meta.draining) => "draining",
            Some(_) if meta.is_some_and(|meta| meta.cordoned) => "cordoned",
            Some(_) => "up",
        };
        if here.is_none() && view.assigned.is_empty() && view.status.is_empty() {
            continue;
        }
        let mut instances = instances(view);
        let more = instances.len().saturating_sub(DRAWN);
        instances.truncate(DRAWN);
        let used = Used::of(view);
        zones.entry(here.map(|host| host.zone.clone())).or_default().push(Host {
            name: name.clone(),
            state,
            instances,
            more,
            used: used.instances,
            capacity: here.map(|host| host.capacity.instances),
            memory_used_bytes: used.memory_bytes,
            memory_bytes: here.map(|host| host.capacity.memory_bytes),
            isolation: here.map(|host| host.isolation.clone()),
        });
    }
    zones.into_iter().map(|(name, hosts)| Zone { name, hosts }).collect()
}

/// Returns a host's assigned instances, those of a service next to each other.
fn instances(view: &HostView) -> Vec<Instance> {
    let mut all: Vec<Instance> = view
        .assigned
        .iter()
        .map(|(id, assigned)| Instance {
            id: *id,
            app: assigned.app.clone(),
            proc: assigned.proc.clone(),
            release: assigned.release,
            state: view.status.get(id).map_or("placed", |status| status.state.word()),
        })
        .collect();
    all.sort_by(|a, b| (&a.app, &a.proc, a.id).cmp(&(&b.app, &b.proc, b.id)));
    all
}

fn app(snapshot: &Snapshot, name: &AppName, view: &AppView) -> Option<App> {
    let row = view.app.as_ref()?;
    let observed = Observed::of(snapshot, name);
    let book = PortBook::of(snapshot);
    let port = |proc: &ProcName| book.port(name, proc).unwrap_or(0);
    let procs: Vec<Proc> = view.procs.keys().map(|proc| service(view, &observed, proc, port(proc))).collect();
    let head = view.head_release().map(|(release, row)| Head {
        release,
        rev: row.rev.short().to_owned(),
        by: row.by.clone(),
        at: row.at,
        reason: row.reason.clone(),
    });
    let rollout = if row.destroying {
        Some("is being destroyed".to_owned())
    } else if let Some(trial) = &view.trial {
        Some(format!("{} is being tried", trial.release))
    } else if view.pause.is_some() {
        Some("rollouts are paused".to_owned())
    } else {
        rolling(view)
    };
    Some(App { name: name.clone(), owner: row.owner.clone(), head, procs, rollout })
}

/// Reports in words how many instances of earlier releases are left, if head has not replaced all of them.
fn rolling(view: &AppView) -> Option<String> {
    let (head, _) = view.head_release()?;
    let beside: BTreeSet<ReleaseId> =
        view.formation.values().flat_map(|row| row.beside.keys().copied()).collect();
    let of_others = |release: &ReleaseId| *release != head && !beside.contains(release);
    let old = view.instances.values().filter(|row| of_others(&row.release)).count();
    (old > 0).then(|| format!("{head} takes over; {old} of earlier releases are left"))
}

fn service(view: &AppView, observed: &Observed<'_>, proc: &ProcName, port: u16) -> Proc {
    let progress = progress(view, observed, proc);
    let failing = progress.failing.first().map(|(id, cause)| format!("instance {id}: {cause}"));
    let pending = progress.pending.as_ref().map(|pending| {
        let n = pending.short;
        format!("no place for {n}: {}", pending.reason)
    });
    let (verdict, cause) = match &progress.verdict {
        Verdict::Converged => ("ok", None),
        Verdict::Paused => ("paused", pending),
        Verdict::Underway => ("underway", failing.or(pending)),
        Verdict::Stuck { cause } => ("stuck", Some(cause.clone())),
    };
    Proc {
        name: proc.clone(),
        port,
        wanted: progress.wanted_in_all(),
        running: progress.running_in_all(),
        verdict,
        cause,
    }
}

fn daemons(snapshot: &Snapshot) -> Vec<Daemon> {
    let proxies = snapshot.proxies.iter().map(|(name, row)| Daemon {
        kind: "proxy",
        name: name.to_string(),
        version: row.version.clone(),
        note: match row.refused.len() {
            0 => Some(format!("takes requests at {}", row.public)),
            n => Some(format!("can't serve {n} services")),
        },
    });
    let rms = snapshot.rms.iter().map(|(name, row)| Daemon {
        kind: "rm",
        name: name.to_string(),
        version: row.version.clone(),
        note: None,
    });
    let leader = snapshot.leader.iter().map(|row| Daemon {
        kind: "converger",
        name: row.name.clone(),
        version: String::new(),
        note: Some(format!("elected {}", row.since.strftime("%Y-%m-%d %H:%M UTC"))),
    });
    proxies.chain(rms).chain(leader).collect()
}

fn events(snapshot: &Snapshot) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for (app, view) in &snapshot.apps {
        events.extend(view.releases.iter().map(|(id, row)| released(app, *id, row)));
        events.extend(view.history.iter().map(|((proc, id), row)| ended(app, proc, *id, row)));
    }
    events.sort_by(|a, b| (b.at, &a.app, &a.text).cmp(&(a.at, &b.app, &b.text)));
    events.truncate(EVENTS);
    events
}

fn released(app: &AppName, id: ReleaseId, row: &Release) -> Event {
    let Release { reason, by, .. } = row;
    let (mood, text) = match row.status {
        ReleaseStatus::Failed => {
            let cause =
                row.cause.as_deref().and_then(|cause| cause.lines().next()).unwrap_or("no cause given");
            ("bad", format!("{id} failed ({reason} by {by}): {cause}"))
        }
        ReleaseStatus::Trying => ("plain", format!("{id} is being tried: {reason} by {by}")),
        ReleaseStatus::Beside => ("plain", format!("{id} runs beside: {reason} by {by}")),
        ReleaseStatus::Verified | ReleaseStatus::Released if row.was_aborted() => {
            ("bad", format!("{id}'s rollout was called off ({reason} by {by})"))
        }
        ReleaseStatus::Verified | ReleaseStatus::Released => ("good", format!("{id}: {reason} by {by}")),
    };
    Event { at: row.at, app: app.clone(), mood, text }
}

fn ended(app: &AppName, proc: &ProcName, id: InstanceId, row: &Ended) -> Event {
    let status = row.status.as_ref();
    let failed = status.is_some_and(|status| matches!(status.state, State::Failed | State::Lost));
    let cause = status.and_then(|status| status.cause.as_deref()).filter(|_| failed);
    let why = cause.or(row.reason.as_deref()).unwrap_or("it has ended");
    let out_of_memory = status.is_some_and(|status| status.fault == Some(Fault::OutOfMemory));
    let mood = if failed || out_of_memory { "bad" } else { "plain" };
    Event { at: row.at, app: app.clone(), mood, text: format!("{proc} {id} on {}: {why}", row.instance.host) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use visor::{mirror::Image, store::Entry};

    use super::*;

    fn rev() -> String {
        "16f7cbf".to_owned() + &"0".repeat(33)
    }

    fn snapshot(rows: &[(&str, Value)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (key, value) in rows {
            snapshot.put(&Entry {
                key: key.replace("REV", &rev()),
                value: value.to_string().into(),
                create_revision: 1,
                mod_revision: 1,
                lease: None,
            });
        }
        assert!(snapshot.unreadable.is_empty(), "{:?}", snapshot.unreadable);
        snapshot
    }

    fn rows() -> Vec<(&'static str, Value)> {
        let at = "2026-01-01T00:00:00Z";
        let rev = rev();
        let instance = json!({
            "host": "host1", "proc": "web", "release": "v1", "rev": rev, "index": 0, "placed_at": at, "reason": "",
        });
        vec![
            ("apps/shop", json!({"owner": "ada", "created_at": at, "token": "t"})),
            ("apps/shop/procs/web", json!({"port": 8501})),
            (
                "apps/shop/revs/REV",
                json!({"slug": {"sha256": "0".repeat(64), "size_bytes": 1}, "procs": {"web": "true"}, "kind": "plain",
                    "by": "ada", "at": at, "subject": "first"}),
            ),
            (
                "apps/shop/releases/v1",
                json!({"rev": rev, "env": "e0", "by": "ada", "at": at, "reason": "push", "status": "released",
                    "token": "t"}),
            ),
            ("apps/shop/head", json!({"release": "v1"})),
            ("apps/shop/formation/web", json!({"count": 2})),
            ("apps/shop/instances/1", instance.clone()),
            (
                "apps/shop/pending/web",
                json!({"release": "v1", "short": 1, "reason": "no host has room", "refusals": {}, "since": at}),
            ),
            (
                "history/shop/web/7",
                json!({"instance": instance, "at": "2026-01-01T00:01:00Z", "reason": "scaled down"}),
            ),
            (
                "hosts/host1",
                json!({"address": "10.0.0.1", "url": "http://10.0.0.1:9000", "zone": "north", "version": "0.1.0",
                    "capacity": {"instances": 10, "memory_bytes": 1 << 30, "cpu_millis": 1000}, "isolation": "sandbox",
                    "boot_id": "b", "since": at, "token": "t"}),
            ),
            (
                "assigned/host1/1",
                json!({"desired": "run", "app": "shop", "proc": "web", "release": "v1", "rev": rev, "env": "e0",
                    "slug": {"sha256": "0".repeat(64), "size_bytes": 1}, "command": "true", "index": 0}),
            ),
            ("status/host1/1", json!({"state": "running", "since": at, "ip": "10.0.0.1", "port": 21000})),
            ("hostmeta/host2", json!({"draining": true})),
            (
                "assigned/host3/9",
                json!({"desired": "run", "app": "gone", "proc": "web", "release": "v1", "rev": rev,
                "env": "e0", "slug": {"sha256": "0".repeat(64), "size_bytes": 1}, "command": "true", "index": 0}),
            ),
        ]
    }

    #[test]
    fn an_app_shows_what_is_wanted_what_runs_and_what_is_in_its_way() {
        let view = view(&snapshot(&rows()), Timestamp::UNIX_EPOCH);
        let shown = serde_json::to_value(&view).expect("it is JSON");
        assert_eq!(shown["missing"], "no converger is elected, so that nothing is placed or stopped");
        assert_eq!(
            shown["apps"][0]["procs"][0],
            json!({"name": "web", "port": 8501, "wanted": 2, "running": 1, "verdict": "underway",
                "cause": "no place for 1: no host has room"})
        );
        assert_eq!(shown["apps"][0]["head"]["rev"], "16f7cbf");
        assert_eq!(shown["apps"][0]["rollout"], Value::Null);
    }

    #[test]
    fn hosts_stand_in_their_zones_and_those_that_went_in_none() {
        let view = view(&snapshot(&rows()), Timestamp::UNIX_EPOCH);
        let told: Vec<String> = view
            .zones
            .iter()
            .flat_map(|zone| zone.hosts.iter().map(move |host| (zone.name.as_ref(), host)))
            .map(|(zone, host)| format!("{zone:?} {} {} {}", host.name, host.state, host.instances.len()))
            .collect();
        let north: ZoneName = "north".parse().expect("valid");
        let host1 = format!("{:?} host1 up 1", Some(&north));
        assert_eq!(
            told,
            ["None host3 gone 1".to_owned(), host1],
            "a host of which only a word is left isn't told"
        );
    }

    #[test]
    fn the_newest_events_come_first() {
        let view = view(&snapshot(&rows()), Timestamp::UNIX_EPOCH);
        let told: Vec<&str> = view.events.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(told, ["web 7 on host1: scaled down", "v1: push by ada"]);
    }
}
