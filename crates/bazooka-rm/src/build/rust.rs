//! Rust: cargo builds in the app's cache, and its programs go to `target/release` in the slug.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use super::{BuildError, Work, run::Runner};
use crate::layout;

/// Builds, and copies the programs alone: the rest of a target folder is many times their size.
///
/// # Errors
/// [`BuildError`]; also if there is no program.
pub async fn build(work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
    let built = work.cache.join("target/release");
    // Programs of an earlier commit that this one doesn't have would be taken for its own.
    for program in programs(&built).map_err(BuildError::disk("reading cargo's cache"))? {
        layout::remove(&built.join(program)).map_err(BuildError::disk("clearing cargo's cache"))?;
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
    let programs = programs(&built).map_err(BuildError::disk("reading what cargo built"))?;
    if programs.is_empty() {
        return Err(BuildError::Faulty("cargo built no program: Cargo.toml has a library alone".into()));
    }
    let target = work.dir.join("target");
    layout::remove(&target).map_err(BuildError::disk("removing a committed target folder"))?;
    let release = target.join("release");
    fs::create_dir_all(&release).map_err(BuildError::disk("making target/release"))?;
    for program in programs {
        fs::copy(built.join(&program), release.join(&program))
            .map_err(BuildError::disk(format!("copying {program}")))?;
    }
    Ok(())
}

/// The names of the programs in a folder that cargo builds into.
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

/// The user's own settings of cargo (its registries), where the build's cargo looks for them.
fn settings(work: &Work<'_>) -> io::Result<()> {
    let home = work.cache.join("cargo");
    fs::create_dir_all(&home)?;
    let own = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    for name in ["config.toml", "config"] {
        let copy = home.join(name);
        layout::remove(&copy)?;
        if let Some(file) = own.as_ref().map(|own| own.join(name)).filter(|file| file.is_file()) {
            fs::copy(file, copy)?;
        }
    }
    Ok(())
}
