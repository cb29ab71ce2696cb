//! Runs a build's steps, and streams what they print to the pusher.
//!
//! Owns the steps' processes: none is left when a run returns, is dropped, or bazooka-rm itself goes.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::fd::OwnedFd,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    net::unix::pipe,
    process::Command,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{BuildError, supervisor};
use crate::voice::Voice;

/// The longest line that is kept together; longer ones come in pieces.
const MAX_LINE: usize = 4096;

/// Runs steps in a folder.
pub struct Runner<'a> {
    /// bazooka-rm's own program, which supervises.
    pub own_program: &'a Path,
    /// Where they run.
    pub dir: &'a Path,
    /// All their variables.
    pub environment: &'a BTreeMap<String, String>,
    /// Hears their output.
    pub voice: &'a Voice,
    /// The push has gone.
    pub cancelled: &'a CancellationToken,
    /// When they are ended.
    pub deadline: Instant,
    /// How long they had in all, for the words.
    pub limit: Duration,
}

impl Runner<'_> {
    /// Runs a step and waits until nothing of it is left.
    ///
    /// # Errors
    /// [`BuildError::Failed`], [`BuildError::TimedOut`], [`BuildError::Cancelled`],
    /// [`BuildError::NoProgram`].
    ///
    /// # Cancel safety
    /// Dropped, the step is ended in the background.
    pub async fn run<S: AsRef<OsStr>>(&self, program: &Path, args: &[S]) -> Result<(), BuildError> {
        let words = std::iter::once(program.as_os_str()).chain(args.iter().map(AsRef::as_ref));
        let step = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let cant_start = |source| BuildError::NoProgram { program: program.display().to_string(), source };
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| cant_start(error.into()))?;
        let both = write.try_clone().map_err(cant_start)?;
        let mut command = Command::new(self.own_program);
        command
            .arg0(supervisor::NAME)
            .arg(program)
            .args(args)
            .current_dir(self.dir)
            .env_clear()
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(write)
            .stderr(both);
        let mut supervisor = command.spawn().map_err(cant_start)?;
        // Its own copies of the pipe's end go with it, so that the output ends with the step.
        drop(command);
        let life = supervisor.stdin.take();
        let output = receiver(read).map_err(cant_start)?;
        let streamed = async {
            stream(output, self.voice).await;
            supervisor.wait().await
        };
        let ended = tokio::select! {
            ended = timeout_at(self.deadline, streamed) => ended.map_err(|_| BuildError::TimedOut(self.limit)),
            () = self.cancelled.cancelled() => Err(BuildError::Cancelled),
        };
        drop(life);
        match ended {
            Ok(status) => verdict(step, status.map_err(cant_start)?),
            Err(error) => {
                // It kills the step now; there is nothing more to hear.
                let _ = supervisor.wait().await;
                Err(error)
            }
        }
    }
}

fn receiver(read: OwnedFd) -> std::io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(read)
}

fn verdict(step: String, status: ExitStatus) -> Result<(), BuildError> {
    if status.success() {
        return Ok(());
    }
    Err(BuildError::Failed { step, how: supervisor::describe(status) })
}

/// Says each line as it comes, until the output ends. A carriage return ends a line too: progress bars
/// become lines.
async fn stream(output: impl AsyncRead + Unpin, voice: &Voice) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(buffer) = output.fill_buf().await {
        if buffer.is_empty() {
            break;
        }
        let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let taken = end.unwrap_or(buffer.len());
        line.extend_from_slice(&buffer[..taken]);
        output.consume(taken + usize::from(end.is_some()));
        if (end.is_some() && !line.is_empty()) || line.len() > MAX_LINE {
            voice.say(String::from_utf8_lossy(&line)).await;
            line.clear();
        }
    }
    if !line.is_empty() {
        voice.say(String::from_utf8_lossy(&line)).await;
    }
}
