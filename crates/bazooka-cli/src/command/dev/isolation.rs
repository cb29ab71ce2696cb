//! How a local cluster's instances and builds are kept apart: the most that this machine can give.
//!
//! Owns trying it, by `bazooka-pm probe`. A daemon by itself never takes less than it was told; here a developer's own machine is
//! at stake, often a container without control groups, and what it can't give is said and done without.

use std::{ffi::OsString, path::Path, process::Stdio};

use tokio::process::Command;

use crate::failure::{Failure, Kind, Result};

/// What can be done without, the least first.
const WITHOUT: [&str; 3] = ["", "fence", "limits,fence"];

/// How instances and builds are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    /// In sandboxes, whole but for these parts.
    Without(&'static str),
    /// By their users.
    Uid,
    /// Not at all: this isn't root.
    No,
}

impl Apart {
    /// Tries what there is.
    ///
    /// # Errors
    /// If bazooka-pm can't be started.
    pub async fn tried(pm: &Path) -> Result<(Apart, String)> {
        let mut first = String::new();
        for without in WITHOUT {
            let mut probe = Command::new(pm);
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("BAZOOKA_") {
                    probe.env_remove(name);
                }
            }
            if !without.is_empty() {
                probe.env("BAZOOKA_WITHOUT", without);
            }
            let probed = probe.arg("probe").stdin(Stdio::null()).output().await.map_err(|error| {
                Failure::from_error(Kind::Failed, format!("{} can't be started", pm.display()), &error)
            })?;
            if probed.status.success() {
                return Ok((Apart::Without(without), first));
            }
            if first.is_empty() {
                let said = String::from_utf8_lossy(&probed.stderr);
                // What comes after that is how a bazooka-pm goes on, which is found out here.
                let cause = said.trim().trim_start_matches("Error: ").split("; go on with").next();
                first = cause.unwrap_or_default().to_owned();
            }
        }
        Ok((Apart::Uid, first))
    }

    /// The words for bazooka-pm, or with `--build` for bazooka-rm.
    pub fn words(self, dashes: &str) -> Vec<OsString> {
        match self {
            Apart::Without("") | Apart::No => Vec::new(),
            Apart::Without(parts) => vec![format!("{dashes}without").into(), parts.into()],
            Apart::Uid => vec![format!("{dashes}isolation").into(), "uid".into()],
        }
    }

    /// What a person should know of it.
    pub fn warning(self, cause: &str) -> Option<String> {
        let less = match self {
            Apart::Without("") => return None,
            Apart::Without(parts) => format!("without {}", parts.replace(',', " and ")),
            Apart::Uid => "with no sandbox, as users of their own that see this machine".to_owned(),
            Apart::No => {
                let words = "warning: without root, instances run as your own user with no isolation and no memory limit";
                return Some(words.to_owned());
            }
        };
        Some(format!("warning: instances and builds run {less}: {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_without_is_told_to_the_daemons_and_to_the_person() {
        assert_eq!(Apart::Without("").words("--"), [""; 0]);
        assert_eq!(Apart::Without("").warning(""), None);
        assert_eq!(Apart::Without("limits,fence").words("--build-"), ["--build-without", "limits,fence"]);
        assert_eq!(Apart::Uid.words("--"), ["--isolation", "uid"]);
        let said = Apart::Without("limits,fence").warning("no groups").expect("it is less");
        assert_eq!(said, "warning: instances and builds run without limits and fence: no groups");
        assert!(
            Apart::Uid.warning("no rights").is_some_and(|said| said.contains("see this machine: no rights"))
        );
    }
}
