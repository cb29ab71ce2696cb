//! A stored repository's manifest, and the mark with the state of this rm's copy.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use visor::{names::Digest, schema::Stored};

use crate::layout;

/// The mark's file name in a repository.
const MARK: &str = "bazooka-stored.json";

/// The contents of a stored repository. Should the coordinator be lost, manifest and packs are enough to make the
/// repository again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The app's name.
    pub app: String,
    /// The generation, as [`Stored::generation`].
    pub generation: u64,
    /// The commit of each branch.
    pub branches: BTreeMap<String, String>,
    /// The branch that a clone checks out.
    pub head: String,
    /// The packs, oldest first; together they have every object that the branches reach.
    pub packs: Vec<Digest>,
}

/// The state of this rm's copy of a repository. Written after the copy, so it never claims too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The manifest that the branches equal; `None` if they equal none, or an older one.
    pub manifest: Option<Digest>,
    /// The packs that the copy has.
    pub packs: Vec<Digest>,
}

impl Mark {
    /// Reads a repository's mark. A missing or unreadable mark is an empty one.
    pub fn read(repository: &Path) -> Mark {
        fs::read(repository.join(MARK))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Writes a repository's mark.
    ///
    /// # Errors
    /// If the disk fails; the mark is then unchanged.
    pub fn write(&self, repository: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).expect("digests are always valid JSON");
        layout::replace(&repository.join(MARK), &bytes)
    }

    /// True if the copy equals this stored row.
    pub fn is_of(&self, row: &Stored) -> bool {
        self.manifest.as_ref() == Some(&row.manifest)
    }
}
