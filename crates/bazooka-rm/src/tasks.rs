//! The tasks of requests, and the owners that notice their ends.
//!
//! Owns the *errands*: each belongs to one request, and its panic affects only that request. The daemon's loops are
//! [`bazooka_daemon::Loops`]; other modules spawn only tasks that they await or abort themselves.

use std::{future::Future, io, panic::AssertUnwindSafe, time::Duration};

use bazooka_daemon::panic_message;
use futures::FutureExt;
use nix::errno::Errno;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::sleep,
};
use tokio_util::task::TaskTracker;

/// The pause of a listener when the machine lacks a resource, in which some connections will be closed.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// The errands of all requests. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Errands(TaskTracker);

impl Errands {
    /// Runs an errand to its end, even if its request has ended.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(unharmed(name, work));
    }

    /// Waits until all errands have ended, at most for `most`.
    pub async fn end_within(&self, most: Duration) {
        self.0.close();
        // The remaining errands end with the process.
        let _ = tokio::time::timeout(most, self.0.wait()).await;
    }
}

/// Runs a request's work. Catches and logs its panic.
pub async fn unharmed(name: &'static str, work: impl Future<Output = ()>) {
    // Sound: requests share state only through locks, which are poisoned by a panic.
    if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
        tracing::error!(task = name, reason = panic_message(&*panic), "a request's task panicked");
    }
}

/// Accepts connections and answers at most `most` at a time. Returns only if the listener fails.
///
/// If this is dropped, the answers under way are cancelled.
///
/// # Errors
/// The listener's.
pub async fn accept<F>(
    listener: UnixListener,
    name: &'static str,
    most: usize,
    answer: impl Fn(UnixStream) -> F,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if answers.len() < most => match accepted {
                Ok((stream, _)) => drop(answers.spawn(unharmed(name, answer(stream)))),
                Err(error) if is_passing(&error) => {
                    tracing::warn!(listener = name, error = %error, "can't accept a connection; trying again");
                    sleep(SHORTAGE_PAUSE).await;
                }
                Err(error) => return Err(error),
            },
            Some(_) = answers.join_next() => {}
        }
    }
}

/// True if a failed accept concerns one connection or a lack of resources, and not the listener.
fn is_passing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOBUFS
                | Errno::ENOMEM
                | Errno::ECONNABORTED
                | Errno::EINTR
                | Errno::EPROTO
                | Errno::EPERM
        )
    )
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn errands_panic_alone() {
        let errands = Errands::default();
        errands.spawn("a fetch", async { panic!("a request's own") });
        let (done, is_done) = tokio::sync::oneshot::channel();
        errands.spawn("another", async move {
            let _ = done.send(());
        });
        errands.end_within(Duration::from_secs(10)).await;
        is_done.await.expect("the other one has run to its end");
    }

    /// Echoes a connection's input, and panics at "panic".
    async fn echo(mut stream: UnixStream) {
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.expect("sent");
        assert_ne!(&word, b"panic", "as asked");
        stream.write_all(&word).await.expect("it listens");
    }

    async fn said(path: &std::path::Path, word: &[u8; 5]) -> Vec<u8> {
        let mut stream = UnixStream::connect(path).await.expect("it listens");
        stream.write_all(word).await.expect("sent");
        let mut echo = Vec::new();
        stream.read_to_end(&mut echo).await.expect("readable");
        echo
    }

    #[tokio::test]
    async fn accept_outlives_a_panic() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let _accepting =
            tokio_util::task::AbortOnDropHandle::new(tokio::spawn(accept(listener, "echo", 1, echo)));
        assert_eq!(said(&path, b"panic").await, b"", "its connection ends");
        assert_eq!(said(&path, b"hello").await, b"hello", "one at a time, and the next is answered");
    }

    #[tokio::test]
    async fn accept_ends_with_its_listener() {
        let socket =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
        // Nobody has called listen(2), so accept(2) fails at once.
        let deaf =
            UnixListener::from_std(std::os::unix::net::UnixListener::from(socket)).expect("registered");
        let ended = tokio::time::timeout(Duration::from_secs(10), accept(deaf, "echo", 1, echo)).await;
        let error = ended.expect("it ends").expect_err("it can't accept");
        assert_eq!(error.raw_os_error(), Some(Errno::EINVAL as i32));
    }
}
