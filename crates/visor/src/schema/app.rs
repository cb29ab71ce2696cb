//! The rows of an app that bazooka-rm writes: its registration, its revs and its domains.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{AppName, Digest, ProcName};

/// `apps/A`: a versioned codebase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The name of the person who registered it.
    pub owner: String,
    /// The time of the registration.
    pub created_at: Timestamp,
    /// Tells two registrations of the same name apart, and a caller's own write whose reply was lost from a rival's.
    pub token: String,
    /// True while the app is being destroyed: the converger places nothing more, and all its rows will be deleted.
    #[serde(default)]
    pub destroying: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A built rev in the file storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slug {
    /// The SHA-256 of the compressed archive: its name, and the check of its content.
    pub sha256: Digest,
    /// The length of the compressed archive.
    pub size_bytes: u64,
}

/// `apps/A/revs/R`: a commit, built once; the row never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rev {
    /// The built slug.
    pub slug: Slug,
    /// The Procfile: each proc's command, a line for the shell.
    pub procs: BTreeMap<ProcName, String>,
    /// The kind of the build: `node`, `python`, `rust`, `static`, `bin/build` or `procfile`.
    pub kind: String,
    /// The name of the person who pushed it.
    pub by: String,
    /// The time of the registration.
    pub at: Timestamp,
    /// The first line of the commit's message.
    #[serde(default)]
    pub subject: String,
    /// Fields of a newer version, and `spellings`: the Procfile's spelling of each proc whose name is spelled otherwise.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The field of the spellings.
const SPELLINGS: &str = "spellings";

impl Rev {
    /// Returns a proc's spelling in the Procfile (`Mail_Worker` for `mail-worker`); none if it is the name.
    pub fn spelling(&self, proc: &ProcName) -> Option<&str> {
        let spelling = self.extra.get(SPELLINGS)?.get(proc.as_str())?.as_str()?;
        ProcName::of_spelling(spelling).is_ok_and(|name| name == *proc).then_some(spelling)
    }

    /// Adds the Procfile's spellings of procs. Those that are the name itself are left out.
    pub fn spell(&mut self, spellings: &BTreeMap<ProcName, String>) {
        let other = spellings.iter().filter(|(proc, spelling)| proc.as_str() != *spelling);
        let other: Extra =
            other.map(|(proc, spelling)| (proc.to_string(), spelling.clone().into())).collect();
        if !other.is_empty() {
            self.extra.insert(SPELLINGS.to_owned(), other.into());
        }
    }
}

/// `domains/FQDN`: a domain that leads to an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// The app.
    pub app: AppName,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
