//! The daemon's answers to the two hooks of a push.

use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::{AppName, InvalidName, ReleaseId, RevId},
    transitions::repos::Taken,
    visor::{Refusal, VisorError},
};

use super::{
    Pushes,
    prepare::{Commit, Unprepared},
    state::{Accepted, Ended, HeldTurn, Push},
};
use crate::{
    changes::Changes,
    hook::wire::Call,
    refs,
    repos::{
        disk::BranchError,
        origin::{OriginError, PublishError, Pushed},
    },
    voice::Voice,
};

/// The reasons to reject a push, in words for the pusher.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum Rejected {
    #[error(transparent)]
    Refs(#[from] refs::Refused),
    #[error("there is no app '{0}'; `bazooka init` registers one")]
    NoSuchApp(AppName),
    #[error("app '{0}' is being destroyed")]
    Destroying(AppName),
    #[error(transparent)]
    Branch(#[from] BranchError),
    #[error("another push to '{0}' has not ended yet; push again later")]
    NoTurn(AppName),
    #[error("the coordinator doesn't answer; nothing was built")]
    NoCoordinator,
    #[error(transparent)]
    Commit(#[from] InvalidName),
    #[error(transparent)]
    Unprepared(#[from] Unprepared),
    #[error("{release} is being tried; push again when that is over")]
    BeingTried { release: ReleaseId },
    #[error("{release} failed: {cause}")]
    Failed { release: ReleaseId, cause: String },
    #[error("the rev isn't registered any more")]
    RevGone,
    #[error(transparent)]
    Visor(#[from] VisorError),
    #[error("{0}; the branch stays where it is")]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Unpublished(#[from] PublishError),
    #[error("bazooka-rm is shutting down")]
    ShuttingDown,
    #[error("the push was called off")]
    Cancelled,
}

impl From<Ended> for Rejected {
    fn from(Ended: Ended) -> Rejected {
        Rejected::Cancelled
    }
}

impl Rejected {
    /// Returns the other release whose trial made this one impossible for now.
    pub(super) fn being_tried(error: &VisorError) -> Option<ReleaseId> {
        match error {
            VisorError::Refused(Refusal::BeingTried(_, release)) => Some(*release),
            _ => None,
        }
    }
}

impl Pushes {
    /// Answers the pre-receive hook: builds, registers, tries and publishes the pushed commit.
    ///
    /// # Errors
    /// [`Rejected`]: the branch stays where it is.
    pub async fn pre_receive(
        &self,
        push: &Push,
        call: &Call,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Rejected> {
        let (app, quarantine) = (&push.app, call.quarantine.as_deref());
        let set = refs::change_set(&call.updates)?;
        let options = refs::options(&call.options)?;
        self.registered(app)?;
        self.origin.allows(app, &set, quarantine)?;
        voice.say("change-set accepted").await;

        self.take_turn(push, voice, cancelled).await?;
        self.registered(app)?;
        self.origin.refresh(app).await?;
        self.origin.is_unmoved(app, &set)?;

        let rev: RevId = set.commit.parse()?;
        let commit = Commit { app, rev: &rev, quarantine, user: push.user.as_deref() };
        self.builder.prepare(&commit, voice, cancelled).await?;
        voice.say("build finished").await;
        let pushed = Pushed { app, push: &push.id, set: &set, rev: &rev, options, quarantine };
        push.built(self.origin.stage(&pushed).await?)?;

        if options.no_rollout {
            voice.say(format!("{} is registered; what runs stays as it is", rev.short())).await;
        } else {
            let turn = self.origin.turn(&push.id).map(|turn| turn.push);
            self.releaser.try_release(push, turn, &rev, voice, cancelled).await?;
        }
        let published = push.publish()?.publish().await?;
        Ok(push.accept(published, options.no_wait)?)
    }

    /// Answers the post-receive hook: the branch has moved, so head moves too.
    pub async fn post_receive(&self, push: &Push, voice: &Voice, cancelled: &CancellationToken) {
        let Some(accepted) = push.accepted() else { return };
        if let Some(trial) = &accepted.trial {
            let release = trial.release;
            match self.visor.promote(&push.app, release).await {
                Ok(()) => voice.say(format!("{release} released")).await,
                // The branch has moved, so `mend` releases its commit once this push has ended.
                Err(error) => {
                    voice.say(format!("{release} can't be made head: {error}")).await;
                    voice.say("it will be released as soon as that can be").await;
                    return;
                }
            }
        }
        let Accepted { trial, published, no_wait } = accepted;
        // If the hook is cancelled in here, `close` still finds the published push and ends it.
        published.settle().await;
        drop(published);
        if push.release().is_err() {
            return;
        }
        if let Some(trial) = trial.filter(|_| !no_wait) {
            self.releaser.stream(push, trial, voice, cancelled).await;
        }
    }

    /// Checks that the app is registered and not being destroyed.
    fn registered(&self, app: &AppName) -> Result<(), Rejected> {
        let view = self.apps.view(app).ok_or_else(|| Rejected::NoSuchApp(app.clone()))?;
        if view.app.as_ref().is_some_and(|row| row.destroying) {
            return Err(Rejected::Destroying(app.clone()));
        }
        Ok(())
    }

    /// Waits until no other push to the app is under way, and takes the turn: on this rm, then in the whole cluster.
    async fn take_turn(
        &self,
        push: &Push,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Rejected> {
        let local = self.wait_for_turn(push, voice, cancelled).await?;
        // If this rm or the pusher dies, the turn and the trial end with the lease.
        let lease = LeaseKeeper::start(self.visor.store().clone(), LeaseTiming::default());
        timeout(self.times.coordinator, lease.wait_held()).await.map_err(|_| Rejected::NoCoordinator)?;
        push.take_turn(HeldTurn { lease, local })?;
        self.take_cluster_turn(push, voice, cancelled).await
    }

    /// Waits until no other push to the app is built on this rm.
    async fn wait_for_turn(
        &self,
        push: &Push,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<OwnedMutexGuard<()>, Rejected> {
        let turn = self.turns.of(&push.app);
        if let Ok(turn) = turn.clone().try_lock_owned() {
            return Ok(turn);
        }
        voice.say(format!("another push to '{}' is being built; waiting", push.app)).await;
        let turn = tokio::select! {
            biased;
            turn = timeout(self.times.turn, turn.lock_owned()) => turn,
            () = cancelled.cancelled() => return Err(Rejected::Cancelled),
        };
        turn.map_err(|_| Rejected::NoTurn(push.app.clone()))
    }

    /// Waits until no other rm handles a push to the app, and takes the turn shared by all rms, if there is one.
    async fn take_cluster_turn(
        &self,
        push: &Push,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Rejected> {
        let Some(turn) = self.origin.turn(&push.id) else { return Ok(()) };
        let deadline = Instant::now() + self.times.turn;
        let mut is_told = false;
        loop {
            let mut changes = self.apps.changes();
            let lease = push.lease().ok_or(Rejected::NoCoordinator)?;
            let held = match self.visor.take_turn(&push.app, &turn, lease).await? {
                Taken::Ours => return Ok(()),
                Taken::Held(held) => held,
            };
            if !is_told {
                voice
                    .say(format!("another push to '{}' is being built by {}; waiting", push.app, held.rm))
                    .await;
                is_told = true;
            }
            let is_over = || self.apps.view(&push.app).is_none_or(|view| view.turn.as_ref() != Some(&held));
            let late = || Rejected::NoTurn(push.app.clone());
            wait(&mut changes, cancelled, deadline, late, is_over).await?;
        }
    }
}

/// Waits until `is_over`, asked after each change of the apps' rows.
///
/// # Errors
/// The error from `late` at the deadline; [`Rejected::Cancelled`].
pub(super) async fn wait(
    changes: &mut Changes,
    cancelled: &CancellationToken,
    deadline: Instant,
    late: impl Fn() -> Rejected,
    is_over: impl Fn() -> bool,
) -> Result<(), Rejected> {
    loop {
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() {
                return Err(Rejected::ShuttingDown);
            },
            () = cancelled.cancelled() => return Err(Rejected::Cancelled),
            () = sleep_until(deadline) => return Err(late()),
        }
        if is_over() {
            return Ok(());
        }
    }
}
