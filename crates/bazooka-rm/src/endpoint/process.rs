//! A git process behind a request: streams the body to its input, and its output to the client.
//!
//! Owns the process until it has ended. The process has its own process group, so that its children, hooks among them,
//! end with it.

use std::{io, path::Path, process::Stdio, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// The time that a pusher may send nothing while the pack is expected.
const IDLE: Duration = Duration::from_secs(120);

/// The time that git has to end by itself after the client has left. If it is killed earlier, it leaves temporary files
/// that its children are still writing.
const LEFT_GRACE: Duration = Duration::from_secs(15);

/// The time that git has to end after SIGTERM.
const END_GRACE: Duration = Duration::from_secs(3);

/// The number of chunks that may wait for a slow client.
const WAITING_CHUNKS: usize = 8;

/// The number of bytes read at a time.
const CHUNK: usize = 32 * 1024;

/// Returns a git command in a clean environment.
pub fn git(args: &[&str], repository: &Path, protocol: Option<&str>) -> Command {
    let mut command = crate::git::git(repository);
    command.args(args).arg(repository).process_group(0);
    if let Some(protocol) = protocol {
        command.env("GIT_PROTOCOL", protocol);
    }
    command
}

/// A process that answers a request.
pub struct Answering {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    errors: ChildStderr,
    answer: mpsc::Sender<io::Result<Bytes>>,
}

impl Answering {
    /// Starts a process and returns it with the body of its answer.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(mut command: Command) -> io::Result<(Answering, Body)> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let piped = "its streams are piped";
        let (input, output, errors) = (
            child.stdin.take().expect(piped),
            child.stdout.take().expect(piped),
            child.stderr.take().expect(piped),
        );
        let (answer, chunks) = mpsc::channel(WAITING_CHUNKS);
        let body = futures::stream::unfold(chunks, |mut chunks| async move {
            chunks.recv().await.map(|chunk| (chunk, chunks))
        });
        Ok((Answering { child, input, output, errors, answer }, Body::from_stream(body)))
    }

    /// Streams the request in and the answer out until the process has ended.
    ///
    /// `left` is called when the client has left, and returns true if the process may take its time. Its input ends in
    /// any case. If `left` returns false, the process has 15 s to end before it is ended.
    pub async fn carry(self, request: Body, limit: u64, left: impl Fn() -> bool) {
        let Answering { mut child, input, output, errors, answer } = self;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let _feeding = AbortOnDropHandle::new(tokio::spawn(feed(request, input, limit)));
        let _complaints = AbortOnDropHandle::new(tokio::spawn(note(errors)));
        let asker = answer.clone();
        let mut pumping = std::pin::pin!(pump(output, answer));
        tokio::select! {
            () = &mut pumping => {}
            () = asker.closed() => {
                // The output must still be read, or the process would die of a broken pipe.
                if left() {
                    pumping.await;
                } else if timeout(LEFT_GRACE, &mut pumping).await.is_err() {
                    end(group, Signal::SIGTERM);
                    if timeout(END_GRACE, pumping).await.is_err() {
                        end(group, Signal::SIGKILL);
                    }
                }
            }
        }
        if timeout(END_GRACE, child.wait()).await.is_err() {
            end(group, Signal::SIGKILL);
            let _ = child.wait().await;
        }
    }
}

/// Signals an abandoned process and all of its group.
fn end(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The group's id can't have been reused: the process is waited for only after this.
        let _ = killpg(group, signal);
    }
}

/// Copies the request's body to the process. The process's input ends with the body, even an incomplete one.
async fn feed(request: Body, mut input: ChildStdin, limit: u64) {
    let mut request = request.into_data_stream();
    let mut bytes = 0;
    while let Ok(Some(Ok(chunk))) = timeout(IDLE, request.next()).await {
        bytes += chunk.len() as u64;
        // If the body is too large or git has stopped reading, git's own message tells the client.
        if bytes > limit || input.write_all(&chunk).await.is_err() {
            break;
        }
    }
}

/// Copies the process's output to the client. After the client has left, the output is read and dropped.
async fn pump(mut output: ChildStdout, answer: mpsc::Sender<io::Result<Bytes>>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read @ 1..) = output.read(&mut chunk).await {
        // The client may have left; read the rest all the same.
        let _ = answer.send(Ok(Bytes::copy_from_slice(&chunk[..read]))).await;
    }
}

/// Logs git's standard error.
async fn note(errors: ChildStderr) {
    use tokio::io::AsyncBufReadExt;
    let mut lines = tokio::io::BufReader::new(errors.take(1024 * 1024)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::debug!(line, "git says");
    }
}
