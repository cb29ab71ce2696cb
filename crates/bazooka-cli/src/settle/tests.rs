//! Tests of what commands wait for and how long, with paused time.

use std::collections::BTreeSet;

use jiff::Timestamp;
use visor::{
    keys::Key,
    names::{AppName, Digest, HostName, RevId},
    schema::{Extra, Pending, Promoter, Proxy, Rev, Slug},
    store::model::ModelStore,
    transitions::releases::NewRelease,
    visor::{Change, Visor},
};

use super::*;

/// An app with a released `web` of which one instance is wanted, on a store in memory, with paused time.
pub(crate) struct Rig {
    pub context: Context,
    pub store: ModelStore,
    pub app: AppName,
    pub web: ProcName,
}

impl Rig {
    pub async fn new() -> Rig {
        let store = ModelStore::new();
        let visor = Visor::new(store.shared());
        visor.set_up().await.expect("the model answers");
        let (app, web): (AppName, ProcName) = ("a".parse().expect("valid"), "web".parse().expect("valid"));
        let now = Timestamp::UNIX_EPOCH;
        visor.register_app(&app, "ada", "t", now).await.expect("it is free");
        let id: RevId = "1".repeat(40).parse().expect("valid");
        let sha256: Digest = "0".repeat(64).parse().expect("valid");
        let rev = Rev {
            slug: Slug { sha256, size_bytes: 1 },
            procs: BTreeMap::from([(web.clone(), "run".to_owned())]),
            kind: "procfile".into(),
            by: "ada".into(),
            at: now,
            subject: String::new(),
            extra: Extra::new(),
        };
        visor.register_rev(&app, &id, &rev, &BTreeSet::new()).await.expect("the app is there");
        let new = NewRelease { rev: Some(id), token: "r".into(), ..NewRelease::default() };
        visor.begin_release(&app, &new, Promoter::Converger, None, now).await.expect("it can be released");
        visor.scale(&app, &web, 1, None, "ada", now).await.expect("it can be scaled");
        Rig { context: Context::new(visor, None, None, false), store, app, web }
    }

    /// Returns the context of a new command for this app, with nothing read yet.
    pub fn fresh(&self) -> Context {
        Context::new(Visor::new(self.store.shared()), None, Some(self.app.clone()), false)
    }

    pub async fn write<T: serde::Serialize>(&self, key: &Key, value: &T) {
        self.context.visor.commit(Change::new().put(key, value)).await.expect("the model answers");
    }

    /// Settles, and returns how long that took.
    async fn settle(&self) -> (Duration, Result<()>) {
        let mut watch = Watch::open(self.context.visor.store().clone(), self.app.clone()).await;
        let mut arrivals = Arrivals::begin(&watch);
        let begin = Instant::now();
        let procs = [self.web.clone()];
        let settled = settle(&self.context, &mut watch, &procs, &mut arrivals, |_| Ok(())).await;
        (begin.elapsed(), settled)
    }

    async fn elect(&self) {
        let leader = serde_json::json!({"name": "c", "since": Timestamp::UNIX_EPOCH});
        self.write(&Key::Leader, &leader).await;
    }

