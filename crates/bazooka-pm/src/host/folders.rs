//! The state folder, which holds everything that a host keeps.
//!
//! Owns the names in it, and the marks that say which bazooka-pm it belongs to.
//!
//! ```text
//! STATE/
//!   token                 names this state folder in the host's registration
//!   lock                  held by the one bazooka-pm that uses it
//!   lease                 until when the host surely holds its lease, for shims that must know
//!   root/                 empty: where each sandboxed instance has its root, for itself alone
//!   etc/                  the /etc that they see
//!   envs/                 the envs that instances here run with, sealed
//!   slugs/SHA256/         unpacked, shared, read-only
//!   slugs/SHA256.tar.zst  its archive, as it came, for other hosts; not if the disk is nearly full
//!   slugs/SHA256.json     whether it has been synced, and in which boot it was unpacked
//!   instances/ID/
//!     instance.json       bazooka-pm's notes on it: the last line counts
//!     run.N               its N-th start (`protocol`)
//!     home/               its HOME and TMPDIR, where it has no sandbox
//!     log/                its output
//!   ended/ID/             the output of an ended instance, and its last instance.json
//! ```

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bazooka_daemon::{FolderError, folder_token};
use bazooka_sandbox::files::{entries, names, try_lock};
use visor::names::{AppName, Digest, EnvRef, InstanceId};

/// A state folder that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FoldersError {
    /// A folder or file can't be made or opened.
    #[error("can't use {}", path.display())]
    Use {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The lock can't be asked for.
    #[error("can't lock {}", path.display())]
    Lock {
        /// The path of the lock.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("another bazooka-pm uses {}; give this one a --state of its own", root.display())]
    Taken {
        /// The state folder.
        root: PathBuf,
    },
}

/// The state folder.
#[derive(Clone, Debug)]
pub struct Folders {
    root: PathBuf,
}

/// The lock by which one process holds the state folder.
#[derive(Debug)]
pub struct StateLock {
    _file: fs::File,
}

impl Folders {
    /// Creates the folders that are missing.
    ///
    /// # Errors
    /// [`FoldersError::Use`].
    pub fn create(root: &Path) -> Result<Folders, FoldersError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| FoldersError::Use { path, source }
        };
        fs::create_dir_all(root).map_err(failed(root))?;
        // Commands run from this path, so its links are resolved once.
        let root = root.canonicalize().map_err(failed(root))?;
        let folders = Folders { root };
        // Instances with users of their own must reach their slug and home.
        for (folder, mode) in [
            (folders.root.clone(), 0o711),
            (folders.slugs(), 0o711),
            (folders.instances(), 0o711),
            (folders.ended(), 0o700),
            (folders.envs(), 0o700),
        ] {
            fs::create_dir_all(&folder).map_err(failed(&folder))?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).map_err(failed(&folder))?;
        }
        Ok(folders)
    }

    /// Locks the state folder for this process.
    ///
    /// # Errors
    /// [`FoldersError::Taken`] if another process has it; or if it can't be asked for.
    pub fn lock(&self) -> Result<StateLock, FoldersError> {
        let path = self.root.join("lock");
        let open = fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(|source| FoldersError::Use { path: path.clone(), source })?;
        match try_lock(&file) {
            Ok(Some(())) => Ok(StateLock { _file: file }),
            Ok(None) => Err(FoldersError::Taken { root: self.root.clone() }),
            Err(source) => Err(FoldersError::Lock { path, source }),
        }
    }

    /// Returns the token that names this folder, and creates it at the first call.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn token(&self) -> Result<String, FolderError> {
        folder_token(&self.root)
    }

    /// Returns the path of the folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the file that says until when the lease is held.
    pub fn lease_file(&self) -> PathBuf {
        self.root.join("lease")
    }

    /// Returns the folder of the unpacked slugs.
    pub fn slugs(&self) -> PathBuf {
        self.root.join("slugs")
    }

    /// Returns the folder of one unpacked slug.
    pub fn slug(&self, digest: &Digest) -> PathBuf {
        self.slugs().join(digest.as_str())
    }

    /// Returns the folder of all instances.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// Returns the folder of one instance.
    pub fn instance(&self, id: InstanceId) -> PathBuf {
        self.instances().join(id.to_string())
    }

    /// Returns the file with the notes on one instance.
    pub fn record(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join(RECORD)
    }

    /// Returns the file of one start of an instance.
    pub fn run(&self, id: InstanceId, run: u32) -> PathBuf {
        self.instance(id).join(format!("{RUN}{run}"))
    }

    /// Returns an instance's HOME.
    pub fn home(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("home")
    }

    /// Returns the folder of an instance's output.
    pub fn log(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join(LOG)
    }

    /// Returns the folder of the envs that instances here run with, sealed.
    pub fn envs(&self) -> PathBuf {
        self.root.join("envs")
    }

    /// Returns the file of one env.
    pub fn env(&self, app: &AppName, env: EnvRef) -> PathBuf {
        self.envs().join(format!("{app}.{env}"))
    }

    /// Returns the folder of ended instances.
    pub fn ended(&self) -> PathBuf {
        self.root.join("ended")
    }

    /// Returns the numbers of the starts that have files, in order.
    ///
    /// # Errors
    /// If the instance's folder can't be read.
    pub fn runs(&self, id: InstanceId) -> io::Result<Vec<u32>> {
        let names = names(&self.instance(id))?;
        let mut runs: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix(RUN)?.parse().ok()).collect();
        runs.sort_unstable();
        Ok(runs)
    }

    /// Returns the ids of all instances.
    ///
    /// # Errors
    /// If their folder can't be read.
    pub fn all(&self) -> io::Result<Vec<InstanceId>> {
        let mut ids: Vec<InstanceId> =
            names(&self.instances())?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Returns the ids of the instances in a folder; none if it can't be read.
    pub fn ids(folder: &Path) -> Vec<InstanceId> {
        let mut ids: Vec<InstanceId> = entries(folder).filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }
}

/// The name of the file with the notes, in an instance's folder.
pub const RECORD: &str = "instance.json";
/// The name of the folder of an instance's output, in its folder.
pub const LOG: &str = "log";
const RUN: &str = "run.";
