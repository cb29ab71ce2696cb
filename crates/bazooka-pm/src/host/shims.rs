//! The real machine: shims, slugs in a folder, sockets, notes on disk.
//!
//! Owns the running shims, and the spec and environment that an instance is started with. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bazooka_sandbox::{
    cgroups::{Cgroups, GroupLimits},
    machine::{boot_clock_ms, now_us},
    protocol::{LaunchSpec, PROTOCOL, Start},
    sandboxes::{Holder, Sandboxes},
    shim::in_words,
    uids::Uids,
};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use visor::{
    names::{AppName, Digest, EnvRef, HostName, InstanceId},
    schema::{Assignment, Exit, Extra, Fault, Handed, OnPartition},
    seal::Vars,
    visor::Visor,
};

use super::{
    adopt::{self, Ended, Found},
    checks::{self, Probe, Probes},
    environment::{Places, environment, line},
    folders::Folders,
    listeners::Owner,
    logs::Outputs,
    model::{Ending, Local, Now, Tick},
    observe::Event,
    pools::Pools,
    ports,
    process::{self, FullSpec, PmPart, Shim},
    records::{self, Note},
    runtime::{Answers, Booting, Given, Message, NoFreeUser, Runtime},
    slugs::{KEPT_UNUSED, Slugs},
};

/// The parts of a machine that instances use.
pub struct Machine {
    /// The host's name.
    pub host: HostName,
    /// The address at which its instances are reached.
    pub address: IpAddr,
    /// The state folder.
    pub folders: Folders,
    /// The shim program.
    pub shim: PathBuf,
    /// The slugs.
    pub slugs: Slugs,
    /// The threads of work that blocks.
    pub pools: Pools,
    /// The instances whose output is here.
    pub outputs: Outputs,
    /// The users, if instances have their own.
    pub uids: Option<Uids>,
    /// The control groups that limit memory and processor time, if the machine has them.
    pub cgroups: Option<Cgroups>,
    /// The parts of sandboxes, if instances have one.
    pub sandboxes: Option<Sandboxes>,
}

/// The shims of a machine.
pub struct Shims {
    machine: Machine,
    held: Held,
    probes: watch::Sender<Probes>,
    answers: Answers,
    _checks: AbortOnDropHandle<()>,
}

impl Shims {
    /// Creates the shims of a machine. Must be called inside a tokio runtime.
    pub fn new(machine: Machine, answers: Answers) -> Shims {
        let probes = watch::Sender::new(Probes::new());
        let checks = answers.spawn("the checks", checks::run(probes.subscribe(), answers.clone()));
        Shims { machine, held: Held::default(), probes, answers, _checks: AbortOnDropHandle::new(checks) }
    }

    fn watcher(&self, id: InstanceId, run: u32) -> Watcher {
        let Machine { folders, pools, .. } = &self.machine;
        let (folders, pools, held) = (folders.clone(), pools.clone(), self.held.clone());
        Watcher { id, run, folders, pools, held, answers: self.answers.clone() }
    }

