//! What all parts of a running bazooka-rm share.

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

/// A running bazooka-rm. Shared by its endpoint, its hooks and its loops.
pub struct Rm {
    /// Who it is.
    pub own: Own,
    /// Where it keeps things.
    pub layout: Layout,
    /// Its own program: hooks, the build's supervisor; others of ours stand beside it.
    pub program: PathBuf,
    /// The file storage that it shares with other rms; none: its state folder is all there is.
    pub storage: Option<Storage>,
    /// Its copies of what is stored there.
    pub shelves: Shelves,
    /// The coordinator.
    pub visor: Visor,
    /// The cluster, and who this rm is in it.
    pub cluster: Cluster,
    /// What etcd goes by of who may do what.
    pub in_force: InForce,
    /// The apps.
    pub apps: Apps,
    /// What keeps builds apart.
    pub builds: Builds,
    /// The pushes that are under way.
    pub pushes: Pushes,
    /// How long a push waits for what.
    pub times: Times,
    /// What config vars are sealed to for it.
    pub ring: SharedRing,
    /// What it wants to hear from whoever asks for opened ones.
    pub ask: Ask,
    /// What is counted.
    pub metrics: RmMetrics,
    /// What belongs to requests, and goes on without them.
    pub errands: Errands,
}

impl Rm {
    /// The cluster's state, for something that a caller asks for: it stands in the audit.
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

/// A handle on it.
pub type SharedRm = Arc<Rm>;
