//! What a pusher is told, line by line, while a push is under way.
//!
//! Owns the cleaning of lines: what an app's build prints must not steer the pusher's terminal.

use tokio::sync::mpsc;

/// The longest line; the rest of it is cut.
const MAX_LINE: usize = 2000;

/// How many lines may wait for a slow pusher before the build waits too.
const WAITING_LINES: usize = 256;

/// Speaks to one pusher. Once that one has gone it speaks to nobody.
#[derive(Clone, Debug)]
pub struct Voice(mpsc::Sender<String>);

impl Voice {
    /// A voice, and where its lines come out.
    pub fn new() -> (Voice, mpsc::Receiver<String>) {
        let (lines, out) = mpsc::channel(WAITING_LINES);
        (Voice(lines), out)
    }

    /// Says a line. Waits while the pusher is slow.
    pub async fn say(&self, line: impl AsRef<str>) {
        // Nobody listens any more: whoever works for the pusher learns that elsewhere.
        let _ = self.0.send(clean(line.as_ref())).await;
    }

    /// Says each line of a text.
    pub async fn say_all(&self, text: &str) {
        for line in text.lines() {
            self.say(line).await;
        }
    }
}

/// A line without what could steer a terminal: escape sequences go whole, other control characters by themselves.
pub fn clean(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' || c == '\u{9b}' {
            skip_sequence(&mut rest, c);
        } else if c == '\t' || !c.is_control() {
            if out.len() + c.len_utf8() > MAX_LINE {
                out.push_str(" ...");
                break;
            }
            out.push(c);
        }
    }
    out
}

/// Skips what follows an escape: `[` up to a letter, `]` up to a bell, else one character.
fn skip_sequence(rest: &mut std::iter::Peekable<std::str::Chars>, begin: char) {
    let kind = if begin == '\u{9b}' { Some('[') } else { rest.next() };
    match kind {
        Some('[') => while rest.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
        Some(']') => {
            while let Some(c) = rest.next() {
                if c == '\u{7}' || (c == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_steer_a_terminal() {
        for (line, wanted) in [
            ("plain \u{e9}\ttab", "plain \u{e9}\ttab"),
            ("\u{1b}[1;31mred\u{1b}[0m text", "red text"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("\u{9b}2Jgone", "gone"),
            ("a\u{8}\u{7}\0b\u{1b}", "ab"),
            ("\u{1b}(Bx", "Bx"),
        ] {
            assert_eq!(clean(line), wanted, "{line:?}");
        }
        let long = clean(&"x".repeat(5000));
        assert!(long.len() <= MAX_LINE + 4 && long.ends_with("x ..."));
    }
}
