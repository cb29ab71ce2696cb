//! A daemon's log: lines on stderr, or entries of systemd's journal.
//!
//! Owns the choice between the three forms, and of what is logged. The journal's form itself is in [`crate::journal`].

use std::io::IsTerminal;

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::journal::Journal;

/// Writes log lines to stderr: as text, as JSON with `BAZOOKA_LOG_FORMAT=json`, or as entries with fields if stderr is
/// systemd's journal.
///
/// `BAZOOKA_LOG` sets the level (`info` unless set), or a level for each part: `bazooka_proxy=debug,warn`.
pub fn init_logs() {
    let logged = tracing_subscriber::registry().with(targets(std::env::var("BAZOOKA_LOG").ok().as_deref()));
    let json = std::env::var("BAZOOKA_LOG_FORMAT").is_ok_and(|format| format == "json");
    if let Some(journal) = Journal::find().filter(|_| !json) {
        return logged.with(journal).init();
    }
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if json {
        logged.with(lines.json().flatten_event(true)).init();
    } else {
        logged.with(lines).init();
    }
}

/// Returns what `BAZOOKA_LOG` lets through. An invalid value counts as none.
fn targets(text: Option<&str>) -> Targets {
    let parts: Vec<&str> = text.unwrap_or_default().split(',').map(str::trim).collect();
    // An empty part would let everything through.
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let usual = || Targets::new().with_default(LevelFilter::INFO);
    if parts.is_empty() { usual() } else { parts.join(",").parse().unwrap_or_else(|_| usual()) }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_set_for_all_or_for_each_part() {
        let lets = |text, target, level| targets(text).would_enable(target, &level);
        for (text, target, level, expected) in [
            (None, "visor::mirror", Level::INFO, true),
            (None, "visor::mirror", Level::DEBUG, false),
            (Some(""), "visor::mirror", Level::DEBUG, false),
            (Some("debug"), "visor::mirror", Level::DEBUG, true),
            (Some("bazooka_proxy=debug,warn"), "bazooka_proxy::driver", Level::DEBUG, true),
            (Some("bazooka_proxy=debug,warn"), "visor::mirror", Level::INFO, false),
            (Some("bazooka_proxy=debug, warn,"), "visor::mirror", Level::WARN, true),
            (Some("bazooka_proxy=debug"), "visor::mirror", Level::ERROR, false),
            (Some("off"), "visor::mirror", Level::ERROR, false),
            (Some("bazooka_proxy=loud"), "visor::mirror", Level::INFO, true),
        ] {
            assert_eq!(lets(text, target, level), expected, "{text:?} {target} {level}");
        }
    }
}
