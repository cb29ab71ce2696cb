//! The rows of the cluster as a whole: its schema, the elected converger, and `unfreeze`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{names::HostName, store::StoreError};

/// The schema version of this build.
///
/// From version 2 on, config vars are sealed, and from version 3 on a service has the port of its row under `ports/`
/// alone ([`ports`](crate::ports)). From version 4 on, config vars are bound to the registration of their app, and the
/// wraps of their keys are private. Older versions may write beside it until `bazooka migrate`: a bazooka-rm seals what
/// version 1 left in plain text, writes the rows of ports that version 2 left out, and seals anew what version 3 sealed.
/// A new cluster begins at this version, and takes no part of an older one.
pub const SCHEMA_VERSION: u32 = 4;

/// `schema`: which versions may read and write the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The version that the state was last migrated to.
    pub version: u32,
    /// The lowest version that may read the state.
    pub min_reader: u32,
    /// The lowest version that may change the state.
    pub min_writer: u32,
    /// The cluster's unique name, independent of the store that holds it; none if an earlier version set it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The time of the last restoration from a backup; none if there was no restoration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for Schema {
    fn default() -> Self {
        Schema {
            version: SCHEMA_VERSION,
            min_reader: SCHEMA_VERSION,
            min_writer: SCHEMA_VERSION,
            cluster: None,
            restored: None,
            extra: Extra::new(),
        }
    }
}

impl Schema {
    /// Returns the cluster's incarnation: which cluster this is, and since which restoration.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { cluster: self.cluster.clone(), restored: self.restored }
    }

    /// Checks that this build may read the cluster's rows.
    ///
    /// # Errors
    /// [`StoreError::SchemaTooNew`].
    pub fn check_reader(&self) -> Result<(), StoreError> {
        if self.min_reader <= SCHEMA_VERSION {
            return Ok(());
        }
        let (version, min_reader) = (self.version, self.min_reader);
        Err(StoreError::SchemaTooNew { version, min_reader, ours: SCHEMA_VERSION })
    }
}

/// The incarnation of a cluster: which cluster, and since which restoration.
///
/// Rows of another incarnation say nothing about what ran before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// [`Schema::cluster`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// [`Schema::restored`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
}

/// `election/converger`, leased: the elected converger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The name of the process, for people.
    pub name: String,
    /// The time of its election.
    pub since: Timestamp,
    /// The base URL of its endpoint.
    #[serde(default)]
    pub url: String,
    /// Set while so many hosts are gone at once that the converger marks none of them lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The fact that more hosts vanished at once than the converger gives up by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The time since when that is so.
    pub since: Timestamp,
    /// The hosts that are gone.
    pub hosts: BTreeSet<HostName>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `unfreeze`: an operator's acknowledgement that these hosts are gone for good, though too many vanished at once.
///
/// It holds until each of these hosts has returned or has no rows left; then the converger deletes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfreeze {
    /// The hosts.
    pub hosts: BTreeSet<HostName>,
    /// The name of the operator.
    pub by: String,
    /// The time of the acknowledgement.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
