//! The converger in a large cluster: a thousand hosts that are rows alone, one real etcd, the real process.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use bazooka_tests::{Part, program};
use etcd_client::{Client, GetOptions};
use jiff::Timestamp;
use tokio::runtime::Runtime;
use visor::{
    keys::Key,
    names::{AppName, HostName, ProcName, RevId},
    schema::{Capacity, Extra, Host, Rev, Rm, Slug},
    snapshot::Versioned,
    store::{
        SharedStore,
        etcd::{EtcdConfig, EtcdStore},
    },
    testing::{Etcd, fresh_prefix},
    transitions::releases::{Begun, NewRelease},
    visor::{Change, Visor},
};

use crate::{Row, Value, thousands};

const HOSTS: u32 = 1_000;
const APPS: u32 = 100;
const INSTANCES: u32 = 100_000;

/// How often one more is asked for; enough for a 99th percentile.
const SCALES: u32 = 300;

/// A cluster that consists of rows and a converger.
struct Rows {
    runtime: Runtime,
    visor: Visor,
    etcd: Etcd,
    prefix: String,
    lease: visor::store::LeaseId,
    _dir: tempfile::TempDir,
    _converger: Part,
}

impl Rows {
    fn start() -> Rows {
        let runtime = Runtime::new().expect("threads can be started");
        let etcd = runtime.block_on(Etcd::start_with(&["--quota-backend-bytes=8589934592"]));
        let prefix = fresh_prefix();
        let config = EtcdConfig::new(vec![etcd.endpoint().to_owned()], prefix.clone());
        let store: SharedStore = Arc::new(EtcdStore::new(config));
        let visor = Visor::new(store);
        runtime.block_on(visor.set_up()).expect("etcd answers");
        // Apps here are larger than an operator lets them be by default.
        let rm = Rm { app_instances: Some(10_000), ..Rm::at("http://127.0.0.1:9") };
        let bounds = Change::new().put(&Key::Rm("rm1".parse().expect("valid")), &rm);
        runtime.block_on(visor.commit(bounds)).expect("it is written");
        let lease = runtime.block_on(visor.store().grant(Duration::from_secs(3_600))).expect("etcd answers");
        let dir = tempfile::tempdir().expect("a folder can be made");
        let mut command = Command::new(program("bazooka-pm"));
        command.args(["converge", "--coordinator", etcd.endpoint(), "--prefix", &prefix]);
        let converger = Part::start("converger", &dir.path().join("log"), &mut command);
        Rows { runtime, visor, etcd, prefix, lease, _dir: dir, _converger: converger }
    }

    fn put_hosts(&self, count: u32) {
        for chunk in (0..count).collect::<Vec<_>>().chunks(50) {
            let change = chunk.iter().fold(Change::new(), |change, n| {
                let name: HostName = format!("host{n}").parse().expect("valid");
                change.put_leased(&Key::Host(name), &host(*n), Some(self.lease))
            });
            self.runtime.block_on(self.visor.commit(change)).expect("it is written");
        }
    }

    fn put_app(&self, n: u32) -> (AppName, ProcName) {
        let (app, proc): (AppName, ProcName) =
            (format!("app{n}").parse().expect("valid"), "web".parse().expect("valid"));
        let rev: RevId = format!("{n:040x}").parse().expect("valid");
        let row = Rev {
            slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
            procs: BTreeMap::from([(proc.clone(), "node server.js".to_owned())]),
            kind: "procfile".into(),
            by: "bench".into(),
            at: Timestamp::now(),
            subject: String::new(),
            extra: Extra::new(),
        };
        let new = NewRelease {
            rev: Some(rev.clone()),
            by: "bench".into(),
            token: "t".into(),
            ..NewRelease::default()
        };
        self.runtime.block_on(async {
            self.visor.register_app(&app, "bench", "token", Timestamp::now()).await.expect("it is free");
            self.visor.register_rev(&app, &rev, &row, &BTreeSet::new()).await.expect("it can be registered");
            let promoter = visor::schema::Promoter::Converger;
            let begun = self.visor.begin_release(&app, &new, promoter, None, Timestamp::now()).await;
            assert!(matches!(begun.expect("it can be begun"), Begun::Released(_)));
        });
        (app, proc)
    }

    fn scale(&self, app: &AppName, proc: &ProcName, count: u32) {
        let scaled = self.visor.scale(app, proc, count, None, "bench", Timestamp::now());
        self.runtime.block_on(scaled).expect("it can be scaled");
    }

