//! The typed image of the coordinator that planners read.
//!
//! Owns the reading of stored bytes. It never writes and never guesses: a value that it cannot read stays listed in
//! [`Snapshot::unreadable`], so that no reader takes it for an absent one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    identity::Identity,
    keys::Key,
    names::{
        AppName, AuditId, Day, Domain, EnvRef, HostName, InstanceId, ProcName, ReleaseId, RevId, UserName,
    },
    schema::*,
    store::{self, Entry, Image, LeaseId, Revision},
};

/// A stored value, with the revisions that guards compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// The stored value.
    pub value: T,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// The revision of the key's last write.
    pub mod_revision: Revision,
    /// The lease that the key is bound to.
    pub lease: Option<LeaseId>,
}

impl<T: DeserializeOwned> Versioned<T> {
    /// Reads the value of an entry.
    ///
    /// # Errors
    /// Fails if the value is not JSON of this type.
    pub fn read(entry: &Entry) -> Result<Self, serde_json::Error> {
        Ok(Versioned {
            value: serde_json::from_slice(&entry.value)?,
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
            lease: entry.lease,
        })
    }
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// The view of an app and all that belongs to it.
///
/// `app` is none while the image has rows of the app but not its own row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppView {
    /// `apps/A`.
    pub app: Option<Versioned<App>>,
    /// `apps/A/revs/R`.
    pub revs: BTreeMap<RevId, Versioned<Rev>>,
    /// `apps/A/procs/P`.
    pub procs: BTreeMap<ProcName, Versioned<Proc>>,
    /// `apps/A/envs/E`.
    pub envs: BTreeMap<EnvRef, Versioned<Env>>,
    /// `wraps/A/E`.
    pub wraps: BTreeMap<EnvRef, Versioned<Wraps>>,
    /// `sealed/H/A/E`.
    pub handed: BTreeMap<(HostName, EnvRef), Versioned<Handed>>,
    /// `apps/A/releases/N`.
    pub releases: BTreeMap<ReleaseId, Versioned<Release>>,
    /// `apps/A/head`.
    pub head: Option<Versioned<Head>>,
    /// `apps/A/trial`.
    pub trial: Option<Versioned<Trial>>,
    /// `apps/A/pause`.
    pub pause: Option<Versioned<Pause>>,
    /// `apps/A/formation/P`.
    pub formation: BTreeMap<ProcName, Versioned<Formation>>,
    /// `apps/A/instances/ID`.
    pub instances: BTreeMap<InstanceId, Versioned<Instance>>,
    /// `apps/A/pending/P`.
    pub pending: BTreeMap<ProcName, Versioned<Pending>>,
    /// `repos/A`.
    pub repo: Option<Versioned<Repo>>,
    /// `turns/A`.
    pub turn: Option<Versioned<Turn>>,
    /// `stored/A`.
    pub stored: Option<Versioned<Stored>>,
    /// `access/A`.
    pub access: Option<Versioned<Access>>,
    /// `history/A/P/ID`.
    pub history: BTreeMap<(ProcName, InstanceId), Versioned<Ended>>,
}

impl AppView {
    /// Returns the release that head names, with its number.
    pub fn head_release(&self) -> Option<(ReleaseId, &Release)> {
        let id = self.head.as_ref()?.release;
        self.releases.get(&id).map(|r| (id, &r.value))
    }

    /// Returns how many instances of head a proc should have; 0 without a formation.
    pub fn count(&self, proc: &ProcName) -> u32 {
        self.formation.get(proc).map_or(0, |f| f.count)
    }

    /// Returns how many instances of each release the formation asks for, head's own included, without zeros.
    ///
    /// Nothing is wanted of a release whose rev does not have the proc, nor of an app that is being destroyed.
    pub fn wanted(&self, proc: &ProcName) -> BTreeMap<ReleaseId, u32> {
        let mut wanted = BTreeMap::new();
        if self.app.as_ref().is_none_or(|app| app.destroying) {
            return wanted;
        }
        let Some(formation) = self.formation.get(proc) else { return wanted };
        if let Some(head) = &self.head {
            wanted.insert(head.release, formation.count);
        }
        for (release, count) in &formation.beside {
            *wanted.entry(*release).or_insert(0) += count;
        }
        wanted.retain(|release, count| *count > 0 && self.command(*release, proc).is_some());
        wanted
    }

