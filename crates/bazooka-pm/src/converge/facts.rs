//! What is known of each instance, put together from its rows.
//!
//! Owns the reading of instances; decides nothing about them.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, DefaultHasher},
};

use visor::{
    keys::Key,
    names::{AppName, HostName, InstanceId, ZoneName},
    rules::{failing::is_failing, order::Health},
    schema::{Assignment, Desired, Instance, State, Status},
    snapshot::{HostView, Snapshot, Versioned},
};

/// The instances of some apps, each app's by id.
pub type Instances<'a> = BTreeMap<&'a AppName, Vec<Facts<'a>>>;

/// An instance as the image shows it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its id.
    pub id: InstanceId,
    /// Where it was placed.
    pub row: &'a Versioned<Instance>,
    /// Its host's place among those of the image; none if nothing of the host is there.
    pub host_at: Option<usize>,
    /// What it is meant to do.
    pub assigned: Option<&'a Versioned<Assignment>>,
    /// What its host says of it.
    pub status: Option<&'a Versioned<Status>>,
    /// Whether its host is registered.
    pub host_here: bool,
    /// Where its host stands; none while that isn't registered.
    pub zone: Option<&'a ZoneName>,
    /// Whether its host is being drained.
    pub host_drains: bool,
    /// Whether one of its rows can't be read: whatever it does, it is left alone and counted.
    pub unreadable: bool,
}

/// An image of which instances are read by the thousand: their hosts are found without a search.
pub struct Reader<'a> {
    snapshot: &'a Snapshot,
    hosts: HashMap<&'a HostName, (usize, &'a HostView), BuildHasherDefault<DefaultHasher>>,
}

impl<'a> Reader<'a> {
    /// Of an image.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let hosts = snapshot.hosts.iter().enumerate().map(|(at, (name, view))| (name, (at, view)));
        Reader { snapshot, hosts: hosts.collect() }
    }

    /// Every instance of an app, by id; none if there is no such app.
    pub fn instances(&self, app: &AppName) -> Vec<Facts<'a>> {
        let Some(view) = self.snapshot.apps.get(app) else { return Vec::new() };
        view.instances.iter().map(|(id, row)| self.read(*id, row)).collect()
    }

    /// Every instance of these apps.
    pub fn apps<'n>(&self, apps: impl IntoIterator<Item = &'n AppName>) -> Instances<'a> {
        let there = apps.into_iter().filter_map(|app| self.snapshot.apps.get_key_value(app));
        there.map(|(app, _)| (app, self.instances(app))).collect()
    }

    fn read(&self, id: InstanceId, row: &'a Versioned<Instance>) -> Facts<'a> {
        let snapshot = self.snapshot;
        let name = &row.host;
        let found = self.hosts.get(name);
        let host = found.map(|(_, view)| *view);
        let lost_to_us = |key: Key| snapshot.unreadable.contains_key(&key.to_string());
        // Hardly ever is anything unreadable; spelling keys for each instance would cost more than planning.
        let doubtful = !snapshot.unreadable.is_empty();
        Facts {
            id,
            row,
            host_at: found.map(|(at, _)| *at),
            assigned: host.and_then(|host| host.assigned.get(&id)),
            status: host.and_then(|host| host.status.get(&id)),
            host_here: host.is_some_and(|host| host.host.is_some())
                || (doubtful && lost_to_us(Key::Host(name.clone()))),
            zone: host.and_then(|host| host.host.as_ref()).map(|host| &host.zone),
            host_drains: host.and_then(|host| host.meta.as_ref()).is_some_and(|meta| meta.draining),
            unreadable: doubtful
                && (lost_to_us(Key::Assigned(name.clone(), id)) || lost_to_us(Key::Status(name.clone(), id))),
        }
    }
}

impl Facts<'_> {
    /// What it is meant to do; without an assignment its host ends it.
    pub fn desired(&self) -> Desired {
        match self.assigned {
            Some(assigned) => assigned.desired,
            None if self.unreadable => Desired::Run,
            None => Desired::Stop,
        }
    }

    /// Its state, once its host has said one.
    pub fn state(&self) -> Option<State> {
        self.status.map(|status| status.state)
    }

    /// Nothing of it runs any more, or nothing will.
    pub fn is_over(&self) -> bool {
        let ended = self.state().is_some_and(State::is_final) && !self.returns();
        !self.unreadable && (self.assigned.is_none() || ended)
    }

    /// It was lost with its host, which is here again and will say what has become of it.
    fn returns(&self) -> bool {
        self.state() == Some(State::Lost) && self.host_here && self.desired() == Desired::Run
    }

    /// It is healthy, and its host is there.
    pub fn runs(&self) -> bool {
        self.state() == Some(State::Running) && self.host_here
    }

    /// It crashed and waits for its next start, or has failed for good.
    pub fn is_failing(&self) -> bool {
        self.state().is_some_and(is_failing)
    }

    /// How it does, among those that are meant to run and aren't over. One whose host is gone, or is back and has yet
    /// to say what became of it, counts as one that starts.
    pub fn health(&self) -> Health {
        match Health::of(self.state()) {
            Health::Serves if self.host_here => Health::Serves,
            Health::Fails => Health::Fails,
            Health::Serves | Health::Starts | Health::Over => Health::Starts,
        }
    }

    /// Its failure, for people: `web 17 on host1: exited with status 1`.
    pub fn failure(&self) -> String {
        let cause = self.status.and_then(|status| status.cause.as_deref()).unwrap_or("no cause given");
        format!("{} {} on {}: {cause}", self.row.proc, self.id, self.row.host)
    }
}
