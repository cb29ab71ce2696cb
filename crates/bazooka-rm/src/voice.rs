//! What a pusher is told, line by line, while a push is under way.
//!
//! Owns the queue of lines to a pusher, and how long a line may be. Each is cleaned ([`visor::terminal`]): the output of
//! an app's build must not steer the pusher's terminal.

use tokio::sync::mpsc;
use visor::terminal;

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

/// Returns a line that steers no terminal, cut to [`MAX_LINE`] bytes.
pub fn clean(line: &str) -> String {
    let mut line = terminal::clean(line);
    if line.len() > MAX_LINE {
        let cut = (0..=MAX_LINE).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(cut);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_steers_no_terminal_and_is_cut() {
        assert_eq!(clean("\u{1b}[1;31mred\u{1b}[0m\ttext\u{202e}"), "red\ttext");
        let long = clean(&"\u{e9}".repeat(5000));
        assert!(long.len() <= MAX_LINE + 4 && long.ends_with("\u{e9} ..."), "{long}");
    }
}
