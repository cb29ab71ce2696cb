//! Tests of service ports, from registration to rest, on the store in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use visor::{
    clock::WallClock,
    keys::{self, Key},
    migrate::{Next, next},
    names::{AppName, ProcName, RevId, ServicePort},
    port_keeping::PortKeeping,
    ports::{MOST_SERVICES, PortBook},
    schema::*,
    snapshot::Snapshot,
    store::model::{Fate, ModelStore},
    testing::until,
    visor::{Change, Committed, Refusal, Visor, VisorError},
};

const SOON: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn app(name: &str) -> AppName {
    name.parse().expect("an app name")
}

fn proc(name: &str) -> ProcName {
    name.parse().expect("a proc name")
}

fn rev_id(n: usize) -> RevId {
    format!("{n:040x}").parse().expect("a rev")
}

fn rev<'a>(procs: impl IntoIterator<Item = &'a str>) -> Rev {
    Rev {
        slug: Slug { sha256: "0".repeat(64).parse().expect("a digest"), size_bytes: 1 },
        procs: procs.into_iter().map(|name| (proc(name), "run".to_owned())).collect(),
        kind: "procfile".into(),
        by: "me".into(),
        at: now(),
        subject: String::new(),
        extra: Extra::new(),
    }
}

/// A cluster of this version of the schema, whatever wrote it.
struct Cluster {
    store: ModelStore,
    visor: Visor,
}

impl Cluster {
    async fn of(version: u32) -> Cluster {
        let store = ModelStore::new();
        let cluster = Cluster { visor: Visor::new(store.client().shared()), store };
        cluster.visor.set_up().await.expect("it is empty");
        let schema = Schema { version, min_reader: version, min_writer: version, ..Schema::default() };
        cluster.commit(Change::new().put(&Key::Schema, &schema)).await;
        cluster
    }

    async fn commit(&self, change: Change) {
        let done = self.visor.commit(change).await.expect("the model answers");
        assert!(matches!(done, Committed::Done(_)), "{done:?}");
    }

    async fn init(&self, name: &str, token: &str) {
        self.visor.register_app(&app(name), "me", token, now()).await.expect("the name is free");
    }

