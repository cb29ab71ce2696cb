//! The turns at the apps on this rm: one push of an app is under way at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use visor::names::AppName;

/// The turns of all apps.
#[derive(Default)]
pub struct Turns(Mutex<BTreeMap<AppName, Arc<AsyncMutex<()>>>>);

impl Turns {
    /// Returns the lock that is an app's turn.
    pub fn of(&self, app: &AppName) -> Arc<AsyncMutex<()>> {
        let mut turns = self.0.lock().expect("no holder of this lock panics");
        // Drop the locks that no push holds or waits for.
        turns.retain(|name, turn| name == app || Arc::strong_count(turn) > 1);
        turns.entry(app.clone()).or_default().clone()
    }

    /// Takes an app's turn, if it is free.
    pub fn try_take(&self, app: &AppName) -> Option<OwnedMutexGuard<()>> {
        self.of(app).try_lock_owned().ok()
    }
}
