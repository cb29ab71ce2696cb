//! The instances whose output this host has: running ones, and ended ones whose output is kept.
//!
//! Owns that table. The machine fills it as instances are started and their output is removed, and readers watch it, so
//! that nobody searches folders or reads records to find output.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use visor::names::{AppName, InstanceId, ProcName};

use super::Asked;

/// The owner of an instance's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The app.
    pub app: AppName,
    /// The proc.
    pub proc: ProcName,
}

/// The owners, by instance.
pub type Table = BTreeMap<InstanceId, Owner>;

/// The procs of the instances that a reader asked for.
pub type Procs = BTreeMap<InstanceId, ProcName>;

/// The table, with whoever watches it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outputs(Arc<watch::Sender<Table>>);

impl Outputs {
    /// Creates the table from what an earlier bazooka-pm left.
    pub fn new(known: Table) -> Outputs {
        Outputs(Arc::new(watch::Sender::new(known)))
    }

    /// Adds an instance, once its folder of output is there.
    pub fn add(&self, id: InstanceId, app: &AppName, proc: &ProcName) {
        self.0.send_if_modified(|table| {
            let is_new = !table.contains_key(&id);
            if is_new {
                table.insert(id, Owner { app: app.clone(), proc: proc.clone() });
            }
            is_new
        });
    }

    /// Forgets the instances whose output has been removed.
    pub fn forget(&self, ids: &[InstanceId]) {
        self.0.send_if_modified(|table| {
            let before = table.len();
            ids.iter().for_each(|id| drop(table.remove(id)));
            table.len() < before
        });
    }

    /// Returns the instances whose output is asked for.
    pub fn asked(&self, asked: &Asked) -> Procs {
        let table = self.0.borrow();
        let own = table.iter().filter(|(id, owner)| asked.is_of(**id, owner));
        own.map(|(id, owner)| (*id, owner.proc.clone())).collect()
    }

    /// Returns a watch of the table.
    pub fn watch(&self) -> watch::Receiver<Table> {
        self.0.subscribe()
    }
}
