//! Who is where, for those who ask: what runs of each service, and every daemon of the cluster.
//!
//! Owns the rule for what discovery names. It is made of the same image as the routes, but doesn't wait for HAProxy: a
//! reload that takes its time keeps nobody from hearing what has stopped. It answers nobody itself: that is
//! [`targets`]'s and [`crate::endpoint`]'s business.

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
    schema::State,
    snapshot::Snapshot,
};

use crate::routes::{ServiceId, address, is_routed};

/// An instance that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is reached.
    pub address: SocketAddr,
    /// The host that runs it.
    pub host: HostName,
    /// Where that host stands; none while that isn't known.
    pub zone: Option<ZoneName>,
    /// What it runs.
    pub release: ReleaseId,
    /// That release's rev.
    pub rev: RevId,
    /// Whether requests are routed to it. One that is being drained runs, and takes none.
    pub routed: bool,
}

/// A daemon of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Daemon {
    /// What it is.
    pub kind: Kind,
    /// Its name among those of its kind.
    pub name: String,
    /// The base of its endpoint.
    pub url: String,
    /// Where it stands, if it says so.
    pub zone: Option<ZoneName>,
}

/// The instances of a service.
pub type Places = BTreeMap<InstanceId, Place>;

/// The services, each with its instances.
pub type Services = BTreeMap<ServiceId, Places>;

/// Who is where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Each registered proc, with instances or without.
    pub services: Arc<Services>,
    /// Each daemon that is there; of the convergers the elected one.
    pub daemons: BTreeSet<Daemon>,
    /// The apps that the services are of.
    pub apps: BTreeSet<AppName>,
    /// The zones in which there is anything.
    pub zones: BTreeSet<ZoneName>,
}

impl Directory {
    /// Of services and daemons.
    pub fn of(services: Arc<Services>, daemons: BTreeSet<Daemon>) -> Self {
        let apps = services.keys().map(|id| id.app.clone()).collect();
        let places = services.values().flat_map(BTreeMap::values).filter_map(|place| place.zone.as_ref());
        let zones = places.chain(daemons.iter().filter_map(|daemon| daemon.zone.as_ref())).cloned().collect();
        Directory { services, daemons, apps, zones }
    }
}

/// The directory as its readers have it: none until the first complete list.
pub type Shown = watch::Receiver<Option<Arc<Directory>>>;

/// The newest directory, for whoever asks.
#[derive(Debug)]
pub struct Board(watch::Sender<Option<Arc<Directory>>>);

impl Default for Board {
    fn default() -> Self {
        Board(watch::channel(None).0)
    }
}

impl Board {
    /// A reader.
    pub fn shown(&self) -> Shown {
        self.0.subscribe()
    }

    /// Takes a change of the image in. While out of touch with the coordinator, what was said last stays.
    pub fn see(&self, changes: &Changes, mirror: &Mirror<Snapshot>) {
        if !mirror.is_synced() {
            return;
        }
        let concerns = |kinds: &[&str]| changes.relisted || changes.keys.iter().any(|key| is_of(key, kinds));
        let (services, daemons) = (
            concerns(&["apps", "assigned", "status", "hosts"]),
            concerns(&["hosts", "proxies", "rms", "election"]),
        );
        if !services && !daemons {
            return;
        }
        let before = self.0.borrow().clone().unwrap_or_default();
        let services = match services {
            true => Arc::new(self::services(mirror.image(), &before.services)),
            false => before.services.clone(),
        };
        let daemons = match daemons {
            true => self::daemons(mirror.image(), &before.daemons),
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

/// Whether a key is of one of these kinds; of an app's, its procs alone count.
fn is_of(key: &str, kinds: &[&str]) -> bool {
    let mut parts = key.split('/');
    match parts.next() {
        Some("apps") => kinds.contains(&"apps") && parts.nth(1) == Some("procs"),
        Some(kind) => kinds.contains(&kind),
        None => false,
    }
}

/// The services with what runs of each. What can't be read is left as it was before, and so is the zone of an instance
/// whose host has lost its registration: it hasn't moved.
pub fn services(snapshot: &Snapshot, before: &Services) -> Services {
    let mut services = Services::new();
    for (app, view) in &snapshot.apps {
        for proc in view.procs.keys() {
            services.insert(ServiceId { app: app.clone(), proc: proc.clone() }, Places::new());
        }
    }
    for (host, view) in &snapshot.hosts {
        for (instance, assigned) in &view.assigned {
            let Some(status) = view.status.get(instance).filter(|status| status.state == State::Running)
            else {
                continue;
            };
            let Some(address) = address(status) else { continue };
            let id = ServiceId { app: assigned.app.clone(), proc: assigned.proc.clone() };
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

/// Every daemon that has said where it is. What can't be read is left as it was before.
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
