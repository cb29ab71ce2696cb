//! A converger that takes over a cluster that is large already: rows in a real etcd, and the real process.
//!
//! The rows are written in bulk, as a cluster that has run for a while would have them. Each host has a lease of its own,
//! renewed as a host renews it. One instance is missing from the start, so the first placement shows when the converger
//! is able to place.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bazooka_tests::{Part, program};
use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use jiff::Timestamp;
use tokio::{runtime::Runtime, task::JoinSet, time::MissedTickBehavior};
use visor::{
    keys::Key,
    names::{AppName, EnvRef, HostName, InstanceId, ProcName, ReleaseId, RevId, ServicePort},
    schema::{
        App, Assignment, Desired, Extra, Formation, Head, Instance, Moment, Port, Proc, Release,
        ReleaseStatus, Rev, RunSettings, Slug, State, Status,
    },
    store::{
        SharedStore,
        etcd::{EtcdConfig, EtcdStore},
    },
    testing::{Etcd, fresh_prefix},
    visor::{Change, Committed, Visor},
};

use crate::{
    Row, Value,
    converge::{host, ms, percentile},
    measure::kib,
    seconds, thousands,
};

/// A size of cluster.
#[derive(Clone, Copy)]
pub struct Large {
    /// Instances that run.
    pub instances: u32,
    /// Registered hosts.
    pub hosts: u32,
}

/// Instances of each app.
const PER_APP: u32 = 300;

/// Releases that each app has kept, each with a rev of its own.
const RELEASES: u32 = 5;

/// Writes in one transaction; etcd takes 128.
const AT_ONCE: usize = 100;

/// Tasks that write side by side.
const WRITERS: u32 = 8;

/// How often one more is asked for; enough for a 99th percentile.
const SCALES: u32 = 200;

/// A host's lease, and how often a host renews it.
const LEASE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));

/// How long the converger may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(300);

/// The cluster: rows alone, until the converger starts.
struct Cluster {
    runtime: Runtime,
    etcd: Etcd,
    visor: Visor,
    prefix: String,
    size: Large,
    lost_leases: Arc<AtomicU32>,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn filled(size: Large) -> Cluster {
        let runtime = Runtime::new().expect("threads can be started");
        let etcd = runtime.block_on(Etcd::start_with(&["--quota-backend-bytes=17179869184"]));
        let prefix = fresh_prefix();
        let visor = Visor::new(patient(&etcd, &prefix));
        runtime.block_on(visor.set_up()).expect("etcd answers");
        let dir = tempfile::tempdir().expect("a folder can be made");
        let lost_leases = Arc::default();
        let cluster = Cluster { runtime, etcd, visor, prefix, size, lost_leases, dir };
        let begun = Instant::now();
        cluster.write_apps();
        cluster.register_hosts();
        eprintln!("filled in {}", seconds(begun.elapsed()));
        cluster
    }

    /// Writes each app with its instances, some apps side by side.
    fn write_apps(&self) {
        let apps = self.size.instances / PER_APP;
        let mut writers = JoinSet::new();
        for first in 0..WRITERS {
            let (visor, hosts) = (Visor::new(patient(&self.etcd, &self.prefix)), self.size.hosts);
            writers.spawn_on(
                async move {
                    for n in (first..apps).step_by(WRITERS as usize) {
                        write(&visor, app_rows(n, hosts)).await;
                    }
                },
                self.runtime.handle(),
            );
        }
        self.runtime.block_on(writers.join_all());
        let counter = Change::new().put(&Key::InstanceCounter, &u64::from(apps * PER_APP));
        self.runtime.block_on(write(&self.visor, vec![counter]));
    }

    /// Registers each host under a lease, which a task keeps alive from then on.
    fn register_hosts(&self) {
        for first in 0..WRITERS {
            let store = patient(&self.etcd, &self.prefix);
            let (visor, hosts, lost) = (Visor::new(store), self.size.hosts, self.lost_leases.clone());
            let (told, done) = std::sync::mpsc::channel();
            self.runtime.spawn(async move {
                let mut leases = Vec::new();
                for n in (first..hosts).step_by(WRITERS as usize) {
                    let lease = visor.store().grant(LEASE.0).await.expect("etcd answers");
                    let row = Change::new().put_leased(&Key::Host(host_name(n)), &host(n), Some(lease));
                    write(&visor, vec![row]).await;
                    leases.push(lease);
                }
                told.send(()).expect("the bench waits");
                let mut beats = tokio::time::interval(LEASE.1);
                beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
                loop {
                    beats.tick().await;
                    let mut kept = Vec::new();
                    for lease in &leases {
                        match visor.store().keep_alive(*lease).await {
                            Err(visor::store::StoreError::LeaseNotFound(_)) => {
                                lost.fetch_add(1, Ordering::Relaxed);
                            }
                            // A renewal that is late is made again; the lease has ended if it was too late.
                            Ok(_) | Err(_) => kept.push(*lease),
                        }
                    }
                    leases = kept;
                }
            });
            done.recv().expect("the writer has written");
        }
    }

