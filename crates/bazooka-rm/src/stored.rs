//! Repositories that outlive their rm: packs in the file storage, and a row in the coordinator that counts.
//!
//! Owns the way of a push into the storage and of what is stored into this rm's copy. The row (`stored/A`) says
//! what each branch names and which manifest has the packs; packs and manifest are stored before it is moved,
//! and it is moved before git moves this rm's own branch. So a push that was acknowledged is stored, and what an
//! rm's death leaves of one is either a row that didn't move, or one that did, whose push is then taken for
//! carried out: the next rm brings its copy up to it, and `push::mend` sees to the release.
//!
//! ```text
//! turn taken ─▶ copy brought up ─build─▶ packs, manifest stored ─trial─▶ row moved ─git─▶ branch moved ─▶ head moved
//!      └── nothing changed ────────────────── litter in the storage ──┘      └── the push has gone through ──┘
//! ```
//!
//! A copy is brought up before each request is answered. While a push has moved the row and git has not yet
//! moved the branch, the copy is left to git.

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
    names::{AppName, Digest, RevId},
    schema::{Branch, Extra, Stored, Turn},
    snapshot::Versioned,
    store::Revision,
    transitions::repos::Taken,
    visor::VisorError,
};

use self::manifest::{Manifest, Mark};
use crate::{
    push::refs::BRANCHES,
    repos::disk::{Disk, DiskError},
    rm::SharedRm,
    storage::{self, Storage, StorageError},
};

/// So many packs are made one by the next push: each is a fetch for an rm that comes anew.
const MOST_PACKS: usize = 24;

/// How old litter must be to be cleared: a push that another rm has under way may have stored what nothing names yet.
const LITTER_AFTER: Duration = Duration::from_secs(3600);

/// How often a copy is brought up again when what it was to be made of was cleared meanwhile.
const TRIES: usize = 3;

/// Why a repository can't be stored, or brought up to what is stored.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The file storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The coordinator.
    #[error(transparent)]
    Visor(#[from] VisorError),
    /// A git process.
    #[error("git failed: {0}")]
    Git(String),
    /// What was taken in isn't all that the branches reach.
    #[error("what is stored of the repository isn't whole: {0}")]
    NotWhole(String),
    /// Libgit2.
    #[error("the repository can't be changed: {0}")]
    Library(#[from] git2::Error),
    /// The repository's folder.
    #[error("{0}: {source}", source = std::error::Error::source(.0).map(ToString::to_string).unwrap_or_default())]
    Repository(#[from] DiskError),
    /// This rm's disk.
    #[error("this bazooka-rm's disk failed: {0}")]
    Disk(#[source] io::Error),
    /// The manifest.
    #[error("the manifest of the repository can't be read: {0}")]
    Manifest(#[source] serde_json::Error),
    /// The app has gone.
    #[error("the app has gone")]
    Gone,
}

type Result<T, E = StoredError> = std::result::Result<T, E>;

/// This rm's copies, and what is being done to them.
#[derive(Default)]
pub struct Shelves(Mutex<BTreeMap<AppName, Arc<Shelf>>>);

#[derive(Default)]
struct Shelf {
    /// One at a time changes a copy.
    alone: AsyncMutex<()>,
    /// A push has moved the row, and git is moving the branch.
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

/// A push that has all it needs in the storage; only the row is still to be moved.
#[derive(Clone, Debug)]
pub struct Stash {
    before: Option<Revision>,
    after: Stored,
    mark: Mark,
    /// Earlier packs are in one of these by now.
    remade: bool,
}

/// Brings this rm's copy up to what is stored. Without a shared storage the copy is all there is.
///
/// # Errors
/// [`StoredError`]; the copy is as it was, or has more objects that no branch names yet.
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
            // Fetches go on without the coordinator; a push has asked it before.
            Err(VisorError::Store(error)) => {
                tracing::warn!(app = %app, error = %error, "can't ask what is stored; going by the last word");
                view.stored.clone()
            }
            Err(error) => return Err(error.into()),
        };
        let Some(row) = row.filter(|row| row.token == token) else { return Ok(()) };
        match take_in(rm, storage, app, &row).await {
            // Made one with others meanwhile: the row names that by now.
            Err(StoredError::Storage(StorageError::Missing(_))) if tries < TRIES => tries += 1,
            // It has lost something, or a git that outlived its rm holds a lock in it. All of it is stored.
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

/// Has the branches of a copy name what is stored.
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

/// What each branch of a copy names.
fn tips(repository: &Path) -> Result<BTreeMap<String, String>, git2::Error> {
    let repository = Repository::open_bare(repository)?;
    let tip = |name: &str| Some((name.to_owned(), repository.refname_to_id(name).ok()?.to_string()));
    Ok(BRANCHES.iter().filter_map(|name| tip(name)).collect())
}

fn commits(row: &Stored) -> BTreeMap<String, String> {
    row.branches.iter().map(|(name, branch)| (name.clone(), branch.commit.to_string())).collect()
}

/// What a push stores.
pub struct Pushed<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The branches that it moves.
    pub branches: BTreeMap<String, Branch>,
    /// Where git keeps its objects until it is accepted.
    pub quarantine: Option<&'a Path>,
}

/// Stores all that a push needs, and nothing that counts yet. The copy has been brought up within this turn.
///
/// # Errors
/// [`StoredError`]; the storage may have litter.
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
        // It is stored for the first time, with what it had before.
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

/// Stores a repository that this rm has kept by itself. False: a push to it is under way, or it is stored.
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
        let commit: RevId = commit.parse().map_err(|error| StoredError::Git(format!("{error}")))?;
        // Whatever became of it is over.
        let branch = Branch { commit, push: String::new(), no_rollout: true, extra: Extra::new() };
        branches.insert(name, branch);
    }
    Ok(branches)
}

/// Moves the row: from here on the push has gone through. Git is to move the branch next.
///
/// # Errors
/// [`VisorError`]; it hasn't, unless the coordinator didn't say.
pub async fn land(rm: &SharedRm, app: &AppName, push: &str, stash: &Stash) -> Result<(), VisorError> {
    let shelf = rm.shelves.of(app);
    let _alone = shelf.alone.lock().await;
    rm.visor.store_repo(app, push, stash.before, &stash.after).await?;
    shelf.landing.store(true, Ordering::SeqCst);
    Ok(())
}

/// Git has moved the branch: this copy is of what is stored.
pub async fn landed(rm: &SharedRm, app: &AppName, stash: &Stash) {
    let shelf = rm.shelves.of(app);
    let _alone = shelf.alone.lock().await;
    let (repository, mark) = (rm.layout.repo(app), stash.mark.clone());
    // Unwritten, the copy is brought up once more for nothing.
    if let Err(error) = blocking(move || mark.write(&repository).map_err(StoredError::Disk)).await {
        tracing::warn!(app = %app, error = %error, "can't note how far a repository's copy is");
    }
    shelf.landing.store(false, Ordering::SeqCst);
}

/// A push that had moved the row is over, and git may not have moved the branch.
pub fn not_landing(rm: &SharedRm, app: &AppName) {
    rm.shelves.of(app).landing.store(false, Ordering::SeqCst);
}

/// Clears what pushes that came to nothing left, and packs that were made one. Within the push's turn.
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
        // Another rm may have gone on from here while this one was paused.
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
