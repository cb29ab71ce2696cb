//! The loop that prunes apps in the coordinator, and lets etcd forget what was pruned.
//!
//! Owns the pace. [`visor::rules::pruning`] decides what goes, from the image of all apps, and each deletion is guarded on
//! what it was decided from; several rms may do this at once. The history of what was deleted is `history`'s: an app whose
//! config vars change faster than etcd may forget them waits with its next ones, so that nobody else does.

mod history;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use visor::{
    names::{AppName, Day, EnvRef},
    quota::{self, Bounds},
    rules::pruning::doomed,
    schema::{DayStats, Rm},
    snapshot::{AppView, Many},
    store::StoreError,
    transitions::pruning::{Doomed, Pruned},
    visor::{Result, Visor},
};

use history::History;

use crate::{
    apps::{Apps, Known},
    metrics::RmMetrics,
    sources::Sources,
};

/// The pause between two looks at changed apps.
const SOON: Duration = Duration::from_secs(1);

/// The pause after a failure.
const AGAIN: Duration = Duration::from_secs(10);

/// The interval at which all apps are looked at, because some rows may go only with time.
const EVERY: Duration = Duration::from_secs(600);

/// The loop that prunes.
pub struct Pruner {
    /// The image of all apps.
    pub apps: Apps,
    /// The coordinator's rows.
    pub visor: Visor,
    /// This rm's row with its bounds. Those of other rms count too.
    pub own: Rm,
    /// True while a push to the app is under way on this rm; its rev has no release yet.
    pub busy: Box<dyn Fn(&AppName) -> bool + Send + Sync>,
    /// The time.
    pub sources: Sources,
    /// The metrics, where there are any.
    pub metrics: Option<RmMetrics>,
}

/// The findings of earlier rounds.
#[derive(Default)]
struct Memory {
    /// The view of each app in which nothing is left to prune.
    settled: BTreeMap<AppName, Arc<AppView>>,
    /// The figures of days with which they were settled.
    days: Arc<Many<Day, DayStats>>,
    bounds: Bounds,
    /// When all apps were last looked at.
    all_at: Option<Instant>,
    history: History,
}

impl Pruner {
    /// Runs the loop. Never returns before shutdown.
    pub async fn run(self) {
        let mut memory = Memory::default();
        let mut changes = self.apps.changes();
        loop {
            let known = self.apps.known();
            let well = !known.complete || self.look(&known, &mut memory).await;
            sleep(SOON).await;
            let due = memory.history.due_in(memory.bounds).unwrap_or(EVERY);
            let pause = if well { due } else { AGAIN };
            tokio::select! {
                biased;
                changed = changes.changed(), if well => if changed.is_err() { return },
                () = sleep(pause) => {}
            }
        }
    }

    /// Prunes each app that has changed. Returns whether all went well.
    async fn look(&self, known: &Known, memory: &mut Memory) -> bool {
        let bounds = Bounds::of(known.rms.values().chain([&self.own]));
        let is_due = memory.all_at.is_none_or(|at| at.elapsed() >= EVERY);
        if is_due || memory.bounds != bounds || !Arc::ptr_eq(&memory.days, &known.days) {
            memory.settled.clear();
            memory.days = known.days.clone();
            (memory.bounds, memory.all_at) = (bounds, Some(Instant::now()));
        }
        memory.history.keep(|app| known.apps.contains_key(app));
        memory.settled.retain(|app, _| known.apps.contains_key(app));
        let mut well = true;
        for (app, view) in &known.apps {
            let is_settled = memory.settled.get(app).is_some_and(|settled| Arc::ptr_eq(settled, view));
            if is_settled || known.unreadable.contains(app) {
                continue;
            }
            match self.prune(app, view, known, bounds, &mut memory.history).await {
                // A later view shows the rows that are deleted or refused.
                Ok(Left::Nothing) => drop(memory.settled.insert(app.clone(), view.clone())),
                // The view stays as it is until these are deleted.
                Ok(Left::Envs) => {}
                Err(error) => {
                    well = false;
                    if let Some(metrics) = &self.metrics {
                        metrics.prune_failures.inc();
                    }
                    tracing::warn!(app = %app, error = %error, "can't prune; trying again");
                }
            }
        }
        well & self.forget(bounds, &mut memory.history).await
    }

    async fn prune(
        &self,
        app: &AppName,
        view: &AppView,
        known: &Known,
        bounds: Bounds,
        history: &mut History,
    ) -> Result<Left> {
        let mut doomed = doomed(view, &known.days, bounds, self.sources.now());
        if view.turn.is_some() || (self.busy)(app) {
            doomed.revs.clear();
        }
        let left = hold_back(app, view, &mut doomed, bounds, history);
        if doomed.is_empty() {
            return Ok(left);
        }
        let pruned = self.visor.prune(app, view, known.revision, &doomed).await?;
        if pruned.envs > 0 {
            history.add(app, envs_bytes(view, doomed.envs.keys()), pruned.until);
        }
        if pruned != Pruned::default() {
            let Pruned { releases, envs, revs, .. } = pruned;
            tracing::info!(app = %app, releases, envs, revs, "pruned");
            for (kind, count) in [("release", releases), ("env", envs), ("rev", revs)] {
                if let Some(metrics) = &self.metrics {
                    metrics.pruned(kind, count);
                }
            }
        }
        Ok(left)
    }

    /// Compacts etcd's history once enough of it was pruned. Returns whether that went well.
    async fn forget(&self, bounds: Bounds, history: &mut History) -> bool {
        let Some(old) = history.old(bounds) else { return true };
        match self.visor.store().compact(old).await {
            Ok(()) | Err(StoreError::Compacted { .. }) => {
                let bytes = history.forget(old);
                tracing::info!(revision = old, bytes, "etcd's history of pruned rows is compacted");
                true
            }
            Err(error) => {
                tracing::warn!(error = %error, "etcd's history of pruned rows can't be compacted; trying again");
                false
            }
        }
    }
}

/// The rows of an app that may go and are left.
enum Left {
    /// None.
    Nothing,
    /// Config vars that wait until etcd has forgotten earlier ones.
    Envs,
}

/// Takes config vars out of what is to be deleted, as many as the app may not add to the history now.
///
/// An app beyond its bytes was written to past `bazooka`. Its rows go at once: nothing refuses the next ones.
fn hold_back(
    app: &AppName,
    view: &AppView,
    doomed: &mut Doomed,
    bounds: Bounds,
    history: &mut History,
) -> Left {
    if quota::bytes(view) > bounds.bytes {
        return Left::Nothing;
    }
    let mut left = history.room(app, bounds);
    let before = doomed.envs.len();
    // The oldest go first.
    doomed.envs.retain(|env, _| {
        let goes = left > 0;
        left = left.saturating_sub(view.envs.get(env).map_or(0, |row| quota::env_bytes(row)));
        goes
    });
    history.held(app, doomed.envs.len() < before);
    if doomed.envs.len() < before { Left::Envs } else { Left::Nothing }
}

/// Returns the bytes of some of an app's config vars.
fn envs_bytes<'a>(view: &AppView, envs: impl Iterator<Item = &'a EnvRef>) -> u64 {
    envs.filter_map(|env| view.envs.get(env)).map(|row| quota::env_bytes(row)).sum()
}

#[cfg(test)]
mod tests;
