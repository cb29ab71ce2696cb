//! What a simulated day has in common: chance, time, the trace, the coordinator, the verdict.
//!
//! Owns the one source of chance, and the trace by which two runs of a seed are compared.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use visor::{
    names::{Digest, HostName, InstanceId},
    seal::Random,
    store::model::ModelStore,
};

use crate::{
    balancer::Haproxy,
    line::Line,
    machine::{Machine, Process},
};

/// When the simulated day begins: 2026-01-01.
const DAY_SECONDS: i64 = 1_767_225_600;

/// A day with more calls on the coordinator than this spins somewhere.
const MOST_CALLS: u64 = 100_000;

/// How many of the last lines of a trace are kept.
const LINES: usize = 4_000;

/// A day's chance, as those who seal want it.
pub struct Chance(Arc<World>);

impl Random for Chance {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.state().rng.fill_bytes(bytes);
    }
}

/// A simulated day.
pub struct World {
    /// The coordinator.
    pub store: ModelStore,
    /// The rows of a list's first page: few, so that the lists of a small cluster have several pages.
    pub first_page: usize,
    began: Instant,
    state: Mutex<State>,
    /// Told when a rule is broken.
    broken: Notify,
}

struct State {
    rng: StdRng,
    hash: DefaultHasher,
    lines: Option<VecDeque<String>>,
    breach: Option<String>,
    calls: u64,
    /// Once everything is well again.
    healed: bool,
    lines_of: BTreeMap<String, Line>,
    machines: BTreeMap<HostName, Machine>,
    haproxies: BTreeMap<String, Haproxy>,
    /// Starts and ends of processes, for telling whether all is at rest.
    moves: u64,
    /// The rm and its disk are gone for good.
    rm_is_gone: bool,
    /// Developers push nothing new.
    revs_are_closed: bool,
    /// Machines remove no slug.
    keeps_slugs: bool,
}

