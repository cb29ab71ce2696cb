//! Repositories that survive the loss of their rm: packs in the file storage, and one row in the coordinator that is
//! the truth.
//!
//! Owns a push's way into the storage, and the way from there into this rm's copy. The row (`stored/A`) has each
//! branch's commit and the manifest that names the packs. Packs and manifest are stored before the row moves, and the
//! row moves before git moves this rm's own branch. So an acknowledged push is stored. If an rm dies, the row has
//! either not moved, or it has moved and the push counts as done: the next rm updates its copy to the row, and
//! `push::mend` makes the release.
//!
//! ```text
//! turn taken ─▶ copy updated ─build─▶ packs, manifest stored ─trial─▶ row moved ─git─▶ branch moved ─▶ head moved
//!      └── nothing changed ─────────────── litter in the storage ──┘      └────── the push is done ──────────┘
//! ```
//!
//! A copy is updated before each request is answered. After a push has moved the row and until git has moved the
//! branch, the copy is left to git.

pub mod manifest;
pub mod packs;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use git2::{Oid, Repository};
use tokio::sync::Mutex as AsyncMutex;
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::{AppName, Digest, InvalidName, RevId},
    schema::{Branch, Extra, Stored, Turn},
    snapshot::Versioned,
    store::Revision,
    transitions::repos::Taken,
    visor::VisorError,
};

use self::manifest::{Manifest, Mark};
use crate::{
    git::GitError,
    push::refs::BRANCHES,
    repos::disk::{Disk, DiskError},
    rm::SharedRm,
    storage::{self, Storage, StorageError},
};

/// The number of packs at which the next push merges all into one. An rm without a copy fetches each pack.
const MOST_PACKS: usize = 24;

/// The age at which an unnamed object is deleted. Younger ones may belong to another rm's push that has not moved the
/// row yet.
const LITTER_AFTER: Duration = Duration::from_secs(3600);

/// The number of tries to update a copy, if a pack was merged and deleted meanwhile.
const TRIES: usize = 3;

/// The reasons why a repository can't be stored, or a copy can't be updated.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
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

type Result<T, E = StoredError> = std::result::Result<T, E>;

/// The state of this rm's copies of repositories.
#[derive(Default)]
pub struct Shelves(Mutex<BTreeMap<AppName, Arc<Shelf>>>);

#[derive(Default)]
struct Shelf {
    /// Serialises changes of the copy.
    alone: AsyncMutex<()>,
    /// True after a push has moved the row, while git moves the branch.
    landing: AtomicBool,
}

impl Shelves {
    fn of(&self, app: &AppName) -> Arc<Shelf> {
        let mut shelves = self.0.lock().expect("no holder of this lock panics");
        shelves.retain(|name, shelf| {
            name == app || Arc::strong_count(shelf) > 1 || shelf.landing.load(Ordering::SeqCst)
        });
        shelves.entry(app.clone()).or_default().clone()
    }
}

/// A push whose objects are all in the storage; only the row has still to move.
#[derive(Clone, Debug)]
pub struct Stash {
    before: Option<Revision>,
    after: Stored,
    mark: Mark,
    /// True if this push merged all earlier packs into one.
    remade: bool,
}

