//! The daemons of the day: convergers, hosts, proxies, each dying and coming back.
//!
//! Owns how each is put together, from the same functions that `main` calls.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bazooka_daemon::{Loops, Readiness, supervisor::Pulse};
use bazooka_pm::{
    converge::{self, ConvergeOptions},
    host::testing::{Answers, Metrics, Ports, Vault, Work},
};
use bazooka_proxy::{
    directory::Board,
    metrics::ProxyMetrics,
    proxy::{self, Identity, Parts},
};
use bazooka_rm::{apps::Apps, pruning::Pruner, sources::Sources};
use futures::future::BoxFuture;
use jiff::SignedDuration;
use prometheus_client::registry::Registry;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use visor::{
    clock::WallClock,
    lease::{LeaseKeeper, LeaseState, LeaseTiming},
    names::HostName,
    port_keeping::PortKeeping,
    schema::{Ask, Capacity, Extra, Host, Rm, SCHEMA_VERSION},
    seal::{Keyring, SecretKey},
    visor::Visor,
    wrapping::{SharedRing, Wrapping},
};

use crate::{
    balancer::{self, Haproxy},
    gate::Gate,
    line::Link,
    machine::{Hold, Machine},
    rules::Rules,
    world::World,
};

/// How many hosts there are.
const HOSTS: u8 = 4;

/// The one bazooka-rm.
pub const RM: &str = "rm1";

/// How many convergers.
const CONVERGERS: u8 = 2;

/// How many proxies.
const PROXIES: u8 = 2;

/// The number of an app's last releases and revs that are kept.
pub const KEPT_RELEASES: u32 = 3;

/// How far the rm's clock is ahead: a rev that is younger than an hour is not pruned.
const RM_AHEAD: SignedDuration = SignedDuration::from_hours(2);

/// The ports that a host gives: so few that they are used again soon.
const PORTS: std::ops::RangeInclusive<u16> = 21_000..=21_011;

