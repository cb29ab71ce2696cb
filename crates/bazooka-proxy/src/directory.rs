//! The directory: the running instances of each service, and every daemon of the cluster.
//!
//! Owns the rule for what discovery names. The directory is built from the same image as the routes, but doesn't wait
//! for HAProxy: a slow reload doesn't delay the news that an instance has stopped. It answers no requests itself:
//! [`targets`] and [`crate::endpoint`] do.

pub mod targets;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use tokio::sync::watch;
use visor::{
    identity::Kind,
    keys::Key,
    mirror::{Changes, Mirror},
    names::{AppName, HostName, InstanceId, ReleaseId, RevId, ZoneName},
    rows::RowKind,
    schema::State,
    snapshot::Snapshot,
};

use crate::{
    image::RoutingImage,
    routes::{ServiceId, is_routed, own_address},
    services::procs_of,
};

/// A running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The instance's address.
    pub address: SocketAddr,
    /// The host that runs it.
    pub host: HostName,
    /// The host's zone; `None` while it isn't known.
    pub zone: Option<ZoneName>,
    /// The release that the instance runs.
    pub release: ReleaseId,
    /// The release's rev.
    pub rev: RevId,
    /// True if requests are routed to the instance. A draining instance runs, but takes none.
    pub routed: bool,
}

/// A daemon of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Daemon {
    /// The kind of daemon.
    pub kind: Kind,
    /// The daemon's name, unique among daemons of its kind.
    pub name: String,
    /// The base URL of its endpoint.
    pub url: String,
    /// The daemon's zone, if it reports one.
    pub zone: Option<ZoneName>,
}

/// The instances of a service.
pub type Places = BTreeMap<InstanceId, Place>;

/// The services, each with its instances.
pub type Services = BTreeMap<ServiceId, Places>;

/// The instances and daemons of the cluster, as discovery names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Each registered proc, with or without instances.
    pub services: Arc<Services>,
    /// Each registered daemon; of the convergers only the leader.
    pub daemons: BTreeSet<Daemon>,
    /// The apps that have services.
    pub apps: BTreeSet<AppName>,
    /// The zones that have an instance or a daemon.
    pub zones: BTreeSet<ZoneName>,
}

impl Directory {
    /// Creates the directory of these services and daemons.
    pub fn of(services: Arc<Services>, daemons: BTreeSet<Daemon>) -> Self {
        let apps = services.keys().map(|id| id.app.clone()).collect();
        let places = services.values().flat_map(BTreeMap::values).filter_map(|place| place.zone.as_ref());
        let zones = places.chain(daemons.iter().filter_map(|daemon| daemon.zone.as_ref())).cloned().collect();
        Directory { services, daemons, apps, zones }
    }
}

/// A receiver of the directory; `None` until the first complete list.
pub type Shown = watch::Receiver<Option<Arc<Directory>>>;

/// The newest directory, which readers can watch.
#[derive(Debug)]
pub struct Board(watch::Sender<Option<Arc<Directory>>>);

/// The rows from which the services are made.
const OF_SERVICES: [RowKind; 5] =
    [RowKind::Proc, RowKind::Assigned, RowKind::Status, RowKind::Host, RowKind::HostMeta];

/// The rows from which the daemons are made.
const OF_DAEMONS: [RowKind; 5] =
    [RowKind::Host, RowKind::HostMeta, RowKind::Proxy, RowKind::Rm, RowKind::Leader];

/// Reports whether the directory is made from rows of this kind.
pub fn concerns(kind: RowKind) -> bool {
    OF_SERVICES.contains(&kind) || OF_DAEMONS.contains(&kind)
}

impl Default for Board {
    fn default() -> Self {
        Board(watch::channel(None).0)
    }
}

impl Board {
    /// Returns a receiver of the directory.
    pub fn shown(&self) -> Shown {
        self.0.subscribe()
    }

    /// Updates the directory from a change of the image. Without contact to the coordinator, the last directory
    /// stays.
    pub fn see(&self, changes: &Changes, mirror: &Mirror<RoutingImage>) {
        if !mirror.is_synced() {
            return;
        }
        let changed = changes.keys.iter().filter(|_| !changes.relisted);
        let kinds: BTreeSet<RowKind> =
            changed.filter_map(|key| key.parse::<Key>().ok()).map(|key| key.kind()).collect();
        let concerns = |of: &[RowKind]| changes.relisted || of.iter().any(|kind| kinds.contains(kind));
        let (services, daemons) = (concerns(&OF_SERVICES), concerns(&OF_DAEMONS));
        if !services && !daemons {
            return;
        }
        let before = self.0.borrow().clone().unwrap_or_default();
        let services = match services {
            true => Arc::new(self::services(mirror.image().snapshot(), &before.services)),
            false => before.services.clone(),
        };
        let daemons = match daemons {
            true => self::daemons(mirror.image().snapshot(), &before.daemons),
            false => before.daemons.clone(),
        };
        let now = Directory::of(services, daemons);
        self.0.send_if_modified(|shown| {
            let news = shown.as_deref() != Some(&now);
            if news {
                *shown = Some(Arc::new(now));
            }
            news
        });
    }
}