    /// Returns the command that a release runs for a proc.
    pub fn command(&self, release: ReleaseId, proc: &ProcName) -> Option<&str> {
        let rev = &self.releases.get(&release)?.rev;
        self.revs.get(rev)?.procs.get(proc).map(String::as_str)
    }

    fn is_empty(&self) -> bool {
        *self == AppView::default()
    }
}

/// The view of a host and all that belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// `hosts/H`; none once the lease has ended.
    pub host: Option<Versioned<Host>>,
    /// `hostmeta/H`.
    pub meta: Option<Versioned<HostMeta>>,
    /// `assigned/H/ID`.
    pub assigned: BTreeMap<InstanceId, Versioned<Assignment>>,
    /// `status/H/ID`.
    pub status: BTreeMap<InstanceId, Versioned<Status>>,
}

impl HostView {
    fn is_empty(&self) -> bool {
        *self == HostView::default()
    }
}

/// An image of the cluster, or of a part of it, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision up to which everything is in the image.
    pub revision: Revision,
    /// `schema`.
    pub schema: Option<Versioned<Schema>>,
    /// `counters/instance`: the last instance id that was taken.
    pub instance_counter: Option<Versioned<u64>>,
    /// `counters/port`: the last service port that was taken.
    pub port_counter: Option<Versioned<u64>>,
    /// The apps by name.
    pub apps: BTreeMap<AppName, AppView>,
    /// The hosts by name.
    pub hosts: BTreeMap<HostName, HostView>,
    /// `proxies/X`.
    pub proxies: BTreeMap<HostName, Versioned<Proxy>>,
    /// `rms/X`.
    pub rms: BTreeMap<HostName, Versioned<Rm>>,
    /// `asks/X`.
    pub asks: BTreeMap<HostName, Versioned<Ask>>,
    /// `domains/D`.
    pub domains: BTreeMap<Domain, Versioned<DomainRecord>>,
    /// `election/converger`.
    pub leader: Option<Versioned<Leader>>,
    /// `unfreeze`.
    pub unfreeze: Option<Versioned<Unfreeze>>,
    /// `identities/NAME`.
    pub identities: BTreeMap<Identity, Versioned<Admission>>,
    /// `audit/NAME/ID`, sorted by ID and so by time.
    pub audit: BTreeMap<(AuditId, Identity), Versioned<AuditEntry>>,
    /// `keys/USER`.
    pub ssh_keys: BTreeMap<UserName, Versioned<SshKeys>>,
    /// `stats/DAY`.
    pub days: BTreeMap<Day, Versioned<DayStats>>,
    /// The reason why each unreadable value cannot be read, by key.
    ///
    /// Such a row exists, whatever it holds.
    pub unreadable: BTreeMap<String, String>,
}

impl Snapshot {
    /// Returns the assignment of an app's instance, through the app's own index.
    pub fn assignment(&self, app: &AppName, id: InstanceId) -> Option<&Versioned<Assignment>> {
        let host = &self.apps.get(app)?.instances.get(&id)?.host;
        self.hosts.get(host)?.assigned.get(&id)
    }

    /// Returns the status that the host of an app's instance reports.
    pub fn status(&self, app: &AppName, id: InstanceId) -> Option<&Versioned<Status>> {
        let host = &self.apps.get(app)?.instances.get(&id)?.host;
        self.hosts.get(host)?.status.get(&id)
    }