/// Updates this rm's copy to the stored row. Does nothing without a shared storage.
///
/// # Errors
/// [`StoredError`]; the copy is unchanged, or has more objects that no branch names yet.
pub async fn bring_up(rm: &SharedRm, app: &AppName) -> Result<()> {
    let Some(storage) = &rm.storage else { return Ok(()) };
    let shelf = rm.shelves.of(app);
    let _alone = shelf.alone.lock().await;
    if shelf.landing.load(Ordering::SeqCst) {
        return Ok(());
    }
    let view = rm.apps.view(app).ok_or(StoredError::Gone)?;
    let token = view.app.as_ref().map(|row| row.token.clone()).ok_or(StoredError::Gone)?;
    let disk = Disk::new(rm.layout.clone(), rm.program.clone());
    let (name, registration, made) = (app.clone(), token.clone(), disk.clone());
    blocking(move || Ok(made.ensure(&name, &registration)?)).await?;
    let (mut tries, mut anew) = (1, false);
    loop {
        let row = match rm.visor.stored(app).await {
            Ok(row) => row,
            // Fetches work without the coordinator, from the last known row. A push has already needed the coordinator.
            Err(VisorError::Store(error)) => {
                tracing::warn!(app = %app, error = %error, "can't ask what is stored; going by the last word");
                view.stored.clone()
            }
            Err(error) => return Err(error.into()),
        };
        let Some(row) = row.filter(|row| row.token == token) else { return Ok(()) };
        match take_in(rm, storage, app, &row).await {
            // The pack was merged into another one meanwhile; the current row names that.
            Err(StoredError::Storage(StorageError::Missing(_))) if tries < TRIES => tries += 1,
            // The copy has lost an object, or a git process of a dead rm holds a lock in it. The storage has
            // everything.
            Err(error @ (StoredError::Git(_) | StoredError::NotWhole(_) | StoredError::Library(_)))
                if !anew =>
            {
                tracing::warn!(app = %app, error = %error, "a repository's copy is made anew");
                anew = true;
                let (disk, name, registration) = (disk.clone(), app.clone(), token.clone());
                blocking(move || {
                    disk.put_away(&name).map_err(StoredError::Disk)?;
                    Ok(disk.ensure(&name, &registration)?)
                })
                .await?;
            }
            other => return other,
        }
    }
}

async fn take_in(rm: &SharedRm, storage: &Storage, app: &AppName, row: &Stored) -> Result<()> {
    let repository = rm.layout.repo(app);
    let mark = Mark::read(&repository);
    if mark.is_of(row) && tips(&repository)? == commits(row) {
        return Ok(());
    }
    let place = storage::repo(app, &row.token);
    let name = storage::manifest(&place, row.generation, &row.manifest);
    let manifest: Manifest =
        serde_json::from_slice(&storage.get(&name, &row.manifest).await?).map_err(StoredError::Manifest)?;
    let wanted: Vec<String> = row.branches.values().map(|branch| branch.commit.to_string()).collect();
    let missing = manifest.packs.iter().filter(|pack| !mark.packs.contains(pack));
    fetch(rm, storage, app, row, missing).await?;
    packs::connected(&repository, &wanted).await?;
    let after = row.clone();
    blocking(move || {
        point(&repository, &after)?;
        let mark = Mark { manifest: Some(after.manifest), packs: manifest.packs };
        mark.write(&repository).map_err(StoredError::Disk)
    })
    .await?;
    tracing::info!(app = %app, generation = row.generation, "repository brought up to what is stored");
    Ok(())
}

async fn fetch(
    rm: &SharedRm,
    storage: &Storage,
    app: &AppName,
    row: &Stored,
    packs: impl Iterator<Item = &Digest>,
) -> Result<()> {
    let (place, repository) = (storage::repo(app, &row.token), rm.layout.repo(app));
    for pack in packs {
        let file = tempfile::NamedTempFile::new_in(rm.layout.packs()).map_err(StoredError::Disk)?;
        storage.fetch(&storage::pack(&place, pack), pack, file.path()).await?;
        packs::take_in(&repository, file.path()).await?;
    }
    Ok(())
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

/// Returns the commit of each branch of a copy.
fn tips(repository: &Path) -> Result<BTreeMap<String, String>, git2::Error> {
    let repository = Repository::open_bare(repository)?;
    let tip = |name: &str| Some((name.to_owned(), repository.refname_to_id(name).ok()?.to_string()));
    Ok(BRANCHES.iter().filter_map(|name| tip(name)).collect())
}

fn commits(row: &Stored) -> BTreeMap<String, String> {
    row.branches.iter().map(|(name, branch)| (name.clone(), branch.commit.to_string())).collect()
}

/// A push to be stored.
pub struct Pushed<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The branches that the push moves, with their new entries.
    pub branches: BTreeMap<String, Branch>,
    /// The folder where git keeps the pushed objects until the push is accepted.
    pub quarantine: Option<&'a Path>,
}

