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
pub mod copies;
pub mod git;
mod left;
pub mod manifest;
pub mod packs;
mod stage;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::AppName,
    schema::{Extra, Repo, Turn},
    transitions::repos::Taken,
    visor::{Visor, VisorError},
};

use self::{cache::RepoCaches, copies::Copies};
use super::{
    Case, Own, Step,
    disk::BranchError,
    origin::{LeftBehind, OpenError, Origin, OriginError, Pushed, Staged},
};
use crate::{apps::Apps, refs::ChangeSet, sources::Sources, storage::StorageError};

/// The number of tries to update a copy, if a pack was merged and deleted meanwhile.
const TRIES: usize = 3;

type Result<T, E = OriginError> = std::result::Result<T, E>;

/// The repositories that several rms share.
#[derive(Clone)]
pub struct Shared {
    copies: Arc<dyn Copies>,
    own: Own,
    visor: Visor,
    apps: Apps,
    sources: Sources,
    caches: Arc<RepoCaches>,
}

impl Shared {
    /// Returns the repositories of which this rm has these copies.
    pub fn new(copies: Arc<dyn Copies>, own: Own, visor: Visor, apps: Apps, sources: Sources) -> Shared {
        Shared { copies, own, visor, apps, sources, caches: Arc::default() }
    }

    /// Returns the token of an app's registration.
    fn token(&self, app: &AppName) -> Result<String> {
        let view = self.apps.view(app).ok_or(OriginError::Gone)?;
        view.app.as_ref().map(|row| row.token.clone()).ok_or(OriginError::Gone)
    }

    /// Stores a repository that this rm has kept only in its state folder. Returns false if a push to it is under way or
    /// it is already stored.
    async fn adopt(&self, app: &AppName) -> Result<bool> {
        let keeper = LeaseKeeper::start(self.visor.store().clone(), LeaseTiming::default());
        let lease = keeper.wait_held().await;
        let push = self.sources.id();
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
        Ok(self.copies.path(app))
    }

    fn allows(&self, app: &AppName, set: &ChangeSet, quarantine: Option<&Path>) -> Result<(), BranchError> {
        self.copies.allows(app, set, quarantine)
    }

    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError> {
        self.copies.is_unmoved(app, set)
    }

    async fn refresh(&self, app: &AppName) -> Result<()> {
        let cache = self.caches.of(app);
        let _alone = cache.alone().await;
        if cache.is_publishing() {
            return Ok(());
        }
        let view = self.apps.view(app).ok_or(OriginError::Gone)?;
        let token = self.token(app)?;
        self.copies.ensure(app, &token).await?;
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
            match self.copies.take_in(app, &row).await {
                // The pack was merged into another one meanwhile; the current row names that.
                Err(OriginError::Storage(StorageError::Missing(_))) if tries < TRIES => tries += 1,
                // The copy has lost an object, or a git process of a dead rm holds a lock in it. The storage has
                // everything.
                Err(error @ (OriginError::Git(_) | OriginError::NotWhole(_) | OriginError::Library(_)))
                    if !anew =>
                {
                    tracing::warn!(app = %app, error = %error, "a repository's copy is made anew");
                    anew = true;
                    self.copies.make_anew(app, &token).await?;
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
            if is_stored || self.copies.tips(&app).unwrap_or_default().is_empty() {
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
        self.copies.forget(app, token).await
    }
}
