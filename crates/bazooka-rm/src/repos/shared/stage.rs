//! A push's way into the file storage: packs and manifest first, then the row.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use visor::{
    names::{AppName, RevId},
    schema::{Branch, Extra, Stored},
    snapshot::Versioned,
    store::Revision,
    visor::{Refusal, VisorError},
};

use super::{
    Result, Shared,
    cache::Publishing,
    copies::{Snapshot, StoredObjects},
};
use crate::{
    refs::BRANCHES,
    repos::origin::{Origin, OriginError, PublishError, Published, Pushed, Staged},
};

/// A move of the row, for which all objects are in the storage.
#[derive(Clone, Debug)]
pub(super) struct RowMove {
    /// The revision of the row that the move was decided from.
    pub before: Option<Revision>,
    pub after: Stored,
    objects: StoredObjects,
}

/// The branches to store, and the quarantined objects that they reach.
struct Branches<'a> {
    moved: BTreeMap<String, Branch>,
    quarantine: Option<&'a Path>,
}

/// A push whose objects are all in the storage; only the row has still to move.
pub(super) struct StagedPush {
    shared: Shared,
    app: AppName,
    push: String,
    branches: Vec<String>,
    moving: RowMove,
}

/// A push that has moved the row.
struct PublishedPush {
    staged: StagedPush,
    publishing: Publishing,
}

impl Shared {
    /// Stores a push's objects and manifest without moving the row. The copy must have been updated within this turn.
    ///
    /// # Errors
    /// [`OriginError`]; unnamed objects may be left in the storage.
    pub(super) async fn stage_push(&self, pushed: &Pushed<'_>) -> Result<StagedPush> {
        let branch = Branch {
            commit: pushed.rev.clone(),
            push: pushed.push.to_owned(),
            no_rollout: pushed.options.no_rollout,
            extra: Extra::new(),
        };
        let names: Vec<String> = pushed.set.updates.iter().map(|update| update.name.clone()).collect();
        let moved = names.iter().map(|name| (name.clone(), branch.clone())).collect();
        let moving = self.stage_row(pushed.app, &Branches { moved, quarantine: pushed.quarantine }).await?;
        Ok(StagedPush {
            shared: self.clone(),
            app: pushed.app.clone(),
            push: pushed.push.to_owned(),
            branches: names,
            moving,
        })
    }

    /// Stores the objects of a repository that is not stored yet, without writing the row.
    ///
    /// # Errors
    /// As [`Shared::stage_push`].
    pub(super) async fn stage_adopted(&self, app: &AppName) -> Result<RowMove> {
        self.stage_row(app, &Branches { moved: BTreeMap::new(), quarantine: None }).await
    }

    async fn stage_row(&self, app: &AppName, pushed: &Branches<'_>) -> Result<RowMove> {
        let token = self.token(app)?;
        let row: Option<Versioned<Stored>> = self.visor.stored(app).await?;
        let before = row.as_ref().map(|row| row.mod_revision);
        let row = row.map(|row| row.value).filter(|row| row.token == token);
        if row.as_ref().is_some_and(|row| !self.copies.is_at(app, row)) {
            return Err(VisorError::Refused(Refusal::RepoMoved(app.clone())).into());
        }
        let mut branches = match &row {
            Some(row) => row.branches.clone(),
            // The repository is stored for the first time, together with the branches that it already had.
            None => adopted(self.copies.tips(app)?)?,
        };
        branches.extend(pushed.moved.clone());
        let head = pushed.moved.keys().next_back().cloned();
        let head =
            head.or_else(|| row.as_ref().map(|row| row.head.clone())).unwrap_or_else(|| BRANCHES[0].into());
        let generation = row.as_ref().map_or(0, |row| row.generation) + 1;
        let snapshot = Snapshot {
            app,
            token: &token,
            row: row.as_ref(),
            branches: &branches,
            moved: &pushed.moved,
            head: &head,
            generation,
            quarantine: pushed.quarantine,
        };
        let objects = self.copies.store(&snapshot).await?;
        let extra = row.map(|row| row.extra).unwrap_or_default();
        let manifest = objects.manifest.clone();
        let after = Stored { token, generation, manifest, branches, head, extra };
        Ok(RowMove { before, after, objects })
    }
}

fn adopted(tips: BTreeMap<String, String>) -> Result<BTreeMap<String, Branch>> {
    let mut branches = BTreeMap::new();
    for (name, commit) in tips {
        let commit: RevId = commit.parse().map_err(OriginError::Commit)?;
        // Without a push id, the commit counts as handled.
        let branch = Branch { commit, push: String::new(), no_rollout: true, extra: Extra::new() };
        branches.insert(name, branch);
    }
    Ok(branches)
}

#[async_trait]
impl Staged for StagedPush {
    async fn publish(self: Box<Self>) -> Result<Arc<dyn Published>, PublishError> {
        let cache = self.shared.caches.of(&self.app);
        let _alone = cache.alone().await;
        self.shared.visor.store_repo(&self.app, &self.push, self.moving.before, &self.moving.after).await?;
        let publishing = Publishing::begin(cache.clone());
        Ok(Arc::new(PublishedPush { staged: *self, publishing }))
    }
}

#[async_trait]
impl Published for PublishedPush {
    async fn settle(&self) {
        let (app, copies) = (&self.staged.app, &self.staged.shared.copies);
        {
            let _alone = self.publishing.cache().alone().await;
            copies.mark(app, &self.staged.moving.objects).await;
            self.publishing.end();
        }
        self.staged.clear().await;
        for branch in &self.staged.branches {
            copies.point_head(app, branch);
        }
    }

    /// The row has moved, so the push counts. The row is the truth for this copy, whether or not git has moved the
    /// branch.
    async fn close(&self) -> bool {
        self.publishing.end();
        if let Err(error) = self.staged.shared.refresh(&self.staged.app).await {
            tracing::warn!(app = %self.staged.app, error = %error, "a repository can't be brought up to what is stored");
        }
        true
    }
}

impl StagedPush {
    /// Deletes objects of failed pushes, and packs that were merged. Must run within the push's turn.
    async fn clear(&self) {
        let RowMove { after, objects, .. } = &self.moving;
        let (app, copies) = (&self.app, &self.shared.copies);
        let litter = async {
            let litter = copies.litter(app, after, objects).await?;
            if litter.0.is_empty() {
                return Ok(());
            }
            // Another rm may have moved the row again while this one was paused.
            let row = self.shared.visor.stored(app).await?;
            if row.is_some_and(|row| row.value == *after) {
                copies.remove(litter).await?;
            }
            Ok::<(), OriginError>(())
        };
        if let Err(error) = litter.await {
            tracing::warn!(app = %app, error = %error, "can't clear the file storage; a later push will");
        }
    }
}
