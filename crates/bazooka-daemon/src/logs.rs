//! A daemon's log: lines on stderr, or entries of systemd's journal.
//!
//! Owns the choice between the three forms. The journal's form itself is in [`crate::journal`].

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::journal::Journal;

/// Writes log lines to stderr: as text, as JSON with `BAZOOKA_LOG_FORMAT=json`, or as entries with fields if stderr is
/// systemd's journal.
///
/// `BAZOOKA_LOG` sets the level (`info` unless set).
pub fn init_logs() {
    let filter = EnvFilter::try_from_env("BAZOOKA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let json = std::env::var("BAZOOKA_LOG_FORMAT").is_ok_and(|format| format == "json");
    if let Some(journal) = Journal::find().filter(|_| !json) {
        tracing_subscriber::registry().with(filter).with(journal).init();
        return;
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if json {
        lines.json().flatten_event(true).init();
    } else {
        lines.init();
    }
}
