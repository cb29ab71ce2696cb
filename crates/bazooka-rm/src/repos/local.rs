//! Repositories on this rm's disk alone.
//!
//! Owns the way from a moved branch to its release when a push dies in between. Git moves a branch after the first hook
//! has accepted the push, even if the pusher has left. If the pusher, git or the rm dies between that and the second
//! hook, the branch names a commit that was built, registered and verified, but does not run. Such a commit is found by
//! comparing the branches with the commits that were already handled ([`settled`]).
//!
//! Three kinds of commits are left alone: a handled one (a rollback leaves the branch where it is, and a push with
//! `no-rollout` is recorded before the branch moves), one that was never registered, and, in a repository that has no
//! record at all, one that has been head before.

mod settled;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use visor::{
    names::{AppName, RevId},
    schema::{ReleaseStatus, Repo, Turn},
    snapshot::AppView,
    transitions::releases::NewRelease,
    visor::VisorError,
};

use super::{
    Case, Own, Step,
    disk::{self, BranchError, point_head, tips},
    origin::{LeftBehind, OpenError, Origin, OriginError, PublishError, Published, Pushed, Staged},
};
use crate::{
    apps::Apps,
    layout::Layout,
    refs::{ChangeSet, Options},
    sources::Sources,
    storage::StorageError,
    turns::Turns,
};

/// The action that a branch's commit needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    /// No action: the commit was handled, or is not registered.
    Nothing,
    /// A record that the commit was handled.
    Note,
    /// A release.
    Release,
}

/// The apps whose branches may have moved without their release.
type Suspects = Arc<Mutex<BTreeSet<AppName>>>;

/// The repositories of one rm that shares none.
pub struct Local {
    layout: Layout,
    own: Own,
    apps: Apps,
    turns: Arc<Turns>,
    sources: Sources,
    suspects: Suspects,
}

impl Local {
    /// Returns the repositories below a state folder.
    pub fn new(layout: Layout, own: Own, apps: Apps, turns: Arc<Turns>, sources: Sources) -> Local {
        Local { layout, own, apps, turns, sources, suspects: Suspects::default() }
    }
}

#[async_trait]
impl Origin for Local {
    async fn open(&self, app: &AppName, repo: &Repo) -> Result<PathBuf, OpenError> {
        if repo.url == self.own.repo_url(app) {
            Ok(self.layout.repo(app))
        } else {
            Err(OpenError::Elsewhere(repo.url.clone()))
        }
    }

    fn allows(&self, app: &AppName, set: &ChangeSet, quarantine: Option<&Path>) -> Result<(), BranchError> {
        disk::allows(&self.layout.repo(app), app, set, quarantine)
    }

    fn is_unmoved(&self, app: &AppName, set: &ChangeSet) -> Result<(), BranchError> {
        disk::is_unmoved(&self.layout.repo(app), set)
    }

    async fn refresh(&self, _app: &AppName) -> Result<(), OriginError> {
        Ok(())
    }

    fn turn(&self, _push: &str) -> Option<Turn> {
        None
    }

    async fn stage(&self, pushed: &Pushed<'_>) -> Result<Box<dyn Staged>, OriginError> {
        Ok(Box::new(LocalPush {
            app: pushed.app.clone(),
            repository: self.layout.repo(pushed.app),
            set: pushed.set.clone(),
            options: pushed.options,
            suspects: self.suspects.clone(),
        }))
    }

    async fn take_up(&self) {
        // A push of this run becomes suspect when it closes.
        self.suspects
            .lock()
            .expect("no holder of this lock panics")
            .extend(self.apps.known().apps.into_keys());
    }

    fn suspects(&self) -> Vec<AppName> {
        self.suspects.lock().expect("no holder of this lock panics").iter().cloned().collect()
    }

    async fn left_behind(&self, app: &AppName) -> Result<Option<LeftBehind>, VisorError> {
        // A push under way makes the app suspect again at its end.
        let Some(turn) = self.turns.try_take(app) else { return Ok(None) };
        let left = self.apps.view(app).and_then(|view| left_behind(&self.layout.repo(app), app, &view));
        if left.is_none() {
            self.suspects.lock().expect("no holder of this lock panics").remove(app);
        }
        Ok(left.map(|(branch, tip, by)| {
            let release = NewRelease {
                rev: Some(tip.clone()),
                by,
                reason: format!("push of {}, whose pusher went away", tip.short()),
                token: self.sources.id(),
                ..NewRelease::default()
            };
            LeftBehind { release, rev: tip, branch, turn: Some(turn) }
        }))
    }

    async fn made_up(&self, app: &AppName, left: &LeftBehind) {
        note(app, &self.layout.repo(app), &left.branch, left.rev.as_str());
    }

    fn steps(&self, case: &Case<'_>) -> Vec<Step> {
        super::sole(case)
    }

