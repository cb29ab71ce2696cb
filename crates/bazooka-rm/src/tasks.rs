//! The tasks of a running daemon, and the owners that notice their ends.
//!
//! Owns two kinds of task. A *loop* lasts as long as the daemon, and its end ends the daemon: otherwise a panic would
//! leave a daemon that reports ready and answers nobody. An *errand* belongs to one request, and its panic affects only
//! that request. Other modules spawn only tasks that they await or abort themselves.

use std::{any::Any, collections::HashMap, future::Future, io, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use nix::errno::Errno;
use tokio::{
    net::{UnixListener, UnixStream},
    task::{Id, JoinError, JoinSet},
    time::sleep,
};
use tokio_util::task::TaskTracker;

/// The pause of a listener when the machine lacks a resource, in which some connections will be closed.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The unexpected end of a loop.
#[derive(Debug, thiserror::Error)]
pub enum LoopEnded {
    /// The loop panicked.
    #[error("{name} panicked: {message}")]
    Panicked {
        /// The loop's name.
        name: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The loop failed.
    #[error("{name} failed")]
    Failed {
        /// The loop's name.
        name: &'static str,
        /// The loop's error.
        #[source]
        source: BoxError,
    },
    /// The loop returned.
    #[error("{name} ended by itself")]
    Returned {
        /// The loop's name.
        name: &'static str,
    },
}

/// The daemon's loops. Dropping this ends all of them.
#[derive(Default)]
pub struct Loops {
    set: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, &'static str>,
}

impl Loops {
    /// Starts a loop that ends only with an error.
    pub fn spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.set.spawn(async move { work.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Starts a loop that never ends.
    pub fn spawn_endless(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            work.await;
            Ok::<_, BoxError>(())
        });
    }

    /// Waits for the first loop that ends.
    ///
    /// # Cancel safety
    /// If this is dropped, no end is lost.
    pub async fn first_end(&mut self) -> LoopEnded {
        let Some(ended) = self.set.join_next_with_id().await else { return std::future::pending().await };
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let name = self.names.remove(&id).unwrap_or("a loop");
        match ended {
            Ok((_, Ok(()))) => LoopEnded::Returned { name },
            Ok((_, Err(source))) => LoopEnded::Failed { name, source },
            Err(error) => LoopEnded::Panicked { name, message: panic_of(error) },
        }
    }
}

fn panic_of(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => message(&*panic),
        Err(error) => error.to_string(),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

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
        tracing::error!(task = name, reason = message(&*panic), "a request's task panicked");
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

    async fn end_of(loops: &mut Loops) -> String {
        let error = anyhow::Error::from(loops.first_end().await);
        format!("{error:#}")
    }

    #[tokio::test]
    async fn loops_name_the_one_that_ended_and_why() {
        let mut loops = Loops::default();
        loops.spawn_endless("the watch", std::future::pending());
        loops.spawn_endless("the hooks' listener", async { panic!("index {} out of range", 7) });
        assert_eq!(end_of(&mut loops).await, "the hooks' listener panicked: index 7 out of range");
        loops.spawn("the endpoint", async { Err(io::Error::other("gone")) });
        assert_eq!(end_of(&mut loops).await, "the endpoint failed: gone");
        loops.spawn_endless("the audit", async {});
        assert_eq!(end_of(&mut loops).await, "the audit ended by itself");
    }

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
