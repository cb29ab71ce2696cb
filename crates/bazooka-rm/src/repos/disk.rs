//! Repositories on disk: their observed state, and each step that changes it.
//!
//! Owns every write to a repository that isn't made by git itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use git2::{Config, ErrorClass, ErrorCode, Oid, Repository, RepositoryInitOptions};
use visor::names::AppName;

use super::{
    OnDisk, app_of,
    config::{DENY_NON_FAST_FORWARDS, DOOMED, FIRST_SETTINGS, SETTINGS, TOKEN},
};
use crate::{
    layout::{Layout, remove},
    refs::{BRANCHES, ChangeSet},
    tree,
};

/// The hooks that each repository has.
const HOOKS: [&str; 2] = ["pre-receive", "post-receive"];

/// Held by whoever writes a repository's configuration: the loop that keeps repositories, or a request that opens one. Git's
/// own lock refuses the second one instead of letting it wait.
static CONFIGURING: Mutex<()> = Mutex::new(());

/// The age from which a lock file or a push's temporary folder can't belong to a push under way.
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// A failed step.
#[derive(Debug, thiserror::Error)]
#[error("{what} of {app} failed")]
pub struct DiskError {
    app: AppName,
    what: &'static str,
    #[source]
    source: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Git(#[from] git2::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The repositories below a state folder.
#[derive(Clone, Debug)]
pub struct Disk {
    layout: Layout,
    /// The path of this program, to which the hooks link.
    program: PathBuf,
}

impl Disk {
    /// Returns the repositories of `layout`, whose hooks will be links to `program`.
    pub fn new(layout: Layout, program: PathBuf) -> Disk {
        Disk { layout, program }
    }

    /// Reads the state of all repositories, but for those that can't be looked at: nothing is done to them.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn observe(&self) -> io::Result<BTreeMap<AppName, OnDisk>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.layout.repos())? {
            if let Some(app) = app_of(&entry?.path()) {
                match self.observe_one(&app) {
                    Ok(on_disk) => drop(found.insert(app, on_disk)),
                    Err(error) => {
                        tracing::warn!(app = %app, error = %error, "a repository can't be looked at; it stays as it is");
                    }
                }
            }
        }
        Ok(found)
    }

    /// Reads the state of a repository. A repository that is incomplete or broken has no token, so the plan makes it
    /// again.
    ///
    /// # Errors
    /// If it can't be looked at: it may be whole.
    fn observe_one(&self, app: &AppName) -> Result<OnDisk, git2::Error> {
        let path = self.layout.repo(app);
        let config = match Repository::open_bare(&path).and_then(|repo| repo.config()?.snapshot()) {
            Ok(config) => config,
            Err(error) if error.class() == ErrorClass::Os && error.code() != ErrorCode::NotFound => {
                return Err(error);
            }
            // git2 also calls a repository missing when it can't open one of its files.
            Err(error) => match fs::File::open(path.join("config")).and_then(|_| fs::read_dir(&path)) {
                Err(seen) if seen.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(OnDisk::default()),
            },
        };
        let is = |(name, value): &(&str, &str)| config.get_str(name).is_ok_and(|found| found == *value);
        let hook = |name: &&str| {
            fs::read_link(path.join("hooks").join(name)).is_ok_and(|target| target == self.program)
        };
        Ok(OnDisk {
            token: config.get_str(TOKEN).unwrap_or_default().to_owned(),
            configured: SETTINGS.iter().all(is) && config.get_str(DENY_NON_FAST_FORWARDS).is_ok(),
            hooks: HOOKS.iter().all(hook),
            doomed: config.get_bool(DOOMED).unwrap_or(false),
        })
    }

