//! Services: which of an image's procs a proxy serves, and which port each has.
//!
//! Owns nothing of its own: [`visor::ports`] decides, for proxies and for links alike.

use std::collections::BTreeMap;

pub use visor::ports::{Denied, MOST_SERVICES, procs_of};
use visor::{ports::PortBook, snapshot::Snapshot};

use crate::routes::ServiceId;

/// Returns the services of an image, each with its port.
pub fn services(snapshot: &Snapshot) -> BTreeMap<ServiceId, Result<u16, Denied>> {
    let all = PortBook::of(snapshot).services();
    all.into_iter().map(|((app, proc), port)| (ServiceId { app, proc }, port)).collect()
}
