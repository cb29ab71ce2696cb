//! The proxy's image of the cluster: the rows that routes and the directory are made from, and no others.
//!
//! Owns the choice of rows. The coordinator also holds all config vars, releases and stories of the cluster, which
//! would take a proxy's memory for nothing. The mirror still lists and watches everything, because only one watch of all
//! keys tells the revision up to which nothing is missing, and that revision is what `applied` in the proxy's row means.
//! Revs count only until the cluster is migrated to version 3, and are dropped then.

use visor::{
    keys::Key,
    ports::drop_revs,
    rows::RowKind,
    snapshot::Snapshot,
    store::{Entry, Image, Revision},
};

use crate::{directory, routes};

/// An image of the rows that a proxy looks at.
#[derive(Clone, Debug, Default)]
pub struct RoutingImage(Snapshot);

impl RoutingImage {
    /// Returns the rows. Those of other kinds are absent.
    pub fn snapshot(&self) -> &Snapshot {
        &self.0
    }
}

/// Reports whether a proxy looks at rows of this kind.
pub fn is_looked_at(kind: RowKind) -> bool {
    routes::concerns(kind) || directory::concerns(kind)
}

impl Image for RoutingImage {
    fn holds(&self, key: &str) -> bool {
        key.parse::<Key>().is_ok_and(|key| is_looked_at(key.kind()))
    }

    fn fresh(&self) -> RoutingImage {
        RoutingImage(self.0.fresh())
    }

    fn put(&mut self, entry: &Entry) {
        self.0.put(entry);
        drop_revs(&mut self.0, &entry.key);
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        self.0.delete(key, revision);
    }

    fn set_revision(&mut self, revision: Revision) {
        self.0.set_revision(revision);
    }
}
