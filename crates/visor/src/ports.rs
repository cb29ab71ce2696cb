//! The ports of services: which service has which port, which ports are free, and which rows of ports are missing.
//!
//! Owns the reading of the rows under `ports/`. Only bazooka-rm writes them, so an app's people cannot take another app's
//! port. Rows of procs, which an app's people may write, name a port as well; it counts only before schema version
//! [`PORTS_IN_ROWS`], for a service that has no row yet. Pure.
//!
//! ```text
//! free ─register, or an rm's loop─▶ given ─the app is destroyed─▶ at rest ─an hour─▶ free
//! ```

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

pub use crate::bounds::MOST_SERVICES;
use crate::{
    keys::Key,
    names::{AppName, ProcName, ServicePort},
    planted::{Bug, planted},
    rows::RowKind,
    schema::{Port, Proc, Schema},
    snapshot::{AppView, Snapshot, Versioned},
    store::{Entry, Image, Revision},
};

/// The schema version from which on a service has the port of its row alone.
pub const PORTS_IN_ROWS: u32 = 3;

/// The port below the first service port, as in SoundCloud's bazooka.
pub const SERVICE_PORT_BASE: u16 = 8500;

/// The last service port. The next one is the first of Linux's ephemeral ports, of which a machine's own connections could
/// take any before a proxy opens it, so none of those is ever given.
pub const SERVICE_PORT_LAST: u16 = 32_767;

/// The rest of a port after the destruction of its app, in which callers learn that the service is gone.
pub const REST: SignedDuration = SignedDuration::from_hours(1);

/// A service, by its app and its proc.
pub type Service = (AppName, ProcName);

/// The reason why a service has no port of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The service has no row under `ports/`, and the port that its proc's row names does not count.
    #[error("bazooka-rm has given it no port: push it again")]
    NotGiven,
    /// The proc's row names a port of the machine's own programs.
    #[error("port {0} is none of a service's")]
    Below(u16),
    /// The proc's row names a port that another service has or had.
    #[error("port {port} is given to {app}/{proc}", app = .owner.0, proc = .owner.1)]
    Given {
        /// The port.
        port: u16,
        /// The service of the port's row.
        owner: Service,
    },
    /// The proc's row names the port of a service that was registered before; neither has a row.
    #[error("port {port} is that of {app}/{proc}, which was registered first", app = .owner.0, proc = .owner.1)]
    Anothers {
        /// The port.
        port: u16,
        /// The service that has it.
        owner: Service,
    },
}

/// A step by which the rows of ports come to be as they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the port to the service, which has named it since an earlier release.
    Give(Service, ServicePort),
    /// Give the service another port than the one that its proc's row names.
    GiveAnother(Service),
    /// Begin the port's rest: its app is gone.
    Free(ServicePort),
    /// Delete the row of a port that has rested.
    Forget(ServicePort),
}

/// The book of ports: what an image says about them.
#[derive(Clone, Copy)]
pub struct PortBook<'a> {
    snapshot: &'a Snapshot,
    is_strict: bool,
}

