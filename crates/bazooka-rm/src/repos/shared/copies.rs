//! This rm's copies of shared repositories, and the storage behind them.
//!
//! Owns the trait between the protocol of pushes ([`super`]), which the coordinator's rows decide, and git with its
//! packs ([`super::git::GitCopies`]). A simulation has copies of its own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use visor::{
    names::{AppName, Digest},
    schema::{Branch, Stored},
};

use super::manifest::Mark;
use crate::{
    refs::ChangeSet,
    repos::{disk::BranchError, origin::OriginError},
    storage::StorageError,
};

/// A state of a repository whose objects are to be stored.
pub struct Snapshot<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The token of the app's registration.
    pub token: &'a str,
    /// The stored row, if there is one.
    pub row: Option<&'a Stored>,
    /// All branches, with their new commits.
    pub branches: &'a BTreeMap<String, Branch>,
    /// The branches among them that a push moves.
    pub moved: &'a BTreeMap<String, Branch>,
    /// The branch that a clone checks out.
    pub head: &'a str,
    /// The new generation.
    pub generation: u64,
    /// The folder where git keeps the pushed objects until the push is accepted.
    pub quarantine: Option<&'a Path>,
}

/// The stored objects of such a state.
#[derive(Clone, Debug)]
pub struct StoredObjects {
    /// The manifest's SHA-256.
    pub manifest: Digest,
    /// The mark of a copy that equals the state.
    pub mark: Mark,
    /// True if all earlier packs were merged into one.
    pub remade: bool,
}

/// Old objects that no stored state names.
#[derive(Debug, Default)]
pub struct Litter(pub(super) Vec<object_store::path::Path>);

/// The copies of all apps.
#[async_trait]
pub trait Copies: Send + Sync {
    /// Returns the path of an app's copy.
    fn path(&self, app: &AppName) -> PathBuf;

    /// Rejects a forced push if the repository denies it.
    ///
    /// # Errors
    /// [`BranchError`].
    fn allows(&self, app: &AppName, set: &ChangeSet, quarantine: Option<&Path>) -> Result<(), BranchError>;

    /// Checks that the branches of a change set are where the pusher saw them.
    ///
    /// # Errors
    /// [`BranchError`].
    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError>;

    /// Returns the commit of each branch of a copy.
    ///
    /// # Errors
    /// If there is no copy.
    fn tips(&self, app: &AppName) -> Result<BTreeMap<String, String>, OriginError>;

    /// True if the copy is known to equal a stored row.
    fn is_at(&self, app: &AppName, row: &Stored) -> bool;

    /// Makes an empty copy for a registration, if there is none.
    ///
    /// # Errors
    /// [`OriginError`].
    async fn ensure(&self, app: &AppName, token: &str) -> Result<(), OriginError>;

    /// Replaces a copy by an empty one.
    ///
    /// # Errors
    /// [`OriginError`].
    async fn make_anew(&self, app: &AppName, token: &str) -> Result<(), OriginError>;

    /// Updates a copy to the stored row.
    ///
    /// # Errors
    /// [`OriginError`]; the branches are unchanged.
    async fn take_in(&self, app: &AppName, row: &Stored) -> Result<(), OriginError>;

    /// Stores the objects of a state.
    ///
    /// # Errors
    /// [`OriginError`]; unnamed objects may be left in the storage.
    async fn store(&self, snapshot: &Snapshot<'_>) -> Result<StoredObjects, OriginError>;

    /// Records that a copy equals a stored state. Without the record, the next request updates the copy once more,
    /// without effect.
    async fn mark(&self, app: &AppName, objects: &StoredObjects);

    /// Points a copy's HEAD at a branch.
    fn point_head(&self, app: &AppName, branch: &str);

    /// Finds old objects that a stored state doesn't need.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn litter(
        &self,
        app: &AppName,
        after: &Stored,
        objects: &StoredObjects,
    ) -> Result<Litter, StorageError>;

    /// Deletes such objects.
    ///
    /// # Errors
    /// [`StorageError`]; some may be deleted.
    async fn remove(&self, litter: Litter) -> Result<(), StorageError>;

    /// Deletes all stored objects of a registration.
    ///
    /// # Errors
    /// [`StorageError`]; some may be deleted.
    async fn forget(&self, app: &AppName, token: &str) -> Result<(), StorageError>;
}
