//! A simulated day of pushes to two bazooka-rms that share their repositories. Faults kill, pause and cut off both rms.
//!
//! Owns the two rms and the developers who push. An rm runs the code of the real daemon: turn, stage, trial,
//! publication, repair. Only git, its packs, the file storage ([`copies`]) and the builds are simulated.
//!
//! ```text
//! developer ─request─▶ rm: pre-receive ─▶ (git moves the branch) ─▶ post-receive ─▶ close
//!                       │ Pushes, Shared, Mender ─ line ─▶ model ─▶ rules: turns, rows, heads
//!                       └ copies (disk of the rm, shared storage)
//! ```

mod copies;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bazooka_rm::{
    apps::Apps,
    audit::Auditor,
    build::BuildError,
    hook::wire::{Call, Hook, RefUpdate},
    push::{
        Push, PushParts, Pushes, Rejected, Times,
        mend::Mender,
        prepare::{Build, Commit, Unprepared},
    },
    queue::BuildQueue,
    refs::BRANCHES,
    repos::{
        Own,
        origin::{Origin, OriginError},
        shared::Shared,
    },
    sources::Sources,
    turns::Turns,
    voice::Voice,
};
use futures::future::BoxFuture;
use jiff::SignedDuration;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use visor::{
    clock::WallClock,
    names::{AppName, ProcName},
    schema::{Extra, Rev, Slug},
    visor::Visor,
};

use self::{
    copies::{BranchNotMoved, Copies, Disk, ObjectStore},
    rules::PushRules,
};
use crate::{
    TROUBLE_SECONDS, faults,
    gate::Gate,
    line::Link,
    nodes::Nodes,
    rest,
    rules::{Nature, Rules},
    users::User,
    world::World,
};

/// The rms that take pushes. A third rm ([`crate::nodes::RM`]) wraps the config vars.
const RMS: [&str; 2] = ["rm-a", "rm-b"];

/// The limit of each wait for a settled state, once all faults are healed. It is long, because a trial may wait for
/// another trial to end and then fail on its own.
const WITHIN: Duration = Duration::from_secs(12 * 60);

/// The moments at which a push may end early.
const ENDS: [End; 4] = [End::InHook, End::Pusher, End::BeforeBranch, End::AfterBranch];

/// The moment at which a push's git process, or its pusher, ends the push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No early end: git runs to completion.
    Never,
    /// git dies, and the rm closes the push while the pre-receive hook still runs.
    InHook,
    /// The pusher disconnects, and the pre-receive hook is dropped.
    Pusher,
    /// git dies after the pre-receive hook, before it moves the branch.
    BeforeBranch,
    /// git dies after it has moved the branch, before the post-receive hook.
    AfterBranch,
}

/// The apps that are pushed to, with their procs.
const APPS: [(&str, &[&str]); 2] = [("rocket", &["web", "worker"]), ("pages", &["web"])];

/// The number of developers who push to each app.
const DEVELOPERS: usize = 2;

/// Runs a day on which developers push, while faults hit the rms and all other daemons.
pub async fn day(world: &Arc<World>) {
    let rules = Rules::new(world);
    tokio::spawn(rules.clone().watch());
    let mut apps: Vec<AppName> = Vec::new();
    for (app, procs) in APPS {
        User::new(world, &rules, app, procs).begin().await;
        apps.push(app.parse().expect("a valid name"));
    }
    let nodes = Nodes::start(world, &rules);
    let pushing = Pushing::start(world, &rules, &nodes);
    sleep(Duration::from_secs(world.between(1..=20))).await;
    let each = apps.iter().flat_map(|app| std::iter::repeat_n(app, DEVELOPERS));
    let work: Vec<_> = each.map(|app| tokio::spawn(pushing.clone().develop(app.clone()))).collect();
    tokio::spawn(faults::trouble(world.clone(), nodes.clone()));
    sleep(Duration::from_secs(world.between(30..=TROUBLE_SECONDS))).await;
    faults::heal(world, &nodes);
    for one in work {
        // A panic of a developer has been reported already. The checks below find any push that is still under way.
        let _ = timeout(Duration::from_secs(300), one).await;
    }
    pushing.until_settled(&apps).await;
    rest::until_settled(world, &rules, WITHIN).await;
}

