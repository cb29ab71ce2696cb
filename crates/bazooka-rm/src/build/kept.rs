//! Packages that an app's build keeps for the next one: those that were installed for one lock file.
//!
//! Owns the folders of kept packages in an app's cache. Each is named by all that determines its contents, so that an
//! unchanged lock file installs nothing again.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{BuildError, Work, run::Runner, tools::WHOLE};
use crate::layout;

/// Installed packages of an earlier build, or the place for those of this one.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Returns the packages of a kind that all of `made_from` determines, with the config vars that the build sees: a
    /// registry may be among them.
    pub(super) fn of(work: &Work<'_>, kind: &str, made_from: &[&[u8]]) -> Kept {
        let vars = work.place.vars().iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        let all: Vec<&[u8]> = made_from.iter().copied().chain(vars).collect();
        Kept { folder: work.cache.join(kind).join(name(&all)) }
    }

    /// Reports whether an earlier build has kept them.
    pub(super) fn is_there(&self) -> bool {
        self.folder.join(WHOLE).exists()
    }

    /// Copies the packages into the tree, where nothing may be yet.
    ///
    /// # Errors
    /// Those of [`Runner::files`].
    pub(super) async fn take(&self, runner: &Runner<'_>, to: &Path) -> Result<(), BuildError> {
        let words = [OsStr::new("copy"), self.folder.as_os_str(), to.as_os_str()];
        runner.files("copying the packages", &words).await
    }

    /// Keeps the packages that were installed in the tree, and removes all others of their kind.
    ///
    /// # Errors
    /// Those of [`Runner::files`].
    pub(super) async fn keep(&self, runner: &Runner<'_>, from: &Path) -> Result<(), BuildError> {
        let words = [OsStr::new("keep"), from.as_os_str(), self.folder.as_os_str()];
        runner.files("keeping the packages", &words).await
    }
}

/// Returns a name that depends on each of these, and on where one ends and the next begins.
fn name(made_from: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in made_from {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps a folder, and removes all others beside it, as one of a build's steps.
pub(super) fn keep(from: &Path, kept: &Path) -> io::Result<()> {
    let others = kept.parent().ok_or(io::ErrorKind::InvalidInput)?;
    layout::remove(others)?;
    fs::create_dir_all(others)?;
    copy(from, kept)?;
    fs::write(kept.join(WHOLE), "")
}

/// Copies a folder, except the mark of a complete one, as one of a build's steps.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    fs::create_dir(to)?;
    copy_contents(from, to)
}

fn copy_contents(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() == WHOLE {
            continue;
        }
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_contents(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_by_all_that_they_are_made_from() {
        let names = [
            name(&[b"python3.11", b"a==1\n"]),
            name(&[b"python3.12", b"a==1\n"]),
            name(&[b"python3.11", b"a==2\n"]),
            name(&[b"python3.11a==1\n"]),
            name(&[b"python3.11", b"a==1\n", b""]),
        ];
        let different: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert_eq!(names[0], name(&[b"python3.11", b"a==1\n"]));
    }

    #[test]
    fn what_is_kept_replaces_what_was_and_comes_back_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("packages/.bin")).expect("made");
        fs::write(path("packages/a.js"), "a").expect("written");
        std::os::unix::fs::symlink("../a.js", path("packages/.bin/a")).expect("made");
        keep(&path("packages"), &path("kept/one")).expect("kept");
        keep(&path("packages"), &path("kept/two")).expect("kept");
        assert!(!path("kept/one").exists() && path("kept/two").join(WHOLE).exists());
        copy(&path("kept/two"), &path("tree/packages")).expect("copied");
        assert!(!path("tree/packages").join(WHOLE).exists());
        assert_eq!(fs::read_to_string(path("tree/packages/.bin/a")).expect("it leads there"), "a");
    }
}
