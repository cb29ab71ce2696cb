//! Builds for Rust: cargo builds in the app's cache, and its programs go to `target/release` in the slug.

use std::{ffi::OsStr, fs, io, os::unix::fs::PermissionsExt, path::Path};

use super::{BuildError, Work, place, run::Runner};
use crate::layout;

/// Builds, and copies only the programs: the rest of a target folder is many times their size.
///
/// # Errors
/// [`BuildError`]; also if there is no program.
pub async fn build(work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
    let built = work.cache.join("target/release");
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
    work.voice.say(format!("$ cargo {}", args.join(" "))).await;
    runner.run(Path::new("cargo"), &args).await?;
    let release = Path::new("target/release");
    let seen = work.place.seen().join(release);
    let words = [OsStr::new("take-programs"), built.as_os_str(), seen.as_os_str()];
    runner.files("copying what cargo built", &words).await?;
    let mut taken =
        fs::read_dir(work.dir.join(release)).map_err(BuildError::disk("reading what cargo built"))?;
    if taken.next().is_none() {
        return Err(BuildError::Faulty("cargo built no program: Cargo.toml has a library alone".into()));
    }
    Ok(())
}

/// Removes the programs of an earlier build.
pub(super) fn clear(built: &Path) -> io::Result<()> {
    programs(built)?.into_iter().try_for_each(|program| layout::remove(&built.join(program)))
}

/// Copies the programs into the tree. A committed target folder is replaced.
pub(super) fn take(built: &Path, release: &Path) -> io::Result<()> {
    release.parent().map_or(Ok(()), layout::remove)?;
    fs::create_dir_all(release)?;
    for program in programs(built)? {
        fs::copy(built.join(&program), release.join(&program))?;
    }
    Ok(())
}

/// Returns the names of the programs in a folder that cargo builds into.
fn programs(release: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(release) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let is_library = name.contains(".so") || name.ends_with(".rlib") || name.ends_with(".a");
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 && !is_library {
            found.push(name);
        }
    }
    found.sort();
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