    fn start_converger(&self) -> Part {
        let mut command = Command::new(program("bazooka-pm"));
        command.args(["converge", "--coordinator", self.etcd.endpoint(), "--prefix", &self.prefix]);
        Part::start("converger", &self.dir.path().join("log"), &mut command)
    }

    /// Watches what is placed, from now on.
    fn placements(&self) -> WatchStream {
        self.runtime.block_on(async {
            let mut client = Client::connect([self.etcd.endpoint()], None).await.expect("etcd answers");
            let options = WatchOptions::new().with_prefix();
            let mut stream = client
                .watch(format!("{}/assigned/", self.prefix), Some(options))
                .await
                .expect("etcd answers");
            let created = stream.message().await.expect("etcd answers").expect("the stream is open");
            assert!(created.created(), "the first message says that the watch is there");
            stream
        })
    }

    /// Waits for the next placement.
    fn next_placed(&self, stream: &mut WatchStream, converger: &Part) {
        let placed = async {
            loop {
                let message = stream.message().await.expect("etcd answers").expect("the stream is open");
                if message.events().iter().any(|event| event.event_type() == EventType::Put) {
                    return;
                }
            }
        };
        let placed = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, placed).await });
        assert!(placed.is_ok(), "nothing was placed within {PATIENCE:?}; the converger: {}", converger.log());
    }

    fn scale(&self, n: u32, count: u32) {
        let (app, proc) = (app_name(n), web());
        let scaled = self.visor.scale(&app, &proc, count, None, "bench", Timestamp::now());
        self.runtime.block_on(scaled).expect("it can be scaled");
    }
}

/// A client with long deadlines: the bench's own calls are not what is measured.
fn patient(etcd: &Etcd, prefix: &str) -> SharedStore {
    let usual = EtcdConfig::new(vec![etcd.endpoint().to_owned()], prefix);
    let call_timeout = Duration::from_secs(20);
    Arc::new(EtcdStore::new(EtcdConfig { call_timeout, ..usual }))
}

/// Writes rows that nothing else writes.
async fn write(visor: &Visor, changes: Vec<Change>) {
    for change in changes {
        let committed = visor.commit(change).await.expect("etcd answers");
        assert!(matches!(committed, Committed::Done(_)), "nothing is in the way");
    }
}

fn host_name(n: u32) -> HostName {
    format!("host{n}").parse().expect("valid")
}

fn app_name(n: u32) -> AppName {
    format!("app{n}").parse().expect("valid")
}

fn web() -> ProcName {
    "web".parse().expect("valid")
}

fn rev_id(app: u32, release: u32) -> RevId {
    format!("{app:032x}{release:08x}").parse().expect("valid")
}

fn slug(app: u32, release: u32) -> Slug {
    Slug { sha256: format!("{app:056x}{release:08x}").parse().expect("valid"), size_bytes: 10 << 20 }
}

const COMMAND: &str = "node --max-old-space-size=256 server.js";

/// All rows of an app, as changes of at most [`AT_ONCE`] writes.
fn app_rows(n: u32, hosts: u32) -> Vec<Change> {
    let (app, at) = (app_name(n), Timestamp::now());
    let token = format!("token-{n}");
    let row = App {
        owner: "bench".into(),
        created_at: at,
        token: token.clone(),
        destroying: false,
        extra: Extra::new(),
    };
    // The first app lacks one instance.
    let formation =
        Formation { count: PER_APP + u32::from(n == 0), by: "bench".into(), ..Formation::default() };
    let port = u16::try_from(10_000 + n).expect("it fits");
    let service = Port { app: app.clone(), proc: web(), token, at, freed_at: None, extra: Extra::new() };
    let mut head = Change::new()
        .put(&Key::App(app.clone()), &row)
        .put(&Key::Proc(app.clone(), web()), &Proc::new(&web(), port))
        .put(&Key::Port(ServicePort(port)), &service)
        .put(&Key::Formation(app.clone(), web()), &formation)
        .put(&Key::Head(app.clone()), &Head { release: ReleaseId(RELEASES), extra: Extra::new() });
    for release in 1..=RELEASES {
        let (rev, made) = release_rows(n, release, at);
        head = head
            .put(&Key::Rev(app.clone(), rev_id(n, release)), &rev)
            .put(&Key::Release(app.clone(), ReleaseId(release)), &made);
    }
    let mut changes = vec![head];
    let indexes: Vec<u32> = (0..PER_APP).collect();
    for chunk in indexes.chunks(AT_ONCE / 3) {
        changes.push(
            chunk.iter().fold(Change::new(), |change, index| instance_rows(change, n, *index, hosts, at)),
        );
    }
    changes
}

