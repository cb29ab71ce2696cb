//! Config vars: the names that they may have, and the length of a value.
//!
//! Owns the rule for every part that takes config vars in: the command line, and daemons. An error never repeats a
//! value, which may be a secret.

use std::{fmt, str::FromStr};

use crate::names::InvalidName;

/// The most bytes of a value: Linux allows a string in a process's environment 128 KiB, name included.
pub const MOST_VALUE_BYTES: usize = 100 * 1024;

/// The name of a config var: one that every shell accepts, and that Bazooka does not set itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VarName(String);

/// The error for a config var.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVar {
    /// `=` is missing. The text may be a secret that lost its name, so it is not repeated.
    #[error("a config var is set by NAME=VALUE: there is no = in one of the arguments")]
    NoEquals,
    /// The name breaks the rule.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The name is one that Bazooka sets for each instance.
    #[error("{0} is set for each instance by bazooka itself")]
    Reserved(VarName),
    /// The value is too long.
    #[error("the value of {0} is longer than {MOST_VALUE_BYTES} bytes")]
    TooLong(VarName),
}

impl VarName {
    /// The rule, as errors show it.
    pub const RULE: &'static str = "letters, digits and underscores, no digit first, 128 at most";

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_reserved(&self) -> bool {
        self.0 == "PORT" || self.0.starts_with("BAZOOKA_")
    }
}

impl FromStr for VarName {
    type Err = InvalidVar;

    fn from_str(s: &str) -> Result<Self, InvalidVar> {
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        let valid =
            s.len() <= 128 && s.starts_with(letter) && s.chars().all(|c| letter(c) || c.is_ascii_digit());
        if !valid {
            let name = s.chars().take(80).collect();
            return Err(InvalidName { kind: "config var", name, rule: VarName::RULE }.into());
        }
        let name = VarName(s.to_owned());
        if name.is_reserved() { Err(InvalidVar::Reserved(name)) } else { Ok(name) }
    }
}

impl fmt::Display for VarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<VarName> for String {
    fn from(name: VarName) -> String {
        name.0
    }
}

/// Returns the name of a config var, if the name is valid and may have that value.
///
/// # Errors
/// The rule that either breaks.
pub fn check(name: &str, value: &str) -> Result<VarName, InvalidVar> {
    let name: VarName = name.parse()?;
    if value.len() > MOST_VALUE_BYTES { Err(InvalidVar::TooLong(name)) } else { Ok(name) }
}

/// Parses `NAME=VALUE`.
///
/// # Errors
/// `=` is missing; the rule that the name or the value breaks.
pub fn pair(text: &str) -> Result<(VarName, &str), InvalidVar> {
    let (name, value) = text.split_once('=').ok_or(InvalidVar::NoEquals)?;
    Ok((check(name, value)?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_to_shells_and_values_are_never_repeated() {
        let parsed = |text| pair(text).map(|(name, value)| (String::from(name), value));
        assert_eq!(parsed("A_1=x=y z"), Ok(("A_1".into(), "x=y z")));
        assert_eq!(parsed("A="), Ok(("A".into(), "")));
        for bad in [
            "=secret",
            "1A=secret",
            "A-B=secret",
            "A B=secret",
            "PORT=secret",
            "BAZOOKA_X=secret",
            "é=secret",
            "secret",
        ] {
            let error = pair(bad).expect_err(bad).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let long = format!("A={}", "s".repeat(MOST_VALUE_BYTES + 1));
        let error = pair(&long).expect_err("the value is too long").to_string();
        assert!(error.len() < 100, "{error}");
    }
}
