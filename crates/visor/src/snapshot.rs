//! The typed image of the coordinator that planners read.
//!
//! Owns the reading of stored bytes. It never writes and never guesses: a value that it cannot read stays listed in
//! [`Snapshot::unreadable`], so that no reader takes it for an absent one. The table in [`rows`](crate::rows) declares
//! the fields of the image.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bounds::{Bounded, OutOfBounds, TooMuch},
    identity::Identity,
    keys::{self, Key},
    names::{
        AppName, AuditId, Day, Domain, EnvRef, HostName, InstanceId, ProcName, ReleaseId, RevId, ServicePort,
        UserName, ZoneName,
    },
    rows::{RowKind, rows},
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

impl<T> Versioned<T> {
    /// Returns the revision of the last write, and the lease.
    pub fn stamp(&self) -> Stamp {
        Stamp { mod_revision: self.mod_revision, lease: self.lease }
    }
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A row of which there is one at most.
pub type One<T> = Option<Versioned<T>>;

/// Rows of one kind, by the rest of their key.
pub type Many<K, T> = BTreeMap<K, Versioned<T>>;

/// The revision and the lease of a row, whatever it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The revision of the row's last write.
    pub mod_revision: Revision,
    /// The lease that the row is bound to.
    pub lease: Option<LeaseId>,
}

/// The reason why a row's value cannot be taken up.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    #[error("it has {there} bytes, and {most} is the most")]
    Size { there: usize, most: usize },
}

/// The outcome of taking up a row: what is out of bounds in it.
type Taken = Result<Option<OutOfBounds>, Unreadable>;

/// Reads a row and brings it within its bounds.
fn take<T: DeserializeOwned + Bounded>(
    entry: &Entry,
) -> Result<(Versioned<T>, Option<OutOfBounds>), Unreadable> {
    let mut row = Versioned::<T>::read(entry)?;
    let out = row.value.bound()?;
    Ok((row, out))
}

/// A field of the image, which holds the rows of one kind.
trait Field {
    /// The rest of a row's key, where the owner of the field is known.
    type Rest;
    fn put_row(&mut self, at: Self::Rest, entry: &Entry) -> Taken;
    fn remove_row(&mut self, at: Self::Rest);
    fn each_row(&self, see: impl FnMut(Self::Rest, Stamp));
}

impl<T: DeserializeOwned + Bounded> Field for One<T> {
    type Rest = ();

    fn put_row(&mut self, (): (), entry: &Entry) -> Taken {
        let (row, out) = take(entry)?;
        *self = Some(row);
        Ok(out)
    }

    fn remove_row(&mut self, (): ()) {
        *self = None;
    }

    fn each_row(&self, mut see: impl FnMut((), Stamp)) {
        self.iter().for_each(|row| see((), row.stamp()));
    }
}

impl<K: Clone + Ord, T: DeserializeOwned + Bounded> Field for Many<K, T> {
    type Rest = K;

    fn put_row(&mut self, at: K, entry: &Entry) -> Taken {
        let (row, out) = take(entry)?;
        self.insert(at, row);
        Ok(out)
    }

    fn remove_row(&mut self, at: K) {
        self.remove(&at);
    }

    fn each_row(&self, mut see: impl FnMut(K, Stamp)) {
        self.iter().for_each(|(at, row)| see(at.clone(), row.stamp()));
    }
}

