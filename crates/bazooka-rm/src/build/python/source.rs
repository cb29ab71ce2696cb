//! The file that says what is installed for an app in Python, chosen from those that were pushed.
//!
//! Owns the choice, and reads no more of a file than the choice takes: each tool reads its own file.

use serde::Deserialize;

use super::super::{BuildError, buildpack::Tree};

/// The lists of requirements, for pip.
pub(super) const REQUIREMENTS: &str = "requirements.txt";
/// The manifest that all tools but pipenv share.
pub(super) const PYPROJECT: &str = "pyproject.toml";
/// Pipenv's manifest.
pub(super) const PIPFILE: &str = "Pipfile";

/// The lock files, each with its manifest.
const LOCKS: [(&str, &str); 3] =
    [("uv.lock", PYPROJECT), ("poetry.lock", PYPROJECT), ("Pipfile.lock", PIPFILE)];

/// Files of other languages. A pyproject.toml without dependencies beside one of them holds a tool's settings.
const OTHERS: [&str; 7] =
    ["package.json", "Cargo.toml", "go.mod", "Gemfile", "composer.json", "pom.xml", "build.gradle"];

/// The way to install an app's dependencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// pip reads requirements.txt.
    Requirements,
    /// uv reads pyproject.toml, and uv.lock if there is one.
    Uv { locked: bool },
    /// Poetry reads pyproject.toml, and poetry.lock if there is one.
    Poetry { locked: bool },
    /// Pipenv reads the Pipfile, and Pipfile.lock if there is one.
    Pipenv { locked: bool },
    /// No file names a dependency.
    Nothing,
}

