//! Builds for Python: a virtual environment in the slug, made relocatable.
//!
//! Owns `.venv`. A slug is unpacked at another path than it was built at, and may hold no link that leads out of it. So
//! the interpreter is copied, scripts find it through PATH (an instance's begins with `.venv/bin`), and compiled files
//! are used without a comparison with their source's time, which a slug doesn't keep. The packages installed for one
//! lock file or list of requirements are kept for the next push with the same file.

mod django;
mod refusal;
mod source;
pub(super) mod venv;

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use self::{
    refusal::Refusal,
    source::{Choice, Source},
};
use super::{
    BuildError, Work,
    buildpack::{Buildpack, Kit, Tool, Tree},
    kept::Kept,
    place::Place,
    run::Runner,
    toolchains::{self, Chosen},
    tools,
    versions::{self, Language},
};

/// The system's interpreter: hosts have the libraries that it needs.
pub(super) const PYTHON: &str = "/usr/bin/python3";

/// The tool that makes environments.
const TOOL: Tool = Tool { program: PYTHON, package: "python3-venv" };

/// The name, in a build's kit, of the toolchain that isn't the machine's.
const TOOLCHAIN: &str = "python's toolchain";

/// That toolchain's path in the slug.
const CARRIED: &str = ".bazooka/python";

/// The environment's path in the slug.
const VENV: &str = ".venv";

/// An app with one of the files in which Python's tools name dependencies.
#[derive(Clone, Copy, Debug)]
pub struct Python;

#[async_trait]
impl Buildpack for Python {
    fn name(&self) -> &'static str {
        "python"
    }

    /// Reports whether there is a file that names dependencies for Python. A pyproject.toml beside another language's
    /// file counts only if it names some: many of those hold no more than a linter's settings.
    fn detects(&self, tree: Tree<'_>) -> bool {
        source::is_python(tree)
    }

    fn tool(&self, _: Tree<'_>) -> Option<Tool> {
        Some(TOOL)
    }

    async fn prepare(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &mut Kit) -> Result<(), BuildError> {
        let chosen = source::choose(work.tree())?;
        if let Chosen::Folder { path, .. } = toolchains::choose(work, runner, Language::Python).await? {
            kit.programs.insert(TOOLCHAIN, path);
        }
        let python = identity(Path::new(PYTHON))?;
        for manager in Manager::of(&chosen) {
            let name = format!("{python}{}", manager.ending());
            let made = tools::make(work, runner, &name, TOOL, |folder| manager.commands(folder)).await?;
            kit.programs.insert(manager.program(), made.join("bin").join(manager.program()));
        }
        Ok(())
    }

    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &Kit) -> Result<(), BuildError> {
        // A committed environment was made for another machine.
        runner.files("removing a committed .venv", &[OsStr::new("remove"), seen(work).as_os_str()]).await?;
        let (place, chosen) = (settings(work.place), source::choose(work.tree())?);
        let python = match kit.programs.get(TOOLCHAIN) {
            Some(_) => work.place.seen().join(CARRIED).join("bin/python3"),
            None => PathBuf::from(PYTHON),
        };
        Build { work, runner: &runner.at(&place), kit, python, chosen }.run().await
    }
}

/// A package manager that fills `.venv` from outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    Pip,
    Uv,
    Poetry,
    Pipenv,
}

impl Manager {
    /// Returns those that a build takes.
    fn of(chosen: &Choice) -> Vec<Manager> {
        let mut all = match chosen.source {
            Source::Requirements => vec![Manager::Pip],
            Source::Uv { .. } => vec![Manager::Uv],
            Source::Poetry { .. } => vec![Manager::Poetry],
            Source::Pipenv { .. } => vec![Manager::Pipenv],
            Source::Nothing => Vec::new(),
        };
        if chosen.package.is_some() && !all.contains(&Manager::Uv) {
            all.push(Manager::Uv);
        }
        all
    }

    fn program(self) -> &'static str {
        match self {
            Manager::Pip => "python3",
            Manager::Uv => "uv",
            Manager::Poetry => "poetry",
            Manager::Pipenv => "pipenv",
        }
    }

    /// Returns the end of the name of the tool's folder, after the interpreter's.
    fn ending(self) -> String {
        if self == Manager::Pip { String::new() } else { format!("-{}", self.program()) }
    }

    /// Returns the commands that make the tool in a folder. All apps will use it, so -I keeps Python from reading HOME.
    fn commands(self, folder: &str) -> Vec<Vec<String>> {
        let mut all = vec![tools::words(&[PYTHON, "-I", "-m", "venv", folder])];
        if self != Manager::Pip {
            let python = format!("{folder}/bin/python3");
            let words = [&python, "-I", "-m", "pip", "install", "--quiet", "--no-cache-dir", self.program()];
            all.push(tools::words(&words));
        }
        all
    }
}

