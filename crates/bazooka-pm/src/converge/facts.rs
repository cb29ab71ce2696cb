//! The converger's view of each instance, put together from its rows.
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
    /// The instance's id.
    pub id: InstanceId,
    /// The app's row of it, which says where it was placed.
    pub row: &'a Versioned<Instance>,
    /// The position of its host among the hosts of the image; none if the image has no row of that host.
    pub host_at: Option<usize>,
    /// The instance's assignment: what it should run, and whether it should run.
    pub assigned: Option<&'a Versioned<Assignment>>,
    /// The status that its host reported.
    pub status: Option<&'a Versioned<Status>>,
    /// True if its host is registered.
    pub host_here: bool,
    /// The zone of its host; none while the host isn't registered.
    pub zone: Option<&'a ZoneName>,
    /// True if its host is being drained.
    pub host_drains: bool,
    /// True if one of its rows can't be read. The instance is then left alone and counted, whatever its state.
    pub unreadable: bool,
}

/// An index over an image that finds an instance's host in constant time, because thousands of instances are read.
pub struct Reader<'a> {
    snapshot: &'a Snapshot,
    hosts: HashMap<&'a HostName, (usize, &'a HostView), BuildHasherDefault<DefaultHasher>>,
}

impl<'a> Reader<'a> {
    /// Builds the index of an image.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let hosts = snapshot.hosts.iter().enumerate().map(|(at, (name, view))| (name, (at, view)));
        Reader { snapshot, hosts: hosts.collect() }
    }

    /// Returns every instance of an app, by id; none if there is no such app.
    pub fn instances(&self, app: &AppName) -> Vec<Facts<'a>> {
        let Some(view) = self.snapshot.apps.get(app) else { return Vec::new() };
        view.instances.iter().map(|(id, row)| self.read(*id, row)).collect()
    }

    /// Returns every instance of these apps.
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
        // Rows are hardly ever unreadable. To format keys for each instance would cost more than the planning.
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
    /// Returns what the instance should do. Without an assignment its host ends it, so that is `Stop`.
    pub fn desired(&self) -> Desired {
        match self.assigned {
            Some(assigned) => assigned.desired,
            None if self.unreadable => Desired::Run,
            None => Desired::Stop,
        }
    }

    /// Returns its state, once its host has reported one.
    pub fn state(&self) -> Option<State> {
        self.status.map(|status| status.state)
    }

    /// Reports whether the instance has ended: nothing of it runs, and nothing will.
    pub fn is_over(&self) -> bool {
        let ended = self.state().is_some_and(State::is_final) && !self.returns();
        !self.unreadable && (self.assigned.is_none() || ended)
    }

    /// Reports whether the instance was lost with its host, and the host is back and has yet to report its state.
    fn returns(&self) -> bool {
        self.state() == Some(State::Lost) && self.host_here && self.desired() == Desired::Run
    }

    /// Reports whether the instance is healthy and its host is here.
    pub fn runs(&self) -> bool {
        self.state() == Some(State::Running) && self.host_here
    }

    /// Reports whether the instance waits for its next start after a crash, or has failed for good.
    pub fn is_failing(&self) -> bool {
        self.state().is_some_and(is_failing)
    }

    /// Returns its health, if it should run and isn't over. An instance whose host is gone, or is back and has yet to
    /// report, counts as starting.
    pub fn health(&self) -> Health {
        match Health::of(self.state()) {
            Health::Serves if self.host_here => Health::Serves,
            Health::Fails => Health::Fails,
            Health::Serves | Health::Starts | Health::Over => Health::Starts,
        }
    }

    /// Returns its failure, for people: `web 17 on host1: exited with status 1`.
    pub fn failure(&self) -> String {
        let cause = self.status.and_then(|status| status.cause.as_deref()).unwrap_or("no cause given");
        format!("{} {} on {}: {cause}", self.row.proc, self.id, self.row.host)
    }
}