    /// Returns a shim's spec and, separately, the instance's environment.
    fn spec(&self, id: InstanceId, local: &Local, given: Given<'_>) -> (FullSpec, Vars) {
        let Machine { host, folders, cgroups, sandboxes, .. } = &self.machine;
        let assignment = &local.assignment;
        let (slug, home) = (folders.slug(&assignment.slug.sha256), folders.home(id));
        let places = match sandboxes {
            Some(_) => Places { app: Path::new("/app"), home: Path::new("/app"), tmp: Path::new("/tmp") },
            None => Places { app: &slug, home: &home, tmp: &home },
        };
        let limits = &assignment.run.limits;
        let processes = u64::from(limits.processes());
        let port = local.port.unwrap_or(0);
        let group_limits = GroupLimits {
            memory_bytes: limits.memory_limit_bytes,
            cpu_millis: limits.cpu_limit_millis,
            processes,
        };
        let groups =
            cgroups.as_ref().map(|cgroups| cgroups.of(&id.to_string(), group_limits, sandboxes.is_some()));
        let groups = groups.unwrap_or_default();
        // Each is an address with a port.
        let port_of = |service: &String| service.rsplit_once(':')?.1.parse().ok();
        let links: Vec<u16> = given.services.values().filter_map(port_of).collect();
        let sandbox = sandboxes.as_ref().map(|sandboxes| {
            let uid = local.uid.expect("each instance with a sandbox has a user of its own");
            let (tmp_bytes, disk_bytes) = (assignment.run.tmp_bytes(), assignment.run.disk_bytes());
            sandboxes.of(Holder { groups: &groups, uid, port, links: &links, tmp_bytes, disk_bytes })
        });
        let env = environment(host, id, assignment, given, port, &slug, &places);
        let spec = LaunchSpec {
            protocol: PROTOCOL,
            command: line(&assignment.command, &slug),
            env: BTreeMap::new(),
            env_apart: true,
            folder: slug,
            uid: local.uid,
            memory: None,
            groups,
            // A shared user's limit would count other instances' processes too.
            processes: local.uid.map(|_| processes),
            sandbox,
            log_folder: folders.log(id),
            stop_timeout_ms: u64::try_from(assignment.run.stop_timeout().as_millis()).unwrap_or(u64::MAX),
            lease_file: match assignment.run.on_partition {
                OnPartition::Keep => None,
                OnPartition::Stop => Some(folders.lease_file()),
            },
        };
        (FullSpec { spec, pm: PmPart { local: local.clone(), vars: None } }, env.into())
    }
}

impl Runtime for Shims {
    fn now(&self) -> Now {
        Now { tick: Tick(boot_clock_ms()), at: Timestamp::now() }
    }

    fn is_free(&self, port: u16) -> bool {
        ports::is_free(port)
    }

    fn user(&mut self, used: &BTreeSet<u32>) -> Result<Option<u32>, NoFreeUser> {
        let Some(uids) = &mut self.machine.uids else { return Ok(None) };
        let mut used = used.clone();
        // A group that its shim left behind still has its user's addresses.
        used.extend(self.machine.sandboxes.iter().flat_map(Sandboxes::users));
        uids.choose(&used, std::process::id()).map(Some).ok_or(NoFreeUser)
    }

    fn keeps_user(&self, uid: u32) -> bool {
        let Machine { sandboxes, uids, .. } = &self.machine;
        sandboxes.is_none() || uids.as_ref().is_none_or(|uids| uids.owns(uid))
    }

    fn fetch(&mut self, visor: &Visor, digest: Digest) {
        let (visor, slugs, answers) = (visor.clone(), self.machine.slugs.clone(), self.answers.clone());
        self.answers.spawn("a fetch", async move {
            let say = |cause| answers.seen(Event::SlugDelayed(digest.clone(), cause));
            match slugs.fetch(&visor, &digest, say).await {
                Ok(fetched) => {
                    answers.seen(Event::SlugFetched(digest.clone(), fetched));
                    answers.seen(Event::SlugReady(digest.clone()));
                    // The start doesn't wait for the sync.
                    slugs.sync(digest).await;
                }
                Err(error) => {
                    let cause = format!("can't fetch its slug: {}", bazooka_daemon::in_words(&error));
                    answers.seen(Event::SlugFailed(digest, cause));
                }
            }
        });
    }

    fn keep_env(&mut self, app: AppName, env: EnvRef, handed: Handed) {
        let (folders, answers) = (self.machine.folders.clone(), self.answers.clone());
        self.answers.spawn_on(&self.machine.pools.process, "the writing of an env", move || {
            if let Err(error) = records::keep_env(&folders, &app, env, &handed) {
                tracing::warn!(%app, %env, error = %error, "can't write an env down; without the coordinator it can't be had again");
            }
            answers.seen(Event::EnvRead(app, env, handed));
        });
    }

    fn forget_env(&mut self, app: &AppName, env: EnvRef) {
        records::forget_env(&self.machine.folders, app, env);
    }

