//! The export of a pushed tree: from git's objects into a folder, with checks that nothing leads out of it.
//!
//! Owns the checks of a commit's contents. Objects of a push that is not accepted yet are read through git's
//! quarantine. Each file is created new, and never written through an existing one.

pub mod links;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use git2::{ObjectType, Odb, Oid, Repository, Tree};
use tokio_util::sync::CancellationToken;

/// The largest file in bytes; it is held in memory while it is written. A slug has a limit of its own.
const MAX_FILE_BYTES: usize = 100 * 1024 * 1024;

/// The largest total size of all files, in bytes.
const MAX_TREE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// The largest number of entries. A large monorepo has some ten thousand.
const MAX_ENTRIES: usize = 200_000;

/// The largest depth of folders, which bounds the recursion.
const MAX_DEPTH: usize = 100;

/// The file at the top of a tree that says what a slug does without, as Heroku's does.
const SLUGIGNORE: &str = ".slugignore";

/// The first line of a pointer of Git LFS, and the length that a pointer stays below, by its specification.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";
const MOST_LFS_POINTER: usize = 1024;

/// The reasons why a tree is rejected or can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The tree has a submodule.
    #[error("{} is a submodule: submodules are not built; commit its files, or install it as a dependency", .0.display())]
    Submodule(PathBuf),
    /// A symbolic link leads out of the tree.
    #[error("{} is a symbolic link that leads out of the app: {}", .path.display(), .target.display())]
    LinkOut {
        /// The link's path.
        path: PathBuf,
        /// The link's target.
        target: PathBuf,
    },
    /// A file is a pointer of Git LFS.
    #[error(
        "{} is kept by Git LFS, and only its pointer was pushed: Bazooka has no LFS storage; commit the file itself \
         (`git lfs migrate export --include={}`), or have bin/build fetch it",
        .0.display(), .0.display()
    )]
    LfsPointer(PathBuf),
    /// The tree has a name that a file can't or must not have.
    #[error("{:?} is no name for a file of an app", .0)]
    BadName(PathBuf),
    /// A file is too large.
    #[error("{} is {} MB large; {} MB is the most for one file", .path.display(), .bytes / 1_000_000, MAX_FILE_BYTES / 1_000_000)]
    FileTooLarge {
        /// The file's path.
        path: PathBuf,
        /// The file's size in bytes.
        bytes: usize,
    },
    /// The tree is too large.
    #[error("the app's files are too many or too large: {MAX_ENTRIES} files and {} MB are the most", MAX_TREE_BYTES / 1_000_000)]
    TooLarge,
    /// git can't read the tree.
    #[error("the pushed commit can't be read")]
    Git(#[from] git2::Error),
    /// The folder can't be written.
    #[error("{} can't be written", .path.display())]
    Write {
        /// The path of the failed write.
        path: PathBuf,
        /// The file system's error.
        #[source]
        source: std::io::Error,
    },
    /// The pusher has left.
    #[error("the push was called off")]
    Cancelled,
}

/// An entry of a tree that is no folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// A regular file.
    Regular {
        /// True if the file may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Link,
}

/// The files of a tree, by path.
pub type Files = BTreeMap<PathBuf, File>;

/// The facts about a commit that a rev records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The first line of the commit's message.
    pub subject: String,
    /// The committer's name.
    pub committer: String,
    /// The commit's time, in seconds since 1970.
    pub seconds: i64,
}

/// Opens a repository, with the objects of a push that is being checked.
///
/// # Errors
/// If it can't be opened.
pub fn open(repository: &Path, quarantine: Option<&Path>) -> Result<Repository, git2::Error> {
    let repository = Repository::open_bare(repository)?;
    if let Some(quarantine) = quarantine.and_then(Path::to_str) {
        repository.odb()?.add_disk_alternate(quarantine)?;
    }
    Ok(repository)
}

/// Returns the facts about a commit.
///
/// # Errors
/// If there is no such commit.
pub fn describe(repository: &Repository, commit: &str) -> Result<Commit, git2::Error> {
    let commit = repository.find_commit(Oid::from_str(commit)?)?;
    let plain = |text: &[u8], most: usize| -> String {
        String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(most).collect()
    };
    let subject = commit.message_bytes().split(|byte| *byte == b'\n').next().unwrap_or_default();
    let committer = plain(commit.committer().name_bytes(), 100);
    Ok(Commit { subject: plain(subject, 200), committer, seconds: commit.time().seconds() })
}

