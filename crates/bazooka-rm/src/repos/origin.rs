//! The repositories that pushes move, behind one trait.
//!
//! Owns the trait and its errors. Two implementations exist: [`super::local::Local`], whose repositories are on this
//! rm's disk alone, and [`super::shared::Shared`], whose repositories are in a file storage that several rms share. A
//! push goes through the same steps with both:
//!
//! ```text
//! refresh ─▶ is_unmoved ─▶ stage ─▶ Staged::publish ─▶ (git moves the branch) ─▶ Published::settle
//!                            └── the push fails ──┘  └── the push ends early ──▶ Published::close
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use visor::{
    names::{AppName, InvalidName, RevId},
    schema::{Repo, Turn},
    transitions::releases::NewRelease,
    visor::VisorError,
};

use super::{
    Case, Step,
    disk::{BranchError, DiskError},
};
use crate::{
    git::GitError,
    refs::{ChangeSet, Options},
    storage::StorageError,
};

/// The reasons why a repository can't be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// A failure of the file storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A refusal or failure of the coordinator.
    #[error(transparent)]
    Visor(#[from] VisorError),
    /// A failure of a git process.
    #[error("git failed: {0}")]
    Git(#[source] GitError),
    /// A branch's commit that has no valid id.
    #[error("git failed: {0}")]
    Commit(#[source] InvalidName),
    /// Objects are missing that the branches reach.
    #[error("what is stored of the repository isn't whole: {0}")]
    NotWhole(#[source] GitError),
    /// A failure of libgit2.
    #[error("the repository can't be changed: {0}")]
    Library(#[from] git2::Error),
    /// A failure to make or change the repository's folder.
    #[error("{0}: {source}", source = std::error::Error::source(.0).map(ToString::to_string).unwrap_or_default())]
    Repository(#[from] DiskError),
    /// A failure of this rm's disk.
    #[error("this bazooka-rm's disk failed: {0}")]
    Disk(#[source] io::Error),
    /// A manifest that can't be parsed.
    #[error("the manifest of the repository can't be read: {0}")]
    Manifest(#[source] serde_json::Error),
    /// The app is no longer registered.
    #[error("the app has gone")]
    Gone,
}

/// The reasons why a request gets no repository.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another rm has the repository, at this URL.
    #[error("the repository is {0}")]
    Elsewhere(String),
    /// The repository can't be made current.
    #[error(transparent)]
    NotCurrent(#[from] OriginError),
}

/// The reasons why a staged push can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A refusal or failure of the coordinator.
    #[error(transparent)]
    Visor(#[from] VisorError),
    /// A failure of this rm's disk.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// A push whose commit was built and registered.
pub struct Pushed<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The push's id.
    pub push: &'a str,
    /// The branches that the push moves.
    pub set: &'a ChangeSet,
    /// The commit to which they move.
    pub rev: &'a RevId,
    /// The push's options.
    pub options: Options,
    /// The folder where git keeps the pushed objects until the push is accepted.
    pub quarantine: Option<&'a Path>,
}

/// A release to make for a branch that moved without it.
pub struct LeftBehind {
    /// The release.
    pub release: NewRelease,
    /// The release's rev.
    pub rev: RevId,
    /// The branch's full name.
    pub branch: String,
    /// Held while the release is made; no push to the app begins meanwhile.
    pub turn: Option<tokio::sync::OwnedMutexGuard<()>>,
}

/// The repositories of all apps.
#[async_trait]
pub trait Origin: Send + Sync {
    /// Returns an app's repository for a request, with everything that accepted pushes have changed.
    ///
    /// # Errors
    /// [`OpenError`].
    async fn open(&self, app: &AppName, repo: &Repo) -> Result<PathBuf, OpenError>;

    /// Rejects a forced push if the repository denies it. Git checks this only after the hook, when the build is already
    /// done.
    ///
    /// # Errors
    /// [`BranchError`].
    fn allows(&self, app: &AppName, set: &ChangeSet, quarantine: Option<&Path>) -> Result<(), BranchError>;

    /// Checks that the branches are where the pusher saw them. Git would reject a moved branch only after the build.
    ///
    /// # Errors
    /// [`BranchError`].
    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError>;

    /// Makes this rm's copy of an app's repository current, within a push's turn.
    ///
    /// # Errors
    /// [`OriginError`]; the branches are unchanged.
    async fn refresh(&self, app: &AppName) -> Result<(), OriginError>;

    /// Returns the row by which a push holds an app's turn in the whole cluster. Returns `None` if only this rm takes
    /// pushes to its repositories; the turn on this rm is then enough.
    fn turn(&self, push: &str) -> Option<Turn>;

    /// Prepares a push so that publishing it is one short step. The push must have the turn.
    ///
    /// # Errors
    /// [`OriginError`]; no branch has moved.
    async fn stage(&self, pushed: &Pushed<'_>) -> Result<Box<dyn Staged>, OriginError>;

    /// Takes up the repositories that an earlier run of this rm left. Called once, before [`Origin::suspects`].
    async fn take_up(&self);

    /// Returns the apps with a branch that may have moved without its release.
    fn suspects(&self) -> Vec<AppName>;

    /// Returns a release that is missing for a branch of an app. `None` while a push to the app is under way.
    ///
    /// # Errors
    /// The store's.
    async fn left_behind(&self, app: &AppName) -> Result<Option<LeftBehind>, VisorError>;

    /// Records that such a release was made.
    async fn made_up(&self, app: &AppName, left: &LeftBehind);

    /// Returns an app's due steps towards its wanted repository. Pure.
    fn steps(&self, case: &Case<'_>) -> Vec<Step>;

    /// Deletes the objects of a destroyed app's registration that are outside of this rm's state folder.
    ///
    /// # Errors
    /// [`StorageError`]; some objects may be deleted.
    async fn forget(&self, app: &AppName, token: &str) -> Result<(), StorageError>;
}

/// A push that is ready to be published.
#[async_trait]
pub trait Staged: Send + Sync {
    /// Makes the push count as done. Git must be told to move the branch next.
    ///
    /// # Errors
    /// [`PublishError`]: the push does not count, unless the coordinator's answer was lost.
    async fn publish(self: Box<Self>) -> Result<Arc<dyn Published>, PublishError>;
}

/// A published push, for which git moves the branch.
///
/// Dropping it ends the time in which this rm's copy is left to git.
#[async_trait]
pub trait Published: Send + Sync {
    /// Records that git has moved the branch and that head has followed.
    async fn settle(&self);

    /// Ends a push that was not settled; git may have moved the branch or not. Returns true if the push counts.
    async fn close(&self) -> bool;
}
