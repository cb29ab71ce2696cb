//! The server's side of TLS: who is at the other end of a connection.
//!
//! Owns handshakes, of which none can hold up another, and finding out who calls: by the connection's certificate,
//! or by the token of a request.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, connect_info::Connected},
    http::{header, request::Parts},
    middleware::Next,
    response::Response,
    serve::{IncomingStream, Listener},
};
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use visor::identity::{Caller, Credentials, subject};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How many handshakes are under way at once; more wait in the kernel.
const HANDSHAKES: usize = 256;

/// How soon accepting is tried again where the machine has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// A listener whose connections are TLS.
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl TlsListener {
    /// Takes a listener over.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn new(listener: TcpListener, credentials: Credentials) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, ready) = mpsc::channel(HANDSHAKES);
        let accepting = tokio::spawn(accept(listener, credentials, done));
        Ok(TlsListener { ready, address, _accepting: AbortOnDropHandle::new(accepting) })
    }
}

async fn accept(
    listener: TcpListener,
    credentials: Credentials,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let permit = room.clone().acquire_owned().await.expect("it is never closed");
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "can't accept a connection");
                sleep(AGAIN).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(credentials.server_config());
        let done = done.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(done.send((stream, address)).await),
                Ok(Err(error)) => tracing::debug!(%address, error = %error, "a handshake failed"),
                Err(_) => tracing::debug!(%address, "a handshake took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    caller: Caller,
    /// When its certificate ends. A connection may outlive it.
    until: Timestamp,
    address: SocketAddr,
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        // The handshake has checked that it is of the authority; it is asked once more whom it names.
        let address = *stream.remote_addr();
        let shown =
            stream.io().get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|certificate| {
                subject(certificate)
                    .inspect_err(|error| tracing::warn!(%address, error, "a certificate that names nobody"))
                    .ok()
            });
        match shown {
            Some(subject) => {
                Peer { caller: Caller::Known(subject.identity), until: subject.not_after, address }
            }
            None => Peer { caller: Caller::Unknown, until: Timestamp::MAX, address },
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Peer { caller: Caller::Anyone, until: Timestamp::MAX, address: *stream.remote_addr() }
    }
}

/// Finds out who calls, for each request of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    credentials: Option<Credentials>,
}

impl Callers {
    /// Of an endpoint with an identity of its own, or without: then everyone is [`Caller::Anyone`].
    pub fn new(credentials: Option<Credentials>) -> Self {
        Callers { credentials }
    }

    /// A layer: puts the [`Caller`] and where it calls from ([`From`]) beside the request. A handler takes the caller as an
    /// `Extension`: of an endpoint without this layer it lets nobody in (status 500).
    pub async fn find_out(self, mut request: Request, next: Next) -> Response {
        let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
        // Without a connection, as in a test of the routes alone, nobody is known.
        let peer_caller = match (&peer, &self.credentials) {
            (_, None) => Caller::Anyone,
            (Some(peer), Some(_)) if peer.until > Timestamp::now() => peer.caller.clone(),
            (Some(_), Some(_)) => Caller::Unknown,
            (None, Some(_)) => Caller::Unknown,
        };
        let caller = match (peer_caller, &self.credentials) {
            (Caller::Unknown, Some(credentials)) => by_token(credentials, &request),
            (caller, _) => caller,
        };
        if let Some(peer) = peer {
            request.extensions_mut().insert(From(Some(peer.address)));
        }
        request.extensions_mut().insert(caller);
        next.run(request).await
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From(pub Option<SocketAddr>);

fn by_token(credentials: &Credentials, request: &Request) -> Caller {
    let Some(token) = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
    else {
        return Caller::Unknown;
    };
    let now = Timestamp::now();
    match credentials.verify_authorization(token, request.uri().path(), now) {
        Ok(who) => Caller::Known(who),
        Err(error) => {
            tracing::info!(error = %error, "a token that doesn't hold");
            Caller::Unknown
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for From {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<From>().copied().unwrap_or(From(None)))
    }
}