    fn start(&mut self, id: InstanceId, local: &Local, given: Given<'_>) {
        let (spec, env) = self.spec(id, local, given);
        let (folders, program) = (self.machine.folders.clone(), self.machine.shim.clone());
        let (run, watcher) = (local.run, self.watcher(id, local.run));
        let outputs = self.machine.outputs.clone();
        let lacks_layer = spec.spec.sandbox.as_ref().is_some_and(|sandbox| sandbox.app_disk.is_none());
        if lacks_layer && local.assignment.run.disk_bytes() > 0 {
            let what = "its /app is read-only: this host can't make writable layers".to_owned();
            self.answers.seen(Event::Lacks { id, run, what });
        }
        self.answers.spawn("a start", async move {
            let Assignment { app, proc, .. } = spec.pm.local.assignment.clone();
            let log = folders.log(id);
            let started = process::start(&watcher.pools.process, folders, program, id, run, spec, env).await;
            // A start that failed may have said why.
            if log.is_dir() {
                outputs.add(id, &app, &proc);
            }
            match started {
                Ok(shim) => watcher.watch(shim).await,
                Err(error) => {
                    let cause = error.to_string();
                    watcher.answers.seen(Event::StartFailed { id, run, fault: Fault::Host, cause });
                }
            }
        });
    }

    fn adopt(&mut self, id: InstanceId, run: u32, started_at: Option<Timestamp>) {
        let (folders, watcher) = (self.machine.folders.clone(), self.watcher(id, run));
        let started_us = started_at.map_or(0, |at| u64::try_from(at.as_microsecond()).unwrap_or(0));
        let sandboxes = self.machine.sandboxes.clone();
        self.answers.spawn("an adoption", async move {
            if let Some(sandboxes) = sandboxes {
                let file = folders.run(id, run);
                let read = watcher.pools.process.run(move || Start::<LaunchSpec>::read(&file).spec);
                if let Ok(Some(spec)) = read.await {
                    sandboxes.adopt(&spec);
                }
            }
            match adopt::find(&watcher.pools.process, folders, id, run).await {
                Found::Running(shim) => watcher.watch(shim).await,
                Found::NotStarted(words) => watcher.answers.seen(Event::NotStarted { id, run, words }),
                Found::Ended(ended) => watcher.ended(ended, started_us).await,
            }
        });
    }

    fn end(&mut self, id: InstanceId, why: Ending, local: &Local) {
        let Some((run, shim)) = self.held.get(id) else { return };
        match why {
            Ending::Unwanted => shim.stop(),
            Ending::PortTaken => shim.end_at_once(),
            Ending::TimedOut => {
                let (answers, address) = (self.answers.clone(), self.machine.address);
                let (owner, port) = (owner(local.uid, &shim), local.port.unwrap_or(0));
                let known = local.heard.is_some();
                let pool = self.machine.pools.process.clone();
                self.answers.spawn("the end of an instance", async move {
                    if !known {
                        if let Ok(what) = pool.run(move || checks::instead(owner, port, address)).await {
                            answers.seen(Event::Heard { id, run, what });
                        }
                    }
                    shim.end_at_once();
                });
            }
        }
    }

    fn kill(&mut self, id: InstanceId) {
        if let Some((_, shim)) = self.held.get(id) {
            shim.kill();
        }
    }

    fn check(&mut self, booting: BTreeMap<InstanceId, Booting>) {
        let probe = |(id, booting): (InstanceId, Booting)| {
            let Booting { run, since, port, uid, check } = booting;
            let (_, shim) = self.held.get(id)?;
            let ago = Duration::from_millis(boot_clock_ms().saturating_sub(since.0));
            let since = Instant::now().checked_sub(ago).unwrap_or_else(Instant::now);
            let address = self.machine.address;
            Some((id, Probe { run, since, port, address, owner: owner(uid, &shim), check }))
        };
        let now: Probes = booting.into_iter().filter_map(probe).collect();
        self.probes.send_if_modified(|before| {
            let same = before.len() == now.len()
                && before.iter().zip(&now).all(|((a, x), (b, y))| a == b && x.run == y.run);
            if !same {
                *before = now;
            }
            !same
        });
    }