    /// Makes a bare repository for a registration. It appears with its token, or not at all.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn create(&self, app: &AppName, token: &str) -> Result<(), DiskError> {
        let create = || -> Result<(), Cause> {
            let unfinished = tempfile::tempdir_in(self.layout.gone())?;
            let path = unfinished.path().join("new.git");
            let mut options = RepositoryInitOptions::new();
            options.bare(true).no_reinit(true).external_template(false).initial_head("master");
            let repository = Repository::init_opts(&path, &options)?;
            repository.config()?.set_str(TOKEN, token)?;
            drop(repository);
            fs::rename(path, self.layout.repo(app))?;
            Ok(())
        };
        create().map_err(self.failed(app, "making the repository"))
    }

    /// Writes a repository's configuration.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn configure(&self, app: &AppName) -> Result<(), DiskError> {
        let _alone = CONFIGURING.lock().unwrap_or_else(PoisonError::into_inner);
        let configure = || -> Result<(), Cause> {
            let mut config = Config::open(&self.layout.repo(app).join("config"))?;
            for (name, value) in SETTINGS {
                if config.get_string(name).ok().as_deref() != Some(value) {
                    config.set_str(name, value)?;
                }
            }
            for (name, value) in FIRST_SETTINGS {
                match config.get_string(name) {
                    Err(error) if error.code() == ErrorCode::NotFound => config.set_str(name, value)?,
                    _ => {}
                }
            }
            Ok(())
        };
        configure().map_err(self.failed(app, "configuring the repository"))
    }

    /// Puts the hooks in place: links to this program, which takes its role from the name that it is called by.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn install_hooks(&self, app: &AppName) -> Result<(), DiskError> {
        let install = || -> Result<(), Cause> {
            let hooks = self.layout.repo(app).join("hooks");
            fs::create_dir_all(&hooks)?;
            for name in HOOKS {
                let hook = hooks.join(name);
                remove(&hook)?;
                std::os::unix::fs::symlink(&self.program, &hook)?;
            }
            Ok(())
        };
        install().map_err(self.failed(app, "putting the hooks in place"))
    }

    /// Makes the missing parts of a registration's repository. Removes another registration's repository in its place.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn ensure(&self, app: &AppName, token: &str) -> Result<(), DiskError> {
        let is_there = self.layout.repo(app).try_exists();
        let mut found = if is_there.map_err(self.failed(app, "looking at the repository"))? {
            Some(self.observe_one(app).map_err(self.failed(app, "looking at the repository"))?)
        } else {
            None
        };
        if found.as_ref().is_some_and(|found| found.token != token || found.doomed) {
            self.remove(app)?;
            found = None;
        }
        if found.is_none() {
            self.create(app, token)?;
        }
        let found = found.unwrap_or_default();
        if !found.configured {
            self.configure(app)?;
        }
        if !found.hooks {
            self.install_hooks(app)?;
        }
        Ok(())
    }

    /// Marks that the repository's app is being destroyed.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn doom(&self, app: &AppName) -> Result<(), DiskError> {
        let _alone = CONFIGURING.lock().unwrap_or_else(PoisonError::into_inner);
        let doom = || -> Result<(), Cause> {
            Config::open(&self.layout.repo(app).join("config"))?.set_bool(DOOMED, true)?;
            Ok(())
        };
        doom().map_err(self.failed(app, "marking the repository"))
    }

    /// Removes the repository, the app's caches and its build folder.
    ///
    /// # Errors
    /// If the disk fails; a part may be removed.
    pub fn remove(&self, app: &AppName) -> Result<(), DiskError> {
        let take_away = || -> Result<(), Cause> {
            self.archive(app)?;
            remove(&self.layout.cache(app))?;
            remove(&self.layout.build(app))?;
            Ok(())
        };
        take_away().map_err(self.failed(app, "removing the repository"))
    }

    /// Removes only the repository.
    ///
    /// # Errors
    /// If the disk fails. The repository is then unchanged, or no longer has its name.
    pub fn archive(&self, app: &AppName) -> io::Result<()> {
        // Renamed first, so that a half-deleted repository is never taken for a whole one.
        let away = tempfile::tempdir_in(self.layout.gone())?;
        match fs::rename(self.layout.repo(app), away.path().join("repo")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        away.close()
    }

    /// Removes git's lock files and temporary objects that killed pushes left in the repositories.
    pub fn sweep(&self) {
        let Ok(apps) = self.observe() else { return };
        for app in apps.keys() {
            sweep_repository(&self.layout.repo(app));
        }
    }

    fn failed<E: Into<Cause>>(&self, app: &AppName, what: &'static str) -> impl FnOnce(E) -> DiskError {
        let app = app.clone();
        move |source| DiskError { app, what, source: source.into() }
    }
}

fn sweep_repository(path: &Path) {
    for folder in ["refs/heads", "refs", "."] {
        clear(&path.join(folder), |name| name.ends_with(".lock"));
    }
    clear(&path.join("objects"), |name| name.starts_with("tmp_objdir-") || name.starts_with("incoming-"));
    clear(&path.join("objects/pack"), |name| name.starts_with("tmp_"));
}

fn clear(folder: &Path, is_left: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age >= STALE_AFTER));
        if is_old && entry.file_name().to_str().is_some_and(&is_left) {
            if let Err(error) = remove(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), error = %error, "can't be removed");
            }
        }
    }
}

