//! etcd's users and roles, derived from the rows of admitted identities and of each app's people.
//!
//! Owns the loop that applies them. Only bazooka-rm has etcd's root role. Several rms apply the same steps without
//! disturbing each other, because a step that is done needs no repetition. etcd's users and roles are read at start,
//! after a failure and every five minutes; in between they are known from the steps.

use std::time::Duration;

use bazooka_daemon::Cluster;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use visor::{
    access::{Rows, Users, plan, wanted},
    identity::Identity,
    store::{StoreError, wait_until_ready},
};

use crate::apps::{Apps, Known};

/// The pause before a failed step is retried.
const AGAIN: Duration = Duration::from_secs(1);

/// The rounds of steps that follow each other at once; after that comes one for each [`ROUND_EVERY`].
///
/// Each step raises the revision of etcd's rights, and a request that began under an earlier one fails and is repeated. So
/// what comes in a flood is brought about in batches.
const ROUNDS_AT_ONCE: u32 = 10;

/// The pause between rounds in a flood.
const ROUND_EVERY: Duration = Duration::from_secs(1);

/// The interval at which etcd's users and roles are read again, in case someone else changed them.
const READ_EVERY: Duration = Duration::from_secs(300);

/// The time that a request which changed a row waits until etcd enforces the change.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(5);

/// The rows that etcd's users and roles were last derived from.
#[derive(Clone)]
pub struct InForce(watch::Receiver<Option<Rows>>);

impl InForce {
    /// Waits at most 5 s until etcd enforces rows for which `is_so` is true. Returns whether it does. Returns true at
    /// once in a cluster without identities (`told_apart` is false).
    pub async fn wait(&self, told_apart: bool, is_so: impl FnMut(&Rows) -> bool) -> bool {
        let mut is_so = is_so;
        let mut rows = self.0.clone();
        let waited = rows.wait_for(|rows| rows.as_ref().is_some_and(&mut is_so));
        !told_apart || timeout(IN_FORCE_WITHIN, waited).await.is_ok_and(|waited| waited.is_ok())
    }
}

/// Returns the loop's sender of enforced rows, and the receiver for everyone else.
pub fn in_force() -> (watch::Sender<Option<Rows>>, InForce) {
    let (says, rows) = watch::channel(None);
    (says, InForce(rows))
}

/// Returns the rows that decide access.
pub fn rows(known: &Known) -> Rows {
    let people = |view: &visor::snapshot::AppView| {
        view.access.as_ref().map(|access| access.users.keys().cloned().collect()).unwrap_or_default()
    };
    Rows {
        apps: known.apps.iter().map(|(app, view)| (app.clone(), people(view))).collect(),
        identities: known.identities.iter().map(|(who, row)| (who.clone(), row.operator)).collect(),
    }
}

/// Prepares etcd for this rm: makes its own user with the root role, and turns authentication on. Does nothing in a
/// cluster without identities.
///
/// # Errors
/// The store's.
pub async fn prepare(cluster: &Cluster, prefix: &str) -> Result<(), StoreError> {
    let Some(credentials) = &cluster.credentials else { return Ok(()) };
    let own = credentials.identity();
    let say =
        |error: &StoreError| tracing::warn!(error = %error, "waiting for the coordinator to let this rm in");
    wait_until_ready(cluster.visor.store().as_ref(), say).await?;
    let found = cluster.etcd.users().await?;
    // Without users, etcd lets everyone write: then this is the first rm, and makes its own user.
    let asked = wanted(prefix, &Rows::default(), &own);
    let only_ours = Users {
        roles: asked.roles.clone(),
        users: asked
            .users
            .into_iter()
            .filter(|(user, _)| *user == own.to_string() || user == "root")
            .collect(),
    };
    let of_ours = Users {
        roles: found.roles.into_iter().filter(|(role, _)| asked.roles.contains_key(role)).collect(),
        users: found.users.into_iter().filter(|(user, _)| only_ours.users.contains_key(user)).collect(),
    };
    for op in plan(prefix, &only_ours, &of_ours) {
        cluster.etcd.apply_auth(&op).await?;
    }
    cluster.etcd.enable_auth().await
}

