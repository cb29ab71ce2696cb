//! The agenda: the apps that the next plan looks at, and when.
//!
//! Owns the way from changed keys to apps. The apps that it names are a hint that saves work: a plan over them equals
//! the plan over all apps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use visor::{
    keys::Key,
    mirror::Changes,
    names::AppName,
    planted::{Bug, planted},
    schema::State,
    snapshot::{HostView, Snapshot},
};

use super::{
    memory::{Memory, Now},
    step::Plan,
};

/// The apps to look at.
#[derive(Default)]
pub(super) struct Agenda {
    /// True if all apps are due.
    all: bool,
    /// Apps of which a row changed.
    dirty: BTreeSet<AppName>,
    /// Apps to look at whenever capacity may have come free.
    waiting_for_capacity: BTreeSet<AppName>,
    /// Apps to look at whenever a host may have got their slugs.
    lacking_sources: BTreeSet<AppName>,
    /// Apps to look at at a given time.
    look_again: BTreeMap<AppName, Instant>,
}

impl Agenda {
    /// Marks the apps that changed keys concern.
    pub fn note(&mut self, changes: &Changes, snapshot: &Snapshot, memory: &Memory) {
        self.all |= changes.relisted;
        for key in changes.keys.iter().filter(|_| !changes.relisted) {
            // A key of a newer version changes nothing in the image.
            let Ok(key) = key.parse::<Key>() else { continue };
            match &key {
                Key::Status(..) if planted(Bug::ReportsWakeNobody) => {}
                Key::Assigned(host, id) | Key::Status(host, id) => {
                    let assigned = snapshot.hosts.get(host).and_then(|view| view.assigned.get(id));
                    match assigned {
                        Some(assigned) => drop(self.dirty.insert(assigned.app.clone())),
                        // The app's own row of the instance, if it still exists, tells which app it belongs to.
                        None => self.dirty.extend(
                            snapshot
                                .apps
                                .iter()
                                .filter(|(_, view)| view.instances.contains_key(id))
                                .map(|(name, _)| name.clone()),
                        ),
                    }
                }
                Key::Archives(host) => {
                    self.dirty.extend(self.lacking_sources.iter().cloned());
                    let view = snapshot.hosts.get(host);
                    self.dirty.extend(view.into_iter().flat_map(waiting).cloned());
                }
                Key::Host(_) | Key::HostMeta(_) | Key::Unfreeze | Key::Schema => self.all = true,
                // Apps that link the service may wait for its port, and are looked at with it.
                Key::Port(port) => self.dirty.extend(snapshot.ports.get(port).map(|row| row.app.clone())),
                Key::Proxy(_) => self.dirty.extend(memory.draining_apps().cloned()),
                // Only the rms read these rows of an app.
                Key::Repo(_) | Key::Turn(_) | Key::Stored(_) | Key::Access(_) => {}
                key => self.dirty.extend(key.app().cloned()),
            }
        }
    }

    /// Returns the apps that are due now.
    pub fn due(&self, snapshot: &Snapshot, now: Now) -> BTreeSet<AppName> {
        if self.all {
            return snapshot.apps.keys().cloned().collect();
        }
        let timed = self.look_again.iter().filter(|(_, at)| **at <= now.clock).map(|(name, _)| name);
        let mut due: BTreeSet<AppName> = self.dirty.iter().chain(timed).cloned().collect();
        if !due.is_empty() {
            // Each of these apps may have freed capacity.
            due.extend(self.waiting_for_capacity.iter().cloned());
        }
        due
    }

    /// Clears what a plan has covered, and takes over its times and waiting apps.
    pub fn planned(&mut self, apps: &BTreeSet<AppName>, plan: &Plan) {
        self.all = false;
        self.dirty.clear();
        for app in apps {
            self.look_again.remove(app);
            self.waiting_for_capacity.remove(app);
            self.lacking_sources.remove(app);
        }
        self.look_again.extend(plan.look_again.iter().map(|(app, at)| (app.clone(), *at)));
        self.waiting_for_capacity.extend(plan.waiting_for_capacity.iter().cloned());
        self.lacking_sources.extend(plan.lacking_sources.iter().cloned());
    }

    /// Marks all apps as due.
    pub fn look_at_all(&mut self) {
        self.all = true;
    }

    /// Marks an app as due at `at`, or earlier if it is already.
    pub fn look_again_at(&mut self, app: AppName, at: Instant) {
        let noted = self.look_again.entry(app).or_insert(at);
        *noted = at.min(*noted);
    }

    /// Returns when something is due even if nothing happens.
    pub fn next_look(&self) -> Option<Instant> {
        self.look_again.values().min().copied()
    }

    /// Records the hosts in the memory. All apps are due if any host came, went, or is judged anew.
    pub fn observe_hosts(&mut self, snapshot: &Snapshot, memory: &mut Memory, now: Now) {
        self.all |= memory.observe_hosts(snapshot, now);
    }
}

/// Returns the apps of a host's instances that have not started yet, and so may wait for their slugs.
fn waiting(view: &HostView) -> impl Iterator<Item = &AppName> {
    view.assigned.iter().filter_map(|(id, assigned)| {
        let state = view.status.get(id).map(|status| status.state);
        matches!(state, None | Some(State::Claimed)).then_some(&assigned.app)
    })
}
