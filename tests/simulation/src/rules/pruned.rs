//! The rules of pruning: nothing goes that something needs, and what nothing needs goes.
//!
//! Owns its own words for what is needed, beside those of `visor::rules::pruning`, which it judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use visor::{
    keys::Key,
    names::{AppName, ReleaseId},
    schema::{Release, ReleaseStatus},
    snapshot::{AppView, Snapshot},
    store::Revision,
};

use crate::nodes::KEPT_RELEASES;

/// The time for which a release may still be there that nothing needs, while an rm is there and all is well.
const GOES_WITHIN: Duration = Duration::from_secs(40);

/// Judges the deletion of a row by the images before and after it.
pub fn judge_deletion(before: &Snapshot, after: &Snapshot, key: &Key) -> Option<String> {
    let name = key.app()?;
    let (was, is) = (before.apps.get(name)?, after.apps.get(name)?);
    match key {
        Key::Release(_, id) => {
            let by = needed_by(was, *id).or_else(|| needed_by(is, *id))?;
            Some(format!("{id} of {name} is pruned, and {by}"))
        }
        Key::Env(_, env) | Key::Wraps(_, env) => {
            let (id, _) = is.releases.iter().find(|(_, row)| row.env == *env)?;
            Some(format!("{key} is pruned, and {id} has these config vars"))
        }
        Key::Rev(_, rev) => {
            if let Some((id, _)) = is.releases.iter().find(|(_, row)| row.rev == *rev) {
                return Some(format!("{key} is pruned, and {id} is of it"));
            }
            let mut revs: Vec<_> = was.revs.iter().map(|(rev, row)| (row.create_revision, rev)).collect();
            revs.sort_unstable();
            let is_last = revs.iter().rev().take(KEPT_RELEASES as usize).any(|(_, last)| *last == rev);
            is_last.then(|| format!("{key} is pruned, and is one of the last {KEPT_RELEASES}"))
        }
        _ => None,
    }
}

/// Returns the words for what needs a release; none if nothing does.
fn needed_by(view: &AppView, id: ReleaseId) -> Option<String> {
    let head = view.head.as_ref().map(|head| head.release);
    if head == Some(id) {
        return Some("is head".to_owned());
    }
    if view.trial.as_ref().is_some_and(|trial| trial.release == id) {
        return Some("is on trial".to_owned());
    }
    if let Some((instance, _)) = view.instances.iter().find(|(_, row)| row.release == id) {
        return Some(format!("{instance} runs it"));
    }
    if let Some((proc, _)) = view.formation.iter().find(|(_, row)| row.beside.contains_key(&id)) {
        return Some(format!("{proc} is wanted of it, beside head"));
    }
    if view.releases.get(&id).is_some_and(|row| is_open(row)) {
        return Some("its trial is not over".to_owned());
    }
    if view.releases.keys().rev().take(KEPT_RELEASES as usize).any(|last| *last == id) {
        return Some(format!("is one of the last {KEPT_RELEASES}"));
    }
    let back = head.and_then(|head| way_back(view, head));
    (back == Some(id)).then(|| "a rollback goes back to it".to_owned())
}

fn is_open(row: &Release) -> bool {
    matches!(row.status, ReleaseStatus::Trying | ReleaseStatus::Verified)
}

/// Returns the release to which a rollback without a name goes back: the newest one before head that was head too, with
/// another rev or other config vars.
fn way_back(view: &AppView, head: ReleaseId) -> Option<ReleaseId> {
    let current = view.releases.get(&head)?;
    let mut earlier = view.releases.range(..head).rev();
    let found = earlier.find(|(_, row)| {
        row.status == ReleaseStatus::Released
            && row.cause.is_none()
            && (&row.rev, row.env) != (&current.rev, current.env)
    });
    found.map(|(id, _)| *id)
}

/// Releases, config vars and revs that nothing needs, each with the time since when that is so.
#[derive(Default)]
pub struct Unneeded(BTreeMap<String, Instant>);

impl Unneeded {
    /// Looks at all apps of an image. Returns the first row that should have gone.
    pub fn overdue(&mut self, image: &Snapshot) -> Option<String> {
        let now = Instant::now();
        let mut there = BTreeSet::new();
        for (name, view) in &image.apps {
            there.extend(unneeded(image, name, view).into_iter().map(|key| key.to_string()));
        }
        self.0.retain(|key, _| there.contains(key));
        for key in there {
            let since = *self.0.entry(key.clone()).or_insert(now);
            if since + GOES_WITHIN <= now {
                return Some(format!("nothing needs {key} for {:?}, and it is still there", since.elapsed()));
            }
        }
        None
    }
}

/// Returns the rows of an app that nothing needs.
fn unneeded(image: &Snapshot, name: &AppName, view: &AppView) -> Vec<Key> {
    let referred: BTreeSet<_> = view.releases.values().map(|row| (&row.rev, row.env)).collect();
    let releases = view.releases.iter();
    let releases =
        releases.filter(|(id, row)| is_counted(image, view, row.create_revision) && !is_kept(view, **id));
    // The next env takes the number after the newest one.
    let newest = view.envs.keys().next_back();
    let envs = view.envs.keys().filter(|env| Some(*env) != newest && referred.iter().all(|it| it.1 != **env));
    let mut revs: Vec<_> = view.revs.iter().map(|(rev, row)| (row.create_revision, rev)).collect();
    revs.sort_unstable();
    let older = revs.iter().rev().skip(KEPT_RELEASES as usize);
    let revs = older
        .filter(|(created, rev)| is_counted(image, view, *created) && referred.iter().all(|it| it.0 != *rev));
    let releases = releases.map(|(id, _)| Key::Release(name.clone(), *id));
    let envs = envs.map(|env| Key::Env(name.clone(), *env));
    releases.chain(envs).chain(revs.map(|(_, rev)| Key::Rev(name.clone(), (*rev).clone()))).collect()
}

/// Reports whether a release must stay, or may: the one that was head before is kept for an abort.
fn is_kept(view: &AppView, id: ReleaseId) -> bool {
    let head = view.head.as_ref().map(|head| head.release);
    let mut earlier = head.into_iter().flat_map(|head| view.releases.range(..head).rev());
    let before = earlier.find(|(_, row)| row.status == ReleaseStatus::Released && row.cause.is_none());
    needed_by(view, id).is_some() || before.is_some_and(|(before, _)| *before == id)
}

/// Reports whether the figures of some day have a row that was made at this revision.
fn is_counted(image: &Snapshot, view: &AppView, created: Revision) -> bool {
    let Some(token) = view.app.as_ref().map(|app| &app.token) else { return false };
    let mut days = image.days.values().filter_map(|day| day.by_app.get(token));
    days.any(|day| created <= day.counted_to)
}
