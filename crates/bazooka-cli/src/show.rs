//! Output to a terminal or a pipe.
//!
//! Owns tables, times, sizes and colours, and the cleaning ([`visor::terminal`]) of all outside text before a
//! terminal gets it.

use std::{
    io::{self, IsTerminal, Write},
    process,
    sync::atomic::{AtomicBool, Ordering},
};

use comfy_table::{CellAlignment, ContentArrangement, presets};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use visor::terminal;

pub use visor::settings::size as bytes;

/// The target of output, which decides on control characters, colours and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A terminal: a person reads it.
    Terminal,
    /// A pipe or file: a program reads it.
    Pipe,
}

impl Sink {
    /// Returns the sink of standard output.
    pub fn stdout() -> Self {
        if io::stdout().is_terminal() { Sink::Terminal } else { Sink::Pipe }
    }

    /// Reports whether to use colours: on a terminal, unless `NO_COLOR` is set.
    pub fn has_colours(self) -> bool {
        self == Sink::Terminal
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }
}

/// Returns a text without terminal control characters ([`visor::terminal`]), on one line and in one cell of a table:
/// tabs become spaces.
pub fn clean(text: &str) -> String {
    terminal::clean(text).replace('\t', " ")
}

/// Returns a value on one line without loss: control characters as escapes, an empty value as `''`.
pub fn escape(value: &str) -> String {
    if value.is_empty() {
        return "''".to_owned();
    }
    value
        .chars()
        .map(|c| if terminal::is_shown(c) { c.to_string() } else { c.escape_default().to_string() })
        .collect()
}

/// Writes to standard output and flushes it. If the reader has gone, the command ends as by SIGPIPE.
pub fn put(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        process::exit(141);
    }
}

/// Writes a line to standard output.
pub fn put_line(line: &str) {
    put(&format!("{line}\n"));
}

/// True while a line of standard output has begun and not ended.
static OPEN_LINE: AtomicBool = AtomicBool::new(false);

/// Begins a line of standard output that will grow.
pub fn begin_open_line(words: &str) {
    OPEN_LINE.store(true, Ordering::Relaxed);
    put(words);
}

/// Reports whether output would continue the open line.
pub fn is_line_open() -> bool {
    OPEN_LINE.load(Ordering::Relaxed)
}

/// Ends the open line, unless a message has already ended it.
pub fn end_open_line() {
    if OPEN_LINE.swap(false, Ordering::Relaxed) {
        put("\n");
    }
}

/// Prints a message on standard error. If both outputs are one terminal, the message gets a line of its own.
pub fn say(words: &str) {
    if io::stdout().is_terminal() && io::stderr().is_terminal() {
        end_open_line();
    }
    // A closed standard error can't be reported.
    let _ = writeln!(io::stderr().lock(), "{}", clean(words));
}

/// Prints a value as JSON.
pub fn put_json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("the shapes of listings are always valid JSON");
    put_line(&text);
}

/// Prints a value as one line of JSON.
pub fn put_json_line(value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("the shapes of listings are always valid JSON");
    put_line(&text);
}

/// A table with a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table without rows.
    pub fn new(head: &[&'static str]) -> Self {
        Table { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; empty cells are shown as dashes.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { clean(&cell) });
        self.rows.push(cells.collect());
    }

    /// Formats the table: aligned columns on a terminal, else tab-separated.
    pub fn render(&self, sink: Sink) -> String {
        match sink {
            Sink::Pipe => {
                let mut text = self.head.join("\t");
                text.push('\n');
                for row in &self.rows {
                    text.push_str(&row.join("\t"));
                    text.push('\n');
                }
                text
            }
            Sink::Terminal => {
                let mut table = comfy_table::Table::new();
                table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
                table.set_header(&self.head).add_rows(&self.rows);
                for column in table.column_iter_mut() {
                    column.set_padding((0, 2)).set_cell_alignment(CellAlignment::Left);
                }
                // Trailing blanks would wrap lines on a narrow terminal.
                table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
            }
        }
    }

    /// Prints the table to standard output.
    pub fn put(&self) {
        put(&self.render(Sink::stdout()));
    }
}

/// Formats the time since `then` in one unit: `12s`, `5m`, `3h`, `4d`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    span(now.duration_since(then))
}

/// Formats a time span in one unit. A negative span (clocks differ) counts as zero.
pub fn span(span: SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Formats a cause with the time until the next start, computed now, because the one in the text has aged.
pub fn cause(cause: &str, next_start_at: Option<Timestamp>, now: Timestamp) -> String {
    let Some(at) = next_start_at else { return cause.to_owned() };
    let told = cause.find("; next start in ").map_or(cause, |at| &cause[..at]);
    format!("{told}; next start in {}", span(at.duration_since(now)))
}

/// Formats a time in the reader's time zone, to the second.
pub fn moment(at: Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_on_a_terminal_and_tab_separated_in_a_pipe() {
        let mut table = Table::new(&["APP", "PROC", "PORT"]);
        table.row(["goto-rocket".into(), "web".into(), "8511".into()]);
        table.row(["x".into(), String::new(), "1".into()]);
        assert_eq!(
            table.render(Sink::Terminal),
            "APP          PROC  PORT\ngoto-rocket  web   8511\nx            -     1\n"
        );
        assert_eq!(table.render(Sink::Pipe), "APP\tPROC\tPORT\ngoto-rocket\tweb\t8511\nx\t-\t1\n");
    }

    #[test]
    fn no_control_character_gets_through() {
        assert_eq!(clean("a\u{1b}[2Jb\tc\r\n\u{7}d\u{9b}2me\u{202e}f"), "ab cdef");
        let mut table = Table::new(&["A"]);
        table.row(["x\ny\tz".into()]);
        assert_eq!(table.render(Sink::Pipe), "A\nxy z\n");
    }

    #[test]
    fn a_value_is_shown_on_one_line_with_nothing_lost() {
        for (value, wanted) in
            [("", "''"), ("x\ny\t\u{1b}[31m", "x\\ny\\t\\u{1b}[31m"), ("a b=c \"é\"", "a b=c \"é\"")]
        {
            assert_eq!(escape(value), wanted);
        }
    }

    #[test]
    fn the_next_start_is_told_as_it_stands_now() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        for (said, wanted) in [
            ("exited with status 1", "exited with status 1; next start in 20s"),
            (
                "exited with status 1, 4 times; next start in 30 s",
                "exited with status 1, 4 times; next start in 20s",
            ),
        ] {
            assert_eq!(cause(said, Some(at(120)), at(100)), wanted);
            assert_eq!(cause(said, None, at(100)), said);
        }
    }

    #[test]
    fn spans_and_sizes_are_told_in_one_unit() {
        let secs = SignedDuration::from_secs;
        for (n, wanted) in
            [(-5, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (86_400, "24h"), (172_800, "2d")]
        {
            assert_eq!(span(secs(n)), wanted);
        }
        for (n, wanted) in [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (512 << 20, "512M"), (3 << 30, "3G")]
        {
            assert_eq!(bytes(n), wanted);
        }
    }
}
