//! Repair of branches that moved without their release becoming head.
//!
//! Owns the comparison of branches with the commits that were already handled ([`crate::settled`]). Git moves a branch
//! after the first hook has accepted the push, even if the pusher has left. If the pusher, git or the rm dies between
//! that and the second hook, the branch names a commit that was built, registered and verified, but does not run. This
//! module releases such a commit again; only the converger then decides its promotion.
//!
//! Where rms share a file storage, the coordinator has each branch's commit and the push that moved it. Each rm
//! compares that with the releases, so that a living rm releases what a dead one left.
//!
//! Three kinds of commits are left alone: a handled one (a rollback leaves the branch where it is, and a push with
//! `no-rollout` is recorded before the branch moves), one that was never registered, and, in a repository that has no
//! record at all, one that has been head before.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use visor::{
    names::{AppName, RevId},
    schema::{Branch, Promoter, ReleaseStatus},
    snapshot::AppView,
    transitions::releases::NewRelease,
    visor::{Refusal, VisorError},
};

use super::refs::{BRANCHES, ChangeSet};
use crate::{rm::SharedRm, settled, stored};

/// The pause before a failed release is retried, if no row changes sooner.
const AGAIN: Duration = Duration::from_secs(2);

/// A branch and the commit that it names.
type Tip = (String, RevId);

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

/// True if each branch of a push names the pushed commit by now.
pub fn names(rm: &SharedRm, app: &AppName, set: &ChangeSet) -> bool {
    let tips = tips(&rm.layout.repo(app));
    set.updates
        .iter()
        .all(|update| tips.iter().any(|(name, tip)| *name == update.name && tip.as_str() == set.commit))
}

