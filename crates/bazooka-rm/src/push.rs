//! Pushes: from git's hooks to a release.
//!
//! Owns a push's life, which spans two hooks and the git process between them. A push belongs to the request that
//! carries it: when the request ends, the push's turn, lease and trial end too.
//!
//! ```text
//! opened ─pre-receive─▶ checked ─turn─▶ building ─▶ registered ─▶ trying ─▶ accepted ─post-receive─▶ released
//!    │                     │               │             │           │          │
//!    └─────────────────────┴───────────────┴─────────────┴───────────┴──────────┴──▶ closed
//! ```
//!
//! Where rms share a file storage, the turn covers all of them, and a push is stored before it is accepted
//! ([`crate::stored`]).

mod deploy;
pub mod mend;
mod prepare;
pub mod refs;
mod rollout;
mod trial;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use visor::{
    deadlines::{NOBODY, OTHER_TRIAL, PUSH_BEYOND_BOOT, PUSH_QUIET},
    lease::LeaseKeeper,
    names::{AppName, ReleaseId},
};

pub use deploy::{Rejected, post_receive, pre_receive};

use crate::{
    rm::SharedRm,
    stored::{self, Stash},
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

/// A push that is under way.
pub struct Push {
    /// The push's random id, which only git's own processes receive.
    pub id: String,
    /// The app that is pushed to.
    pub app: AppName,
    /// The pusher's name, if the request has it.
    pub user: Option<String>,
    /// The pusher's address.
    pub from: Option<SocketAddr>,
    /// Cancelled when the pusher has left.
    pub gone: CancellationToken,
    held: Mutex<Held>,
}

/// The resources that a push holds.
#[derive(Default)]
struct Held {
    /// The app's turn on this rm: no other push to the app is built meanwhile.
    turn: Option<OwnedMutexGuard<()>>,
    /// The lease of the push's trial.
    lease: Option<LeaseKeeper>,
    /// The running instances and the failing procs before the trial.
    before: rollout::Before,
    /// The release on trial.
    trial: Option<ReleaseId>,
    /// The accepted change, once git has been told to carry it out.
    accepted: Option<Accepted>,
    /// The objects that this push stored, once the app's row names them.
    landed: Option<Stash>,
}

/// A push that git may carry out.
#[derive(Clone, Debug)]
struct Accepted {
    set: refs::ChangeSet,
    options: refs::Options,
}

impl Push {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock panics")
    }

    /// True if git has been told to carry out the push.
    pub fn is_accepted(&self) -> bool {
        self.held().accepted.is_some()
    }

    /// Releases turn, lease and trial once head has moved, so that the next push may go on.
    fn let_go(&self) {
        let mut held = self.held();
        held.trial = None;
        drop(held.turn.take());
        drop(held.lease.take());
    }
}

/// The pushes that are under way.
#[derive(Default)]
pub struct Pushes {
    open: Mutex<HashMap<String, Arc<Push>>>,
    turns: Mutex<BTreeMap<AppName, Arc<AsyncMutex<()>>>>,
    /// Notified when a push has ended.
    pub ended: Arc<Notify>,
}

impl Pushes {
    /// Opens a push with a new random id.
    pub fn open(&self, app: AppName, user: Option<String>, from: Option<SocketAddr>) -> Arc<Push> {
        let push = Arc::new(Push {
            id: format!("{:032x}", rand::random::<u128>()),
            app,
            user,
            from,
            gone: CancellationToken::new(),
            held: Mutex::default(),
        });
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

    /// Returns the lock that is an app's turn.
    fn turn(&self, app: &AppName) -> Arc<AsyncMutex<()>> {
        let mut turns = self.turns.lock().expect("no holder of this lock panics");
        // Drop the locks that no push holds or waits for.
        turns.retain(|name, turn| name == app || Arc::strong_count(turn) > 1);
        turns.entry(app.clone()).or_default().clone()
    }

    fn forget(&self, id: &str) {
        self.open.lock().expect("no holder of this lock panics").remove(id);
        self.ended.notify_one();
    }
}

/// Ends a push after its request, git and the hooks have ended.
pub async fn close(rm: &SharedRm, push: &Push) {
    let (trial, accepted, landed) = {
        let mut held = push.held();
        (held.trial, held.accepted.clone(), held.landed.take())
    };
    if landed.is_some() {
        // The stored row is the truth, whether or not git has moved the branch of this copy.
        stored::not_landing(rm, &push.app);
        if let Err(error) = stored::bring_up(rm, &push.app).await {
            tracing::warn!(app = %push.app, error = %error, "a repository can't be brought up to what is stored");
        }
    }
    if let Some(release) = trial {
        end_trial(rm, push, release, accepted.as_ref()).await;
    }
    let lease = push.held().lease.take();
    if let Some(lease) = lease {
        lease.release().await;
    }
    push.let_go();
    rm.pushes.forget(&push.id);
    if accepted.is_some() && rm.storage.is_none() {
        mend::mend(rm, &push.app).await;
    }
}

/// Ends the trial of a push that ended while its release was tried, or between the trial and the second hook. If git
/// has moved the branch all the same, head moves too.
async fn end_trial(rm: &SharedRm, push: &Push, release: ReleaseId, accepted: Option<&Accepted>) {
    // With a shared storage, an accepted push has already moved the stored row.
    let moved =
        accepted.is_some_and(|accepted| rm.storage.is_some() || mend::names(rm, &push.app, &accepted.set));
    let ended = if moved {
        rm.visor.promote(&push.app, release).await
    } else {
        rm.visor.fail_trial(&push.app, release, "the push that tried it has ended").await
    };
    match ended {
        Ok(()) => {
            tracing::info!(app = %push.app, release = %release, released = moved, "the push went away");
        }
        // The push's lease ends the trial, and the converger marks the release failed.
        Err(error) => {
            tracing::warn!(app = %push.app, release = %release, error = %error, "can't end its trial")
        }
    }
}