    fn set(&mut self, key: Key, entry: &Entry) -> Result<(), serde_json::Error> {
        match key {
            Key::Schema => self.schema = Some(Versioned::read(entry)?),
            Key::InstanceCounter => self.instance_counter = Some(Versioned::read(entry)?),
            Key::PortCounter => self.port_counter = Some(Versioned::read(entry)?),
            Key::App(a) => self.app(a).app = Some(Versioned::read(entry)?),
            Key::Rev(a, k) => set(&mut self.app(a).revs, k, entry)?,
            Key::Proc(a, k) => set(&mut self.app(a).procs, k, entry)?,
            Key::Env(a, k) => set(&mut self.app(a).envs, k, entry)?,
            Key::Wraps(a, k) => set(&mut self.app(a).wraps, k, entry)?,
            Key::Handed(h, a, k) => set(&mut self.app(a).handed, (h, k), entry)?,
            Key::Release(a, k) => set(&mut self.app(a).releases, k, entry)?,
            Key::Head(a) => self.app(a).head = Some(Versioned::read(entry)?),
            Key::Trial(a) => self.app(a).trial = Some(Versioned::read(entry)?),
            Key::Pause(a) => self.app(a).pause = Some(Versioned::read(entry)?),
            Key::Formation(a, k) => set(&mut self.app(a).formation, k, entry)?,
            Key::Instance(a, k) => set(&mut self.app(a).instances, k, entry)?,
            Key::Pending(a, k) => set(&mut self.app(a).pending, k, entry)?,
            Key::Repo(a) => self.app(a).repo = Some(Versioned::read(entry)?),
            Key::Turn(a) => self.app(a).turn = Some(Versioned::read(entry)?),
            Key::Stored(a) => self.app(a).stored = Some(Versioned::read(entry)?),
            Key::Ended(a, p, k) => set(&mut self.app(a).history, (p, k), entry)?,
            Key::Access(a) => self.app(a).access = Some(Versioned::read(entry)?),
            Key::Audit(who, id) => set(&mut self.audit, (id, who), entry)?,
            Key::SshKeys(k) => set(&mut self.ssh_keys, k, entry)?,
            Key::Day(k) => set(&mut self.days, k, entry)?,
            Key::Admission(k) => set(&mut self.identities, k, entry)?,
            Key::Domain(k) => set(&mut self.domains, k, entry)?,
            Key::Host(h) => self.host(h).host = Some(Versioned::read(entry)?),
            Key::HostMeta(h) => self.host(h).meta = Some(Versioned::read(entry)?),
            Key::Assigned(h, k) => set(&mut self.host(h).assigned, k, entry)?,
            Key::Status(h, k) => set(&mut self.host(h).status, k, entry)?,
            Key::Proxy(k) => set(&mut self.proxies, k, entry)?,
            Key::Rm(k) => set(&mut self.rms, k, entry)?,
            Key::Ask(k) => set(&mut self.asks, k, entry)?,
            Key::Leader => self.leader = Some(Versioned::read(entry)?),
            Key::Unfreeze => self.unfreeze = Some(Versioned::read(entry)?),
        }
        Ok(())
    }

    fn remove(&mut self, key: Key) {
        match key {
            Key::Schema => self.schema = None,
            Key::InstanceCounter => self.instance_counter = None,
            Key::PortCounter => self.port_counter = None,
            Key::App(a) => self.in_app(a, |v| v.app = None),
            Key::Rev(a, k) => self.in_app(a, |v| drop(v.revs.remove(&k))),
            Key::Proc(a, k) => self.in_app(a, |v| drop(v.procs.remove(&k))),
            Key::Env(a, k) => self.in_app(a, |v| drop(v.envs.remove(&k))),
            Key::Wraps(a, k) => self.in_app(a, |v| drop(v.wraps.remove(&k))),
            Key::Handed(h, a, k) => self.in_app(a, |v| drop(v.handed.remove(&(h, k)))),
            Key::Release(a, k) => self.in_app(a, |v| drop(v.releases.remove(&k))),
            Key::Head(a) => self.in_app(a, |v| v.head = None),
            Key::Trial(a) => self.in_app(a, |v| v.trial = None),
            Key::Pause(a) => self.in_app(a, |v| v.pause = None),
            Key::Formation(a, k) => self.in_app(a, |v| drop(v.formation.remove(&k))),
            Key::Instance(a, k) => self.in_app(a, |v| drop(v.instances.remove(&k))),
            Key::Pending(a, k) => self.in_app(a, |v| drop(v.pending.remove(&k))),
            Key::Repo(a) => self.in_app(a, |v| v.repo = None),
            Key::Turn(a) => self.in_app(a, |v| v.turn = None),
            Key::Stored(a) => self.in_app(a, |v| v.stored = None),
            Key::Ended(a, p, k) => self.in_app(a, |v| drop(v.history.remove(&(p, k)))),
            Key::Access(a) => self.in_app(a, |v| v.access = None),
            Key::Audit(who, id) => drop(self.audit.remove(&(id, who))),
            Key::SshKeys(k) => drop(self.ssh_keys.remove(&k)),
            Key::Day(k) => drop(self.days.remove(&k)),
            Key::Admission(k) => drop(self.identities.remove(&k)),
            Key::Domain(k) => drop(self.domains.remove(&k)),
            Key::Host(h) => self.in_host(h, |v| v.host = None),
            Key::HostMeta(h) => self.in_host(h, |v| v.meta = None),
            Key::Assigned(h, k) => self.in_host(h, |v| drop(v.assigned.remove(&k))),
            Key::Status(h, k) => self.in_host(h, |v| drop(v.status.remove(&k))),
            Key::Proxy(k) => drop(self.proxies.remove(&k)),
            Key::Rm(k) => drop(self.rms.remove(&k)),
            Key::Ask(k) => drop(self.asks.remove(&k)),
            Key::Leader => self.leader = None,
            Key::Unfreeze => self.unfreeze = None,
        }
    }