    /// Registers a host that answers for its instances.
    async fn host(&self) {
        let host: HostName = "h1".parse().expect("valid");
        let row = serde_json::json!({
            "address": "1.2.3.4", "url": "http://x", "zone": "default", "version": "0",
            "capacity": {"memory_bytes": 1, "instances": 1}, "isolation": "none", "boot_id": "b",
            "since": Timestamp::UNIX_EPOCH, "token": "t",
        });
        self.write(&Key::Host(host), &row).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_converger_or_a_host_it_gives_up_after_fifteen_seconds() {
    let rig = Rig::new().await;
    let (took, settled) = rig.settle().await;
    let failure = settled.expect_err("nobody acts");
    assert_eq!((took.as_secs(), failure.kind), (15, Kind::PartMissing), "{failure}");
    assert!(failure.what.contains("no converger"), "{failure}");
    rig.elect().await;
    let failure = rig.settle().await.1.expect_err("nobody acts");
    assert!(failure.what.contains("no host"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_shortfall_is_waited_out_for_fifteen_seconds_and_told_host_by_host() {
    let rig = Rig::new().await;
    rig.elect().await;
    rig.host().await;
    let pending = Pending {
        release: visor::names::ReleaseId(1),
        short: 1,
        reason: "no host has room".into(),
        refusals: BTreeMap::from([("h1".parse().expect("valid"), "it is full".to_owned())]),
        reasons: Default::default(),
        since: Timestamp::UNIX_EPOCH,
        extra: Extra::new(),
    };
    rig.write(&Key::Pending(rig.app.clone(), rig.web.clone()), &pending).await;
    let (took, settled) = rig.settle().await;
    let failure = settled.expect_err("there is no room");
    assert_eq!((took.as_secs(), failure.kind), (15, Kind::Failed), "{failure}");
    assert_eq!(failure.causes, ["no host has room", "h1: it is full"]);
}

#[tokio::test(start_paused = true)]
async fn without_any_progress_it_gives_up_after_what_an_instance_may_take() {
    let rig = Rig::new().await;
    rig.elect().await;
    rig.host().await;
    let (took, settled) = rig.settle().await;
    let failure = settled.expect_err("nothing happens");
    assert_eq!((took.as_secs(), failure.kind), (91, Kind::Failed), "{failure}");
    assert!(failure.what.contains("0 of 1 run"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_hangs_holds_nobody_up_for_long() {
    let rig = Rig::new().await;
    let proxy = Proxy {
        token: None,
        schema: None,
        url: "http://x".into(),
        public: "0.0.0.0:8080".into(),
        domain: "localhost".into(),
        zone: None,
        version: "0".into(),
        applied: 1,
        busy: BTreeSet::new(),
        refused: BTreeMap::new(),
        extra: Extra::new(),
    };
    rig.write(&Key::Proxy("p".parse().expect("valid")), &proxy).await;
    let host: HostName = "h1".parse().expect("valid");
    let mut watch = Watch::open(rig.context.visor.store().clone(), rig.app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let instance = serde_json::json!({
        "host": host, "proc": "web", "release": "v1", "rev": "1".repeat(40), "index": 0,
        "placed_at": Timestamp::UNIX_EPOCH, "reason": "",
    });
    rig.write(&Key::Instance(rig.app.clone(), InstanceId(1)), &instance).await;
    let status = serde_json::json!({"state": "running", "since": Timestamp::UNIX_EPOCH});
    rig.write(&Key::Status(host, InstanceId(1)), &status).await;
    let begin = Instant::now();
    let procs = [rig.web.clone()];
    let settled = settle(&rig.context, &mut watch, &procs, &mut arrivals, |_| Ok(())).await;
    assert_eq!(settled, Ok(()));
    assert_eq!(begin.elapsed().as_secs(), PROXIES_FOLLOW.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_goes_away_is_waited_for_and_the_change_stands() {
    let visor_store = ModelStore::new();
    let faults = visor_store.faults();
    let mut rig = Rig::new().await;
    // The same app on a store that can be taken away.
    let visor = Visor::new(visor_store.shared());
    visor.set_up().await.expect("the model answers");
    rig.context = Context::new(visor, None, None, false);
    let mut watch = Watch::open(rig.context.visor.store().clone(), rig.app.clone()).await;
    faults.unreachable(true);
    faults.end_watches(visor::store::StoreError::WatchEnded { detail: "gone".into() });
    watch.next().await;
    let mut arrivals = Arrivals::begin(&watch);
    let begin = Instant::now();
    let procs = [rig.web.clone()];
    let settled = settle(&rig.context, &mut watch, &procs, &mut arrivals, |_| Ok(())).await;
    let failure = settled.expect_err("it is gone");
    assert_eq!((begin.elapsed().as_secs(), failure.kind), (15, Kind::Coordinator), "{failure}");
    assert!(failure.what.contains("stands"), "{failure}");
}