    fn write(&mut self, notes: Vec<Note>) {
        let (folders, answers) = (self.machine.folders.clone(), self.answers.clone());
        let outputs = self.machine.outputs.clone();
        self.answers.spawn_on(&self.machine.pools.process, "the writing of notes", move || {
            outputs.forget(&records::write(&folders, notes));
            answers.send(Message::Written);
        });
    }

    fn discard(&mut self, mut unused: Vec<Digest>) -> Vec<Digest> {
        if unused.len() <= KEPT_UNUSED {
            return Vec::new();
        }
        let Machine { slugs, pools, .. } = &self.machine;
        unused.sort_by_key(|digest| std::cmp::Reverse(slugs.age(digest)));
        let doomed = unused.split_off(KEPT_UNUSED);
        for folder in doomed.iter().filter_map(|digest| slugs.discard(digest)) {
            self.answers.spawn_on(&pools.slugs, "the removal of a slug", move || Slugs::remove(&folder));
        }
        doomed
    }
}

/// The running shims, each with the number of its start.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<BTreeMap<InstanceId, (u32, Shim)>>>);

impl Held {
    fn all(&self) -> MutexGuard<'_, BTreeMap<InstanceId, (u32, Shim)>> {
        self.0.lock().expect("no holder of this lock panics")
    }

    fn get(&self, id: InstanceId) -> Option<(u32, Shim)> {
        self.all().get(&id).cloned()
    }
}

/// Follows one start of an instance until it has ended.
struct Watcher {
    id: InstanceId,
    run: u32,
    folders: Folders,
    pools: Pools,
    held: Held,
    answers: Answers,
}

impl Watcher {
    async fn watch(self, shim: Shim) {
        let (id, run, state) = (self.id, self.run, shim.state.clone());
        // Store the shim before the start is answered, so that an order to end the instance finds it.
        self.held.all().insert(id, (run, shim.clone()));
        let pid = state.child.map_or(0, |child| u32::try_from(child.pid).unwrap_or(0));
        let ago = now_us().saturating_sub(state.started_us) / 1_000;
        let since = Tick(boot_clock_ms().saturating_sub(ago));
        let started_at = timestamp(state.started_us);
        self.answers.seen(Event::Started { id, run, pid, started_at, since });
        let ended = adopt::wait(&self.pools.process, shim, self.folders.clone(), id, run).await;
        tracing::debug!(instance = %id, shim = state.shim.pid, "a shim has ended");
        self.ended(ended, state.started_us).await;
    }

    async fn ended(self, ended: Ended, started_us: u64) {
        let log = self.folders.log(self.id);
        let last = self.pools.process.run(move || process::last_output(&log, started_us)).await;
        {
            let mut held = self.held.all();
            if held.get(&self.id).is_some_and(|(run, _)| *run == self.run) {
                held.remove(&self.id);
            }
        }
        self.answers.seen(exited(self.id, self.run, &ended, started_us, last.unwrap_or_default()));
    }
}

fn owner(uid: Option<u32>, shim: &Shim) -> Owner {
    uid.map_or(Owner::Below(shim.state.shim.pid), Owner::Uid)
}

fn timestamp(us: u64) -> Timestamp {
    Timestamp::from_microsecond(i64::try_from(us).unwrap_or(0)).unwrap_or_else(|_| Timestamp::now())
}

fn exited(id: InstanceId, run: u32, ended: &Ended, started_us: u64, last_output: Vec<String>) -> Event {
    match ended {
        Ended::Recorded(record) => Event::Exited {
            id,
            run,
            exit: Exit {
                at: timestamp(record.at_us),
                code: record.code,
                signal: record.signal,
                out_of_memory: record.out_of_memory,
                ran_ms: record.ran_ms,
                extra: Extra::new(),
            },
            words: in_words(record),
            last_output,
        },
        Ended::ShimKilled => Event::Exited {
            id,
            run,
            exit: Exit {
                at: Timestamp::now(),
                code: None,
                signal: Some(9),
                out_of_memory: false,
                ran_ms: now_us().saturating_sub(started_us) / 1_000,
                extra: Extra::new(),
            },
            words: "ended with its shim, which was killed".to_owned(),
            last_output,
        },
    }
}
