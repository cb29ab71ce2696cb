//! A push and its state: the diagram at the head of [`super`], as an enum.
//!
//! Owns the transitions. Each consumes a state; a transition from another state than its own changes nothing.

use std::{
    mem,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use visor::{
    lease::LeaseKeeper,
    names::{AppName, ReleaseId},
    store::LeaseId,
};

use super::rollout::Before;
use crate::repos::origin::{Published, Staged};

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
    state: Mutex<PushState>,
}

/// The state of a push, with what the push holds in it.
pub(super) enum PushState {
    /// Git has started; no hook has called, or the push waits for its turn.
    Opened,
    /// The push has the app's turn, and its commit is built.
    Turn { turn: HeldTurn },
    /// The rev is registered, and the repository is ready for it.
    Built { turn: HeldTurn, staged: Box<dyn Staged> },
    /// The release is on trial.
    Trying { turn: HeldTurn, staged: Box<dyn Staged>, trial: Trial },
    /// The trial is over, or there was nothing to try, and the push is being published.
    Publishing { turn: HeldTurn, trial: Option<Trial> },
    /// Git has been told to move the branch.
    Accepted { turn: HeldTurn, accepted: Accepted },
    /// The push holds nothing any more: head has moved, or the request has ended.
    Released,
}

/// The turn at an app, and the lease that ends it if this rm dies.
pub(super) struct HeldTurn {
    pub lease: LeaseKeeper,
    /// The turn on this rm.
    pub local: OwnedMutexGuard<()>,
}

impl HeldTurn {
    /// Gives the turn back: first to the whole cluster, then on this rm.
    pub(super) async fn release(self) {
        self.lease.release().await;
        drop(self.local);
    }
}

/// A release on trial.
#[derive(Clone)]
pub(super) struct Trial {
    pub release: ReleaseId,
    /// The app before the trial.
    pub before: Before,
}

/// A push that git may carry out.
#[derive(Clone)]
pub(super) struct Accepted {
    /// `None` if there was nothing to try.
    pub trial: Option<Trial>,
    pub published: Arc<dyn Published>,
    /// True if the pusher doesn't wait for the rollout.
    pub no_wait: bool,
}

/// The push has ended meanwhile.
#[derive(Debug, thiserror::Error)]
#[error("the push was called off")]
pub struct Ended;

/// The outcome of a transition.
enum Next {
    /// The next state.
    Passed(PushState),
    /// The same state, from which the transition doesn't begin.
    Refused(PushState),
}

impl PushState {
    fn with_turn(self, turn: HeldTurn) -> Next {
        match self {
            PushState::Opened => Next::Passed(PushState::Turn { turn }),
            other => Next::Refused(other),
        }
    }

    fn with_build(self, staged: Box<dyn Staged>) -> Next {
        match self {
            PushState::Turn { turn } => Next::Passed(PushState::Built { turn, staged }),
            other => Next::Refused(other),
        }
    }

    fn with_trial(self, trial: Trial) -> Next {
        match self {
            PushState::Built { turn, staged } => Next::Passed(PushState::Trying { turn, staged, trial }),
            other => Next::Refused(other),
        }
    }

    fn without_trial(self) -> Next {
        match self {
            PushState::Trying { turn, staged, .. } => Next::Passed(PushState::Built { turn, staged }),
            other => Next::Refused(other),
        }
    }

    /// Hands out the staged push.
    fn publishing(self, taken: &mut Option<Box<dyn Staged>>) -> Next {
        let (turn, staged, trial) = match self {
            PushState::Built { turn, staged } => (turn, staged, None),
            PushState::Trying { turn, staged, trial } => (turn, staged, Some(trial)),
            other => return Next::Refused(other),
        };
        *taken = Some(staged);
        Next::Passed(PushState::Publishing { turn, trial })
    }

    fn accepted(self, published: Arc<dyn Published>, no_wait: bool) -> Next {
        match self {
            PushState::Publishing { turn, trial } => {
                Next::Passed(PushState::Accepted { turn, accepted: Accepted { trial, published, no_wait } })
            }
            other => Next::Refused(other),
        }
    }

    fn released(self) -> Next {
        match self {
            PushState::Accepted { .. } => Next::Passed(PushState::Released),
            other => Next::Refused(other),
        }
    }
}

impl Push {
    pub(super) fn new(id: String, app: AppName, user: Option<String>, from: Option<SocketAddr>) -> Push {
        let (gone, state) = (CancellationToken::new(), Mutex::new(PushState::Opened));
        Push { id, app, user, from, gone, state }
    }

    fn state(&self) -> MutexGuard<'_, PushState> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn pass(&self, transition: impl FnOnce(PushState) -> Next) -> Result<(), Ended> {
        let mut state = self.state();
        let (next, passed) = match transition(mem::replace(&mut *state, PushState::Released)) {
            Next::Passed(next) => (next, Ok(())),
            Next::Refused(same) => (same, Err(Ended)),
        };
        *state = next;
        passed
    }

    /// The push has its turn.
    pub(super) fn take_turn(&self, turn: HeldTurn) -> Result<(), Ended> {
        self.pass(|state| state.with_turn(turn))
    }

    /// The rev is registered and staged.
    pub(super) fn built(&self, staged: Box<dyn Staged>) -> Result<(), Ended> {
        self.pass(|state| state.with_build(staged))
    }

    /// The trial has begun.
    pub(super) fn begin_trial(&self, trial: Trial) -> Result<(), Ended> {
        self.pass(|state| state.with_trial(trial))
    }

    /// The trial has failed.
    pub(super) fn end_trial(&self) -> Result<(), Ended> {
        self.pass(PushState::without_trial)
    }

    /// The push is to be published.
    pub(super) fn publish(&self) -> Result<Box<dyn Staged>, Ended> {
        let mut staged = None;
        self.pass(|state| state.publishing(&mut staged))?;
        staged.ok_or(Ended)
    }

    /// The push is published, so that git may move the branch. If the push has ended meanwhile, `published` ends here.
    pub(super) fn accept(&self, published: Arc<dyn Published>, no_wait: bool) -> Result<(), Ended> {
        self.pass(|state| state.accepted(published, no_wait))
    }

    /// Head has moved, so the next push may go on.
    pub(super) fn release(&self) -> Result<(), Ended> {
        self.pass(PushState::released)
    }

    /// Ends the push and returns what it held.
    pub(super) fn end(&self) -> PushState {
        mem::replace(&mut *self.state(), PushState::Released)
    }

    /// Returns what git carries out, while it does.
    pub(super) fn accepted(&self) -> Option<Accepted> {
        match &*self.state() {
            PushState::Accepted { accepted, .. } => Some(accepted.clone()),
            _ => None,
        }
    }

    /// Returns the lease of the push's turn and trial, if it is held at this very moment.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        match &*self.state() {
            PushState::Opened | PushState::Released => None,
            PushState::Turn { turn }
            | PushState::Built { turn, .. }
            | PushState::Trying { turn, .. }
            | PushState::Publishing { turn, .. }
            | PushState::Accepted { turn, .. } => turn.lease.held(),
        }
    }

    /// True if git has been told to carry out the push.
    pub fn is_accepted(&self) -> bool {
        matches!(&*self.state(), PushState::Accepted { .. } | PushState::Released)
    }
}
