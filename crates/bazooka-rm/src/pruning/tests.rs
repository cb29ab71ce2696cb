use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use visor::{
    clock::WallClock,
    keys::{self, Key},
    names::{EnvRef, InstanceId, ProcName, ReleaseId, RevId},
    schema::{AppDay, DayStats, Env, Extra, Instance, Promoter, Rev, Slug},
    seal::Sealed,
    snapshot::{AppView, Versioned},
    stats::day_of,
    store::{Keys, SharedStore, model::ModelStore},
    testing::until,
    transitions::releases::NewRelease,
    visor::{Change, Refusal, VisorError},
};

use super::*;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

fn app() -> AppName {
    "shop".parse().expect("valid")
}

fn rev(n: u32) -> RevId {
    format!("{n:040x}").parse().expect("valid")
}

/// Config vars of so many KiB.
fn env(kib: usize) -> Env {
    let sealed = Some(Sealed { cipher: String::new(), payload: "x".repeat(kib << 10), form: 2 });
    let (links, by) = (BTreeSet::new(), String::new());
    Env { sealed, vars: None, links, by, at: now(), extra: Extra::new() }
}

/// A coordinator in memory with an app, and the loop over it.
struct Rig {
    visor: Visor,
    metrics: RmMetrics,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Rig {
    async fn start(store: SharedStore, bounds: Bounds) -> Rig {
        let visor = Visor::new(store.clone());
        visor.set_up().await.expect("it is in memory");
        visor.register_app(&app(), "ada", "t", now()).await.expect("it is free");
        let (apps, following) = Apps::new(store);
        let metrics = RmMetrics::register(&mut Default::default());
        let own =
            Rm { keep_releases: Some(bounds.releases), app_bytes: Some(bounds.bytes), ..Rm::at("http://rm") };
        let pruner = Pruner {
            apps,
            visor: visor.clone(),
            own,
            busy: Box::new(|_| false),
            sources: Sources::new(WallClock::new(now), || 7),
            metrics: Some(metrics.clone()),
        };
        let tasks = [tokio::spawn(following.run()), tokio::spawn(pruner.run())].map(AbortOnDropHandle::new);
        Rig { visor, metrics, _tasks: tasks }
    }

    async fn view(&self) -> AppView {
        let mut scopes = keys::app(&app());
        scopes.extend(keys::wraps_of(&app()));
        self.visor.read(scopes).await.expect("it answers").apps.remove(&app()).expect("it is there")
    }

    /// Makes a rev, an env of so many KiB, and a release of both.
    async fn release(&self, n: u32, kib: usize) {
        let web: ProcName = "web".parse().expect("valid");
        let row = Rev {
            slug: Slug { sha256: format!("{n:064x}").parse().expect("valid"), size_bytes: 1 },
            procs: BTreeMap::from([(web, "run".to_owned())]),
            kind: "procfile".into(),
            by: "ada".into(),
            at: now() - jiff::SignedDuration::from_hours(5),
            subject: String::new(),
            extra: Extra::new(),
        };
        self.visor.register_rev(&app(), &rev(n), &row, &BTreeSet::new()).await.expect("it is there");
        let env = env(kib);
        let wraps = visor::schema::Wraps::default();
        let change =
            Change::new().put(&Key::Env(app(), EnvRef(n)), &env).put(&Key::Wraps(app(), EnvRef(n)), &wraps);
        self.visor.commit(change).await.expect("it answers");
        let new = NewRelease {
            rev: Some(rev(n)),
            env: Some(EnvRef(n)),
            token: format!("t{n}"),
            ..NewRelease::default()
        };
        self.visor.begin_release(&app(), &new, Promoter::Converger, None, now()).await.expect("it may");
    }

    /// Counts the day as a converger does.
    async fn count(&self) {
        let to = self.view().await.releases.values().map(|row| row.create_revision).max().unwrap_or(0);
        let counted = AppDay { revs: 0, releases: 0, counted_to: to };
        let day = DayStats { by_app: [("t".to_owned(), counted)].into(), ..DayStats::default() };
        let change = Change::new().put(&Key::Day(day_of(now())), &day);
        self.visor.commit(change).await.expect("it answers");
    }

    async fn until_left(&self, wanted: &[u32], revs: usize) {
        until("old ones are pruned", Duration::from_secs(60), || async {
            let view = self.view().await;
            let releases: Vec<u32> = view.releases.keys().map(|id| id.0).collect();
            let envs: Vec<u32> = view.envs.keys().map(|env| env.0).collect();
            let wraps: Vec<u32> = view.wraps.keys().map(|env| env.0).collect();
            if [&releases, &envs, &wraps] == [wanted; 3] && view.revs.len() == revs {
                return Ok(());
            }
            Err(format!("{releases:?}, {envs:?}, {wraps:?}, {} revs", view.revs.len()))
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn old_releases_go_with_their_config_vars_and_revs_once_they_are_counted() {
    let rig = Rig::start(ModelStore::new().shared(), Bounds { releases: 5, ..Bounds::default() }).await;
    for n in 1..=8 {
        rig.release(n, 1).await;
    }
    sleep(EVERY * 2).await;
    rig.until_left(&[1, 2, 3, 4, 5, 6, 7, 8], 8).await;
    rig.count().await;
    rig.until_left(&[4, 5, 6, 7, 8], 5).await;
    let pruned = |kind| rig.metrics.pruned.get_or_create(&crate::metrics::KindLabel { kind }).get();
    assert_eq!((pruned("release"), pruned("env"), pruned("rev")), (3, 3, 3));
    let back = |to: u32| NewRelease {
        rev: Some(rev(to)),
        env: Some(EnvRef(to)),
        back_to: Some(ReleaseId(to)),
        ..NewRelease::default()
    };
    let refused = rig.visor.begin_release(&app(), &back(2), Promoter::Converger, None, now()).await;
    let pruned = Refusal::Pruned(app(), ReleaseId(2), ReleaseId(4));
    assert!(matches!(&refused, Err(VisorError::Refused(refusal)) if *refusal == pruned), "{refused:?}");
    rig.visor.begin_release(&app(), &back(4), Promoter::Converger, None, now()).await.expect("it is kept");
}

#[tokio::test(start_paused = true)]
async fn an_app_is_pruned_whose_instances_were_placed_since_the_rm_began() {
    let rig = Rig::start(ModelStore::new().shared(), Bounds { releases: 5, ..Bounds::default() }).await;
    for n in 1..=8 {
        rig.release(n, 1).await;
    }
    let instance = Instance {
        host: "host1".parse().expect("valid"),
        proc: "web".parse().expect("valid"),
        release: ReleaseId(2),
        rev: rev(2),
        index: 0,
        placed_at: now(),
        reason: String::new(),
        extra: Extra::new(),
    };
    let change = Change::new().put(&Key::Instance(app(), InstanceId(1)), &instance);
    rig.visor.commit(change).await.expect("it answers");
    rig.count().await;
    rig.until_left(&[2, 4, 5, 6, 7, 8], 6).await;
}

#[tokio::test(start_paused = true)]
async fn an_app_that_takes_much_keeps_fewer() {
    let rig = Rig::start(ModelStore::new().shared(), Bounds { bytes: 80 << 10, ..Bounds::default() }).await;
    for n in 1..=7 {
        rig.release(n, 12).await;
    }
    // Four of them fit into 60 KiB with their rows.
    rig.count().await;
    // The last fifty revs stay: they take little.
    rig.until_left(&[4, 5, 6, 7], 7).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_written_past_the_command_line_is_pruned_but_nothing_beside_a_row_that_cannot_be_read() {
    let rig = Rig::start(ModelStore::new().shared(), Bounds { releases: 5, ..Bounds::default() }).await;
    for n in 1..=8 {
        rig.release(n, 1).await;
    }
    let broken = Key::Release(app(), ReleaseId(9));
    rig.visor.commit(Change::new().put(&broken, &"broken")).await.expect("it answers");
    rig.count().await;
    sleep(EVERY * 2).await;
    rig.until_left(&[1, 2, 3, 4, 5, 6, 7, 8], 8).await;
    rig.visor.commit(Change::new().delete_all(Keys::One(broken.to_string()))).await.expect("it answers");
    rig.until_left(&[4, 5, 6, 7, 8], 5).await;
}

#[tokio::test(start_paused = true)]
async fn an_app_whose_config_vars_change_fast_waits_until_etcd_has_forgotten_earlier_ones() {
    let store = ModelStore::new();
    let bounds = Bounds { bytes: 80 << 10, ..Bounds::default() };
    let rig = Rig::start(store.shared(), bounds).await;
    let write = async |n: u32| {
        rig.visor.commit(Change::new().put(&Key::Env(app(), EnvRef(n)), &env(9))).await.expect("it answers");
    };
    let until_there = async |wanted: &[u32], within: Duration| {
        until("they are pruned", within, || async {
            let there: Vec<u32> = rig.view().await.envs.keys().map(|env| env.0).collect();
            if there == wanted { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
    };
    for n in 1..=7 {
        write(n).await;
    }
    // The first time all may go.
    until_there(&[7], Duration::from_secs(5)).await;
    sleep(history::HISTORY_AGE * 2).await;
    for n in 8..=14 {
        write(n).await;
    }
    // Three are more than a quarter of what the app may keep; the last one is the app's.
    let begun = Instant::now();
    until_there(&[10, 11, 12, 13, 14], Duration::from_secs(5)).await;
    until_there(&[14], Duration::from_secs(120)).await;
    assert!(begun.elapsed() >= history::HISTORY_AGE, "{:?}", begun.elapsed());
}

#[test]
fn an_app_beyond_its_bytes_waits_for_nothing() {
    let bounds = Bounds { bytes: 80 << 10, ..Bounds::default() };
    let held = |count: u32| {
        let row = Versioned { value: env(9), create_revision: 1, mod_revision: 1, lease: None };
        let view =
            AppView { envs: (1..=count).map(|n| (EnvRef(n), row.clone())).collect(), ..AppView::default() };
        let mut doomed = Doomed { envs: (1..count).map(|n| (EnvRef(n), 1)).collect(), ..Doomed::default() };
        let mut history = History::default();
        history.add(&app(), 1, 1);
        let left = hold_back(&app(), &view, &mut doomed, bounds, &mut history);
        (matches!(left, Left::Envs), doomed.envs.len())
    };
    assert_eq!(held(8), (true, 3), "a quarter, and the one that exceeds it");
    assert_eq!(held(3), (false, 2));
    // The app was written to past the command line: nothing refuses its next config vars.
    assert_eq!(held(9), (false, 8));
}
