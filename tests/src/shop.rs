//! The app that a fleet runs, and looks at what runs of it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use visor::{
    names::{HostName, InstanceId, ReleaseId},
    schema::{Desired, State},
    snapshot::Snapshot,
    store::{Keys, Op, Txn},
};

use crate::{Fleet, Repo, until};

/// The app's name.
pub const SHOP: &str = "shop";

/// Answers after 50 ms with its version and its instance. `ON_TERM` is what it does on SIGTERM.
const SERVER: &str = r#"
const server = require("http").createServer((request, response) =>
  setTimeout(() => response.end(`VERSION\n${process.env.BAZOOKA_INSTANCE}\n`), 50));
server.listen(process.env.PORT);
ON_TERM
"#;

/// Ends what is under way first.
const POLITE: &str = r#"process.on("SIGTERM", () => server.close(() => process.exit(0)));"#;

/// Numbered lines, to see whether any is missing.
const TICKER: &str = "n = 0\nwhile True:\n    print(n, flush=True)\n    n += 1\n    time.sleep(0.01)\n";

/// Writes and commits a version whose handlers take 50 ms.
pub fn version(repo: &Repo, version: &str) -> String {
    write(repo, version, POLITE)
}

/// As [`version`], with no handler of SIGTERM: it dies of it at once.
pub fn blunt_version(repo: &Repo, version: &str) -> String {
    write(repo, version, "")
}

fn write(repo: &Repo, version: &str, on_term: &str) -> String {
    repo.write("Procfile", "web: node server.js\nticker: python3 ticker.py\n")
        .write("server.js", &SERVER.replace("VERSION", version).replace("ON_TERM", on_term))
        .write("ticker.py", &format!("import time\n{TICKER}"));
    repo.commit(version)
}

/// The app, pushed, and so many instances of it.
pub fn shop(fleet: &Fleet, instances: usize) -> Repo {
    let repo = fleet.repo(SHOP);
    version(&repo, "v1");
    started(fleet, &repo, instances);
    repo
}

/// As [`shop`], with no handler of SIGTERM.
pub fn blunt_shop(fleet: &Fleet, instances: usize) -> Repo {
    let repo = fleet.repo(SHOP);
    blunt_version(&repo, "v1");
    started(fleet, &repo, instances);
    repo
}

fn started(fleet: &Fleet, repo: &Repo, instances: usize) {
    repo.bazooka(&["init"]).ok();
    repo.git(&["push", "bazooka", "master"]).ok();
    repo.bazooka(&["scale", "-n", &instances.to_string(), "web"]).ok();
    whole(fleet, instances, Duration::from_secs(30));
}

/// An instance that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    /// Which.
    pub id: InstanceId,
    /// Where.
    pub host: HostName,
    /// Of which release.
    pub release: ReleaseId,
    /// Its process.
    pub pid: u32,
    /// Since when.
    pub started_at: Option<Timestamp>,
    /// How often it was started again in place.
    pub restarts: u32,
}

/// What runs and is meant to, on hosts that are here.
pub fn running(snapshot: &Snapshot) -> Vec<Running> {
    let here = snapshot.hosts.iter().filter(|(_, view)| view.host.is_some());
    let mut running: Vec<Running> = Vec::new();
    for (host, view) in here {
        for (id, row) in view.assigned.iter().filter(|(_, row)| row.desired == Desired::Run) {
            let status = view.status.get(id).filter(|status| status.state == State::Running);
            running.extend(status.map(|status| Running {
                id: *id,
                host: host.clone(),
                release: row.release,
                pid: status.pid.expect("what runs has a process"),
                started_at: status.started_at,
                restarts: status.restarts,
            }));
        }
    }
    running.sort();
    running
}

/// Waits until exactly so many instances run, and nothing else is left of any.
pub fn whole(fleet: &Fleet, instances: usize, within: Duration) -> Vec<Running> {
    until(&format!("{instances} instances run and no other is left"), within, || {
        let snapshot = fleet.snapshot();
        let running = running(&snapshot);
        let rows: BTreeSet<InstanceId> =
            snapshot.apps.values().flat_map(|view| view.instances.keys().copied()).collect();
        if running.len() == instances && rows.len() == instances {
            Ok(running)
        } else {
            Err(format!("{} rows, running: {running:?}, {}", rows.len(), told(&snapshot)))
        }
    })
}

/// The instances' rows in short, for the message of a test that fails.
pub fn told(snapshot: &Snapshot) -> String {
    let rows = snapshot.hosts.iter().map(|(host, view)| {
        let here = if view.host.is_some() { "here" } else { "gone" };
        let assigned: Vec<String> = view
            .assigned
            .iter()
            .map(|(id, row)| {
                let state = view.status.get(id).map(|status| (status.state, status.cause.clone()));
                format!("{id} {:?} {state:?}", row.desired)
            })
            .collect();
        format!("{host} {here}: {assigned:?}")
    });
    let pending = snapshot.apps.values().flat_map(|view| view.pending.values().map(|row| &row.reason));
    format!("{}; pending: {:?}", rows.collect::<Vec<_>>().join("; "), pending.collect::<Vec<_>>())
}

/// The instances' ids.
pub fn ids(running: &[Running]) -> BTreeSet<InstanceId> {
    running.iter().map(|instance| instance.id).collect()
}

/// Whether a process runs.
pub fn alive(pid: u32) -> bool {
    // One that has ended and is not waited for yet runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Writes and reads a value beside the cluster's own. Returns what the slower of the two calls took, and whether
/// both were answered.
pub fn probe(fleet: &Fleet, value: u64) -> (Duration, bool) {
    let (visor, runtime) = fleet.visor();
    let store = visor.store().clone();
    runtime.block_on(async {
        let key = "probe".to_owned();
        let put = Op::Put { key: key.clone(), value: value.to_string().into(), lease: None };
        let begin = Instant::now();
        let wrote = store.txn(Txn { then: vec![put], ..Txn::default() }).await;
        let writing = begin.elapsed();
        let begin = Instant::now();
        let read = store.range(Keys::One(key), None).await;
        (writing.max(begin.elapsed()), wrote.is_ok() && read.is_ok())
    })
}
