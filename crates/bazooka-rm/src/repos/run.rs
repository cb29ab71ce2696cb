//! The loop that brings the repositories to the wanted state.

use std::{sync::Arc, time::Duration};

use bazooka_daemon::in_words;
use jiff::Timestamp;
use tokio::{sync::oneshot, task::JoinError, time::Instant};
use visor::{
    names::AppName,
    pause::until,
    visor::{Refusal, Visor, VisorError},
};

use super::{
    Own, Step,
    disk::{Disk, DiskError},
    origin::Origin,
    plan,
};
use crate::{apps::Apps, changes::Changes};

/// The pause before a failed step is retried.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// A step that failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Visor(#[from] VisorError),
    #[error("{}", in_words(.0))]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Panicked(#[from] JoinError),
}

/// The loop over all repositories, and what it needs.
pub struct Repositories {
    /// The image of all apps.
    pub apps: Apps,
    /// The coordinator's rows.
    pub visor: Visor,
    /// The repositories on disk.
    pub disk: Disk,
    /// The repositories that pushes move.
    pub origin: Arc<dyn Origin>,
    /// This rm's identity.
    pub own: Own,
    /// True for an app with a push under way; the removal of its repository then waits.
    pub busy: Box<dyn Fn(&AppName) -> bool + Send + Sync>,
    /// Changes when a push has ended.
    pub push_ended: Changes,
}

impl Repositories {
    /// Runs the loop until shutdown. Sends `settled` when no step was left for the first time.
    pub async fn run(mut self, settled: oneshot::Sender<()>) {
        let mut settled = Some(settled);
        let mut changes = self.apps.changes();
        loop {
            let known = self.apps.known();
            let failed = known.complete && !self.converge(&known).await;
            let again = failed.then(|| Instant::now() + TRY_AGAIN);
            if known.complete && !failed {
                if let Some(settled) = settled.take() {
                    // The receiver may have gone.
                    let _ = settled.send(());
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                ended = self.push_ended.changed() => if ended.is_err() { return },
                () = until(again) => {}
            }
        }
    }

    /// Takes every step that is due. Returns false if one failed.
    async fn converge(&self, known: &crate::apps::Known) -> bool {
        let disk = self.disk.clone();
        let observed = tokio::task::spawn_blocking(move || disk.observe()).await;
        let observed = match observed.map_err(std::io::Error::other).and_then(|observed| observed) {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(error = %error, "the repositories can't be read");
                return false;
            }
        };
        let mut well = true;
        for (app, steps) in plan(known, &observed, &self.own, |case| self.origin.steps(case)) {
            for step in steps {
                let removes = matches!(step, Step::Remove | Step::Forget);
                if removes && (self.busy)(&app) {
                    break;
                }
                match self.take(&app, &step).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(app = %app, action = ?step, error = %error, "a repository is not as it should be");
                        well = false;
                        break;
                    }
                }
            }
        }
        well
    }

    /// Deletes an app's rows. The stored objects of its repository are deleted before, because only the app's row leads
    /// to them.
    async fn forget(&self, app: &AppName) -> Result<bool, VisorError> {
        let token = self.apps.view(app).and_then(|view| view.app.as_ref().map(|row| row.token.clone()));
        if let Some(token) = token {
            if let Err(error) = self.origin.forget(app, &token).await {
                tracing::warn!(app = %app, error = %error, "can't remove what is stored of an app; will try again");
                return Ok(false);
            }
        }
        self.visor.forget_app(app, Timestamp::now()).await
    }

    /// Takes a step. Returns false if the steps after it can't be taken now.
    async fn take(&self, app: &AppName, step: &Step) -> Result<bool, StepError> {
        match step {
            Step::Report(repo) => match self.visor.report_repo(app, repo).await {
                // The app has gone meanwhile; the next plan sees that.
                Err(VisorError::Refused(Refusal::NoSuchApp(_))) => return Ok(false),
                other => other?,
            },
            Step::Forget => match self.forget(app).await {
                Ok(true) => tracing::info!(app = %app, "app forgotten"),
                Ok(false) => return Ok(false),
                // Another rm deleted the app first.
                Err(VisorError::Refused(Refusal::NoSuchApp(_))) => {}
                Err(error) => return Err(error.into()),
            },
            step => {
                let (disk, app, step) = (self.disk.clone(), app.clone(), step.clone());
                let taken = tokio::task::spawn_blocking(move || -> Result<(), DiskError> {
                    match &step {
                        Step::Create { token } => {
                            disk.create(&app, token)?;
                            tracing::info!(app = %app, "repository created");
                            Ok(())
                        }
                        Step::Configure => disk.configure(&app),
                        Step::InstallHooks => disk.install_hooks(&app),
                        Step::Doom => disk.doom(&app),
                        Step::Remove => {
                            disk.remove(&app)?;
                            tracing::info!(app = %app, "repository removed");
                            Ok(())
                        }
                        Step::Report(_) | Step::Forget => Ok(()),
                    }
                })
                .await;
                taken??;
            }
        }
        Ok(true)
    }
}
