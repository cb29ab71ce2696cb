//! Isolation of a local cluster's instances and builds: the strongest that this machine allows.
//!
//! Owns trying it with `bazooka-pm probe`. A daemon never falls back to weaker isolation than it is configured for.
//! `dev` does, because it often runs in a developer's container without control groups; it warns about what is
//! missing.

use std::{ffi::OsString, path::Path, process::Stdio};

use tokio::process::Command;

use crate::failure::{Failure, Kind, Result};

/// The parts of a sandbox to leave out, in the order in which they are tried: none first.
const WITHOUT: [&str; 3] = ["", "fence", "limits,fence"];

/// The isolation of instances and builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    /// Sandboxes without these parts.
    Without(&'static str),
    /// A user for each instance.
    Uid,
    /// No isolation, because `dev` doesn't run as root.
    No,
}

impl Apart {
    /// Tries each isolation, and returns the first that works, with the reason why full sandboxes don't.
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
                // The rest of the message advises how to continue with less, which this loop finds out itself.
                let cause = said.trim().trim_start_matches("Error: ").split("; go on with").next();
                first = cause.unwrap_or_default().to_owned();
            }
        }
        Ok((Apart::Uid, first))
    }

    /// Returns the arguments for bazooka-pm; for bazooka-rm, `dashes` is `--build-`.
    pub fn words(self, dashes: &str) -> Vec<OsString> {
        match self {
            Apart::Without("") | Apart::No => Vec::new(),
            Apart::Without(parts) => vec![format!("{dashes}without").into(), parts.into()],
            Apart::Uid => vec![format!("{dashes}isolation").into(), "uid".into()],
        }
    }

    /// Returns the warning to print; `None` if the sandboxes are complete.
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
