//! A push's trial: its begin, its watch and its report.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use visor::{
    keys::Key,
    names::{AppName, ReleaseId, RevId},
    progress::who_is_missing,
    schema::{Promoter, ReleaseStatus, Rev, State},
    snapshot::AppView,
    transitions::releases::{Begun, NewRelease, concerned},
};

use super::{
    Push,
    deploy::{Rejected, wait},
    rollout::Before,
};
use crate::{rm::SharedRm, voice::Voice};

/// Begins the release of a rev and, if there is something to try, waits until it is verified.
///
/// # Errors
/// [`Rejected`]: the release has failed, or did not begin.
pub async fn try_release(
    rm: &SharedRm,
    push: &Arc<Push>,
    rev: &RevId,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<(), Rejected> {
    push.held().before = Before::read(rm, &push.app).await?;
    let by = match &push.user {
        Some(user) => user.clone(),
        // The rev was registered just now, and the apps' image may not have it yet.
        None => rm
            .visor
            .get::<Rev>(&Key::Rev(push.app.clone(), rev.clone()))
            .await?
            .map_or(String::new(), |rev| rev.value.by),
    };
    let new = NewRelease {
        rev: Some(rev.clone()),
        by,
        reason: format!("push of {}", rev.short()),
        token: push.id.clone(),
        turn: rm.storage.as_ref().map(|_| push.id.clone()),
        ..NewRelease::default()
    };
    // Subscribed before the writes: from here on, this push's own writes are in the view or cause a change.
    let mut changes = rm.apps.changes();
    let begun = begin(rm, push, &new, voice, cancelled).await?;
    let release = match begun {
        Begun::Trying(release) => release,
        Begun::Released(release) | Begun::Unchanged(release) => {
            voice.say(format!("{release} released")).await;
            return Ok(());
        }
        Begun::EnvOnly(_) => return Err(Rejected::Internal("the rev isn't registered any more".into())),
    };
    push.held().trial = Some(release);
    tracing::info!(app = %push.app, release = %release, rev = rev.short(), "trial begun");
    voice.say(format!("trying {release}")).await;

    let mut deadline = None;
    let mut told = None;
    let begin = Instant::now();
    let mut alarms = [rm.times.quiet, rm.times.nobody].map(|after| begin + after).into_iter().peekable();
    loop {
        if let Some(view) = rm.apps.view(&push.app) {
            match view.releases.get(&release).map(|row| (row.status, row.cause.clone())) {
                Some((ReleaseStatus::Verified, _)) => {
                    voice.say(format!("{release} is healthy")).await;
                    return Ok(());
                }
                Some((ReleaseStatus::Released, _)) => return Ok(()),
                Some((ReleaseStatus::Failed, cause)) => {
                    push.held().trial = None;
                    let cause = cause.unwrap_or_else(|| "no cause is known".into());
                    return Err(Rejected::Failed { release, cause });
                }
                Some((ReleaseStatus::Trying, _)) => {
                    deadline.get_or_insert_with(|| {
                        Instant::now() + counted_within(&view, release) + rm.times.beyond_boot
                    });
                    tell_shortfall(&view, release, &mut told, voice).await;
                }
                // The apps' image doesn't have the release yet.
                Some((ReleaseStatus::Beside, _)) | None => {}
            }
        }
        let bound = deadline.unwrap_or_else(|| Instant::now() + rm.times.beyond_boot);
        let alarm = alarms.peek().copied().unwrap_or(bound);
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return Err(Rejected::Internal("bazooka-rm is shutting down".into()));
                }
            }
            () = cancelled.cancelled() => {
                let cause = "the push that tried it has ended";
                rm.visor.fail_trial(&push.app, release, cause).await?;
                push.held().trial = None;
                return Err(Rejected::Cancelled);
            }
            () = sleep_until(alarm), if alarm < bound => {
                alarms.next();
                let is_last = alarms.peek().is_none();
                match who_is_missing(&rm.visor).await {
                    Some(missing) if is_last => {
                        rm.visor.fail_trial(&push.app, release, &missing).await?;
                        push.held().trial = None;
                        return Err(Rejected::Failed { release, cause: missing });
                    }
                    Some(missing) => voice.say(format!("waiting: {missing}")).await,
                    None if is_last => {}
                    None => {
                        if let Some(words) = what_is_awaited(rm, push, release).await {
                            voice.say(words).await;
                        }
                    }
                }
            }
            () = sleep_until(bound) => {
                let cause = "it was not verified in time: its instances have not become healthy, or no converger runs";
                rm.visor.fail_trial(&push.app, release, cause).await?;
                push.held().trial = None;
                return Err(Rejected::Failed { release, cause: cause.into() });
            }
        }
    }
}

