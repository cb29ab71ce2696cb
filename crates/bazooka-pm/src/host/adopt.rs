//! The starts that this bazooka-pm has to find out about: those of an earlier one, and its own that have ended.
//!
//! Owns the reading of a start's file and of its lock, which tell what became of the start. What a dead shim has left
//! behind is swept before the start counts as ended.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use bazooka_sandbox::{
    files::try_lock,
    machine::boot_id,
    protocol::{ExitRecord, LaunchSpec, ShimState, Start},
};
use visor::names::InstanceId;

use super::{
    folders::Folders,
    pools::Pool,
    process::Shim,
    sweep::{Remains, sweep},
};

/// The time after which a shim of an earlier bazooka-pm that hasn't written what it started is logged as an error.
const SLOW_SHIM: Duration = Duration::from_secs(10);

/// The pause before another look at an end that couldn't be looked at.
const UNSEEN_PAUSE: Duration = Duration::from_millis(100);

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
pub async fn find(pool: &Pool, folders: Folders, id: InstanceId, run: u32) -> Found {
    let begun = Instant::now();
    let mut complained = false;
    loop {
        let place = folders.clone();
        match pool.run(move || look(&place, id, run)).await {
            Ok(Look::Running(state)) => {
                if let Some(shim) = Shim::of(state) {
                    return Found::Running(shim);
                }
                // The shim ended in this moment: look again.
            }
            Ok(Look::Over(found)) => return found,
            Ok(Look::Left(left)) => return left.swept(pool).await,
            Ok(Look::NotYet) => {}
            Ok(Look::Unseen(error)) => {
                if begun.elapsed() > SLOW_SHIM && !complained {
                    tracing::error!(instance = %id, error = %error, "an instance's start can't be looked at");
                }
            }
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
    /// The shim was killed, and may have left something behind.
    Left(Left),
    /// The shim has yet to write its process id and its child's.
    NotYet,
    /// The start's file can't be looked at, which says nothing about the start.
    Unseen(io::Error),
}

/// The start of a shim that was killed.
struct Left {
    remains: Remains,
    found: Found,
    /// The start's file, locked until the remains are gone.
    _held: Option<fs::File>,
}

impl Left {
    async fn swept(self, pool: &Pool) -> Found {
        sweep(pool, self.remains).await;
        self.found
    }
}

fn look(folders: &Folders, id: InstanceId, run: u32) -> Look {
    let path = folders.run(id, run);
    let file = fs::File::options().read(true).append(true).open(&path);
    let read = || match Start::<LaunchSpec>::load(&path) {
        Ok(_) if boot_id().is_empty() => Err(io::Error::other("the machine's boot id can't be read")),
        read => read,
    };
    // Locked until this start is cleaned up.
    let held = match file {
        Ok(file) => match try_lock(&file) {
            Ok(Some(())) => Some(file),
            Ok(None) | Err(_) => {
                return match read().map(|start| start.shim) {
                    Ok(Some(state)) if state.child.is_some() && state.boot_id == boot_id() => {
                        Look::Running(state)
                    }
                    Ok(_) => Look::NotYet,
                    Err(error) => Look::Unseen(error),
                };
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Look::Unseen(error),
    };
    let Start { spec, shim, exit } = match read() {
        Ok(start) => start,
        Err(error) => return Look::Unseen(error),
    };
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
    let remains = Remains { home: folders.home(id), uid: spec.and_then(|spec| spec.uid), groups };
    let found = if state.child.is_some() {
        Found::Ended(Ended::ShimKilled)
    } else {
        Found::NotStarted("its start had been cut short".to_owned())
    };
    Look::Left(Left { remains, found, _held: held })
}

/// Waits until a shim has ended, cleans up, and returns how the instance ended.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn wait(pool: &Pool, shim: Shim, folders: Folders, id: InstanceId, run: u32) -> Ended {
    shim.gone().await;
    let mut complained = false;
    loop {
        let (shim, place) = (shim.clone(), folders.clone());
        let looked = pool.run(move || {
            shim.reap();
            look(&place, id, run)
        });
        let found = match looked.await {
            Ok(Look::Over(found)) => found,
            Ok(Look::Left(left)) => left.swept(pool).await,
            Ok(Look::Running(_) | Look::NotYet) | Err(_) => return Ended::ShimKilled,
            Ok(Look::Unseen(error)) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::error!(instance = %id, error = %error, "an instance's end can't be looked at");
                }
                tokio::time::sleep(UNSEEN_PAUSE).await;
                continue;
            }
        };
        return match found {
            Found::Ended(ended) => ended,
            Found::Running(_) | Found::NotStarted(_) => Ended::ShimKilled,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_cannot_be_looked_at_has_not_ended() {
        let dir = tempfile::tempdir().expect("a folder");
        let folders = Folders::create(dir.path()).expect("there is room");
        let id = InstanceId(7);
        assert!(matches!(look(&folders, id, 1), Look::Over(Found::NotStarted(_))), "there is no file");
        // A folder can't be read as a file, whichever user tries.
        fs::create_dir_all(folders.run(id, 1)).expect("there is room");
        assert!(matches!(look(&folders, id, 1), Look::Unseen(_)));
    }
}
