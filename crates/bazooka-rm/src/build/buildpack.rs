//! The contract of a buildpack, and the buildpacks of bazooka-rm.
//!
//! Owns their order. A buildpack has the three steps that Heroku's have: it detects its trees, compiles a tree in place,
//! and says what the tree runs if its Procfile doesn't. Each is in a file of its own.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{
    BuildError, Procs, Work, go::Go, java::Java, node::Node, own::Own, php::Php, profile, python::Python,
    ruby::Ruby, run::Runner, rust::Rust, statics::Static,
};
use crate::{layout, tree::Files};

/// The languages, in the order of their builds: an app in Python may have pages that Node makes.
pub const LANGUAGES: [&dyn Buildpack; 7] = [&Node, &Python, &Ruby, &Php, &Java, &Go, &Rust];

/// The app's own build, which replaces all others.
pub const OWN: &dyn Buildpack = &Own;

/// The buildpack for trees without a language.
pub const PAGES: &dyn Buildpack = &Static;

/// The largest file that tells a buildpack what to do, in bytes.
const MOST_SETTINGS: u64 = 4 << 20;

/// An exported tree.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    /// The folder.
    pub dir: &'a Path,
    /// The files, as they were pushed.
    pub files: &'a Files,
}

impl Tree<'_> {
    /// Reports whether a file of this name was pushed.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(Path::new(name))
    }

    /// Reads a file of the tree as it is now. A build may have replaced it, so no link is followed and the size is
    /// limited.
    ///
    /// # Errors
    /// [`BuildError::Disk`].
    pub fn read(&self, name: &str) -> Result<Vec<u8>, BuildError> {
        layout::read_plain(&self.dir.join(name), MOST_SETTINGS)
            .map_err(BuildError::disk(format!("reading {name}")))
    }

    /// Returns the names of the programs in a folder of the tree as it is now, and none if a build has made a link of it:
    /// what lies elsewhere is not listed.
    ///
    /// # Errors
    /// [`BuildError::Disk`].
    pub fn programs(&self, folder: &str) -> Result<Vec<String>, BuildError> {
        self.list(folder, programs)
    }

    /// Returns the names of the files in a folder of the tree as it is now, like [`Tree::programs`].
    ///
    /// # Errors
    /// [`BuildError::Disk`].
    pub fn names(&self, folder: &str) -> Result<Vec<String>, BuildError> {
        self.list(folder, |folder| listed(folder, fs::Metadata::is_file))
    }

    fn list(
        &self,
        folder: &str,
        names: impl FnOnce(&Path) -> io::Result<Vec<String>>,
    ) -> Result<Vec<String>, BuildError> {
        let mut path = PathBuf::from(self.dir);
        for part in Path::new(folder) {
            path.push(part);
            if !fs::symlink_metadata(&path).is_ok_and(|known| known.is_dir()) {
                return Ok(Vec::new());
            }
        }
        names(&path).map_err(BuildError::disk(format!("reading {folder}")))
    }
}

/// A program of the machine that a buildpack needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The name in PATH, or a path.
    pub program: &'static str,
    /// Debian's package that has it.
    pub package: &'static str,
}

/// The tools of one build, beside the machine's own.
#[derive(Clone, Debug, Default)]
pub struct Kit {
    /// The folders that come first in the steps' PATH.
    pub path: Vec<PathBuf>,
    /// The tools that travel in the slug, because instances need them.
    pub carried: Vec<Carried>,
    /// The paths of programs, by the name that a buildpack gives to each.
    pub programs: BTreeMap<&'static str, PathBuf>,
}

/// A folder of programs that goes into the slug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The name, below `.bazooka` in the slug.
    pub name: &'static str,
    /// The folder, whose `bin` comes first in PATH when an instance starts.
    pub from: PathBuf,
}

impl Kit {
    /// Returns the path of a program that a buildpack has prepared.
    ///
    /// # Errors
    /// [`BuildError::Faulty`], if a build has changed the tree so much that it takes another tool now.
    pub fn program(&self, name: &str) -> Result<&Path, BuildError> {
        let changed =
            || BuildError::Faulty(format!("the build has changed the app's files: {name} is needed now"));
        self.programs.get(name).map(PathBuf::as_path).ok_or_else(changed)
    }
}

/// A way to build trees of one kind.
#[async_trait]
pub trait Buildpack: Sync {
    /// Returns the word for pushers and metrics.
    fn name(&self) -> &'static str;

    /// Reports whether a tree is of this kind, by the names of its files and the contents of few.
    fn detects(&self, tree: Tree<'_>) -> bool;

    /// Returns the program without which a tree can't be built.
    fn tool(&self, _tree: Tree<'_>) -> Option<Tool> {
        None
    }

    /// Finds the tools that a tree's build takes, and makes the shared ones that are missing. No process of the app has
    /// run.
    ///
    /// # Errors
    /// [`BuildError`]; also if the tree's files contradict each other.
    async fn prepare(
        &self,
        _work: &Work<'_>,
        _runner: &Runner<'_>,
        _kit: &mut Kit,
    ) -> Result<(), BuildError> {
        Ok(())
    }

    /// Builds a tree in its folder.
    ///
    /// # Errors
    /// [`BuildError`]. The folder then stays as it is.
    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &Kit) -> Result<(), BuildError>;

    /// Reports whether [`Buildpack::release`] may return a proc.
    fn may_release(&self) -> bool {
        false
    }

    /// Returns the procs of a built tree that has no Procfile, with their commands.
    ///
    /// # Errors
    /// [`BuildError`], if a file that decides it can't be read.
    fn release(&self, _tree: Tree<'_>) -> Result<Procs, BuildError> {
        Ok(Procs::new())
    }

    /// Returns the defaults of the variables that an instance of the app has.
    fn defaults(&self) -> &'static [profile::Default] {
        &[]
    }

    /// Reports whether [`Buildpack::compile`] starts processes, which take a sandbox.
    fn runs_processes(&self) -> bool {
        true
    }
}

impl fmt::Debug for dyn Buildpack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the proc `web` with a command.
pub fn web(command: impl Into<String>) -> Procs {
    Procs::from([("web".parse().expect("it is a proc's name"), command.into())])
}

/// Returns the proc `web` for the program that a build has made in a folder, if there is one alone.
pub fn web_of(folder: &str, programs: &[String]) -> Procs {
    match programs {
        [program] => web(format!("exec './{folder}/{}'", program.replace('\'', r"'\''"))),
        _ => Procs::new(),
    }
}

/// Returns the names of the executable files in a folder, in order; none if it is missing.
///
/// # Errors
/// The file system's.
pub fn programs(folder: &Path) -> io::Result<Vec<String>> {
    listed(folder, |known| known.is_file() && known.permissions().mode() & 0o111 != 0)
}

/// Returns the names of those files in a folder that count, in order; none if it is missing. No link is followed.
fn listed(folder: &Path, counts: impl Fn(&fs::Metadata) -> bool) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let known = entry.metadata()?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if counts(&known) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}