/// Keeps etcd's users and roles as the rows want them. Never returns before shutdown.
pub async fn run(cluster: Cluster, prefix: String, apps: Apps, says: watch::Sender<Option<Rows>>) {
    let Some(credentials) = cluster.credentials.clone() else { return };
    let own = credentials.identity();
    let mut changes = apps.changes();
    let mut found: Option<(Users, Instant)> = None;
    let mut pace = Pace::default();
    loop {
        let known = apps.known();
        let rows = rows(&known);
        if known.complete {
            match bring_about(&cluster, &prefix, &rows, &own, &mut found).await {
                Ok(steps) => {
                    says.send_if_modified(|now| {
                        let is_new = now.as_ref() != Some(&rows);
                        *now = Some(rows);
                        is_new
                    });
                    if steps > 0 {
                        sleep(pace.pause(Instant::now())).await;
                    }
                }
                Err(error) => {
                    found = None;
                    tracing::warn!(error = %error, "etcd's users and roles can't be set; trying on");
                    sleep(AGAIN).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep(READ_EVERY) => {}
        }
    }
}

async fn bring_about(
    cluster: &Cluster,
    prefix: &str,
    rows: &Rows,
    own: &Identity,
    found: &mut Option<(Users, Instant)>,
) -> Result<usize, StoreError> {
    let wanted = wanted(prefix, rows, own);
    let known = match found.take().filter(|(_, read)| read.elapsed() < READ_EVERY) {
        Some(known) => known,
        None => (cluster.etcd.users().await?, Instant::now()),
    };
    let steps = plan(prefix, &wanted, &known.0);
    for step in &steps {
        tracing::debug!(?step, "etcd's users");
        cluster.etcd.apply_auth(step).await?;
    }
    let (mut users, read) = known;
    if !steps.is_empty() {
        // All of this cluster's roles are now as wanted, and all others are unchanged.
        let ours = format!("{prefix}:");
        users.roles.retain(|role, _| !role.starts_with(&ours));
        users.roles.extend(wanted.roles.clone());
        for (user, roles) in &mut users.users {
            roles.retain(|role| !role.starts_with(&ours));
            if !wanted.users.contains_key(user) && user.starts_with("rm:") {
                roles.remove(visor::access::ROOT);
            }
        }
        users.users.retain(|user, roles| wanted.users.contains_key(user) || !roles.is_empty());
        for (user, roles) in wanted.users {
            users.users.entry(user).or_default().extend(roles);
        }
    }
    *found = Some((users, read));
    Ok(steps.len())
}

/// How fast rounds follow each other.
#[derive(Default)]
struct Pace {
    /// The rounds that were made at once, less one for each [`ROUND_EVERY`] since.
    made: u32,
    since: Option<Instant>,
}

impl Pace {
    /// Counts a round that ends now. Returns the pause before the next one.
    fn pause(&mut self, now: Instant) -> Duration {
        let passed = self.since.map_or(0, |since| (now - since).as_secs() / ROUND_EVERY.as_secs());
        self.made = self.made.saturating_sub(u32::try_from(passed).unwrap_or(u32::MAX)) + 1;
        if passed > 0 || self.since.is_none() {
            self.since = Some(now);
        }
        if self.made > ROUNDS_AT_ONCE { ROUND_EVERY } else { Duration::ZERO }
    }
}

/// Writes this rm's own identity to the admitted ones, so that other rms leave its rights in place.
///
/// # Errors
/// The store's.
pub async fn admit_itself(cluster: &Cluster) -> Result<(), visor::visor::VisorError> {
    let Some(credentials) = &cluster.credentials else { return Ok(()) };
    let own = credentials.identity();
    cluster.visor.admit(&own, false, &own.to_string(), Timestamp::now()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_brought_about_in_batches_and_single_changes_at_once() {
        let mut pace = Pace::default();
        let begin = Instant::now();
        for _ in 0..30 {
            sleep(pace.pause(Instant::now())).await;
        }
        assert_eq!(begin.elapsed(), ROUND_EVERY * 20);
        sleep(ROUND_EVERY * 11).await;
        for _ in 0..10 {
            assert_eq!(pace.pause(Instant::now()), Duration::ZERO);
        }
    }
}
