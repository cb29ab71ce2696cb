//! Who plays the converger and a host: places what is wanted, and says of each instance what the test says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use tokio::task::JoinHandle;
use visor::{
    keys,
    mirror::Mirror,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId},
    rules::replacing::is_to_restart,
    schema::{Assignment, Capacity, Desired, Extra, Host, Leader, State, Status},
    snapshot::{AppView, Snapshot},
    store::{LeaseId, Revision},
    transitions::{
        placement::{Placement, Term, archiving},
        releases::{concerned, failure, verification},
    },
    visor::{Change, Visor},
};

/// What becomes of an instance.
#[derive(Clone, Debug)]
pub enum Word {
    /// It runs.
    Run,
    /// It crashes again and again, for this cause.
    Crash(&'static str),
    /// Its host has it in hand, and no more is heard.
    Start,
}

type Script = Arc<dyn Fn(&ProcName, ReleaseId) -> Word + Send + Sync>;

/// A converger and a host in one. Dropping it ends it.
pub struct Player {
    task: JoinHandle<()>,
}

impl Drop for Player {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Stage {
    visor: Visor,
    term: Term,
    host: HostName,
    created_at: Revision,
    script: Script,
}

impl Player {
    /// Everything that is placed runs.
    pub async fn start(visor: &Visor) -> Player {
        Player::with(visor, |_, _| Word::Run).await
    }

    /// With a word for each proc and release.
    pub async fn with(
        visor: &Visor,
        script: impl Fn(&ProcName, ReleaseId) -> Word + Send + Sync + 'static,
    ) -> Player {
        // Long enough for any test; nobody renews it.
        let lease = visor.store().grant(std::time::Duration::from_secs(300)).await.expect("it is granted");
        let leader = Leader {
            name: "player".into(),
            since: Timestamp::now(),
            url: String::new(),
            frozen: None,
            extra: Extra::new(),
        };
        let term = visor.campaign(&leader, lease).await.expect("the coordinator answers");
        let host: HostName = "host1".parse().expect("valid");
        let created_at = register(visor, &host, lease, "http://127.0.0.1:9").await;
        let term = term.expect("there is no other converger");
        let stage = Stage { visor: visor.clone(), term, host, created_at, script: Arc::new(script) };
        Player { task: tokio::spawn(stage.play()) }
    }
}

/// Registers a host.
pub async fn register(visor: &Visor, name: &HostName, lease: LeaseId, url: &str) -> Revision {
    let host = Host {
        schema: None,
        address: "1.2.3.4".parse().expect("valid"),
        url: url.into(),
        zone: "default".parse().expect("valid"),
        version: "0".into(),
        capacity: Capacity { memory_bytes: 1 << 30, instances: 10_000, extra: Extra::new() },
        isolation: "none".into(),
        boot_id: "b".into(),
        seal_key: None,
        services: None,
        since: Timestamp::now(),
        token: "t".into(),
        extra: Extra::new(),
    };
    visor.register_host(name, &host, lease).await.expect("the name is free")
}

impl Stage {
    async fn play(self) {
        let mut mirror = Mirror::new(self.visor.store().clone(), keys::everything(), Snapshot::default());
        loop {
            mirror.next().await;
            loop {
                let snapshot = self.visor.read(keys::everything()).await.expect("the coordinator answers");
                if !self.act(&snapshot).await {
                    break;
                }
            }
        }
    }

    /// One step of everything; whether there was any.
    async fn act(&self, snapshot: &Snapshot) -> bool {
        let mut placements = Vec::new();
        let mut changes = Vec::new();
        let mut reports = Vec::new();
        for (app, view) in &snapshot.apps {
            for proc in view.procs.keys() {
                self.plan(snapshot, app, view, proc, &mut placements, &mut changes);
            }
            if let Some(change) = verdict(snapshot, app, view) {
                changes.push(change);
            }
            for (id, instance) in &view.instances {
                if snapshot.status(app, *id).is_none() {
                    reports.push((*id, said(*id, (self.script)(&instance.proc, instance.release))));
                }
            }
        }
        let acts = !(placements.is_empty() && changes.is_empty() && reports.is_empty());
        let now = Timestamp::now();
        self.visor.commit_all(self.term, changes).await.expect("the coordinator answers");
        self.visor
            .place(self.term, placements, snapshot.instance_counter.as_ref(), now)
            .await
            .expect("the coordinator answers");
        self.visor
            .report(&self.host, self.created_at, &reports, &mut BTreeMap::new())
            .await
            .expect("the coordinator answers");
        acts
    }

