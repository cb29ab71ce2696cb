//! A push's trial: its begin, its watch and its report.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use visor::{
    keys::Key,
    names::{AppName, ProcName, ReleaseId, RevId},
    progress::who_is_missing,
    schema::{Promoter, ReleaseStatus, Rev, State},
    snapshot::AppView,
    transitions::releases::{Begun, NewRelease, concerned},
    visor::{Visor, VisorError},
};

use super::{
    Times,
    deploy::{Rejected, wait},
    rollout::Before,
    state::{Push, Trial},
};
use crate::{apps::Apps, audit::Auditor, changes::Changes, sources::Sources, voice::Voice};

/// The way from a rev to head.
pub(super) struct Releaser {
    pub apps: Apps,
    pub visor: Visor,
    pub auditor: Auditor,
    pub times: Times,
    pub sources: Sources,
}

/// A trial under watch, with the messages that were printed so far.
struct Watch<'a> {
    push: &'a Push,
    trial: &'a Trial,
    voice: &'a Voice,
    /// When the trial is given up; known once the release is.
    deadline: Option<Instant>,
    /// The last reported lack of a place.
    shortfall: Option<String>,
}

impl Releaser {
    /// Begins the release of a rev and, if there is something to try, waits until it is verified. `turn` is the cluster's
    /// turn that the release requires.
    ///
    /// # Errors
    /// [`Rejected`]: the release has failed, or did not begin.
    pub async fn try_release(
        &self,
        push: &Push,
        turn: Option<String>,
        rev: &RevId,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Rejected> {
        let before = Before::read(&self.visor, &push.app, self.sources.now()).await?;
        let by = match &push.user {
            Some(user) => user.clone(),
            // The rev was registered just now, and the apps' image may not have it yet.
            None => self
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
            turn,
            ..NewRelease::default()
        };
        // Subscribed before the writes: from here on, this push's own writes are in the view or cause a change.
        let mut changes = self.apps.changes();
        let release = match self.begin(push, &new, voice, cancelled).await? {
            Begun::Trying(release) => release,
            Begun::Released(release) | Begun::Unchanged(release) => {
                voice.say(format!("{release} released")).await;
                self.say_how_to_run(&push.app, rev, voice).await?;
                return Ok(());
            }
            Begun::EnvOnly(_) => return Err(Rejected::RevGone),
        };
        let trial = Trial { release, before };
        push.begin_trial(trial.clone())?;
        tracing::info!(app = %push.app, release = %release, rev = rev.short(), "trial begun");
        voice.say(format!("trying {release}")).await;
        let mut watch = Watch { push, trial: &trial, voice, deadline: None, shortfall: None };
        let verdict = self.watch(&mut watch, &mut changes, cancelled).await;
        if let Err(Rejected::Failed { .. } | Rejected::Cancelled) = &verdict {
            // A push that has ended meanwhile has no trial any more.
            let _ = push.end_trial();
        }
        verdict
    }

    /// Says how the app is started, if nothing of it is wanted.
    async fn say_how_to_run(&self, app: &AppName, rev: &RevId, voice: &Voice) -> Result<(), Rejected> {
        let is_wanted = self.apps.view(app).is_some_and(|view| {
            view.formation.keys().any(|proc| view.wanted(proc).values().any(|count| *count > 0))
        });
        if is_wanted {
            return Ok(());
        }
        // The rev was registered just now, and the apps' image may not have it yet.
        let row = self.visor.get::<Rev>(&Key::Rev(app.clone(), rev.clone())).await?;
        let procs: Vec<&ProcName> = row.iter().flat_map(|row| row.procs.keys()).collect();
        if let Some(proc) = procs.iter().find(|proc| proc.as_str() == "web").or(procs.first()) {
            voice.say(format!("nothing of it runs yet; to start it: bazooka scale -n 1 {proc}")).await;
        }
        Ok(())
    }

    /// Waits for the verdict, and gives up a trial that nobody judges.
    async fn watch(
        &self,
        watch: &mut Watch<'_>,
        changes: &mut Changes,
        cancelled: &CancellationToken,
    ) -> Result<(), Rejected> {
        let (push, release) = (watch.push, watch.trial.release);
        let begin = Instant::now();
        let mut alarms =
            [self.times.quiet, self.times.nobody].map(|after| begin + after).into_iter().peekable();
        loop {
            if let Some(verdict) = self.verdict(watch).await {
                return verdict;
            }
            let bound = watch.deadline.unwrap_or_else(|| Instant::now() + self.times.beyond_boot);
            let alarm = alarms.peek().copied().unwrap_or(bound);
            tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(Rejected::ShuttingDown);
                    }
                }
                () = cancelled.cancelled() => {
                    let cause = "the push that tried it has ended";
                    self.visor.fail_trial(&push.app, release, cause).await?;
                    return Err(Rejected::Cancelled);
                }
                () = sleep_until(alarm), if alarm < bound => {
                    alarms.next();
                    self.look_around(watch, alarms.peek().is_none()).await?;
                }
                () = sleep_until(bound) => {
                    let cause = "it was not verified in time: its instances have not become healthy, or no converger runs";
                    return Err(self.give_up(push, release, cause.into()).await?);
                }
            }
        }
    }

    /// Returns the verdict, if there is one by now. Otherwise reports instances without a place.
    async fn verdict(&self, watch: &mut Watch<'_>) -> Option<Result<(), Rejected>> {
        let release = watch.trial.release;
        let view = self.apps.view(&watch.push.app)?;
        // The apps' image may not have the release yet.
        let row = view.releases.get(&release)?;
        match row.status {
            ReleaseStatus::Verified => {
                watch.voice.say(format!("{release} is healthy")).await;
                Some(Ok(()))
            }
            ReleaseStatus::Released => Some(Ok(())),
            ReleaseStatus::Failed => {
                let cause = row.cause.clone().unwrap_or_else(|| "no cause is known".into());
                Some(Err(Rejected::Failed { release, cause }))
            }
            ReleaseStatus::Trying => {
                watch.deadline.get_or_insert_with(|| {
                    Instant::now() + counted_within(&view, release) + self.times.beyond_boot
                });
                tell_shortfall(&view, release, &mut watch.shortfall, watch.voice).await;
                None
            }
            ReleaseStatus::Beside => None,
        }
    }

    /// Tells the pusher what the trial waits for. At the last time, gives the trial up if a part of the cluster is
    /// missing.
    async fn look_around(&self, watch: &Watch<'_>, is_last: bool) -> Result<(), Rejected> {
        let (push, voice) = (watch.push, watch.voice);
        match who_is_missing(&self.visor).await {
            Some(missing) if is_last => Err(self.give_up(push, watch.trial.release, missing).await?),
            Some(missing) => {
                voice.say(format!("waiting: {missing}")).await;
                Ok(())
            }
            None if is_last => Ok(()),
            None => {
                if let Some(words) = self.what_is_awaited(push, watch.trial).await {
                    voice.say(words).await;
                }
                Ok(())
            }
        }
    }

    /// Ends a trial for this cause, and returns what the pusher reads.
    async fn give_up(&self, push: &Push, release: ReleaseId, cause: String) -> Result<Rejected, VisorError> {
        self.visor.fail_trial(&push.app, release, &cause).await?;
        Ok(Rejected::Failed { release, cause })
    }

    /// Returns a line with the procs of a trial whose instances aren't healthy yet, and how long those may take.
    async fn what_is_awaited(&self, push: &Push, trial: &Trial) -> Option<String> {
        let Trial { release, before } = trial;
        let view = self.apps.view(&push.app)?;
        let tried = || {
            let of_release = view.instances.iter().filter(|(_, instance)| instance.release == *release);
            of_release.filter(|(_, instance)| !before.failing.contains(&instance.proc))
        };
        let statuses =
            self.visor.statuses(tried().map(|(id, instance)| (instance.host.clone(), *id))).await.ok()?;
        let runs = |id| statuses.get(id).is_some_and(|status| status.state == State::Running);
        let procs: BTreeSet<&str> =
            tried().filter(|(id, _)| !runs(id)).map(|(_, instance)| instance.proc.as_str()).collect();
        let names: Vec<&str> = procs.into_iter().collect();
        let most = counted_within(&view, *release).as_secs();
        (!names.is_empty())
            .then(|| format!("waiting: {} may take {most} s to become healthy", names.join(", ")))
    }

    /// Begins the release. If another release is on trial, waits for its end until the deadline.
    async fn begin(
        &self,
        push: &Push,
        new: &NewRelease,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<Begun, Rejected> {
        let deadline = Instant::now() + self.times.other_trial;
        let mut is_told = false;
        let by = push.user.clone().unwrap_or_else(|| "someone".to_owned());
        let what = format!("push {}", new.rev.as_ref().map_or("", |rev| rev.short()));
        let visor = self.auditor.visor(by, push.from, what, Some(&push.app));
        loop {
            let mut changes = self.apps.changes();
            let lease = push.lease().ok_or(Rejected::NoCoordinator)?;
            let begun =
                visor.begin_release(&push.app, new, Promoter::Pusher, Some(lease), self.sources.now()).await;
            let error = match begun {
                Ok(begun) => return Ok(begun),
                Err(error) => error,
            };
            let Some(release) = Rejected::being_tried(&error) else { return Err(error.into()) };
            if !is_told {
                voice.say(format!("{release} is being tried; waiting")).await;
                is_told = true;
            }
            let late = || Rejected::BeingTried { release };
            wait(&mut changes, cancelled, deadline, late, || !self.is_tried(&push.app, release)).await?;
        }
    }

    fn is_tried(&self, app: &AppName, release: ReleaseId) -> bool {
        let view = self.apps.view(app);
        view.is_some_and(|view| view.trial.as_ref().is_some_and(|trial| trial.release == release))
    }
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
async fn tell_shortfall(view: &AppView, release: ReleaseId, known: &mut Option<String>, voice: &Voice) {
    let short = view.pending.iter().find(|(_, pending)| pending.release == release);
    let word = short.map(|(proc, pending)| format!("{proc}: {}", pending.reason));
    if word.is_some() && *known != word {
        if let Some(word) = &word {
            voice.say(word).await;
        }
        *known = word;
    }
}
