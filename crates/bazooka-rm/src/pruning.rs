//! The loop that prunes apps in the coordinator, and lets etcd forget what was pruned.
//!
//! Owns the pace. [`visor::rules::pruning`] decides what goes, from the image of all apps, and each deletion is guarded on
//! what it was decided from; several rms may do this at once. etcd keeps the history of what was deleted until it is
//! compacted: where one app's config vars come faster than etcd compacts by itself, this loop compacts.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use visor::{
    names::{AppName, Day},
    quota::{self, Bounds},
    rules::pruning::doomed,
    schema::{DayStats, Rm},
    snapshot::{AppView, Many},
    store::{Revision, StoreError},
    transitions::pruning::Pruned,
    visor::{Result, Visor},
};

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

/// The bytes of pruned rows after which etcd's history is compacted: a small part of any quota.
const HISTORY_BYTES: u64 = 64 << 20;

/// The age of a revision from which nothing is read of its history: lists and watches are younger by far.
const HISTORY_AGE: Duration = Duration::from_secs(30);

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

/// The history of pruned rows that etcd still holds.
#[derive(Default)]
struct History {
    /// The bytes of rows pruned since the last compaction.
    bytes: u64,
    /// Revisions and when they were current, oldest first.
    marks: VecDeque<(Instant, Revision)>,
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
            let waits = memory.history.bytes >= HISTORY_BYTES;
            let pause = if waits || !well { AGAIN } else { EVERY };
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
        memory.settled.retain(|app, _| known.apps.contains_key(app));
        let mut well = true;
        for (app, view) in &known.apps {
            let is_settled = memory.settled.get(app).is_some_and(|settled| Arc::ptr_eq(settled, view));
            if is_settled || known.unreadable.contains(app) {
                continue;
            }
            match self.prune(app, view, known, bounds, &mut memory.history).await {
                // A later view shows the rows that are deleted or refused.
                Ok(()) => drop(memory.settled.insert(app.clone(), view.clone())),
                Err(error) => {
                    well = false;
                    if let Some(metrics) = &self.metrics {
                        metrics.prune_failures.inc();
                    }
                    tracing::warn!(app = %app, error = %error, "can't prune; trying again");
                }
            }
        }
        well & self.forget(known.revision, &mut memory.history).await
    }

    async fn prune(
        &self,
        app: &AppName,
        view: &AppView,
        known: &Known,
        bounds: Bounds,
        history: &mut History,
    ) -> Result<()> {
        let mut doomed = doomed(view, &known.days, bounds, self.sources.now());
        if view.turn.is_some() || (self.busy)(app) {
            doomed.revs.clear();
        }
        if doomed.is_empty() {
            return Ok(());
        }
        let bytes: u64 =
            doomed.envs.keys().filter_map(|env| view.envs.get(env)).map(|row| quota::env_bytes(row)).sum();
        let pruned = self.visor.prune(app, view, known.revision, &doomed).await?;
        if pruned.envs > 0 {
            history.bytes += bytes;
        }
        if pruned != Pruned::default() {
            let Pruned { releases, envs, revs } = pruned;
            tracing::info!(app = %app, releases, envs, revs, "pruned");
            for (kind, count) in [("release", releases), ("env", envs), ("rev", revs)] {
                if let Some(metrics) = &self.metrics {
                    metrics.pruned(kind, count);
                }
            }
        }
        Ok(())
    }

    /// Compacts etcd's history once enough of it was pruned. Returns whether that went well.
    async fn forget(&self, revision: Revision, history: &mut History) -> bool {
        let Some(old) = history.old(revision) else { return true };
        match self.visor.store().compact(old).await {
            Ok(()) | Err(StoreError::Compacted { .. }) => {
                tracing::info!(
                    revision = old,
                    bytes = history.bytes,
                    "etcd's history of pruned rows is compacted"
                );
                history.bytes = 0;
                true
            }
            Err(error) => {
                tracing::warn!(error = %error, "etcd's history of pruned rows can't be compacted; trying again");
                false
            }
        }
    }
}

impl History {
    /// Notes the present revision. Returns the revision to compact to, if it is time.
    fn old(&mut self, revision: Revision) -> Option<Revision> {
        let newest = self.marks.back().is_none_or(|(at, _)| at.elapsed() >= HISTORY_AGE / 4);
        if newest && revision > 0 {
            self.marks.push_back((Instant::now(), revision));
        }
        while self.marks.get(1).is_some_and(|(at, _)| at.elapsed() >= HISTORY_AGE) {
            self.marks.pop_front();
        }
        let (at, old) = *self.marks.front()?;
        (self.bytes >= HISTORY_BYTES && at.elapsed() >= HISTORY_AGE).then_some(old)
    }
}

#[cfg(test)]
mod tests;
