//! Pip's refusal of a package of which no version fits this Python, as one line.
//!
//! Owns the reading of pip's words: it lists every version that it passed over, which are hundreds for an old package.

use pep440_rs::{Version, VersionSpecifiers};

/// The beginning of pip's list of versions that take another Python.
const IGNORED: &str = "ERROR: Ignored the following versions that require a different python version:";

/// The beginning of pip's line with all versions that there are.
const NOT_FOUND: &str = "ERROR: Could not find a version that satisfies the requirement ";

/// The beginning of pip's last line.
const NONE: &str = "ERROR: No matching distribution found for ";

/// Pip's words about a requirement that it can't meet.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal {
    /// Versions with the Python that each takes, as pip wrote them.
    ignored: String,
    /// True while the lines are pieces of that list.
    is_listing: bool,
    requirement: Option<String>,
}

impl Refusal {
    /// Reads a line of pip's. Returns the line for the pusher; none for a list of versions.
    pub(super) fn hear(&mut self, line: &str) -> Option<String> {
        if let Some(list) = line.strip_prefix(IGNORED) {
            self.is_listing = true;
            self.ignored.push_str(list);
            return None;
        }
        // A very long line comes in pieces.
        if self.is_listing && !line.starts_with("ERROR: ") {
            self.ignored.push_str(line);
            return None;
        }
        self.is_listing = false;
        if let Some(requirement) = line.strip_prefix(NONE) {
            self.requirement = Some(requirement.trim().to_owned());
        }
        let begin = line.strip_prefix(NOT_FOUND).and_then(|rest| rest.split(" (from versions").next());
        Some(begin.map_or_else(|| line.to_owned(), |requirement| format!("{NOT_FOUND}{requirement}")))
    }

    /// Reports whether pip has passed over versions because of this Python.
    pub(super) fn is_about_python(&self) -> bool {
        self.needed().is_some()
    }

    /// Returns the refusal: which Python the requirement takes, and which this one is. `place` is the place that asks for
    /// this one, if there is one.
    pub(super) fn words(&self, python: &str, place: Option<&str>) -> String {
        let requirement = self.requirement.as_deref().unwrap_or_default();
        let needed = self.needed().map_or_else(String::new, |(_, python)| python);
        let needed = needed.split(',').find_map(|part| part.trim().strip_prefix(">=")).unwrap_or(&needed);
        let place = place.map_or_else(|| "no .python-version".to_owned(), |place| format!("as {place} asks"));
        format!("{requirement} needs Python {needed}; this app is built with {python} ({place})")
    }

    /// Returns the oldest version that would meet the requirement, with the Python that it takes.
    fn needed(&self) -> Option<(Version, String)> {
        let requirement = self.requirement.as_deref()?;
        let specifiers = requirement.find(['<', '>', '=', '!', '~']).map_or("", |at| &requirement[at..]);
        let specifiers = specifiers.split(';').next().unwrap_or_default();
        let specifiers = specifiers.parse::<VersionSpecifiers>().ok()?;
        let entries =
            self.ignored.split(';').filter_map(|entry| entry.trim().split_once(" Requires-Python "));
        let versions =
            entries.filter_map(|(version, python)| Some((version.parse::<Version>().ok()?, python)));
        let fitting =
            versions.filter(|(version, _)| specifiers.contains(version) && !version.any_prerelease());
        fitting
            .min_by(|(one, _), (other, _)| one.cmp(other))
            .map(|(version, python)| (version, python.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_hundreds_becomes_a_line() {
        let mut refusal = Refusal::default();
        let list =
            format!("{IGNORED} 5.0 Requires-Python >=3.10; 5.0.1 Requires-Python >=3.10; 6.0a1 Requires-Py");
        let lines = [
            "Collecting Django>=6",
            &list,
            "thon >=3.12; 6.0 Requires-Python >=3.12; 6.1 Requires-Python >=3.13",
            "ERROR: Could not find a version that satisfies the requirement Django>=6 (from versions: 1.1.3, 1.1.4)",
            "ERROR: No matching distribution found for Django>=6",
        ];
        let shown: Vec<String> = lines.into_iter().filter_map(|line| refusal.hear(line)).collect();
        assert_eq!(
            shown,
            [
                "Collecting Django>=6",
                "ERROR: Could not find a version that satisfies the requirement Django>=6",
                "ERROR: No matching distribution found for Django>=6",
            ]
        );
        assert!(refusal.is_about_python());
        assert_eq!(
            refusal.words("3.11.2", None),
            "Django>=6 needs Python 3.12; this app is built with 3.11.2 (no .python-version)"
        );
        assert!(refusal.words("3.11.2", Some("runtime.txt")).ends_with("with 3.11.2 (as runtime.txt asks)"));
    }

    #[test]
    fn other_refusals_stay_as_they_are() {
        for (list, last) in [
            ("", "ERROR: No matching distribution found for nothing==1"),
            (" 2.0 Requires-Python >=3.12", "ERROR: No matching distribution found for nothing==1"),
        ] {
            let mut refusal = Refusal::default();
            refusal.hear(&format!("{IGNORED}{list}"));
            refusal.hear(last);
            assert!(!refusal.is_about_python(), "{list}");
        }
    }
}