/// Releases the commits of an app's branches that were never handled.
///
/// Returns without doing anything if a push is under way: that push calls this at its end. While another release is on
/// trial, waits until that ends.
pub async fn mend(rm: &SharedRm, app: &AppName) {
    let mut changes = rm.apps.changes();
    loop {
        let turn = rm.pushes.turn(app);
        let Ok(_turn) = turn.try_lock_owned() else { return };
        match try_mend(rm, app).await {
            Ok(()) => return,
            Err(VisorError::Refused(Refusal::BeingTried(..))) => {}
            Err(VisorError::Refused(_)) => return,
            Err(error) => {
                tracing::warn!(app = %app, error = %error, "a pushed commit can't be released; will try again");
            }
        }
        drop(_turn);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Releases the commits that pushes left behind. Never returns before shutdown.
pub async fn run(rm: &SharedRm) {
    if rm.storage.is_some() {
        adopt(rm).await;
        return keep(rm).await;
    }
    // Only pushes that an earlier run of bazooka-rm left: a push of this run is mended when it closes.
    let known = rm.apps.known().apps;
    futures::future::join_all(known.keys().map(|app| mend(rm, app))).await;
    std::future::pending().await
}

/// Stores the repositories that this rm has kept only in its state folder so far.
async fn adopt(rm: &SharedRm) {
    for (app, view) in rm.apps.known().apps {
        let is_stored =
            view.stored.as_ref().zip(view.app.as_ref()).is_some_and(|(row, app)| row.token == app.token);
        if is_stored || tips(&rm.layout.repo(&app)).is_empty() {
            continue;
        }
        match stored::adopt(rm, &app).await {
            Ok(true) => tracing::info!(app = %app, "repository stored"),
            Ok(false) => {}
            Err(error) => tracing::warn!(app = %app, error = %error, "a repository can't be stored yet"),
        }
    }
}

/// Releases unhandled commits of stored repositories' branches, until shutdown.
async fn keep(rm: &SharedRm) {
    let mut changes = rm.apps.changes();
    loop {
        let mut well = true;
        for (app, view) in rm.apps.known().apps {
            if left_behind(&view).is_some() {
                if let Err(error) = release_left(rm, &app).await {
                    well = false;
                    tracing::warn!(app = %app, error = %error, "a pushed commit can't be released; will try again");
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !well => {}
        }
    }
}

/// Returns the token of the release that replaces a push's own. All rms derive the same token, so only one release is
/// made.
fn again(push: &str) -> String {
    format!("{push}-again")
}

/// Returns a branch whose push moved it and died. `None` while a push or trial is under way.
fn left_behind(view: &AppView) -> Option<Branch> {
    let row = view.stored.as_ref()?;
    let app = view.app.as_ref()?;
    if view.turn.is_some() || view.trial.is_some() || app.destroying || app.token != row.token {
        return None;
    }
    let is_head = |commit: &RevId| view.head_release().is_some_and(|(_, head)| head.rev == *commit);
    let dealt_with = |branch: &Branch| {
        branch.no_rollout
            || branch.push.is_empty()
            || is_head(&branch.commit)
            || !view.revs.contains_key(&branch.commit)
            || view.releases.values().any(|release| {
                release.token == again(&branch.push)
                    || (release.token == branch.push && release.status == ReleaseStatus::Released)
            })
    };
    row.branches.values().find(|branch| !dealt_with(branch)).cloned()
}

async fn release_left(rm: &SharedRm, app: &AppName) -> Result<(), VisorError> {
    // The rows in the apps' image may be of different moments, and a push ends its turn after its release; so read them
    // again.
    let Some(view) = rm.visor.app_with_stored(app).await? else { return Ok(()) };
    let Some(branch) = left_behind(&view) else { return Ok(()) };
    let new = NewRelease {
        rev: Some(branch.commit.clone()),
        by: view.revs.get(&branch.commit).map(|rev| rev.by.clone()).unwrap_or_default(),
        reason: format!("push of {}, whose bazooka-rm or pusher went away", branch.commit.short()),
        token: again(&branch.push),
        ..NewRelease::default()
    };
    match rm.visor.begin_release(app, &new, Promoter::Converger, None, Timestamp::now()).await {
        Ok(_) => {
            tracing::info!(app = %app, rev = branch.commit.short(), "released what a push left behind");
            Ok(())
        }
        // The end of the trial or of the app is a change, after which this app is looked at again.
        Err(VisorError::Refused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn try_mend(rm: &SharedRm, app: &AppName) -> Result<(), VisorError> {
    let repository = rm.layout.repo(app);
    let Some(view) = rm.apps.view(app) else { return Ok(()) };
    for (branch, tip) in tips(&repository) {
        let noted = match settled::read(&repository) {
            Ok(noted) => noted,
            Err(error) => {
                tracing::warn!(app = %app, error = %error, "can't read which pushes have gone through");
                return Ok(());
            }
        };
        let noted = noted.map(|noted| noted.get(&branch).cloned().unwrap_or_default());
        match due(&view, &tip, noted.as_deref()) {
            Due::Nothing => continue,
            Due::Note => {}
            Due::Release => {
                let new = NewRelease {
                    rev: Some(tip.clone()),
                    by: view.revs.get(&tip).map(|rev| rev.by.clone()).unwrap_or_default(),
                    reason: format!("push of {}, whose pusher went away", tip.short()),
                    token: format!("{:032x}", rand::random::<u128>()),
                    ..NewRelease::default()
                };
                rm.visor.begin_release(app, &new, Promoter::Converger, None, Timestamp::now()).await?;
                tracing::info!(app = %app, rev = tip.short(), "released what a push left behind");
            }
        }
        if let Err(error) = settled::note(&repository, &branch, tip.as_str()) {
            tracing::warn!(app = %app, error = %error, "can't note that the push has gone through");
        }
    }
    Ok(())
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

fn tips(repository: &Path) -> Vec<Tip> {
    let Ok(repository) = git2::Repository::open_bare(repository) else { return Vec::new() };
    BRANCHES
        .iter()
        .filter_map(|branch| {
            let id = repository.refname_to_id(branch).ok()?;
            Some(((*branch).to_owned(), id.to_string().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use visor::{
        names::ReleaseId,
        schema::{App, Extra, Head, Release, Rev, Slug, Stored, Turn},
        snapshot::Versioned,
    };

    use super::*;

    fn at<T>(value: T) -> Versioned<T> {
        Versioned { value, create_revision: 1, mod_revision: 1, lease: None }
    }

    fn rev(digit: char) -> RevId {
        digit.to_string().repeat(40).parse().expect("valid")
    }

    /// Returns an app with these registered revs and these releases; the last released one is head.
    fn view(revs: &[char], releases: &[(char, ReleaseStatus)]) -> AppView {
        let mut view = AppView::default();
        for digit in revs {
            let slug = Slug { sha256: digit.to_string().repeat(64).parse().expect("valid"), size_bytes: 1 };
            let row = Rev {
                slug,
                procs: BTreeMap::new(),
                kind: "procfile".into(),
                by: "ada".into(),
                at: Timestamp::UNIX_EPOCH,
                subject: String::new(),
                extra: Extra::new(),
            };
            view.revs.insert(rev(*digit), at(row));
        }
        for (number, (digit, status)) in (1..).zip(releases) {
            let row = Release {
                rev: rev(*digit),
                env: "e0".parse().expect("valid"),
                by: "ada".into(),
                at: Timestamp::UNIX_EPOCH,
                reason: "push".into(),
                status: *status,
                cause: None,
                token: String::new(),
                extra: Extra::new(),
            };
            view.releases.insert(ReleaseId(number), at(row));
            if *status == ReleaseStatus::Released {
                view.head = Some(at(Head { release: ReleaseId(number), extra: Extra::new() }));
            }
        }
        view
    }

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

    #[test]
    fn what_a_stored_branch_names_is_released_once_its_push_is_dead_and_never_twice() {
        use ReleaseStatus::{Failed, Released};
        // Each release belongs to the push of the same digit; "2-again" is the release that an rm made for push 2.
        let make = |releases: &[(char, ReleaseStatus, &str)], tip: char, push: &str, turn: bool| {
            let of: Vec<_> = releases.iter().map(|(digit, status, _)| (*digit, *status)).collect();
            let mut view = view(&['1', '2'], &of);
            for (row, (_, _, token)) in view.releases.values_mut().zip(releases) {
                row.value.token = (*token).to_owned();
            }
            let app = App {
                owner: "ada".into(),
                created_at: Timestamp::UNIX_EPOCH,
                token: "t".into(),
                destroying: false,
                extra: Extra::new(),
            };
            let branch = Branch {
                commit: rev(tip),
                push: push.trim_start_matches('!').into(),
                no_rollout: push.starts_with('!'),
                extra: Extra::new(),
            };
            let stored = Stored {
                token: "t".into(),
                generation: 1,
                manifest: "0".repeat(64).parse().expect("valid"),
                branches: BTreeMap::from([(BRANCHES[0].to_owned(), branch)]),
                head: BRANCHES[0].into(),
                extra: Extra::new(),
            };
            let held = Turn {
                rm: "rm1".parse().expect("valid"),
                process: "p".into(),
                push: push.into(),
                extra: Extra::new(),
            };
            view.app = Some(at(app));
            view.stored = Some(at(stored));
            view.turn = turn.then(|| at(held));
            left_behind(&view).map(|branch| branch.commit)
        };
        let first = ('1', Released, "1");
        for (case, releases, tip, push, wanted) in [
            ("a push that went through", &[first, ('2', Released, "2")][..], '2', "2", false),
            ("after a rollback", &[first, ('2', Released, "2"), ('1', Released, "r")], '2', "2", false),
            ("it died before its trial was over", &[first, ('2', Failed, "2")], '2', "2", true),
            (
                "it was released for it, and failed",
                &[first, ('2', Failed, "2"), ('2', Failed, "2-again")],
                '2',
                "2",
                false,
            ),
            ("the first push", &[], '1', "1", true),
            ("no-rollout", &[first], '2', "!2", false),
            ("forced back to an old commit", &[first, ('2', Released, "2")], '1', "3", true),
            ("what was there before the storage", &[], '1', "", false),
            ("never registered", &[first], '3', "3", false),
        ] {
            assert_eq!(make(releases, tip, push, false).is_some(), wanted, "{case}");
            assert_eq!(make(releases, tip, push, true), None, "{case}, under way");
        }
    }
}
