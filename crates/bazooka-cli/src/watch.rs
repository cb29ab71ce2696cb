//! A live view of an app: its own rows, and its instances' rows on each host.
//!
//! Owns the choice of watched keys. The app's rows say which hosts have instances; only those hosts are watched, from
//! the moment that the first instance is placed there. It never watches the whole cluster.

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

/// The index of the app's own rows among a mirror's scopes (see [`keys::app`]).
const BELOW_APP: usize = 1;

/// A live view of an app.
pub struct Watch {
    app: AppName,
    store: SharedStore,
    own: Mirror<Snapshot>,
    hosts: BTreeMap<HostName, Mirror<Snapshot>>,
    /// The view for an app without rows.
    nothing: AppView,
}

/// An app's state at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The app's own rows.
    pub view: AppView,
    /// The assignments of its instances.
    pub assigned: BTreeMap<InstanceId, Assignment>,
    /// The statuses that hosts report for its instances.
    pub statuses: BTreeMap<InstanceId, Status>,
    /// The reasons why a proxy can't serve a service of the app, by proxy and service.
    pub refused: BTreeMap<(HostName, String), String>,
}

impl Watch {
    /// Starts the watch, and waits for the first complete view.
    ///
    /// There is no time limit: read something first, so that an unreachable coordinator is noticed.
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

    /// Waits for a change, and returns the changed keys, sorted.
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

    /// Reports whether the view is complete and up to date.
    pub fn is_whole(&self) -> bool {
        self.own.is_synced() && self.hosts.values().all(Mirror::is_synced)
    }

    /// Reports whether the view includes a write to the app's own rows at this revision.
    pub fn has(&self, revision: Revision) -> bool {
        self.own.scope_revision(BELOW_APP) >= revision
    }

    /// Returns the app's name.
    pub fn app(&self) -> &AppName {
        &self.app
    }

    /// Returns the app's own rows.
    pub fn view(&self) -> &AppView {
        self.view_of_own().unwrap_or(&self.nothing)
    }

    /// Returns the proxies.
    pub fn proxies(&self) -> &BTreeMap<HostName, Versioned<Proxy>> {
        &self.own.image().proxies
    }

    /// Returns the status that a host reports for an instance.
    pub fn status(&self, id: InstanceId) -> Option<&Versioned<Status>> {
        let host = &self.view().instances.get(&id)?.host;
        self.hosts.get(host)?.image().hosts.get(host)?.status.get(&id)
    }

    /// Returns the assignment of an instance.
    pub fn assigned(&self, id: InstanceId) -> Option<&Versioned<Assignment>> {
        let host = &self.view().instances.get(&id)?.host;
        self.hosts.get(host)?.image().hosts.get(host)?.assigned.get(&id)
    }

    /// Returns the state from which [`visor::progress`] judges.
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

    /// Returns a copy of the current state, to compare with later.
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
