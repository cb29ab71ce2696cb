//! What is known of each instance, put together from its rows.
//!
//! Owns the reading of one instance; decides nothing about it.

use visor::{
    keys::Key,
    names::{InstanceId, ProcName},
    schema::{Assignment, Desired, Instance, State, Status},
    snapshot::{AppView, Snapshot, Versioned},
};

/// An instance as the image shows it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its id.
    pub id: InstanceId,
    /// Where it was placed.
    pub row: &'a Versioned<Instance>,
    /// What it is meant to do.
    pub assigned: Option<&'a Versioned<Assignment>>,
    /// What its host says of it.
    pub status: Option<&'a Versioned<Status>>,
    /// Whether its host is registered.
    pub host_here: bool,
    /// Whether its host is being drained.
    pub host_drains: bool,
    /// Whether one of its rows can't be read: whatever it does, it is left alone and counted.
    pub unreadable: bool,
}

impl<'a> Facts<'a> {
    /// Reads one instance of an app.
    pub fn of(snapshot: &'a Snapshot, id: InstanceId, row: &'a Versioned<Instance>) -> Self {
        let host = snapshot.hosts.get(&row.host);
        let lost_to_us = |key: Key| snapshot.unreadable.contains_key(&key.to_string());
        // Hardly ever is anything unreadable; spelling keys for each instance would cost more than planning.
        let doubtful = !snapshot.unreadable.is_empty();
        let name = &row.host;
        Facts {
            id,
            row,
            assigned: host.and_then(|host| host.assigned.get(&id)),
            status: host.and_then(|host| host.status.get(&id)),
            host_here: host.is_some_and(|host| host.host.is_some())
                || (doubtful && lost_to_us(Key::Host(name.clone()))),
            host_drains: host.and_then(|host| host.meta.as_ref()).is_some_and(|meta| meta.draining),
            unreadable: doubtful
                && (lost_to_us(Key::Assigned(name.clone(), id)) || lost_to_us(Key::Status(name.clone(), id))),
        }
    }

    /// Every instance of an app, by id.
    pub fn of_app(snapshot: &'a Snapshot, view: &'a AppView) -> Vec<Self> {
        view.instances.iter().map(|(id, row)| Facts::of(snapshot, *id, row)).collect()
    }

    /// Every instance of a proc, by id.
    pub fn of_proc(snapshot: &'a Snapshot, view: &'a AppView, proc: &ProcName) -> Vec<Self> {
        let of_proc = view.instances.iter().filter(|(_, row)| row.proc == *proc);
        of_proc.map(|(id, row)| Facts::of(snapshot, *id, row)).collect()
    }

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
    pub fn ails(&self) -> bool {
        matches!(self.state(), Some(State::Backoff | State::Failed))
    }

    /// What ails it, for people: `web 17 on host1: exited with status 1`.
    pub fn ailment(&self) -> String {
        let cause = self.status.and_then(|status| status.cause.as_deref()).unwrap_or("no cause given");
        format!("{} {} on {}: {cause}", self.row.proc, self.id, self.row.host)
    }
}
