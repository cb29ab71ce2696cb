//! Repair of branches that moved without their release becoming head.
//!
//! Git moves a branch after the first hook has accepted the push, even if the pusher has left. If the pusher, git or the
//! rm dies between that and the second hook, the branch names a commit that was built, registered and verified, but does
//! not run. This loop releases such a commit again; only the converger then decides its promotion. Which commits those
//! are is for the repositories to say ([`Origin::left_behind`]).

use std::{sync::Arc, time::Duration};

use visor::{
    names::AppName,
    schema::Promoter,
    visor::{Visor, VisorError},
};

use crate::{apps::Apps, changes::Changes, refs::BRANCHES, repos::origin::Origin, sources::Sources};

/// The pause before a failed release is retried, if no row changes sooner.
const AGAIN: Duration = Duration::from_secs(2);

/// The loop that releases what pushes left behind.
pub struct Mender {
    /// The image of all apps.
    pub apps: Apps,
    /// The coordinator's rows.
    pub visor: Visor,
    /// The repositories.
    pub origin: Arc<dyn Origin>,
    /// Changes when a push has ended.
    pub push_ended: Changes,
    /// The time of releases.
    pub sources: Sources,
}

impl Mender {
    /// Runs the loop until shutdown.
    pub async fn run(mut self) {
        self.origin.take_up().await;
        let mut changes = self.apps.changes();
        loop {
            let mut well = true;
            for app in self.origin.suspects() {
                if let Err(error) = self.release_left(&app).await {
                    well = false;
                    tracing::warn!(app = %app, error = %error, "a pushed commit can't be released; will try again");
                }
            }
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() { return },
                ended = self.push_ended.changed() => if ended.is_err() { return },
                () = tokio::time::sleep(AGAIN), if !well => {}
            }
        }
    }

    async fn release_left(&self, app: &AppName) -> Result<(), VisorError> {
        // Each branch is released at most once.
        for _ in BRANCHES {
            let Some(left) = self.origin.left_behind(app).await? else { return Ok(()) };
            let now = self.sources.now();
            match self.visor.begin_release(app, &left.release, Promoter::Converger, None, now).await {
                Ok(_) => {
                    tracing::info!(app = %app, rev = left.rev.short(), "released what a push left behind");
                    self.origin.made_up(app, &left).await;
                }
                // The end of the trial or of the app is a change, after which this app is looked at again.
                Err(VisorError::Refused(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
