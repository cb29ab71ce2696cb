//! The rule of service ports: each service has the port of its row, no two have one, and none ever changes.
//!
//! Owns the port that each service had, from the rows as they are written; what proxies and links obey is compared to it.

use std::collections::BTreeMap;

use visor::{
    names::{AppName, ProcName, ServicePort},
    ports::PortBook,
    snapshot::Snapshot,
};

/// The port of each service that has had one.
#[derive(Default)]
pub struct GivenPorts(BTreeMap<(AppName, ProcName), u16>);

impl GivenPorts {
    /// Judges the services of an image, of which no app is ever destroyed.
    pub fn judge(&mut self, image: &Snapshot, broken: &mut Vec<String>) {
        let mut owners = BTreeMap::new();
        for ((app, proc), port) in PortBook::of(image).services() {
            let Ok(port) = port else { continue };
            let row = image.ports.get(&ServicePort(port));
            if row.is_none_or(|row| (&row.app, &row.proc) != (&app, &proc)) {
                broken.push(format!("{app}/{proc} has port {port}, which no row gives it"));
            }
            if let Some((other, of)) = owners.insert(port, (app.clone(), proc.clone())) {
                broken.push(format!("{app}/{proc} has port {port}, as {other}/{of} has"));
            }
            let first = *self.0.entry((app.clone(), proc.clone())).or_insert(port);
            if first != port {
                broken.push(format!("{app}/{proc} had port {first}, and has {port}"));
            }
        }
    }
}
