//! A proc's settings for how it runs and is replaced, with defaults filled in.

use std::time::Duration;

use visor::{names::ProcName, schema::Proc, snapshot::AppView};

/// A proc's settings for how it runs and is replaced.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub min_ready: Duration,
    /// The longest time from an instance's start until it counts as available.
    pub counted_within: Duration,
    pub max_unavailable: u32,
    pub proc: Proc,
}

impl Settings {
    /// Reads the settings of an app's proc; a proc without a row has the defaults.
    pub fn of(view: &AppView, proc: &ProcName) -> Self {
        let proc = view.procs.get(proc).map_or_else(|| Proc::new(proc, 0), |row| row.value.clone());
        Settings {
            min_ready: proc.min_ready(),
            counted_within: proc.counted_within(),
            max_unavailable: proc.most_unavailable(),
            proc,
        }
    }
}
