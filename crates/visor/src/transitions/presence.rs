//! Presence: hosts, proxies and rms under their leases, and what hosts report of their instances.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    keys::Key,
    names::{Digest, HostName, InstanceId},
    planted::Bug,
    schema::{Archives, Ask, Extra, Host, HostMeta, Proxy, Rm, Status, Unfreeze},
    snapshot::Versioned,
    store::{Keys, LeaseId, Revision},
    visor::{Change, Committed, Decided, Decision, Refusal, Result, Visor, VisorError},
};

fn taken(kind: &'static str, name: &HostName, url: &str) -> VisorError {
    Refusal::NameTaken { kind, name: name.clone(), url: url.to_owned() }.into()
}

/// Reports whether the two rms have different state folders: neither has, or had, the other's key.
fn has_other_keys(before: &Rm, now: &Rm) -> bool {
    let [before, now] = [before, now].map(|rm| rm.seal_key.iter().chain(&rm.retired_seal_keys));
    let has_none = before.clone().next().is_none() || now.clone().next().is_none();
    !has_none && !before.clone().any(|key| now.clone().any(|other| other == key))
}

/// The schema version from which on clients look for the secrets of rms below the private prefix.
const ASKS_ARE_PRIVATE: u32 = 4;

impl Visor {
    /// Registers a host under its pm's lease, or renews its registration; returns the revision that created the row.
    ///
    /// A registration with the same token is taken over and keeps its create revision, so that the host never seems to
    /// have gone.
    ///
    /// # Errors
    /// [`Refusal::HostTaken`] if a pm with another state folder holds the name.
    pub async fn register_host(&self, name: &HostName, host: &Host, lease: LeaseId) -> Result<Revision> {
        let key = Key::Host(name.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| {
            let before = snapshot.hosts.get(name).and_then(|view| view.host.as_ref());
            match before {
                Some(before) if before.token != host.token => Err(Refusal::HostTaken(name.clone()).into()),
                Some(before) if before.value == *host && before.lease == Some(lease) => {
                    Ok(Decision::Already(()))
                }
                _ => Ok(Decision::Change(
                    Change::new().as_read(&key, before).put_leased(&key, host, Some(lease)),
                    (),
                )),
            }
        })
        .await?;
        let made: Option<Versioned<Host>> = self.get(&key).await?;
        made.filter(|made| made.lease == Some(lease))
            .map(|made| made.create_revision)
            .ok_or_else(|| Refusal::HostGone(name.clone()).into())
    }

    /// Writes, under the lease of a host's registration, the slugs whose archives the host has. Returns false if the
    /// registration created at `created_at` stands no more.
    ///
    /// # Errors
    /// The store's.
    pub async fn publish_archives(
        &self,
        name: &HostName,
        created_at: Revision,
        slugs: &BTreeSet<Digest>,
    ) -> Result<bool> {
        let (own, key) = (Key::Host(name.clone()), Key::Archives(name.clone()));
        let scopes = [&own, &key].map(|key| Keys::One(key.to_string())).to_vec();
        self.decide(scopes, |snapshot| {
            let Some(view) = snapshot.hosts.get(name) else { return Ok(Decision::Already(false)) };
            let Some(host) = view.host.as_ref().filter(|host| host.create_revision == created_at) else {
                return Ok(Decision::Already(false));
            };
            let before = view.archives.as_ref();
            if before.is_some_and(|before| before.slugs == *slugs && before.lease == host.lease) {
                return Ok(Decision::Already(true));
            }
            let after = Archives {
                slugs: slugs.clone(),
                extra: before.map(|before| before.extra.clone()).unwrap_or_default(),
            };
            let change = Change::new().as_read(&own, Some(host)).as_read(&key, before);
            Ok(Decision::Change(change.put_leased(&key, &after, host.lease), true))
        })
        .await
        .map(Decided::into_value)
    }

