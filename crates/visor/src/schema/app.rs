//! What bazooka-rm writes of an app: its registration, its revs and its domains.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{AppName, Digest, ProcName};

/// `apps/A`: a versioned codebase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Who registered it.
    pub owner: String,
    /// When.
    pub created_at: Timestamp,
    /// Tells one registration of a name from another, and a lost reply's own write from a rival's.
    pub token: String,
    /// Set while the app is being taken down: nothing is placed any more, and all of it goes.
    #[serde(default)]
    pub destroying: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A built rev in the file storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slug {
    /// Its name and its check: the SHA-256 of the compressed archive.
    pub sha256: Digest,
    /// The compressed archive's length.
    pub size_bytes: u64,
}

/// `apps/A/revs/R`: a commit, built once. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rev {
    /// What was built.
    pub slug: Slug,
    /// The Procfile: each proc's command, a line for `/bin/sh -c`.
    pub procs: BTreeMap<ProcName, String>,
    /// How it was built: `node`, `python`, `rust`, `static`, `bin/build` or `procfile`.
    pub kind: String,
    /// Who pushed it.
    pub by: String,
    /// When it was registered.
    pub at: Timestamp,
    /// The commit's first line.
    #[serde(default)]
    pub subject: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `domains/FQDN`: a name that leads to an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// The app.
    pub app: AppName,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
