//! The number of instances of each release that should run, the trial's included.
//!
//! Owns the reading of formation, head and trial, and the refusal to read them where a row is missing: a missing row
//! never means that nothing is wanted.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    keys::Key,
    names::{AppName, ProcName, ReleaseId},
    schema::ReleaseStatus,
    snapshot::{AppView, Snapshot},
    transitions::releases::concerned,
};

/// The wanted instances of an app, by proc and release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted(BTreeMap<ProcName, BTreeMap<ReleaseId, u32>>);

impl Wanted {
    /// Reads an app's formation, head and trial.
    pub fn of(view: &AppView) -> Self {
        let mut wanted: BTreeMap<_, _> =
            view.formation.keys().map(|proc| (proc.clone(), view.wanted(proc))).collect();
        for (proc, release) in tried(view) {
            let count = wanted.entry(proc.clone()).or_default().entry(release).or_insert(0);
            *count = (*count).max(1);
        }
        Wanted(wanted)
    }

    /// Returns how many instances of each release of a proc are wanted.
    pub fn of_proc(&self, proc: &ProcName) -> BTreeMap<ReleaseId, u32> {
        self.0.get(proc).cloned().unwrap_or_default()
    }

    /// Returns each proc and release that has fewer instances than wanted.
    ///
    /// `instances` are those that are meant to run and have not ended, each with its proc and release.
    pub fn short<'a>(
        &'a self,
        instances: impl IntoIterator<Item = (&'a ProcName, ReleaseId)>,
    ) -> BTreeSet<(&'a ProcName, ReleaseId)> {
        let mut there: BTreeMap<(&ProcName, ReleaseId), u32> = BTreeMap::new();
        for of in instances {
            *there.entry(of).or_default() += 1;
        }
        let wanted = self.0.iter().flat_map(|(proc, releases)| {
            releases.iter().map(move |(release, count)| ((proc, *release), *count))
        });
        let is_short = |(of, count): &(_, u32)| there.get(of).copied().unwrap_or(0) < *count;
        wanted.filter(is_short).map(|(of, _)| of).collect()
    }
}

/// Returns the procs of which the trial runs an instance, with the release on trial.
pub fn tried(view: &AppView) -> Vec<(&ProcName, ReleaseId)> {
    let destroying = view.app.as_ref().is_none_or(|app| app.destroying);
    let Some(trial) = view.trial.as_ref().filter(|_| !destroying) else { return Vec::new() };
    let Some(release) = view.releases.get(&trial.release) else { return Vec::new() };
    if !matches!(release.status, ReleaseStatus::Trying | ReleaseStatus::Verified) {
        return Vec::new();
    }
    concerned(view, release).into_iter().map(|proc| (proc, trial.release)).collect()
}

/// Returns each proc of which instances are wanted or exist.
pub fn procs(view: &AppView) -> BTreeSet<&ProcName> {
    let placed = view.instances.values().map(|row| &row.proc);
    view.formation.keys().chain(placed).chain(view.pending.keys()).collect()
}

/// Returns why an app's rows cannot be acted on; none if they can.
///
/// For an app that is being destroyed, missing rows are no fault: nothing is wanted of it. For any other app, a missing
/// row is a fault of the image or was made by hand.
pub fn unsound(snapshot: &Snapshot, name: &AppName, view: &AppView) -> Option<String> {
    if let Some((key, why)) = snapshot.unreadable_below(name) {
        return Some(format!("{key} can't be read: {why}"));
    }
    let Some(app) = &view.app else {
        // An app that was never registered, or was deleted, has no instances; if some exist, they stay.
        return (!view.instances.is_empty()).then(|| format!("{} is missing", Key::App(name.clone())));
    };
    if app.destroying {
        return None;
    }
    let mut needed: BTreeSet<ReleaseId> = view.head.iter().map(|head| head.release).collect();
    needed.extend(view.trial.iter().map(|trial| trial.release));
    needed.extend(view.formation.values().flat_map(|formation| formation.beside.keys().copied()));
    for release in needed {
        match view.releases.get(&release) {
            None => return Some(format!("{} is missing", Key::Release(name.clone(), release))),
            Some(row) if !view.revs.contains_key(&row.rev) => {
                return Some(format!("{} is missing", Key::Rev(name.clone(), row.rev.clone())));
            }
            Some(_) => {}
        }
    }
    let mut before: Option<(&ProcName, ReleaseId)> = None;
    for row in view.instances.values() {
        // Most rows have the proc and release of the row before, which has been checked.
        if before.replace((&row.proc, row.release)) == Some((&row.proc, row.release)) {
            continue;
        }
        if !view.formation.contains_key(&row.proc) {
            return Some(format!("{} is missing", Key::Formation(name.clone(), row.proc.clone())));
        }
        let ran = view.releases.get(&row.release);
        let released = ran.is_none_or(|release| release.status == ReleaseStatus::Released);
        if view.head.is_none() && released {
            return Some(format!("{} is missing", Key::Head(name.clone())));
        }
    }
    None
}
