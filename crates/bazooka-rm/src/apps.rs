//! The image of all apps, kept current by one watch and shared by all requests and loops.
//!
//! Owns the mirror's loop. Readers get each app's view as of some revision. A reader that waits for a change
//! subscribes, and looks again after each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use visor::{
    identity::Identity,
    keys::{self, Key},
    mirror::Mirror,
    names::{AppName, Day, HostName, UserName},
    schema::{Admission, DayStats, Rm, SshKeys},
    snapshot::{AppView, Many, Snapshot},
    store::{Revision, SharedStore},
};

use crate::changes::{Changes, Changing};

/// All known rows about apps and the cluster's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The registered apps by name.
    pub apps: BTreeMap<AppName, Arc<AppView>>,
    /// The rms that are up, by name.
    pub rms: BTreeMap<HostName, Rm>,
    /// The identities admitted to the cluster.
    pub identities: BTreeMap<Identity, Admission>,
    /// The SSH keys of each person.
    pub ssh_keys: BTreeMap<UserName, SshKeys>,
    /// The figures of each day, as far as they are counted.
    pub days: Arc<Many<Day, DayStats>>,
    /// The apps of which a row can't be read, so that what it refers to isn't known.
    pub unreadable: BTreeSet<AppName>,
    /// True if revs are there whose app has no row: what they name isn't known by app.
    pub has_strays: bool,
    /// The revision up to which the rows of the apps themselves are complete.
    ///
    /// The lowest revision over all scopes would stand still: a scope without changes reports none.
    pub revision: Revision,
    /// True once a complete list was seen. Before, a missing row may exist.
    pub complete: bool,
}

/// The place of the apps' own rows among the scopes.
const APPS: usize = 1;

/// The image of all apps. Cheap to clone.
#[derive(Clone)]
pub struct Apps {
    known: Arc<Mutex<Known>>,
    changed: Changes,
}

impl Apps {
    /// Returns an empty image, and the task that fills it and keeps it current.
    pub fn new(store: SharedStore) -> (Apps, Following) {
        let says = Changing::default();
        let changed = says.subscribe();
        let known = Arc::new(Mutex::new(Known::default()));
        let scopes = vec![
            keys::schema(),
            keys::apps(),
            keys::repos(),
            keys::rms(),
            keys::turns(),
            keys::stored(),
            keys::access(),
            keys::identities(),
            keys::ssh_keys(),
            keys::days(),
        ];
        let mirror = Mirror::new(store, scopes, Snapshot::default());
        (Apps { known: known.clone(), changed }, Following { mirror, known, says })
    }

    /// Returns a copy of everything known now.
    pub fn known(&self) -> Known {
        self.known.lock().expect("no holder of this lock panics").clone()
    }

    /// True once a complete list was seen.
    pub fn is_complete(&self) -> bool {
        self.known.lock().expect("no holder of this lock panics").complete
    }

    /// Returns an app's view, if it is registered.
    pub fn view(&self, app: &AppName) -> Option<Arc<AppView>> {
        self.known.lock().expect("no holder of this lock panics").apps.get(app).cloned()
    }

    /// Returns a receiver that reports each later change. Earlier changes are already in the image.
    pub fn changes(&self) -> Changes {
        let mut changes = self.changed.clone();
        changes.mark_unchanged();
        changes
    }
}

/// The task that keeps the image current.
pub struct Following {
    mirror: Mirror<Snapshot>,
    known: Arc<Mutex<Known>>,
    says: Changing,
}

impl Following {
    /// Runs the task. Never returns.
    pub async fn run(mut self) {
        loop {
            let changes = self.mirror.next().await;
            if changes.keys.is_empty() && !changes.relisted {
                continue;
            }
            self.publish(&changes.keys, changes.relisted);
            self.says.report();
        }
    }

    fn publish(&self, changed: &[String], relisted: bool) {
        let image = self.mirror.image();
        let mut known = self.known.lock().expect("no holder of this lock panics");
        known.complete |= relisted;
        let keys: Vec<Key> = changed.iter().filter_map(|key| key.parse().ok()).collect();
        if relisted || keys.iter().any(|key| matches!(key, Key::Day(_))) {
            known.days = Arc::new(image.days.clone());
        }
        let unreadable = image.unreadable.keys().filter_map(|key| key.parse::<Key>().ok());
        known.unreadable = unreadable.filter_map(|key| key.app().cloned()).collect();
        known.has_strays = image.apps.values().any(|view| view.app.is_none() && !view.revs.is_empty());
        known.revision = self.mirror.scope_revision(APPS);
        let mut names: Vec<AppName> = keys.iter().filter_map(|key| key.app().cloned()).collect();
        names.dedup();
        for name in names {
            match image.apps.get(&name).filter(|view| view.app.is_some()) {
                Some(view) => drop(known.apps.insert(name, Arc::new(view.clone()))),
                None => drop(known.apps.remove(&name)),
            }
        }
        known.identities =
            image.identities.iter().map(|(who, row)| (who.clone(), row.value.clone())).collect();
        known.ssh_keys = image.ssh_keys.iter().map(|(user, row)| (user.clone(), row.value.clone())).collect();
        known.rms = image.rms.iter().map(|(name, rm)| (name.clone(), rm.value.clone())).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use visor::{store::model::ModelStore, testing::until, visor::Visor};

    use super::*;

    #[tokio::test]
    async fn a_pause_shows_in_its_apps_view() {
        let store: SharedStore = Arc::new(ModelStore::new());
        let (visor, now) = (Visor::new(store.clone()), jiff::Timestamp::UNIX_EPOCH);
        let app: AppName = "shop".parse().expect("valid");
        visor.set_up().await.expect("it is in memory");
        visor.register_app(&app, "ada", "t", now).await.expect("there is no such app yet");
        let (apps, following) = Apps::new(store);
        let _following = tokio::spawn(following.run());
        let shows = async |what: &str, paused: bool| {
            until(what, Duration::from_secs(10), || async {
                let view = apps.view(&app).ok_or_else(|| "there is no such app".to_owned())?;
                if view.pause.is_some() == paused { Ok(()) } else { Err("it has the old view".to_owned()) }
            })
            .await;
        };
        shows("the app is seen", false).await;
        visor.pause_rollouts(&app, true, "ada", now).await.expect("the app is there");
        shows("the pause is seen", true).await;
    }
}
