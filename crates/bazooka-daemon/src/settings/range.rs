//! A range of numbers as the value of an option: `21000-21999`.

use std::{ops::RangeInclusive, str::FromStr};

/// A range of numbers: two numbers with a dash between, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<T>(pub T, pub T);

/// The error for text that isn't a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two numbers with a dash between, the lower one first, such as 21000-21999")]
pub struct RangeError;

impl<T: FromStr + PartialOrd + Copy> FromStr for Range<T> {
    type Err = RangeError;

    fn from_str(s: &str) -> Result<Self, RangeError> {
        let ends =
            s.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ends {
            Some((first, last)) if first <= last => Ok(Range(first, last)),
            _ => Err(RangeError),
        }
    }
}

impl<T: Copy> Range<T> {
    /// Returns the range as a standard one, to iterate over.
    pub fn inclusive(self) -> RangeInclusive<T> {
        self.0..=self.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_ends_in_order() {
        assert_eq!("21000-21999".parse(), Ok(Range(21_000_u16, 21_999)));
        for bad in ["", "1", "1-", "-1", "2-1", "1-99999", "a-b", "1-2-3"] {
            assert!(bad.parse::<Range<u16>>().is_err(), "{bad:?}");
        }
    }
}
