//! A stored repository's manifest, and the mark that says how far this rm's own copy has come.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use visor::{names::Digest, schema::Stored};

use crate::layout;

/// The mark's file in a repository.
const MARK: &str = "bazooka-stored.json";

/// What a repository is made of, as it is stored. With the packs it is all that a repository can be made again from,
/// should the coordinator be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The app's name.
    pub app: String,
    /// [`Stored::generation`].
    pub generation: u64,
    /// Each branch's commit.
    pub branches: BTreeMap<String, String>,
    /// The branch that a clone checks out.
    pub head: String,
    /// The packs, oldest first; together they have all that the branches reach.
    pub packs: Vec<Digest>,
}

/// What this rm's copy of a repository has in it. Written last, so that it never says too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The manifest that the branches are of; none: an earlier one's, or none's at all.
    pub manifest: Option<Digest>,
    /// The packs that were taken in.
    pub packs: Vec<Digest>,
}

impl Mark {
    /// Reads a repository's; one that isn't there or can't be read says nothing.
    pub fn read(repository: &Path) -> Mark {
        fs::read(repository.join(MARK))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Writes a repository's.
    ///
    /// # Errors
    /// If the disk fails; it is as it was then.
    pub fn write(&self, repository: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).expect("digests are always valid JSON");
        layout::replace(&repository.join(MARK), &bytes)
    }

    /// Whether the copy is of this stored state.
    pub fn is_of(&self, row: &Stored) -> bool {
        self.manifest.as_ref() == Some(&row.manifest)
    }
}
