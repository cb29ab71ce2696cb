//! The path of an HTTP check.
//!
//! Owns its rule. A check is asked by a daemon with more rights than the people who name the path, so the path is valid
//! once parsed, in a row as on a command line: it can name no other host.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The most characters of a path.
pub const LONGEST_CHECK_PATH: usize = 1_024;

/// The path of an HTTP check, with its query: `/healthz?deep=1`.
///
/// A path begins with a slash, and has only visible ASCII characters: it becomes a part of a request's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckPath(String);

/// The error for a text that is no path of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCheckPath {
    /// The path does not begin with a slash, or has a blank, a control character or a character beyond ASCII.
    #[error("the path of a check begins with a slash and has only visible ASCII characters")]
    Form,
    /// The path is too long.
    #[error("the path of a check has {LONGEST_CHECK_PATH} characters at most")]
    Length,
}

impl CheckPath {
    /// Returns the path, with its query.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the path and the query, as a URL takes them; a fragment is left out, because it is never sent.
    pub fn parts(&self) -> (&str, Option<&str>) {
        let sent = self.0.split('#').next().unwrap_or_default();
        match sent.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (sent, None),
        }
    }
}

impl FromStr for CheckPath {
    type Err = InvalidCheckPath;

    fn from_str(path: &str) -> Result<Self, InvalidCheckPath> {
        if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidCheckPath::Form);
        }
        if path.len() > LONGEST_CHECK_PATH {
            return Err(InvalidCheckPath::Length);
        }
        Ok(CheckPath(path.to_owned()))
    }
}

impl TryFrom<String> for CheckPath {
    type Error = InvalidCheckPath;

    fn try_from(path: String) -> Result<Self, InvalidCheckPath> {
        path.parse()
    }
}

impl From<CheckPath> for String {
    fn from(path: CheckPath) -> String {
        path.0
    }
}

impl fmt::Display for CheckPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_no_other_host_wherever_it_is_read() {
        for path in
            ["@169.254.169.254/latest", "169.254.169.254/", "", "healthz", "/a b", "/a\nb", "/é", ":80/"]
        {
            assert_eq!(path.parse::<CheckPath>(), Err(InvalidCheckPath::Form), "{path:?}");
            let row = serde_json::json!({ "http": { "path": path } });
            assert!(serde_json::from_value::<super::super::Check>(row).is_err(), "{path:?}");
        }
        let long = format!("/{}", "a".repeat(LONGEST_CHECK_PATH));
        assert_eq!(long.parse::<CheckPath>(), Err(InvalidCheckPath::Length));
    }

    #[test]
    fn a_query_stays_and_a_fragment_is_never_sent() {
        let parts = |path: &str| {
            let path: CheckPath = path.parse().expect("valid");
            let (path, query) = path.parts();
            (path.to_owned(), query.map(str::to_owned))
        };
        assert_eq!(parts("/healthz"), ("/healthz".into(), None));
        assert_eq!(parts("/h?a=1?b#c"), ("/h".into(), Some("a=1?b".into())));
        assert_eq!(parts("/h#?a"), ("/h".into(), None));
    }
}