/// Returns a line with the procs of a trial whose instances aren't healthy yet, and how long those may take.
async fn what_is_awaited(rm: &SharedRm, push: &Push, release: ReleaseId) -> Option<String> {
    let view = rm.apps.view(&push.app)?;
    let failed = push.held().before.failing.clone();
    let tried = || {
        let of_release = view.instances.iter().filter(|(_, instance)| instance.release == release);
        of_release.filter(|(_, instance)| !failed.contains(&instance.proc))
    };
    let statuses =
        rm.visor.statuses(tried().map(|(id, instance)| (instance.host.clone(), *id))).await.ok()?;
    let runs = |id| statuses.get(id).is_some_and(|status| status.state == State::Running);
    let procs: BTreeSet<&str> =
        tried().filter(|(id, _)| !runs(id)).map(|(_, instance)| instance.proc.as_str()).collect();
    let names: Vec<&str> = procs.into_iter().collect();
    let most = counted_within(&view, release).as_secs();
    (!names.is_empty()).then(|| format!("waiting: {} may take {most} s to become healthy", names.join(", ")))
}

/// Begins the release. If another release is on trial, waits for its end until the deadline.
async fn begin(
    rm: &SharedRm,
    push: &Push,
    new: &NewRelease,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<Begun, Rejected> {
    let deadline = Instant::now() + rm.times.other_trial;
    let mut told = false;
    let by = push.user.clone().unwrap_or_else(|| "someone".to_owned());
    let visor = rm.audited(
        by,
        push.from,
        format!("push {}", new.rev.as_ref().map_or("", |rev| rev.short())),
        Some(&push.app),
    );
    loop {
        let mut changes = rm.apps.changes();
        let lease = push.held().lease.as_ref().and_then(|keeper| keeper.held());
        let lease = lease.ok_or(Rejected::NoCoordinator)?;
        let begun =
            visor.begin_release(&push.app, new, Promoter::Pusher, Some(lease), Timestamp::now()).await;
        let error = match begun {
            Ok(begun) => return Ok(begun),
            Err(error) => error,
        };
        let Some(release) = Rejected::being_tried(&error) else { return Err(error.into()) };
        if !told {
            voice.say(format!("{release} is being tried; waiting")).await;
            told = true;
        }
        let late = || Rejected::BeingTried { release };
        wait(&mut changes, cancelled, deadline, late, || !is_tried(rm, &push.app, release)).await?;
    }
}

fn is_tried(rm: &SharedRm, app: &AppName, release: ReleaseId) -> bool {
    rm.apps.view(app).is_some_and(|view| view.trial.as_ref().is_some_and(|trial| trial.release == release))
}

/// Returns how long the slowest proc of a trial may take until it counts as healthy.
fn counted_within(view: &AppView, release: ReleaseId) -> Duration {
    let Some(row) = view.releases.get(&release) else { return Duration::ZERO };
    concerned(view, row)
        .into_iter()
        .filter_map(|proc| view.procs.get(proc))
        .map(|proc| proc.counted_within())
        .max()
        .unwrap_or_default()
}

/// Reports instances that found no place, once for each reason.
async fn tell_shortfall(view: &AppView, release: ReleaseId, told: &mut Option<String>, voice: &Voice) {
    let short = view.pending.iter().find(|(_, pending)| pending.release == release);
    let word = short.map(|(proc, pending)| format!("{proc}: {}", pending.reason));
    if word.is_some() && *told != word {
        if let Some(word) = &word {
            voice.say(word).await;
        }
        *told = word;
    }
}