/// Stores a push's objects and manifest without moving the row. The copy must have been updated within this turn.
///
/// # Errors
/// [`StoredError`]; unnamed objects may be left in the storage.
pub async fn stash(rm: &SharedRm, storage: &Storage, pushed: &Pushed<'_>) -> Result<Stash> {
    let app = pushed.app;
    let view = rm.apps.view(app).ok_or(StoredError::Gone)?;
    let token = view.app.as_ref().map(|row| row.token.clone()).ok_or(StoredError::Gone)?;
    let repository = rm.layout.repo(app);
    let row: Option<Versioned<Stored>> = rm.visor.stored(app).await?;
    let before = row.as_ref().map(|row| row.mod_revision);
    let row = row.map(|row| row.value).filter(|row| row.token == token);
    let mark = Mark::read(&repository);
    if row.as_ref().is_some_and(|row| !mark.is_of(row)) {
        return Err(VisorError::Refused(visor::visor::Refusal::RepoMoved(app.clone())).into());
    }
    let mut branches = match &row {
        Some(row) => row.branches.clone(),
        // The repository is stored for the first time, together with the branches that it already had.
        None => adopted(tips(&repository)?)?,
    };
    let had: Vec<String> = branches.values().map(|branch| branch.commit.to_string()).collect();
    branches.extend(pushed.branches.clone());
    let remade = mark.packs.len() >= MOST_PACKS;
    let (wanted, base): (BTreeSet<String>, Vec<String>) = if remade || row.is_none() {
        (branches.values().map(|branch| branch.commit.to_string()).collect(), Vec::new())
    } else {
        (pushed.branches.values().map(|branch| branch.commit.to_string()).collect(), had)
    };
    let mut packs = if remade || row.is_none() { Vec::new() } else { mark.packs };
    let place = storage::repo(app, &token);
    let wanted: Vec<String> = wanted.into_iter().collect();
    if !wanted.is_empty() {
        let made = packs::make(&repository, pushed.quarantine, &wanted, &base, &rm.layout.packs()).await?;
        if let Some(made) = made.filter(|made| !packs.contains(&made.sha256)) {
            storage.put_file(&storage::pack(&place, &made.sha256), &made.file).await?;
            packs.push(made.sha256);
        }
    }
    let head = pushed.branches.keys().next_back().cloned();
    let head =
        head.or_else(|| row.as_ref().map(|row| row.head.clone())).unwrap_or_else(|| BRANCHES[0].into());
    let generation = row.as_ref().map_or(0, |row| row.generation) + 1;
    let manifest = Manifest {
        app: app.to_string(),
        generation,
        branches: branches.iter().map(|(name, branch)| (name.clone(), branch.commit.to_string())).collect(),
        head: head.clone(),
        packs: packs.clone(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("names and digests are always valid JSON");
    let digest = storage::digest(&bytes);
    storage.put(&storage::manifest(&place, generation, &digest), bytes).await?;
    let extra = row.map(|row| row.extra).unwrap_or_default();
    let after = Stored { token, generation, manifest: digest.clone(), branches, head, extra };
    Ok(Stash { before, after, mark: Mark { manifest: Some(digest), packs }, remade })
}

/// Stores a repository that this rm has kept only in its state folder. Returns false if a push to it is under way or it
/// is already stored.
///
/// # Errors
/// [`StoredError`].
pub async fn adopt(rm: &SharedRm, app: &AppName) -> Result<bool> {
    let Some(storage) = &rm.storage else { return Ok(false) };
    let keeper = LeaseKeeper::start(rm.visor.store().clone(), LeaseTiming::default());
    let lease = keeper.wait_held().await;
    let turn = Turn {
        rm: rm.own.name.clone(),
        process: rm.own.process.clone(),
        push: format!("{:032x}", rand::random::<u128>()),
        extra: Extra::new(),
    };
    let adopted = async {
        let is_stored = rm.visor.stored(app).await?.is_some();
        if is_stored || rm.visor.take_turn(app, &turn, lease).await? != Taken::Ours {
            return Ok(false);
        }
        let pushed = Pushed { app, branches: BTreeMap::new(), quarantine: None };
        let stash = stash(rm, storage, &pushed).await?;
        rm.visor.store_repo(app, &turn.push, stash.before, &stash.after).await?;
        Ok(true)
    };
    let adopted = adopted.await;
    keeper.release().await;
    adopted
}

fn adopted(tips: BTreeMap<String, String>) -> Result<BTreeMap<String, Branch>> {
    let mut branches = BTreeMap::new();
    for (name, commit) in tips {
        let commit: RevId = commit.parse().map_err(StoredError::Commit)?;
        // Without a push id, `push::mend` takes the commit as handled.
        let branch = Branch { commit, push: String::new(), no_rollout: true, extra: Extra::new() };
        branches.insert(name, branch);
    }
    Ok(branches)
}

/// Moves the row. From here on the push is done, and git moves the branch next.
///
/// # Errors
/// [`VisorError`]: the row has not moved, unless the coordinator's answer was lost.
pub async fn land(rm: &SharedRm, app: &AppName, push: &str, stash: &Stash) -> Result<(), VisorError> {
    let shelf = rm.shelves.of(app);
    let _alone = shelf.alone.lock().await;
    rm.visor.store_repo(app, push, stash.before, &stash.after).await?;
    shelf.landing.store(true, Ordering::SeqCst);
    Ok(())
}

/// Records that this copy equals the stored row, after git has moved the branch.
pub async fn landed(rm: &SharedRm, app: &AppName, stash: &Stash) {
    let shelf = rm.shelves.of(app);
    let _alone = shelf.alone.lock().await;
    let (repository, mark) = (rm.layout.repo(app), stash.mark.clone());
    // Without the mark, the next request updates the copy once more, without effect.
    if let Err(error) = blocking(move || mark.write(&repository).map_err(StoredError::Disk)).await {
        tracing::warn!(app = %app, error = %error, "can't note how far a repository's copy is");
    }
    shelf.landing.store(false, Ordering::SeqCst);
}

/// Ends the time in which the copy is left to git, for a push that has ended after it moved the row. Git may not have
/// moved the branch.
pub fn not_landing(rm: &SharedRm, app: &AppName) {
    rm.shelves.of(app).landing.store(false, Ordering::SeqCst);
}

/// Deletes objects of failed pushes, and packs that were merged. Must run within the push's turn.
pub async fn clear(rm: &SharedRm, storage: &Storage, app: &AppName, stash: &Stash) {
    if !stash.remade {
        return;
    }
    let place = storage::repo(app, &stash.after.token);
    let mut kept: BTreeSet<object_store::path::Path> =
        stash.mark.packs.iter().map(|pack| storage::pack(&place, pack)).collect();
    kept.insert(storage::manifest(&place, stash.after.generation, &stash.after.manifest));
    let litter = async {
        let litter = storage.litter(&place, LITTER_AFTER, |name| kept.contains(name)).await?;
        // Another rm may have moved the row again while this one was paused.
        let row = rm.visor.stored(app).await?;
        if row.is_some_and(|row| row.value == stash.after) {
            storage.remove(litter).await?;
        }
        Ok::<(), StoredError>(())
    };
    if let Err(error) = litter.await {
        tracing::warn!(app = %app, error = %error, "can't clear the file storage; a later push will");
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoredError::Disk(io::Error::other(error)))?
}
