//! Builds for Python: a virtual environment in the slug, made relocatable.
//!
//! Owns `.venv`. A slug is unpacked at another path than it was built at, and may hold no link that leads out of it. So
//! the interpreter is copied, scripts find it through PATH (an instance's begins with `.venv/bin`), and compiled files
//! are used without a comparison with their source's time, which a slug doesn't keep. The packages installed for one
//! list of requirements are kept for the next push with the same list.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{
    BuildError, Work,
    buildpack::{Buildpack, Tool, Tree},
    place,
    run::Runner,
};
use crate::layout;

/// The system's interpreter: hosts have the libraries that it needs.
const PYTHON: &str = "/usr/bin/python3";

/// The environment's path in the slug.
const VENV: &str = ".venv";

/// The name of the file that marks an environment of bazooka's as complete.
const WHOLE: &str = ".bazooka-whole";

/// The largest accepted list of requirements, in bytes.
const MOST_REQUIREMENTS: u64 = 4 << 20;

/// Held by the build that makes the environment with pip, while others wait.
static MAKING_PIP: Mutex<()> = Mutex::const_new(());

/// An app with a requirements.txt or a pyproject.toml.
#[derive(Clone, Copy, Debug)]
pub struct Python;

#[async_trait]
impl Buildpack for Python {
    fn name(&self) -> &'static str {
        "python"
    }

    /// Reports whether there is a requirements.txt, or a pyproject.toml and no other language's file: many of those hold
    /// no more than a linter's settings.
    fn detects(&self, tree: Tree<'_>) -> bool {
        let alone = !tree.has("package.json") && !tree.has("Cargo.toml");
        tree.has("requirements.txt") || (tree.has("pyproject.toml") && alone)
    }

    fn tool(&self, _: Tree<'_>) -> Option<Tool> {
        Some(Tool { program: PYTHON, package: "python3-venv" })
    }

    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
        build(work, runner).await
    }
}

/// Installs and compiles.
///
/// # Errors
/// [`BuildError`].
async fn build(work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
    let venv = work.dir.join(VENV);
    // A committed environment was made for another machine.
    layout::remove(&venv).map_err(BuildError::disk("removing a committed .venv"))?;
    let python = interpreter().map_err(BuildError::disk(format!("reading {PYTHON}")))?;
    let requirements = work.files.contains_key(Path::new("requirements.txt"));
    let kept = if requirements { kept_for(work, &python)? } else { None };
    match kept {
        Some(kept) if kept.join(WHOLE).exists() => {
            work.voice
                .say("requirements.txt is as it was: its packages are kept from an earlier build")
                .await;
            take(runner, "copying the packages", "copy", &[&kept, &seen(work)]).await?;
        }
        kept => {
            install(work, runner, &python, requirements).await?;
            let what = "making .venv fit to be moved";
            take(runner, what, "move-venv", &[&seen(work), work.place.seen()]).await?;
            compile(work, runner, &seen(work), &[]).await?;
            if let Some(kept) = kept {
                take(runner, "keeping the packages", "keep-venv", &[&seen(work), &kept]).await?;
            }
        }
    }
    compile(work, runner, work.place.seen(), &["-x", r"/\.venv/"]).await
}

/// Returns the environment's path as the build's steps see it.
fn seen(work: &Work<'_>) -> PathBuf {
    work.place.seen().join(VENV)
}

async fn take(runner: &Runner<'_>, what: &str, word: &str, paths: &[&Path]) -> Result<(), BuildError> {
    let paths = paths.iter().map(|path| path.as_os_str());
    runner.files(what, &std::iter::once(OsStr::new(word)).chain(paths).collect::<Vec<_>>()).await
}

/// Makes the environment and has pip fill it. Pip itself stays out of it: it would be the larger part of most slugs.
async fn install(
    work: &Work<'_>,
    runner: &Runner<'_>,
    python: &str,
    requirements: bool,
) -> Result<(), BuildError> {
    let pip = pip(work, runner, python).await?;
    step(work, runner, &[PYTHON, "-m", "venv", "--copies", "--without-pip", VENV]).await?;
    let what: &[&str] = if requirements { &["-r", "requirements.txt"] } else { &["."] };
    work.voice.say(format!("$ pip install {}", what.join(" "))).await;
    let target = format!("{VENV}/bin/python3");
    let words = ["-m", "pip", "--python", &target, "install", "--no-compile", "--progress-bar", "off"];
    let words: Vec<&str> =
        words.into_iter().chain(["--root-user-action", "ignore"]).chain(what.iter().copied()).collect();
    runner.run(&pip, &words).await
}