/// Writes a commit's tree into a new folder and returns its files, without those that its `.slugignore` names. A failure
/// leaves the folder incomplete.
///
/// # Errors
/// [`TreeError`]: the tree is rejected, or can't be read or written.
pub fn export(
    repository: &Repository,
    commit: &str,
    into: &Path,
    cancelled: &CancellationToken,
) -> Result<Files, TreeError> {
    let tree = repository.find_commit(Oid::from_str(commit)?)?.tree()?;
    let ignores = ignore(repository, &tree)?;
    let (odb, tree) = (repository.odb()?, tree.id());
    let (files, links) = (Files::new(), BTreeMap::new());
    let mut export = Export { repository, odb, into, cancelled, ignores, files, links, bytes: 0 };
    folder(into)?;
    export.tree(tree, Path::new(""), 0)?;
    if let Some((path, target)) = links::first_out(&export.links) {
        return Err(TreeError::LinkOut { path, target });
    }
    // Links come last, so that no file was written through one.
    for (path, target) in &export.links {
        let path = into.join(path);
        std::os::unix::fs::symlink(target, &path).map_err(|source| TreeError::Write { path, source })?;
    }
    Ok(export.files)
}

/// Has git leave out what the tree's `.slugignore` names, by the rules of a `.gitignore` at the top. Returns false if there
/// is none.
fn ignore(repository: &Repository, tree: &Tree<'_>) -> Result<bool, git2::Error> {
    let Some(entry) = tree.get_name(SLUGIGNORE).filter(|entry| entry.kind() == Some(ObjectType::Blob)) else {
        return Ok(false);
    };
    let rules = repository.find_blob(entry.id())?;
    repository.clear_ignore_rules()?;
    repository.add_ignore_rule(&String::from_utf8_lossy(rules.content()))?;
    Ok(true)
}

struct Export<'a> {
    repository: &'a Repository,
    odb: Odb<'a>,
    into: &'a Path,
    cancelled: &'a CancellationToken,
    /// True if git knows rules by which files are left out.
    ignores: bool,
    files: Files,
    links: BTreeMap<PathBuf, PathBuf>,
    bytes: u64,
}

impl Export<'_> {
    fn tree(&mut self, id: Oid, at: &Path, depth: usize) -> Result<(), TreeError> {
        if depth > MAX_DEPTH {
            return Err(TreeError::TooLarge);
        }
        let tree = self.repository.find_tree(id)?;
        for entry in &tree {
            if self.cancelled.is_cancelled() {
                return Err(TreeError::Cancelled);
            }
            let path = at.join(OsStr::from_bytes(entry.name_bytes()));
            if !is_file_name(entry.name_bytes()) {
                return Err(TreeError::BadName(path));
            }
            if self.ignores && self.is_ignored(&path, entry.filemode() == 0o040000)? {
                continue;
            }
            if self.files.len() >= MAX_ENTRIES {
                return Err(TreeError::TooLarge);
            }
            match entry.filemode() {
                0o040000 => {
                    folder(&self.into.join(&path))?;
                    self.tree(entry.id(), &path, depth + 1)?;
                }
                0o160000 => return Err(TreeError::Submodule(path)),
                0o120000 => {
                    let target = self.content(entry.id(), &path)?;
                    self.links.insert(path.clone(), PathBuf::from(OsStr::from_bytes(&target)));
                    self.files.insert(path, File::Link);
                }
                mode => {
                    let executable = mode & 0o111 != 0;
                    self.file(entry.id(), &path, executable)?;
                    self.files.insert(path, File::Regular { executable });
                }
            }
        }
        Ok(())
    }

    fn is_ignored(&self, path: &Path, is_folder: bool) -> Result<bool, git2::Error> {
        if !is_folder {
            return self.repository.is_path_ignored(path);
        }
        // Rules such as `docs/` are for folders alone, and git knows one here by its slash.
        let mut folder = path.as_os_str().to_owned();
        folder.push("/");
        self.repository.is_path_ignored(folder)
    }

    fn file(&mut self, id: Oid, path: &Path, executable: bool) -> Result<(), TreeError> {
        let content = self.content(id, path)?;
        if content.starts_with(LFS_POINTER) && content.len() < MOST_LFS_POINTER {
            return Err(TreeError::LfsPointer(path.into()));
        }
        let path = self.into.join(path);
        let mode = if executable { 0o755 } else { 0o644 };
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(&content));
        written.map_err(|source| TreeError::Write { path, source })
    }

    fn content(&mut self, id: Oid, path: &Path) -> Result<Vec<u8>, TreeError> {
        let (bytes, kind) = self.odb.read_header(id)?;
        if kind != ObjectType::Blob {
            return Err(TreeError::BadName(path.into()));
        }
        if bytes > MAX_FILE_BYTES {
            return Err(TreeError::FileTooLarge { path: path.into(), bytes });
        }
        self.bytes += bytes as u64;
        if self.bytes > MAX_TREE_BYTES {
            return Err(TreeError::TooLarge);
        }
        Ok(self.odb.read(id)?.data().to_vec())
    }
}

