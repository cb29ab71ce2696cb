//! The loop: observe, plan, apply, say so.
//!
//! Owns the state between two looks: what is wanted, what is in force, what was refused. One task holds
//! it; whatever wakes it only says "look again". Nothing here waits for the coordinator: with that gone, what
//! is routed stays, and HAProxy is kept alive all the same.

mod apply;
mod memory;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use bazooka_daemon::{LoopEnded, Loops, NotReady, supervisor::Pulse};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use visor::{
    keys,
    mirror::{Changes, Mirror},
    names::{HostName, ZoneName},
    pause::until,
    planted::{Bug, planted},
    schema::{Extra, Proxy as Row},
    snapshot::Snapshot,
    store::Revision,
    visor::Visor,
};

use crate::{
    balancer::Balancer,
    config::Settings,
    directory::Board,
    image::RoutingImage,
    metrics::ProxyMetrics,
    plan::{InForce, Wanted},
    ports::{self, Refusals},
    publisher::Publisher,
    routes::{Routes, concerns_routing, keeping_lost, keeping_unreadable, leaving, routes_after},
    zones::Locality,
};
use apply::Applied;
use memory::{Attempts, Drains, ReloadWait, Retired};
use upkeep::Upkeep;

/// How often what is under way is counted while an instance is being taken out.
const COUNT_EVERY: Duration = Duration::from_millis(50);

/// How often HAProxy is looked for while it isn't there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The identity of a proxy, as its row says it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The proxy's name.
    pub name: HostName,
    /// The base of its endpoint.
    pub url: String,
    /// The proxy's zone.
    pub zone: ZoneName,
    /// The version of the build.
    pub version: String,
    /// Names its state folder.
    pub token: String,
}

/// The parts of the loop.
pub struct Parts {
    /// The coordinator.
    pub visor: Visor,
    /// HAProxy.
    pub balancer: Box<dyn Balancer>,
    /// The settings that don't come from the cluster; with the public port.
    pub settings: Settings,
    /// The identity of this proxy.
    pub identity: Identity,
    /// The board that shows the directory.
    pub directory: Board,
    /// The metrics.
    pub metrics: ProxyMetrics,
    /// Dropped once the first configuration is in force and the coordinator has this proxy's word.
    pub not_ready: NotReady,
    /// The loop's life sign.
    pub pulse: Pulse,
}

/// The configuration that is wanted of HAProxy, as the cluster says it.
struct Desired {
    routes: Routes,
    leaving: BTreeMap<visor::names::InstanceId, crate::routes::ServiceId>,
    /// The revision of the last change that concerns this proxy.
    revision: Revision,
    /// When that was seen.
    since: Instant,
}

/// The loop's state.
struct Proxy {
    balancer: Box<dyn Balancer>,
    upkeep: Upkeep,
    settings: Settings,
    identity: Identity,
    metrics: ProxyMetrics,
    not_ready: Option<NotReady>,
    publisher: Publisher,
    /// None where it prefers no zone.
    locality: Option<Locality>,
    /// None until the first complete list.
    desired: Option<Desired>,
    /// None while HAProxy's state can't be read.
    in_force: Option<InForce>,
    /// The last that was wanted in a shape that HAProxy took.
    good: Option<Wanted>,
    /// The content that the files were last told to hold.
    on_disk: Option<Wanted>,
    refusals: Refusals,
    attempts: Attempts,
    reload_wait: ReloadWait,
    /// The newest revision of which all is in force that can be.
    applied: Revision,
    drains: Drains,
    retired: Retired,
    /// When to look again, at the latest.
    look_at: Option<Instant>,
}

