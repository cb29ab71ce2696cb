//! The starts that this bazooka-pm has to find out about: those of an earlier one, and its own that have ended.
//!
//! Owns the reading of a start's file and of its lock, which tell what became of the start. What a dead shim has left
//! behind is swept before the start counts as ended.

use std::{
    fs,
    time::{Duration, Instant},
};

use bazooka_sandbox::{
    files::try_lock,
    machine::boot_id,
    protocol::{ExitRecord, LaunchSpec, ShimState, Start},
};
use visor::names::InstanceId;

use super::{folders::Folders, process::Shim, sweep::sweep};

/// The time after which a shim of an earlier bazooka-pm that hasn't written what it started is logged as an error.
const SLOW_SHIM: Duration = Duration::from_secs(10);

/// The outcome of looking for a start of an earlier bazooka-pm.
pub enum Found {
    /// The start's shim runs.
    Running(Shim),
    /// The start has ended, and nothing of it is left.
    Ended(Ended),
    /// The start came to nothing, or ended with the machine.
    NotStarted(String),
}

/// The end of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The exit that its shim recorded.
    Recorded(ExitRecord),
    /// The shim was killed, and with it everything that it had started.
    ShimKilled,
}

/// Finds out what became of a start of an earlier bazooka-pm.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn find(folders: Folders, id: InstanceId, run: u32) -> Found {
    let begun = Instant::now();
    let mut complained = false;
    loop {
        let place = folders.clone();
        let looked = tokio::task::spawn_blocking(move || look(&place, id, run)).await;
        match looked {
            Ok(Look::Running(state)) => {
                if let Some(shim) = Shim::of(state) {
                    return Found::Running(shim);
                }
                // The shim ended in this moment: look again.
            }
            Ok(Look::Over(found)) => return found,
            Ok(Look::NotYet) => {}
            Err(error) => tracing::error!(instance = %id, error = %error, "can't look after an instance"),
        }
        if begun.elapsed() > SLOW_SHIM && !complained {
            complained = true;
            tracing::error!(instance = %id, "an instance's shim runs, and doesn't say what it has started");
        }
        tokio::time::sleep(if complained { Duration::from_millis(500) } else { Duration::from_millis(5) })
            .await;
    }
}

enum Look {
    Running(ShimState),
    Over(Found),
    /// The shim has yet to write its process id and its child's.
    NotYet,
}

fn look(folders: &Folders, id: InstanceId, run: u32) -> Look {
    let path = folders.run(id, run);
    let file = fs::File::options().read(true).append(true).open(&path);
    let read = || Start::<LaunchSpec>::read(&path);
    // Locked until this start is cleaned up.
    let _held = match file {
        Ok(file) => match try_lock(&file) {
            Ok(Some(())) => Some(file),
            Ok(None) | Err(_) => {
                return match read().shim {
                    Some(state) if state.child.is_some() && state.boot_id == boot_id() => {
                        Look::Running(state)
                    }
                    _ => Look::NotYet,
                };
            }
        },
        Err(_) => None,
    };
    let Start { spec, shim, exit } = read();
    if let Some(exit) = exit {
        return Look::Over(Found::Ended(Ended::Recorded(exit)));
    }
    let Some(state) = shim else {
        return Look::Over(Found::NotStarted("its start had been cut short".to_owned()));
    };
    if state.boot_id != boot_id() {
        return Look::Over(Found::NotStarted("the machine was started anew".to_owned()));
    }
    let groups = spec.as_ref().map(LaunchSpec::all_groups).unwrap_or_default();
    sweep(&folders.home(id), spec.and_then(|spec| spec.uid), &groups);
    Look::Over(if state.child.is_some() {
        Found::Ended(Ended::ShimKilled)
    } else {
        Found::NotStarted("its start had been cut short".to_owned())
    })
}

/// Waits until a shim has ended, cleans up, and returns how the instance ended.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn wait(shim: Shim, folders: Folders, id: InstanceId, run: u32) -> Ended {
    shim.gone().await;
    let cleared = tokio::task::spawn_blocking(move || {
        shim.reap();
        match look(&folders, id, run) {
            Look::Over(Found::Ended(ended)) => ended,
            Look::Over(_) | Look::Running(_) | Look::NotYet => Ended::ShimKilled,
        }
    });
    cleared.await.unwrap_or(Ended::ShimKilled)
}