fn folder(path: &Path) -> Result<(), TreeError> {
    std::fs::create_dir(path).map_err(|source| TreeError::Write { path: path.into(), source })
}

/// True for a name that can be one file's. Git rejects the other names too, but here they would become paths.
fn is_file_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name != b"."
        && name != b".."
        && !name.eq_ignore_ascii_case(b".git")
        && !name.contains(&b'/')
        && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a bare repository with one commit of these entries (mode, name, content).
    fn commit(dir: &Path, entries: &[(i32, &str, &str)]) -> (Repository, String) {
        let repository = Repository::init_bare(dir).expect("a repository can be made");
        let id = {
            let mut tree = repository.treebuilder(None).expect("a tree can be made");
            for (mode, name, content) in entries {
                let id = match *mode {
                    0o160000 => Oid::from_str(&"1".repeat(40)).expect("an id"),
                    0o040000 => {
                        let mut inner = repository.treebuilder(None).expect("a tree can be made");
                        let blob = repository.blob(content.as_bytes()).expect("written");
                        inner.insert("file", blob, 0o100755).expect("inserted");
                        inner.write().expect("written")
                    }
                    _ => repository.blob(content.as_bytes()).expect("written"),
                };
                tree.insert(name, id, *mode).expect("inserted");
            }
            let tree = repository.find_tree(tree.write().expect("written")).expect("it is there");
            let who =
                git2::Signature::new("Test\u{7}er", "test@localhost", &git2::Time::new(1_700_000_000, 60))
                    .expect("a signature");
            repository.commit(None, &who, &who, "subj\tect\n\nbody", &tree, &[]).expect("committed")
        };
        (repository, id.to_string())
    }

    #[test]
    fn files_folders_links_and_modes_are_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let (repository, id) = commit(
            &dir.path().join("r"),
            &[(0o100644, "a", "one"), (0o040000, "bin", "two"), (0o120000, "l", "bin/file")],
        );
        let into = dir.path().join("out");
        let files = export(&repository, &id, &into, &CancellationToken::new()).expect("it is exported");
        assert_eq!(
            files,
            Files::from([
                ("a".into(), File::Regular { executable: false }),
                ("bin/file".into(), File::Regular { executable: true }),
                ("l".into(), File::Link),
            ])
        );
        assert_eq!(std::fs::read_to_string(into.join("l")).expect("it leads to a file"), "two");
        assert_eq!(
            describe(&repository, &id).expect("it is there"),
            Commit { subject: "subject".into(), committer: "Tester".into(), seconds: 1_700_000_000 }
        );
    }

    #[test]
    fn what_slugignore_names_is_left_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let rules = "# not for servers\n/docs/\n*.psd\nspec\n/lib\n";
        let entries = [
            (0o100644, SLUGIGNORE, rules),
            (0o040000, "docs", "a manual"),
            (0o160000, "lib", ""),
            (0o100644, "logo.psd", "large"),
            (0o040000, "spec", "tests"),
            (0o100644, "specs", "kept"),
        ];
        let (repository, id) = commit(&dir.path().join("r"), &entries);
        let into = dir.path().join("out");
        let files = export(&repository, &id, &into, &CancellationToken::new()).expect("it is exported");
        let names: Vec<&str> = files.keys().filter_map(|path| path.to_str()).collect();
        assert_eq!(names, [SLUGIGNORE, "specs"]);
        assert!(!into.join("docs").exists() && !into.join("spec").exists());
    }

    #[test]
    fn a_submodule_a_pointer_and_a_link_out_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        for (at, (entry, wanted)) in [
            ((0o160000, "lib", ""), "lib is a submodule"),
            ((0o120000, "etc", "/etc"), "etc is a symbolic link that leads out of the app: /etc"),
            (
                (0o100644, "model.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
                "model.bin is kept by Git LFS, and only its pointer was pushed",
            ),
            ((0o120000, "up", "../x"), "up is a symbolic link that leads out of the app: ../x"),
        ]
        .into_iter()
        .enumerate()
        {
            let (repository, id) = commit(&dir.path().join(format!("r{at}")), &[entry]);
            let into = dir.path().join(format!("out{at}"));
            let error =
                export(&repository, &id, &into, &CancellationToken::new()).expect_err("it is refused");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
