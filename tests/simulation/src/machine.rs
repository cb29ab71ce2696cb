//! A simulated machine: its processes, disk and clocks, which outlive bazooka-pm; and the [`Runtime`] over it.
//!
//! Owns what the machine does by itself (processes come up, crash, take their time to end) and the rules that
//! hold on it: one process an instance, one process a port and a user, and nobody told to end who is meant to run.

mod slugs;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bazooka_pm::host::testing::{
    Answers, Booting, Ending, EnvState, Event, Given, Local, Locals, Message, NoFreeUser, Note, Now, Runtime,
    SlugState, Tick, Traces,
};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use visor::{
    names::{AppName, Digest, EnvRef, HostName, InstanceId},
    schema::{Exit, Extra, Fault, Handed, Protocol},
    seal::Keyring,
    visor::Visor,
};

use crate::{gate::Gate, rules::Rules, world::World};

/// Slugs that nothing uses and that are kept.
const KEPT_SLUGS: usize = 2;

/// A machine.
pub struct Machine {
    /// Where its instances are reached.
    pub address: IpAddr,
    /// Which boot this is.
    boot: u32,
    booted: Instant,
    /// How wrong its wall clock is.
    pub wrong_by: SignedDuration,
    /// Nothing can be written.
    pub disk_full: bool,
    /// Ports that others listen on.
    pub outsiders: BTreeSet<u16>,
    /// What runs.
    pub processes: BTreeMap<InstanceId, Process>,
    folders: BTreeMap<InstanceId, Folder>,
    slugs: BTreeSet<Digest>,
    envs: BTreeMap<(AppName, EnvRef), Handed>,
    /// The key file.
    pub ring: Keyring,
    next_pid: u32,
}

/// A live process.
#[derive(Clone)]
pub struct Process {
    /// Its instance.
    pub id: InstanceId,
    /// Which start.
    pub run: u32,
    pid: u32,
    port: u16,
    uid: Option<u32>,
    started: Instant,
    started_at: Timestamp,
    listens_at: Option<Instant>,
    /// Told to end: when it will have.
    ends_at: Arc<Mutex<Option<Instant>>>,
    told: Arc<Notify>,
}

/// What the disk has of an instance.
#[derive(Default)]
struct Folder {
    record: Option<(u32, Local)>,
    starts: BTreeMap<u32, Start>,
}

/// What the disk has of one start.
#[derive(Clone, Default)]
struct Start {
    boot: u32,
    spec: Option<Local>,
    /// Its shim has said whom it runs.
    spawned: bool,
    exit: Option<(Exit, String)>,
}

impl Machine {
    /// The n-th machine, with an empty disk but for its key.
    pub fn new(n: u8, ring: Keyring) -> Machine {
        Machine {
            address: Ipv4Addr::new(10, 0, 0, n).into(),
            boot: 1,
            booted: Instant::now(),
            wrong_by: SignedDuration::ZERO,
            disk_full: false,
            outsiders: BTreeSet::new(),
            processes: BTreeMap::new(),
            folders: BTreeMap::new(),
            slugs: BTreeSet::new(),
            envs: BTreeMap::new(),
            ring,
            next_pid: 1_000,
        }
    }

    /// Whether the slug is here.
    pub fn has(&self, slug: &Digest) -> bool {
        self.slugs.contains(slug)
    }

    /// The slugs that are here.
    pub fn slugs(&self) -> impl Iterator<Item = &Digest> {
        self.slugs.iter()
    }

    /// Removes these slugs, but those that an instance here uses. bazooka-pm must not run.
    pub fn remove_unused(&mut self, slugs: &BTreeSet<Digest>) {
        let known = self.folders.values().flat_map(|folder| {
            let specs = folder.starts.values().filter_map(|start| start.spec.as_ref());
            folder.record.as_ref().map(|(_, local)| local).into_iter().chain(specs)
        });
        let used: BTreeSet<&Digest> = known.map(|local| &local.assignment.slug.sha256).collect();
        self.slugs.retain(|slug| used.contains(slug) || !slugs.contains(slug));
    }

