//! The loop that removes slugs that no rev names any more, and build caches that are not used or have grown too large.
//!
//! Owns when. A slug is kept as long as a rev of any app names it, and for some days more: a coordinator that is restored
//! from a backup of these days finds all of its slugs. Nothing is removed while the image of the revs is not complete or
//! has a row that cannot be read. A cache only saves time, so it goes with its app, after a month without a build, or
//! once it is too large.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bazooka_daemon::in_words;
use jiff::Timestamp;
use tokio::{task::spawn_blocking, time::sleep};
use visor::{
    names::{AppName, Digest},
    snapshot::AppView,
};

use crate::{
    apps::{Apps, Known},
    layout::{self, Layout},
    metrics::RmMetrics,
    slugs::Slugs,
    sources::Sources,
    turns::Turns,
};

/// The pause between two sweeps.
const EVERY: Duration = Duration::from_secs(600);

/// The time without a build after which an app's cache is removed.
const CACHE_UNUSED: Duration = Duration::from_secs(30 * 86_400);

/// The loop that removes what nobody needs.
pub struct Sweeper {
    /// The image of all apps.
    pub apps: Apps,
    /// The slugs.
    pub slugs: Slugs,
    /// The paths below the state folder.
    pub layout: Layout,
    /// The turns at the apps: nothing is built while a cache is removed.
    pub turns: Arc<Turns>,
    /// The time for which a slug is kept that no rev names.
    pub slugs_for: Duration,
    /// The most bytes of an app's cache.
    pub cache_bytes: u64,
    /// The metrics.
    pub metrics: RmMetrics,
    /// The time.
    pub sources: Sources,
}

impl Sweeper {
    /// Runs the loop. Never returns before shutdown.
    pub async fn run(self) {
        // By app, its last build when its cache was measured.
        let mut measured = BTreeMap::new();
        loop {
            sleep(EVERY).await;
            let known = self.apps.known();
            let Some(needed) = needed_slugs(&known) else { continue };
            match self.slugs.sweep(needed, self.slugs_for).await {
                Ok(0) => {}
                Ok(gone) => {
                    self.metrics.pruned("slug", gone);
                    tracing::info!(gone, "slugs that no rev names are removed");
                }
                Err(error) => {
                    self.metrics.prune_failures.inc();
                    tracing::warn!(
                        error = in_words(&error),
                        "old slugs can't be removed; trying again later"
                    );
                }
            }
            self.sweep_caches(&known, &mut measured).await;
        }
    }

    async fn sweep_caches(&self, known: &Known, measured: &mut BTreeMap<AppName, Option<Timestamp>>) {
        measured.retain(|app, _| known.apps.contains_key(app));
        for (app, path) in caches(&self.layout).unwrap_or_default() {
            // A build under way keeps its cache.
            let Some(_turn) = self.turns.try_take(&app) else { continue };
            let view = known.apps.get(&app);
            let built = view.and_then(|view| last_build(view));
            let is_measured = measured.get(&app) == Some(&built);
            let (most, now) = (self.cache_bytes, self.sources.now());
            let is_unused = view.is_none() || built.is_some_and(|at| is_over(at, now, CACHE_UNUSED));
            let removed = spawn_blocking(move || {
                let goes = is_unused || (!is_measured && is_larger(&path, most));
                if goes { layout::remove(&path).map(|()| true) } else { Ok(false) }
            });
            match removed.await {
                Ok(Ok(false)) => drop(measured.insert(app, built)),
                Ok(Ok(true)) => {
                    self.metrics.pruned("cache", 1);
                    tracing::info!(app = %app, "the app's build cache is removed: unused, or too large");
                }
                Ok(Err(error)) => {
                    self.metrics.prune_failures.inc();
                    tracing::warn!(app = %app, error = %error, "a build cache can't be removed");
                }
                Err(error) => tracing::warn!(app = %app, error = %error, "a build cache can't be removed"),
            }
        }
    }
}

/// Returns the slugs that revs name; `None` while some revs may be unknown.
fn needed_slugs(known: &Known) -> Option<BTreeSet<Digest>> {
    if !known.complete || !known.unreadable.is_empty() || known.has_strays {
        return None;
    }
    let revs = known.apps.values().flat_map(|view| view.revs.values());
    Some(revs.map(|rev| rev.slug.sha256.clone()).collect())
}

/// Returns the time of an app's last build.
fn last_build(view: &AppView) -> Option<Timestamp> {
    let registered = view.app.as_ref().map(|app| app.created_at);
    view.revs.values().map(|rev| rev.at).max().or(registered)
}

fn is_over(at: Timestamp, now: Timestamp, time: Duration) -> bool {
    Duration::try_from(now.duration_since(at)).is_ok_and(|age| age >= time)
}

/// Returns each app's folder of caches. The tools that all apps share have no app's name.
fn caches(layout: &Layout) -> io::Result<Vec<(AppName, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.caches())? {
        let entry = entry?;
        let app = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(app.map(|app| (app, entry.path())));
    }
    Ok(found)
}

/// True if a folder takes more than `most` bytes on the disk, or is too deep to be measured. Follows no link.
fn is_larger(top: &Path, most: u64) -> bool {
    let (mut left, mut bytes) = (vec![top.to_owned()], 0_u64);
    while let Some(folder) = left.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return true,
        };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
            if found.is_dir() {
                left.push(entry.path());
            }
        }
        if bytes > most {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
