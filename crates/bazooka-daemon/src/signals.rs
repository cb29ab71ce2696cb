//! The signals that end a program.
//!
//! Owns SIGTERM and SIGINT, as one token that they cancel.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// The end of a program, once a signal asks for it. Signals are heard for as long as this lives.
#[derive(Debug)]
pub struct Shutdown {
    token: CancellationToken,
    _listening: AbortOnDropHandle<()>,
}

impl Shutdown {
    /// A token that SIGTERM or SIGINT cancels.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

/// Takes SIGTERM and SIGINT over.
///
/// # Errors
/// If the handlers can't be installed.
pub fn shutdown() -> io::Result<Shutdown> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    let listening = tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(Shutdown { token, _listening: AbortOnDropHandle::new(listening) })
}
