//! Pushes: from git's hooks to a release.
//!
//! Owns a push's life, which spans two hooks and the process of git between them. A push belongs to the
//! request that carries it: when that ends, so does all that the push still holds (its turn, its lease, its
//! trial).
//!
//! ```text
//! opened ─pre-receive─▶ checked ─turn─▶ building ─▶ registered ─▶ trying ─▶ accepted ─post-receive─▶ released
//!    │                     │               │             │           │          │
//!    └─────────────────────┴───────────────┴─────────────┴───────────┴──────────┴──▶ closed
//! ```
//!
//! Where rms share a file storage, the turn is one over all of them, and a push is stored before it is accepted
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

/// How long a push waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For another push to the same app to end: a build and a trial.
    pub turn: Duration,
    /// For a release that is being tried, of which this push knows nothing.
    pub other_trial: Duration,
    /// For the verdict, beyond the time that the instances have to boot. The converger's own bound comes first:
    /// it knows the cause.
    pub beyond_boot: Duration,
    /// Until it is said what a trial waits for.
    pub quiet: Duration,
    /// For a converger and a host, where there is none. A new converger needs a lease's time to be elected.
    pub nobody: Duration,
    /// For the coordinator to answer before anything is built.
    pub coordinator: Duration,
    /// For the rollout that is streamed.
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
    /// Its name, which only git's own processes are told.
    pub id: String,
    /// Where it goes.
    pub app: AppName,
    /// Who pushes, if the request says so.
    pub user: Option<String>,
    /// Where they push from.
    pub from: Option<SocketAddr>,
    /// The pusher has gone.
    pub gone: CancellationToken,
    held: Mutex<Held>,
}

/// What a push holds.
#[derive(Default)]
struct Held {
    /// Its turn: no other push to the app is built meanwhile.
    turn: Option<OwnedMutexGuard<()>>,
    /// The lease of its trial.
    lease: Option<LeaseKeeper>,
    /// What ran, and what failed, before its trial.
    before: rollout::Before,
    /// Its trial.
    trial: Option<ReleaseId>,
    /// What it deploys, once that is accepted.
    accepted: Option<Accepted>,
    /// What it has stored, once that counts.
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

    /// Whether git has been told to carry it out.
    pub fn is_accepted(&self) -> bool {
        self.held().accepted.is_some()
    }

    /// Gives up what nothing needs any more once head has moved: the next push may go on.
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
    /// Rung when a push has ended.
    pub ended: Arc<Notify>,
}

impl Pushes {
    /// Opens a push.
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

    /// The push of this name, while it is under way.
    pub fn find(&self, id: &str) -> Option<Arc<Push>> {
        self.open.lock().expect("no holder of this lock panics").get(id).cloned()
    }

    /// Whether any push to an app is under way.
    pub fn is_busy(&self, app: &AppName) -> bool {
        self.open.lock().expect("no holder of this lock panics").values().any(|push| push.app == *app)
    }

    /// An app's turn.
    fn turn(&self, app: &AppName) -> Arc<AsyncMutex<()>> {
        let mut turns = self.turns.lock().expect("no holder of this lock panics");
        // Those that nobody holds or waits for are as good as none.
        turns.retain(|name, turn| name == app || Arc::strong_count(turn) > 1);
        turns.entry(app.clone()).or_default().clone()
    }

    fn forget(&self, id: &str) {
        self.open.lock().expect("no holder of this lock panics").remove(id);
        self.ended.notify_one();
    }
}

/// Ends a push: its request is over, and with it git and its hooks.
pub async fn close(rm: &SharedRm, push: &Push) {
    let (trial, accepted, landed) = {
        let mut held = push.held();
        (held.trial, held.accepted.clone(), held.landed.take())
    };
    if landed.is_some() {
        // What is stored counts; the branch may be here or not.
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

/// A push has gone while its release was tried, or after that and before its second hook: if git has moved
/// the branch all the same, so must head.
async fn end_trial(rm: &SharedRm, push: &Push, release: ReleaseId, accepted: Option<&Accepted>) {
    // Where a storage is shared, a push that is accepted has moved what is stored.
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
        // Its lease ends it, and the converger marks the release.
        Err(error) => {
            tracing::warn!(app = %push.app, release = %release, error = %error, "can't end its trial")
        }
    }
}