/// The rms of a day, with the state that outlives their processes. A clone shares the same rms.
#[derive(Clone)]
pub struct Pushing {
    world: Arc<World>,
    rules: Rules,
    book: PushRules,
    storage: ObjectStore,
    rms: Arc<BTreeMap<&'static str, Machine>>,
}

/// An rm's machine: its disk, which outlives each process, and the current process.
#[derive(Default)]
struct Machine {
    disk: Disk,
    serving: Mutex<Option<Process>>,
}

/// A living process of an rm.
#[derive(Clone)]
struct Process {
    gate: Gate,
    origin: Arc<dyn Origin>,
    pushes: Arc<Pushes>,
    copies: Arc<Copies>,
}

impl Pushing {
    /// Starts both rms and the rules of pushes.
    pub fn start(world: &Arc<World>, rules: &Rules, nodes: &Nodes) -> Pushing {
        let book = PushRules::new(world);
        tokio::spawn(book.clone().watch());
        let rms = Arc::new(RMS.map(|name| (name, Machine::default())).into_iter().collect());
        let (world, rules) = (world.clone(), rules.clone());
        let pushing = Pushing { world, rules, book, storage: ObjectStore::default(), rms };
        for name in RMS {
            let own = pushing.clone();
            nodes.keep(name.to_owned(), Arc::new(move |gate, stop| own.rm(name, gate, stop)));
        }
        pushing
    }

