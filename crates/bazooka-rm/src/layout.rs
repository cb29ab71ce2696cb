//! Where bazooka-rm keeps things: every path below its state folder, made here alone.
//!
//! ```text
//! repos/A.git         an app's bare repository            slugs/SHA256    the file storage
//! gone/               repositories to be removed          slugs/.new/     slugs that are being written
//! builds/A            the tree that is being built        cache/A         an app's dependency caches
//! packs/              packs on their way to or from a shared file storage
//! hooks.sock          where hooks call
//! ```

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use visor::names::{AppName, Digest};

/// The state folder.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes what is missing of the state folder.
    ///
    /// # Errors
    /// If it can't be made, or isn't ours to write.
    pub fn open(root: &Path) -> io::Result<Layout> {
        std::fs::create_dir_all(root)?;
        // Children have other working folders.
        let layout = Layout { root: root.canonicalize()? };
        for folder in
            [layout.repos(), layout.gone(), layout.slugs(), layout.unfinished_slugs(), layout.packs()]
        {
            std::fs::create_dir_all(folder)?;
        }
        for folder in ["builds", "cache"] {
            std::fs::create_dir_all(layout.root.join(folder))?;
        }
        Ok(layout)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All repositories.
    pub fn repos(&self) -> PathBuf {
        self.root.join("repos")
    }

    /// One app's repository.
    pub fn repo(&self, app: &AppName) -> PathBuf {
        self.repos().join(format!("{app}.git"))
    }

    /// Repositories that were taken away and wait for their removal.
    pub fn gone(&self) -> PathBuf {
        self.root.join("gone")
    }

    /// The file storage.
    pub fn slugs(&self) -> PathBuf {
        self.root.join("slugs")
    }

    /// One slug.
    pub fn slug(&self, sha256: &Digest) -> PathBuf {
        self.slugs().join(sha256.as_str())
    }

    /// Slugs that are being written. On the same file system as [`Layout::slugs`], for the rename.
    pub fn unfinished_slugs(&self) -> PathBuf {
        self.slugs().join(".new")
    }

    /// Packs on their way to or from a shared file storage.
    pub fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    /// Where an app's tree is built. The same path each time, since compilers keep paths in their caches;
    /// one push of an app is built at a time.
    pub fn build(&self, app: &AppName) -> PathBuf {
        self.root.join("builds").join(app.as_str())
    }

    /// An app's dependency caches.
    pub fn cache(&self, app: &AppName) -> PathBuf {
        self.root.join("cache").join(app.as_str())
    }

    /// Where hooks call. A hook finds it from its repository, where git starts it.
    pub fn socket(&self) -> PathBuf {
        self.root.join(SOCKET)
    }

    /// Removes what an earlier process left half done. Nothing may be under way.
    ///
    /// # Errors
    /// If something can't be removed.
    pub fn sweep(&self) -> io::Result<()> {
        for folder in [self.unfinished_slugs(), self.gone(), self.packs(), self.root.join("builds")] {
            for entry in std::fs::read_dir(folder)? {
                remove(&entry?.path())?;
            }
        }
        Ok(())
    }
}

/// The socket's name in the state folder.
pub const SOCKET: &str = "hooks.sock";

/// Has a file hold these bytes, and reach the disk. It holds them or what it held before, whatever dies when.
///
/// # Errors
/// If it can't be written; it is as it was then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)
}

/// Removes a file, a link or a folder with all that is in it; what isn't there is removed already.
///
/// # Errors
/// If it can't be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}
