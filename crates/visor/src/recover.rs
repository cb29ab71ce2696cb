//! A coordinator that was restored from a backup, and hosts that have gone on since.
//!
//! Owns the rules by which what runs is taken up into rows that know nothing of it, as a pure plan. Nobody but who
//! recovers reaches the coordinator meanwhile; daemons come back to one that knows what they run. The rules:
//!
//! 1. *What runs stands.* Each live instance that a host tells of gets its rows, as its host has them. Nothing that runs is
//!    ended, whatever the backup says.
//! 2. *What doesn't run any more isn't started under its old id.* The rows of what a host that answers doesn't have go; what
//!    is missing then is placed anew.
//! 3. *The newest that runs is head.* A release that most of an app's instances run, and that is newer than the
//!    backup's head, is made head; what else runs of the backup's future stays beside it, until somebody says otherwise.
//! 4. *Counts are only raised*: to what runs.
//! 5. *No number is given twice.* Ids, ports and revisions go on above all that may have been given.
//! 6. *Presence is made anew*: each daemon's old lease ends, so that it registers again, and hosts and proxies that were
//!    there count as there for a while, so that nothing is taken for lost meanwhile.
//! 7. *What can't be taken up runs on.* Instances of an app that the backup doesn't know, and those of hosts that
//!    didn't answer, are held by their hosts ([`Schema::restored`]), and told here.
//!
//! [`Schema::restored`]: crate::schema::Schema::restored

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
    schema::{Assignment, Era, Handed, Host, Status},
    seal::{PublicKey, WrappedKey},
    store::{Keys, LeaseId, Op, Revision, StoreError, Txn},
    visor::{Change, Committed, Result, Visor, VisorError},
};

/// What a host says of itself, whatever the coordinator knows: `GET /found` of its bazooka-pm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its name.
    pub name: HostName,
    /// What it registers.
    pub host: Host,
    /// The newest revision that it has seen.
    pub seen: Revision,
    /// Which cluster it listened to last; none if it hasn't heard yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub era: Option<Era>,
    /// What it has, ended ones left in as long as it knows them.
    pub instances: BTreeMap<InstanceId, FoundInstance>,
    /// The config vars that it has, sealed.
    #[serde(default)]
    pub envs: Vec<FoundEnv>,
}

/// An instance that a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundInstance {
    /// What it runs, and is meant to do.
    pub assignment: Assignment,
    /// What its host says of it.
    pub status: Status,
    /// Its host keeps it though it was never assigned since the coordinator was restored.
    #[serde(default)]
    pub held: bool,
}

/// Config vars that a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundEnv {
    /// Whose.
    pub app: AppName,
    /// Which.
    pub env: EnvRef,
    /// As it was handed them.
    pub handed: Handed,
    /// Their key, wrapped by the host for each rm that it knew.
    #[serde(default)]
    pub rms: BTreeMap<PublicKey, WrappedKey>,
}

/// How far revisions are raised above the newest that anyone is known to have seen: who wasn't asked saw no more.
pub const REVISIONS_ABOVE: Revision = 10_000;

/// How long hosts and proxies count as there until they have come back.
pub const PRESENT_FOR: Duration = Duration::from_secs(60);

/// Writes under way at once, where only their number counts.
const AT_ONCE: usize = 64;

/// A key that is written for its revision's sake; it is none of the schema, and goes again.
const STEP: &str = "recovering";

impl Visor {
    /// A lease for the rows of those who were there.
    ///
    /// # Errors
    /// The store's.
    pub async fn presence_lease(&self) -> Result<LeaseId> {
        Ok(self.store().grant(PRESENT_FOR).await?)
    }

    /// Carries a recovery out. Done again after it was cut short, it goes on: it is planned anew from what stands.
    ///
    /// # Errors
    /// The store's; [`VisorError::Contended`] if somebody else writes meanwhile.
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

    /// Writes until the store's revision is above this one. etcd before 3.6 has no other way.
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
        // Nobody has a watch that needs them.
        match self.store().compact(last - 1).await {
            Ok(()) | Err(StoreError::Compacted { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A put of a row that may stand already, under a lease.
fn present<T: Serialize>(key: &Key, value: &T, lease: LeaseId) -> Change {
    Change::new().put_leased(key, value, Some(lease))
}
