//! What bazooka-rm writes of itself and of the repositories that it serves.

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
    /// The base of its endpoint: `{url}/A.git`, `{url}/slugs/SHA256`.
    pub url: String,
    /// Its version.
    pub version: String,
    /// The schema's version that its build writes; none: an early one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The base of the URL that is pushed to over SSH, where that can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_url: Option<String>,
    /// What config vars are sealed to for it; none: it is of a version that can't open them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<PublicKey>,
    /// The keys that this one replaced. Their wraps go once there is one for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_seal_keys: Vec<PublicKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Rm {
    /// One with an endpoint and no more.
    pub fn at(url: impl Into<String>) -> Rm {
        let (url, version) = (url.into(), String::new());
        Rm {
            url,
            version,
            schema: None,
            ssh_url: None,
            seal_key: None,
            retired_seal_keys: Vec::new(),
            extra: Extra::new(),
        }
    }
}

/// `asks/X`, leased: what an rm wants to hear from whoever asks it to open something. Who can read this row may ask.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The word. Another with each process.
    pub word: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Ask {
    /// With this word.
    pub fn new(word: impl Into<String>) -> Ask {
        Ask { word: word.into(), extra: Extra::new() }
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

/// `repos/A`: how far an app's repository is set up. Each field is set when that is so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repo {
    /// Where to push.
    pub url: String,
    /// The bare repository is there.
    #[serde(default)]
    pub created: bool,
    /// Its configuration is written.
    #[serde(default)]
    pub configured: bool,
    /// Its hooks are in place.
    #[serde(default)]
    pub hooks: bool,
    /// The registration that it belongs to ([`App::token`](super::App::token)).
    #[serde(default)]
    pub token: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `turns/A`, leased: the push to an app that is under way. There is one at a time, whichever rm takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The rm that takes it.
    pub rm: HostName,
    /// That rm's process, so that its next one knows the turn for one that has ended.
    pub process: String,
    /// The push.
    pub push: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `stored/A`: what the file storage has of an app's repository, where several rms share one. This row is
/// what a push moves: a branch names what is said here, and each rm brings its own copy up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The registration that it belongs to ([`App::token`](super::App::token)).
    pub token: String,
    /// Counts the pushes that moved it.
    pub generation: u64,
    /// The SHA-256 of the manifest in the file storage that names the packs.
    pub manifest: Digest,
    /// Each branch, by its whole name.
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
    /// What it names.
    pub commit: RevId,
    /// The push that moved it, which is its release's token; empty: it was there before.
    #[serde(default)]
    pub push: String,
    /// That push asked for no release.
    #[serde(default)]
    pub no_rollout: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
