//! A listener for TLS connections.
//!
//! Owns the handshakes. Each is a task of its own, so that a slow one delays no other; the listener owns these tasks.

use std::{io, net::SocketAddr, time::Duration};

use axum::serve::Listener;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use visor::identity::Credentials;

/// The longest time that a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The most handshakes at once; further connections wait in the kernel.
const HANDSHAKES: usize = 256;

/// The pause before accepting again when the machine has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// A connection after its handshake, with the address of its other end.
type Accepted = (TlsStream<TcpStream>, SocketAddr);

/// A listener for TLS connections.
pub struct TlsListener {
    listener: TcpListener,
    credentials: Credentials,
    handshakes: JoinSet<Option<Accepted>>,
}

impl TlsListener {
    /// Takes over a listener.
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

    /// Returns the next connection. Cancelling it loses none.
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
