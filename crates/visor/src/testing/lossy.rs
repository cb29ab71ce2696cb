//! A TCP proxy before an etcd that loses messages on demand.
//!
//! It understands just enough of HTTP/2 to tell an answer from the frames that keep a connection alive.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{Notify, watch},
    task::JoinSet,
};

/// The length of an HTTP/2 frame's header.
const HEAD_BYTES: usize = 9;

/// The frame type that carries a part of a body.
const DATA: u8 = 0;

/// The frame type that begins a request or an answer.
const HEADERS: u8 = 1;

/// The length of the text that a client sends before its first frame.
const PREFACE_BYTES: usize = 24;

/// A proxy on a port of its own. Dropping it closes every connection.
pub struct LossyProxy {
    address: SocketAddr,
    state: Arc<State>,
    _connections: JoinSet<()>,
}

#[derive(Default)]
struct State {
    lose_reply: AtomicBool,
    lose_request: AtomicBool,
    lost: AtomicU64,
    cut: Notify,
    hole: watch::Sender<bool>,
}

impl LossyProxy {
    /// Starts a proxy before a server, given as a URL or as `host:port`.
    ///
    /// # Panics
    /// If no port can be opened.
    pub async fn start(upstream: &str) -> Self {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(State::default());
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, upstream, state.clone()));
        Self { address, state, _connections: connections }
    }

    /// Returns its URL, to be used in place of the server's.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Loses the next answer and closes its connection. By then the server has carried the call out.
    pub fn lose_next_reply(&self) {
        self.state.lose_reply.store(true, Ordering::SeqCst);
    }

    /// Loses the body of the next request and closes its connection.
    pub fn lose_next_request(&self) {
        self.state.lose_request.store(true, Ordering::SeqCst);
    }

    /// Returns how many requests and replies have been lost.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Closes every connection that is open now.
    pub fn cut(&self) {
        self.state.cut.notify_waiters();
    }

    /// Blocks both directions while it is on, without closing anything.
    pub fn blackhole(&self, on: bool) {
        self.state.hole.send_replace(on);
    }
}

async fn accept(listener: TcpListener, upstream: String, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(carry(client, upstream.clone(), state.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until it ends or is cut.
async fn carry(mut client: TcpStream, upstream: String, state: Arc<State>) {
    // Subscribed before the server is called, so that no cut is missed.
    let cut = state.cut.notified();
    let Ok(mut server) = TcpStream::connect(&upstream).await else { return };
    // Frames are small, and the peer waits for each.
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (mut from_client, to_client): (tcp::ReadHalf<'_>, tcp::WriteHalf<'_>) = client.split();
    let (from_server, mut to_server) = server.split();
    let requests = async {
        let mut preface = [0; PREFACE_BYTES];
        from_client.read_exact(&mut preface).await?;
        to_server.write_all(&preface).await?;
        frames(from_client, to_server, &state, |kind| {
            kind == DATA && state.lose_request.swap(false, Ordering::SeqCst)
        })
        .await
    };
    let replies = frames(from_server, to_client, &state, |kind| {
        (kind == HEADERS || kind == DATA) && state.lose_reply.swap(false, Ordering::SeqCst)
    });
    // The first one to end closes both sides; the reason makes no difference.
    tokio::select! {
        _ = requests => {}
        _ = replies => {}
        () = cut => {}
    }
}

/// Passes frames on until the stream ends or a frame is to be lost.
async fn frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: &State,
    loses: impl Fn(u8) -> bool,
) -> std::io::Result<()> {
    let mut hole = state.hole.subscribe();
    let mut frame = vec![0; HEAD_BYTES];
    loop {
        frame.resize(HEAD_BYTES, 0);
        from.read_exact(&mut frame).await?;
        let length = usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2]);
        if loses(frame[3]) {
            state.lost.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        frame.resize(HEAD_BYTES + length, 0);
        from.read_exact(&mut frame[HEAD_BYTES..]).await?;
        // The sender of `hole` lives as long as `state`.
        let _ = hole.wait_for(|on| !on).await;
        to.write_all(&frame).await?;
    }
}