    /// Returns one run of an rm's process, from its start until it stops or dies.
    fn rm(&self, name: &'static str, gate: Gate, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let world = self.world.clone();
        let visor = Visor::new(Link::store(&world, name, &gate));
        let (apps, following) = Apps::new(visor.store().clone());
        let process = format!("{:032x}", world.between(0..=u64::MAX));
        self.book.started(name, &process);
        let url = format!("http://{name}");
        let name_of_rm = name.parse().expect("a valid name");
        let own = Own { name: name_of_rm, process: process.clone(), git_url: url.clone(), url };
        let sources = self.sources();
        let machine = &self.rms[name];
        let copies = Arc::new(Copies::new(&world, &gate, &machine.disk, &self.storage));
        let auditor = Auditor { visor: visor.clone(), own: own.name.clone(), sources: sources.clone() };
        let origin: Arc<dyn Origin> =
            Arc::new(Shared::new(copies.clone(), own, visor.clone(), apps.clone(), sources.clone()));
        let pushes = Arc::new(Pushes::new(PushParts {
            apps: apps.clone(),
            visor: visor.clone(),
            origin: origin.clone(),
            turns: Arc::<Turns>::default(),
            builder: Arc::new(Builds {
                world: world.clone(),
                rules: self.rules.clone(),
                gate: gate.clone(),
                visor: visor.clone(),
                queue: BuildQueue::new(1, Gauge::default()),
                building: AtomicUsize::new(0),
            }),
            auditor,
            times: Times::default(),
            sources: sources.clone(),
        }));
        let mender = Mender { apps, visor, origin: origin.clone(), push_ended: pushes.ended(), sources };
        let serving = Process { gate: gate.clone(), origin, pushes, copies };
        let machine_serves = self.clone();
        let died = {
            let (book, gate) = (self.book.clone(), gate.clone());
            async move {
                gate.died().await;
                book.died(name, &process);
            }
        };
        tokio::spawn(died);
        Box::pin(async move {
            *machine_serves.rms[name].serving.lock().expect("nobody panics with it") = Some(serving);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = following.run() => {}
                () = mender.run() => {}
            }
        })
    }

    fn sources(&self) -> Sources {
        let (clock, world) = (self.world.clone(), self.world.clone());
        Sources::new(WallClock::new(move || clock.wall(SignedDuration::ZERO)), move || {
            u128::from(world.between(0..=u64::MAX)) << 64 | u128::from(world.between(0..=u64::MAX))
        })
    }

    fn process(&self, name: &str) -> Option<Process> {
        self.rms[name].serving.lock().expect("nobody panics with it").clone()
    }

    /// Pushes to an app as one developer, until all faults are healed.
    pub async fn develop(self, app: AppName) {
        let world = &self.world;
        loop {
            world.wait(500..=9_000).await;
            if world.is_healed() {
                return;
            }
            let name = *world.pick(&RMS);
            let Some(process) = self.process(name) else { continue };
            self.endanger(&process);
            let number = world.between(0..=u64::MAX);
            let commit = format!("{number:040x}");
            let bad = world.chance(0.15);
            let nature = Nature { boots_within: 1_500, listens: true, crashes: if bad { 1.0 } else { 0.0 } };
            self.rules.set_nature(commit.parse().expect("forty digits"), nature);
            let request = process.gate.run(self.request(&process, &app, &commit), || {
                world.breach(format_args!("a push at {name} spins"));
            });
            let came = tokio::select! {
                biased;
                () = process.gate.died() => Err(PushFailed::Disconnected),
                came = request => came,
            };
            world.note(format_args!(
                "{app} pushes {} to {name}: {}",
                &commit[commit.len() - 7..],
                in_words(&came)
            ));
            if came.is_ok() {
                self.book.acknowledge(&app, &commit);
            }
        }
    }

    /// Sometimes makes an rm die or pause at one of its next effects.
    fn endanger(&self, process: &Process) {
        let effects = u32::try_from(self.world.between(0..=50)).expect("it is small");
        match self.world.between(0..=9) {
            0..=2 => process.gate.kill_after(effects),
            3 => process.gate.pause_after(effects, Duration::from_secs(14)),
            _ => {}
        }
    }

    /// Handles one push as the rm does, with a simulated git process between the two hooks.
    async fn request(&self, process: &Process, app: &AppName, commit: &str) -> Result<(), PushFailed> {
        let world = &self.world;
        process.origin.refresh(app).await?;
        let branch = BRANCHES[0];
        let old = process.copies.tip(app, branch).unwrap_or_else(|| "0".repeat(40));
        // The time for the developer to commit and for the pack to arrive.
        world.wait(10..=2_000).await;
        let push = process.pushes.open(app.clone(), Some("ada".into()), None);
        self.book.opened(&push.id);
        let option = if world.chance(0.25) { "no-rollout" } else { "no-wait" };
        let call = Call {
            hook: Hook::PreReceive,
            push: push.id.clone(),
            updates: vec![RefUpdate { old, new: commit.to_owned(), name: branch.into() }],
            quarantine: None,
            options: vec![option.to_owned()],
        };
        let (voice, mut lines) = Voice::new();
        let work = async {
            // `voice` is moved into this block: `lines` ends once it is dropped.
            let voice = voice;
            let came = self.hooks(process, &push, &call, &voice).await;
            process.pushes.close(&push).await;
            came
        };
        let listening = async { while lines.recv().await.is_some() {} };
        tokio::join!(work, listening).0
    }

    /// Runs the pre-receive hook, git's move of the branch and the post-receive hook, or only a part of them ([`End`]).
    async fn hooks(
        &self,
        process: &Process,
        push: &Push,
        call: &Call,
        voice: &Voice,
    ) -> Result<(), PushFailed> {
        let world = &self.world;
        let cancelled = CancellationToken::new();
        let hook = process.pushes.pre_receive(push, call, voice, &cancelled);
        let end = if world.chance(0.4) { *world.pick(&ENDS) } else { End::Never };
        let moment = sleep(Duration::from_millis(*world.pick(&[200, 2_000, 6_000])));
        let answered = match end {
            End::InHook => {
                let closed = async {
                    tokio::select! {
                        biased;
                        () = process.copies.until_stored() => world.wait(0..=*world.pick(&[8, 3_000])).await,
                        () = moment => {}
                    }
                    process.pushes.close(push).await;
                };
                tokio::join!(hook, closed).0.and(Err(Rejected::Cancelled))
            }
            End::Pusher => tokio::select! {
                biased;
                answered = hook => answered,
                () = moment => Err(Rejected::Cancelled),
            },
            End::Never | End::BeforeBranch | End::AfterBranch => hook.await,
        };
        answered?;
        if end == End::BeforeBranch {
            return Err(PushFailed::DiedBeforeBranch);
        }
        process.copies.move_branch(&push.app, &call.updates[0]).await?;
        if end == End::AfterBranch {
            return Err(PushFailed::DiedAfterBranch);
        }
        process.pushes.post_receive(push, voice, &cancelled).await;
        Ok(())
    }

    /// Waits until no push of the day is under way and both rms have the stored branches. Reports a breach if that
    /// takes longer than `WITHIN`.
    pub async fn until_settled(&self, apps: &[AppName]) {
        let deadline = Instant::now() + WITHIN;
        loop {
            match self.amiss(apps).await {
                None => return,
                Some(amiss) if Instant::now() >= deadline => {
                    return self.world.breach(format_args!("in the end, {amiss}"));
                }
                Some(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn amiss(&self, apps: &[AppName]) -> Option<String> {
        if let Some(amiss) = self.book.amiss() {
            return Some(amiss);
        }
        for name in RMS {
            let Some(process) = self.process(name) else { return Some(format!("{name} doesn't run")) };
            for app in apps {
                let updated = process.gate.run(process.origin.refresh(app), || {});
                let came = tokio::select! {
                    biased;
                    () = process.gate.died() => return Some(format!("{name} has died")),
                    came = updated => came,
                };
                if let Err(error) = came {
                    return Some(format!("{name} can't update its copy of {app}: {error}"));
                }
                let tip = process.copies.tip(app, BRANCHES[0]);
                let stored = self.book.stored_tip(app, BRANCHES[0]);
                if tip != stored {
                    return Some(format!(
                        "the copy of {app} at {name} is at {tip:?}, and {stored:?} is stored"
                    ));
                }
            }
        }
        None
    }
}

/// The simulated builds of an rm. Each takes some time, and some fail.
struct Builds {
    world: Arc<World>,
    rules: Rules,
    gate: Gate,
    visor: Visor,
    /// One at a time: pushes of several apps wait for each other.
    queue: Arc<BuildQueue>,
    /// The builds under way.
    building: AtomicUsize,
}

/// A build under way.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Build for Builds {
    async fn prepare(
        &self,
        commit: &Commit<'_>,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Unprepared> {
        let slot = self.queue.take(&format!("app {}", commit.app), voice, cancelled).await;
        let Some(_slot) = slot else { return Err(BuildError::Cancelled.into()) };
        let under_way = UnderWay(&self.building);
        if under_way.0.fetch_add(1, Ordering::Relaxed) > 0 {
            self.world.breach(format_args!("two builds at once at an rm that bears one"));
        }
        self.world.wait(50..=3_000).await;
        self.gate.step().await;
        if self.world.chance(0.1) {
            return Err(BuildError::NoProcfile.into());
        }
        let number = self.world.between(0..=u64::MAX);
        let procs: Vec<ProcName> = self.rules.look(|image| {
            image.apps.get(commit.app).map(|view| view.procs.keys().cloned().collect()).unwrap_or_default()
        });
        let rev = Rev {
            slug: Slug { sha256: format!("{number:064x}").parse().expect("64 digits"), size_bytes: 1 },
            procs: procs.into_iter().map(|proc| (proc, "run".to_owned())).collect(),
            kind: "procfile".into(),
            by: "ada".into(),
            at: self.world.wall(SignedDuration::ZERO),
            subject: String::new(),
            extra: Extra::new(),
        };
        self.visor.register_rev(commit.app, commit.rev, &rev, &BTreeSet::new()).await?;
        Ok(())
    }
}

/// Why a simulated push ended without an answer of success.
#[derive(Debug, thiserror::Error)]
enum PushFailed {
    #[error(transparent)]
    Repository(#[from] OriginError),
    #[error(transparent)]
    Rejected(#[from] Rejected),
    #[error(transparent)]
    Branch(#[from] BranchNotMoved),
    #[error("git died before it moved the branch")]
    DiedBeforeBranch,
    #[error("git died after it moved the branch")]
    DiedAfterBranch,
    #[error("the connection broke")]
    Disconnected,
}

fn in_words(outcome: &Result<(), PushFailed>) -> String {
    outcome.as_ref().map_or_else(ToString::to_string, |()| "accepted".to_owned())
}
