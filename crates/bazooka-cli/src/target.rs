//! The targets of commands, as more than one command takes them.

use std::str::FromStr;

use visor::names::{InstanceId, InvalidName, ProcName};

/// A proc or one of its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All instances of a proc.
    Proc(ProcName),
    /// One instance.
    Instance(InstanceId),
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if s.starts_with(|c: char| c.is_ascii_digit()) {
            s.parse().map(Target::Instance)
        } else {
            ProcName::of_spelling(s).map(Target::Proc)
        }
    }
}

/// The beginning of a rev's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevPrefix(String);

impl RevPrefix {
    /// Returns the digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An error: the text isn't the beginning of a rev's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rev is named by 4 or more of its hexadecimal digits")]
pub struct InvalidRevPrefix;

impl FromStr for RevPrefix {
    type Err = InvalidRevPrefix;

    fn from_str(s: &str) -> Result<Self, InvalidRevPrefix> {
        let digits = s.to_ascii_lowercase();
        if (4..=64).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(RevPrefix(digits))
        } else {
            Err(InvalidRevPrefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_a_digit_is_an_instance() {
        assert_eq!("12".parse(), Ok(Target::Instance(InstanceId(12))));
        for spelling in ["web", "Web"] {
            assert_eq!(spelling.parse(), Ok(Target::Proc("web".parse().expect("valid"))));
        }
        for bad in ["", "12a", "012", "-1", "we.b", "v1\n"] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_rev_is_named_by_four_digits_at_least() {
        assert_eq!("16F7".parse::<RevPrefix>().map(|rev| rev.0), Ok("16f7".to_owned()));
        for bad in ["", "16f", "xyzw", "16f7cbf/", &"a".repeat(65)] {
            assert!(bad.parse::<RevPrefix>().is_err(), "{bad:?}");
        }
    }
}
