//! A process of git's behind a request: the body goes in, what it prints goes out, as both come.
//!
//! Owns the process until it has ended. It has a process group of its own, so that it is ended with its
//! children (the hooks among them).

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

/// How long a pusher may be silent while its pack is expected.
const IDLE: Duration = Duration::from_secs(120);

/// How long git may take to end by itself once whoever asked has gone. Told to end, it leaves temporary
/// files where its children still write them.
const LEFT_GRACE: Duration = Duration::from_secs(15);

/// How long it may take to end once it is told to.
const END_GRACE: Duration = Duration::from_secs(3);

/// How much of an answer may wait for a slow reader.
const WAITING_CHUNKS: usize = 8;

/// How much is read at a time.
const CHUNK: usize = 32 * 1024;

/// A command of git's, in a clean environment.
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
    /// Starts a process, and returns it with the body that its answer comes out of.
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

    /// Carries the request in and the answer out until the process has ended.
    ///
    /// `left` is called when whoever asked has gone, and says whether the process may take its time all the
    /// same. Its input ends in any case; otherwise it is to end soon, or is ended.
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
                // What it prints must go somewhere, or it would be ended by its pipe.
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

/// Ends a process that nobody waits for any more, with all of its group.
fn end(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // Its id is its own until it has been waited for, which is only done after this.
        let _ = killpg(group, signal);
    }
}

/// The request's body, into the process. Its end, be it too early, is the end of the input.
async fn feed(request: Body, mut input: ChildStdin, limit: u64) {
    let mut request = request.into_data_stream();
    let mut bytes = 0;
    while let Ok(Some(Ok(chunk))) = timeout(IDLE, request.next()).await {
        bytes += chunk.len() as u64;
        // Git says itself what it misses.
        if bytes > limit || input.write_all(&chunk).await.is_err() {
            break;
        }
    }
}

/// What the process prints, to whoever asked; to nobody once that one has gone.
async fn pump(mut output: ChildStdout, answer: mpsc::Sender<io::Result<Bytes>>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read @ 1..) = output.read(&mut chunk).await {
        // Nobody listens any more: the rest is read all the same.
        let _ = answer.send(Ok(Bytes::copy_from_slice(&chunk[..read]))).await;
    }
}

/// What git says to its operator.
async fn note(errors: ChildStderr) {
    use tokio::io::AsyncBufReadExt;
    let mut lines = tokio::io::BufReader::new(errors.take(1024 * 1024)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::debug!(line, "git says");
    }
}