/// Returns the interpreter of an environment with pip that all apps share. Makes the environment if it is missing.
async fn pip(work: &Work<'_>, runner: &Runner<'_>, python: &str) -> Result<PathBuf, BuildError> {
    // `.pip` can't collide with an app: no app's name begins with a dot.
    let tools = work.cache.with_file_name(".pip").join(python);
    let making = || BuildError::disk("making pip's environment");
    let _making = MAKING_PIP.lock().await;
    if !tools.join(WHOLE).exists() {
        layout::remove(&tools).and_then(|()| fs::create_dir_all(&tools)).map_err(making())?;
        // The builds' users of all apps must read it, whatever the umask is.
        fs::set_permissions(&tools, fs::Permissions::from_mode(0o755)).map_err(making())?;
        if let Some(uid) = work.place.uid() {
            place::give_all(&tools, uid).map_err(making())?;
        }
        let place = tools.display().to_string();
        // All apps will use it. So nothing of this app is visible while it is made, and -I keeps Python from reading
        // HOME.
        let words = ["-I", "-m", "venv", &place];
        work.voice.say(format!("$ {PYTHON} {}", words.join(" "))).await;
        runner.run_in(&work.place.without_the_app(&tools), Path::new(PYTHON), &words).await?;
        if work.place.uid().is_some() {
            place::give_all(&tools, 0).map_err(making())?;
        }
        fs::write(tools.join(WHOLE), "").map_err(making())?;
    }
    Ok(tools.join("bin/python3"))
}