impl<'a> PortBook<'a> {
    /// Returns the book of an image.
    ///
    /// To be right about a service, the image needs the schema, the rows of ports, and the app's own row and procs; before
    /// version [`PORTS_IN_ROWS`] also those of all apps, and their revs.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        PortBook { snapshot, is_strict: is_strict(snapshot.schema.as_ref().map(|row| &row.value)) }
    }

    /// Reports whether a service has the port of its row alone.
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Returns the port of a service that has a row.
    pub fn given(&self, app: &AppName, proc: &ProcName) -> Option<u16> {
        if planted(Bug::NamedPortCounts) {
            return self.snapshot.apps.get(app)?.procs.get(proc).map(|row| row.port);
        }
        let view = self.snapshot.apps.get(app)?;
        let is_its = |row: &Port| row.proc == *proc && row.app == *app && self.is_in_force(row);
        let named = view.procs.get(proc).map(|row| ServicePort(row.port));
        if let Some(port) = named.filter(|port| self.snapshot.ports.get(port).is_some_and(|row| is_its(row)))
        {
            return Some(port.0);
        }
        let all = self.snapshot.ports.iter().filter(|(_, row)| is_its(row));
        all.min_by_key(|(_, row)| row.create_revision).map(|(port, _)| port.0)
    }

    /// Returns the port of a service.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn port(&self, app: &AppName, proc: &ProcName) -> Result<u16, Denied> {
        if let Some(port) = self.given(app, proc) {
            return Ok(port);
        }
        let claim = self.snapshot.apps.get(app).and_then(|view| {
            let row = view.procs.get(proc)?;
            Some(Claim { app, proc, row, view })
        });
        let Some(claim) = claim.filter(|_| !self.is_strict) else { return Err(Denied::NotGiven) };
        let rivals = self.claims().filter(|other| other.row.port == claim.row.port);
        let rivals = rivals.filter(|other| self.given(other.app, other.proc).is_none());
        let first = rivals.min_by(|a, b| a.rank().cmp(&b.rank())).unwrap_or(claim);
        self.named(&claim, &first)
    }

    /// Returns the services, each with its port; of an app no more than [`MOST_SERVICES`].
    pub fn services(&self) -> BTreeMap<Service, Result<u16, Denied>> {
        let given = self.all_given();
        let given = |claim: &Claim<'a>| given.get(&(claim.app, claim.proc)).copied();
        let mut first: BTreeMap<u16, Claim<'a>> = BTreeMap::new();
        if !self.is_strict {
            for claim in self.claims().filter(|claim| given(claim).is_none()) {
                let known = first.entry(claim.row.port).or_insert(claim);
                if claim.rank() < known.rank() {
                    *known = claim;
                }
            }
        }
        let port = |claim: &Claim<'a>| match (given(claim), first.get(&claim.row.port)) {
            (Some(port), _) => Ok(port),
            (None, Some(first)) => self.named(claim, first),
            (None, None) => Err(Denied::NotGiven),
        };
        self.claims().map(|claim| (claim.service(), port(&claim))).collect()
    }

    /// Returns the services that were registered and have no row: registrations of earlier releases.
    ///
    /// None where a row of a port cannot be read, because it may be the missing one.
    pub fn not_given(&self) -> Vec<Service> {
        if self.is_strict || self.snapshot.unreadable_of(RowKind::Port).next().is_some() {
            return Vec::new();
        }
        let given = self.all_given();
        self.registered()
            .filter(|claim| !given.contains_key(&(claim.app, claim.proc)))
            .map(|c| c.service())
            .collect()
    }

    /// Returns the ports that can be given, the next ones after `counter` first.
    ///
    /// Before version [`PORTS_IN_ROWS`] a bazooka-rm of an earlier release may give ports without writing their rows. All
    /// of those lie at or below `counter`, so nothing there is given again.
    pub fn free(&self, counter: u64) -> impl Iterator<Item = u16> + use<'a> {
        let counter = u16::try_from(counter).unwrap_or(u16::MAX).max(SERVICE_PORT_BASE);
        let last = if self.is_strict { SERVICE_PORT_LAST } else { u16::MAX };
        let above = counter.saturating_add(1)..=last;
        let above = above.filter(move |port| *port > counter);
        let again = SERVICE_PORT_BASE + 1..=counter.min(SERVICE_PORT_LAST);
        let again = again.filter({
            let is_strict = self.is_strict;
            move |_| is_strict
        });
        let snapshot = self.snapshot;
        above.chain(again).filter(move |port| {
            !snapshot.ports.contains_key(&ServicePort(*port))
                && (snapshot.unreadable.is_empty()
                    || !snapshot.unreadable.contains_key(&Key::Port(ServicePort(*port)).to_string()))
        })
    }

    /// Returns the steps that a complete image asks for.
    pub fn steps(&self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        let missing: BTreeSet<Service> = self.not_given().into_iter().collect();
        if !missing.is_empty() {
            let services = self.services();
            for service in missing {
                steps.push(match services.get(&service) {
                    Some(Ok(port)) => Step::Give(service, ServicePort(*port)),
                    _ => Step::GiveAnother(service),
                });
            }
        }
        for (port, row) in &self.snapshot.ports {
            match row.freed_at {
                Some(at) if now.duration_since(at) >= REST => steps.push(Step::Forget(*port)),
                None if self.is_gone(row) => steps.push(Step::Free(*port)),
                _ => {}
            }
        }
        steps
    }

    /// Returns the moment from which on [`PortBook::steps`] may return more, although nothing has changed.
    pub fn next_end_of_rest(&self) -> Option<Timestamp> {
        let freed = self.snapshot.ports.values().filter_map(|row| row.freed_at);
        freed.min().and_then(|at| at.checked_add(REST).ok())
    }

    /// Reports whether a service has the port of this row: it does not rest, and its app is still the one of then.
    pub fn is_in_force(&self, row: &Port) -> bool {
        let app = self.snapshot.apps.get(&row.app).and_then(|view| view.app.as_ref());
        row.freed_at.is_none() && app.is_some_and(|app| app.token == row.token)
    }

    /// Reports whether a proc of an app came with one of its revs.
    pub fn is_registered(view: &AppView, proc: &ProcName) -> bool {
        view.revs.values().any(|rev| rev.procs.contains_key(proc))
    }

    /// Reports whether the app of this row is gone: none of its rows is left, or a later app has the name.
    ///
    /// An app without its own row has lost it, and a person writes it again.
    pub fn is_gone(&self, row: &Port) -> bool {
        let unreadable = &self.snapshot.unreadable;
        match self.snapshot.apps.get(&row.app) {
            Some(view) => view.app.as_ref().is_some_and(|app| app.token != row.token),
            None => unreadable.is_empty() || !unreadable.contains_key(&Key::App(row.app.clone()).to_string()),
        }
    }

    fn all_given(&self) -> BTreeMap<(&'a AppName, &'a ProcName), u16> {
        if planted(Bug::NamedPortCounts) {
            return self.claims().map(|claim| ((claim.app, claim.proc), claim.row.port)).collect();
        }
        let mut given: BTreeMap<_, (bool, Revision, u16)> = BTreeMap::new();
        for (port, row) in self.snapshot.ports.iter().filter(|(_, row)| self.is_in_force(row)) {
            let named = self.snapshot.apps.get(&row.app).and_then(|view| view.procs.get(&row.proc));
            let rank = (named.is_none_or(|named| named.port != port.0), row.create_revision, port.0);
            let known = given.entry((&row.app, &row.proc)).or_insert(rank);
            *known = rank.min(*known);
        }
        given.into_iter().map(|(service, (_, _, port))| (service, port)).collect()
    }

    /// Judges the port that a proc's row names, for a service without a row of its port; `first` is the one of these to
    /// which the port belongs.
    fn named(&self, claim: &Claim<'a>, first: &Claim<'a>) -> Result<u16, Denied> {
        let port = claim.row.port;
        if port <= SERVICE_PORT_BASE {
            return Err(Denied::Below(port));
        }
        if let Some(row) = self.snapshot.ports.get(&ServicePort(port)) {
            return Err(Denied::Given { port, owner: (row.app.clone(), row.proc.clone()) });
        }
        if (first.app, first.proc) != (claim.app, claim.proc) {
            return Err(Denied::Anothers { port, owner: first.service() });
        }
        Ok(port)
    }

    fn claims(&self) -> impl Iterator<Item = Claim<'a>> + use<'a> {
        self.snapshot.apps.iter().flat_map(|(app, view)| of_app(app, view))
    }

    fn registered(&self) -> impl Iterator<Item = Claim<'a>> + use<'a> {
        let lives = |claim: &Claim<'a>| claim.view.app.as_ref().is_some_and(|app| !app.destroying);
        self.claims().filter(move |claim| lives(claim) && PortBook::is_registered(claim.view, claim.proc))
    }
}