/// The reasons why a push's branches can't move.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum BranchError {
    #[error(
        "{branch} of app '{app}' holds commits that this push would leave behind, and its repository denies that (receive.denyNonFastForwards); fetch and merge them first"
    )]
    NonFastForward { app: AppName, branch: String },
    #[error(
        "this is a shallow clone, whose history ends early: run `git fetch --unshallow` and push again (in a CI job: check \
         out with the whole history, as by `fetch-depth: 0`)"
    )]
    Shallow,
    #[error("{0} has moved meanwhile; fetch it and push again")]
    Moved(String),
    #[error("the pushed commit can't be read: {0}")]
    Git(#[from] git2::Error),
}

/// Rejects a push from a shallow clone, and a forced push if the repository denies it.
///
/// # Errors
/// [`BranchError`].
pub fn allows(
    repository: &Path,
    app: &AppName,
    set: &ChangeSet,
    quarantine: Option<&Path>,
) -> Result<(), BranchError> {
    let known = tree::open(repository, None)?;
    let repository = tree::open(repository, quarantine)?;
    if quarantine.is_some() && !is_whole(&known, &repository, &set.commit)? {
        return Err(BranchError::Shallow);
    }
    if !denies_non_fast_forwards(&repository) {
        return Ok(());
    }
    for update in set.updates.iter().filter(|update| !update.creates()) {
        let (old, new) = (Oid::from_str(&update.old)?, Oid::from_str(&update.new)?);
        if old != new && !repository.graph_descendant_of(new, old)? {
            return Err(BranchError::NonFastForward { app: app.clone(), branch: update.name.clone() });
        }
    }
    Ok(())
}

/// Reports whether all commits from this one down to those of earlier pushes are there: git accepted the latter as whole.
/// Git itself refuses a shallow history only after the hook, when all has been built.
///
/// Reads the parents alone, since libgit2 takes no commit whose author's line has a fault.
fn is_whole(known: &Repository, pushed: &Repository, commit: &str) -> Result<bool, git2::Error> {
    let (known, pushed) = (known.odb()?, pushed.odb()?);
    let (mut left, mut seen) = (vec![Oid::from_str(commit)?], BTreeSet::new());
    while let Some(id) = left.pop() {
        if !seen.insert(id) || known.exists(id) {
            continue;
        }
        let object = match pushed.read(id) {
            Ok(object) => object,
            Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let head = object.data().split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
        let parents = head.filter_map(|line| std::str::from_utf8(line.strip_prefix(b"parent ")?).ok());
        left.extend(parents.filter_map(|parent| Oid::from_str(parent).ok()));
    }
    Ok(true)
}

/// Checks that the branches of a change set are where the pusher saw them.
///
/// # Errors
/// [`BranchError`].
pub fn is_unmoved(repository: &Path, set: &ChangeSet) -> Result<(), BranchError> {
    let repository = Repository::open_bare(repository)?;
    for update in &set.updates {
        let now = repository.refname_to_id(&update.name).ok().map(|id| id.to_string());
        let seen = if update.creates() { None } else { Some(update.old.clone()) };
        if now != seen {
            return Err(BranchError::Moved(update.name.trim_start_matches("refs/heads/").into()));
        }
    }
    Ok(())
}

/// Returns the commit of each deployed branch of a repository.
///
/// # Errors
/// If the repository can't be opened.
pub fn tips(repository: &Path) -> Result<BTreeMap<String, String>, git2::Error> {
    let repository = Repository::open_bare(repository)?;
    let tip = |name: &str| Some((name.to_owned(), repository.refname_to_id(name).ok()?.to_string()));
    Ok(BRANCHES.iter().filter_map(|name| tip(name)).collect())
}

/// Points a repository's HEAD at the deployed branch, so that a clone checks it out.
pub fn point_head(repository: &Path, branch: &str) {
    let point = || -> Result<(), git2::Error> {
        let repository = Repository::open_bare(repository)?;
        let head = repository.find_reference("HEAD")?;
        if head.symbolic_target().ok().flatten() != Some(branch) {
            repository.set_head(branch)?;
        }
        Ok(())
    };
    if let Err(error) = point() {
        tracing::warn!(branch, error = %error, "can't point the repository's HEAD");
    }
}

/// True if the repository rejects forced pushes.
fn denies_non_fast_forwards(repository: &Repository) -> bool {
    repository.config().and_then(|config| config.get_bool(DENY_NON_FAST_FORWARDS)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_several_configure_at_once_is_configured() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let disk = Disk::new(layout, PathBuf::from("/bin/true"));
        let app: AppName = "pages".parse().expect("a name");
        disk.create(&app, "token").expect("made");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| disk.configure(&app).expect("configured"));
            }
        });
        assert!(disk.observe_one(&app).expect("it is there").configured);
    }
}