impl World {
    /// A day of this seed. With `verbose`, its trace is kept to be read.
    pub fn new(seed: u64, verbose: bool) -> Arc<World> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            hash: DefaultHasher::new(),
            lines: verbose.then(VecDeque::new),
            breach: None,
            calls: 0,
            healed: false,
            lines_of: BTreeMap::new(),
            machines: BTreeMap::new(),
            haproxies: BTreeMap::new(),
            moves: 0,
            rm_is_gone: false,
            revs_are_closed: false,
            keeps_slugs: false,
        };
        Arc::new(World {
            first_page: 1 + usize::try_from(seed % 16).expect("less than 16"),
            store: ModelStore::new(),
            began: Instant::now(),
            state: Mutex::new(state),
            broken: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Since the day began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What a clock shows that is wrong by so much.
    pub fn wall(&self, wrong_by: SignedDuration) -> Timestamp {
        let began = Timestamp::from_second(DAY_SECONDS).expect("it is in range");
        began + SignedDuration::try_from(self.elapsed()).expect("a day is short") + wrong_by
    }

    /// A number out of a range.
    pub fn between(&self, range: RangeInclusive<u64>) -> u64 {
        self.state().rng.random_range(range)
    }

    /// Whether something happens that does so with this probability.
    pub fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && self.state().rng.random_bool(probability)
    }

    /// One of several.
    pub fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        let last = u64::try_from(of.len() - 1).expect("they are few");
        &of[usize::try_from(self.between(0..=last)).expect("they are few")]
    }

    /// Waits for some time out of a range of milliseconds.
    pub async fn wait(&self, range: RangeInclusive<u64>) {
        let millis = self.between(range);
        sleep(Duration::from_millis(millis)).await;
    }

    /// Randomness for keys and nonces, out of the day's own.
    pub fn random(self: &Arc<World>) -> Chance {
        Chance(self.clone())
    }

    /// Adds to the trace.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", self.elapsed().as_secs_f64());
        let mut state = self.state();
        line.hash(&mut state.hash);
        if let Some(lines) = &mut state.lines {
            lines.push_back(line);
            if lines.len() > LINES {
                lines.pop_front();
            }
        }
    }

    /// A rule was broken. The first one stands.
    pub fn breach(&self, what: impl fmt::Display) {
        self.note(format_args!("BROKEN: {what}"));
        self.state().breach.get_or_insert_with(|| what.to_string());
        self.broken.notify_waiters();
        self.broken.notify_one();
    }

    /// What was broken.
    pub fn breached(&self) -> Option<String> {
        self.state().breach.clone()
    }

    /// Waits until a rule is broken.
    pub async fn until_broken(&self) {
        while self.breached().is_none() {
            self.broken.notified().await;
        }
    }

    /// Counts a call on the coordinator.
    pub fn count_call(&self) {
        let spins = {
            let mut state = self.state();
            state.calls += 1;
            state.calls == MOST_CALLS
        };
        if spins {
            self.breach("somebody calls the coordinator again and again");
        }
    }

    /// From now on nothing happens any more.
    pub fn heal(&self) {
        self.state().healed = true;
    }

    /// Whether nothing happens any more.
    pub fn is_healed(&self) -> bool {
        self.state().healed
    }

    /// From now on there is no rm, nor its disk.
    pub fn lose_rm(&self) {
        self.state().rm_is_gone = true;
    }

    /// Whether there is an rm.
    pub fn has_rm(&self) -> bool {
        !self.state().rm_is_gone
    }

    /// From now on developers push nothing new.
    pub fn close_revs(&self) {
        self.state().revs_are_closed = true;
    }

    /// Whether developers push nothing new.
    pub fn revs_are_closed(&self) -> bool {
        self.state().revs_are_closed
    }

    /// From now on machines remove no slug.
    pub fn keep_slugs(&self) {
        self.state().keeps_slugs = true;
    }

    /// Whether machines remove no slug.
    pub fn keeps_slugs(&self) -> bool {
        self.state().keeps_slugs
    }

    /// Whether a machine has a slug.
    pub fn holds(&self, slug: &Digest) -> bool {
        self.state().machines.values().any(|machine| machine.has(slug))
    }

    /// Removes from a machine each slug that nothing there uses and that another machine has.
    pub fn remove_slugs(&self, host: &HostName) {
        let mut state = self.state();
        let others = state.machines.iter().filter(|(name, _)| *name != host);
        let elsewhere: BTreeSet<Digest> = others.flat_map(|(_, machine)| machine.slugs()).cloned().collect();
        if let Some(machine) = state.machines.get_mut(host) {
            machine.remove_unused(&elsewhere);
        }
    }

    /// The line of this name between a process and the coordinator.
    pub fn line(&self, name: &str) -> Line {
        self.state().lines_of.entry(name.to_owned()).or_default().clone()
    }

    /// Every line.
    pub fn lines(&self) -> Vec<(String, Line)> {
        self.state().lines_of.iter().map(|(name, line)| (name.clone(), line.clone())).collect()
    }

    /// Adds a machine.
    pub fn add_machine(&self, name: HostName, machine: Machine) {
        self.state().machines.insert(name, machine);
    }

    /// Looks at a machine, or changes it.
    pub fn machine<T>(&self, name: &HostName, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(self.state().machines.get_mut(name).expect("machines don't vanish"))
    }

    /// Adds the HAProxy of a proxy.
    pub fn add_haproxy(&self, proxy: String, haproxy: Haproxy) {
        self.state().haproxies.insert(proxy, haproxy);
    }

    /// Looks at the HAProxy of a proxy, or changes it.
    pub fn haproxy<T>(&self, proxy: &str, look: impl FnOnce(&mut Haproxy) -> T) -> T {
        look(self.state().haproxies.get_mut(proxy).expect("machines don't vanish"))
    }

    /// By proxy, each instance that has something under way there.
    pub fn under_way(&self) -> BTreeMap<HostName, BTreeSet<InstanceId>> {
        let state = self.state();
        let all = state.haproxies.iter();
        all.map(|(name, haproxy)| (name.parse().expect("a valid name"), haproxy.under_way())).collect()
    }

    /// Every process of every machine.
    pub fn processes(&self) -> Vec<(HostName, Process)> {
        let state = self.state();
        let all = state.machines.iter();
        all.flat_map(|(name, machine)| {
            machine.processes.values().map(|process| (name.clone(), process.clone()))
        })
        .collect()
    }

    /// A process was started or has ended.
    pub fn moved(&self) {
        self.state().moves += 1;
    }

    /// How often that was so.
    pub fn moves(&self) -> u64 {
        self.state().moves
    }

    /// The number of the trace so far, and its kept lines.
    pub fn trace(&self) -> (u64, Vec<String>) {
        let state = self.state();
        let lines = state.lines.iter().flatten().cloned().collect();
        (state.hash.finish(), lines)
    }
}
