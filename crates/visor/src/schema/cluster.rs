//! The rows of the cluster as a whole: its schema, and the elected converger.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Extra;
use crate::{names::HostName, store::StoreError};

/// This build's schema version. From version 2 on config vars are sealed. Version 1 may write beside it: what it
/// doesn't know it can't read, and so leaves alone; what it writes in plain text is sealed by a bazooka-rm.
pub const SCHEMA_VERSION: u32 = 2;

/// `schema`: which versions may read and write the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The version that the state was last migrated to.
    pub version: u32,
    /// The lowest version that understands it.
    pub min_reader: u32,
    /// The lowest version that may change it.
    pub min_writer: u32,
    /// Names the cluster, whatever store it lies in; none: it was set up by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// When it was last restored from a backup, if it ever was.
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
            min_reader: 1,
            min_writer: 1,
            cluster: None,
            restored: None,
            extra: Extra::new(),
        }
    }
}

impl Schema {
    /// Which cluster this is, and since which restoration.
    pub fn era(&self) -> Era {
        Era { cluster: self.cluster.clone(), restored: self.restored }
    }

    /// Checks that this build understands the cluster's rows.
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

/// Which cluster a word is of, and since which restoration: another one's says nothing of what was before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// [`Schema::cluster`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// [`Schema::restored`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
}

/// `election/converger`, leased: who places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The process, for people.
    pub name: String,
    /// Since when.
    pub since: Timestamp,
    /// The base of its endpoint.
    #[serde(default)]
    pub url: String,
    /// Set while so many hosts are gone at once that none of them is taken for lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// More hosts vanished at once than a converger gives up by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Since when.
    pub since: Timestamp,
    /// The hosts that are gone.
    pub hosts: BTreeSet<HostName>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `unfreeze`: an operator's word that these hosts are gone for good, though too many went at once.
///
/// It holds until each of them has returned or left nothing behind; the converger takes it away then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfreeze {
    /// The hosts.
    pub hosts: BTreeSet<HostName>,
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}