/// Returns a name for this version of the interpreter. Another one would not run compiled files of this one.
fn interpreter() -> io::Result<String> {
    let path = fs::canonicalize(PYTHON)?;
    let metadata = fs::metadata(&path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(format!("{name}-{}-{}", metadata.len(), metadata.mtime()))
}

/// Returns the folder where the environment for these requirements is kept, or `None` if the list alone doesn't
/// determine it.
fn kept_for(work: &Work<'_>, python: &str) -> Result<Option<PathBuf>, BuildError> {
    // An earlier step may have replaced the file, so no link is followed and the size is limited.
    let list = layout::read_plain(&work.dir.join("requirements.txt"), MOST_REQUIREMENTS)
        .map_err(BuildError::disk("reading requirements.txt"))?;
    if !says_all(&list) {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    hash.update(python.as_bytes());
    hash.update([0]);
    hash.update(&list);
    let name: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(work.cache.join("venv").join(name)))
}

/// True if a list of requirements names only packages of a registry: no other file, and nothing of the app's tree.
fn says_all(list: &[u8]) -> bool {
    let Ok(list) = std::str::from_utf8(list) else { return false };
    list.lines().map(str::trim).all(|line| {
        line.is_empty()
            || line.starts_with('#')
            || (line.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !line.contains('/')
                && !line.ends_with('\\'))
    })
}

/// Keeps an environment, and removes all others of the app.
pub(super) fn keep(venv: &Path, kept: &Path) -> io::Result<()> {
    let others = kept.parent().ok_or(io::ErrorKind::InvalidInput)?;
    layout::remove(others)?;
    fs::create_dir_all(others)?;
    copy_tree(venv, kept)?;
    fs::write(kept.join(WHOLE), "")
}

/// Copies a folder, except the mark of a complete environment.
pub(super) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() == WHOLE {
            continue;
        }
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Compiles the files in a folder, with one worker per core. A file that can't be compiled matters only once it is
/// imported, so it fails no build.
async fn compile(
    work: &Work<'_>,
    runner: &Runner<'_>,
    folder: &Path,
    more: &[&str],
) -> Result<(), BuildError> {
    let (here, folder) = (work.place.seen().display().to_string(), folder.display().to_string());
    let words = ["-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"];
    let words: Vec<&str> =
        words.into_iter().chain(["-s", &here]).chain(more.iter().copied()).chain([folder.as_str()]).collect();
    match runner.run(Path::new(PYTHON), &words).await {
        Ok(()) | Err(BuildError::Failed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn step(work: &Work<'_>, runner: &Runner<'_>, words: &[&str]) -> Result<(), BuildError> {
    work.voice.say(format!("$ {}", words.join(" "))).await;
    runner.run(Path::new(words[0]), &words[1..]).await
}

/// Removes the path where an environment was built from its files.
pub(super) fn relocate(venv: &Path, tree: &Path) -> io::Result<()> {
    let bin = venv.join("bin");
    for entry in fs::read_dir(&bin)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Activation scripts hold the path, and only an interactive shell uses them; an instance has none.
        if name.to_ascii_lowercase().starts_with("activate") {
            fs::remove_file(&path)?;
            continue;
        }
        if !fs::symlink_metadata(&path)?.is_file() {
            continue;
        }
        // venv copies the interpreter under each of its names; one copy and links are enough.
        if name != "python3" && name.starts_with("python") && same(&path, &bin.join("python3"))? {
            fs::remove_file(&path)?;
            std::os::unix::fs::symlink("python3", &path)?;
            continue;
        }
        let content = fs::read(&path)?;
        if let Some(moved) = movable(&content, &bin) {
            let mode = fs::metadata(&path)?.permissions().mode();
            fs::write(&path, moved)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
    }
    let config = venv.join("pyvenv.cfg");
    let kept: String = fs::read_to_string(&config)?
        .lines()
        .filter(|line| !line.starts_with("command"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(config, kept)?;
    for library in fs::read_dir(venv.join("lib"))? {
        let packages = library?.path().join("site-packages");
        for entry in fs::read_dir(&packages).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "pth") {
                let text = fs::read_to_string(&path)?;
                if let Some(moved) = relative_paths(&text, tree) {
                    fs::write(&path, moved)?;
                }
            }
        }
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(fs::metadata(one)?.len() == fs::metadata(other)?.len() && fs::read(one)? == fs::read(other)?)
}

/// Returns a script with its first line changed to look for the interpreter in PATH, if that line names the
/// environment's own.
fn movable(script: &[u8], bin: &Path) -> Option<Vec<u8>> {
    let bin = bin.to_str()?;
    let text = script.strip_prefix(b"#!")?;
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let (first, rest) = text.split_at(end);
    let interpreter = std::str::from_utf8(first).ok()?.trim();
    if interpreter.starts_with(&format!("{bin}/python")) {
        return Some([b"#!/usr/bin/env python3", rest].concat());
    }
    // If the path is too long for a first line, pip writes a shell's line, which Python takes for a string.
    if interpreter == "/bin/sh" {
        let body = std::str::from_utf8(rest).ok()?;
        let script = body
            .strip_prefix(&format!("\n'''exec' {bin}/python"))
            .or_else(|| body.strip_prefix(&format!("\n'''exec' \"{bin}/python")))?;
        let (_, script) = script.split_once("\n' '''")?;
        return Some(format!("#!/usr/bin/env python3{script}").into_bytes());
    }
    None
}

/// Returns a `.pth` file with its lines into the app's tree made relative to its own folder, if it has any.
fn relative_paths(text: &str, tree: &Path) -> Option<String> {
    let tree = tree.to_str()?;
    if !text.contains(tree) {
        return None;
    }
    // Relative to .venv/lib/pythonX.Y/site-packages.
    let line = |line: &str| match line.strip_prefix(tree) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("../../../..{rest}\n"),
        _ => format!("{line}\n"),
    };
    Some(text.lines().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_find_their_interpreter_through_path() {
        let bin = Path::new("/b/app/.venv/bin");
        for (script, wanted) in [
            ("#!/b/app/.venv/bin/python3\nimport x\n", Some("#!/usr/bin/env python3\nimport x\n")),
            ("#!/b/app/.venv/bin/python\n# -*- y\n", Some("#!/usr/bin/env python3\n# -*- y\n")),
            (
                "#!/bin/sh\n'''exec' /b/app/.venv/bin/python3 \"$0\" \"$@\"\n' '''\nimport x\n",
                Some("#!/usr/bin/env python3\nimport x\n"),
            ),
            (
                "#!/bin/sh\n'''exec' \"/b/app/.venv/bin/python3\" \"$0\" \"$@\"\n' '''\nimport x\n",
                Some("#!/usr/bin/env python3\nimport x\n"),
            ),
            ("#!/bin/sh\necho\n", None),
            ("#!/usr/bin/perl\n", None),
            ("\u{7f}ELF", None),
        ] {
            let got = movable(script.as_bytes(), bin);
            assert_eq!(got.as_deref(), wanted.map(str::as_bytes), "{script:?}");
        }
    }

    #[test]
    fn packages_are_kept_only_for_a_list_that_says_it_all() {
        for (list, wanted) in [
            ("gunicorn==23.0.0\nflask>=2 ; python_version > '3'\n\n# x\n", true),
            ("uvicorn[standard]\n", true),
            ("-r other.txt\n", false),
            ("-e .\n", false),
            ("--find-links x\n", false),
            (".\n", false),
            ("./lib\n", false),
            ("lib @ file:///x\n", false),
            ("a==1 \\\n  --hash=sha256:00\n", false),
        ] {
            assert_eq!(says_all(list.as_bytes()), wanted, "{list:?}");
        }
    }

    #[test]
    fn an_editable_install_is_found_from_the_environment() {
        let tree = Path::new("/b/app");
        assert_eq!(
            relative_paths("/b/app/src\n/b/app\n/b/apple\nimport z\n", tree).as_deref(),
            Some("../../../../src\n../../../..\n/b/apple\nimport z\n")
        );
        assert_eq!(relative_paths("import z\n", tree), None);
    }
}
