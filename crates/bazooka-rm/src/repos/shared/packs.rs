//! Packs of stored repositories, made and indexed by the system's git.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::Stdio,
};

use sha2::{Digest as _, Sha256};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;
use visor::names::Digest;

use crate::{
    git::{self, GitError},
    repos::origin::OriginError,
    storage::hex,
};

/// A pack on this rm's disk that will be stored. The file is deleted with this value.
#[derive(Debug)]
pub struct Made {
    /// The file.
    pub file: TempPath,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
}

/// Packs the objects that the commits `wanted` reach and the commits `stored` do not. Returns `None` if there are none.
///
/// The pack is complete in itself: no object in it is a delta against one outside.
///
/// # Errors
/// [`OriginError`].
pub async fn make(
    repository: &Path,
    quarantine: Option<&Path>,
    wanted: &[String],
    stored: &[String],
    folder: &Path,
) -> Result<Option<Made>, OriginError> {
    let (out, file) = tempfile::NamedTempFile::new_in(folder).map_err(OriginError::Disk)?.into_parts();
    let mut command = git::git(repository);
    command
        .args(["pack-objects", "--revs", "--stdout", "--delta-base-offset", "-q"])
        .stdin(Stdio::piped())
        .stdout(out);
    if let Some(quarantine) = quarantine {
        // The same variables that git sets for the hook.
        command
            .env("GIT_OBJECT_DIRECTORY", quarantine)
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", repository.join("objects"));
    }
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |error| OriginError::Git(GitError::NotStarted(error));
    let mut child = command.spawn().map_err(failed)?;
    let mut words = wanted.join("\n");
    if !stored.is_empty() {
        words.push_str("\n--not\n");
        words.push_str(&stored.join("\n"));
    }
    words.push('\n');
    let mut input = child.stdin.take().expect("it is piped");
    // If git ends early, its own message tells why.
    let _ = input.write_all(words.as_bytes()).await;
    drop(input);
    let ended = child.wait_with_output().await.map_err(failed)?;
    if !ended.status.success() {
        let complaint = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        return Err(OriginError::Git(GitError::Failed(complaint)));
    }
    let read = move || -> io::Result<Option<Made>> {
        let mut bytes = File::open(&file)?;
        // The header: "PACK", the version, and the number of objects.
        let mut head = [0; 12];
        bytes.read_exact(&mut head)?;
        if head[8..] == [0; 4] {
            return Ok(None);
        }
        let mut hash = Sha256::new();
        hash.update(head);
        io::copy(&mut bytes, &mut hash)?;
        let sha256 = hex(hash.finalize()).parse().expect("a SHA-256 in hexadecimal is a digest");
        Ok(Some(Made { file, sha256 }))
    };
    let made = tokio::task::spawn_blocking(read).await.map_err(io::Error::other);
    made.and_then(|made| made).map_err(OriginError::Disk)
}

/// Adds a pack to a repository, completely or not at all.
///
/// # Errors
/// [`OriginError`].
pub async fn take_in(repository: &Path, pack: &Path) -> Result<(), OriginError> {
    let pack = File::open(pack).map_err(OriginError::Disk)?;
    let mut command = git::git(repository);
    command.args(["index-pack", "--stdin"]).stdin(pack).stdout(Stdio::null());
    git::run(&mut command).await.map_err(OriginError::Git)
}

/// Checks that a repository has every object that the commits reach, given that it has all that its refs reach.
///
/// # Errors
/// Git's message about the missing objects.
pub async fn connected(repository: &Path, commits: &[String]) -> Result<(), OriginError> {
    let mut command = git::git(repository);
    command.args(["rev-list", "--objects", "--quiet"]).args(commits).args(["--not", "--all"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    git::run(&mut command).await.map_err(OriginError::NotWhole)
}
