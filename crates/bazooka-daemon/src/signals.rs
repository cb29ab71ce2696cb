//! The signals that end a program.
//!
//! Owns SIGTERM and SIGINT, which cancel one token.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// The shutdown of a program on a signal. Signals are handled for as long as this lives.
#[derive(Debug)]
pub struct Shutdown {
    token: CancellationToken,
    _listening: AbortOnDropHandle<()>,
}

impl Shutdown {
    /// Returns a token that SIGTERM or SIGINT cancels.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

/// Takes over SIGTERM and SIGINT.
///
/// # Errors
/// If the handlers can't be installed.
pub fn shutdown() -> io::Result<Shutdown> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A guard: if the task that handles signals panics, the program ends in order, and not only by SIGKILL.
    let guard = token.clone().drop_guard();
    let listening = tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        drop(guard);
    });
    Ok(Shutdown { token, _listening: AbortOnDropHandle::new(listening) })
}
