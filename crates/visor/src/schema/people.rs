//! Who takes part, what each may change, and what each did.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::names::{AppName, UserName};

/// `access/A`: who may change an app, beside operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// By name.
    #[serde(default)]
    pub users: BTreeMap<UserName, Granted>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Who gave a right, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `identities/NAME`: a person or a daemon that takes part. A certificate alone lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// It may do what concerns the whole cluster: hosts, and each app.
    #[serde(default)]
    pub operator: bool,
    /// Who let it in.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `keys/USER`: the SSH keys with which somebody pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeys {
    /// By fingerprint (`SHA256:...`, as `ssh-keygen -l` says it).
    #[serde(default)]
    pub keys: BTreeMap<String, SshKey>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKey {
    /// Its kind and itself, in OpenSSH's form, without a comment.
    pub key: String,
    /// What its owner calls it.
    #[serde(default)]
    pub comment: String,
    /// When it was added.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `audit/NAME/ID`: what somebody did, written in the transaction that did it. etcd lets nobody write under another's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// What, as the command says it; never a config var's value.
    pub what: String,
    /// The app that it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// For whom, where the writer is a daemon that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The machine's name, as a person's command says it, or the address that a daemon saw.
    #[serde(default)]
    pub from: String,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