/// Runs until `shutdown`. With `stop_haproxy`, HAProxy ends too; else it goes on and is found again.
///
/// # Errors
/// If one of the daemon's loops ended. HAProxy goes on.
pub async fn run(
    parts: Parts,
    loops: &mut Loops,
    stop_haproxy: bool,
    shutdown: CancellationToken,
) -> Result<(), LoopEnded> {
    let Parts { visor, balancer, settings, identity, directory, metrics, not_ready, mut pulse } = parts;
    let mut mirror = Mirror::new(visor.store().clone(), keys::everything(), RoutingImage::default());
    let publisher = Publisher::start(visor, identity.name.clone());
    let mut masters = balancer.masters(loops);
    let mut proxy = Proxy {
        balancer,
        upkeep: Upkeep::new(metrics.clone()),
        settings,
        identity,
        metrics,
        not_ready: Some(not_ready),
        publisher,
        locality: None,
        desired: None,
        in_force: None,
        good: None,
        on_disk: None,
        refusals: Refusals::default(),
        attempts: Attempts::default(),
        reload_wait: ReloadWait::default(),
        applied: 0,
        drains: Drains::default(),
        retired: Retired::default(),
        look_at: Some(Instant::now()),
    };
    // Changes that came while HAProxy was at work.
    let mut meanwhile = Changes::default();
    'running: loop {
        pulse.beat();
        pulse.status(|| proxy.status());
        let look_at = proxy.look_at;
        // In this order, so that the same things at the same time have the same outcome.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break 'running,
            ended = loops.first_end() => return Err(ended),
            ended = proxy.publisher.ended() => return Err(ended),
            changed = masters.changed() => {
                if changed.is_err() {
                    return Err(loops.first_end().await);
                }
                // Another master, or the same one started again: what it runs is asked anew.
                proxy.in_force = None;
            }
            changes = async {
                if meanwhile == Changes::default() { mirror.next().await } else { std::mem::take(&mut meanwhile) }
            } => {
                directory.see(&changes, &mirror);
                let concerns = proxy.see(&changes, mirror.image().snapshot(), mirror.is_synced());
                // A change that concerns nothing due puts nothing off.
                if !concerns && look_at.is_none_or(|at| Instant::now() < at) {
                    continue;
                }
            }
            () = until(look_at.into_iter().chain(pulse.due()).min()) => {}
        }
        let mut settling = pin!(proxy.settle(loops));
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break 'running,
                () = &mut settling => break,
                // A reload takes its time: who asks what runs where is told meanwhile.
                changes = mirror.next() => {
                    directory.see(&changes, &mirror);
                    meanwhile.add(changes);
                }
            }
        }
    }
    // First the word, so that nobody waits for a proxy that is about to go.
    proxy.publisher.end(stop_haproxy).await;
    if stop_haproxy {
        proxy.balancer.stop().await;
    }
    Ok(())
}

impl Proxy {
    /// Returns the line that `systemctl status` shows.
    fn status(&self) -> String {
        let haproxy = if self.in_force.is_some() { "HAProxy answers" } else { "HAProxy is not there" };
        match &self.desired {
            None => format!("waiting for the coordinator; {haproxy}"),
            Some(desired) => format!("services: {}; {haproxy}", desired.routes.services.len()),
        }
    }

    /// Takes a change of the cluster in. Returns whether it concerns this proxy.
    fn see(&mut self, changes: &Changes, snapshot: &Snapshot, synced: bool) -> bool {
        // Only a complete image says anything; while out of touch, the last one stays as it is.
        if !synced {
            return false;
        }
        let locality = Locality::of(&self.identity.zone, snapshot);
        // Proxies say often how far they are, which changes nothing here.
        let moved = std::mem::replace(&mut self.locality, locality) != self.locality;
        if !(moved || changes.relisted || concerns_routing(&changes.keys)) {
            return false;
        }
        let before = self.desired.as_ref().map(|before| &before.routes);
        let mut wanted = routes_after(before, snapshot, self.locality.as_ref());
        if let Some(before) = &self.desired {
            wanted = keeping_unreadable(wanted, &before.routes, snapshot);
            wanted = keeping_lost(wanted, &before.routes, snapshot);
        }
        let leaving = leaving(snapshot);
        let same =
            self.desired.as_ref().is_some_and(|before| before.routes == wanted && before.leaving == leaving);
        if same {
            return false;
        }
        self.drains.keep_only(&leaving);
        let revision = snapshot.revision;
        self.desired = Some(Desired { routes: wanted, leaving, revision, since: Instant::now() });
        true
    }

    /// Does all that can be done now, and notes when to look again.
    async fn settle(&mut self, loops: &mut Loops) {
        self.look_at = None;
        let now = Instant::now();
        if self.in_force.is_none() && !self.find_haproxy(now).await {
            return;
        }
        let Some(desired) = &self.desired else { return };
        let (revision, since) = (desired.revision, desired.since);
        let wanted = self.wanted(now);
        match self.apply_plan(&wanted, now).await {
            Applied::HaproxyUnreachable => return,
            Applied::AwaitingReload => {}
            Applied::InForce => self.applied = revision,
        }
        self.count_sessions(now).await;
        self.look_again(self.refusals.look_again_at());
        self.look_again(self.retired.next_at());
        if self.applied != revision {
            // A row that is not written yet stays so.
            if self.applied != 0 {
                self.say(self.applied);
            }
            return;
        }
        self.say(revision);
        self.show(&wanted, revision, since);
        let serves = self.in_force.as_ref().is_some_and(|in_force| in_force.public);
        if serves && let Some(not_ready) = self.not_ready.take() {
            let (heard, url) = (self.publisher.heard(), self.identity.url.clone());
            loops.spawn_once("the report of readiness", async move {
                heard.await;
                tracing::info!(url, revision, "ready");
                drop(not_ready);
            });
        }
    }

