//! The callers of an endpoint, known by the connection's certificate or by the request's token.
//!
//! Owns the identification, once for each request. [`visor::access`] decides what a caller may do.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request},
    http::{header, request::Parts},
    middleware::Next,
    response::Response,
};
use jiff::Timestamp;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::server::TlsStream;
use visor::identity::{Caller, Credentials, subject};

use crate::{
    git_token::{self, GitFront, GitRequest},
    in_words,
};

/// The current ways by which git's requests reach an endpoint.
pub type GitFronts = watch::Receiver<GitFront>;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    caller: Caller,
    /// The end of its certificate's validity. A connection may outlive it.
    until: Timestamp,
    address: SocketAddr,
}

impl Peer {
    /// Returns the other end of a connection with TLS.
    pub(crate) fn of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Peer {
        // The handshake has verified that the authority issued the certificate. Here it is only read for the name.
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|certificate| {
            subject(certificate)
                .inspect_err(|error| {
                    tracing::warn!(%address, error = in_words(error), "a certificate without an identity");
                })
                .ok()
        });
        match shown {
            Some(subject) => {
                Peer { caller: Caller::Known(subject.identity), until: subject.not_after, address }
            }
            None => Peer { caller: Caller::Unknown, until: Timestamp::MAX, address },
        }
    }

    /// Returns the other end of a connection to a daemon without an identity.
    pub(crate) fn anyone(address: SocketAddr) -> Peer {
        Peer { caller: Caller::Anyone, until: Timestamp::MAX, address }
    }

    /// Returns whom the certificate names.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// Identifies the caller of each request of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    credentials: Option<Credentials>,
    git: Option<GitFronts>,
}

impl Callers {
    /// Creates the identification for an endpoint. Without credentials every caller is [`Caller::Anyone`]. Tokens are valid
    /// only where there is git, and for git's own requests.
    pub fn new(credentials: Option<Credentials>, git: Option<GitFronts>) -> Self {
        Callers { credentials, git }
    }

    /// Serves as a layer: adds the [`Caller`] and the address that it calls from ([`CallsFrom`]) to the request. A
    /// handler takes the caller as an `Extension`; on an endpoint without this layer it rejects every request (status
    /// 500).
    pub async fn find_out(self, mut request: Request, next: Next) -> Response {
        let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
        // Without a connection, as in a test of the routes alone, the caller is unknown.
        let peer_caller = match (&peer, &self.credentials) {
            (_, None) => Caller::Anyone,
            (Some(peer), Some(_)) if peer.until > Timestamp::now() => peer.caller.clone(),
            (Some(_), Some(_)) => Caller::Unknown,
            (None, Some(_)) => Caller::Unknown,
        };
        let caller = match (peer_caller, &self.credentials, &self.git) {
            (Caller::Unknown, Some(credentials), Some(git)) => by_token(credentials, &git.borrow(), &request),
            (caller, ..) => caller,
        };
        if let Some(peer) = peer {
            request.extensions_mut().insert(CallsFrom(Some(peer.address)));
        }
        request.extensions_mut().insert(caller);
        next.run(request).await
    }
}

/// The address that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallsFrom(pub Option<SocketAddr>);

fn by_token(credentials: &Credentials, front: &GitFront, request: &Request) -> Caller {
    let Some(token) = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
    else {
        return Caller::Unknown;
    };
    let Some(asked) = GitRequest::of(request.method(), request.uri()) else { return Caller::Unknown };
    match git_token::verify_authorization(credentials, token, &asked, front, Timestamp::now()) {
        Ok(who) => Caller::Known(who),
        Err(error) => {
            tracing::info!(app = %asked.app, error = in_words(&error), "an invalid token");
            Caller::Unknown
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for CallsFrom {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<CallsFrom>().copied().unwrap_or(CallsFrom(None)))
    }
}
