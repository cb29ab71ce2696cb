//! The directory in the format of Prometheus (`http_sd_configs`): the targets and their labels.
//!
//! Owns the labels. Each target carries what its scrape needs (`__scheme__`, `__metrics_path__`), so one list can
//! hold daemons with and without an identity. A scrape job selects its targets by `__meta_bazooka_role`.

use std::collections::BTreeMap;

use serde::Serialize;
use visor::identity::Kind;

use super::{Daemon, Directory, Place};
use crate::{endpoint::HAPROXY_METRICS, routes::ServiceId};

/// The label that distinguishes instances, daemons and HAProxy in a scrape's configuration.
const ROLE: &str = "__meta_bazooka_role";

/// Targets that have the same labels, in Prometheus's format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The targets, each as `address:port`.
    pub targets: Vec<String>,
    /// The labels. Those that begin with `__` are for the scrape only; the others go on each series.
    pub labels: BTreeMap<&'static str, String>,
}

/// Returns every running instance, every daemon, and the HAProxy of each proxy.
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
            // HAProxies of several proxies have servers of the same names.
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
        // The short form, as shown to people.
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