    /// It is started anew: nothing runs any more.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.booted = Instant::now();
        self.processes.clear();
    }

    /// As `records::recover` has it.
    pub fn recovered(&self) -> Locals {
        let mut locals = Locals::default();
        for (id, folder) in &self.folders {
            let (last_run, start) = folder.starts.last_key_value().map_or((0, None), |(n, s)| (*n, Some(s)));
            let spec = start.and_then(|start| start.spec.clone());
            let same_boot = folder.record.as_ref().is_some_and(|(boot, _)| *boot == self.boot);
            let record = folder.record.as_ref().map(|(_, local)| local.clone());
            let Some(known) = record.or(spec) else { continue };
            let traces = Traces { known, last_run, is_held: self.processes.contains_key(id), same_boot };
            locals.instances.insert(*id, traces.resumed());
        }
        locals
            .envs
            .extend(self.envs.iter().map(|(key, handed)| (key.clone(), EnvState::Ready(handed.clone()))));
        locals.archives.clone_from(&self.slugs);
        locals.slugs.extend(self.slugs.iter().map(|digest| (digest.clone(), SlugState::Ready)));
        locals
    }

    fn tick(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.booted);
        Tick(u64::try_from(since.as_millis()).expect("a day is short"))
    }

    fn start_of(&mut self, id: InstanceId, run: u32) -> &mut Start {
        self.folders.entry(id).or_default().starts.entry(run).or_default()
    }
}

/// bazooka-pm's hold on a machine.
#[derive(Clone)]
pub struct Hold {
    world: Arc<World>,
    rules: Rules,
    host: HostName,
    gate: Gate,
    answers: Answers,
    booting: Arc<Mutex<BTreeMap<InstanceId, Booting>>>,
}

impl Hold {
    /// A process's hold on the machine of this name.
    pub fn new(world: &Arc<World>, rules: &Rules, host: &HostName, gate: &Gate, answers: &Answers) -> Hold {
        Hold {
            world: world.clone(),
            rules: rules.clone(),
            host: host.clone(),
            gate: gate.clone(),
            answers: answers.clone(),
            booting: Arc::default(),
        }
    }

    fn machine<T>(&self, look: impl FnOnce(&mut Machine) -> T) -> T {
        self.world.machine(&self.host, look)
    }

    /// Lets something be seen, once this process gets to it.
    async fn see(&self, event: Event) {
        self.gate.step().await;
        self.answers.seen(event);
    }

    /// The steps of a start, of which each may be the last.
    async fn spawn(self, id: InstanceId, local: Local) {
        let run = local.run;
        self.world.wait(0..=10).await;
        let failed =
            |cause: &str| Event::StartFailed { id, run, fault: Fault::Host, cause: cause.to_owned() };
        self.gate.step().await;
        if self.machine(|machine| machine.disk_full) {
            return self.see(failed("no space left on device")).await;
        }
        self.machine(|machine| {
            let boot = machine.boot;
            let starts = &mut machine.folders.entry(id).or_default().starts;
            starts.retain(|old, _| *old >= run);
            starts.insert(run, Start { boot, ..Start::default() });
        });
        self.gate.step().await;
        self.machine(|machine| machine.start_of(id, run).spec = Some(local.clone()));
        self.gate.step().await;
        if !self.world.is_healed() && self.world.chance(0.02) {
            return self.see(failed("its shim ended at once")).await;
        }
        let process = self.begin(id, &local);
        self.gate.step().await;
        self.stay_with(process).await;
    }

