//! The daemon's answers to the two hooks of a push.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use visor::{
    lease::{LeaseKeeper, LeaseTiming},
    names::{AppName, RevId},
    schema::{Branch, Extra, Turn},
    snapshot::AppView,
    transitions::repos::Taken,
    visor::{Refusal, VisorError},
};

use super::{
    Accepted, Push,
    prepare::{Commit, Unprepared, prepare},
    refs::{self, ChangeSet},
    rollout, trial,
};
use crate::{
    hook::wire::Call,
    repos::disk::denies_non_fast_forwards,
    rm::SharedRm,
    settled,
    stored::{self, Pushed, StoredError},
    tree,
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
    #[error(
        "{branch} of app '{app}' holds commits that this push would leave behind, and its repository denies that (receive.denyNonFastForwards); fetch and merge them first"
    )]
    NonFastForward { app: AppName, branch: String },
    #[error("{0} has moved meanwhile; fetch it and push again")]
    Moved(String),
    #[error("another push to '{0}' has not ended yet; push again later")]
    NoTurn(AppName),
    #[error("the coordinator doesn't answer; nothing was built")]
    NoCoordinator,
    #[error(transparent)]
    Unprepared(#[from] Unprepared),
    #[error("{release} is being tried; push again when that is over")]
    BeingTried { release: visor::names::ReleaseId },
    #[error("{release} failed: {cause}")]
    Failed { release: visor::names::ReleaseId, cause: String },
    #[error(transparent)]
    Visor(#[from] VisorError),
    #[error("{0}; the branch stays where it is")]
    Stored(#[from] StoredError),
    #[error("the pushed commit can't be read: {0}")]
    Git(#[from] git2::Error),
    #[error("{0}")]
    Internal(String),
    #[error("the push was called off")]
    Cancelled,
}

/// Answers the pre-receive hook: builds, registers and tries the pushed commit.
///
/// # Errors
/// [`Rejected`]: the branch stays where it is.
pub async fn pre_receive(
    rm: &SharedRm,
    push: &Arc<Push>,
    call: &Call,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<(), Rejected> {
    let set = refs::change_set(&call.updates)?;
    let options = refs::options(&call.options)?;
    registered(rm, &push.app)?;
    let repository = rm.layout.repo(&push.app);
    fast_forward(&push.app, &repository, call.quarantine.as_deref(), &set)?;
    voice.say("change-set accepted").await;
    turn(rm, push, &repository, &set, voice, cancelled).await?;

    // If this rm or the pusher dies, the trial ends with the lease.
    let keeper = LeaseKeeper::start(rm.visor.store().clone(), LeaseTiming::default());
    timeout(rm.times.coordinator, keeper.wait_held()).await.map_err(|_| Rejected::NoCoordinator)?;
    push.held().lease = Some(keeper);
    if rm.storage.is_some() {
        take_turn(rm, push, voice, cancelled).await?;
        // Another rm may have taken a push since git read this copy's branches.
        stored::bring_up(rm, &push.app).await?;
        unmoved(&repository, &set)?;
    }
    let rev: RevId = set.commit.parse().map_err(|error| Rejected::Internal(format!("{error}")))?;
    let commit =
        Commit { app: &push.app, rev: &rev, quarantine: call.quarantine.clone(), user: push.user.as_deref() };
    prepare(rm, &commit, voice, cancelled).await?;
    voice.say("build finished").await;

    let stash = match &rm.storage {
        Some(storage) => {
            let branches = moves(push, &set, &rev, options);
            let pushed = Pushed { app: &push.app, branches, quarantine: call.quarantine.as_deref() };
            Some(stored::stash(rm, storage, &pushed).await?)
        }
        None => None,
    };
    if options.no_rollout {
        if stash.is_none() {
            for update in &set.updates {
                settled::note(&repository, &update.name, &set.commit)
                    .map_err(|error| Rejected::Internal(error.to_string()))?;
            }
        }
        voice.say(format!("{} is registered; what runs stays as it is", rev.short())).await;
    } else {
        trial::try_release(rm, push, &rev, voice, cancelled).await?;
    }
    if let Some(stash) = stash {
        stored::land(rm, &push.app, &push.id, &stash).await?;
        push.held().landed = Some(stash);
    }
    push.held().accepted = Some(Accepted { set, options });
    Ok(())
}

/// Returns the pushed branches' entries for the `stored` row.
fn moves(push: &Push, set: &ChangeSet, rev: &RevId, options: refs::Options) -> BTreeMap<String, Branch> {
    let branch = Branch {
        commit: rev.clone(),
        push: push.id.clone(),
        no_rollout: options.no_rollout,
        extra: Extra::new(),
    };
    set.updates.iter().map(|update| (update.name.clone(), branch.clone())).collect()
}

/// Answers the post-receive hook: the branch has moved, so head moves too.
pub async fn post_receive(rm: &SharedRm, push: &Arc<Push>, voice: &Voice, cancelled: &CancellationToken) {
    let (accepted, trial) = {
        let held = push.held();
        (held.accepted.clone(), held.trial)
    };
    let Some(accepted) = accepted else { return };
    if let Some(release) = trial {
        match rm.visor.promote(&push.app, release).await {
            Ok(()) => voice.say(format!("{release} released")).await,
            // The branch has moved, so `mend` releases its commit once this push has ended.
            Err(error) => {
                voice.say(format!("{release} can't be made head: {error}")).await;
                voice.say("it will be released as soon as that can be").await;
                return;
            }
        }
        push.held().trial = None;
    }
    let repository = rm.layout.repo(&push.app);
    let landed = push.held().landed.clone();
    if let Some((stash, storage)) = landed.as_ref().zip(rm.storage.as_ref()) {
        stored::landed(rm, &push.app, stash).await;
        // Cleared only now: if the hook is cancelled before this line, `close` still finds the stash and cleans up.
        push.held().landed = None;
        stored::clear(rm, storage, &push.app, stash).await;
    }
    for update in &accepted.set.updates {
        if landed.is_none() {
            if let Err(error) = settled::note(&repository, &update.name, &accepted.set.commit) {
                tracing::warn!(app = %push.app, error = %error, "can't note that the push has gone through");
            }
        }
        point_head(&repository, &update.name);
    }
    push.let_go();
    if let Some(release) = trial.filter(|_| !accepted.options.no_wait) {
        let before = std::mem::take(&mut push.held().before);
        rollout::stream(rm, push, release, before, voice, cancelled).await;
    }
}

/// Returns the app if it is registered and not being destroyed.
fn registered(rm: &SharedRm, app: &AppName) -> Result<Arc<AppView>, Rejected> {
    let view = rm.apps.view(app).ok_or_else(|| Rejected::NoSuchApp(app.clone()))?;
    if view.app.as_ref().is_some_and(|row| row.destroying) {
        return Err(Rejected::Destroying(app.clone()));
    }
    Ok(view)
}

/// Rejects a forced push if the repository denies it. Git checks this only after the hook, when the build is already
/// done.
fn fast_forward(
    app: &AppName,
    repository: &Path,
    quarantine: Option<&Path>,
    set: &ChangeSet,
) -> Result<(), Rejected> {
    let repository = tree::open(repository, quarantine)?;
    if !denies_non_fast_forwards(&repository) {
        return Ok(());
    }
    for update in set.updates.iter().filter(|update| !update.creates()) {
        let (old, new) = (git2::Oid::from_str(&update.old)?, git2::Oid::from_str(&update.new)?);
        if old != new && !repository.graph_descendant_of(new, old)? {
            return Err(Rejected::NonFastForward { app: app.clone(), branch: update.name.clone() });
        }
    }
    Ok(())
}

/// Waits until no other push to the app is built.
async fn turn(
    rm: &SharedRm,
    push: &Arc<Push>,
    repository: &Path,
    set: &ChangeSet,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<(), Rejected> {
    let turn = rm.pushes.turn(&push.app);
    if let Ok(turn) = turn.clone().try_lock_owned() {
        push.held().turn = Some(turn);
        return Ok(());
    }
    voice.say(format!("another push to '{}' is being built; waiting", push.app)).await;
    let mine = tokio::select! {
        mine = timeout(rm.times.turn, turn.lock_owned()) => mine,
        () = cancelled.cancelled() => return Err(Rejected::Cancelled),
    };
    push.held().turn = Some(mine.map_err(|_| Rejected::NoTurn(push.app.clone()))?);
    registered(rm, &push.app)?;
    unmoved(repository, set)
}

/// Waits until no other rm handles a push to the app, and takes the turn shared by all rms.
async fn take_turn(
    rm: &SharedRm,
    push: &Arc<Push>,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<(), Rejected> {
    let turn = Turn {
        rm: rm.own.name.clone(),
        process: rm.own.process.clone(),
        push: push.id.clone(),
        extra: Extra::new(),
    };
    let deadline = Instant::now() + rm.times.turn;
    let mut told = false;
    loop {
        let mut changes = rm.apps.changes();
        let lease = push.held().lease.as_ref().and_then(LeaseKeeper::held).ok_or(Rejected::NoCoordinator)?;
        let held = match rm.visor.take_turn(&push.app, &turn, lease).await? {
            Taken::Ours => return Ok(()),
            Taken::Held(held) => held,
        };
        if !told {
            voice.say(format!("another push to '{}' is being built by {}; waiting", push.app, held.rm)).await;
            told = true;
        }
        let is_over = || rm.apps.view(&push.app).is_none_or(|view| view.turn.as_ref() != Some(&held));
        let late = || Rejected::NoTurn(push.app.clone());
        wait(&mut changes, cancelled, deadline, late, is_over).await?;
    }
}

/// Waits until `is_over`, asked after each change of the apps' rows.
///
/// # Errors
/// The error from `late` at the deadline; [`Rejected::Cancelled`].
pub(super) async fn wait(
    changes: &mut watch::Receiver<u64>,
    cancelled: &CancellationToken,
    deadline: Instant,
    late: impl Fn() -> Rejected,
    is_over: impl Fn() -> bool,
) -> Result<(), Rejected> {
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return Err(Rejected::Internal("bazooka-rm is shutting down".into()));
            },
            () = cancelled.cancelled() => return Err(Rejected::Cancelled),
            () = sleep_until(deadline) => return Err(late()),
        }
        if is_over() {
            return Ok(());
        }
    }
}

/// Checks that the branches are where the pusher saw them. Git would reject a moved branch only after the build.
fn unmoved(repository: &Path, set: &ChangeSet) -> Result<(), Rejected> {
    let repository = tree::open(repository, None)?;
    for update in &set.updates {
        let now = repository.refname_to_id(&update.name).ok().map(|id| id.to_string());
        let seen = if update.creates() { None } else { Some(update.old.clone()) };
        if now != seen {
            return Err(Rejected::Moved(update.name.trim_start_matches("refs/heads/").into()));
        }
    }
    Ok(())
}

/// Points the repository's HEAD at the deployed branch, so that a clone checks it out.
fn point_head(repository: &Path, branch: &str) {
    let point = || -> Result<(), git2::Error> {
        let repository = git2::Repository::open_bare(repository)?;
        let head = repository.find_reference("HEAD")?;
        if head.symbolic_target().ok().flatten() != Some(branch) {
            repository.set_head(branch)?;
        }
        Ok(())
    };
    if let Err(error) = point() {
        tracing::warn!(branch, error = %error, "can't point the repository's HEAD");
    }
}

impl Rejected {
    /// Returns the other release whose trial made this one impossible for now.
    pub(super) fn being_tried(error: &VisorError) -> Option<visor::names::ReleaseId> {
        match error {
            VisorError::Refused(Refusal::BeingTried(_, release)) => Some(*release),
            _ => None,
        }
    }
}
