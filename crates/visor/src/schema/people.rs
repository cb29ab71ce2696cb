//! The rows of people and daemons: identities, rights, SSH keys and the audit.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{AppName, UserName};

/// `access/A`: the users who may change an app, besides operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The grants by user.
    #[serde(default)]
    pub users: BTreeMap<UserName, Granted>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A right that was granted, by whom and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The name of the identity that granted it.
    pub by: String,
    /// The time of the grant.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `identities/NAME`: a person or a daemon that takes part.
///
/// A certificate alone admits nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// True if the identity has operator rights: all apps, hosts and access control.
    #[serde(default)]
    pub operator: bool,
    /// The name of the identity that admitted it.
    pub by: String,
    /// The time of the admission.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `keys/USER`: the SSH keys with which a user pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeys {
    /// The keys by fingerprint (`SHA256:...`, as `ssh-keygen -l` prints it).
    #[serde(default)]
    pub keys: BTreeMap<String, SshKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A public SSH key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKey {
    /// The key type and the key in OpenSSH's format, without a comment.
    pub key: String,
    /// The owner's name for the key.
    #[serde(default)]
    pub comment: String,
    /// The time when it was added.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `audit/NAME/ID`: a record of what an identity did, written in the same transaction.
///
/// etcd lets no identity write under another's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// The action in the words of the command, never with a config var's value.
    pub what: String,
    /// The app that the action concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The identity that asked, where the writer is a daemon acting for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The machine's name as the person's command reports it, or the address that a daemon saw.
    #[serde(default)]
    pub from: String,
    /// `read` or `refused`, where nothing was changed; newer versions may have other words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The time by the writer's clock.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The most characters of an entry's text that a reader shows or stores. Its writer may be anyone who may write under its
/// name.
const SHOWN: usize = 1_000;

impl AuditEntry {
    /// The kind of an entry about config vars that were read.
    pub const READ: &'static str = "read";
    /// The kind of an entry about a request that was refused.
    pub const REFUSED: &'static str = "refused";

    /// Returns the entry with each text cut to a length that a reader can bear.
    pub fn bounded(mut self) -> Self {
        let texts = [&mut self.what, &mut self.from].into_iter().chain(&mut self.by).chain(&mut self.kind);
        for text in texts {
            if let Some((end, _)) = text.char_indices().nth(SHOWN) {
                text.truncate(end);
            }
        }
        self.extra = Extra::new();
        self
    }
}