    /// A process begins to live, with a life of its own.
    fn begin(&self, id: InstanceId, local: &Local) -> Process {
        let (world, port) = (&self.world, local.port.unwrap_or(0));
        let now = Instant::now();
        let nature = self.rules.nature(&local.assignment.rev);
        let boots_in = Duration::from_millis(world.between(5..=nature.boots_within));
        let process = Process {
            id,
            run: local.run,
            pid: self.machine(|machine| {
                machine.next_pid += 1;
                machine.next_pid
            }),
            port,
            uid: local.uid,
            started: now,
            started_at: world.wall(self.machine(|machine| machine.wrong_by)),
            listens_at: (nature.listens || world.is_healed()).then_some(now + boots_in),
            ends_at: Arc::default(),
            told: Arc::default(),
        };
        self.keep_the_rules(&process);
        self.rules.started(id);
        world.note(format_args!("{}: process of {id} starts ({}) on {port}", self.host, local.run));
        world.moved();
        self.machine(|machine| {
            machine.start_of(id, local.run).spawned = true;
            machine.processes.insert(id, process.clone());
        });
        let at_once = self.rules.fails_at_once(&local.assignment.app);
        let crashes = !world.is_healed() && (at_once || world.chance(nature.crashes));
        let latest = if at_once { 300 } else { 20_000 };
        let crashes_at = crashes.then(|| now + Duration::from_millis(world.between(1..=latest)));
        tokio::spawn(live(self.world.clone(), self.host.clone(), process.clone(), crashes_at));
        process
    }

    fn keep_the_rules(&self, new: &Process) {
        for (host, other) in self.world.processes() {
            if other.id == new.id {
                let (id, here) = (new.id, &self.host);
                self.world.breach(format_args!("{id} is started on {here} while it runs on {host}"));
            }
            if host == self.host && (other.port == new.port || other.uid == new.uid) {
                let (a, b) = (other.id, new.id);
                self.world.breach(format_args!("{a} and {b} share a port or a user on {host}"));
            }
        }
    }

    /// Tells that a process runs, and, later, how it ended.
    async fn stay_with(self, process: Process) {
        let Process { id, run, pid, started_at, .. } = process;
        let since = self.machine(|machine| machine.tick(process.started));
        self.see(Event::Started { id, run, pid, started_at, since }).await;
        while self.machine(|machine| machine.processes.get(&id).is_some_and(|now| now.run == run)) {
            process.told.notified().await;
        }
        self.world.wait(0..=20).await;
        self.tell_end(id, run).await;
    }

    async fn tell_end(&self, id: InstanceId, run: u32) {
        let exit = self.machine(|machine| machine.start_of(id, run).exit.clone());
        let (exit, words) = exit.unwrap_or_else(|| {
            let at = self.world.wall(SignedDuration::ZERO);
            (exit_of(at, None, Some(9), 0), "ended with its shim, which was killed".to_owned())
        });
        self.rules.process_ended(id, Duration::from_millis(exit.ran_ms));
        let last_output = vec!["bye".to_owned()];
        self.see(Event::Exited { id, run, exit, words, last_output }).await;
    }

    async fn look_after(self, id: InstanceId, run: u32) {
        self.world.wait(0..=20).await;
        self.gate.step().await;
        let (process, start, boot) = self.machine(|machine| {
            let process = machine.processes.get(&id).filter(|process| process.run == run).cloned();
            (process, machine.start_of(id, run).clone(), machine.boot)
        });
        let not_started = |words: &str| Event::NotStarted { id, run, words: words.to_owned() };
        match process {
            Some(process) => self.stay_with(process).await,
            None if start.exit.is_some() => self.tell_end(id, run).await,
            None if !start.spawned => self.see(not_started("its start had been cut short")).await,
            None if start.boot != boot => self.see(not_started("the machine was started anew")).await,
            None => self.tell_end(id, run).await,
        }
    }

    /// Waits until a booting instance listens, or somebody else does on its port.
    async fn look_for_listener(self, id: InstanceId, run: u32) {
        loop {
            sleep(Duration::from_millis(50)).await;
            self.gate.pass().await;
            let booting = self.booting.lock().expect("nobody panics with it").get(&id).cloned();
            let Some(booting) = booting.filter(|booting| booting.run == run) else { return };
            let (listens, taken) = self.machine(|machine| {
                let process = machine.processes.get(&id).filter(|process| process.run == run);
                let listens = process.and_then(|process| process.listens_at);
                (listens.is_some_and(|at| at <= Instant::now()), machine.outsiders.contains(&booting.port))
            });
            if (taken || listens) && !self.world.is_healed() && self.world.chance(0.2) {
                // An answer takes its time, and may come when its process has long ended.
                self.world.wait(0..=3_000).await;
                self.gate.pass().await;
            }
            if taken {
                return self.see(Event::PortTaken { id, run, by: "an outsider listens".into() }).await;
            }
            if listens {
                let how = format!("listens on port {}", booting.port);
                return self.see(Event::Healthy { id, run, how }).await;
            }
        }
    }
}

