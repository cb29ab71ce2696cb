//! The deletion of an app's old releases, config vars and revs.
//!
//! Owns the guards. `rules::pruning` decides what may go from a view; by the time of the deletion a rival may have
//! referred to it: a rollback, a push, a scale, a placement. Each of them changes a row that the deletion compares, and
//! requires what it refers to itself, so that one of the two is refused whatever their order.

use std::collections::BTreeMap;

use crate::{
    keys::{self, Key},
    names::{AppName, EnvRef, ReleaseId, RevId},
    snapshot::AppView,
    store::Revision,
    visor::{Change, Committed, Result, Visor},
};

/// The number of rows that one transaction deletes. Config vars are three rows, and etcd takes 128 operations.
const PIECE: usize = 40;

/// Rows of an app that may go, each with the revision of its last write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doomed {
    /// The releases.
    pub releases: BTreeMap<ReleaseId, Revision>,
    /// The config vars, whose wraps go too.
    pub envs: BTreeMap<EnvRef, Revision>,
    /// The revs.
    pub revs: BTreeMap<RevId, Revision>,
}

/// The number of rows that were deleted, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The releases.
    pub releases: usize,
    /// The config vars.
    pub envs: usize,
    /// The revs.
    pub revs: usize,
    /// The revision of the last deletion; 0 if nothing was deleted.
    pub until: Revision,
}

impl Doomed {
    /// Reports whether nothing may go.
    pub fn is_empty(&self) -> bool {
        self.releases.is_empty() && self.envs.is_empty() && self.revs.is_empty()
    }

    fn rows(&self, app: &AppName) -> Vec<(Key, Revision)> {
        let releases = self.releases.iter().map(|(id, at)| (Key::Release(app.clone(), *id), *at));
        let envs = self.envs.iter().map(|(env, at)| (Key::Env(app.clone(), *env), *at));
        let revs = self.revs.iter().map(|(rev, at)| (Key::Rev(app.clone(), rev.clone()), *at));
        releases.chain(envs).chain(revs).collect()
    }
}

impl Visor {
    /// Deletes rows of an app, piece by piece, unless a rival has changed meanwhile what their deletion was decided from.
    ///
    /// `view` is the app's, complete up to revision `seen`. Returns what was deleted; after a rival's write that is less
    /// than was asked for, and a newer view decides again. Several rms may do this at once.
    ///
    /// # Errors
    /// The store's; pieces before the failing one are deleted.
    pub async fn prune(
        &self,
        name: &AppName,
        view: &AppView,
        seen: Revision,
        doomed: &Doomed,
    ) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for piece in doomed.rows(name).chunks(PIECE) {
            let mut change = guarded(name, view, seen);
            for (key, at) in piece {
                change = change.unchanged(key, *at).delete(key);
                if let Key::Env(app, env) = key {
                    change = change.delete(&Key::Wraps(app.clone(), *env));
                    change = change.delete(&Key::EarlierWraps(app.clone(), *env));
                }
            }
            match self.commit(change).await? {
                Committed::Done(revision) => pruned.until = revision,
                Committed::Conflict => break,
            }
            for (key, _) in piece {
                match key {
                    Key::Release(..) => pruned.releases += 1,
                    Key::Env(..) => pruned.envs += 1,
                    _ => pruned.revs += 1,
                }
            }
        }
        Ok(pruned)
    }
}

/// Returns the condition that nothing has come to refer to an older release since the view was read.
fn guarded(name: &AppName, view: &AppView, seen: Revision) -> Change {
    let last = view.releases.keys().next_back().map_or(0, |last| last.0);
    let next = ReleaseId(last.saturating_add(1));
    Change::new()
        .as_read(&Key::App(name.clone()), view.app.as_ref())
        .as_read(&Key::Head(name.clone()), view.head.as_ref())
        .as_read(&Key::Trial(name.clone()), view.trial.as_ref())
        // Each new release takes the next number.
        .absent(&Key::Release(name.clone(), next))
        .none_since(keys::formation_of(name), seen)
        .none_since(keys::instances_of(name), seen)
}
