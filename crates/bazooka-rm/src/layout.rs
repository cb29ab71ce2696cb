//! The layout of bazooka-rm's state folder: every path below it is made here.
//!
//! ```text
//! repos/A.git         an app's bare repository            slugs/SHA256    slugs
//! gone/               repositories to be removed          slugs/.new/     slugs that are being written
//! unneeded/SHA256     marks of slugs that no rev names, by when that was first seen
//! builds/A            the tree that is being built        cache/A         an app's dependency caches
//! packs/              packs on their way to or from a shared file storage
//! cache/.pip          tools such as pip and package managers, shared by the builds of all apps
//! audit/              the audit's journal
//! root/, etc/         the mount point of builds' sandboxes, and the /etc that they see
//! hooks.sock          the socket that hooks call
//! ```
//!
//! Builds run as users of their own, which can reach their own tree and cache and nothing else in here.

use std::{
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use visor::names::{AppName, Digest};

/// The state folder.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    /// Held while a slug gets its name, and while one is removed.
    slugs_alone: Arc<Mutex<()>>,
}

impl Layout {
    /// Makes the missing parts of the state folder.
    ///
    /// # Errors
    /// If it can't be made or written.
    pub fn open(root: &Path) -> io::Result<Layout> {
        std::fs::create_dir_all(root)?;
        // Absolute, because child processes have other working folders.
        let layout = Layout { root: root.canonicalize()?, slugs_alone: Arc::default() };
        for folder in [
            layout.repos(),
            layout.gone(),
            layout.slugs(),
            layout.unfinished_slugs(),
            layout.packs(),
            layout.unneeded_slugs(),
        ] {
            std::fs::create_dir_all(folder)?;
        }
        for folder in ["builds", "cache", "cache/.pip"] {
            std::fs::create_dir_all(layout.root.join(folder))?;
        }
        let passage = ["", "builds", "cache", "cache/.pip"].map(|name| (layout.root.join(name), 0o711));
        let closed = [layout.repos(), layout.gone(), layout.slugs(), layout.unneeded_slugs(), layout.packs()]
            .map(|path| (path, 0o700));
        for (folder, mode) in passage.into_iter().chain(closed) {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(layout)
    }

    /// Returns the state folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of all repositories.
    pub fn repos(&self) -> PathBuf {
        self.root.join("repos")
    }

    /// Returns an app's repository.
    pub fn repo(&self, app: &AppName) -> PathBuf {
        self.repos().join(format!("{app}.git"))
    }

    /// Returns the folder of repositories that are being removed.
    pub fn gone(&self) -> PathBuf {
        self.root.join("gone")
    }

    /// Returns the folder of the audit's journal.
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    /// Returns the folder of slugs.
    pub fn slugs(&self) -> PathBuf {
        self.root.join("slugs")
    }

    /// Returns a slug's file.
    pub fn slug(&self, sha256: &Digest) -> PathBuf {
        self.slugs().join(sha256.as_str())
    }

    /// Returns the folder of slugs that are being written. It is on the file system of [`Layout::slugs`], for the
    /// rename.
    pub fn unfinished_slugs(&self) -> PathBuf {
        self.slugs().join(".new")
    }

    /// Returns the folder of marks of slugs that no rev names.
    pub fn unneeded_slugs(&self) -> PathBuf {
        self.root.join("unneeded")
    }

    /// Returns the mark of a slug that no rev names.
    pub fn unneeded_slug(&self, sha256: &Digest) -> PathBuf {
        self.unneeded_slugs().join(sha256.as_str())
    }

    /// Waits until no slug gets its name or is removed, and keeps it so.
    pub fn slugs_alone(&self) -> MutexGuard<'_, ()> {
        self.slugs_alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the folder of packs on their way to or from a shared file storage.
    pub fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    /// Returns the folder where an app's tree is built. The path is the same for each build, because compilers keep
    /// paths in their caches; only one push of an app is built at a time.
    pub fn build(&self, app: &AppName) -> PathBuf {
        self.root.join("builds").join(app.as_str())
    }

    /// Returns the folder of all apps' dependency caches.
    pub fn caches(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Returns the folder of an app's dependency caches.
    pub fn cache(&self, app: &AppName) -> PathBuf {
        self.caches().join(app.as_str())
    }

    /// Returns the folder of the tools that all builds use. No app's name begins with a dot.
    pub fn tools(&self) -> PathBuf {
        self.root.join("cache/.pip")
    }

    /// Returns the folder of the test of builds' isolation at start.
    pub fn trial(&self) -> PathBuf {
        self.root.join("builds/.trial")
    }

    /// Returns the socket of the hooks. A hook finds it by a path relative to its repository, where git starts it.
    pub fn socket(&self) -> PathBuf {
        self.root.join(SOCKET)
    }

    /// Removes unfinished work of an earlier process. No work may be under way.
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

/// The name of the hooks' socket in the state folder.
pub const SOCKET: &str = "hooks.sock";

/// Writes a file and syncs it. After a crash at any time, the file has either its old or its new content.
///
/// # Errors
/// If it can't be written; it then has its old content.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(unfinished, path)
}

/// Removes a file, a link, or a folder with its contents. A missing file counts as removed.
///
/// # Errors
/// If it can't be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_dir() { remove_folder(path) } else { std::fs::remove_file(path) }
}

/// Removes a folder from its top: moves the contents of its subfolders up first. However deep a build has nested
/// folders, at most two are open and no path is longer than a name.
fn remove_folder(top: &Path) -> io::Result<()> {
    // A random prefix that a build can't have chosen for its own names.
    let mark = format!(".{:032x}-", rand::random::<u128>());
    let mut moved = 0_u64;
    loop {
        let mut is_empty = true;
        for entry in std::fs::read_dir(top)? {
            let entry = entry?;
            is_empty = false;
            if !entry.file_type()?.is_dir() {
                std::fs::remove_file(entry.path())?;
                continue;
            }
            for inner in std::fs::read_dir(entry.path())? {
                let inner = inner?;
                if inner.file_type()?.is_dir() {
                    moved += 1;
                    std::fs::rename(inner.path(), top.join(format!("{mark}{moved}")))?;
                } else {
                    std::fs::remove_file(inner.path())?;
                }
            }
            std::fs::remove_dir(entry.path())?;
        }
        if is_empty {
            return std::fs::remove_dir(top);
        }
    }
}

/// Reads a file in a folder that a build could write to. Follows no link, and reads at most `most` bytes.
///
/// # Errors
/// If it is no regular file, is larger, or can't be read.
pub fn read_plain(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::{io::Read, os::unix::fs::OpenOptionsExt};
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    let known = file.metadata()?;
    if !known.is_file() || known.len() > most {
        return Err(io::Error::other(format!("it is no file of {most} bytes at most")));
    }
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_deep_for_any_path_is_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let (top, kept) = (dir.path().join("top"), dir.path().join("kept"));
        std::fs::create_dir(&kept).expect("made");
        std::fs::write(kept.join("file"), "x").expect("written");
        let script = "import os, sys\n\
            os.mkdir('top')\n\
            for n in range(3000):\n \
                os.chdir('top' if n == 0 else 'd')\n \
                [os.mkdir(name) for name in 'de']\n \
                os.symlink(sys.argv[1], 'link')\n \
                open('f', 'w').close()\n";
        let mut made = std::process::Command::new("python3");
        let made = made.args(["-c", script]).arg(&kept).current_dir(dir.path()).status().expect("python3");
        assert!(made.success());
        remove(&top).expect("it can be removed");
        assert!(!top.exists() && kept.join("file").exists());
        remove(&top).expect("what isn't there is removed already");
    }

    #[test]
    fn a_build_gets_no_further_than_its_own_folders() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let mode = |path: PathBuf| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let root = layout.root().to_owned();
        let modes =
            ["", "builds", "cache", "repos", "slugs", "gone", "packs"].map(|name| mode(root.join(name)));
        assert_eq!(modes, [0o711, 0o711, 0o711, 0o700, 0o700, 0o700, 0o700]);
    }

    #[test]
    fn only_a_plain_file_is_read_and_no_more_than_was_said() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "12345").expect("written");
        std::os::unix::fs::symlink("file", path("link")).expect("made");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert_eq!(read_plain(&path("file"), 5).expect("it is plain"), b"12345");
        assert!(read_plain(&path("file"), 4).is_err());
        assert!(read_plain(&path("link"), 5).is_err());
        assert!(read_plain(&path("pipe"), 5).is_err());
    }
}
