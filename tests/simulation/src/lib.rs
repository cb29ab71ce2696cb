//! A whole cluster in simulated time: the real loops, and everything that can go wrong around them.
//!
//! Each seed is a day of its own. Convergers, the hosts' bazooka-pm and the proxies are the very functions that
//! `main` calls; the coordinator is visor's model behind lines that delay and lose, and machines are simulated
//! behind [`bazooka_pm::host::testing::Runtime`] and [`bazooka_proxy::balancer::Balancer`]. Time is tokio's paused clock, and
//! one generator makes every choice, so that a seed's day is always the same, bit for bit.
//!
//! ```text
//! users ─▶ line ─┐                    ┌─▶ machine (processes, disk, clocks)
//! convergers ─▶ line ─▶ model ◀─ line ◀─ bazooka-pm
//! proxies ─▶ line ──┘  └─▶ rules: what is always true, at each revision
//!    └─▶ balancer (workers, requests)
//! faults ─▶ gates, lines, machines, balancers, model
//! ```

mod balancer;
mod faults;
mod gate;
mod line;
mod machine;
mod nodes;
pub mod planted;
mod pushes;
mod rest;
mod rmless;
mod rules;
mod users;
mod world;
mod zones;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Builder,
    task::JoinHandle,
    time::{sleep, timeout},
};

use nodes::Nodes;
use rules::Rules;
use users::User;
use world::World;

/// How long things go wrong, at most.
const TROUBLE_SECONDS: u64 = 90;

/// After that, all must be as it should be within this time: an instance that crashed all day waits for 2 minutes
/// or 4, its replacement's boot and the rest of a rollout take as long again.
const SETTLED_WITHIN: Duration = Duration::from_secs(12 * 60);

/// What a day came to.
pub struct Day {
    /// The number of the whole trace, by which two runs of a seed are compared.
    pub hash: u64,
    /// The rule that was broken, if one was.
    pub broken: Option<String>,
    /// The last lines of the trace, if they were asked for.
    pub lines: Vec<String>,
}

/// Lives through a seed's day. With `verbose`, the trace is kept.
pub type Live = fn(seed: u64, verbose: bool) -> Day;

/// Lives through the day of a seed. With `verbose`, the trace is kept.
pub fn live(seed: u64, verbose: bool) -> Day {
    live_through(seed, verbose, async |world| day(world).await)
}

/// Lives through a day on which developers push to two bazooka-rms. With `verbose`, the trace is kept.
pub fn live_pushes(seed: u64, verbose: bool) -> Day {
    live_through(seed, verbose, async |world| pushes::day(world).await)
}

/// Lives through a day on which a host and a proxy are cut off together. With `verbose`, the trace is kept.
pub fn live_zones(seed: u64, verbose: bool) -> Day {
    live_through(seed, verbose, async |world| zones::day(world).await)
}

/// Lives through a day on which the rm and its disk are gone for good. With `verbose`, the trace is kept.
pub fn live_rmless(seed: u64, verbose: bool) -> Day {
    live_through(seed, verbose, async |world| rmless::day(world).await)
}

fn live_through(seed: u64, verbose: bool, day: impl AsyncFn(&Arc<World>)) -> Day {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("it takes nothing but memory");
    runtime.block_on(async {
        let world = World::new(seed, verbose);
        tokio::select! {
            biased;
            () = world.until_broken() => {}
            () = day(&world) => {}
        }
        let (hash, lines) = world.trace();
        Day { hash, broken: world.breached(), lines }
    })
}

async fn day(world: &Arc<World>) {
    let _ = Working::begin(world).await.end(world).await;
}

/// A day of the usual users and troubles that is under way.
struct Working {
    rules: Rules,
    nodes: Nodes,
    work: Vec<JoinHandle<()>>,
}

impl Working {
    /// Starts the users, the nodes and the troubles.
    async fn begin(world: &Arc<World>) -> Working {
        let rules = Rules::new(world);
        tokio::spawn(rules.clone().watch());
        let mut users = vec![
            User::new(world, &rules, "rocket", &["web", "worker"]),
            User::new(world, &rules, "pages", &["web"]),
        ];
        for user in &mut users {
            user.begin().await;
        }
        let nodes = Nodes::start(world, &rules);
        sleep(Duration::from_secs(world.between(1..=20))).await;
        let mut work: Vec<_> = users.into_iter().map(|user| tokio::spawn(user.work())).collect();
        work.push(tokio::spawn(users::operate(world.clone())));
        tokio::spawn(faults::trouble(world.clone(), nodes.clone()));
        Working { rules, nodes, work }
    }

    /// Lets the troubles go on for a while, heals them all, and waits until everything is settled. Returns the rules
    /// and the nodes, which go on.
    async fn end(self, world: &Arc<World>) -> (Rules, Nodes) {
        sleep(Duration::from_secs(world.between(20..=TROUBLE_SECONDS))).await;
        faults::heal(world, &self.nodes);
        for one in self.work {
            // A panic there has been told, and what is missing will be seen.
            let _ = timeout(Duration::from_secs(300), one).await;
        }
        rest::until_settled(world, &self.rules, SETTLED_WITHIN).await;
        (self.rules, self.nodes)
    }
}

/// Runs seeds on as many threads as there are processors. Returns the lowest that broke a rule, and the rule.
pub fn search(seeds: Range<u64>) -> Option<(u64, String)> {
    search_for(live, seeds)
}

/// Runs such days of seeds, as [`search`] does.
pub fn search_for(live: Live, seeds: Range<u64>) -> Option<(u64, String)> {
    let (next, lowest) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end.min(lowest.load(Ordering::SeqCst)) {
                        return;
                    }
                    if let Some(broken) = live(seed, false).broken {
                        lowest.fetch_min(seed, Ordering::SeqCst);
                        found.lock().expect("nobody panics with it").insert(seed, broken);
                    }
                }
            });
        }
    });
    found.into_inner().expect("nobody panics with it").pop_first()
}
