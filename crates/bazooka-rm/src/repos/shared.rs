//! Repositories that survive the loss of their rm: packs in the file storage, and one row in the coordinator that is
//! the truth.
//!
//! Owns a push's way into the storage, and the way from there into this rm's copy. The row (`stored/A`) has each
//! branch's commit and the manifest that names the packs. Packs and manifest are stored before the row moves, and the
//! row moves before git moves this rm's own branch. So an acknowledged push is stored. If an rm dies, the row has
//! either not moved, or it has moved and the push counts as done: the next rm updates its copy to the row, and
//! [`left`] finds the release that is missing.
//!
//! ```text
//! turn taken ─▶ copy updated ─build─▶ packs, manifest stored ─trial─▶ row moved ─git─▶ branch moved ─▶ head moved
//!      └── nothing changed ─────────────── litter in the storage ──┘      └────── the push is done ──────────┘
//! ```
//!
//! A copy is updated before each request is answered. While a push is published, from the move of the row until git has
//! moved the branch, the copy is left to git. That time ends with the value [`Publishing`], however the push ends.

mod cache;
mod left;
pub mod manifest;
pub mod packs;
mod stage;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use git2::{Oid, Repository};
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::{AppName, Digest},
    schema::{Extra, Repo, Stored, Turn},
    transitions::repos::Taken,
    visor::{Visor, VisorError},
};

use self::{
    cache::RepoCaches,
    manifest::{Manifest, Mark},
};
use super::{
    Case, Own, Step,
    disk::{self, BranchError, Disk, tips},
    origin::{LeftBehind, OpenError, Origin, OriginError, Pushed, Staged},
};
use crate::{
    apps::Apps,
    layout::Layout,
    refs::{BRANCHES, ChangeSet},
    storage::{self, Storage, StorageError},
};

/// The number of tries to update a copy, if a pack was merged and deleted meanwhile.
const TRIES: usize = 3;

type Result<T, E = OriginError> = std::result::Result<T, E>;

/// The repositories that several rms share.
#[derive(Clone)]
pub struct Shared {
    layout: Layout,
    disk: Disk,
    storage: Storage,
    own: Own,
    visor: Visor,
    apps: Apps,
    caches: Arc<RepoCaches>,
}

impl Shared {
    /// Returns the repositories of a storage, with this rm's copies on `disk` below `layout`.
    pub fn new(layout: Layout, disk: Disk, storage: Storage, own: Own, visor: Visor, apps: Apps) -> Shared {
        Shared { layout, disk, storage, own, visor, apps, caches: Arc::default() }
    }

    /// Returns the token of an app's registration.
    fn token(&self, app: &AppName) -> Result<String> {
        let view = self.apps.view(app).ok_or(OriginError::Gone)?;
        view.app.as_ref().map(|row| row.token.clone()).ok_or(OriginError::Gone)
    }

    async fn take_in(&self, app: &AppName, row: &Stored) -> Result<()> {
        let repository = self.layout.repo(app);
        let mark = Mark::read(&repository);
        if mark.is_of(row) && tips(&repository)? == commits(row) {
            return Ok(());
        }
        let place = storage::repo(app, &row.token);
        let name = storage::manifest(&place, row.generation, &row.manifest);
        let manifest: Manifest = serde_json::from_slice(&self.storage.get(&name, &row.manifest).await?)
            .map_err(OriginError::Manifest)?;
        let wanted: Vec<String> = row.branches.values().map(|branch| branch.commit.to_string()).collect();
        let missing = manifest.packs.iter().filter(|pack| !mark.packs.contains(pack));
        self.fetch(app, row, missing).await?;
        packs::connected(&repository, &wanted).await?;
        let after = row.clone();
        blocking(move || {
            point(&repository, &after)?;
            let mark = Mark { manifest: Some(after.manifest), packs: manifest.packs };
            mark.write(&repository).map_err(OriginError::Disk)
        })
        .await?;
        tracing::info!(app = %app, generation = row.generation, "repository brought up to what is stored");
        Ok(())
    }

    async fn fetch(&self, app: &AppName, row: &Stored, packs: impl Iterator<Item = &Digest>) -> Result<()> {
        let (place, repository) = (storage::repo(app, &row.token), self.layout.repo(app));
        for pack in packs {
            let file = tempfile::NamedTempFile::new_in(self.layout.packs()).map_err(OriginError::Disk)?;
            self.storage.fetch(&storage::pack(&place, pack), pack, file.path()).await?;
            packs::take_in(&repository, file.path()).await?;
        }
        Ok(())
    }

    /// Stores a repository that this rm has kept only in its state folder. Returns false if a push to it is under way or
    /// it is already stored.
    async fn adopt(&self, app: &AppName) -> Result<bool> {
        let keeper = LeaseKeeper::start(self.visor.store().clone(), LeaseTiming::default());
        let lease = keeper.wait_held().await;
        let push = format!("{:032x}", rand::random::<u128>());
        let adopted = async {
            let is_stored = self.visor.stored(app).await?.is_some();
            if is_stored || self.visor.take_turn(app, &self.turn_of(&push), lease).await? != Taken::Ours {
                return Ok(false);
            }
            let moved = self.stage_adopted(app).await?;
            self.visor.store_repo(app, &push, moved.before, &moved.after).await?;
            Ok(true)
        };
        let adopted = adopted.await;
        keeper.release().await;
        adopted
    }