    /// Waits until so many instances are there. Their ids are given out up to half a second before.
    fn until_all_are_there(&self, count: u32, patience: Duration) {
        let begun = Instant::now();
        self.until_placed(u64::from(count), patience);
        let below = format!("{}/assigned/", self.prefix);
        let options = GetOptions::new().with_prefix().with_count_only();
        self.runtime.block_on(async {
            let mut client = Client::connect([self.etcd.endpoint()], None).await.expect("etcd answers");
            loop {
                let there =
                    client.get(below.clone(), Some(options.clone())).await.expect("etcd answers").count();
                if there >= i64::from(count) {
                    return;
                }
                assert!(begun.elapsed() < patience, "{there} of {count} are there");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Waits until so many ids have been given out. The id of one that is placed alone is written with it.
    fn until_placed(&self, count: u64, patience: Duration) {
        let begun = Instant::now();
        loop {
            let counter: Option<Versioned<u64>> =
                self.runtime.block_on(self.visor.get(&Key::InstanceCounter)).expect("etcd answers");
            let placed = counter.map_or(0, |counter| counter.value);
            if placed >= count {
                return;
            }
            assert!(begun.elapsed() < patience, "{placed} of {count} are placed");
            std::thread::sleep(Duration::from_micros(if count - placed > 1 { 10_000 } else { 200 }));
        }
    }

    /// Scales by one, again and again: the time from the command's write to the placement, and of the write alone.
    fn one_by_one(&self, app: &AppName, proc: &ProcName, already: u32, placed: u64) -> Times {
        let mut times = Times::default();
        for n in 1..=SCALES {
            let begun = Instant::now();
            self.scale(app, proc, already + n);
            times.written.push(begun.elapsed());
            self.until_placed(placed + u64::from(n), Duration::from_secs(60));
            times.placed.push(begun.elapsed());
        }
        times.written.sort();
        times.placed.sort();
        times
    }

    /// Keys a second in bulk transactions of 100 puts, of the size of the rows that are placed.
    fn bulk(&self, transactions: u32) -> f64 {
        let config = EtcdConfig::new(vec![self.etcd.endpoint().to_owned()], format!("{}-bulk", self.prefix));
        let visor = Visor::new(Arc::new(EtcdStore::new(config)));
        self.runtime.block_on(visor.set_up()).expect("etcd answers");
        let begun = Instant::now();
        for n in 0..transactions {
            let name: HostName = format!("host{n}").parse().expect("valid");
            let change = (0..100).fold(Change::new(), |change, k| {
                let id = visor::names::InstanceId(u64::from(n * 100 + k));
                // A row of a host is as long as the two of an instance are at the mean.
                change.put(&Key::Status(name.clone(), id), &host(n))
            });
            self.runtime.block_on(visor.commit(change)).expect("it is written");
        }
        f64::from(transactions * 100) / begun.elapsed().as_secs_f64()
    }
}

pub fn host(n: u32) -> Host {
    Host {
        schema: None,
        address: [10, 0, u8::try_from(n / 250).expect("it fits"), u8::try_from(n % 250).expect("it fits")]
            .into(),
        url: "http://127.0.0.1:9".into(),
        zone: ["a", "b", "c"][n as usize % 3].parse().expect("valid"),
        version: env!("CARGO_PKG_VERSION").into(),
        capacity: Capacity { memory_bytes: 64 << 30, instances: 1_000, extra: Extra::new() },
        isolation: "uid".into(),
        boot_id: "b".into(),
        seal_key: None,
        services: None,
        since: Timestamp::UNIX_EPOCH,
        token: format!("token{n}"),
        extra: Extra::new(),
    }
}

/// How long each of many scales took, sorted.
#[derive(Default)]
struct Times {
    /// Until the command had its answer: etcd's part alone.
    written: Vec<Duration>,
    /// Until the instance was placed.
    placed: Vec<Duration>,
}

pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the list")]
    let index = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[index]
}

pub fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1_000.0)
}

/// A rate without its fraction.
fn whole(rate: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "far below 2^64, and positive"
    )]
    thousands(rate.round() as u64)
}

/// Placements a second, and the time for one more in a full cluster.
pub fn converge() -> Vec<Row> {
    let empty = Rows::start();
    empty.put_hosts(1);
    let (app, proc) = empty.put_app(0);
    let before = empty.one_by_one(&app, &proc, 0, 0);
    drop(empty);

    let rows = Rows::start();
    rows.put_hosts(HOSTS);
    let apps: Vec<_> = (0..APPS).map(|n| rows.put_app(n)).collect();
    let begun = Instant::now();
    for (app, proc) in &apps {
        rows.scale(app, proc, INSTANCES / APPS);
    }
    rows.until_all_are_there(INSTANCES, Duration::from_secs(600));
    let rate = f64::from(INSTANCES) / begun.elapsed().as_secs_f64();
    let bulk = rows.bulk(1_000);
    let (app, proc) = &apps[0];
    let after = rows.one_by_one(app, proc, INSTANCES / APPS, u64::from(INSTANCES));
    let p99 = |times: &[Duration]| percentile(times, 0.99);
    let median = |times: &[Duration]| percentile(times, 0.5);
    vec![
        Row {
            value: Some(Value::PerSecond(rate)),
            what: format!(
                "placements a second, {} hosts, {} instances",
                thousands(HOSTS.into()),
                thousands(INSTANCES.into())
            ),
            target: "10,000; half of what etcd takes in bulk".into(),
            figure: format!("{} (two keys each: {:.2} of bulk)", whole(rate), 2.0 * rate / bulk),
            floor: format!("transactions of 100 puts: {} keys a second", whole(bulk)),
        },
        Row {
            value: Some(Value::Time(p99(&after.placed))),
            what: "`scale` by 1 in that full cluster, until it is placed, p99".into(),
            target: "50 ms; 3 times the empty cluster".into(),
            figure: format!("{} (median {})", ms(p99(&after.placed)), ms(median(&after.placed))),
            floor: format!(
                "with 1 host and no instance: {} (median {}), {:.1} times; the command's own read and write: {} here, \
                 {} there",
                ms(p99(&before.placed)),
                ms(median(&before.placed)),
                p99(&after.placed).as_secs_f64() / p99(&before.placed).as_secs_f64(),
                ms(p99(&after.written)),
                ms(p99(&before.written)),
            ),
        },
    ]
}