/// Begins a life of a daemon.
pub type Start = Arc<dyn Fn(Gate, CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// The daemons, by name.
#[derive(Clone)]
pub struct Nodes {
    world: Arc<World>,
    rules: Rules,
    alive: Arc<Mutex<BTreeMap<String, (Gate, CancellationToken)>>>,
}

impl Nodes {
    /// Starts them all.
    pub fn start(world: &Arc<World>, rules: &Rules) -> Nodes {
        let nodes = Nodes { world: world.clone(), rules: rules.clone(), alive: Arc::default() };
        for n in 1..=HOSTS {
            let name: HostName = format!("host{n}").parse().expect("a valid name");
            let ring = Keyring::of(SecretKey::fresh(&mut world.random()));
            world.add_machine(name.clone(), Machine::new(n, ring));
            let own = nodes.clone();
            nodes.keep(name.to_string(), Arc::new(move |gate, stop| own.host(name.clone(), n, gate, stop)));
        }
        for n in 1..=CONVERGERS {
            let (own, name) = (nodes.clone(), format!("converger{n}"));
            nodes.keep(name.clone(), Arc::new(move |gate, stop| own.converger(name.clone(), gate, stop)));
        }
        let ring = Keyring::of(SecretKey::fresh(&mut world.random()));
        let own = nodes.clone();
        nodes.keep(RM.to_owned(), Arc::new(move |gate, stop| own.rm(ring.clone(), gate, stop)));
        for n in 1..=PROXIES {
            let (own, name) = (nodes.clone(), format!("proxy{n}"));
            world.add_haproxy(name.clone(), Haproxy::new());
            tokio::spawn(balancer::traffic(world.clone(), name.clone()));
            nodes.keep(name.clone(), Arc::new(move |gate, stop| own.proxy(name.clone(), n, gate, stop)));
        }
        nodes
    }

    /// Returns the rules of the day.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The names of all hosts.
    pub fn hosts() -> Vec<HostName> {
        (1..=HOSTS).map(|n| format!("host{n}").parse().expect("a valid name")).collect()
    }

    /// The names of all proxies.
    pub fn proxies() -> Vec<String> {
        (1..=PROXIES).map(|n| format!("proxy{n}")).collect()
    }

    /// Each that lives now.
    pub fn alive(&self) -> Vec<(String, Gate, CancellationToken)> {
        let alive = self.alive.lock().expect("nobody panics with it");
        alive.iter().map(|(name, (gate, stop))| (name.clone(), gate.clone(), stop.clone())).collect()
    }

    /// Starts a daemon again whenever it has died or ended.
    pub fn keep(&self, name: String, start: Start) {
        let nodes = self.clone();
        tokio::spawn(async move {
            let world = &nodes.world;
            while name != RM || world.has_rm() {
                let (gate, stop) = (Gate::new(), CancellationToken::new());
                nodes
                    .alive
                    .lock()
                    .expect("nobody panics with it")
                    .insert(name.clone(), (gate.clone(), stop.clone()));
                world.note(format_args!("{name} starts"));
                {
                    let spins = || world.breach(format_args!("{name} spins"));
                    let life = gate.run(start(gate.clone(), stop), spins);
                    tokio::select! {
                        biased;
                        () = gate.died() => world.note(format_args!("{name} has died")),
                        () = life => world.note(format_args!("{name} has ended")),
                    }
                }
                // Whatever of it lingers does nothing any more.
                gate.kill();
                let longest = if world.is_healed() { 500 } else { *world.pick(&[300, 3_000, 20_000]) };
                world.wait(100..=longest).await;
            }
        });
    }

    fn converger(&self, name: String, gate: Gate, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let world = self.world.clone();
        let wrong_by = self.clock_error();
        let visor = Visor::new(Link::store(&world, &name, &gate));
        let options = ConvergeOptions {
            wall: WallClock::new(move || world.wall(wrong_by)),
            ..ConvergeOptions::named(name)
        };
        Box::pin(async move {
            // A coordinator that refuses it is waited for by whoever starts it again.
            let _ = converge::run(visor, options, stop).await;
        })
    }

    /// How wrong a daemon's clock is: mostly not at all.
    fn clock_error(&self) -> SignedDuration {
        let minutes = i64::try_from(self.world.between(0..=120)).expect("it is small") - 60;
        if self.world.chance(0.2) { SignedDuration::from_mins(minutes) } else { SignedDuration::ZERO }
    }

    fn host(&self, name: HostName, n: u8, gate: Gate, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let (world, rules) = (self.world.clone(), self.rules.clone());
        let visor = Visor::new(Link::store(&world, name.as_str(), &gate));
        rules.pm_begins(&name);
        let (answers, messages) = Answers::channel();
        let hold = Hold::new(&world, &rules, &name, &gate, &answers);
        let (address, ring, locals) =
            world.machine(&name, |machine| (machine.address, machine.ring.clone(), machine.recovered()));
        let vault = Vault::new(ring, world.random(), |_| Ok(()));
        let seed = u16::try_from(world.between(0..=1_000)).expect("it is small");
        let work = Work {
            visor,
            name: name.clone(),
            host: Host { seal_key: Some(vault.public()), ..row(address, n, &world) },
            loops: Loops::default(),
            runtime: Box::new(hold),
            vault,
            answers,
            messages,
            ports: Ports::new(PORTS, seed),
            locals,
            metrics: Metrics::register(&mut Registry::default()),
            not_ready: Readiness::default().hold(),
            pulse: Pulse::default(),
            note_lease: Box::new(|_| {}),
            stop_all_at_exit: false,
        };
        Box::pin(async move { work.run(stop).await.expect("a host's loops last as long as the host") })
    }

    /// Of bazooka-rm only its presence with its key, and the loops that add wraps, keep the rows of ports and prune.
    fn rm(&self, ring: Keyring, gate: Gate, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let visor = Visor::new(Link::store(&self.world, RM, &gate));
        let own: HostName = RM.parse().expect("a valid name");
        let row = Rm {
            schema: Some(SCHEMA_VERSION),
            seal_key: Some(ring.current()),
            keep_releases: Some(KEPT_RELEASES),
            ..Rm::at("http://10.0.2.1:8081")
        };
        let ask = Ask::new("word");
        let world = self.world.clone();
        let clock = WallClock::new(move || world.wall(SignedDuration::ZERO));
        let wrapping = Wrapping {
            visor: visor.clone(),
            own: own.clone(),
            ring: SharedRing::new(ring),
            random: Box::new(self.world.random()),
            clock: clock.clone(),
            store: Box::new(|_| true),
        };
        let ahead = self.world.clone();
        let (apps, following) = Apps::new(visor.store().clone());
        let pruner = Pruner {
            apps,
            visor: visor.clone(),
            own: row.clone(),
            busy: Box::new(|_| false),
            sources: Sources::new(WallClock::new(move || ahead.wall(RM_AHEAD)), || 0),
            metrics: None,
        };
        let ports = PortKeeping { visor: visor.clone(), clock };
        Box::pin(async move {
            let keeper = LeaseKeeper::start(visor.store().clone(), LeaseTiming::default());
            let present = async {
                loop {
                    let lease = keeper.wait_held().await;
                    let said = visor.publish_rm(&own, &row, &ask, lease).await.is_ok();
                    let mut state = keeper.state();
                    tokio::select! {
                        biased;
                        _ = state.wait_for(|now| *now != LeaseState::Held { id: lease }) => {}
                        () = sleep(Duration::from_secs(1)), if !said => {}
                    }
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = present => {}
                () = wrapping.run() => {}
                () = ports.run() => {}
                () = following.run() => {}
                () = pruner.run() => {}
            }
            keeper.release().await;
        })
    }

    fn proxy(&self, name: String, n: u8, gate: Gate, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let world = self.world.clone();
        let parts = Parts {
            visor: Visor::new(Link::store(&world, &name, &gate)),
            balancer: Box::new(balancer::Hold::new(&world, &name, &gate)),
            settings: balancer::Hold::settings(n),
            identity: Identity {
                token: name.clone(),
                name: name.parse().expect("a valid name"),
                url: format!("http://10.0.1.{n}:81"),
                zone: if n % 2 == 0 { "north" } else { "south" }.parse().expect("a valid name"),
                version: "1".into(),
            },
            directory: Board::default(),
            metrics: ProxyMetrics::register(&Arc::default()),
            not_ready: Readiness::default().hold(),
            pulse: Pulse::default(),
        };
        Box::pin(async move {
            let mut loops = Loops::default();
            proxy::run(parts, &mut loops, false, stop)
                .await
                .expect("a proxy's loops last as long as the proxy")
        })
    }
}

fn row(address: IpAddr, n: u8, world: &World) -> Host {
    Host {
        schema: Some(SCHEMA_VERSION),
        address,
        url: format!("http://{address}:8082"),
        zone: if n % 2 == 0 { "north" } else { "south" }.parse().expect("a valid name"),
        version: "1".into(),
        capacity: Capacity { memory_bytes: 1 << 30, instances: 10, extra: Extra::new() },
        isolation: "uid".into(),
        boot_id: String::new(),
        seal_key: None,
        services: Some("10.0.1.1".parse().expect("an address")),
        since: world.wall(SignedDuration::ZERO),
        token: format!("token{n}"),
        extra: Extra::new(),
    }
}
