//! Text from outside, made safe for a terminal.
//!
//! Owns which characters may reach a terminal. An app's output, an app's build and the text of a row may steer neither
//! the cursor nor the colours, and may not make a line read as another. Pure: it writes nothing.

use std::borrow::Cow;

/// Returns a text without escape sequences, control characters, newlines and bidirectional marks. Tabs stay.
///
/// A sequence is removed as a whole, so that no part of it is left. An unfinished one extends to the end of the text.
pub fn clean(text: &str) -> String {
    let text = with_seven_bit_escapes(text);
    let stripped = anstream::adapter::strip_str(&text);
    stripped.flat_map(str::chars).filter(|c| *c == '\t' || is_shown(*c)).collect()
}

/// Reports whether a character may reach a terminal.
pub fn is_shown(c: char) -> bool {
    !c.is_control() && !is_bidirectional_mark(c)
}

/// Reports whether a character changes the direction in which its neighbours are read, so that a line reads as another.
fn is_bidirectional_mark(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces each control character U+0080 to U+009F by ESC and a letter, which has the same meaning.
///
/// The parser knows only that form.
fn with_seven_bit_escapes(text: &str) -> Cow<'_, str> {
    let is_of_second_set = |c: char| ('\u{80}'..='\u{9f}').contains(&c);
    if !text.contains(is_of_second_set) {
        return Cow::Borrowed(text);
    }
    let mut seven_bit = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match u8::try_from(c) {
            Ok(byte @ 0x80..=0x9f) => seven_bit.extend(['\u{1b}', char::from(byte - 0x40)]),
            _ => seven_bit.push(c),
        }
    }
    Cow::Owned(seven_bit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_go_whole() {
        for (text, wanted) in [
            ("plain \u{e9}\ttab", "plain \u{e9}\ttab"),
            ("\u{1b}[1;31mred\u{1b}[0m text", "red text"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("\u{1b}P1$r0m\u{1b}\\after", "after"),
            ("\u{1b}_hidden\u{1b}\\after", "after"),
            ("\u{9b}2Jcleared", "cleared"),
            ("\u{9d}0;title\u{9c}after", "after"),
            ("\u{1b}(Bx", "x"),
            ("a\u{1b}", "a"),
            ("a\u{1b}[31", "a"),
        ] {
            assert_eq!(clean(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn control_characters_and_bidirectional_marks_go_by_themselves() {
        assert_eq!(clean("a\u{8}\u{7}\0b\r\n\u{7f}c\u{85}"), "abc");
        assert_eq!(clean("user\u{202e}nimda\u{2066}\u{200f}\u{61c}"), "usernimda");
    }

    /// Generates text with more control sequences than chance would give.
    fn hostile() -> impl Strategy<Value = String> {
        let pieces = [
            "\u{1b}", "[", "]", "P", "\\", "31m", "\u{9b}", "\u{9c}", "\u{7}", "\u{18}", "\u{202e}", "✜",
            "é", "x",
        ];
        prop::collection::vec(
            prop_oneof![prop::sample::select(pieces.to_vec()).prop_map(str::to_owned), ".{0,3}"],
            0..20,
        )
        .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_that_steers_is_left_and_cleaning_again_changes_nothing(text in hostile()) {
            let cleaned = clean(&text);
            prop_assert!(cleaned.chars().all(|c| c == '\t' || is_shown(c)), "{cleaned:?}");
            prop_assert_eq!(clean(&cleaned), cleaned);
        }

        #[test]
        fn harmless_text_stays_as_it_is(text in "[ -~à-ÿ✀-✿]{0,40}") {
            prop_assert_eq!(clean(&text), text);
        }
    }
}