fn is_strict(schema: Option<&Schema>) -> bool {
    schema.is_some_and(|schema| schema.version >= PORTS_IN_ROWS)
}

/// Returns the names of an app's services, [`MOST_SERVICES`] at most.
pub fn procs_of<'a>(app: &'a AppName, view: &'a AppView) -> impl Iterator<Item = &'a ProcName> {
    of_app(app, view).into_iter().map(|claim| claim.proc)
}

fn of_app<'a>(app: &'a AppName, view: &'a AppView) -> Vec<Claim<'a>> {
    let mut all: Vec<Claim<'a>> =
        view.procs.iter().map(|(proc, row)| Claim { app, proc, row, view }).collect();
    if all.len() > MOST_SERVICES {
        all.sort_by_key(|claim| (claim.row.create_revision, claim.proc));
        all.truncate(MOST_SERVICES);
    }
    all
}

/// The claim of a service to the port that its proc's row names.
#[derive(Clone, Copy)]
struct Claim<'a> {
    app: &'a AppName,
    proc: &'a ProcName,
    row: &'a Versioned<Proc>,
    view: &'a AppView,
}

impl<'a> Claim<'a> {
    fn service(&self) -> Service {
        (self.app.clone(), self.proc.clone())
    }

    /// Returns the rank among claims to one port; the lowest has it.
    ///
    /// An rm gives each port once and writes a proc's row together with the rev that it came with. So a row that nobody
    /// has changed since is right; among others, the elder registration counts. Names decide only where the image has no
    /// registrations.
    fn rank(&self) -> (bool, Revision, Revision, &'a AppName, &'a ProcName) {
        let revs = self.view.revs.values().filter(|rev| rev.procs.contains_key(self.proc));
        let rev = revs.map(|rev| rev.create_revision).min().unwrap_or(Revision::MAX);
        let is_rms = self.row.create_revision == rev && self.row.mod_revision == rev;
        let app = self.view.app.as_ref().map_or(Revision::MAX, |app| app.create_revision);
        (!is_rms, rev, app, self.app, self.proc)
    }
}

