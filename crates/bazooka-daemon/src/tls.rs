//! The TLS handshake of one connection.
//!
//! Owns its time. A handshake is part of its connection's own task and place, so a silent one delays no other.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use visor::identity::Credentials;

use crate::connection::End;

/// The longest time that a handshake may take: some round trips, on a bad network with a lost packet.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Takes the handshake of a connection.
///
/// # Errors
/// How the connection ended.
pub async fn handshake(
    credentials: &Credentials,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>, End> {
    let acceptor = TlsAcceptor::from(credentials.server_config());
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            tracing::debug!(%address, error = %error, "a handshake failed");
            Err(End::Usual)
        }
        Err(_) => Err(End::Head),
    }
}
