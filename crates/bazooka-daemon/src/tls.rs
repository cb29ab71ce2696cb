//! A listener whose connections are TLS.
//!
//! Owns handshakes. Each is a task of its own, so that a slow one holds up no other; the listener owns these tasks.

use std::{io, net::SocketAddr, time::Duration};

use axum::serve::Listener;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use visor::identity::Credentials;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How many handshakes are under way at once; more wait in the kernel.
const HANDSHAKES: usize = 256;

/// How soon accepting is tried again where the machine has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// A connection whose handshake is done, and its other end.
type Accepted = (TlsStream<TcpStream>, SocketAddr);

/// A listener whose connections are TLS.
pub struct TlsListener {
    listener: TcpListener,
    credentials: Credentials,
    handshakes: JoinSet<Option<Accepted>>,
}

impl TlsListener {
    /// Takes a listener over.
    pub fn new(listener: TcpListener, credentials: Credentials) -> Self {
        TlsListener { listener, credentials, handshakes: JoinSet::new() }
    }

    async fn begin(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, address)) => {
                let acceptor = TlsAcceptor::from(self.credentials.server_config());
                self.handshakes.spawn(handshake(acceptor, stream, address));
            }
            Err(error) => {
                tracing::warn!(error = %error, "can't accept a connection");
                sleep(AGAIN).await;
            }
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, address: SocketAddr) -> Option<Accepted> {
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some((stream, address)),
        Ok(Err(error)) => tracing::debug!(%address, error = %error, "a handshake failed"),
        Err(_) => tracing::debug!(%address, "a handshake took too long"),
    }
    None
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    /// The next connection. Cancelling it loses none.
    async fn accept(&mut self) -> Accepted {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.handshakes.len() < HANDSHAKES => {
                    self.begin(accepted).await;
                }
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Some(accepted)) => return accepted,
                    Ok(None) => {}
                    Err(error) => tracing::error!(error = %error, "a handshake broke off"),
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