    /// Writes a proxy's own row for the first time under a lease, and takes over a row with the same token.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`] if a proxy with another state folder is registered by this name.
    pub async fn register_proxy(&self, name: &HostName, proxy: &Proxy, lease: LeaseId) -> Result<()> {
        let key = Key::Proxy(name.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| {
            let before = snapshot.proxies.get(name);
            if let Some(before) = before {
                let another = before.token.is_some() && before.token != proxy.token;
                if another && before.lease != Some(lease) {
                    return Err(taken("bazooka-proxy", name, &before.url));
                }
                if before.value == *proxy && before.lease == Some(lease) {
                    return Ok(Decision::Already(()));
                }
            }
            let change = Change::new().as_read(&key, before).put_leased(&key, proxy, Some(lease));
            Ok(Decision::Change(change, ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Rewrites a proxy's own row.
    ///
    /// # Errors
    /// The store's; a lease that has ended.
    pub async fn publish_proxy(&self, name: &HostName, proxy: &Proxy, lease: LeaseId) -> Result<()> {
        self.commit(Change::new().put_leased(&Key::Proxy(name.clone()), proxy, Some(lease))).await.map(drop)
    }

    /// Writes an rm's own rows.
    ///
    /// A row that would not change is not rewritten, because transactions that make envs compare its revision.
    ///
    /// # Errors
    /// [`Refusal::NameTaken`] if an rm with other keys is registered by this name; the store's; a lease that has ended.
    pub async fn publish_rm(&self, name: &HostName, rm: &Rm, ask: &Ask, lease: LeaseId) -> Result<()> {
        let (own, asked) = (Key::Rm(name.clone()), Key::Ask(name.clone()));
        let earlier = Key::EarlierAsk(name.clone());
        let scopes = [&Key::Schema, &own, &asked, &earlier].map(|key| Keys::One(key.to_string())).to_vec();
        self.decide(scopes, |snapshot| {
            let (before, word) = (snapshot.rms.get(name), snapshot.asks.get(name));
            if let Some(before) = before
                && before.lease != Some(lease)
                && has_other_keys(before, rm)
            {
                return Err(taken("bazooka-rm", name, &before.url));
            }
            let mut change = Change::new().as_read(&own, before).as_read(&asked, word);
            if before.is_none_or(|before| before.value != *rm || before.lease != Some(lease)) {
                change = change.put_leased(&own, rm, Some(lease));
            }
            if word.is_none_or(|word| word.value != *ask || word.lease != Some(lease)) {
                change = change.put_leased(&asked, ask, Some(lease));
            }
            let word = snapshot.earlier_asks.get(name);
            // Clients of these versions look for it there.
            let is_asked =
                snapshot.schema.as_ref().is_some_and(|schema| schema.min_writer < ASKS_ARE_PRIVATE);
            if is_asked && word.is_none_or(|word| word.value != *ask || word.lease != Some(lease)) {
                change = change.as_read(&earlier, word).put_leased(&earlier, ask, Some(lease));
            } else if !is_asked && word.is_some() {
                change = change.as_read(&earlier, word).delete(&earlier);
            }
            Ok(if change.then.is_empty() { Decision::Already(()) } else { Decision::Change(change, ()) })
        })
        .await
        .map(Decided::into_value)
    }

    /// Changes an operator's marks on a host.
    ///
    /// # Errors
    /// The store's.
    pub async fn mark_host(&self, name: &HostName, change: impl Fn(&mut HostMeta)) -> Result<()> {
        let key = Key::HostMeta(name.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| {
            let before = snapshot.hosts.get(name).and_then(|view| view.meta.as_ref());
            let mut after = before.map(|meta| meta.value.clone()).unwrap_or_default();
            change(&mut after);
            if before.map(|meta| &meta.value).unwrap_or(&HostMeta::default()) == &after {
                return Ok(Decision::Already(()));
            }
            Ok(Decision::Change(Change::new().as_read(&key, before).put(&key, &after), ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Deletes an operator's marks on a host that has gone, so that no row of it is left.
    ///
    /// # Errors
    /// [`Refusal::HostThere`], [`Refusal::HostInUse`].
    pub async fn forget_host(&self, name: &HostName) -> Result<()> {
        let (own, said) = (Key::Host(name.clone()), Key::HostMeta(name.clone()));
        self.decide(crate::keys::host(name), |snapshot| {
            let Some(view) = snapshot.hosts.get(name) else { return Ok(Decision::Already(())) };
            if view.host.is_some() {
                return Err(Refusal::HostThere(name.clone()).into());
            }
            if !view.assigned.is_empty() {
                return Err(Refusal::HostInUse(name.clone()).into());
            }
            let Some(meta) = &view.meta else { return Ok(Decision::Already(())) };
            let change = Change::new().absent(&own).as_read(&said, Some(meta)).delete(&said);
            Ok(Decision::Change(change, ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Acknowledges that the hosts for which the converger is frozen are gone for good. Returns these hosts.
    ///
    /// # Errors
    /// [`Refusal::NotFrozen`].
    pub async fn unfreeze(&self, by: &str, now: Timestamp) -> Result<BTreeSet<HostName>> {
        let scopes = [Key::Leader, Key::Unfreeze].map(|key| Keys::One(key.to_string()));
        self.decide(scopes.to_vec(), |snapshot| {
            let leader = snapshot.leader.as_ref();
            let frozen = leader.and_then(|leader| leader.frozen.as_ref()).ok_or(Refusal::NotFrozen)?;
            let before = snapshot.unfreeze.as_ref();
            if before.is_some_and(|before| before.hosts.is_superset(&frozen.hosts)) {
                return Ok(Decision::Already(frozen.hosts.clone()));
            }
            let mut hosts = before.map(|before| before.hosts.clone()).unwrap_or_default();
            hosts.extend(frozen.hosts.iter().cloned());
            let word = Unfreeze { hosts, by: by.into(), at: now, extra: Extra::new() };
            let change = Change::new()
                .as_read(&Key::Leader, leader)
                .as_read(&Key::Unfreeze, before)
                .put(&Key::Unfreeze, &word);
            Ok(Decision::Change(change, frozen.hosts.clone()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Writes a host's reports of its instances, as many in a transaction as fit.
    ///
    /// A report is written only while the registration created at `created_at` stands, so that a host that was given up
    /// cannot report on an instance that was replaced, and only while the instance is still assigned to the host. It
    /// replaces only the report that was read or written last: a report that was held up on its way must not undo a
    /// later one. `stands` has the revisions of those last reports and is updated; a missing or wrong revision costs
    /// another call. Returns for each report whether it was written.
    ///
    /// # Errors
    /// The store's. After [`crate::store::StoreError::OutcomeUnknown`] the caller should report again, without the
    /// revisions that `stands` had for these instances.
    pub async fn report(
        &self,
        host: &HostName,
        created_at: Revision,
        statuses: &[(InstanceId, Status)],
        stands: &mut BTreeMap<InstanceId, Revision>,
    ) -> Result<Vec<bool>> {
        // Two conditions for each report, besides the host's and the schema's.
        const PER_TXN: usize = 60;
        let one = |(id, status): &(InstanceId, Status), stands: &BTreeMap<InstanceId, Revision>| {
            let key = Key::Status(host.clone(), *id);
            Change::new()
                .unless(Bug::GivenUpHostReports, |it| it.created_at(&Key::Host(host.clone()), created_at))
                .unless(Bug::ForeignInstanceIsReported, |it| it.exists(&Key::Assigned(host.clone(), *id)))
                .unchanged(&key, stands.get(id).copied().unwrap_or(0))
                .put(&key, status)
        };
        let mut written = Vec::with_capacity(statuses.len());
        for batch in statuses.chunks(PER_TXN) {
            let together = |stands: &BTreeMap<InstanceId, Revision>| {
                batch.iter().map(|said| one(said, stands)).fold(Change::new(), Change::and)
            };
            let mut came = self.commit(together(stands)).await?;
            if came == Committed::Conflict && self.look_what_stands(host, batch, stands).await? {
                came = self.commit(together(stands)).await?;
            }
            match came {
                Committed::Done(revision) => {
                    stands.extend(batch.iter().map(|(id, _)| (*id, revision)));
                    written.extend(batch.iter().map(|_| true));
                }
                Committed::Conflict => {
                    for said in batch {
                        let came = self.commit(one(said, stands)).await?;
                        if let Committed::Done(revision) = came {
                            stands.insert(said.0, revision);
                        }
                        written.push(came != Committed::Conflict);
                    }
                }
            }
        }
        Ok(written)
    }

    /// Reads the revisions of a host's last reports. Returns whether they differ from the known ones.
    async fn look_what_stands(
        &self,
        host: &HostName,
        batch: &[(InstanceId, Status)],
        stands: &mut BTreeMap<InstanceId, Revision>,
    ) -> Result<bool> {
        let key = |id: InstanceId| Key::Status(host.clone(), id).to_string();
        let (entries, _) = self.entries(batch.iter().map(|(id, _)| Keys::One(key(*id))).collect()).await?;
        let mut differs = false;
        for (id, _) in batch {
            let key = key(*id);
            let found = entries.iter().find(|entry| entry.key == key).map_or(0, |entry| entry.mod_revision);
            differs |= stands.insert(*id, found).unwrap_or(0) != found;
        }
        Ok(differs)
    }
}

/// Returns the change that deletes the `unfreeze` row, once each host in it has returned or has no rows left.
pub fn unfrozen(word: &Versioned<Unfreeze>) -> Change {
    Change::new().as_read(&Key::Unfreeze, Some(word)).delete(&Key::Unfreeze)
}