    /// Asks HAProxy what it runs, and sees to it that it is there. Returns whether it answered.
    async fn find_haproxy(&mut self, now: Instant) -> bool {
        let error = match self.balancer.observe().await {
            Ok(in_force) => return self.found(in_force, now),
            Err(error) => error,
        };
        if self.upkeep.is_due(&mut *self.balancer, &error, now) {
            if let Err(error) = self.balancer.clear().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "HAProxy isn't started");
                self.look_again(Some(now + LOOK_EVERY));
                return false;
            }
            let (mut contents, mut settings) = (self.on_disk.clone(), self.settings.clone());
            // Only where it has surely gone, its ports are its own no longer and can be looked at.
            if self.balancer.runs_here() {
                let wanted = self.wanted_with(now, |_, _| false);
                settings = wanted.settings.clone();
                if self.desired.is_some() {
                    contents = Some(wanted);
                }
            }
            if self.upkeep.start(&mut *self.balancer, contents.as_ref(), &settings, now).await {
                if let Ok(in_force) = self.balancer.observe().await {
                    return self.found(in_force, now);
                }
            }
        }
        tracing::debug!(error = &error as &dyn std::error::Error, "HAProxy is not there yet");
        self.look_again(Some(now + LOOK_EVERY));
        false
    }

    fn found(&mut self, in_force: InForce, now: Instant) -> bool {
        self.upkeep.found(in_force.master);
        self.balancer.remember([in_force.master, in_force.worker]);
        self.retired.restart(&in_force, now);
        self.in_force = Some(in_force);
        true
    }

    /// Returns what is wanted, without the ports that others hold.
    fn wanted(&mut self, now: Instant) -> Wanted {
        let (ports, public, git) = match &self.in_force {
            Some(in_force) => (in_force.ports.clone(), in_force.public, in_force.git),
            None => Default::default(),
        };
        let open = |owner: &ports::Owner, address: std::net::SocketAddr| match owner {
            ports::Owner::Public => public,
            ports::Owner::Git => git,
            ports::Owner::Service(_) => ports.contains(&address.port()),
        };
        self.wanted_with(now, open)
    }

    fn wanted_with(
        &mut self,
        now: Instant,
        is_open: impl Fn(&ports::Owner, std::net::SocketAddr) -> bool,
    ) -> Wanted {
        let routes = self.desired.as_ref().map(|desired| desired.routes.clone()).unwrap_or_default();
        let mut settings = self.settings.clone();
        if let Some(public) = settings.public {
            let wanted = ports::wanted(&routes, settings.bind, public, settings.git);
            self.refusals.look(&wanted, is_open, now, |address| self.balancer.is_free(address));
        }
        if self.refusals.public() {
            settings.public = None;
        }
        if self.refusals.git() {
            settings.git = None;
        }
        Wanted { routes: routes.without_ports(self.refusals.services()), settings }
    }

    /// Counts what is under way for the instances that are being taken out.
    async fn count_sessions(&mut self, now: Instant) {
        let (Some(desired), Some(in_force)) = (&self.desired, &self.in_force) else { return };
        let pending = self.drains.pending(&desired.leaving);
        if pending.is_empty() {
            return;
        }
        let backends = pending.values().map(|service| service.backend()).collect();
        match self.balancer.sessions(&backends).await {
            Ok(open) => {
                let is_out = |instance, service: &_| !in_force.takes(service, instance);
                self.drains.count(&pending, &open, is_out);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "sessions can't be counted");
                self.drains.unknown(&pending);
            }
        }
        if !self.drains.pending(&desired.leaving).is_empty() {
            self.look_again(Some(now + COUNT_EVERY));
        }
    }

    /// Tells the coordinator.
    fn say(&mut self, applied: Revision) {
        let mut refused = self.refusals.causes();
        if let Some(desired) = &self.desired {
            let denied = &desired.routes.denied;
            refused.extend(denied.iter().map(|(id, why)| (id.to_string(), why.to_string())));
        }
        if let (Some(cause), Some(desired), Some(in_force)) =
            (self.attempts.cause(), &self.desired, &self.in_force)
        {
            // The parts that HAProxy doesn't have, because it refuses the configuration that has it.
            let missing =
                desired.routes.services.keys().filter(|id| !in_force.backends.contains(&id.backend()));
            for id in missing {
                refused.entry(id.to_string()).or_insert_with(|| cause.to_owned());
            }
        }
        let Some(public) = self.settings.public else { return };
        self.publisher.say(Row {
            url: self.identity.url.clone(),
            public: public.to_string(),
            domain: self.settings.domain.to_string(),
            zone: Some(self.identity.zone.clone()),
            version: self.identity.version.clone(),
            schema: Some(visor::schema::SCHEMA_VERSION),
            applied,
            busy: if planted(Bug::BusyIsNotReported) { BTreeSet::new() } else { self.drains.busy().clone() },
            token: Some(self.identity.token.clone()),
            refused,
            extra: Extra::new(),
        });
    }

    fn show(&mut self, wanted: &Wanted, revision: Revision, since: Instant) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.servers.set(number(wanted.routes.servers()));
        self.metrics.services.set(number(wanted.routes.services.len()));
        self.metrics.refused.set(number(self.refusals.causes().len()));
        self.metrics.busy.set(number(self.drains.busy().len()));
        if self.metrics.applied.set(revision) != revision {
            self.metrics.apply_duration.observe(since.elapsed().as_secs_f64());
        }
    }

    fn look_again(&mut self, at: Option<Instant>) {
        self.look_at = match (self.look_at, at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}
