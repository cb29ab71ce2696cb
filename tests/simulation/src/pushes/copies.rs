//! An rm's copies of repositories, and the storage behind them: branches without objects.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bazooka_rm::{
    hook::wire::RefUpdate,
    refs::ChangeSet,
    repos::{
        disk::BranchError,
        origin::OriginError,
        shared::{
            copies::{self, Litter, Snapshot, StoredObjects},
            manifest::Mark,
        },
    },
    storage::StorageError,
};
use tokio::sync::Notify;
use visor::{
    names::{AppName, Digest},
    schema::Stored,
};

use crate::{gate::Gate, world::World};

/// The commit of each branch.
type Branches = BTreeMap<String, String>;

/// A copy on an rm's disk.
#[derive(Clone, Default)]
struct Copy {
    token: String,
    branches: Branches,
    mark: Mark,
}

/// The disk of an rm. A clone is the same disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<BTreeMap<AppName, Copy>>>);

/// The manifests in the storage that the rms share. A clone is the same storage.
#[derive(Clone, Default)]
pub struct ObjectStore(Arc<Mutex<BTreeMap<Digest, Branches>>>);

/// The copies of a living rm.
pub struct Copies {
    world: Arc<World>,
    gate: Gate,
    disk: Disk,
    storage: ObjectStore,
    stored: Notify,
}

impl Copies {
    /// Those on this disk.
    pub fn new(world: &Arc<World>, gate: &Gate, disk: &Disk, storage: &ObjectStore) -> Copies {
        Copies {
            world: world.clone(),
            gate: gate.clone(),
            disk: disk.clone(),
            storage: storage.clone(),
            stored: Notify::new(),
        }
    }

    fn disk(&self) -> MutexGuard<'_, BTreeMap<AppName, Copy>> {
        self.disk.0.lock().expect("nobody panics with it")
    }

    fn manifests(&self) -> MutexGuard<'_, BTreeMap<Digest, Branches>> {
        self.storage.0.lock().expect("nobody panics with it")
    }

    /// The commit of a branch.
    pub fn tip(&self, app: &AppName, branch: &str) -> Option<String> {
        self.disk().get(app)?.branches.get(branch).cloned()
    }

    /// Moves the branch, as git does between the hooks.
    pub async fn move_branch(&self, app: &AppName, update: &RefUpdate) -> Result<(), BranchNotMoved> {
        self.world.wait(0..=200).await;
        self.gate.step().await;
        let mut disk = self.disk();
        let copy = disk.get_mut(app).ok_or(BranchNotMoved::RepositoryGone)?;
        let old = copy.branches.get(&update.name).cloned().unwrap_or_else(|| "0".repeat(40));
        if old != update.old {
            return Err(BranchNotMoved::Moved);
        }
        copy.branches.insert(update.name.clone(), update.new.clone());
        Ok(())
    }

    /// Waits until the objects of a push are stored.
    pub async fn until_stored(&self) {
        self.stored.notified().await;
    }

    /// An effect on the disk or the storage: it takes time, and the rm may die of it.
    async fn effect(&self) {
        self.world.wait(0..=50).await;
        self.gate.step().await;
    }
}

fn commits(row: &Stored) -> Branches {
    row.branches.iter().map(|(name, branch)| (name.clone(), branch.commit.to_string())).collect()
}

#[async_trait]
impl copies::Copies for Copies {
    fn path(&self, app: &AppName) -> PathBuf {
        PathBuf::from(app.as_str())
    }

    fn allows(&self, _: &AppName, _: &ChangeSet, _: Option<&Path>) -> Result<(), BranchError> {
        Ok(())
    }

    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError> {
        let moved = set.updates.iter().find(|update| {
            let now = self.tip(app, &update.name).unwrap_or_else(|| "0".repeat(40));
            now != update.old
        });
        moved.map_or(Ok(()), |update| Err(BranchError::Moved(update.name.clone())))
    }

    fn tips(&self, app: &AppName) -> Result<Branches, OriginError> {
        Ok(self.disk().get(app).map(|copy| copy.branches.clone()).unwrap_or_default())
    }

    fn is_at(&self, app: &AppName, row: &Stored) -> bool {
        self.disk().get(app).is_some_and(|copy| copy.mark.is_of(row))
    }

    async fn ensure(&self, app: &AppName, token: &str) -> Result<(), OriginError> {
        if self.disk().get(app).is_some_and(|copy| copy.token == token) {
            return Ok(());
        }
        self.make_anew(app, token).await
    }

    async fn make_anew(&self, app: &AppName, token: &str) -> Result<(), OriginError> {
        self.effect().await;
        self.disk().insert(app.clone(), Copy { token: token.to_owned(), ..Copy::default() });
        Ok(())
    }

    async fn take_in(&self, app: &AppName, row: &Stored) -> Result<(), OriginError> {
        let wanted = commits(row);
        let copy = self.disk().get(app).cloned().unwrap_or_default();
        if copy.mark.is_of(row) && copy.branches == wanted {
            return Ok(());
        }
        self.effect().await;
        if self.manifests().get(&row.manifest) != Some(&wanted) {
            self.world.breach(format_args!("the row of {app} names what is not stored"));
        }
        // Branches first, then the mark: an rm may die in between.
        if let Some(copy) = self.disk().get_mut(app) {
            copy.branches = wanted;
        }
        self.effect().await;
        if let Some(copy) = self.disk().get_mut(app) {
            copy.mark = Mark { manifest: Some(row.manifest.clone()), packs: Vec::new() };
        }
        Ok(())
    }

    async fn store(&self, snapshot: &Snapshot<'_>) -> Result<StoredObjects, OriginError> {
        self.effect().await;
        let number = self.world.between(0..=u64::MAX);
        let manifest: Digest = format!("{number:064x}").parse().expect("64 digits");
        let branches = snapshot.branches.iter();
        let branches = branches.map(|(name, branch)| (name.clone(), branch.commit.to_string())).collect();
        self.manifests().insert(manifest.clone(), branches);
        self.stored.notify_waiters();
        let mark = Mark { manifest: Some(manifest.clone()), packs: Vec::new() };
        Ok(StoredObjects { manifest, mark, remade: false })
    }

    async fn mark(&self, app: &AppName, objects: &StoredObjects) {
        self.effect().await;
        if let Some(copy) = self.disk().get_mut(app) {
            copy.mark = objects.mark.clone();
        }
    }

    fn point_head(&self, _: &AppName, _: &str) {}

    async fn litter(&self, _: &AppName, _: &Stored, _: &StoredObjects) -> Result<Litter, StorageError> {
        Ok(Litter::default())
    }

    async fn remove(&self, _: Litter) -> Result<(), StorageError> {
        Ok(())
    }

    async fn forget(&self, _: &AppName, _: &str) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Why git refuses to move a branch.
#[derive(Debug, thiserror::Error)]
pub enum BranchNotMoved {
    #[error("the repository has gone")]
    RepositoryGone,
    #[error("the branch has moved meanwhile")]
    Moved,
}
