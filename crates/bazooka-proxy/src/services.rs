//! Services: which of an image's procs a proxy serves, and which port each has.
//!
//! Owns the reading of procs' rows. An app's people may write them, so a row is obeyed only within bounds: an app has so
//! many services and no more, no port below those of services is opened, and of two services that name one port the one
//! that an rm registered first has it. Pure.

use std::collections::BTreeMap;

use visor::{
    names::{AppName, ProcName},
    schema::Proc,
    snapshot::{AppView, Snapshot, Versioned},
    store::Revision,
    transitions::apps::SERVICE_PORT_BASE,
};

use crate::routes::ServiceId;

/// The most services of an app: far more than its pushes register, and few enough for HAProxy.
pub const MOST_SERVICES: usize = 250;

/// The reason why a service has no port of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Its row names a port of the machine's own programs.
    #[error("port {0} is none of a service's")]
    Below(u16),
    /// Its row names the port of a service that was registered before.
    #[error("port {port} is that of {owner}, which was registered first")]
    Anothers {
        /// The port.
        port: u16,
        /// The service that has it.
        owner: ServiceId,
    },
}

/// Returns the services of an image, each with its port.
pub fn services(snapshot: &Snapshot) -> BTreeMap<ServiceId, Result<u16, Denied>> {
    let mut first: BTreeMap<u16, Claim<'_>> = BTreeMap::new();
    let all = || snapshot.apps.iter().flat_map(|(app, view)| of_app(app, view));
    for claim in all() {
        let known = first.entry(claim.row.port).or_insert(claim);
        if claim.rank() < known.rank() {
            *known = claim;
        }
    }
    let port = |claim: &Claim<'_>| {
        let (port, owner) = (claim.row.port, first[&claim.row.port].id());
        if port <= SERVICE_PORT_BASE {
            Err(Denied::Below(port))
        } else if owner != claim.id() {
            Err(Denied::Anothers { port, owner })
        } else {
            Ok(port)
        }
    };
    all().map(|claim| (claim.id(), port(&claim))).collect()
}

/// Returns the names of an app's services.
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

/// The claim of a service to the port that its row names.
#[derive(Clone, Copy)]
struct Claim<'a> {
    app: &'a AppName,
    proc: &'a ProcName,
    row: &'a Versioned<Proc>,
    view: &'a AppView,
}

impl Claim<'_> {
    fn id(&self) -> ServiceId {
        ServiceId { app: self.app.clone(), proc: self.proc.clone() }
    }

    /// Returns the rank among claims to one port; the lowest has it.
    ///
    /// An rm gives each port once and writes a proc's row together with the rev that it came with. So a row that nobody
    /// has changed since is right; among others, the elder registration counts. Names decide only where the image has no
    /// registrations.
    fn rank(&self) -> (bool, Revision, Revision, &AppName, &ProcName) {
        let revs = self.view.revs.values().filter(|rev| rev.procs.contains_key(self.proc));
        let rev = revs.map(|rev| rev.create_revision).min().unwrap_or(Revision::MAX);
        let is_rms = self.row.create_revision == rev && self.row.mod_revision == rev;
        let app = self.view.app.as_ref().map_or(Revision::MAX, |app| app.create_revision);
        (!is_rms, rev, app, self.app, self.proc)
    }
}