/// A process's own life: until it crashes or has been told to end.
async fn live(world: Arc<World>, host: HostName, process: Process, crashes_at: Option<Instant>) {
    let Process { id, run, .. } = process;
    let there = || world.machine(&host, |m| m.processes.get(&id).is_some_and(|now| now.run == run));
    loop {
        let told = process.told.notified();
        let ends_at = *process.ends_at.lock().expect("nobody panics with it");
        let next = ends_at.into_iter().chain(crashes_at.filter(|_| !world.is_healed())).min();
        tokio::select! {
            biased;
            () = told => {}
            () = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {
                let crashes = ends_at.is_none_or(|at| at > Instant::now());
                if !(crashes && world.is_healed()) {
                    break;
                }
            }
        }
        if !there() {
            // It went with its machine.
            process.told.notify_waiters();
            return;
        }
    }
    if !there() {
        return;
    }
    let was_told =
        process.ends_at.lock().expect("nobody panics with it").is_some_and(|at| at <= Instant::now());
    let (code, words) = if was_told { (0, "exited with status 0") } else { (1, "exited with status 1") };
    world.note(format_args!("{host}: process of {id} ends ({run}): {words}"));
    world.moved();
    world.machine(&host, |machine| {
        let at =
            process.started_at + SignedDuration::try_from(process.started.elapsed()).expect("a day is short");
        let ran = u64::try_from(process.started.elapsed().as_millis()).expect("a day is short");
        machine.start_of(id, run).exit = Some((exit_of(at, Some(code), None, ran), words.to_owned()));
        machine.processes.remove(&id);
    });
    process.told.notify_waiters();
}

fn exit_of(at: Timestamp, code: Option<i32>, signal: Option<i32>, ran_ms: u64) -> Exit {
    Exit { at, code, signal, out_of_memory: false, ran_ms, extra: Extra::new() }
}

impl Process {
    /// Whether it is the one of this number.
    pub fn is(&self, pid: u32) -> bool {
        self.pid == pid
    }

    /// Whether it accepts connections.
    pub fn listens(&self) -> bool {
        self.listens_at.is_some_and(|at| at <= Instant::now())
    }

    /// It will have ended after so long, unless it does before.
    pub fn end_in(&self, wait: Duration) {
        let at = Instant::now() + wait;
        {
            let mut ends_at = self.ends_at.lock().expect("nobody panics with it");
            *ends_at = Some(ends_at.map_or(at, |before| before.min(at)));
        }
        self.told.notify_waiters();
    }
}

impl Runtime for Hold {
    fn now(&self) -> Now {
        let (tick, wrong_by) = self.machine(|machine| (machine.tick(Instant::now()), machine.wrong_by));
        Now { tick, at: self.world.wall(wrong_by) }
    }

    fn is_free(&self, port: u16) -> bool {
        self.machine(|machine| {
            let now = Instant::now();
            let listens =
                |process: &Process| process.port == port && process.listens_at.is_some_and(|at| at <= now);
            !machine.outsiders.contains(&port) && !machine.processes.values().any(listens)
        })
    }

    fn user(&mut self, used: &BTreeSet<u32>) -> Result<Option<u32>, NoFreeUser> {
        Ok((100_000..).find(|uid| !used.contains(uid)))
    }

    fn fetch(&mut self, visor: &Visor, slug: Digest) {
        tokio::spawn(slugs::fetch(self.clone(), visor.clone(), slug));
    }