    fn app(&mut self, name: AppName) -> &mut AppView {
        self.apps.entry(name).or_default()
    }

    fn host(&mut self, name: HostName) -> &mut HostView {
        self.hosts.entry(name).or_default()
    }

    fn in_app(&mut self, name: AppName, change: impl FnOnce(&mut AppView)) {
        if let Some(view) = self.apps.get_mut(&name) {
            change(view);
            if view.is_empty() {
                self.apps.remove(&name);
            }
        }
    }

    fn in_host(&mut self, name: HostName, change: impl FnOnce(&mut HostView)) {
        if let Some(view) = self.hosts.get_mut(&name) {
            change(view);
            if view.is_empty() {
                self.hosts.remove(&name);
            }
        }
    }
}

fn set<K: Ord, T: DeserializeOwned>(
    map: &mut BTreeMap<K, Versioned<T>>,
    key: K,
    entry: &Entry,
) -> Result<(), serde_json::Error> {
    map.insert(key, Versioned::read(entry)?);
    Ok(())
}

impl Image for Snapshot {
    fn clear(&mut self) {
        *self = Snapshot::default();
    }

    fn put(&mut self, entry: &Entry) {
        // A key of a newer version is skipped. A known key with an unreadable value is a fault that must be visible,
        // and the value before it is no longer true.
        let Ok(key) = entry.key.parse::<Key>() else { return };
        match self.set(key.clone(), entry) {
            Ok(()) => drop(self.unreadable.remove(&entry.key)),
            Err(error) => {
                self.remove(key);
                self.unreadable.insert(entry.key.clone(), error.to_string());
            }
        }
    }

    fn delete(&mut self, key: &str, _revision: Revision) {
        self.unreadable.remove(key);
        if let Ok(key) = key.parse::<Key>() {
            self.remove(key);
        }
    }

    fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }
}

/// Checks that this build may read the cluster, if the schema row is among these entries.
///
/// An invalid schema row passes: the code that needs its value reports it.
///
/// # Errors
/// [`store::StoreError::SchemaTooNew`].
pub(crate) fn may_read<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> store::Result<()> {
    let key = Key::Schema.to_string();
    let Some(entry) = entries.into_iter().find(|entry| entry.key == key) else { return Ok(()) };
    let Ok(schema) = Versioned::<Schema>::read(entry) else { return Ok(()) };
    schema.check_reader()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, revision: Revision) -> Entry {
        Entry {
            key: key.into(),
            value: value.to_owned().into(),
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_absent() {
        let mut snapshot = Snapshot::default();
        snapshot.put(&entry("apps/a/head", r#"{"release":"v3"}"#, 5));
        let app: AppName = "a".parse().expect("valid");
        assert_eq!(snapshot.apps[&app].head.as_ref().map(|h| h.release), Some(ReleaseId(3)));
        snapshot.put(&entry("apps/a/head", "{", 6));
        assert!(snapshot.unreadable.contains_key("apps/a/head"));
        snapshot.delete("apps/a/head", 7);
        assert_eq!(snapshot, Snapshot::default());
    }

    #[test]
    fn a_field_of_a_newer_version_survives_a_read_and_a_write() {
        let json = r#"{"release":"v3","mood":{"colour":"red"}}"#;
        let head: Head = serde_json::from_str(json).expect("readable");
        assert_eq!(serde_json::to_string(&head).expect("writable"), json);
    }

    #[test]
    fn an_app_leaves_the_image_with_its_last_row() {
        let mut snapshot = Snapshot::default();
        snapshot.put(&entry("apps/a/formation/web", r#"{"count":2}"#, 5));
        assert_eq!(snapshot.apps.len(), 1);
        snapshot.delete("apps/a/formation/web", 6);
        assert!(snapshot.apps.is_empty());
    }
}
