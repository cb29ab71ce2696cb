//! Builds for Rust: cargo builds in the app's cache, and its programs go to `target/release` in the slug.

use std::{ffi::OsStr, fs, io, path::Path};

use async_trait::async_trait;
use serde::Deserialize;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Kit, Tool, Tree, programs, web_of},
    place,
    run::Runner,
    toolchains::{self, Chosen},
    versions::Language,
};
use crate::layout;

/// Where the programs are in a tree.
const RELEASE: &str = "target/release";

/// An app with a Cargo.toml.
#[derive(Clone, Copy, Debug)]
pub struct Rust;

/// The fields of Cargo.toml that tell a program from a library.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manifest {
    bin: Vec<toml::Value>,
    workspace: Option<toml::Value>,
}

#[async_trait]
impl Buildpack for Rust {
    fn name(&self) -> &'static str {
        "rust"
    }

    /// Reports whether there is a Cargo.toml. Beside a package.json or a requirements.txt it counts only if it has a
    /// program: a library there is a native module, which that language's own tools build.
    fn detects(&self, tree: Tree<'_>) -> bool {
        let alone = !tree.has("package.json") && !tree.has("requirements.txt");
        tree.has("Cargo.toml") && (alone || has_program(tree))
    }

    fn tool(&self, _: Tree<'_>) -> Option<Tool> {
        Some(Tool { program: "cargo", package: "cargo" })
    }

    async fn prepare(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &mut Kit) -> Result<(), BuildError> {
        if let Chosen::Folder { path, .. } = toolchains::choose(work, runner, Language::Rust).await? {
            kit.path.push(path.join("bin"));
        }
        Ok(())
    }

    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        build(work, runner).await
    }

    fn may_release(&self) -> bool {
        true
    }

    /// Returns the program as `web`, if cargo built one alone.
    fn release(&self, tree: Tree<'_>) -> Result<Procs, BuildError> {
        Ok(web_of(RELEASE, &tree.programs(RELEASE)?))
    }
}

fn has_program(tree: Tree<'_>) -> bool {
    let is_program = |path: &Path| path == Path::new("src/main.rs") || path.starts_with("src/bin");
    // A faulty file is cargo's to complain about.
    let text = tree.read("Cargo.toml").ok().and_then(|text| String::from_utf8(text).ok());
    let manifest = text.and_then(|text| toml::from_str::<Manifest>(&text).ok());
    let manifest = manifest.unwrap_or_default();
    tree.files.keys().any(|path| is_program(path)) || !manifest.bin.is_empty() || manifest.workspace.is_some()
}

/// Builds, and copies only the programs: the rest of a target folder is many times their size.
///
/// # Errors
/// [`BuildError`]; also if there is no program.
async fn build(work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
    let built = work.cache.join(RELEASE);
    if built.exists() {
        // A program of an earlier commit that this commit doesn't build must not get into its slug.
        runner.files("clearing cargo's cache", &[OsStr::new("clear-programs"), built.as_os_str()]).await?;
    }
    settings(work).map_err(BuildError::disk("copying cargo's settings"))?;
    let locked = work.files.contains_key(Path::new("Cargo.lock"));
    let mut args = vec!["build", "--release"];
    if locked {
        args.push("--locked");
    } else {
        work.voice.say("there is no Cargo.lock: each build takes the newest versions").await;
    }
    runner.step("cargo", &args).await?;
    let release = Path::new(RELEASE);
    let seen = work.place.seen().join(release);
    let words = [OsStr::new("take-programs"), built.as_os_str(), seen.as_os_str()];
    runner.files("copying what cargo built", &words).await?;
    if work.tree().programs(RELEASE)?.is_empty() {
        return Err(BuildError::Faulty("cargo built no program: Cargo.toml has a library alone".into()));
    }
    Ok(())
}

/// Removes the programs of an earlier build.
pub(super) fn clear(built: &Path) -> io::Result<()> {
    built_programs(built)?.into_iter().try_for_each(|program| layout::remove(&built.join(program)))
}

/// Copies the programs into the tree. A committed target folder is replaced.
pub(super) fn take(built: &Path, release: &Path) -> io::Result<()> {
    release.parent().map_or(Ok(()), layout::remove)?;
    fs::create_dir_all(release)?;
    for program in built_programs(built)? {
        fs::copy(built.join(&program), release.join(&program))?;
    }
    Ok(())
}

/// Returns the names of the programs in a folder that cargo builds into.
fn built_programs(release: &Path) -> io::Result<Vec<String>> {
    let is_library = |name: &str| name.contains(".so") || name.ends_with(".rlib") || name.ends_with(".a");
    let mut found = programs(release)?;
    found.retain(|name| !is_library(name));
    Ok(found)
}

/// Copies cargo's settings of bazooka-rm's user (its registries) to where the build's cargo looks for them.
fn settings(work: &Work<'_>) -> io::Result<()> {
    let home = work.cache.join("cargo");
    place::folder(&home, work.place.uid())?;
    let own = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    for name in ["config.toml", "config"] {
        let copy = home.join(name);
        match own.as_ref().map(|own| own.join(name)).filter(|file| file.is_file()) {
            Some(file) => place::hand_over(&file, &copy, work.place.uid())?,
            None => layout::remove(&copy)?,
        }
    }
    Ok(())
}
