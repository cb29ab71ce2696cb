//! etcd's users and roles, as a store has them.
//!
//! Owns the vocabulary. `access` decides what users and roles there should be; each store carries out a step.

use std::collections::{BTreeMap, BTreeSet};

/// A right of a role: to read, or to read and write, one key or all with a prefix.
///
/// Keys are whole, with the cluster's prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// The key, or the first key of the range.
    pub key: String,
    /// True if the range extends to the end of that prefix.
    pub prefix: bool,
    /// True if it allows writing, too.
    pub write: bool,
}

/// Users and roles: as wanted, or as etcd has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// The rights of each role.
    pub roles: BTreeMap<String, BTreeSet<Permission>>,
    /// The roles of each user.
    pub users: BTreeMap<String, BTreeSet<String>>,
}

/// One step from etcd's users and roles towards what they should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is named for etcd's own operation")]
pub enum AuthOp {
    AddRole(String),
    GrantPermission(String, Permission),
    RevokePermission(String, Permission),
    AddUser(String),
    GrantRole { user: String, role: String },
    RevokeRole { user: String, role: String },
    DeleteUser(String),
    DeleteRole(String),
}