    async fn push(&self, name: &str, n: usize, procs: &[&str]) -> Result<Vec<u16>, Refusal> {
        let rev = rev(procs.iter().copied());
        match self.visor.register_rev(&app(name), &rev_id(n), &rev, &BTreeSet::new()).await {
            Ok(ports) => Ok(ports.into_values().collect()),
            Err(VisorError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    /// Registers an app with a service as a release before did: without a row of the port.
    async fn old(&self, name: &str, port: u16) {
        self.init(name, name).await;
        let row = rev(["web"]);
        let key = Key::Proc(app(name), proc("web"));
        let change = Change::new()
            .put(&Key::Rev(app(name), rev_id(1)), &row)
            .put(&key, &Proc::new(&proc("web"), port));
        self.commit(change.put(&Key::PortCounter, &u64::from(port))).await;
    }

    /// Writes a port into the row of a service's proc, as the people of the app can.
    async fn name_port(&self, name: &str, proc_name: &str, port: u16) {
        let key = Key::Proc(app(name), proc(proc_name));
        let row = self.visor.get::<Proc>(&key).await.expect("the model answers");
        let row = row.map_or_else(|| Proc::new(&proc(proc_name), port), |row| Proc { port, ..row.value });
        self.commit(Change::new().put(&key, &row)).await;
    }

    async fn image(&self) -> Snapshot {
        self.visor.read(keys::everything()).await.expect("the model answers")
    }

    /// Returns the rows of ports as `PORT APP/PROC`, those at rest with a dash before.
    async fn rows(&self) -> Vec<String> {
        let image = self.image().await;
        let rest = |row: &Port| if row.freed_at.is_some() { "-" } else { "" };
        let rows = image.ports.iter();
        rows.map(|(port, row)| format!("{}{port} {}/{}", rest(row), row.app, row.proc)).collect()
    }

    async fn has(&self, rows: &[&str]) {
        until(&format!("the rows of ports are {rows:?}"), SOON, || async {
            let there = self.rows().await;
            if there == rows { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
    }

    /// Runs the keeper's loop, by a clock that is ahead by as many seconds as the number says.
    fn keep(&self) -> (tokio::task::JoinHandle<()>, Arc<Mutex<i64>>) {
        let ahead = Arc::new(Mutex::new(0));
        let clock = {
            let ahead = ahead.clone();
            WallClock::new(move || now() + SignedDuration::from_secs(*ahead.lock().expect("not poisoned")))
        };
        let keeping = PortKeeping { visor: Visor::new(self.store.client().shared()), clock };
        (tokio::spawn(keeping.run()), ahead)
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_writes_the_rows_of_its_ports_once() {
    let cluster = Cluster::of(SCHEMA_VERSION).await;
    cluster.init("a", "t").await;
    let client = cluster.store.client();
    let slow = Visor::new(client.shared());
    client.faults().next_writes([Fate::LoseReply]);
    let registered = slow.register_rev(&app("a"), &rev_id(1), &rev(["web", "job"]), &BTreeSet::new()).await;
    assert_eq!(registered.expect("it is read back").into_values().collect::<Vec<_>>(), [8501, 8502]);
    assert_eq!(cluster.push("a", 2, &["cron", "web"]).await, Ok(vec![8503, 8502]));
    assert_eq!(cluster.rows().await, ["8501 a/job", "8502 a/web", "8503 a/cron"]);
    // Its people delete the proc's row: the service keeps its port.
    cluster.commit(Change::new().delete(&Key::Proc(app("a"), proc("web")))).await;
    assert_eq!(cluster.push("a", 3, &["web"]).await, Ok(vec![8502]));
}

#[tokio::test(start_paused = true)]
async fn of_thirty_registrations_at_once_none_has_anothers_port() {
    let cluster = Cluster::of(SCHEMA_VERSION).await;
    // Most ports are below the counter, where nothing but their rows tells them apart.
    cluster.commit(Change::new().put(&Key::PortCounter, &32_760_u64)).await;
    let names: Vec<String> = (0..30).map(|n| format!("a{n}")).collect();
    for name in &names {
        cluster.init(name, name).await;
    }
    let all = names.iter().map(|name| {
        let visor = Visor::new(cluster.store.client().shared());
        async move {
            let rev = rev(["web"]);
            visor.register_rev(&app(name), &rev_id(1), &rev, &BTreeSet::new()).await.expect("a port is free")
        }
    });
    let ports: BTreeSet<u16> = join_all(all).await.into_iter().flat_map(BTreeMap::into_values).collect();
    assert_eq!(ports.len(), 30);
    assert_eq!(ports.iter().filter(|port| **port > 32_760).count(), 7, "{ports:?}");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_its_people_wrote_before_gives_no_port() {
    for version in [2, SCHEMA_VERSION] {
        let cluster = Cluster::of(version).await;
        cluster.init("shop", "t").await;
        cluster.push("shop", 1, &["web"]).await.expect("it is registered");
        cluster.init("aaa", "t").await;
        cluster.name_port("aaa", "web", 8501).await;
        assert_eq!(cluster.push("aaa", 1, &["web"]).await, Ok(vec![8502]), "version {version}");
        assert_eq!(cluster.rows().await, ["8501 shop/web", "8502 aaa/web"]);
        assert_eq!(cluster.image().await.apps[&app("aaa")].procs[&proc("web")].port, 8502);
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_has_so_many_services() {
    let cluster = Cluster::of(SCHEMA_VERSION).await;
    cluster.init("a", "t").await;
    let names: Vec<String> = (0..MOST_SERVICES + 1).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (n, procs) in names[..MOST_SERVICES].chunks(50).enumerate() {
        cluster.push("a", n, procs).await.expect("so many it may have");
    }
    let refused = cluster.push("a", 98, &[names[MOST_SERVICES]]).await;
    assert_eq!(refused, Err(Refusal::TooManyServices(app("a"), MOST_SERVICES + 1)));
    cluster.push("a", 99, &names[..50]).await.expect("none of these is new");
}

#[tokio::test(start_paused = true)]
async fn a_port_rests_for_an_hour_after_its_app_and_is_given_again() {
    let cluster = Cluster::of(SCHEMA_VERSION).await;
    for name in ["a", "b"] {
        cluster.init(name, "t").await;
        cluster.push(name, 1, &["web"]).await.expect("it is registered");
    }
    cluster.visor.destroy_app(&app("a")).await.expect("it is there");
    assert!(cluster.visor.forget_app(&app("a"), now()).await.expect("nothing of it runs"));
    cluster.init("a", "t2").await;
    cluster.commit(Change::new().put(&Key::PortCounter, &40_000_u64)).await;
    assert_eq!(cluster.push("a", 1, &["web"]).await, Ok(vec![8503]), "the name is again, the port rests");
    cluster.has(&["-8501 a/web", "8502 b/web", "8503 a/web"]).await;

    let (keeping, ahead) = cluster.keep();
    *ahead.lock().expect("not poisoned") = 3_599;
    tokio::time::sleep(Duration::from_secs(130)).await;
    cluster.has(&["-8501 a/web", "8502 b/web", "8503 a/web"]).await;
    *ahead.lock().expect("not poisoned") = 3_600;
    tokio::time::sleep(Duration::from_secs(70)).await;
    cluster.has(&["8502 b/web", "8503 a/web"]).await;
    keeping.abort();
    cluster.init("c", "t").await;
    assert_eq!(cluster.push("c", 1, &["web"]).await, Ok(vec![8501]));
}

#[tokio::test(start_paused = true)]
async fn a_port_whose_app_an_earlier_release_destroyed_rests_too() {
    let cluster = Cluster::of(2).await;
    cluster.init("a", "t").await;
    cluster.push("a", 1, &["web"]).await.expect("it is registered");
    let rows = keys::app_below(&app("a"));
    cluster.commit(Change::new().delete_all(rows).delete(&Key::App(app("a")))).await;
    let (_keeping, _) = cluster.keep();
    cluster.has(&["-8501 a/web"]).await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_an_earlier_release_left_out_are_written_and_then_the_cluster_can_be_migrated() {
    let cluster = Cluster::of(2).await;
    cluster.old("aaa", 8501).await;
    cluster.old("bbb", 8502).await;
    // Somebody of aaa names the port of bbb. Nobody has changed the row of bbb since.
    cluster.name_port("aaa", "web", 8502).await;
    let image = cluster.image().await;
    assert!(matches!(next(&image), Some(Next::ShutOut(_))));
    let shut = Schema { version: 2, min_reader: 2, min_writer: SCHEMA_VERSION, ..Schema::default() };
    cluster.commit(Change::new().put(&Key::Schema, &shut)).await;
    let left = vec!["apps/aaa/procs/web".to_owned(), "apps/bbb/procs/web".to_owned()];
    assert_eq!(next(&cluster.image().await), Some(Next::Rewriting(left)));

    // Several rms do it at once, and what is lost on the way is written again.
    let client = cluster.store.client();
    client.faults().next_writes([Fate::LoseReply, Fate::LoseRequest]);
    let losing = PortKeeping { visor: Visor::new(client.shared()), clock: WallClock::default() };
    let _losing = tokio::spawn(losing.run());
    let (_keeping, _) = cluster.keep();
    cluster.has(&["8502 bbb/web", "8503 aaa/web"]).await;
    let image = cluster.image().await;
    assert_eq!(image.apps[&app("aaa")].procs[&proc("web")].port, 8503, "for readers of the release before");
    assert_eq!(image.port_counter.as_ref().map(|row| row.value), Some(8503), "an older rm gives the next");
    let Some(Next::Finish(raise)) = next(&image) else { panic!("{:?}", next(&image)) };
    cluster.commit(raise.change()).await;
    let image = cluster.image().await;
    assert_eq!(next(&image), Some(Next::Done));
    assert_eq!(PortBook::of(&image).port(&app("bbb"), &proc("web")), Ok(8502));
    // An older rm beside it gives a port by the counter alone: the row follows.
    let behind = Cluster::of(2).await;
    let (_keeping, _) = behind.keep();
    behind.has(&[]).await;
    behind.old("ccc", 8777).await;
    behind.has(&["8777 ccc/web"]).await;
    behind.init("ddd", "t").await;
    assert_eq!(behind.push("ddd", 1, &["web"]).await, Ok(vec![8778]));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_no_free_port() {
    let cluster = Cluster::of(SCHEMA_VERSION).await;
    cluster.init("a", "t").await;
    cluster.commit(Change::new().put(&Key::Port(ServicePort(8501)), &"?")).await;
    assert_eq!(cluster.push("a", 1, &["web"]).await, Ok(vec![8502]));
    let view = cluster.image().await;
    assert_eq!(view.unreadable.keys().collect::<Vec<_>>(), ["ports/8501"]);
}
