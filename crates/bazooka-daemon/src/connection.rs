//! One connection of an endpoint, from its first byte to its last.
//!
//! Owns the times: of a handshake, of a request's head, of silence between two requests, and of an answer that the
//! client doesn't take. An answer that is under way is never too long: a followed log may be silent for days, and the
//! kernel's keep-alive tells whether the client is still there.
//!
//! ```text
//!              first byte          head is whole            answer has ended
//! accepted ─▶ waits ────▶ reads head ────────▶ busy ─────────────────▶ waits (idle) ─▶ ...
//!              HEAD          HEAD              STALL for each            IDLE
//!                                              write that waits
//! ```

use std::{
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::ConnectInfo,
    http::Response,
};
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{callers::Peer, places::Place};

/// The longest time from a connection's start, or from a request's first byte, to the end of the request's head. Clients
/// of ours send a head in one packet.
pub(crate) const HEAD: Duration = Duration::from_secs(10);

/// The longest silence between two requests. Longer than a minute, the usual interval of a Prometheus, so that its
/// request doesn't meet the close.
const IDLE: Duration = Duration::from_secs(75);

/// The longest time for which a client may take nothing of an answer.
const STALL: Duration = Duration::from_secs(60);

/// The time that a connection which gives its place away has for the end of its last answer.
const LEAVE: Duration = Duration::from_secs(1);

/// The largest head of a request in bytes; a token with its chain of certificates has some 4 KiB.
const MOST_HEAD: usize = 64 << 10;

/// The silence in seconds after which the kernel asks whether the client is there, the interval of its questions, and
/// how many may stay without an answer: a client that vanished is gone after two minutes.
const KEEP_ALIVE: (u32, u32, u32) = (60, 15, 4);

/// The reason why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client ended it, or the daemon ends.
    Usual,
    /// The place went to another connection.
    Evicted,
    /// No request came, or no whole head.
    Head,
    /// The connection was idle.
    Idle,
    /// The client took nothing of an answer.
    Stalled,
}

impl End {
    /// Returns the word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            End::Usual => "usual",
            End::Evicted => "evicted",
            End::Head => "head",
            End::Idle => "idle",
            End::Stalled => "stalled",
        }
    }
}

/// Has the kernel ask, during long answers, whether the client is still there.
pub fn keep_alive(stream: &TcpStream) {
    let (idle, every, most) = KEEP_ALIVE;
    let set = setsockopt(stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &idle))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &every))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &most));
    if let Err(error) = set {
        tracing::debug!(error = %error, "a connection is not kept alive");
    }
    // Small answers must not wait for a full packet.
    let _ = stream.set_nodelay(true);
}

/// Serves a connection's requests until it ends. When `end` is cancelled, the request under way is the last one.
///
/// # Cancel safety
/// A dropped future closes the connection.
pub async fn carry<S>(stream: S, peer: Peer, routes: Router, place: Place, end: CancellationToken) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let progress = Arc::new(Progress::new());
    let place = Arc::new(place);
    let answers = {
        let (progress, place) = (progress.clone(), place.clone());
        service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer.clone()));
            let under_way = UnderWay::begin(progress.clone(), place.clone());
            let answering = TowerToHyperService::new(routes.clone()).call(request);
            async move {
                let answer: Response<Body> = answering.await?;
                Ok::<_, std::convert::Infallible>(answer.map(|body| Counted { body, _under_way: under_way }))
            }
        })
    };
    let io = TokioIo::new(Watched { stream, progress: progress.clone() });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // `Progress` has the times, which are not the same for a head and for silence.
            .header_read_timeout(None)
            .max_buf_size(MOST_HEAD)
            .serve_connection(io, answers)
    );
    let (mut leaves, mut ends) = (None, false);
    loop {
        tokio::select! {
            served = &mut serving => {
                if let Err(error) = served {
                    tracing::debug!(error = %error, "a connection broke off");
                }
                return if leaves.is_some() { End::Evicted } else { End::Usual };
            }
            late = progress.late() => return late,
            () = place.left(), if leaves.is_none() => {
                if progress.is_unused() {
                    return End::Evicted;
                }
                serving.as_mut().graceful_shutdown();
                leaves = Some(Instant::now() + LEAVE);
            }
            () = sleep_until(leaves.unwrap_or_else(Instant::now)), if leaves.is_some() => return End::Evicted,
            () = end.cancelled(), if !ends => {
                ends = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// How far a connection is.
#[derive(Debug)]
struct Progress {
    state: Mutex<State>,
    /// Told when a time begins that may end before the one that is awaited.
    moved: Notify,
}

#[derive(Debug)]
struct State {
    /// The number of requests under way.
    busy: usize,
    /// True from the first request on.
    used: bool,
    /// The begin of the silence: the connection's own, or the end of its last answer.
    idle_since: Instant,
    /// The first byte of a head that isn't whole.
    head_since: Option<Instant>,
    /// The begin of a write that the client doesn't take.
    stalled_since: Option<Instant>,
}

impl Progress {
    fn new() -> Progress {
        let now = Instant::now();
        let state = State { busy: 0, used: false, idle_since: now, head_since: None, stalled_since: None };
        Progress { state: Mutex::new(state), moved: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unused(&self) -> bool {
        !self.state().used
    }

    /// Returns once the connection has been in one of its states for too long.
    async fn late(&self) -> End {
        loop {
            let due = self.state().due();
            let moved = self.moved.notified();
            match due {
                Some((at, end)) if at <= Instant::now() => return end,
                Some((at, _)) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = moved => {}
                },
                None => moved.await,
            }
        }
    }
}

impl State {
    /// Returns when the present state has lasted too long, and the reason to end the connection then.
    fn due(&self) -> Option<(Instant, End)> {
        if let Some(since) = self.stalled_since {
            return Some((since + STALL, End::Stalled));
        }
        if self.busy > 0 {
            return None;
        }
        match self.head_since {
            Some(since) => Some((since + HEAD, End::Head)),
            None if !self.used => Some((self.idle_since + HEAD, End::Head)),
            None => Some((self.idle_since + IDLE, End::Idle)),
        }
    }
}

/// A request from its whole head to the end of its answer.
struct UnderWay {
    progress: Arc<Progress>,
    place: Arc<Place>,
}

impl UnderWay {
    fn begin(progress: Arc<Progress>, place: Arc<Place>) -> UnderWay {
        {
            let mut state = progress.state();
            state.busy += 1;
            (state.used, state.head_since) = (true, None);
        }
        place.begin();
        UnderWay { progress, place }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        {
            let mut state = self.progress.state();
            state.busy = state.busy.saturating_sub(1);
            state.idle_since = Instant::now();
        }
        self.progress.moved.notify_one();
        self.place.end();
    }
}

/// An answer's body, whose request is under way as long as the body lasts.
struct Counted {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's stream, which notes when bytes come and when they don't go.
struct Watched<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S> Watched<S> {
    fn wrote<T>(&self, done: &Poll<io::Result<T>>) {
        let mut state = self.progress.state();
        if done.is_ready() {
            state.stalled_since = None;
        } else if state.stalled_since.is_none() {
            state.stalled_since = Some(Instant::now());
            drop(state);
            self.progress.moved.notify_one();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let mut state = self.progress.state();
            if state.busy == 0 && state.head_since.is_none() {
                state.head_since = Some(Instant::now());
                drop(state);
                self.progress.moved.notify_one();
            }
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&done);
        done
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(&done);
        done
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(context);
        self.wrote(&done);
        done
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(context);
        self.wrote(&done);
        done
    }
}

#[cfg(test)]
mod tests;
