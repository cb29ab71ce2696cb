//! Text from outside, made safe for a terminal.
//!
//! Owns which characters may reach a terminal. An app's output, an app's build and the text of a row may not steer the
//! cursor and may not make a line read as another; only an app's output may have colours, which end with its line. Pure:
//! it writes nothing.

use std::borrow::Cow;

/// Returns a text without escape sequences, control characters, newlines and bidirectional marks. Tabs stay.
///
/// A sequence is removed as a whole, so that no part of it is left. An unfinished one extends to the end of the text.
pub fn clean(text: &str) -> String {
    let text = with_seven_bit_escapes(text);
    let stripped = anstream::adapter::strip_str(&text);
    stripped.flat_map(str::chars).filter(|c| *c == '\t' || is_shown(*c)).collect()
}

/// Returns a text without escape sequences. Everything else stays.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for part in parts(&with_seven_bit_escapes(text)) {
        match part {
            Part::Text(text) if !text.contains('\u{1b}') => plain.push_str(text),
            // The parser removes control characters too, which are rare beside an escape.
            Part::Text(text) => plain.extend(anstream::adapter::strip_str(text)),
            Part::Colour(_) => {}
        }
    }
    plain
}

/// Returns a text as [`clean`] does, but with its colours. They end with the text.
pub fn coloured(text: &str) -> String {
    let (mut coloured, mut is_open) = (String::with_capacity(text.len() + 4), false);
    for part in parts(&with_seven_bit_escapes(text)) {
        match part {
            Part::Text(text) => coloured.push_str(&clean(text)),
            Part::Colour(sequence) => {
                coloured.push_str(sequence);
                is_open = sequence != RESET;
            }
        }
    }
    if is_open {
        coloured.push_str(RESET);
    }
    coloured
}

/// The sequence that ends all colours.
const RESET: &str = "\u{1b}[0m";

/// A part of a text.
enum Part<'a> {
    /// Text without a sequence that sets colours; it may have others.
    Text(&'a str),
    /// A sequence that sets colours.
    Colour(&'a str),
}

/// Splits a text at its sequences that set colours.
fn parts(mut text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find("\u{1b}[").map(|at| from + at) {
        let length = text[at + 2..].find(|c: char| !(c.is_ascii_digit() || matches!(c, ';' | ':')));
        let end = length.map(|length| at + 2 + length).filter(|end| text[*end..].starts_with('m'));
        match end {
            Some(end) if is_colour(&text[at + 2..end]) => {
                parts.push(Part::Text(&text[..at]));
                parts.push(Part::Colour(&text[at..=end]));
                (text, from) = (&text[end + 1..], 0);
            }
            _ => from = at + 2,
        }
    }
    parts.push(Part::Text(text));
    parts
}

/// Reports whether the parameters of a sequence set colours, weight, slant or lines, and neither hide text nor let it
/// blink.
fn is_colour(parameters: &str) -> bool {
    let numbers: Option<Vec<u16>> = parameters
        .split([';', ':'])
        .map(|number| if number.is_empty() { Some(0) } else { number.parse().ok() })
        .collect();
    let Some(numbers) = numbers else { return false };
    let mut rest = &numbers[..];
    while let Some((first, after)) = rest.split_first() {
        rest = match (first, after) {
            // A colour of 256, or by its parts.
            (38 | 48, [5, _, after @ ..]) => after,
            (38 | 48, [2, _, _, _, after @ ..]) => after,
            (0..=4 | 7 | 9 | 22..=27 | 29..=37 | 39..=47 | 49 | 90..=97 | 100..=107, after)
                if !matches!(first, 25 | 38) =>
            {
                after
            }
            _ => return false,
        };
    }
    true
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

    #[test]
    fn colours_stay_where_they_may_and_end_with_the_text() {
        for (text, wanted, without) in [
            ("plain \ttab\u{8}", "plain \ttab", "plain \ttab\u{8}"),
            ("\u{1b}[1;31mred\u{1b}[0m text", "\u{1b}[1;31mred\u{1b}[0m text", "red text"),
            ("\u{1b}[38;5;12mblue", "\u{1b}[38;5;12mblue\u{1b}[0m", "blue"),
            ("\u{1b}[48:2:1:2:3mx\u{1b}[m", "\u{1b}[48:2:1:2:3mx\u{1b}[m\u{1b}[0m", "x"),
            ("\u{9b}32mok\u{9b}0m", "\u{1b}[32mok\u{1b}[0m", "ok"),
            ("\u{1b}[8mhidden \u{1b}[5mblinking\u{1b}[31;8m", "hidden blinking", "hidden blinking"),
            ("\u{1b}[2J\u{1b}[31mred", "\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;a\u{1b}[31mb\u{7}c", "\u{1b}[31mbc\u{1b}[0m", "b\u{7}c"),
            ("a\u{1b}[31", "a", "a"),
            ("a\u{1b}[38m", "a", "a"),
        ] {
            assert_eq!(coloured(text), wanted, "{text:?}");
            assert_eq!(plain(text), without, "{text:?}");
        }
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
        fn nothing_but_colours_steers(text in hostile()) {
            let colours: Vec<String> = parts(&coloured(&text))
                .into_iter()
                .map(|part| match part {
                    Part::Text(text) => text.to_owned(),
                    Part::Colour(_) => String::new(),
                })
                .collect();
            prop_assert!(colours.concat().chars().all(|c| c == '\t' || is_shown(c)), "{colours:?}");
            prop_assert!(!plain(&text).contains('\u{1b}'), "{text:?}");
        }

        #[test]
        fn harmless_text_stays_as_it_is(text in "[ -~à-ÿ✀-✿]{0,40}") {
            prop_assert_eq!(clean(&text), text);
        }
    }
}
