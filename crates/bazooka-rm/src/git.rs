//! The system's git as a command, in an environment that is the same on every machine.

use std::{io, path::Path, process::Stdio};

use tokio::process::Command;

/// The limit of one memory allocation of git's. A file that clients store as a delta is at most 512 MiB (their
/// `core.bigFileThreshold`) and is held in memory whole when unpacked. Without the limit, a pack of some kilobytes
/// could unpack to any size.
const MOST_AT_ONCE: &str = "513m";

/// A failed git process.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The process can't be started, or its streams fail.
    #[error("git can't be started: {0}")]
    NotStarted(#[source] io::Error),
    /// The process failed; with the last line of its standard error.
    #[error("{0}")]
    Failed(String),
}

/// Returns a git command in a repository, without arguments so far.
pub fn git(repository: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()))
        // The machine's and the user's own settings of git must not matter.
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ALLOC_LIMIT", MOST_AT_ONCE)
        .env("LC_ALL", "C.UTF-8")
        .current_dir(repository);
    command
}

/// Runs a command to its end. If this is dropped, the command is killed.
///
/// # Errors
/// [`GitError`].
pub async fn run(command: &mut Command) -> Result<(), GitError> {
    let ended = command.stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let ended = match ended {
        Ok(child) => child.wait_with_output().await,
        Err(error) => Err(error),
    };
    let output = ended.map_err(GitError::NotStarted)?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(GitError::Failed(complaint.lines().last().map_or_else(|| output.status.to_string(), str::to_owned)))
}
