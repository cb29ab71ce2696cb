//! The recovery of a coordinator from a backup, while hosts have gone on since.
//!
//! Owns the rules by which running instances are entered into rows that do not know them, as a pure plan. Only the
//! recovering program reaches the coordinator meanwhile; the daemons return to a coordinator that knows what they run.
//! The rules:
//!
//! 1. *Running instances stay.* Each live instance that a host reports gets its rows, as its host has them. Nothing
//!    that runs is ended, whatever the backup says.
//! 2. *An ended instance is not started again under its id.* The rows of instances that an answering host no longer has
//!    are deleted; the converger then places replacements.
//! 3. *The newest running release is head.* A release that most of an app's instances run, and that is newer than the
//!    backup's head, becomes head. Other running releases that are newer than the backup stay beside it, until a user
//!    decides otherwise.
//! 4. *Counts are only raised*, to the number of running instances.
//! 5. *No number is used twice.* Ids, ports and revisions continue above all that may have been used.
//! 6. *Presence is renewed.* Each daemon's old lease ends, so that it registers again. Hosts and proxies of the
//!    backup count as present for a while, so that nothing is marked lost meanwhile.
//! 7. *A contradiction is shown, and not resolved.* Nothing is entered of an instance about which hosts contradict each
//!    other, or its host the backup ([`disputes`]).
//! 8. *An instance that cannot be entered runs on.* Hosts keep instances of an app that the backup does not know, and
//!    hosts that did not answer keep theirs ([`Schema::restored`]); the report lists them.
//!
//! [`Schema::restored`]: crate::schema::Schema::restored

mod disputes;
mod plan;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

pub use plan::{Moment, Recovery, plan};

use crate::{
    keys::Key,
    names::{AppName, EnvRef, HostName, InstanceId},
    schema::{Assignment, Handed, Host, Incarnation, Status},
    seal::{PublicKey, WrappedKey},
    store::{Keys, LeaseId, Op, Revision, StoreError, Txn},
    visor::{Change, Committed, Result, Visor, VisorError},
};

/// The answer of a host about itself, independent of the coordinator: `GET /found` of its bazooka-pm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The host's name.
    pub name: HostName,
    /// The row that it registers.
    pub host: Host,
    /// The newest revision that it has seen.
    pub seen: Revision,
    /// The incarnation of the cluster that it last listened to; none if it has not connected yet.
    #[serde(rename = "era", default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// The host's instances, with ended ones as long as it knows them.
    pub instances: BTreeMap<InstanceId, FoundInstance>,
    /// The config vars that the host has, sealed.
    #[serde(default)]
    pub envs: Vec<FoundEnv>,
}

/// An instance on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundInstance {
    /// The instance's assignment.
    pub assignment: Assignment,
    /// The instance's status.
    pub status: Status,
    /// True if its host keeps it although it was never assigned since the coordinator was restored.
    #[serde(default)]
    pub held: bool,
}

/// Config vars on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundEnv {
    /// The app.
    pub app: AppName,
    /// The ref of the env.
    pub env: EnvRef,
    /// The host's copy of the env.
    pub handed: Handed,
    /// The data key, wrapped by the host for each rm that it knew.
    #[serde(default)]
    pub rms: BTreeMap<PublicKey, WrappedKey>,
}

/// The number by which revisions are raised above the newest known one: no part that was not asked has seen a newer
/// one.
pub const REVISIONS_ABOVE: Revision = 10_000;

/// The time for which hosts and proxies count as present until they return.
pub const PRESENT_FOR: Duration = Duration::from_secs(60);

/// The number of concurrent writes that only raise the revision.
const AT_ONCE: usize = 64;

/// The key that is written to raise the revision; it is not in the schema, and is deleted afterwards.
const STEP: &str = "recovering";

impl Visor {
    /// Makes a lease for the rows of the hosts and proxies of the backup.
    ///
    /// # Errors
    /// The store's.
    pub async fn presence_lease(&self) -> Result<LeaseId> {
        Ok(self.store().grant(PRESENT_FOR).await?)
    }

    /// Carries out a recovery. After an interruption, plan it again from the present rows and repeat.
    ///
    /// # Errors
    /// The store's; [`VisorError::Contended`] if another program writes meanwhile.
    pub async fn carry_out(&self, recovery: &Recovery) -> Result<()> {
        for change in &recovery.changes {
            if self.commit(change.clone()).await? == Committed::Conflict {
                return Err(VisorError::Contended);
            }
        }
        for lease in &recovery.ended_leases {
            match self.store().revoke(*lease).await {
                Ok(()) | Err(StoreError::LeaseNotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.raise_revision(recovery.revision_above).await
    }

    /// Writes until the store's revision is above this one. etcd before 3.6 offers no other way.
    async fn raise_revision(&self, above: Revision) -> Result<()> {
        let put = || Txn {
            then: vec![Op::Put { key: STEP.into(), value: "1".into(), lease: None }],
            ..Txn::default()
        };
        let now = self.store().txn(put()).await?.revision;
        let missing = usize::try_from(above - now).unwrap_or(0);
        stream::iter(0..missing)
            .map(|_| async { self.store().txn(put()).await.map(drop) })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let gone = Txn { then: vec![Op::Delete(Keys::One(STEP.into()))], ..Txn::default() };
        let last = self.store().txn(gone).await?.revision;
        // No watch needs these revisions.
        match self.store().compact(last - 1).await {
            Ok(()) | Err(StoreError::Compacted { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns the put of a row under a lease, whether the row exists or not.
fn present<T: Serialize>(key: &Key, value: &T, lease: LeaseId) -> Change {
    Change::new().put_leased(key, value, Some(lease))
}
