//! The lines to a pusher while a push is under way.
//!
//! Owns the queue of lines and a line's largest length. Each line is cleaned ([`visor::terminal`]): the output of an
//! app's build must not steer the pusher's terminal.

use tokio::sync::mpsc;
use visor::terminal;

/// The longest line in bytes; the rest is cut.
const MAX_LINE: usize = 2000;

/// The number of lines that may wait for a slow pusher; after that the build waits too.
const WAITING_LINES: usize = 256;

/// The sender of lines to one pusher. After the pusher has left, lines are dropped.
#[derive(Clone, Debug)]
pub struct Voice(mpsc::Sender<String>);

impl Voice {
    /// Returns a voice and the receiver of its lines.
    pub fn new() -> (Voice, mpsc::Receiver<String>) {
        let (lines, out) = mpsc::channel(WAITING_LINES);
        (Voice(lines), out)
    }

    /// Sends a line. Waits while the pusher is slow.
    pub async fn say(&self, line: impl AsRef<str>) {
        // If the pusher has left, the line is dropped; cancellation reaches the work by another way.
        let _ = self.0.send(clean(line.as_ref())).await;
    }

    /// Sends each line of a text.
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
