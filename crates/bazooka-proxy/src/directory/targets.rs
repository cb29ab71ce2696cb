//! The directory as Prometheus reads it (`http_sd_configs`): what is scraped, and what each is called.
//!
//! Owns the labels. What a scrape needs (`__scheme__`, `__metrics_path__`) goes with each target, so that a daemon with an
//! identity and one without can stand in one list; which of them a job takes is told by `__meta_bazooka_role`.

use std::collections::BTreeMap;

use serde::Serialize;
use visor::identity::Kind;

use super::{Daemon, Directory, Place};
use crate::{endpoint::HAPROXY_METRICS, routes::ServiceId};

/// What tells instances, daemons and HAProxy apart in a scrape's configuration.
const ROLE: &str = "__meta_bazooka_role";

/// Targets with the same labels, as Prometheus takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Each as `address:port`.
    pub targets: Vec<String>,
    /// Those that begin with `__` are for the scrape alone, the others for each series.
    pub labels: BTreeMap<&'static str, String>,
}

/// Every running instance, every daemon, and the HAProxy of each proxy.
pub fn targets(directory: &Directory) -> Vec<Group> {
    let mut groups = Vec::new();
    for (service, places) in &*directory.services {
        groups.extend(places.iter().map(|(id, place)| of_instance(service, &id.to_string(), place)));
    }
    for daemon in &directory.daemons {
        let Some((scheme, address)) = daemon.url.split_once("://") else { continue };
        let address = address.trim_end_matches('/');
        groups.push(of_daemon(daemon, daemon.kind.as_str(), scheme, address));
        if daemon.kind == Kind::Proxy {
            let mut haproxy = of_daemon(daemon, "haproxy", scheme, address);
            // Two of them name the same servers.
            haproxy.labels.insert("haproxy", daemon.name.clone());
            haproxy.labels.insert("__metrics_path__", HAPROXY_METRICS.to_owned());
            groups.push(haproxy);
        }
    }
    groups
}

fn of_instance(service: &ServiceId, id: &str, place: &Place) -> Group {
    let mut labels = BTreeMap::from([
        (ROLE, "instance".to_owned()),
        ("app", service.app.to_string()),
        ("proc", service.proc.to_string()),
        ("service", service.to_string()),
        ("instance", id.to_owned()),
        ("release", place.release.to_string()),
        // As people are shown it.
        ("rev", place.rev.short().to_owned()),
        ("host", place.host.to_string()),
    ]);
    labels.extend(place.zone.as_ref().map(|zone| ("zone", zone.to_string())));
    Group { targets: vec![place.address.to_string()], labels }
}

fn of_daemon(daemon: &Daemon, role: &str, scheme: &str, address: &str) -> Group {
    let mut labels = BTreeMap::from([
        (ROLE, role.to_owned()),
        ("instance", format!("{role}:{}", daemon.name)),
        ("__scheme__", scheme.to_owned()),
    ]);
    labels.extend((daemon.kind == Kind::Pm).then(|| ("host", daemon.name.clone())));
    labels.extend(daemon.zone.as_ref().map(|zone| ("zone", zone.to_string())));
    Group { targets: vec![address.to_owned()], labels }
}
