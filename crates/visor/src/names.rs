//! Names that are valid once parsed: each is checked where it enters, and carries its type from there.
//!
//! Owns the rules for names. They are strict because a name becomes a key, a DNS label, a line of HAProxy's
//! configuration, a path and an argument: characters that are not allowed here cannot be injected there.

mod links;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use links::{InvalidLink, InvalidServicesAddress, Link, ServicesAddress};

/// The error for a name that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name:?} is not valid: {rule}")]
pub struct InvalidName {
    /// The kind of name ("app name").
    pub kind: &'static str,
    /// The given text, cut to 80 characters.
    pub name: String,
    /// The whole rule that it breaks.
    pub rule: &'static str,
}

impl InvalidName {
    fn new(kind: &'static str, name: &str, rule: &'static str) -> Self {
        InvalidName { kind, name: name.chars().take(80).collect(), rule }
    }
}

/// Reports whether a text is a label: lower-case letters, digits and single inner dashes, a letter first.
///
/// This is stricter than a DNS label (RFC 1123).
fn is_label(s: &str, max: usize) -> bool {
    let bytes = s.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && !s.contains("--")
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Reports whether a text is a host name (RFC 1123) in lower case: labels of up to 63, separated by dots, 253 in all.
fn is_hostname(s: &str) -> bool {
    s.len() <= 253
        && !s.is_empty()
        && s.split('.').all(|label| {
            let b = label.as_bytes();
            !b.is_empty()
                && b.len() <= 63
                && b[0] != b'-'
                && b[b.len() - 1] != b'-'
                && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        })
}

/// Reports whether a text is a user name. `root` is not: it names etcd's own superuser, which no certificate may carry.
fn is_user(s: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    s.len() <= 40 && s.bytes().all(allowed) && s.starts_with(|c: char| c.is_ascii_lowercase()) && s != "root"
}

fn is_lower_hex(s: &str, lengths: &[usize]) -> bool {
    lengths.contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The rule, as errors show it.
            pub const RULE: &'static str = $rule;

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(s) { Ok($type(s.to_owned())) } else { Err(InvalidName::new($kind, s, $rule)) }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(s: String) -> Result<Self, InvalidName> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of an app.
    AppName,
    "app name",
    "1 to 40 lower-case letters, digits and single dashes, a letter first, no dash last",
    |s| is_label(s, 40)
);
name!(
    /// The name of a proc: the word before the colon in a Procfile.
    ProcName,
    "proc name",
    "1 to 30 lower-case letters, digits and single dashes, a letter first, no dash last",
    |s| is_label(s, 30)
);
name!(
    /// The name of a host, a proxy or an rm.
    HostName,
    "host name",
    "a host name in lower case (RFC 1123): letters, digits, dashes and dots, 253 characters at most",
    is_hostname
);
name!(
    /// The name of a developer or an operator, as a certificate has it.
    UserName,
    "user name",
    "1 to 40 lower-case letters, digits, dots, dashes and underscores, a letter first, and not root",
    is_user
);
name!(
    /// The id of an audit entry: its time (milliseconds since 1970, 13 digits) and eight hexadecimal digits.
    ///
    /// The digits tell it from other entries of that moment. Ids sort by time.
    AuditId,
    "audit entry",
    "13 digits, a dash and 8 hexadecimal digits",
    |s| s.len() == 22
        && s.as_bytes()[13] == b'-'
        && s[..13].bytes().all(|b| b.is_ascii_digit())
        && is_lower_hex(&s[14..], &[8])
);
name!(
    /// The name of a zone.
    ZoneName,
    "zone name",
    "1 to 40 lower-case letters, digits and single dashes, a letter first, no dash last",
    |s| is_label(s, 40)
);
name!(
    /// A domain that leads to an app.
    Domain,
    "domain",
    "a host name in lower case with a dot in it (RFC 1123), 253 characters at most",
    |s| is_hostname(s) && s.contains('.')
);
name!(
    /// A rev's id: the whole commit id, 40 hexadecimal digits (64 with SHA-256 repositories).
    RevId,
    "rev",
    "a whole commit id: 40 or 64 hexadecimal digits in lower case",
    |s| is_lower_hex(s, &[40, 64])
);
name!(
    /// A SHA-256 digest, in hexadecimal.
    Digest,
    "digest",
    "64 hexadecimal digits in lower case",
    |s| is_lower_hex(s, &[64])
);

impl ProcName {
    /// The rule for the spelling of a proc in a Procfile, as errors show it.
    pub const SPELLING: &'static str =
        "1 to 30 letters, digits, dashes and underscores, a letter first (`web`, `mail_worker`)";

    /// Returns the name of a proc that a Procfile or a person spells in this way: in lower case, with dashes alone.
    ///
    /// # Errors
    /// The text is no name that Heroku and foreman take.
    pub fn of_spelling(spelling: &str) -> Result<ProcName, InvalidName> {
        let invalid = || InvalidName::new("proc name", spelling, ProcName::SPELLING);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let begins_well = spelling.starts_with(|c: char| c.is_ascii_alphabetic());
        if !begins_well || spelling.len() > 30 || !spelling.bytes().all(allowed) {
            return Err(invalid());
        }
        let words = spelling.split(['-', '_']).filter(|word| !word.is_empty());
        words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-").parse().map_err(|_| invalid())
    }
}

impl RevId {
    /// Returns the first seven digits, which people see.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $type:ident($inner:ty), $prefix:literal, $kind:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(pub $inner);

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                let digits = s.strip_prefix($prefix).unwrap_or("");
                // A number has one spelling, so that a key has one too.
                if digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0')) {
                    if let Ok(n) = digits.parse() {
                        return Ok($type(n));
                    }
                }
                Err(InvalidName::new($kind, s, $rule))
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(s: String) -> Result<Self, InvalidName> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(n: $type) -> String {
                n.to_string()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!(concat!($prefix, "{}"), self.0))
            }
        }
    };
}

