//! Pushes over an etcd in memory, with a real repository and a real file storage, and without git's own processes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use clap::Parser;
use git2::{Repository, Signature};
use jiff::Timestamp;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use visor::{
    names::AppName,
    seal::{Keyring, Os, SecretKey},
    store::{
        Keys, LeaseId, Op, Page, Revision, SharedStore, Store, StoreError, Txn, TxnReply, Watch,
        model::ModelStore,
    },
    testing::until,
    visor::Visor,
    wrapping::SharedRing,
};

use super::{PushParts, Pushes, Rejected, Times, prepare::Builder};
use crate::{
    apps::Apps,
    audit::Auditor,
    build::isolation::{BuildOptions, Builds},
    hook::wire::{Call, Hook, RefUpdate},
    layout::Layout,
    metrics::RmMetrics,
    queue::BuildQueue,
    refs::BRANCHES,
    repos::{
        Own,
        disk::{Disk, tips},
        origin::Origin,
        shared::{Shared, git::GitCopies},
    },
    slugs::Slugs,
    sources::Sources,
    storage::Storage,
    turns::Turns,
    voice::Voice,
};

const SOON: Duration = Duration::from_secs(30);

/// A store that holds back the reply to each write of a stored repository.
struct SlowStore {
    store: SharedStore,
    written: Notify,
    go_on: Notify,
}

#[async_trait]
impl Store for SlowStore {
    async fn range(&self, keys: Keys, at: Option<Revision>) -> Result<Page, StoreError> {
        self.store.range(keys, at).await
    }

    async fn page(&self, keys: Keys, after: String, most: usize, at: Revision) -> Result<Page, StoreError> {
        self.store.page(keys, after, most, at).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StoreError> {
        let is_slow =
            txn.then.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with("stored/")));
        let reply = self.store.txn(txn).await;
        if is_slow {
            self.written.notify_one();
            self.go_on.notified().await;
        }
        reply
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(keys, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    builds: BuildOptions,
}

/// An rm that shares its repositories, with one registered app.
struct World {
    dir: TempDir,
    store: Arc<SlowStore>,
    layout: Layout,
    origin: Arc<dyn Origin>,
    pushes: Arc<Pushes>,
    app: AppName,
    _following: AbortOnDropHandle<()>,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(SlowStore {
            store: ModelStore::new().shared(),
            written: Notify::new(),
            go_on: Notify::new(),
        });
        let visor = Visor::new(store.clone());
        let app: AppName = "pages".parse().expect("valid");
        visor.set_up().await.expect("the store answers");
        visor.register_app_of(&app, "ada", None, "token", Timestamp::now()).await.expect("registered");
        let (apps, following) = Apps::new(store.clone());
        let following = AbortOnDropHandle::new(tokio::spawn(following.run()));
        until("the app is seen", SOON, || async { apps.view(&app).map(drop).ok_or("not yet".into()) }).await;

        let layout = Layout::open(&dir.path().join("rm")).expect("made");
        let program = PathBuf::from("/bin/true");
        let disk = Disk::new(layout.clone(), program.clone());
        let storage = Storage::open(&format!("file://{}/storage", dir.path().display())).expect("made");
        let own = Own {
            name: "rm1".parse().expect("valid"),
            process: "process".into(),
            url: "http://127.0.0.1:1".into(),
            git_url: "http://127.0.0.1:1".into(),
        };
        let slugs = Slugs::new(layout.clone(), Some(storage.clone()));
        let sources = Sources::default();
        let auditor = Auditor { visor: visor.clone(), own: own.name.clone(), sources: sources.clone() };
        let copies = Arc::new(GitCopies { layout: layout.clone(), disk, storage });
        let origin: Arc<dyn Origin> =
            Arc::new(Shared::new(copies, own, visor.clone(), apps.clone(), sources.clone()));
        let options = Options::parse_from(["test", "--build-isolation", "none"]).builds;
        let builds = Builds::find(options, &layout, &program, Vec::new()).await.expect("no isolation");
        let builder = Builder {
            apps: apps.clone(),
            visor: visor.clone(),
            layout: layout.clone(),
            program,
            ring: SharedRing::new(Keyring::of(SecretKey::fresh(&mut Os))),
            queue: BuildQueue::new(builds.at_once(), Gauge::default()),
            builds: Arc::new(builds),
            slugs,
            metrics: RmMetrics::register(&mut Registry::default()),
        };
        let pushes = Arc::new(Pushes::new(PushParts {
            apps,
            visor,
            origin: origin.clone(),
            turns: Arc::<Turns>::default(),
            builder: Arc::new(builder),
            auditor,
            times: Times::default(),
            sources,
        }));
        World { dir, store, layout, origin, pushes, app, _following: following }
    }

    /// Makes a commit that no branch names, as git has it in quarantine.
    fn commit(&self) -> String {
        let repository = Repository::open_bare(self.layout.repo(&self.app)).expect("it is there");
        let procfile = repository.blob(b"web: x\n").expect("written");
        let mut tree = repository.treebuilder(None).expect("a tree");
        tree.insert("Procfile", procfile, 0o100_644).expect("inserted");
        let tree = repository.find_tree(tree.write().expect("written")).expect("it is there");
        let ada = Signature::now("Ada", "ada@localhost").expect("valid");
        repository.commit(None, &ada, &ada, "first", &tree, &[]).expect("written").to_string()
    }
}

#[tokio::test]
async fn a_copy_is_not_left_to_git_for_ever_if_its_push_ends_while_it_is_published() {
    let world = World::new().await;
    world.origin.refresh(&world.app).await.expect("the copy is made");
    let commit = world.commit();
    let push = world.pushes.open(world.app.clone(), Some("ada".into()), None);
    let update = RefUpdate { old: "0".repeat(40), new: commit.clone(), name: BRANCHES[0].into() };
    let call = Call {
        hook: Hook::PreReceive,
        push: push.id.clone(),
        updates: vec![update],
        quarantine: None,
        options: Vec::new(),
    };
    let (voice, mut lines) = Voice::new();
    let _reading = AbortOnDropHandle::new(tokio::spawn(async move { while lines.recv().await.is_some() {} }));
    let hook = tokio::spawn({
        let (pushes, push) = (world.pushes.clone(), push.clone());
        async move { pushes.pre_receive(&push, &call, &voice, &CancellationToken::new()).await }
    });
    // The row has moved. Git dies before the hook hears of it, and the request ends.
    world.store.written.notified().await;
    world.pushes.close(&push).await;
    world.store.go_on.notify_one();
    let answer = hook.await.expect("it does not panic");
    assert!(matches!(answer, Err(Rejected::Cancelled)), "{answer:?}");

    world.origin.refresh(&world.app).await.expect("the copy is updated");
    let tips = tips(&world.layout.repo(&world.app)).expect("readable");
    assert_eq!(tips.get(BRANCHES[0]), Some(&commit), "the copy equals the stored row");
    assert!(world.dir.path().exists());
}