/// Returns the environment's path as the build's steps see it.
fn seen(work: &Work<'_>) -> PathBuf {
    work.place.seen().join(VENV)
}

/// Returns a place whose variables name the environment, and give uv the settings that the operator made for pip.
fn settings(place: &Place) -> Place {
    let venv = place.seen().join(VENV).display().to_string();
    let pairs = [("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("UV_FIND_LINKS", "PIP_FIND_LINKS")];
    let mut place = place.clone().with("VIRTUAL_ENV", venv);
    for (uv, pip) in pairs {
        if let (None, Some(value)) = (place.variable(uv), place.variable(pip).map(str::to_owned)) {
            place = place.with(uv, value);
        }
    }
    place
}

/// The build of one tree.
struct Build<'a> {
    work: &'a Work<'a>,
    runner: &'a Runner<'a>,
    kit: &'a Kit,
    /// The interpreter, as the build's steps see it.
    python: PathBuf,
    chosen: Choice,
}

impl Build<'_> {
    /// Installs and compiles.
    async fn run(&self) -> Result<(), BuildError> {
        let (work, venv) = (self.work, seen(self.work));
        for note in &self.chosen.notes {
            work.voice.say(note).await;
        }
        if let Some(toolchain) = self.kit.programs.get(TOOLCHAIN) {
            self.carry(toolchain).await?;
        }
        let kept = self.kept()?;
        match kept {
            Some((kept, names)) if kept.is_there() => {
                let words = format!("{names} as before: the packages are kept from an earlier build");
                work.voice.say(words).await;
                kept.take(self.runner, &venv).await?;
            }
            kept => {
                self.make_environment().await?;
                self.install().await?;
                self.make_movable().await?;
                self.bytecode(&venv, &[]).await?;
                if let Some((kept, _)) = kept {
                    kept.keep(self.runner, &venv).await?;
                }
            }
        }
        if let Some(backend) = &self.chosen.package {
            self.install_itself(backend).await?;
        }
        self.bytecode(work.place.seen(), &["-x", r"/\.(venv|bazooka)/"]).await?;
        if work.tree().has(django::MANAGE) { django::collect(work, self.runner).await } else { Ok(()) }
    }

    /// Puts a toolchain into the tree, with its library compiled: a slug keeps no times, by which Python would find its
    /// own compiled files. What was compiled is kept for the next push.
    async fn carry(&self, toolchain: &Path) -> Result<(), BuildError> {
        let to = self.work.place.seen().join(CARRIED);
        let kept = Kept::of(self.work, "python", &[identity(&toolchain.join("bin/python3"))?.as_bytes()]);
        self.runner.files("removing a committed toolchain", &[OsStr::new("remove"), to.as_os_str()]).await?;
        if kept.is_there() {
            return kept.take(self.runner, &to).await;
        }
        let words = [OsStr::new("copy"), toolchain.as_os_str(), to.as_os_str()];
        self.runner.files("copying Python into the slug", &words).await?;
        self.bytecode(&to.join("lib"), &[]).await?;
        kept.keep(self.runner, &to).await
    }

    /// Makes an environment without pip. It has a copy of the machine's interpreter, or a link to one in the slug.
    async fn make_environment(&self) -> Result<(), BuildError> {
        let copies: &[&str] = if self.python == Path::new(PYTHON) { &["--copies"] } else { &[] };
        let words: Vec<&str> =
            ["-m", "venv"].into_iter().chain(copies.iter().copied()).chain(["--without-pip", VENV]).collect();
        let python = self.python.display().to_string();
        self.step(&python, &words).await
    }

    /// Returns the packages that the app's files determine, with the names of those files; `None` if more than those
    /// files does, or there are no packages.
    fn kept(&self) -> Result<Option<(Kept, String)>, BuildError> {
        let Some(files) = self.chosen.made_from.as_ref().filter(|files| !files.is_empty()) else {
            return Ok(None);
        };
        let contents = files.iter().map(|file| self.work.tree().read(file));
        let contents: Vec<Vec<u8>> = contents.collect::<Result<_, _>>()?;
        let python = match self.kit.programs.get(TOOLCHAIN) {
            Some(toolchain) => identity(&toolchain.join("bin/python3"))?,
            None => identity(Path::new(PYTHON))?,
        };
        let parts = std::iter::once(python.as_bytes()).chain(contents.iter().map(Vec::as_slice));
        let kept = Kept::of(self.work, "venv", &parts.collect::<Vec<_>>());
        let is = if files.len() == 1 { "is" } else { "are" };
        Ok(Some((kept, format!("{} {is}", files.join(" and ")))))
    }

    /// Fills the environment. Pip itself stays out of it: it would be the larger part of most slugs.
    async fn install(&self) -> Result<(), BuildError> {
        let python = format!("{VENV}/bin/python3");
        match self.chosen.source {
            Source::Requirements => {
                let what = ["-r", source::REQUIREMENTS];
                let pip =
                    ["-m", "pip", "--python", &python, "install", "--no-compile", "--progress-bar", "off"];
                let words: Vec<&str> =
                    pip.into_iter().chain(["--root-user-action", "ignore"]).chain(what).collect();
                self.work.voice.say(format!("$ pip install {}", what.join(" "))).await;
                self.pip(&words).await
            }
            Source::Uv { locked: true } => {
                // The index is part of uv.lock, and one of the operator's would make it seem out of date.
                let words = ["sync", "--locked", "--no-dev", "--no-install-project", "--no-editable"];
                self.tool("uv", &words).await
            }
            Source::Uv { locked: false } => {
                self.tool("uv", &["pip", "install", "--python", &python, "-r", source::PYPROJECT]).await
            }
            Source::Poetry { locked } => {
                if !locked {
                    self.tool("poetry", &["lock", "--no-interaction", "--no-ansi"]).await?;
                }
                let words = ["sync", "--only", "main", "--no-root", "--no-interaction", "--no-ansi"];
                self.tool("poetry", &words).await
            }
            Source::Pipenv { locked: true } => {
                self.tool("pipenv", &["verify"]).await?;
                self.tool("pipenv", &["sync"]).await
            }
            Source::Pipenv { locked: false } => self.tool("pipenv", &["install", "--skip-lock"]).await,
            Source::Nothing => Ok(()),
        }
    }

    /// Runs pip. If no version of a package fits this Python, pip's list of hundreds becomes a line that says which Python
    /// is needed.
    async fn pip(&self, words: &[&str]) -> Result<(), BuildError> {
        let mut said = Refusal::default();
        let ended =
            self.runner.run_changed(self.kit.program("python3")?, words, |line| said.hear(line)).await;
        match ended {
            Err(BuildError::Failed { .. }) if said.is_about_python() => {
                let version = match self.kit.programs.get(TOOLCHAIN) {
                    Some(toolchain) => toolchain.file_name().map(|name| name.to_string_lossy().into_owned()),
                    None => toolchains::own_python(self.work, self.runner).await?,
                };
                let files = versions::wanted(self.work.tree(), Language::Python)?;
                let asked = files.first().map(|wanted| wanted.place.as_str());
                Err(BuildError::Faulty(said.words(version.as_deref().unwrap_or("another"), asked)))
            }
            ended => ended,
        }
    }

    /// Installs the app itself as a package that lies where it is. Many apps have a build system only because a tool
    /// wrote it down, and are started from their folder; so one that can't be built is told, and goes on.
    async fn install_itself(&self, backend: &str) -> Result<(), BuildError> {
        let python = format!("{VENV}/bin/python3");
        let mut words = vec!["pip", "install", "--python", &python, "--no-deps"];
        if backend.starts_with("setuptools") {
            // Otherwise setuptools writes the tree's path into a module instead of a list of paths.
            words.extend(["--config-setting", "editable_mode=compat"]);
        }
        words.extend(["-e", "."]);
        match self.tool("uv", &words).await {
            Ok(()) => self.make_movable().await,
            Err(BuildError::Failed { .. }) => {
                let words = "the app can't be installed as a package, so it isn't; its dependencies are there, and its \
                             modules are found from its folder";
                self.work.voice.say(words).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn make_movable(&self) -> Result<(), BuildError> {
        let venv = seen(self.work);
        let words = [OsStr::new("move-venv"), venv.as_os_str(), self.work.place.seen().as_os_str()];
        self.runner.files("making .venv fit to be moved", &words).await
    }

    /// Compiles the files in a folder, with one worker per core. A file that can't be compiled matters only once it is
    /// imported, so it fails no build.
    async fn bytecode(&self, folder: &Path, more: &[&str]) -> Result<(), BuildError> {
        let here = self.work.place.seen().display().to_string();
        let folder = folder.display().to_string();
        let words = ["-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"];
        let words = words.into_iter().chain(["-s", &here]).chain(more.iter().copied());
        let words: Vec<&str> = words.chain([folder.as_str()]).collect();
        match self.runner.run(&self.python, &words).await {
            Ok(()) | Err(BuildError::Failed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs a package manager, and tells its command to the pusher.
    async fn tool(&self, name: &str, words: &[&str]) -> Result<(), BuildError> {
        self.work.voice.say(format!("$ {name} {}", words.join(" "))).await;
        self.runner.run(self.kit.program(name)?, words).await
    }

    async fn step(&self, program: &str, words: &[&str]) -> Result<(), BuildError> {
        self.runner.step(program, words).await
    }
}

/// Returns a name for this version of an interpreter. Another one would not run compiled files of this one.
fn identity(python: &Path) -> Result<String, BuildError> {
    let read = || -> io::Result<String> {
        let path = fs::canonicalize(python)?;
        let metadata = fs::metadata(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(format!("{name}-{}-{}", metadata.len(), metadata.mtime()))
    };
    read().map_err(BuildError::disk(format!("reading {}", python.display())))
}
