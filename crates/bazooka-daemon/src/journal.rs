//! Log lines as entries of systemd's journal, if stderr is the journal.
//!
//! Owns the form of an entry. The line as people read it is the message, and each of its fields is also a field of the
//! entry, under `BAZOOKA_`: `journalctl BAZOOKA_APP=goto-rocket`. Ready-made layers keep the fields out of the
//! message, so that `journalctl -u` would show a warning without its cause.

use std::{
    error::Error,
    fmt::{Debug, Write as _},
    io::Write as _,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use crate::in_words;

/// The journal's socket for entries.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The layer that writes each event to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    program: String,
}

impl Journal {
    /// Returns the journal, if stderr leads to it.
    pub fn find() -> Option<Journal> {
        let said = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = std::fs::metadata("/proc/self/fd/2").ok()?;
        if said != format!("{}:{}", stderr.dev(), stderr.ino()) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        let own = std::env::current_exe().ok();
        let program = own.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
        Some(Journal { socket, program: program.unwrap_or_else(|| "bazooka".into()).into_owned() })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let entry = entry(&self.program, *event.metadata().level(), event.metadata().target(), &line);
        if self.socket.send(&entry).is_err() {
            // The entry is too long for a datagram, or the journal was restarted. As a plain line it still arrives.
            let _ = writeln!(std::io::stderr(), "{}", line.text());
        }
    }
}

/// An event, field by field.
#[derive(Debug, Default)]
struct Line {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Line {
    /// Formats the line as people read it.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            let gap = if text.is_empty() { "" } else { " " };
            let _ = if value.is_empty() || value.contains(char::is_whitespace) {
                write!(text, "{gap}{name}={value:?}")
            } else {
                write!(text, "{gap}{name}={value}")
            };
        }
        text
    }

    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.take(field, in_words(value));
    }
}

/// Encodes an entry in the journal's own protocol.
fn entry(program: &str, level: Level, target: &str, line: &Line) -> Vec<u8> {
    let mut entry = Vec::new();
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", program);
    put(&mut entry, "BAZOOKA_TARGET", target);
    put(&mut entry, "MESSAGE", &line.text());
    for (name, value) in &line.fields {
        put(&mut entry, &format!("BAZOOKA_{}", field_name(name)), value);
    }
    entry
}

/// Converts a field's name: the journal takes capitals, digits and underscores.
fn field_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        // With `=` instead, a line of an app's output could pose as a field.
        entry.push(b'\n');
        entry.extend_from_slice(&u64::try_from(value.len()).unwrap_or(u64::MAX).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_reads_as_on_a_terminal_and_each_field_is_one_of_the_entry() {
        let line = Line {
            message: "no longer registered".into(),
            fields: vec![("host", "app1".into()), ("error", "it is gone".into())],
        };
        let entry = entry("bazooka-pm", Level::WARN, "visor::lease", &line);
        assert_eq!(
            String::from_utf8(entry).expect("text"),
            "PRIORITY=4\nSYSLOG_IDENTIFIER=bazooka-pm\nBAZOOKA_TARGET=visor::lease\n\
             MESSAGE=no longer registered host=app1 error=\"it is gone\"\nBAZOOKA_HOST=app1\nBAZOOKA_ERROR=it is gone\n"
        );
    }

    #[test]
    fn no_value_can_pose_as_a_field() {
        let mut entry = Vec::new();
        put(&mut entry, "BAZOOKA_CAUSE", "it ended\nPRIORITY=0");
        let mut wanted = b"BAZOOKA_CAUSE\n".to_vec();
        wanted.extend(19_u64.to_le_bytes());
        wanted.extend(b"it ended\nPRIORITY=0\n");
        assert_eq!(entry, wanted);
        assert_eq!(field_name("error.sources"), "ERROR_SOURCES");
    }
}
