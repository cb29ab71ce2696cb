//! The pieces of long and slow lines, put together.
//!
//! A host stores a line in pieces if it is long, or if it is printed slowly. Owns the lines of which only pieces have
//! arrived. A reader of the past waits for all of them; a follower sees a piece at once, unless the piece is so long that
//! the rest of its line must follow.

use std::collections::BTreeMap;

use visor::names::InstanceId;

use super::Entry;

/// The length from which on a piece is one of a long line, so that its rest follows at once. Shims store pieces of 8 KiB,
/// less the beginning of a letter.
const LONG_BYTES: usize = (8 << 10) - 3;

/// The most bytes of a line. A longer one is shown in parts.
const MOST_BYTES: usize = 1 << 20;

/// The lines whose end has not arrived.
#[derive(Default)]
pub struct Pieces {
    open: BTreeMap<(InstanceId, String), Open>,
}

struct Open {
    entry: Entry,
    /// True if the last piece was one of a long line.
    is_long: bool,
}

impl Pieces {
    /// Takes a record, and returns the lines that are complete with it.
    pub fn take(&mut self, entry: Entry) -> Vec<Entry> {
        if entry.stream == "sys" {
            // The host's own words stand where output is lost, and where the instance ends.
            let mut done = self.close(|id, _| *id == entry.instance);
            done.push(entry);
            return done;
        }
        let key = (entry.instance, entry.stream.clone());
        let (goes_on, is_long) = (entry.partial, entry.line.len() >= LONG_BYTES);
        let mut done = Vec::new();
        let entry = match self.open.remove(&key) {
            None => entry,
            Some(Open { entry: mut begun, .. }) if begun.line.len() + entry.line.len() <= MOST_BYTES => {
                begun.line.push_str(&entry.line);
                begun.partial = goes_on;
                begun.is_joined = true;
                begun
            }
            Some(Open { entry: begun, .. }) => {
                done.push(begun);
                entry
            }
        };
        if goes_on {
            self.open.insert(key, Open { entry, is_long });
        } else {
            done.push(entry);
        }
        done
    }

    /// Returns the lines whose rest may be long in coming, as far as they have arrived.
    pub fn slow(&mut self) -> Vec<Entry> {
        self.close(|_, open| !open.is_long)
    }

    /// Returns all lines, as far as they have arrived.
    pub fn rest(&mut self) -> Vec<Entry> {
        self.close(|_, _| true)
    }

    fn close(&mut self, closes: impl Fn(&InstanceId, &Open) -> bool) -> Vec<Entry> {
        let all = std::mem::take(&mut self.open).into_iter();
        let (closed, open): (BTreeMap<_, _>, _) = all.partition(|((id, _), open)| closes(id, open));
        self.open = open;
        closed.into_values().map(|open| open.entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u64, stream: &str, line: &str, partial: bool) -> Entry {
        let raw = serde_json::json!({
            "at": "2026-01-01T00:00:00Z", "proc": "web", "instance": id.to_string(), "stream": stream, "line": line,
            "partial": partial,
        });
        Entry::read(raw.to_string()).expect("what bazooka-pm writes")
    }

    fn lines(entries: Vec<Entry>) -> Vec<(String, bool)> {
        entries.into_iter().map(|entry| (entry.line, entry.partial)).collect()
    }

    #[test]
    fn pieces_are_joined_by_instance_and_stream() {
        let mut pieces = Pieces::default();
        let mut done = Vec::new();
        for (id, stream, line, goes_on) in [
            (1, "out", "a", true),
            (2, "out", "other", false),
            (1, "err", "x", true),
            (1, "out", "b", true),
            (1, "out", "c", false),
            (1, "out", "d", true),
            (2, "sys", "started", false),
            (1, "sys", "ended", false),
            (1, "out", "e", false),
        ] {
            done.extend(pieces.take(record(id, stream, line, goes_on)));
        }
        done.extend(pieces.rest());
        let wanted = [
            ("other", false),
            ("abc", false),
            ("started", false),
            ("x", true),
            ("d", true),
            ("ended", false),
            ("e", false),
        ];
        assert_eq!(lines(done), wanted.map(|(line, open)| (line.to_owned(), open)));
    }

    #[test]
    fn a_follower_waits_for_the_rest_of_a_long_line_and_not_for_an_answer() {
        let mut pieces = Pieces::default();
        let long = "x".repeat(LONG_BYTES);
        assert!(pieces.take(record(1, "out", &long, true)).is_empty());
        assert!(pieces.take(record(2, "out", "name? ", true)).is_empty());
        assert_eq!(lines(pieces.slow()), [("name? ".to_owned(), true)]);
        assert_eq!(lines(pieces.take(record(2, "out", "Jo", false))), [("Jo".to_owned(), false)]);
        assert_eq!(pieces.take(record(1, "out", "end", false))[0].line.len(), LONG_BYTES + 3);
    }

    #[test]
    fn a_line_without_an_end_is_shown_in_parts() {
        let mut pieces = Pieces::default();
        let long = "x".repeat(600 << 10);
        assert!(pieces.take(record(1, "out", &long, true)).is_empty());
        assert_eq!(pieces.take(record(1, "out", &long, true)).len(), 1);
        assert_eq!(pieces.rest().len(), 1);
    }
}
