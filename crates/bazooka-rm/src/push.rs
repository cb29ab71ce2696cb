//! Pushes: from git's hooks to a release.
//!
//! Owns a push's life, which spans two hooks and the git process between them. A push belongs to the request that
//! carries it: when the request ends, the push's turn, lease and trial end too.
//!
//! ```text
//! Opened ─turn─▶ Turn ─build─▶ Built ─trial─▶ Trying ─verified─▶ Publishing ─published─▶ Accepted ─head moved─▶ Released
//!    │             │            │ ▲             │                 ▲   │                     │                      ▲
//!    │             │            │ └───failed────┘                 │   │                     │                      │
//!    │             │            └──────nothing to try─────────────┘   │                     │                      │
//!    └─────────────┴──────────────────────── the request ends ────────┴─────────────────────┴──────────────────────┘
//! ```
//!
//! [`PushState`] is this diagram. What a push holds is in its state, so it ends with the state: the turn is given back,
//! the lease is revoked, the copy of the repository is no longer left to git. A step that finds the push ended ends too.
//!
//! Where rms share a file storage, the turn covers all of them, and a push is stored before it is accepted
//! ([`crate::repos::shared`]).

mod deploy;
pub mod mend;
pub mod prepare;
mod rollout;
mod state;
#[cfg(test)]
mod tests;
mod trial;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use visor::{
    deadlines::{NOBODY, OTHER_TRIAL, PUSH_BEYOND_BOOT, PUSH_QUIET},
    names::{AppName, ReleaseId},
    visor::Visor,
};

pub use deploy::Rejected;
pub use state::Push;

use self::{prepare::Build, state::PushState, trial::Releaser};
use crate::{
    apps::Apps,
    audit::Auditor,
    changes::{Changes, Changing},
    repos::origin::Origin,
    sources::Sources,
    turns::Turns,
};

/// The time limits of a push.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The wait for another push to the same app to end: a build and a trial.
    pub turn: Duration,
    /// The wait for the trial of another release, which this push didn't start.
    pub other_trial: Duration,
    /// The wait for the verdict, beyond the time that the instances have to boot. The converger's own limit ends
    /// sooner, because the converger knows the cause.
    pub beyond_boot: Duration,
    /// The time after which the pusher reads what a trial waits for.
    pub quiet: Duration,
    /// The wait for a converger and a host if there is none. Electing a new converger takes as long as a lease.
    pub nobody: Duration,
    /// The wait for the coordinator's answer before the build.
    pub coordinator: Duration,
    /// The longest time that a rollout is reported to the pusher.
    pub rollout: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            turn: Duration::from_secs(20 * 60),
            other_trial: OTHER_TRIAL,
            beyond_boot: PUSH_BEYOND_BOOT,
            quiet: PUSH_QUIET,
            nobody: NOBODY,
            coordinator: Duration::from_secs(5),
            rollout: Duration::from_secs(15 * 60),
        }
    }
}

/// The parts of bazooka-rm that pushes use.
pub struct PushParts {
    /// The image of all apps.
    pub apps: Apps,
    /// The coordinator's rows.
    pub visor: Visor,
    /// The repositories.
    pub origin: Arc<dyn Origin>,
    /// The turns on this rm.
    pub turns: Arc<Turns>,
    /// The way from a commit to a rev.
    pub builder: Arc<dyn Build>,
    /// The coordinator's rows for audited changes.
    pub auditor: Auditor,
    /// The time limits.
    pub times: Times,
    /// The time and the ids of pushes.
    pub sources: Sources,
}

/// The pushes that are under way, and their steps.
pub struct Pushes {
    open: Mutex<HashMap<String, Arc<Push>>>,
    /// Counts the pushes that have ended.
    ended: Changing,
    apps: Apps,
    visor: Visor,
    origin: Arc<dyn Origin>,
    turns: Arc<Turns>,
    builder: Arc<dyn Build>,
    sources: Sources,
    releaser: Releaser,
    times: Times,
}

impl Pushes {
    /// Returns no pushes so far.
    pub fn new(parts: PushParts) -> Pushes {
        let PushParts { apps, visor, origin, turns, builder, auditor, times, sources } = parts;
        let releaser =
            Releaser { apps: apps.clone(), visor: visor.clone(), auditor, times, sources: sources.clone() };
        let (open, ended) = (Mutex::default(), Changing::default());
        Pushes { open, ended, apps, visor, origin, turns, builder, sources, releaser, times }
    }

    /// Opens a push with a new random id.
    pub fn open(&self, app: AppName, user: Option<String>, from: Option<SocketAddr>) -> Arc<Push> {
        let push = Arc::new(Push::new(self.sources.id(), app, user, from));
        self.open.lock().expect("no holder of this lock panics").insert(push.id.clone(), push.clone());
        push
    }

    /// Returns the push with this id, if it is under way.
    pub fn find(&self, id: &str) -> Option<Arc<Push>> {
        self.open.lock().expect("no holder of this lock panics").get(id).cloned()
    }

    /// True if any push to the app is under way.
    pub fn is_busy(&self, app: &AppName) -> bool {
        self.open.lock().expect("no holder of this lock panics").values().any(|push| push.app == *app)
    }

    /// Returns a receiver that reports each later end of a push.
    pub fn ended(&self) -> Changes {
        self.ended.subscribe()
    }

    /// Ends a push after its request, git and the hooks have ended.
    pub async fn close(&self, push: &Push) {
        match push.end() {
            PushState::Opened | PushState::Released => {}
            PushState::Turn { turn } | PushState::Built { turn, .. } => turn.release().await,
            PushState::Trying { turn, trial, .. } => {
                self.end_trial(push, trial.release, false).await;
                turn.release().await;
            }
            PushState::Publishing { turn, trial } => {
                if let Some(trial) = trial {
                    self.end_trial(push, trial.release, false).await;
                }
                turn.release().await;
            }
            PushState::Accepted { turn, accepted } => {
                let has_moved = accepted.published.close().await;
                if let Some(trial) = &accepted.trial {
                    self.end_trial(push, trial.release, has_moved).await;
                }
                turn.release().await;
            }
        }
        self.open.lock().expect("no holder of this lock panics").remove(&push.id);
        self.ended.report();
    }

    /// Ends the trial of a push that ended while its release was tried, or between the trial and the second hook. If the
    /// branch has moved all the same, head moves too.
    async fn end_trial(&self, push: &Push, release: ReleaseId, has_moved: bool) {
        let ended = if has_moved {
            self.visor.promote(&push.app, release).await
        } else {
            self.visor.fail_trial(&push.app, release, "the push that tried it has ended").await
        };
        match ended {
            Ok(()) => {
                tracing::info!(app = %push.app, release = %release, released = has_moved, "the push went away");
            }
            // The push's lease ends the trial, and the converger marks the release failed.
            Err(error) => {
                tracing::warn!(app = %push.app, release = %release, error = %error, "can't end its trial");
            }
        }
    }
}
