//! Where a host keeps what it needs: one state folder.
//!
//! Owns the names in it, and the marks that say whose it is.
//!
//! ```text
//! STATE/
//!   token                 names this state folder in the host's registration
//!   lock                  held by the one bazooka-pm that uses it
//!   lease                 until when the host surely holds its lease, for shims that must know
//!   root/                 empty: where each sandboxed instance has its root, for itself alone
//!   etc/                  the /etc that they see
//!   slugs/SHA256/         unpacked, shared, read-only
//!   slugs/SHA256.json     whether it has been synced, and in which boot it was unpacked
//!   instances/ID/
//!     instance.json       what bazooka-pm knows of it: the last line
//!     run.N               its N-th start (`protocol`)
//!     home/               its HOME and TMPDIR, where it has no sandbox
//!     log/                its output
//!   ended/ID/             the output of one that has ended, and its last instance.json
//! ```

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bazooka_sandbox::files::{entries, try_lock};
use visor::names::{AppName, Digest, EnvRef, InstanceId};

/// The state folder.
#[derive(Clone, Debug)]
pub struct Folders {
    root: PathBuf,
}

/// Holds the state folder for one process.
#[derive(Debug)]
pub struct StateLock {
    _file: fs::File,
}

impl Folders {
    /// Makes what isn't there.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn create(root: &Path) -> Result<Folders, String> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("can't use {path}: {error}")
        };
        fs::create_dir_all(root).map_err(failed(root))?;
        // Commands run from there, and their links are resolved once.
        let root = root.canonicalize().map_err(failed(root))?;
        let folders = Folders { root };
        // Instances with users of their own must get to their slug and home.
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

    /// Takes the state folder for this process.
    ///
    /// # Errors
    /// If another has it.
    pub fn lock(&self) -> Result<StateLock, String> {
        let path = self.root.join("lock");
        let open = fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(|error| format!("can't use {}: {error}", path.display()))?;
        match try_lock(&file) {
            Ok(Some(())) => Ok(StateLock { _file: file }),
            Ok(None) => Err(format!(
                "another bazooka-pm uses {}; give this one a --state of its own",
                self.root.display()
            )),
            Err(error) => Err(format!("can't lock {}: {error}", path.display())),
        }
    }

    /// The token that names this folder; made at the first call.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn token(&self) -> Result<String, String> {
        bazooka_daemon::folder_token(&self.root).map_err(|error| bazooka_daemon::in_words(&error))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that says until when the lease is held.
    pub fn lease_file(&self) -> PathBuf {
        self.root.join("lease")
    }

    /// The unpacked slugs.
    pub fn slugs(&self) -> PathBuf {
        self.root.join("slugs")
    }

    /// One unpacked slug.
    pub fn slug(&self, digest: &Digest) -> PathBuf {
        self.slugs().join(digest.as_str())
    }

    /// All instances.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// One instance.
    pub fn instance(&self, id: InstanceId) -> PathBuf {
        self.instances().join(id.to_string())
    }

    /// What is known of one instance.
    pub fn record(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join(RECORD)
    }

    /// One start of an instance.
    pub fn run(&self, id: InstanceId, run: u32) -> PathBuf {
        self.instance(id).join(format!("{RUN}{run}"))
    }

    /// An instance's HOME.
    pub fn home(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("home")
    }

    /// An instance's output.
    pub fn log(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join(LOG)
    }

    /// The envs that instances here run with, sealed.
    pub fn envs(&self) -> PathBuf {
        self.root.join("envs")
    }

    /// One of them.
    pub fn env(&self, app: &AppName, env: EnvRef) -> PathBuf {
        self.envs().join(format!("{app}.{env}"))
    }

    /// What is kept of instances that have ended.
    pub fn ended(&self) -> PathBuf {
        self.root.join("ended")
    }

    /// The numbers of the starts of which there are files, in order.
    pub fn runs(&self, id: InstanceId) -> Vec<u32> {
        let mut runs: Vec<u32> =
            entries(&self.instance(id)).filter_map(|name| name.strip_prefix(RUN)?.parse().ok()).collect();
        runs.sort_unstable();
        runs
    }

    /// The ids of the instances in a folder.
    pub fn ids(folder: &Path) -> Vec<InstanceId> {
        let mut ids: Vec<InstanceId> = entries(folder).filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }
}

/// The name of what is known of an instance, in its folder.
pub const RECORD: &str = "instance.json";
/// The name of an instance's output, in its folder.
pub const LOG: &str = "log";
const RUN: &str = "run.";