    async fn forget(&self, _app: &AppName, _token: &str) -> Result<(), StorageError> {
        Ok(())
    }
}

/// A push to a repository on this rm's disk, staged or published.
struct LocalPush {
    app: AppName,
    repository: PathBuf,
    set: ChangeSet,
    options: Options,
    suspects: Suspects,
}

#[async_trait]
impl Staged for LocalPush {
    async fn publish(self: Box<Self>) -> Result<Arc<dyn Published>, PublishError> {
        if self.options.no_rollout {
            // Before the branch moves, so that no death in between releases the commit.
            for update in &self.set.updates {
                settled::note(&self.repository, &update.name, &self.set.commit)?;
            }
        }
        Ok(Arc::new(*self))
    }
}

#[async_trait]
impl Published for LocalPush {
    async fn settle(&self) {
        for update in &self.set.updates {
            note(&self.app, &self.repository, &update.name, &self.set.commit);
            point_head(&self.repository, &update.name);
        }
    }

    async fn close(&self) -> bool {
        let tips = tips(&self.repository).unwrap_or_default();
        self.set.updates.iter().all(|update| tips.get(&update.name) == Some(&self.set.commit))
    }
}

impl Drop for LocalPush {
    fn drop(&mut self) {
        // Git may have moved the branch, whatever became of the push.
        self.suspects.lock().expect("no holder of this lock panics").insert(self.app.clone());
    }
}

/// Records that a commit was handled. Without the record, the next start looks at the commit again.
fn note(app: &AppName, repository: &Path, branch: &str, commit: &str) {
    if let Err(error) = settled::note(repository, branch, commit) {
        tracing::warn!(app = %app, error = %error, "can't note that the push has gone through");
    }
}

/// Returns a branch that moved without its release, with its commit and the rev's author. Records the commits on the
/// way that are known to be handled.
fn left_behind(repository: &Path, app: &AppName, view: &AppView) -> Option<(String, RevId, String)> {
    for (branch, tip) in tips(repository).unwrap_or_default() {
        let Ok(tip) = tip.parse::<RevId>() else { continue };
        let noted = match settled::read(repository) {
            Ok(noted) => noted,
            Err(error) => {
                tracing::warn!(app = %app, error = %error, "can't read which pushes have gone through");
                return None;
            }
        };
        let noted = noted.map(|noted| noted.get(&branch).cloned().unwrap_or_default());
        match due(view, &tip, noted.as_deref()) {
            Due::Nothing => {}
            Due::Note => note(app, repository, &branch, tip.as_str()),
            Due::Release => {
                let by = view.revs.get(&tip).map(|rev| rev.by.clone()).unwrap_or_default();
                return Some((branch, tip, by));
            }
        }
    }
    None
}

fn due(view: &AppView, tip: &RevId, noted: Option<&[String]>) -> Due {
    if noted.is_some_and(|noted| noted.iter().any(|commit| commit == tip.as_str())) {
        return Due::Nothing;
    }
    if !view.revs.contains_key(tip) {
        return Due::Nothing;
    }
    let is_head = view.head_release().is_some_and(|(_, head)| head.rev == *tip);
    let was_head =
        || view.releases.values().any(|row| row.rev == *tip && row.status == ReleaseStatus::Released);
    if is_head || (noted.is_none() && was_head()) { Due::Note } else { Due::Release }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repos::view_fixture::{rev, view};

    #[test]
    fn what_a_branch_names_is_released_unless_it_was_dealt_with() {
        use ReleaseStatus::{Failed, Released};
        let two = [('1', Released), ('2', Released)];
        let rolled_back = [('1', Released), ('2', Released), ('1', Released)];
        let killed = [('1', Released), ('2', Failed)];
        for (case, revs, releases, tip, noted, wanted) in [
            ("a push that went through", "12", &two[..], '2', Some("12"), Due::Nothing),
            ("after a rollback", "12", &rolled_back, '2', Some("12"), Due::Nothing),
            ("its pusher died before head moved", "12", &killed, '2', Some("1"), Due::Release),
            ("its pusher died after that", "12", &two, '2', Some("1"), Due::Note),
            ("the first push, whose pusher died", "1", &[], '1', None, Due::Release),
            ("no-rollout", "12", &[('1', Released)], '2', Some("12"), Due::Nothing),
            ("nothing is noted, after a rollback", "12", &rolled_back, '2', None, Due::Note),
            ("forced back to an old commit, killed", "12", &two, '1', Some("2"), Due::Release),
            ("never registered", "1", &[('1', Released)], '3', Some("1"), Due::Nothing),
        ] {
            let revs: Vec<char> = revs.chars().collect();
            let noted: Option<Vec<String>> =
                noted.map(|noted: &str| noted.chars().map(|digit| rev(digit).to_string()).collect());
            assert_eq!(due(&view(&revs, releases), &rev(tip), noted.as_deref()), wanted, "{case}");
        }
    }
}