    fn turn_of(&self, push: &str) -> Turn {
        Turn {
            rm: self.own.name.clone(),
            process: self.own.process.clone(),
            push: push.to_owned(),
            extra: Extra::new(),
        }
    }
}

#[async_trait]
impl Origin for Shared {
    async fn open(&self, app: &AppName, _repo: &Repo) -> Result<PathBuf, OpenError> {
        self.refresh(app).await?;
        Ok(self.layout.repo(app))
    }

    fn allows(&self, app: &AppName, set: &ChangeSet, quarantine: Option<&Path>) -> Result<(), BranchError> {
        disk::allows(&self.layout.repo(app), app, set, quarantine)
    }

    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError> {
        disk::is_unmoved(&self.layout.repo(app), set)
    }

    async fn refresh(&self, app: &AppName) -> Result<()> {
        let cache = self.caches.of(app);
        let _alone = cache.alone().await;
        if cache.is_publishing() {
            return Ok(());
        }
        let view = self.apps.view(app).ok_or(OriginError::Gone)?;
        let token = self.token(app)?;
        let (disk, name, registration) = (self.disk.clone(), app.clone(), token.clone());
        blocking(move || Ok(disk.ensure(&name, &registration)?)).await?;
        let (mut tries, mut anew) = (1, false);
        loop {
            let row = match self.visor.stored(app).await {
                Ok(row) => row,
                // Fetches work without the coordinator, from the last known row. A push has already needed the
                // coordinator.
                Err(VisorError::Store(error)) => {
                    tracing::warn!(app = %app, error = %error, "can't ask what is stored; going by the last word");
                    view.stored.clone()
                }
                Err(error) => return Err(error.into()),
            };
            let Some(row) = row.filter(|row| row.token == token) else { return Ok(()) };
            match self.take_in(app, &row).await {
                // The pack was merged into another one meanwhile; the current row names that.
                Err(OriginError::Storage(StorageError::Missing(_))) if tries < TRIES => tries += 1,
                // The copy has lost an object, or a git process of a dead rm holds a lock in it. The storage has
                // everything.
                Err(error @ (OriginError::Git(_) | OriginError::NotWhole(_) | OriginError::Library(_)))
                    if !anew =>
                {
                    tracing::warn!(app = %app, error = %error, "a repository's copy is made anew");
                    anew = true;
                    let (disk, name, registration) = (self.disk.clone(), app.clone(), token.clone());
                    blocking(move || {
                        disk.put_away(&name).map_err(OriginError::Disk)?;
                        Ok(disk.ensure(&name, &registration)?)
                    })
                    .await?;
                }
                other => return other,
            }
        }
    }

    fn turn(&self, push: &str) -> Option<Turn> {
        Some(self.turn_of(push))
    }

    async fn stage(&self, pushed: &Pushed<'_>) -> Result<Box<dyn Staged>> {
        Ok(Box::new(self.stage_push(pushed).await?))
    }

    /// Stores the repositories that this rm has kept only in its state folder so far.
    async fn take_up(&self) {
        for (app, view) in self.apps.known().apps {
            let is_stored =
                view.stored.as_ref().zip(view.app.as_ref()).is_some_and(|(row, app)| row.token == app.token);
            if is_stored || tips(&self.layout.repo(&app)).unwrap_or_default().is_empty() {
                continue;
            }
            match self.adopt(&app).await {
                Ok(true) => tracing::info!(app = %app, "repository stored"),
                Ok(false) => {}
                Err(error) => tracing::warn!(app = %app, error = %error, "a repository can't be stored yet"),
            }
        }
    }

    fn suspects(&self) -> Vec<AppName> {
        let apps = self.apps.known().apps.into_iter();
        apps.filter(|(_, view)| left::left_branch(view).is_some()).map(|(app, _)| app).collect()
    }

    async fn left_behind(&self, app: &AppName) -> Result<Option<LeftBehind>, VisorError> {
        // The rows in the apps' image may be of different moments, and a push ends its turn after its release; so read
        // them again.
        Ok(self.visor.app_with_stored(app).await?.and_then(|view| left::release(&view)))
    }

    /// Does nothing: the release's own row is the record.
    async fn made_up(&self, _app: &AppName, _left: &LeftBehind) {}

    fn steps(&self, case: &Case<'_>) -> Vec<Step> {
        super::shared_steps(case)
    }

    async fn forget(&self, app: &AppName, token: &str) -> Result<(), StorageError> {
        let all = self.storage.litter(&storage::repo(app, token), Duration::ZERO, |_| false).await?;
        self.storage.remove(all).await
    }
}

/// Sets a copy's branches to the commits of the stored row.
fn point(repository: &Path, row: &Stored) -> Result<(), git2::Error> {
    let repository = Repository::open_bare(repository)?;
    for name in BRANCHES {
        match row.branches.get(name) {
            Some(branch) => {
                let commit = Oid::from_str(branch.commit.as_str())?;
                if repository.refname_to_id(name).ok() != Some(commit) {
                    repository.reference(name, commit, true, "bazooka-rm: brought up to what is stored")?;
                }
            }
            None => {
                if let Ok(mut branch) = repository.find_reference(name) {
                    branch.delete()?;
                }
            }
        }
    }
    if BRANCHES.contains(&row.head.as_str()) {
        repository.set_head(&row.head)?;
    }
    Ok(())
}

fn commits(row: &Stored) -> BTreeMap<String, String> {
    row.branches.iter().map(|(name, branch)| (name.clone(), branch.commit.to_string())).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| OriginError::Disk(io::Error::other(error)))?
}