    fn keep_env(&mut self, app: AppName, env: EnvRef, handed: Handed) {
        let hold = self.clone();
        tokio::spawn(async move {
            hold.gate.step().await;
            hold.machine(|machine| {
                if !machine.disk_full {
                    machine.envs.insert((app.clone(), env), handed.clone());
                }
            });
            hold.see(Event::EnvRead(app, env, handed)).await;
        });
    }

    fn forget_env(&mut self, app: &AppName, env: EnvRef) {
        self.machine(|machine| machine.envs.remove(&(app.clone(), env)));
    }

    fn start(&mut self, id: InstanceId, local: &Local, given: Given<'_>) {
        if !self.machine(|machine| machine.slugs.contains(&local.assignment.slug.sha256)) {
            self.world.breach(format_args!("{id} is started without its slug"));
        }
        if local.assignment.env != EnvRef(0) && given.vars.as_map().is_empty() {
            self.world.breach(format_args!("{id} is started without its config vars"));
        }
        let key = (local.assignment.app.clone(), local.assignment.env);
        let linked = self.machine(|machine| machine.envs.get(&key).map(|handed| handed.links.clone()));
        for link in linked.into_iter().flatten() {
            if !given.services.contains_key(&link.variable()) {
                self.world.breach(format_args!("{id} is started without the address of {link}"));
            }
        }
        tokio::spawn(self.clone().spawn(id, local.clone()));
    }

    fn adopt(&mut self, id: InstanceId, run: u32, _: Option<Timestamp>) {
        tokio::spawn(self.clone().look_after(id, run));
    }

    fn end(&mut self, id: InstanceId, why: Ending, local: &Local) {
        let Some(process) = self.machine(|machine| machine.processes.get(&id).cloned()) else { return };
        if why == Ending::Unwanted {
            let answers = local.assignment.run.protocol_for(&local.assignment.proc) == Protocol::Http;
            self.rules.ended(&self.host, id, answers);
        }
        let most = match why {
            Ending::Unwanted => u64::try_from(local.assignment.run.stop_timeout().as_millis()).unwrap_or(0),
            Ending::TimedOut | Ending::PortTaken => 5,
        };
        // Most end at once; some ignore it until they are killed.
        let takes = if self.world.chance(0.1) { most } else { self.world.between(0..=most.min(1_000)) };
        self.world.note(format_args!("{}: {id} is told to end ({why:?})", self.host));
        process.end_in(Duration::from_millis(takes));
    }

    fn kill(&mut self, id: InstanceId) {
        if let Some(process) = self.machine(|machine| machine.processes.get(&id).cloned()) {
            process.end_in(Duration::ZERO);
        }
    }

    fn check(&mut self, booting: BTreeMap<InstanceId, Booting>) {
        let before =
            std::mem::replace(&mut *self.booting.lock().expect("nobody panics with it"), booting.clone());
        for (id, now) in booting {
            if before.get(&id).is_none_or(|before| before.run != now.run) {
                tokio::spawn(self.clone().look_for_listener(id, now.run));
            }
        }
    }

    fn write(&mut self, notes: Vec<Note>) {
        let hold = self.clone();
        tokio::spawn(async move {
            hold.world.wait(0..=5).await;
            for note in notes {
                hold.gate.step().await;
                hold.machine(|machine| match note {
                    Note::Archive(id) => drop(machine.folders.remove(&id)),
                    // It is warned of, and that is all.
                    Note::Keep(..) if machine.disk_full => {}
                    Note::Keep(id, local) => {
                        let boot = machine.boot;
                        machine.folders.entry(id).or_default().record = Some((boot, *local));
                    }
                });
            }
            hold.gate.step().await;
            hold.answers.send(Message::Written);
        });
    }

    fn discard(&mut self, mut unused: Vec<Digest>) -> Vec<Digest> {
        let kept = if self.world.keeps_slugs() { unused.len() } else { KEPT_SLUGS };
        let doomed = unused.split_off(kept.min(unused.len()));
        self.machine(|machine| machine.slugs.retain(|digest| !doomed.contains(digest)));
        doomed
    }
}
