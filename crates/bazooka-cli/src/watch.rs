//! An app as it is at every moment: its own rows, and what is said on each host that has an instance of it.
//!
//! Owns which keys are watched. The app's rows say which hosts have instances; those hosts alone are
//! watched, from the moment when the first instance is placed there. Never the whole cluster.

use std::collections::BTreeMap;

use futures::{FutureExt, future::select_all};
use visor::{
    keys,
    mirror::{Changes, Mirror},
    names::{AppName, HostName, InstanceId},
    progress::Observed,
    schema::{Assignment, Proxy, Status},
    snapshot::{AppView, Snapshot, Versioned},
    store::{Revision, SharedStore},
};

/// The place of the app's own rows among a mirror's scopes (see [`keys::app`]).
const BELOW_APP: usize = 1;

/// A live view of an app.
pub struct Watch {
    app: AppName,
    store: SharedStore,
    own: Mirror<Snapshot>,
    hosts: BTreeMap<HostName, Mirror<Snapshot>>,
    /// What [`Watch::view`] shows of an app that has no row.
    nothing: AppView,
}

/// An app as it was seen at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Its own rows.
    pub view: AppView,
    /// What its instances are meant to do.
    pub assigned: BTreeMap<InstanceId, Assignment>,
    /// What their hosts say of them.
    pub statuses: BTreeMap<InstanceId, Status>,
    /// What a proxy can't serve of it, by proxy and service.
    pub refused: BTreeMap<(HostName, String), String>,
}

impl Watch {
    /// Starts to watch, and waits for the first complete view.
    ///
    /// It waits as long as it takes: read something first, so that a coordinator that is out of reach is noticed.
    pub async fn open(store: SharedStore, app: AppName) -> Watch {
        let mut scopes = keys::app(&app);
        scopes.push(keys::proxies());
        let own = Mirror::new(store.clone(), scopes, Snapshot::default())
            .with_jitter(u64::from(std::process::id()));
        let mut watch = Watch { app, store, own, hosts: BTreeMap::new(), nothing: AppView::default() };
        while !watch.is_whole() {
            watch.next().await;
        }
        watch
    }

    /// Waits for a change; the keys that changed, sorted.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Changes {
        let changes = {
            let hosts = self.hosts.values_mut().map(|host| host.next().boxed_local());
            let all = std::iter::once(self.own.next().boxed_local()).chain(hosts);
            select_all(all).await.0
        };
        let hosts = self.view().instances.values().map(|instance| &instance.host);
        let new: Vec<HostName> = hosts.filter(|host| !self.hosts.contains_key(*host)).cloned().collect();
        for host in new {
            let scopes = vec![keys::assigned_to(&host), keys::status_of(&host)];
            let mirror = Mirror::new(self.store.clone(), scopes, Snapshot::default());
            self.hosts.entry(host).or_insert(mirror.with_jitter(u64::from(std::process::id())));
        }
        changes
    }

    /// Whether everything is known and believed true.
    pub fn is_whole(&self) -> bool {
        self.own.is_synced() && self.hosts.values().all(Mirror::is_synced)
    }

    /// Whether a write to the app's own rows at this revision has arrived.
    pub fn has(&self, revision: Revision) -> bool {
        self.own.scope_revision(BELOW_APP) >= revision
    }

    /// Its name.
    pub fn app(&self) -> &AppName {
        &self.app
    }

    /// The app.
    pub fn view(&self) -> &AppView {
        self.view_of_own().unwrap_or(&self.nothing)
    }

    /// The proxies.
    pub fn proxies(&self) -> &BTreeMap<HostName, Versioned<Proxy>> {
        &self.own.image().proxies
    }

    /// What a host says of an instance.
    pub fn status(&self, id: InstanceId) -> Option<&Versioned<Status>> {
        let host = &self.view().instances.get(&id)?.host;
        self.hosts.get(host)?.image().hosts.get(host)?.status.get(&id)
    }

    /// What an instance is meant to do.
    pub fn assigned(&self, id: InstanceId) -> Option<&Versioned<Assignment>> {
        let host = &self.view().instances.get(&id)?.host;
        self.hosts.get(host)?.image().hosts.get(host)?.assigned.get(&id)
    }

    /// What [`visor::progress`] judges by.
    pub fn observed(&self) -> Observed<'_> {
        let mut observed = Observed::default();
        for id in self.view().instances.keys() {
            if let Some(assigned) = self.assigned(*id) {
                observed.desired.insert(*id, assigned.desired);
            }
            if let Some(status) = self.status(*id) {
                observed.statuses.insert(*id, (&status.value, status.mod_revision));
            }
        }
        observed
    }

    /// All of it as it stands, for a comparison later.
    pub fn seen(&self) -> Seen {
        let view = self.view().clone();
        let assigned = view.instances.keys().filter_map(|id| Some((*id, self.assigned(*id)?.value.clone())));
        let statuses = view.instances.keys().filter_map(|id| Some((*id, self.status(*id)?.value.clone())));
        let refused = self.proxies().iter().flat_map(|(proxy, row)| {
            row.refused.iter().map(|(service, why)| ((proxy.clone(), service.clone()), why.clone()))
        });
        let own = format!("{}/", self.app);
        Seen {
            assigned: assigned.collect(),
            statuses: statuses.collect(),
            refused: refused.filter(|((_, service), _)| service.starts_with(&own)).collect(),
            view,
        }
    }

    fn view_of_own(&self) -> Option<&AppView> {
        self.own.image().apps.get(&self.app)
    }
}