fn release_rows(n: u32, release: u32, at: Timestamp) -> (Rev, Release) {
    let rev = Rev {
        slug: slug(n, release),
        procs: BTreeMap::from([(web(), COMMAND.to_owned())]),
        kind: "node".into(),
        by: "bench".into(),
        at,
        subject: "change a thing or two".into(),
        extra: Extra::new(),
    };
    let made = Release {
        rev: rev_id(n, release),
        env: EnvRef(0),
        by: "bench".into(),
        at,
        reason: "push".into(),
        status: ReleaseStatus::Released,
        cause: None,
        token: format!("token-{n}-{release}"),
        extra: Extra::new(),
    };
    (rev, made)
}

/// Adds the rows of an instance that runs.
fn instance_rows(change: Change, n: u32, index: u32, hosts: u32, at: Timestamp) -> Change {
    let number = n * PER_APP + index;
    let (id, name) = (InstanceId(u64::from(number) + 1), host_name(number % hosts));
    let (app, release) = (app_name(n), ReleaseId(RELEASES));
    let placed = Instance {
        host: name.clone(),
        proc: web(),
        release,
        rev: rev_id(n, RELEASES),
        index,
        placed_at: at,
        reason: "300 wanted, 299 there".into(),
        extra: Extra::new(),
    };
    let assigned = Assignment {
        desired: Desired::Run,
        reason: None,
        app: app.clone(),
        proc: web(),
        release,
        rev: rev_id(n, RELEASES),
        env: EnvRef(0),
        slug: slug(n, RELEASES),
        command: COMMAND.into(),
        index,
        run: RunSettings::default(),
        links: BTreeMap::new(),
        sources: Vec::new(),
        trial: false,
        extra: Extra::new(),
    };
    let told = ["fetched the slug in 120 ms", "started, pid 4711, port 21000", "healthy after 350 ms"];
    let status = Status {
        ip: Some(host(number % hosts).address),
        port: Some(21_000),
        pid: Some(4_711),
        started_at: Some(at),
        story: told.into_iter().map(|what| Moment { at, what: what.into() }).collect(),
        ..Status::new(State::Running, at)
    };
    change
        .put(&Key::Instance(app, id), &placed)
        .put(&Key::Assigned(name.clone(), id), &assigned)
        .put(&Key::Status(name, id), &status)
}

/// Returns the processor time that a process has taken, which other work on the machine hardly changes.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The fields after the name, which ends with the last parenthesis: user time and system time, in hundredths.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// How soon a converger takes over a large cluster, in how much memory, and how soon it places one more.
pub fn takeover(size: Large) -> Vec<Row> {
    let cluster = Cluster::filled(size);
    let mut placements = cluster.placements();
    let begun = Instant::now();
    let converger = cluster.start_converger();
    cluster.next_placed(&mut placements, &converger);
    let able = begun.elapsed();
    let worked = processor_time(converger.pid());
    let mebibytes = |field: &str| kib(converger.pid(), "status", field) / 1024.0;
    let (peak, resident) = (mebibytes("VmHWM:"), mebibytes("VmRSS:"));
    let (mut written, mut placed) = (Vec::new(), Vec::new());
    for n in 1..=SCALES {
        let begun = Instant::now();
        cluster.scale(n, PER_APP + 1);
        written.push(begun.elapsed());
        cluster.next_placed(&mut placements, &converger);
        placed.push(begun.elapsed());
    }
    written.sort();
    placed.sort();
    let later = mebibytes("VmHWM:");
    let lost = cluster.lost_leases.load(Ordering::Relaxed);
    let of =
        format!("{} hosts, {} instances", thousands(size.hosts.into()), thousands(size.instances.into()));
    vec![
        Row {
            value: Some(Value::Time(able)),
            what: format!("a converger starts, until it has placed its first instance: {of}"),
            target: "30 s".into(),
            figure: seconds(able),
            floor: format!(
                "the converger's own processor time: {}; leases lost meanwhile: {lost} of {}",
                seconds(worked),
                thousands(size.hosts.into())
            ),
        },
        Row {
            value: Some(Value::Mebibytes(peak)),
            what: format!("the converger's memory at its peak by then: {of}"),
            target: "1,536 MiB".into(),
            figure: format!("{peak:.0} MiB"),
            floor: format!(
                "resident after it: {resident:.0} MiB; the peak after {SCALES} scales: {later:.0} MiB"
            ),
        },
        Row {
            value: Some(Value::Time(percentile(&placed, 0.99))),
            what: format!("`scale` by 1 there, until it is placed, p99 of {SCALES}: {of}"),
            target: "100 ms".into(),
            figure: format!("{} (median {})", ms(percentile(&placed, 0.99)), ms(percentile(&placed, 0.5))),
            floor: format!(
                "the command's own read and write: {} (median {})",
                ms(percentile(&written, 0.99)),
                ms(percentile(&written, 0.5))
            ),
        },
    ]
}
