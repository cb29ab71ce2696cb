//! The daemon's side of the hooks' calls: one connection for each running hook.
//!
//! Owns the socket. When a hook ends early, its connection closes, and the work for it is cancelled.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    hook::wire::{Call, Hook, MAX_CALL, Reply},
    layout::{Layout, SOCKET, remove},
    metrics::RmMetrics,
    push::{Push, Pushes, Rejected},
    tasks,
    voice::Voice,
};

/// The number of hooks answered at a time; others wait. Each push has at most one.
const MOST_HOOKS: usize = 1024;

/// The time that a hook has to send its call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The parts of bazooka-rm that hooks call. Cheap to clone.
#[derive(Clone)]
pub struct HookCalls {
    /// The pushes under way.
    pub pushes: Arc<Pushes>,
    /// The metrics.
    pub metrics: RmMetrics,
}

/// Opens the socket, for processes of this user only.
///
/// # Errors
/// If it can't be opened.
pub fn listen(layout: &Layout) -> io::Result<UnixListener> {
    // A killed rm leaves its socket.
    remove(&layout.socket())?;
    // A socket's path must be short, and the state folder's may be long; so bind through the folder's descriptor.
    let folder = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECTORY.bits())
        .open(layout.root())?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    fs::set_permissions(layout.socket(), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers calls until the listener fails.
///
/// # Errors
/// The listener's.
pub async fn serve(calls: HookCalls, listener: UnixListener) -> io::Result<()> {
    tasks::accept(listener, "a hook's call", MOST_HOOKS, |hook| answer(calls.clone(), hook)).await
}

async fn answer(calls: HookCalls, hook: UnixStream) {
    let (input, mut output) = hook.into_split();
    let mut input = BufReader::new(input);
    let call = match timeout(CALL_TIMEOUT, read_call(&mut input)).await {
        Ok(Ok(call)) => call,
        Ok(Err(error)) => return tracing::warn!(error = %error, "a hook's call can't be read"),
        Err(_) => return tracing::warn!("a hook didn't say what it wants"),
    };
    let (voice, lines) = Voice::new();
    let cancelled = CancellationToken::new();
    let work = async {
        // Moved in, so that the last clone is dropped with this block and the lines end.
        let voice = voice;
        perform(&calls, &call, &voice, &cancelled).await
    };
    let told = async {
        let told = tell(lines, &mut output).await;
        if told.is_err() {
            cancelled.cancel();
        }
    };
    let vanished = async {
        wait_for_end(input).await;
        cancelled.cancel();
        std::future::pending::<()>().await;
    };
    let status = tokio::select! {
        (status, ()) = async { tokio::join!(work, told) } => status,
        () = vanished => 1,
    };
    // The hook may have ended; then nobody reads this.
    let _ = say(&mut output, &Reply::Done { status }).await;
}

async fn perform(calls: &HookCalls, call: &Call, voice: &Voice, cancelled: &CancellationToken) -> i32 {
    let Some(push) = calls.pushes.find(&call.push) else {
        voice.say("push rejected: pushes go through bazooka-rm's endpoint").await;
        return 1;
    };
    match call.hook {
        Hook::PostReceive => {
            calls.pushes.post_receive(&push, voice, cancelled).await;
            0
        }
        Hook::PreReceive => match pre_receive(&calls.pushes, &push, call, voice, cancelled).await {
            Ok(()) => {
                calls.metrics.pushed("accepted");
                0
            }
            Err(rejected) => {
                calls.metrics.pushed("rejected");
                tracing::info!(app = %push.app, reason = %rejected, "push rejected");
                voice.say_all(&format!("push rejected: {rejected}")).await;
                1
            }
        },
    }
}

/// Runs the pre-receive hook's work, and cancels it when the pusher leaves.
async fn pre_receive(
    pushes: &Pushes,
    push: &Push,
    call: &Call,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<(), Rejected> {
    let work = pushes.pre_receive(push, call, voice, cancelled);
    let gone = async {
        push.gone.cancelled().await;
        cancelled.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = work => done,
        () = gone => Err(Rejected::Cancelled),
    }
}

async fn read_call(input: &mut BufReader<OwnedReadHalf>) -> io::Result<Call> {
    let mut line = Vec::new();
    // A call in JSON is longer than git's own words.
    input.take(4 * MAX_CALL).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

async fn tell(mut lines: mpsc::Receiver<String>, output: &mut OwnedWriteHalf) -> io::Result<()> {
    while let Some(line) = lines.recv().await {
        say(output, &Reply::Line(line)).await?;
    }
    Ok(())
}

async fn say(output: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    output.write_all(&line).await
}

async fn wait_for_end(mut input: BufReader<OwnedReadHalf>) {
    let mut nothing = [0; 64];
    while input.read(&mut nothing).await.is_ok_and(|n| n > 0) {}
}