macro_rules! image {
    (
        App($app:ident) { $(
            $(#[doc = $app_holds:literal])+
            $app_kind:ident ($($app_name:ident: $app_type:ty),+) $app_key:tt
            in $app_field:ident $app_at:tt: $app_shape:ty { $($app_facts:tt)* }
        )+ }
        Host($host:ident) { $(
            $(#[doc = $host_holds:literal])+
            $host_kind:ident ($($host_name:ident: $host_type:ty),+) $host_key:tt
            in $host_field:ident $host_at:tt: $host_shape:ty { $($host_facts:tt)* }
        )+ }
        Cluster() { $(
            $(#[doc = $holds:literal])+
            $kind:ident $(($($name:ident: $type:ty),+))? [$($key:tt)+]
            in $field:ident $at:tt: $shape:ty { $($facts:tt)* }
        )+ }
    ) => {
        /// The view of an app and all that belongs to it.
        ///
        /// `app` is none while the image has rows of the app but not its own row.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct AppView {
            $($(#[doc = $app_holds])+ pub $app_field: $app_shape,)+
        }

        /// The view of a host and all that belongs to it.
        ///
        /// `host` is none once the lease has ended.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct HostView {
            $($(#[doc = $host_holds])+ pub $host_field: $host_shape,)+
            /// The host's own words, where its operator says otherwise; `host` then has what its operator says.
            pub said: Option<Said>,
        }

        /// An image of the cluster, or of a part of it, at one revision.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            /// The revision up to which everything is in the image.
            pub revision: Revision,
            /// The apps by name.
            pub apps: BTreeMap<AppName, AppView>,
            /// The hosts by name.
            pub hosts: BTreeMap<HostName, HostView>,
            $($(#[doc = $holds])+ pub $field: $shape,)+
            /// The reason why each unreadable value cannot be read, by key.
            ///
            /// Such a row exists, whatever it holds.
            pub unreadable: BTreeMap<String, String>,
            /// The values out of bounds in each row, by key; the image has the bounds instead.
            pub bounded: BTreeMap<String, OutOfBounds>,
        }

        #[allow(unused_parens, reason = "the rest of a key is a name in parentheses, or several")]
        impl AppView {
            /// Calls `see` with each row of the wanted kinds.
            fn each(&self, of: &AppName, wanted: &impl Fn(RowKind) -> bool, see: &mut impl FnMut(Key, Stamp)) {
                $(if wanted(RowKind::$app_kind) {
                    self.$app_field.each_row(|$app_at, stamp| {
                        let $app = of.clone();
                        see(Key::$app_kind($($app_name),+), stamp);
                    });
                })+
            }
        }

        #[allow(unused_parens, reason = "the rest of a key is a name in parentheses, or several")]
        impl Snapshot {
            /// Returns the key and the stamp of each row of the wanted kinds, except unreadable ones.
            pub fn rows(&self, wanted: impl Fn(RowKind) -> bool) -> Vec<(Key, Stamp)> {
                let mut found = Vec::new();
                let mut see = |key, stamp| found.push((key, stamp));
                for (name, view) in &self.apps {
                    view.each(name, &wanted, &mut see);
                }
                for (name, view) in &self.hosts {
                    $(if wanted(RowKind::$host_kind) {
                        view.$host_field.each_row(|$host_at, stamp| {
                            let $host = name.clone();
                            see(Key::$host_kind($($host_name),+), stamp);
                        });
                    })+
                }
                $(if wanted(RowKind::$kind) {
                    self.$field.each_row(|$at, stamp| see(Key::$kind $(($($name),+))?, stamp));
                })+
                found
            }

            fn set(&mut self, key: Key, entry: &Entry) -> Taken {
                match key {
                    $(Key::$app_kind($($app_name),+) => {
                        self.apps.entry($app).or_default().$app_field.put_row($app_at, entry)
                    })+
                    $(Key::$host_kind($($host_name),+) => {
                        self.hosts.entry($host).or_default().$host_field.put_row($host_at, entry)
                    })+
                    $(Key::$kind $(($($name),+))? => self.$field.put_row($at, entry),)+
                }
            }

            fn remove(&mut self, key: Key) {
                match key {
                    $(Key::$app_kind($($app_name),+) => {
                        change(&mut self.apps, &$app, |view| view.$app_field.remove_row($app_at));
                    })+
                    $(Key::$host_kind($($host_name),+) => {
                        change(&mut self.hosts, &$host, |view| view.$host_field.remove_row($host_at));
                    })+
                    $(Key::$kind $(($($name),+))? => self.$field.remove_row($at),)+
                }
            }
        }
    };
}

rows!(image);

impl AppView {
    /// Returns the key and the stamp of each row of the wanted kinds.
    pub fn rows(&self, of: &AppName, wanted: impl Fn(RowKind) -> bool) -> Vec<(Key, Stamp)> {
        let mut found = Vec::new();
        self.each(of, &wanted, &mut |key, stamp| found.push((key, stamp)));
        found
    }

    /// Returns a proc's spelling in the Procfile of head; its name if there is no other.
    pub fn spelling<'a>(&'a self, proc: &'a ProcName) -> &'a str {
        let rev = self.head_release().and_then(|(_, release)| self.revs.get(&release.rev));
        rev.and_then(|rev| rev.spelling(proc)).unwrap_or(proc.as_str())
    }

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
            let wanted = wanted.entry(*release).or_insert(0_u32);
            *wanted = wanted.saturating_add(*count);
        }
        wanted.retain(|release, count| *count > 0 && self.command(*release, proc).is_some());
        wanted
    }

    /// Returns the command that a release runs for a proc.
    pub fn command(&self, release: ReleaseId, proc: &ProcName) -> Option<&str> {
        let rev = &self.releases.get(&release)?.rev;
        self.revs.get(rev)?.procs.get(proc).map(String::as_str)
    }
}

/// A host's own words, where its operator says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The zone.
    pub zone: ZoneName,
    /// The address of its instances.
    pub address: IpAddr,
    /// The capacity.
    pub capacity: Capacity,
}

impl HostView {
    /// Puts what the operator names in place of what the host says; `is_new` if the registration was just read.
    fn heed_operator(&mut self, is_new: bool) {
        let said = self.said.take().filter(|_| !is_new);
        let Some(host) = self.host.as_mut().map(|row| &mut row.value) else { return };
        if let Some(said) = said {
            (host.zone, host.address, host.capacity) = (said.zone, said.address, said.capacity);
        }
        let Some(meta) = &self.meta else { return };
        let said = Said { zone: host.zone.clone(), address: host.address, capacity: host.capacity.clone() };
        host.zone.clone_from(meta.zone.as_ref().unwrap_or(&said.zone));
        host.address = meta.address.unwrap_or(said.address);
        if let Some(most) = meta.most_instances {
            host.capacity.instances = host.capacity.instances.min(most);
        }
        if let Some(most) = meta.most_memory_bytes {
            host.capacity.memory_bytes = host.capacity.memory_bytes.min(most);
        }
        let is_as_said =
            (&host.zone, host.address, &host.capacity) == (&said.zone, said.address, &said.capacity);
        self.said = Some(said).filter(|_| !is_as_said);
    }
}

impl Snapshot {
    /// Applies an operator's word on a host after a change of the host's row or of the operator's.
    fn heed_operator(&mut self, key: &Key, is_put: bool) {
        let (name, is_new) = match key {
            Key::Host(name) => (name, is_put),
            Key::HostMeta(name) => (name, false),
            _ => return,
        };
        change(&mut self.hosts, name, |view| view.heed_operator(is_new));
    }

    /// Returns what is out of bounds in a row; none if it is within bounds or cannot be read.
    pub fn out_of_bounds(&self, key: &Key) -> Option<&OutOfBounds> {
        // Rows are hardly ever out of bounds. To format keys for each row would cost more than the planning.
        if self.bounded.is_empty() { None } else { self.bounded.get(&key.to_string()) }
    }

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

    /// Returns the key and the reason of each unreadable row of a kind.
    pub fn unreadable_of(&self, kind: RowKind) -> impl Iterator<Item = (Key, &str)> {
        self.unreadable.iter().filter_map(move |(key, why)| {
            key.parse::<Key>().ok().filter(|key| key.kind() == kind).map(|key| (key, why.as_str()))
        })
    }

    /// Returns the key and the reason of the first unreadable row at or below an app's own key.
    pub fn unreadable_below(&self, app: &AppName) -> Option<(&str, &str)> {
        let (own, below) = (Key::App(app.clone()).to_string(), keys::app_below(app));
        let mut later = self.unreadable.range(own.clone()..);
        let found = later.find(|(key, _)| **key == own || below.contains(key));
        found.map(|(key, why)| (key.as_str(), why.as_str()))
    }
}

/// Changes the view of an app or a host, which leaves the image with its last row.
fn change<K: Ord, V: Default + PartialEq>(views: &mut BTreeMap<K, V>, name: &K, change: impl FnOnce(&mut V)) {
    let Some(view) = views.get_mut(name) else { return };
    change(view);
    if *view == V::default() {
        views.remove(name);
    }
}

impl Image for Snapshot {
    fn fresh(&self) -> Snapshot {
        Snapshot::default()
    }

    fn put(&mut self, entry: &Entry) {
        // A key of a newer version is skipped. A known key with an unreadable value is a fault that must be visible,
        // and the value before it is no longer true.
        let Ok(key) = entry.key.parse::<Key>() else { return };
        // An entry of the audit is only shown, and earlier versions wrote longer ones.
        let most = if key.kind() == RowKind::Audit { usize::MAX } else { key.row().most_bytes };
        let taken = match entry.value.len() {
            there if there > most => Err(Unreadable::Size { there, most }),
            _ => self.set(key.clone(), entry),
        };
        match taken {
            Ok(out) => {
                self.unreadable.remove(&entry.key);
                match out {
                    Some(out) => drop(self.bounded.insert(entry.key.clone(), out)),
                    None => drop(self.bounded.remove(&entry.key)),
                }
            }
            Err(error) => {
                self.remove(key.clone());
                self.bounded.remove(&entry.key);
                self.unreadable.insert(entry.key.clone(), error.to_string());
                // An operator's earlier word counts on.
                if key.kind() == RowKind::HostMeta {
                    return;
                }
            }
        }
        self.heed_operator(&key, true);
    }

    fn delete(&mut self, key: &str, _revision: Revision) {
        self.unreadable.remove(key);
        self.bounded.remove(key);
        if let Ok(key) = key.parse::<Key>() {
            self.remove(key.clone());
            self.heed_operator(&key, false);
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