/// An image of the rows that a [`PortBook`] reads. It drops the revs once they no longer count.
#[derive(Clone, Debug, Default)]
pub struct PortImage(Snapshot);

impl PortImage {
    /// Returns the rows. Those of other kinds are absent.
    pub fn snapshot(&self) -> &Snapshot {
        &self.0
    }

    /// Reports whether the image holds rows of this kind.
    pub fn is_looked_at(kind: RowKind) -> bool {
        matches!(kind, RowKind::Schema | RowKind::App | RowKind::Rev | RowKind::Proc | RowKind::Port)
    }
}

impl Image for PortImage {
    fn holds(&self, key: &str) -> bool {
        key.parse::<Key>().is_ok_and(|key| PortImage::is_looked_at(key.kind()))
    }

    fn fresh(&self) -> PortImage {
        PortImage(self.0.fresh())
    }

    fn put(&mut self, entry: &Entry) {
        self.0.put(entry);
        drop_revs(&mut self.0, &entry.key);
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        self.0.delete(key, revision);
    }

    fn set_revision(&mut self, revision: Revision) {
        self.0.set_revision(revision);
    }
}

/// Drops the revs of an image that needs them for ports alone, after a row was put: from version [`PORTS_IN_ROWS`] on they
/// do not count.
pub fn drop_revs(snapshot: &mut Snapshot, put: &str) {
    if !is_strict(snapshot.schema.as_ref().map(|row| &row.value)) {
        return;
    }
    match put.parse::<Key>() {
        Ok(Key::Schema) => snapshot.apps.values_mut().for_each(|view| view.revs.clear()),
        Ok(Key::Rev(app, rev)) => {
            if let Some(view) = snapshot.apps.get_mut(&app) {
                view.revs.remove(&rev);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
