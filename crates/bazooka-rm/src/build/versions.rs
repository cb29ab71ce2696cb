//! The versions of a language that an app's files ask for.
//!
//! Owns the reading of those files and the comparison. Pure, except that files of the tree are read.

mod files;

use std::fmt;

pub(super) use self::files::wanted;

/// A language with versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Node,
    Python,
    Ruby,
    Go,
    Rust,
}

impl Language {
    /// Returns the name for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Language::Node => "Node",
            Language::Python => "Python",
            Language::Ruby => "Ruby",
            Language::Go => "Go",
            Language::Rust => "Rust",
        }
    }

    /// Returns the name of the folder of its toolchains.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Language::Node => "node",
            Language::Python => "python",
            Language::Ruby => "ruby",
            Language::Go => "go",
            Language::Rust => "rust",
        }
    }

    /// Returns the name that `.tool-versions` has for it.
    fn plugin(self) -> &'static str {
        match self {
            Language::Node => "nodejs",
            Language::Go => "golang",
            other => other.folder(),
        }
    }
}

/// A version that one place of an app asks for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The place: a file, or a field of one.
    pub(super) place: String,
    /// The words of that place.
    pub(super) text: String,
    /// The meaning of those words.
    rule: Rule,
}

impl Wanted {
    /// Reports whether a version such as `3.11.2` is wanted.
    pub(super) fn fits(&self, version: &str) -> bool {
        match &self.rule {
            Rule::Node(range) => {
                node_semver::Version::parse(version).is_ok_and(|version| range.satisfies(&version))
            }
            Rule::Python(specifiers) => {
                version.parse::<pep440_rs::Version>().is_ok_and(|version| specifiers.contains(&version))
            }
            Rule::Numbers(rules) => {
                let version = numbers(version);
                rules.iter().all(|(comparison, wanted)| comparison.holds(&version, wanted))
            }
            Rule::Any => true,
            Rule::Name(name) => version == name || version.starts_with(&format!("{name}-")),
        }
    }

    /// Returns the words of a range that npm knows too.
    pub(super) fn range(&self) -> String {
        match &self.rule {
            Rule::Node(range) => range.to_string(),
            _ => "*".to_owned(),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} asks for {}", self.place, self.text)
    }
}

/// The meaning of a wanted version.
#[derive(Clone, Debug)]
enum Rule {
    /// A range as npm reads it.
    Node(node_semver::Range),
    /// Specifiers as pip reads them.
    Python(pep440_rs::VersionSpecifiers),
    /// Comparisons that must all hold.
    Numbers(Vec<(Comparison, Vec<u64>)>),
    /// Every version.
    Any,
    /// A version by its name alone, such as `nightly`.
    Name(String),
}

impl Rule {
    /// Returns the rule for all versions that begin with these numbers, or that one version if they are whole; a name if
    /// they are no numbers.
    fn beginning(text: &str) -> Rule {
        let is_number = text.starts_with(|c: char| c.is_ascii_digit())
            && text
                .split('.')
                .all(|part| part.chars().all(|c| c.is_ascii_digit()) || part == "x" || part == "*");
        if is_number {
            Rule::Numbers(vec![(Comparison::Begins, numbers(text))])
        } else {
            Rule::Name(text.to_owned())
        }
    }

    /// Returns the rule of words as Ruby has them: `~> 3.1`, `>= 3.0`, `3.1.2`.
    fn ruby(words: &[&str]) -> Rule {
        let one = |word: &&str| {
            let (sign, version) =
                word.split_at(word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len()));
            let comparison = match sign.trim() {
                "" | "=" => Comparison::Begins,
                "~>" => Comparison::Pessimistic,
                ">=" => Comparison::AtLeast,
                ">" => Comparison::Above,
                "<=" => Comparison::AtMost,
                "<" => Comparison::Below,
                "!=" => Comparison::Not,
                _ => return None,
            };
            Some((comparison, numbers(version)))
        };
        match words.iter().map(one).collect::<Option<Vec<_>>>() {
            Some(rules) => Rule::Numbers(rules),
            None => Rule::Name(words.join(", ")),
        }
    }
}

/// A comparison of versions, number by number; a missing number is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Begins,
    Pessimistic,
    AtLeast,
    Above,
    AtMost,
    Below,
    Not,
}

impl Comparison {
    fn holds(self, version: &[u64], wanted: &[u64]) -> bool {
        let length = version.len().max(wanted.len());
        let whole = |numbers: &[u64]| {
            let mut numbers = numbers.to_vec();
            numbers.resize(length, 0);
            numbers
        };
        let order = whole(version).cmp(&whole(wanted));
        match self {
            Comparison::Begins => version.starts_with(wanted),
            Comparison::Pessimistic => {
                let kept = wanted.len().saturating_sub(1).max(1);
                order.is_ge() && version.starts_with(&wanted[..kept.min(wanted.len())])
            }
            Comparison::AtLeast => order.is_ge(),
            Comparison::Above => order.is_gt(),
            Comparison::AtMost => order.is_le(),
            Comparison::Below => order.is_lt(),
            Comparison::Not => order.is_ne(),
        }
    }
}

/// Returns the numbers of a version: 3, 1 and 2 for `3.1.2p20`.
pub(super) fn numbers(version: &str) -> Vec<u64> {
    let number = |part: &str| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    };
    version.split(['.', '-', '+']).map_while(number).collect()
}

/// Returns the first version in what a program says of itself, such as `go version go1.19.8 linux/amd64`.
pub(super) fn said(words: &str) -> Option<String> {
    let word = |word: &str| {
        let version = word.trim_start_matches(|c: char| !c.is_ascii_digit());
        let version = numbers(version).iter().map(u64::to_string).collect::<Vec<_>>().join(".");
        version.contains('.').then_some(version)
    };
    words.split_whitespace().find_map(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_its_version() {
        for (words, wanted) in [
            ("v20.20.2\n", Some("20.20.2")),
            ("Python 3.11.2\n", Some("3.11.2")),
            ("go version go1.19.8 linux/amd64\n", Some("1.19.8")),
            ("ruby 3.1.2p20 (2022-04-12 revision 4491bb740a) [x86_64-linux-gnu]\n", Some("3.1.2")),
            ("rustc 1.95.0 (f2d3ce0bd 2026-03-21)\n", Some("1.95.0")),
            ("not found\n", None),
        ] {
            assert_eq!(said(words).as_deref(), wanted, "{words}");
        }
    }

    #[test]
    fn versions_are_compared_number_by_number() {
        for (words, version, wanted) in [
            (&["~> 3.1"][..], "3.4.0", true),
            (&["~> 3.1"], "4.0.0", false),
            (&["~> 3.1.2"], "3.1.9", true),
            (&["~> 3.1.2"], "3.2.0", false),
            (&["~> 3.1.2"], "3.1.1", false),
            (&[">= 3.0", "< 3.2"], "3.1.2", true),
            (&[">= 3.0", "< 3.2"], "3.2.0", false),
            (&["3.1.2"], "3.1.2", true),
            (&["3.1.2"], "3.1.20", false),
            (&["!= 3.1.2"], "3.1.2", false),
            (&[">= 1.22"], "1.19.8", false),
            (&["> 1.9"], "1.10.0", true),
            (&["<= 1.9"], "1.9", true),
        ] {
            let wants = Wanted { place: String::new(), text: String::new(), rule: Rule::ruby(words) };
            assert_eq!(wants.fits(version), wanted, "{words:?} {version}");
        }
    }
}
