//! Copies in git repositories, made from packs in the file storage.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use git2::{Oid, Repository};
use visor::{
    names::{AppName, Digest},
    schema::Stored,
};

use super::{
    copies::{Copies, Litter, Snapshot, StoredObjects},
    manifest::{Manifest, Mark},
    packs,
};
use crate::{
    layout::Layout,
    refs::{BRANCHES, ChangeSet},
    repos::{
        disk::{self, BranchError, Disk},
        origin::OriginError,
    },
    storage::{self, Storage, StorageError},
};

/// The number of packs at which the next push merges all into one. An rm without a copy fetches each pack.
const MOST_PACKS: usize = 24;

/// The age at which an unnamed object is deleted. Younger ones may belong to another rm's push that has not moved the
/// row yet.
const LITTER_AFTER: Duration = Duration::from_secs(3600);

type Result<T, E = OriginError> = std::result::Result<T, E>;

/// The copies below a state folder, and the storage that they are made from.
pub struct GitCopies {
    /// The paths below the state folder.
    pub layout: Layout,
    /// The repositories.
    pub disk: Disk,
    /// The storage.
    pub storage: Storage,
}

impl GitCopies {
    async fn fetch(&self, app: &AppName, row: &Stored, packs: impl Iterator<Item = &Digest>) -> Result<()> {
        let (place, repository) = (storage::repo(app, &row.token), self.layout.repo(app));
        for pack in packs {
            let file = tempfile::NamedTempFile::new_in(self.layout.packs()).map_err(OriginError::Disk)?;
            self.storage.fetch(&storage::pack(&place, pack), pack, file.path()).await?;
            packs::take_in(&repository, file.path()).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Copies for GitCopies {
    fn path(&self, app: &AppName) -> PathBuf {
        self.layout.repo(app)
    }

    fn allows(&self, app: &AppName, set: &ChangeSet, quarantine: Option<&Path>) -> Result<(), BranchError> {
        disk::allows(&self.layout.repo(app), app, set, quarantine)
    }

    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError> {
        disk::is_unmoved(&self.layout.repo(app), set)
    }

    fn tips(&self, app: &AppName) -> Result<BTreeMap<String, String>> {
        Ok(disk::tips(&self.layout.repo(app))?)
    }

    fn is_at(&self, app: &AppName, row: &Stored) -> bool {
        Mark::read(&self.layout.repo(app)).is_of(row)
    }

    async fn ensure(&self, app: &AppName, token: &str) -> Result<()> {
        let (disk, app, token) = (self.disk.clone(), app.clone(), token.to_owned());
        blocking(move || Ok(disk.ensure(&app, &token)?)).await
    }

    async fn make_anew(&self, app: &AppName, token: &str) -> Result<()> {
        let (disk, app, token) = (self.disk.clone(), app.clone(), token.to_owned());
        blocking(move || {
            disk.archive(&app).map_err(OriginError::Disk)?;
            Ok(disk.ensure(&app, &token)?)
        })
        .await
    }

    async fn take_in(&self, app: &AppName, row: &Stored) -> Result<()> {
        let repository = self.layout.repo(app);
        let mark = Mark::read(&repository);
        if mark.is_of(row) && disk::tips(&repository)? == commits(row) {
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

    async fn store(&self, snapshot: &Snapshot<'_>) -> Result<StoredObjects> {
        let Snapshot { app, token, row, branches, moved, .. } = snapshot;
        let repository = self.layout.repo(app);
        let mark = Mark::read(&repository);
        let remade = mark.packs.len() >= MOST_PACKS;
        let base: Vec<String> = match row {
            Some(row) if !remade => row.branches.values().map(|branch| branch.commit.to_string()).collect(),
            _ => Vec::new(),
        };
        let is_whole = remade || row.is_none();
        let reached = if is_whole { branches } else { moved };
        let wanted: BTreeSet<String> = reached.values().map(|branch| branch.commit.to_string()).collect();
        let wanted: Vec<String> = wanted.into_iter().collect();
        let mut packs = if is_whole { Vec::new() } else { mark.packs };
        let place = storage::repo(app, token);
        if !wanted.is_empty() {
            let made =
                packs::make(&repository, snapshot.quarantine, &wanted, &base, &self.layout.packs()).await?;
            if let Some(made) = made.filter(|made| !packs.contains(&made.sha256)) {
                self.storage.put_file(&storage::pack(&place, &made.sha256), &made.file).await?;
                packs.push(made.sha256);
            }
        }
        let manifest = Manifest {
            app: app.to_string(),
            generation: snapshot.generation,
            branches: branches
                .iter()
                .map(|(name, branch)| (name.clone(), branch.commit.to_string()))
                .collect(),
            head: snapshot.head.to_owned(),
            packs: packs.clone(),
        };
        let bytes = serde_json::to_vec(&manifest).expect("names and digests are always valid JSON");
        let manifest = storage::digest(&bytes);
        self.storage.put(&storage::manifest(&place, snapshot.generation, &manifest), bytes).await?;
        let mark = Mark { manifest: Some(manifest.clone()), packs };
        Ok(StoredObjects { manifest, mark, remade })
    }

    async fn mark(&self, app: &AppName, objects: &StoredObjects) {
        let (repository, mark) = (self.layout.repo(app), objects.mark.clone());
        if let Err(error) = blocking(move || mark.write(&repository).map_err(OriginError::Disk)).await {
            tracing::warn!(app = %app, error = %error, "can't note how far a repository's copy is");
        }
    }

    fn point_head(&self, app: &AppName, branch: &str) {
        disk::point_head(&self.layout.repo(app), branch);
    }

    async fn litter(
        &self,
        app: &AppName,
        after: &Stored,
        objects: &StoredObjects,
    ) -> Result<Litter, StorageError> {
        if !objects.remade {
            return Ok(Litter::default());
        }
        let place = storage::repo(app, &after.token);
        let mut kept: BTreeSet<object_store::path::Path> =
            objects.mark.packs.iter().map(|pack| storage::pack(&place, pack)).collect();
        kept.insert(storage::manifest(&place, after.generation, &after.manifest));
        Ok(Litter(self.storage.litter(&place, LITTER_AFTER, |name| kept.contains(name)).await?))
    }

    async fn remove(&self, litter: Litter) -> Result<(), StorageError> {
        self.storage.remove(litter.0).await
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
