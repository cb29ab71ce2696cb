//! This rm's copies of shared repositories, and the time in which a copy is left to git.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use visor::names::AppName;

/// The state of all copies.
#[derive(Default)]
pub struct RepoCaches(Mutex<BTreeMap<AppName, Arc<RepoCache>>>);

/// The state of one copy.
#[derive(Default)]
pub struct RepoCache {
    /// Serialises changes of the copy.
    alone: AsyncMutex<()>,
    /// The number of pushes that have moved the row and for which git moves the branch.
    publishing: AtomicUsize,
}

impl RepoCaches {
    /// Returns the state of an app's copy.
    pub fn of(&self, app: &AppName) -> Arc<RepoCache> {
        let mut caches = self.0.lock().expect("no holder of this lock panics");
        caches.retain(|name, cache| name == app || Arc::strong_count(cache) > 1);
        caches.entry(app.clone()).or_default().clone()
    }
}

impl RepoCache {
    /// Waits until nothing else changes the copy.
    pub async fn alone(&self) -> MutexGuard<'_, ()> {
        self.alone.lock().await
    }

    /// True while a push is published, and the copy is left to git.
    pub fn is_publishing(&self) -> bool {
        self.publishing.load(Ordering::SeqCst) > 0
    }
}

/// The time in which a copy is left to git. It ends with this value at the latest.
pub struct Publishing {
    cache: Arc<RepoCache>,
    over: AtomicBool,
}

impl Publishing {
    /// Begins that time. The caller changes the copy alone.
    pub fn begin(cache: Arc<RepoCache>) -> Publishing {
        cache.publishing.fetch_add(1, Ordering::SeqCst);
        Publishing { cache, over: AtomicBool::new(false) }
    }

    /// Returns the state of the copy.
    pub fn cache(&self) -> &RepoCache {
        &self.cache
    }

    /// Ends that time. A repetition has no effect.
    pub fn end(&self) {
        if !self.over.swap(true, Ordering::SeqCst) {
            self.cache.publishing.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.end();
    }
}
