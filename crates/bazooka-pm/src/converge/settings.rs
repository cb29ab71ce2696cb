//! What a proc says of how it is run and replaced.

use std::time::Duration;

use visor::{names::ProcName, schema::Proc, snapshot::AppView};

/// What a proc says of how it is run and replaced.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub min_ready: Duration,
    /// How long an instance may take from its start until it is counted on.
    pub counted_within: Duration,
    pub max_unavailable: u32,
    pub proc: Proc,
}

impl Settings {
    /// Reads an app's proc; a proc that has no row has the default of each setting.
    pub fn of(view: &AppView, proc: &ProcName) -> Self {
        let proc = view.procs.get(proc).map_or_else(|| Proc::new(0), |proc| proc.value.clone());
        Settings {
            min_ready: proc.min_ready(),
            counted_within: proc.counted_within(),
            max_unavailable: proc.most_unavailable(),
            proc,
        }
    }
}