number!(
    /// An instance's id: a number from the cluster's counter, never used twice. Later ids are larger.
    InstanceId(u64), "", "instance id", "a whole number"
);
number!(
    /// The port of a service on each proxy.
    ServicePort(u16), "", "service port", "a whole number, 65535 at most"
);
number!(
    /// A release's number in its app: `v1`, `v2`, ...
    ReleaseId(u32), "v", "release", "v and a whole number, for example v3"
);
number!(
    /// An env's ref in its app: `e1`, `e2`, ...; `e0` is the empty env, which is never stored.
    EnvRef(u32), "e", "env ref", "e and a whole number, for example e3"
);

/// A day in UTC: `2026-11-26`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(pub jiff::civil::Date);

impl FromStr for Day {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        // A day has one spelling, so that a key has one too.
        let day = s.parse::<jiff::civil::Date>().ok().filter(|day| day.to_string() == s);
        day.map(Day).ok_or_else(|| InvalidName::new("day", s, "a day, for example 2026-11-26"))
    }
}

impl TryFrom<String> for Day {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> String {
        day.to_string()
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_one_spelling() {
        assert_eq!("2026-11-26".parse::<Day>().map(|day| day.to_string()), Ok("2026-11-26".to_owned()));
        for bad in ["", "20261126", "2026-13-01", "2026-11-26T00:00", " 2026-11-26", "today"] {
            assert!(bad.parse::<Day>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_could_be_read_as_something_else_are_refused() {
        let long = "a".repeat(41);
        for bad in [
            "", "A", "Web", "a/b", "a.b", "a\nb", "a\0b", "-a", "a-", "a--b", "1a", "a b", "a$(x)", "a;b",
            "a{b}", "a\"b", "a'b", "a#b", "a\\b", "é", "..", &long,
        ] {
            let err = bad.parse::<AppName>().expect_err(bad);
            assert_eq!(err.rule, AppName::RULE);
            assert!(bad.parse::<ProcName>().is_err(), "{bad:?}");
        }
        for good in ["a", "goto-rocket", "a1", &long[..40]] {
            assert_eq!(good.parse::<AppName>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn a_procs_spelling_is_foremans_and_its_name_is_a_label() {
        for (spelling, name) in [
            ("web", "web"),
            ("Mail_Worker", "mail-worker"),
            ("x__y-", "x-y"),
            ("a1", "a1"),
            (&"A".repeat(30), &"a".repeat(30)),
        ] {
            assert_eq!(ProcName::of_spelling(spelling).map(String::from), Ok(name.to_owned()));
        }
        for bad in ["", "_a", "-a", "1a", "a.b", "a b", "a:b", "é", "a\n", &"a".repeat(31)] {
            assert_eq!(ProcName::of_spelling(bad).expect_err(bad).rule, ProcName::SPELLING);
        }
    }

    #[test]
    fn a_domain_is_a_host_name_with_a_dot() {
        for bad in [
            "",
            "localhost",
            "a..b",
            "-a.b",
            "a-.b",
            "A.b",
            "a_b.c",
            "a.b/",
            "a b.c",
            "*.a.b",
            "a.b.",
            "a.b\n",
        ] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
        assert!("www.example.org".parse::<Domain>().is_ok());
    }

    #[test]
    fn a_number_has_one_spelling() {
        assert_eq!("v12".parse::<ReleaseId>(), Ok(ReleaseId(12)));
        assert_eq!(ReleaseId(12).to_string(), "v12");
        for bad in ["", "v", "12", "v012", "v-1", "v+1", "V1", "v99999999999"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad:?}");
        }
        assert!("007".parse::<InstanceId>().is_err());
        assert_eq!("0".parse::<InstanceId>(), Ok(InstanceId(0)));
    }

    #[test]
    fn a_rev_is_a_whole_commit_id_and_is_shown_by_seven_digits() {
        let rev: RevId = "16f7cbf0123456789012345678901234567890ab".parse().expect("forty digits");
        assert_eq!(rev.short(), "16f7cbf");
        assert!("16f7cbf".parse::<RevId>().is_err());
        assert!("16F7cbf0123456789012345678901234567890ab".parse::<RevId>().is_err());
    }
}
