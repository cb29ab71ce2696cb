//! The state that all parts of a running bazooka-rm share.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use bazooka_daemon::Cluster;
use jiff::Timestamp;
use visor::{
    identity::{Identity, Kind},
    names::AppName,
    schema::{Ask, AuditEntry, Extra},
    visor::Visor,
    wrapping::SharedRing,
};

use crate::{
    access::InForce,
    apps::Apps,
    build::isolation::Builds,
    layout::Layout,
    metrics::RmMetrics,
    push::{Pushes, Times},
    repos::Own,
    storage::Storage,
    stored::Shelves,
    tasks::Errands,
};

/// A running bazooka-rm, shared by its endpoint, its hooks and its loops.
pub struct Rm {
    /// This rm's identity: name, process and URLs.
    pub own: Own,
    /// The paths below the state folder.
    pub layout: Layout,
    /// The path of this program, which also serves as hook and as build supervisor; bazooka's other programs are beside
    /// it.
    pub program: PathBuf,
    /// The file storage shared with other rms; `None` if this rm uses its state folder alone.
    pub storage: Option<Storage>,
    /// The local copies of stored repositories.
    pub shelves: Shelves,
    /// The coordinator's rows.
    pub visor: Visor,
    /// The cluster, and this rm's identity in it.
    pub cluster: Cluster,
    /// The access rights that etcd enforces now.
    pub in_force: InForce,
    /// The image of all apps.
    pub apps: Apps,
    /// The isolation of builds.
    pub builds: Builds,
    /// The pushes under way.
    pub pushes: Pushes,
    /// The time limits of a push.
    pub times: Times,
    /// The private keys to which config vars are sealed for this rm.
    pub ring: SharedRing,
    /// The random word that a caller without an identity presents to read config vars; only readers of `asks/` in the
    /// coordinator know it.
    pub ask: Ask,
    /// The metrics.
    pub metrics: RmMetrics,
    /// Tasks that were started by requests and outlive them.
    pub errands: Errands,
}

impl Rm {
    /// Returns the coordinator's rows for a caller's request, which is recorded in the audit.
    pub fn audited(
        &self,
        by: String,
        from: Option<SocketAddr>,
        what: String,
        app: Option<&AppName>,
    ) -> Visor {
        let entry = AuditEntry {
            what,
            app: app.cloned(),
            by: Some(by),
            from: from.map(|from| from.ip().to_string()).unwrap_or_default(),
            at: Timestamp::now(),
            extra: Extra::new(),
        };
        let own = Identity::Daemon(Kind::Rm, self.own.name.clone());
        self.visor.audited(&own, entry, rand::random())
    }
}

/// A shared handle on the running bazooka-rm.
pub type SharedRm = Arc<Rm>;
