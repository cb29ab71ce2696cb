//! The release that is missing for a stored branch whose push died. Pure.
//!
//! The coordinator has each branch's commit and the push that moved it. Each rm compares that with the releases, so
//! that a living rm releases what a dead one left.

use visor::{
    names::RevId,
    schema::{Branch, ReleaseStatus},
    snapshot::AppView,
    transitions::releases::NewRelease,
};

use crate::repos::origin::LeftBehind;

/// Returns a branch whose push moved it and died. `None` while a push or trial is under way.
pub(super) fn left_branch(view: &AppView) -> Option<(&String, &Branch)> {
    let row = view.stored.as_ref()?;
    let app = view.app.as_ref()?;
    if view.turn.is_some() || view.trial.is_some() || app.destroying || app.token != row.token {
        return None;
    }
    let is_head = |commit: &RevId| view.head_release().is_some_and(|(_, head)| head.rev == *commit);
    let is_handled = |branch: &Branch| {
        branch.no_rollout
            || branch.push.is_empty()
            || is_head(&branch.commit)
            || !view.revs.contains_key(&branch.commit)
            || view.releases.values().any(|release| {
                release.token == branch.again()
                    || (release.token == branch.push && release.status == ReleaseStatus::Released)
            })
    };
    row.branches.iter().find(|(_, branch)| !is_handled(branch))
}

/// Returns the release for such a branch.
pub(super) fn release(view: &AppView) -> Option<LeftBehind> {
    let (name, branch) = left_branch(view)?;
    let release = NewRelease {
        rev: Some(branch.commit.clone()),
        by: view.revs.get(&branch.commit).map(|rev| rev.by.clone()).unwrap_or_default(),
        reason: format!("push of {}, whose bazooka-rm or pusher went away", branch.commit.short()),
        token: branch.again(),
        ..NewRelease::default()
    };
    Some(LeftBehind { release, rev: branch.commit.clone(), branch: name.clone(), turn: None })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use visor::schema::{App, Extra, Stored, Turn};

    use super::*;
    use crate::{
        refs::BRANCHES,
        repos::view_fixture::{at, rev, view},
    };

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
            left_branch(&view).map(|(_, branch)| branch.commit.clone())
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