    fn plan(
        &self,
        snapshot: &Snapshot,
        app: &AppName,
        view: &AppView,
        proc: &ProcName,
        placements: &mut Vec<Placement>,
        changes: &mut Vec<Change>,
    ) {
        let mut wanted = view.wanted(proc);
        if let Some(trial) = &view.trial
            && concerned(view, &view.releases[&trial.release]).contains(&proc)
        {
            wanted.entry(trial.release).or_insert(1);
        }
        let mut surplus: BTreeSet<InstanceId> = BTreeSet::new();
        let mut all_run = true;
        let of_proc: Vec<_> = view.instances.iter().filter(|(_, i)| i.proc == *proc).collect();
        for (release, count) in &wanted {
            let fit: Vec<InstanceId> = of_proc
                .iter()
                .filter(|(id, i)| i.release == *release && !is_to_restart(view, proc, **id))
                .map(|(id, _)| **id)
                .collect();
            surplus.extend(fit.iter().skip(*count as usize));
            let runs = |id: &&InstanceId| {
                snapshot.status(app, **id).is_some_and(|status| status.state == State::Running)
            };
            all_run &= fit.iter().filter(runs).count() >= *count as usize;
            for index in fit.len()..*count as usize {
                placements.push(self.placement(app, view, proc, *release, index));
            }
        }
        surplus.extend(
            of_proc
                .iter()
                .filter(|(id, i)| !wanted.contains_key(&i.release) || is_to_restart(view, proc, **id))
                .map(|(id, _)| **id),
        );
        if all_run {
            for id in surplus {
                let (assigned, status) = (snapshot.assignment(app, id), snapshot.status(app, id));
                let now = Timestamp::now();
                changes.push(archiving(app, id, &view.instances[&id], assigned, status, &[], now));
            }
        }
    }

    fn placement(
        &self,
        app: &AppName,
        view: &AppView,
        proc: &ProcName,
        release: ReleaseId,
        index: usize,
    ) -> Placement {
        let row = &view.releases[&release];
        let assignment = Assignment {
            desired: Desired::Run,
            reason: None,
            app: app.clone(),
            proc: proc.clone(),
            release,
            rev: row.rev.clone(),
            env: row.env,
            slug: view.revs[&row.rev].slug.clone(),
            command: view.command(release, proc).expect("it is wanted").to_owned(),
            index: u32::try_from(index).expect("it fits"),
            run: Default::default(),
            links: Default::default(),
            sources: Vec::new(),
            trial: false,
            extra: Extra::new(),
        };
        let reason = "wanted".to_owned();
        let app_at = view.app.as_ref().map_or(0, |app| app.mod_revision);
        Placement { host: self.host.clone(), host_created_at: self.created_at, app_at, assignment, reason }
    }
}

/// What a host says.
fn said(id: InstanceId, word: Word) -> Status {
    let now = Timestamp::now();
    match word {
        Word::Run => {
            let mut status = Status::new(State::Running, now);
            status.ip = Some("1.2.3.4".parse().expect("valid"));
            status.port = u16::try_from(21_879 + id.0).ok();
            status.started_at = Some(now);
            status
        }
        Word::Start => Status::new(State::Claimed, now),
        Word::Crash(cause) => {
            let mut status = Status::new(State::Backoff, now);
            status.cause = Some(cause.into());
            status.restarts = 3;
            status.last_output = vec!["the engine is \u{1b}[31mnot there".into()];
            status
        }
    }
}

/// The end of a trial, once it is clear.
fn verdict(snapshot: &Snapshot, app: &AppName, view: &AppView) -> Option<Change> {
    let trial = view.trial.as_ref()?;
    let row = &view.releases[&trial.release];
    let mut states = concerned(view, row).into_iter().map(|proc| {
        let mut of = view.instances.iter().filter(|(_, i)| i.proc == *proc && i.release == trial.release);
        of.find_map(|(id, _)| snapshot.status(app, *id))
    });
    if let Some(failed) = states.clone().flatten().find(|status| status.state == State::Backoff) {
        let cause = failed.cause.clone().unwrap_or_default();
        return Some(failure(app, view, trial.release, row, &cause));
    }
    let all_run = states.all(|status| status.is_some_and(|status| status.state == State::Running));
    all_run.then(|| verification(app, view, trial.release, row, trial))
}