/// Returns the running instances of each service, each at an address of its host. An entry whose row can't be read stays as it was before. So does
/// the zone of an instance whose host has lost its registration, because the host hasn't moved.
pub fn services(snapshot: &Snapshot, before: &Services) -> Services {
    let mut services = Services::new();
    for (app, view) in &snapshot.apps {
        for proc in procs_of(app, view) {
            services.insert(ServiceId { app: app.clone(), proc: proc.clone() }, Places::new());
        }
    }
    for (host, view) in &snapshot.hosts {
        for (instance, assigned) in &view.assigned {
            let Some(status) = view.status.get(instance).filter(|status| status.state == State::Running)
            else {
                continue;
            };
            let id = ServiceId { app: assigned.app.clone(), proc: assigned.proc.clone() };
            let place = |before: &Services| Some(before.get(&id)?.get(instance)?.address);
            let was = (!before.is_empty()).then(|| place(before));
            let Some(address) = own_address(view, status, was) else { continue };
            let zone = match &view.host {
                Some(host) => Some(host.zone.clone()),
                None => before.get(&id).and_then(|places| places.get(instance)?.zone.clone()),
            };
            let Some(places) = services.get_mut(&id) else { continue };
            let place = Place {
                address,
                host: host.clone(),
                zone,
                release: assigned.release,
                rev: assigned.rev.clone(),
                routed: is_routed(assigned, status),
            };
            places.insert(*instance, place);
        }
    }
    for key in snapshot.unreadable.keys() {
        match key.parse::<Key>() {
            Ok(Key::Proc(app, proc)) => {
                let id = ServiceId { app, proc };
                if let Some(places) = before.get(&id) {
                    services.entry(id).or_insert_with(|| places.clone());
                }
            }
            Ok(Key::Assigned(_, instance) | Key::Status(_, instance)) => {
                for (id, places) in before {
                    let (Some(place), Some(now)) = (places.get(&instance), services.get_mut(id)) else {
                        continue;
                    };
                    now.entry(instance).or_insert_with(|| place.clone());
                }
            }
            _ => {}
        }
    }
    services
}

/// Returns every daemon that has reported its URL. An entry whose row can't be read stays as it was before.
pub fn daemons(snapshot: &Snapshot, before: &BTreeSet<Daemon>) -> BTreeSet<Daemon> {
    let daemon = |kind, name: &dyn ToString, url: &str, zone: Option<&ZoneName>| Daemon {
        kind,
        name: name.to_string(),
        url: url.to_owned(),
        zone: zone.cloned(),
    };
    let hosts = snapshot.hosts.iter().filter_map(|(name, view)| Some((name, view.host.as_ref()?)));
    let mut daemons: BTreeSet<Daemon> =
        hosts.map(|(name, host)| daemon(Kind::Pm, name, &host.url, Some(&host.zone))).collect();
    let proxies = snapshot.proxies.iter();
    daemons.extend(proxies.map(|(name, row)| daemon(Kind::Proxy, name, &row.url, row.zone.as_ref())));
    daemons.extend(snapshot.rms.iter().map(|(name, row)| daemon(Kind::Rm, name, &row.url, None)));
    daemons.extend(snapshot.leader.iter().map(|row| daemon(Kind::Converger, &row.name, &row.url, None)));
    for key in snapshot.unreadable.keys() {
        let unread = match key.parse::<Key>() {
            Ok(Key::Host(name)) => (Kind::Pm, Some(name)),
            Ok(Key::Proxy(name)) => (Kind::Proxy, Some(name)),
            Ok(Key::Rm(name)) => (Kind::Rm, Some(name)),
            Ok(Key::Leader) => (Kind::Converger, None),
            _ => continue,
        };
        let stays = |daemon: &&Daemon| {
            daemon.kind == unread.0 && unread.1.as_ref().is_none_or(|name| name.as_str() == daemon.name)
        };
        daemons.extend(before.iter().filter(stays).cloned());
    }
    daemons
}