/// The fields of pyproject.toml that decide.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Manifest {
    project: Option<Project>,
    build_system: Option<toml::Table>,
    tool: Tools,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Project {
    dependencies: Vec<String>,
    dynamic: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tools {
    poetry: Option<Poetry>,
    uv: Option<Uv>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Poetry {
    dependencies: Option<toml::Table>,
    package_mode: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Uv {
    package: Option<bool>,
}

impl Manifest {
    fn has_dependencies(&self) -> bool {
        self.poetry_dependencies().is_some()
            || self.project.as_ref().is_some_and(|project| {
                !project.dependencies.is_empty() || project.dynamic.iter().any(|name| name == "dependencies")
            })
    }

    fn poetry_dependencies(&self) -> Option<&toml::Table> {
        self.tool.poetry.as_ref().and_then(|poetry| poetry.dependencies.as_ref())
    }

    /// Reports whether the app says that it is a package: uv's rule and Poetry's.
    fn is_package(&self) -> bool {
        let uv = self.tool.uv.as_ref().and_then(|uv| uv.package);
        let poetry = self.tool.poetry.as_ref().and_then(|poetry| poetry.package_mode);
        let is_named = self.project.is_some() || self.tool.poetry.is_some();
        uv.or(poetry).unwrap_or(self.build_system.is_some()) && is_named && self.build_system.is_some()
    }

    fn backend(&self) -> &str {
        let backend = self.build_system.as_ref().and_then(|system| system.get("build-backend"));
        backend.and_then(toml::Value::as_str).unwrap_or("setuptools")
    }
}

/// The chosen way, with what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The way.
    pub(super) source: Source,
    /// The backend that builds the app itself, if the app is a package.
    pub(super) package: Option<String>,
    /// The files whose contents determine the installed packages, the most telling first; `None` if others do too.
    pub(super) made_from: Option<Vec<&'static str>>,
    /// Notes for the pusher.
    pub(super) notes: Vec<String>,
}

/// Reports whether a tree is an app in Python.
pub(super) fn is_python(tree: Tree<'_>) -> bool {
    let names = [REQUIREMENTS, PIPFILE].into_iter().chain(LOCKS.map(|(lock, _)| lock));
    let alone = || !OTHERS.into_iter().any(|name| tree.has(name));
    // A faulty file is complained about in the build.
    let counts = || alone() || manifest(tree).is_ok_and(|manifest| manifest.has_dependencies());
    names.into_iter().any(|name| tree.has(name)) || (tree.has(PYPROJECT) && counts())
}

/// Chooses the way to install a tree's dependencies: its lock file's, else that of requirements.txt, else that of a
/// manifest.
///
/// # Errors
/// [`BuildError::Faulty`], if there are several lock files, or a lock file without its manifest.
pub(super) fn choose(tree: Tree<'_>) -> Result<Choice, BuildError> {
    let manifest = manifest(tree)?;
    let locks: Vec<(&str, &str)> = LOCKS.into_iter().filter(|(lock, _)| tree.has(lock)).collect();
    if locks.len() > 1 {
        return Err(several(tree, &manifest, &locks));
    }
    if let [(lock, needed)] = locks[..]
        && !tree.has(needed)
    {
        return Err(BuildError::Faulty(format!(
            "{lock} is there without its {needed}; commit both, or `git rm {lock}`"
        )));
    }
    let source = match locks.first().map(|(lock, _)| *lock) {
        Some("uv.lock") => Source::Uv { locked: true },
        Some("poetry.lock") => Source::Poetry { locked: true },
        Some(_) => Source::Pipenv { locked: true },
        None if tree.has(REQUIREMENTS) => Source::Requirements,
        None if manifest.poetry_dependencies().is_some() => Source::Poetry { locked: false },
        None if manifest.has_dependencies() => Source::Uv { locked: false },
        None if tree.has(PIPFILE) => Source::Pipenv { locked: false },
        None => Source::Nothing,
    };
    let notes = notes(tree, &manifest, source);
    let is_pyproject = !matches!(source, Source::Requirements | Source::Pipenv { .. });
    let package = (is_pyproject && manifest.is_package()).then(|| manifest.backend().to_owned());
    let made_from = made_from(tree, source)?;
    Ok(Choice { source, package, made_from, notes })
}

fn manifest(tree: Tree<'_>) -> Result<Manifest, BuildError> {
    if !tree.has(PYPROJECT) {
        return Ok(Manifest::default());
    }
    let faulty = |error: String| BuildError::Faulty(format!("{PYPROJECT} can't be read: {error}"));
    let text = String::from_utf8(tree.read(PYPROJECT)?).map_err(|error| faulty(error.to_string()))?;
    toml::from_str(&text).map_err(|error| faulty(error.to_string().trim_end().to_owned()))
}

/// Returns the refusal of several lock files, with those to remove: all but that of the manifest's own tool.
fn several(tree: Tree<'_>, manifest: &Manifest, locks: &[(&str, &str)]) -> BuildError {
    let names: Vec<&str> = locks.iter().map(|(lock, _)| *lock).collect();
    let used = match (&manifest.tool.poetry, &manifest.tool.uv) {
        (Some(_), None) => Some("poetry.lock"),
        (None, Some(_)) => Some("uv.lock"),
        _ => None,
    };
    let used = used.filter(|used| names.contains(used));
    // A lock file without its manifest is the one that was left behind.
    let whole: Vec<&str> =
        locks.iter().filter(|(_, manifest)| tree.has(manifest)).map(|(lock, _)| *lock).collect();
    let used = used.or(if let [alone] = whole[..] { Some(alone) } else { None });
    let without =
        |used: &str| names.iter().copied().filter(|name| *name != used).collect::<Vec<_>>().join(" ");
    let advice = match used {
        Some(used) => format!("{used} is the one that fits; `git rm {}`", without(used)),
        None => {
            let each: Vec<String> =
                names.iter().map(|name| format!("`git rm {}` to keep {name}", without(name))).collect();
            format!("keep that of the tool that you use: {}", each.join(", or "))
        }
    };
    BuildError::Faulty(format!("{} each say what is installed; {advice}", names.join(" and ")))
}

/// Returns the notes on files that are missing or not read.
fn notes(tree: Tree<'_>, manifest: &Manifest, source: Source) -> Vec<String> {
    let unlocked = |lock: &str| {
        format!("there is no {lock}: the newest versions are installed, and may differ from build to build")
    };
    let unread = |file: &str, read: &str| format!("{file} is not read: {read} says what is installed");
    let mut notes = Vec::new();
    let read = match source {
        Source::Requirements => REQUIREMENTS,
        Source::Uv { locked: true } => "uv.lock",
        Source::Poetry { locked: true } => "poetry.lock",
        Source::Pipenv { locked: true } => "Pipfile.lock",
        Source::Uv { locked: false } | Source::Poetry { locked: false } => PYPROJECT,
        Source::Pipenv { locked: false } => PIPFILE,
        Source::Nothing => return notes,
    };
    match source {
        Source::Uv { locked: false } => notes.push(unlocked("uv.lock")),
        Source::Poetry { locked: false } => notes.push(unlocked("poetry.lock")),
        Source::Pipenv { locked: false } => notes.push(unlocked("Pipfile.lock")),
        _ => {}
    }
    if tree.has(REQUIREMENTS) && source != Source::Requirements {
        notes.push(unread(REQUIREMENTS, read));
    }
    if tree.has(PIPFILE) && !matches!(source, Source::Pipenv { .. }) {
        notes.push(unread(PIPFILE, read));
    }
    if manifest.has_dependencies() && matches!(source, Source::Requirements | Source::Pipenv { .. }) {
        notes.push(format!("the dependencies in {PYPROJECT} are not read: {read} says what is installed"));
    }
    notes
}

/// Returns the files that alone determine what is installed; none if there is more to it.
fn made_from(tree: Tree<'_>, source: Source) -> Result<Option<Vec<&'static str>>, BuildError> {
    let (files, is_whole): (&[&'static str], fn(&str) -> bool) = match source {
        Source::Requirements => (&[REQUIREMENTS], names_packages_alone),
        Source::Uv { locked: true } => (&["uv.lock", PYPROJECT], |lock| {
            let local = ["directory", "editable", "virtual", "path"];
            let is_local = |line: &str| local.iter().any(|kind| line.contains(&format!("{{ {kind} = ")));
            lock.lines().all(|line| !is_local(line) || line.contains("= \".\""))
        }),
        Source::Poetry { locked: true } => (&["poetry.lock", PYPROJECT], |lock| {
            !lock.contains("\ntype = \"directory\"") && !lock.contains("\ntype = \"file\"")
        }),
        Source::Pipenv { locked: true } => (&["Pipfile.lock", PIPFILE], is_of_registries),
        Source::Pipenv { locked: false } => (&[PIPFILE], is_of_registries),
        // The field `dependencies` is somewhere in it, and one that names a path has a word for that.
        Source::Uv { locked: false } | Source::Poetry { locked: false } => (&[PYPROJECT], |manifest| {
            is_of_registries(manifest)
                && !manifest.contains("workspace")
                && !manifest.contains("\"dependencies\"")
        }),
        Source::Nothing => return Ok(Some(Vec::new())),
    };
    // A manifest beside its lock file is among them because the tool compares the two.
    let is_whole = std::str::from_utf8(&tree.read(files[0])?).is_ok_and(is_whole);
    Ok(is_whole.then(|| files.to_vec()))
}

/// Reports whether a manifest or a lock file has no word for a package that lies in the app's tree.
fn is_of_registries(text: &str) -> bool {
    let words = ["path", "file", "editable", "directory"];
    let keys = text.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_' && c != ':');
    !keys.into_iter().any(|key| words.contains(&key) || key == "file:")
}

/// Reports whether a list of requirements names only packages of a registry: no other file, and nothing of the app's
/// tree.
fn names_packages_alone(list: &str) -> bool {
    list.lines().map(str::trim).all(|line| {
        line.is_empty()
            || line.starts_with('#')
            || (line.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !line.contains('/')
                && !line.ends_with('\\'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{File, Files};

    const PROJECT: &str = "[project]\nname = 'shop'\nversion = '1'\ndependencies = ['flask']\n";
    const POETRY: &str = "[tool.poetry.dependencies]\npython = '>=3.9'\n";
    const BUILD: &str = "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n";

    /// Calls a function with a tree of these files.
    fn of<T>(files: &[(&str, &str)], asked: impl FnOnce(Tree<'_>) -> T) -> T {
        let dir = tempfile::tempdir().expect("a folder");
        let mut names = Files::new();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("written");
            names.insert(name.into(), File::Regular { executable: false });
        }
        asked(Tree { dir: dir.path(), files: &names })
    }

    #[test]
    fn a_lock_file_wins_over_a_list_and_a_list_over_a_manifest() {
        for (files, wanted) in [
            (&[("requirements.txt", "")][..], Source::Requirements),
            (&[("requirements.txt", ""), ("pyproject.toml", PROJECT)], Source::Requirements),
            (&[("requirements.txt", ""), ("Pipfile", "")], Source::Requirements),
            (&[("uv.lock", ""), ("pyproject.toml", PROJECT)], Source::Uv { locked: true }),
            (
                &[("uv.lock", ""), ("pyproject.toml", PROJECT), ("requirements.txt", "")],
                Source::Uv { locked: true },
            ),
            (&[("poetry.lock", ""), ("pyproject.toml", POETRY)], Source::Poetry { locked: true }),
            (&[("Pipfile.lock", ""), ("Pipfile", "")], Source::Pipenv { locked: true }),
            (&[("Pipfile", "")], Source::Pipenv { locked: false }),
            (&[("pyproject.toml", PROJECT)], Source::Uv { locked: false }),
            (&[("pyproject.toml", "[project]\ndynamic = ['dependencies']\n")], Source::Uv { locked: false }),
            (&[("pyproject.toml", POETRY)], Source::Poetry { locked: false }),
            (&[("pyproject.toml", "[tool.ruff]\n")], Source::Nothing),
            (&[("pyproject.toml", "[project]\nname = 'x'\ndependencies = []\n")], Source::Nothing),
        ] {
            assert_eq!(of(files, choose).expect("it is clear").source, wanted, "{files:?}");
        }
    }

    #[test]
    fn several_lock_files_are_refused_with_those_to_remove() {
        let (uv, poetry, pipenv) = (("uv.lock", ""), ("poetry.lock", ""), ("Pipfile.lock", ""));
        for (files, wanted) in [
            (
                &[uv, poetry, ("pyproject.toml", POETRY)][..],
                "poetry.lock is the one that fits; `git rm uv.lock`",
            ),
            (&[uv, poetry, ("pyproject.toml", "[tool.uv]\n")], "`git rm poetry.lock`"),
            (
                &[uv, pipenv, ("pyproject.toml", PROJECT)],
                "uv.lock is the one that fits; `git rm Pipfile.lock`",
            ),
            (
                &[uv, poetry, ("pyproject.toml", PROJECT)],
                "`git rm poetry.lock` to keep uv.lock, or `git rm uv.lock` to keep poetry.lock",
            ),
            (&[uv], "uv.lock is there without its pyproject.toml"),
            (&[("pyproject.toml", "[project\n")], "pyproject.toml can't be read: TOML parse error at line 1"),
        ] {
            let said = of(files, choose).expect_err("it isn't clear").to_string();
            assert!(said.contains(wanted), "{files:?}: {said}");
        }
    }

    #[test]
    fn what_is_missing_or_not_read_is_told() {
        for (files, wanted) in [
            (&[("pyproject.toml", PROJECT)][..], &["there is no uv.lock"][..]),
            (&[("Pipfile", "")], &["there is no Pipfile.lock"]),
            (&[("pyproject.toml", POETRY)], &["there is no poetry.lock"]),
            (
                &[("requirements.txt", ""), ("Pipfile", ""), ("pyproject.toml", PROJECT)],
                &["Pipfile is not read", "the dependencies in pyproject.toml are not read"],
            ),
            (
                &[("requirements.txt", ""), ("uv.lock", ""), ("pyproject.toml", PROJECT)],
                &["requirements.txt is not read: uv.lock says what is installed"],
            ),
            (&[("requirements.txt", ""), ("pyproject.toml", "[tool.ruff]\n")], &[]),
        ] {
            let notes = of(files, choose).expect("it is clear").notes;
            let same = notes.iter().zip(wanted).all(|(note, wanted)| note.contains(wanted));
            assert!(notes.len() == wanted.len() && same, "{files:?}: {notes:?}");
        }
    }

    #[test]
    fn an_app_is_installed_itself_only_if_it_says_that_it_is_a_package() {
        let package = format!("{PROJECT}{BUILD}");
        let poetry = format!("[tool.poetry]\npackage-mode = false\n{BUILD}");
        let uv = format!("{PROJECT}{BUILD}[tool.uv]\npackage = false\n");
        for (manifest, wanted) in [
            (package.as_str(), Some("hatchling.build")),
            (PROJECT, None),
            (&poetry, None),
            (&uv, None),
            ("[build-system]\nrequires = ['setuptools']\n[project]\nname = 'x'\n", Some("setuptools")),
        ] {
            let chosen = of(&[("pyproject.toml", manifest)], choose).expect("it is clear");
            assert_eq!(chosen.package.as_deref(), wanted, "{manifest}");
        }
        let listed = [("pyproject.toml", package.as_str()), ("requirements.txt", "")];
        assert_eq!(of(&listed, choose).expect("it is clear").package, None);
    }

    #[test]
    fn packages_are_kept_only_for_files_that_say_it_all() {
        let lock = |source: &str| format!("[[package]]\nname = \"a\"\nsource = {{ {source} }}\n");
        let (registry, own, local) =
            (lock("registry = \"x\""), lock("virtual = \".\""), lock("editable = \"libs/a\""));
        for (name, content, wanted) in [
            ("requirements.txt", "gunicorn==23.0.0\nflask>=2 ; python_version > '3'\n\n# x\n", true),
            ("requirements.txt", "uvicorn[standard]\n", true),
            ("requirements.txt", "-r other.txt\n", false),
            ("requirements.txt", "-e .\n", false),
            ("requirements.txt", "--find-links x\n", false),
            ("requirements.txt", ".\n", false),
            ("requirements.txt", "./lib\n", false),
            ("requirements.txt", "lib @ file:///x\n", false),
            ("requirements.txt", "a==1 \\\n  --hash=sha256:00\n", false),
            ("uv.lock", &registry, true),
            ("uv.lock", &own, true),
            ("uv.lock", &local, false),
            ("poetry.lock", "[[package]]\nname = \"a\"\n[package.source]\ntype = \"legacy\"\n", true),
            ("poetry.lock", "[[package]]\nname = \"a\"\n[package.source]\ntype = \"directory\"\n", false),
            ("Pipfile.lock", r#"{"default": {"a": {"version": "==1"}}}"#, true),
            ("Pipfile.lock", r#"{"default": {"a": {"editable": true, "path": "."}}}"#, false),
        ] {
            let all = [(name, content), ("pyproject.toml", ""), ("Pipfile", "")];
            let chosen = of(&all, choose).expect("it is clear");
            let first = chosen.made_from.as_ref().map(|files| files[0]);
            assert_eq!(first, wanted.then_some(name), "{name}: {content}");
        }
        for (manifest, wanted) in [
            (PROJECT, true),
            ("[project]\ndependencies = ['a @ file:///app/a']\n", false),
            ("[project]\ndependencies = ['a']\n[tool.uv.sources]\na = { path = 'a' }\n", false),
            ("[project]\ndynamic = [\"dependencies\"]\n", false),
        ] {
            let chosen = of(&[("pyproject.toml", manifest)], choose).expect("it is clear");
            assert_eq!(chosen.made_from.is_some(), wanted, "{manifest}");
        }
    }
}
