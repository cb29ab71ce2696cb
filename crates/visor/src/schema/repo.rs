//! The rows that bazooka-rm writes of itself and of the repositories that it serves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{
    names::{Digest, HostName, RevId},
    seal::PublicKey,
};

/// `rms/X`, leased: a bazooka-rm that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rm {
    /// The base URL of its endpoint: `{url}/A.git`, `{url}/slugs/SHA256`.
    pub url: String,
    /// The version of the build.
    pub version: String,
    /// The schema version that its build writes; none for an early build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The base URL for pushes over SSH; none if it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_url: Option<String>,
    /// The public key that config vars are sealed to for this rm; none if its version cannot open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<PublicKey>,
    /// The keys that this one replaced. Their wraps are deleted once the new key has a wrap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_seal_keys: Vec<PublicKey>,
    /// The number of an app's last releases that it keeps; none for an early build, which keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_releases: Option<u32>,
    /// The most bytes that an app's releases, revs and config vars may take; none for an early build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_bytes: Option<u64>,
    /// The most instances that an app's formation may ask for; none for an early build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_instances: Option<u32>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Rm {
    /// Returns an rm with an endpoint and nothing else.
    pub fn at(url: impl Into<String>) -> Rm {
        let (url, version) = (url.into(), String::new());
        Rm {
            url,
            version,
            schema: None,
            ssh_url: None,
            seal_key: None,
            retired_seal_keys: Vec::new(),
            keep_releases: None,
            app_bytes: None,
            app_instances: None,
            extra: Extra::new(),
        }
    }
}

/// `asks/X`, leased: the secret with which clients ask rm X to open an env.
///
/// Whoever can read this row may ask.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The secret; each process of the rm makes a new one.
    pub word: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Ask {
    /// Returns the row with this secret.
    pub fn new(word: impl Into<String>) -> Ask {
        Ask { word: word.into(), extra: Extra::new() }
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

/// `repos/A`: how far an app's repository is set up; each field is set once its step is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// The URL to push to.
    pub url: String,
    /// True once the bare repository exists.
    #[serde(default)]
    pub created: bool,
    /// True once its configuration is written.
    #[serde(default)]
    pub configured: bool,
    /// True once its hooks are in place.
    #[serde(default)]
    pub hooks: bool,
    /// The registration that it belongs to ([`App::token`](super::App::token)).
    #[serde(default)]
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `turns/A`, leased: the push to an app that is under way.
///
/// An app has one at a time, whichever rm takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The rm that takes the push.
    pub rm: HostName,
    /// The process of that rm; its next process sees by it that the turn's owner has ended.
    pub process: String,
    /// The id of the push.
    pub push: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `stored/A`: what the file storage has of an app's repository, where several rms share one.
///
/// A push moves this row. It defines what each branch names, and each rm brings its own copy up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The registration that it belongs to ([`App::token`](super::App::token)).
    pub token: String,
    /// The number of pushes that have moved it.
    pub generation: u64,
    /// The SHA-256 of the manifest in the file storage that names the packs.
    pub manifest: Digest,
    /// The branches by full name.
    pub branches: BTreeMap<String, Branch>,
    /// The branch that a clone checks out.
    pub head: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A branch of a stored repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The commit that the branch names.
    pub commit: RevId,
    /// The push that moved it, equal to the token of its release; empty if the branch is older than this row.
    #[serde(default)]
    pub push: String,
    /// True if that push asked for no release.
    #[serde(default)]
    pub no_rollout: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Branch {
    /// Returns the token of the release that replaces the push's own, if that died. All rms derive the same token, so
    /// only one release is made.
    pub fn again(&self) -> String {
        format!("{}-again", self.push)
    }
}
