//! A cluster around real convergers: hosts and proxies that keep their side of the contract, without processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bazooka_pm::converge::{ConvergeError, ConvergeOptions, run};
use jiff::Timestamp;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use visor::{
    keys::{self, Key},
    lease::{LeaseKeeper, LeaseTiming},
    mirror::Mirror,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, RevId},
    schema::*,
    snapshot::Snapshot,
    store::{
        Revision, SharedStore,
        model::{Faults, ModelStore},
    },
    transitions::releases::{Begun, NewRelease},
    visor::{Change, Visor},
};

/// How long a test waits for what should happen; under paused time it costs nothing.
const SOON: Duration = Duration::from_secs(120);

/// What a release's instances do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    /// Healthy after this time.
    Runs(Duration),
    /// It fails for good after this time.
    Fails(Duration, Fault),
    /// It crashes, and its host starts it again and again.
    Crashes,
}

/// The cluster.
pub struct Cluster {
    pub visor: Visor,
    model: Option<ModelStore>,
    store: Box<dyn Fn() -> SharedStore + Send + Sync>,
    app: AppName,
    does: Arc<Mutex<BTreeMap<(ProcName, ReleaseId), Does>>>,
    hosts: Mutex<BTreeMap<String, Daemon<()>>>,
    proxies: Mutex<BTreeMap<String, Daemon<()>>>,
    convergers: Mutex<BTreeMap<String, Daemon<Result<(), ConvergeError>>>>,
    faults: Mutex<BTreeMap<String, Faults>>,
    pushes: Mutex<u32>,
    seen: Arc<Mutex<Seen>>,
    _monitor: JoinHandle<()>,
    timing: LeaseTiming,
}

/// What the monitor saw since it was last asked to forget.
#[derive(Debug, Default)]
struct Seen {
    fewest: Option<u32>,
}

struct Daemon<T> {
    stop: CancellationToken,
    task: JoinHandle<T>,
}

impl Cluster {
    /// On a store in memory; with paused time, on the test's own clock.
    pub async fn on_model() -> Cluster {
        let model = ModelStore::new();
        let other = model.clone();
        Cluster::on(Box::new(move || other.client().shared()), Some(model)).await
    }

    /// On stores that this makes, one for each daemon.
    pub async fn on(store: Box<dyn Fn() -> SharedStore + Send + Sync>, model: Option<ModelStore>) -> Cluster {
        let visor = Visor::new(store());
        visor.set_up().await.expect("the store is there");
        let app: AppName = "pages".parse().expect("valid");
        visor.register_app(&app, "me", "token", now()).await.expect("the name is free");
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let monitor = tokio::spawn(monitor(
            Mirror::new(store(), keys::everything(), Snapshot::default()),
            seen.clone(),
        ));
        Cluster {
            visor,
            model,
            store,
            app,
            does: Arc::default(),
            hosts: Mutex::default(),
            proxies: Mutex::default(),
            convergers: Mutex::default(),
            faults: Mutex::default(),
            pushes: Mutex::new(0),
            seen,
            _monitor: monitor,
            timing: LeaseTiming::default(),
        }
    }

    /// A store for one daemon, whose faults can be had by its name.
    fn store_of(&self, name: &str) -> SharedStore {
        match &self.model {
            Some(model) => {
                let client = model.client();
                self.faults.lock().expect("unbroken").insert(name.into(), client.faults());
                client.shared()
            }
            None => (self.store)(),
        }
    }

    /// The faults of a daemon's own connection.
    pub fn faults(&self, name: &str) -> Faults {
        self.faults.lock().expect("unbroken")[name].clone()
    }

    /// Starts a host with room for a hundred, and waits until it is registered.
    pub async fn host(&self, name: &str) {
        self.host_with(name, 100).await;
    }

    /// Starts a host with room for so many.
    pub async fn host_with(&self, name: &str, instances: u32) {
        let stop = CancellationToken::new();
        let host = FakeHost {
            visor: Visor::new(self.store_of(name)),
            name: name.parse().expect("a host name"),
            instances,
            does: self.does.clone(),
            timing: self.timing,
        };
        let task = tokio::spawn(host.run(stop.clone()));
        self.hosts.lock().expect("unbroken").insert(name.into(), Daemon { stop, task });
        let host: HostName = name.parse().expect("a host name");
        self.until("the host is registered", |snapshot| {
            let there = snapshot.hosts.get(&host).is_some_and(|view| view.host.is_some());
            if there { Ok(()) } else { Err("it isn't".into()) }
        })
        .await;
    }

    /// Kills a host: it says nothing more, and its lease runs out.
    pub fn kill_host(&self, name: &str) {
        let daemon = self.hosts.lock().expect("unbroken").remove(name).expect("it runs");
        // Its keeper would give the lease back when it is dropped; a dead host can't.
        self.faults(name).partition(true);
        daemon.task.abort();
    }

    /// Starts a proxy.
    pub async fn proxy(&self, name: &str) {
        let stop = CancellationToken::new();
        let visor = Visor::new(self.store_of(name));
        let task = tokio::spawn(proxy(visor, name.parse().expect("a name"), self.timing, stop.clone()));
        self.proxies.lock().expect("unbroken").insert(name.into(), Daemon { stop, task });
        self.until("the proxy is there", |snapshot| {
            if snapshot.proxies.is_empty() { Err("none".into()) } else { Ok(()) }
        })
        .await;
    }

    /// Starts a converger.
    pub fn converger(&self, name: &str) {
        let stop = CancellationToken::new();
        let options = ConvergeOptions { timing: self.timing, ..ConvergeOptions::named(name) };
        let visor = Visor::new(self.store_of(name));
        let task = tokio::spawn(run(visor, options, stop.clone()));
        self.convergers.lock().expect("unbroken").insert(name.into(), Daemon { stop, task });
    }

    /// Stops a converger as SIGTERM does.
    pub async fn stop_converger(&self, name: &str) {
        let daemon = self.convergers.lock().expect("unbroken").remove(name).expect("it runs");
        daemon.stop.cancel();
        daemon.task.await.expect("it doesn't panic").expect("it ends well");
    }

    /// Kills a converger.
    pub fn kill_converger(&self, name: &str) {
        let daemon = self.convergers.lock().expect("unbroken").remove(name).expect("it runs");
        self.faults(name).partition(true);
        daemon.task.abort();
    }

    /// The name of the elected converger.
    pub async fn leader(&self) -> Option<String> {
        self.snapshot().await.leader.map(|leader| leader.name.clone())
    }

    pub fn does(&self, proc: &str, release: ReleaseId, does: Does) {
        self.does.lock().expect("unbroken").insert((proc.parse().expect("valid"), release), does);
    }

    /// What the instances of the next release do.
    pub fn next_does(&self, proc: &str, does: Does) {
        let next = *self.pushes.lock().expect("unbroken") + 1;
        self.does(proc, ReleaseId(next), does);
    }

    /// Waits until a converger leads, and says which.
    pub async fn until_led(&self) -> String {
        self.until("a converger leads", |snapshot| {
            snapshot.leader.as_ref().map(|leader| leader.name.clone()).ok_or_else(|| "none".into())
        })
        .await
    }

    pub async fn snapshot(&self) -> Snapshot {
        self.visor.read(keys::everything()).await.expect("the store answers")
    }

    async fn begin(&self, procs: &str, promote: Promoter) -> Begun {
        let n = {
            let mut pushes = self.pushes.lock().expect("unbroken");
            *pushes += 1;
            *pushes
        };
        let rev: RevId = format!("{n:040x}").parse().expect("a rev");
        let row = Rev {
            slug: Slug { sha256: "0".repeat(64).parse().expect("a digest"), size_bytes: 1 },
            procs: procs.split(' ').map(|p| (p.parse().expect("a proc name"), "run".to_owned())).collect(),
            kind: "procfile".into(),
            by: "me".into(),
            at: now(),
            subject: String::new(),
            extra: Extra::new(),
        };
        self.visor.register_rev(&self.app, &rev, &row, &BTreeSet::new()).await.expect("it can be registered");
        let new =
            NewRelease { rev: Some(rev), by: "me".into(), token: format!("t{n}"), ..NewRelease::default() };
        self.visor.begin_release(&self.app, &new, promote, None, now()).await.expect("it can be begun")
    }

    /// A first release, which is head at once.
    pub async fn release(&self, procs: &str) -> ReleaseId {
        match self.begin(procs, Promoter::Converger).await {
            Begun::Released(release) => release,
            other => panic!("{other:?}"),
        }
    }

    /// A pushed release of an app that runs.
    pub async fn push(&self, procs: &str) -> ReleaseId {
        match self.begin(procs, Promoter::Pusher).await {
            Begun::Trying(release) => release,
            other => panic!("{other:?}"),
        }
    }

    pub async fn promote(&self, release: ReleaseId) {
        self.visor.promote(&self.app, release).await.expect("it is verified");
    }

    pub async fn scale(&self, proc: &str, count: u32) {
        let proc = proc.parse().expect("valid");
        self.visor.scale(&self.app, &proc, count, None, "me", now()).await.expect("it can be scaled");
    }

    pub async fn restart(&self, proc: &str) {
        self.visor
            .restart(&self.app, &proc.parse().expect("valid"), None)
            .await
            .expect("it can be restarted");
    }

    pub async fn destroy(&self) {
        self.visor.destroy_app(&self.app).await.expect("it is there");
    }

    /// Waits until the image is as wanted.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&Snapshot) -> Result<T, String>) -> T {
        let deadline = Instant::now() + SOON;
        loop {
            let snapshot = self.snapshot().await;
            match look(&snapshot) {
                Ok(found) => return found,
                Err(seen) if Instant::now() >= deadline => {
                    panic!("waited in vain until {what}; last seen: {seen}\n{snapshot:#?}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until exactly so many of a proc are there, all of them healthy.
    pub async fn until_running(&self, proc: &str, count: usize) {
        let app = self.app.clone();
        self.until(&format!("{count} of {proc} run"), |snapshot| {
            let there = states(snapshot, &app, proc);
            let well = there.iter().all(|(_, state)| *state == Some(State::Running));
            if there.len() == count && well { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
    }

    /// Waits until all that is there of a proc is so many healthy ones of a release.
    pub async fn until_all_run(&self, proc: &str, release: ReleaseId, count: usize) {
        let app = self.app.clone();
        self.until(&format!("{count} of {proc}@{release} run"), |snapshot| {
            let there = states(snapshot, &app, proc);
            let well = there.iter().all(|(r, state)| *r == release && *state == Some(State::Running));
            if there.len() == count && well { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
    }

    pub async fn until_verified(&self, release: ReleaseId) {
        assert_eq!(self.verdict(release).await, (ReleaseStatus::Verified, None));
    }

    /// Waits for the verdict on a release, and its cause.
    pub async fn verdict(&self, release: ReleaseId) -> (ReleaseStatus, Option<String>) {
        let app = self.app.clone();
        self.until("there is a verdict", |snapshot| {
            let row = &snapshot.apps[&app].releases[&release];
            match row.status {
                ReleaseStatus::Trying => Err("it is being tried".into()),
                status => Ok((status, row.cause.clone())),
            }
        })
        .await
    }

    /// Forgets what was seen.
    pub fn watch_from_now(&self) {
        *self.seen.lock().expect("unbroken") = Seen::default();
    }

    /// The fewest instances that served at any moment, since it was last forgotten.
    pub fn fewest_running(&self) -> u32 {
        self.seen.lock().expect("unbroken").fewest.unwrap_or(0)
    }

    /// How many instances were ever placed.
    pub async fn placed(&self) -> u64 {
        self.snapshot().await.instance_counter.map_or(0, |counter| counter.value)
    }

    /// Changes how a proc is run and replaced.
    pub async fn settings(&self, proc: &str, edit: impl FnOnce(&mut Proc)) {
        let proc: ProcName = proc.parse().expect("valid");
        let key = Key::Proc(self.app.clone(), proc.clone());
        let mut row = self.snapshot().await.apps[&self.app].procs[&proc].value.clone();
        edit(&mut row);
        self.visor.commit(Change::new().put(&key, &row)).await.expect("it can be written");
    }
}

/// Each instance of a proc: its release and state.
pub fn states(snapshot: &Snapshot, app: &AppName, proc: &str) -> Vec<(ReleaseId, Option<State>)> {
    let view = &snapshot.apps[app];
    let of = view.instances.iter().filter(|(_, row)| row.proc.as_str() == proc);
    of.map(|(id, row)| (row.release, snapshot.status(app, *id).map(|status| status.state))).collect()
}

async fn monitor(mut mirror: Mirror<Snapshot>, seen: Arc<Mutex<Seen>>) {
    loop {
        mirror.next().await;
        let snapshot = mirror.image();
        let mut serving = 0;
        let mut seen = seen.lock().expect("unbroken");
        for view in snapshot.hosts.values() {
            for (id, assigned) in &view.assigned {
                let state = view.status.get(id).map(|status| status.state);
                if assigned.desired == Desired::Run && state == Some(State::Running) && view.host.is_some() {
                    serving += 1;
                }
            }
        }
        let fewest = seen.fewest.map_or(serving, |fewest| fewest.min(serving));
        seen.fewest = Some(fewest);
    }
}

fn now() -> Timestamp {
    Timestamp::now()
}

/// A host that keeps its side of the contract.
struct FakeHost {
    visor: Visor,
    name: HostName,
    instances: u32,
    does: Arc<Mutex<BTreeMap<(ProcName, ReleaseId), Does>>>,
    timing: LeaseTiming,
}

impl FakeHost {
    async fn run(self, stop: CancellationToken) {
        let keeper = LeaseKeeper::start(self.visor.store().clone(), self.timing);
        let mut lease_state = keeper.state();
        let scope = vec![keys::assigned_to(&self.name)];
        let mut mirror = Mirror::new(self.visor.store().clone(), scope, Snapshot::default());
        let mut local: BTreeMap<InstanceId, (State, Instant)> = BTreeMap::new();
        let mut said: BTreeMap<InstanceId, State> = BTreeMap::new();
        let mut registered: Option<(i64, Revision)> = None;
        loop {
            let next = local.values().map(|(_, at)| *at).filter(|at| *at > Instant::now()).min();
            tokio::select! {
                () = stop.cancelled() => break,
                _ = mirror.next() => {}
                _ = lease_state.changed() => {}
                () = async {
                    match next {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
            let Some(lease) = keeper.held() else { continue };
            if registered.is_none_or(|(of, _)| of != lease) {
                match self.visor.register_host(&self.name, &self.row(), lease).await {
                    Ok(created_at) => registered = Some((lease, created_at)),
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                }
                said.clear();
            }
            let Some((_, created_at)) = registered else { continue };
            if !mirror.is_synced() {
                continue;
            }
            let view = mirror.image().hosts.get(&self.name).cloned().unwrap_or_default();
            local.retain(|id, _| view.assigned.contains_key(id));
            said.retain(|id, _| view.assigned.contains_key(id));
            let now = Instant::now();
            for (id, assigned) in &view.assigned {
                let state = local.entry(*id).or_insert_with(|| (State::Claimed, now + self.takes(assigned)));
                if assigned.desired == Desired::Stop && !state.0.is_final() {
                    *state = (State::Exited, now);
                } else if state.0 == State::Claimed && state.1 <= now {
                    *state = (self.becomes(assigned), now);
                }
            }
            let news: Vec<(InstanceId, Status)> = local
                .iter()
                .filter(|(id, (state, _))| said.get(id) != Some(state))
                .map(|(id, (state, _))| (*id, self.status(&view.assigned[id], *state)))
                .collect();
            if let Ok(written) = self.visor.report(&self.name, created_at, &news, &mut BTreeMap::new()).await
            {
                let of = news.into_iter().zip(written).filter(|(_, written)| *written);
                said.extend(of.map(|((id, status), _)| (id, status.state)));
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        keeper.release().await;
    }

    fn of(&self, assigned: &Assignment) -> Does {
        let does = self.does.lock().expect("unbroken");
        let key = (assigned.proc.clone(), assigned.release);
        does.get(&key).cloned().unwrap_or(Does::Runs(Duration::from_millis(50)))
    }

    fn takes(&self, assigned: &Assignment) -> Duration {
        match self.of(assigned) {
            Does::Runs(after) | Does::Fails(after, _) => after,
            Does::Crashes => Duration::from_millis(10),
        }
    }

    fn becomes(&self, assigned: &Assignment) -> State {
        match self.of(assigned) {
            Does::Runs(_) => State::Running,
            Does::Fails(..) => State::Failed,
            Does::Crashes if assigned.trial => State::Failed,
            Does::Crashes => State::Backoff,
        }
    }

    fn status(&self, assigned: &Assignment, state: State) -> Status {
        let mut status = Status::new(state, now());
        if matches!(state, State::Failed | State::Backoff) {
            status.cause = Some("exited with status 1".into());
            status.last_output = vec!["no such engine".into()];
            status.restarts = 3;
            let fault = if let Does::Fails(_, fault) = self.of(assigned) { fault } else { Fault::App };
            status.fault = (state == State::Failed).then_some(fault);
        }
        status
    }

    fn row(&self) -> Host {
        Host {
            schema: None,
            address: "127.0.0.2".parse().expect("an address"),
            url: "http://127.0.0.2:1".into(),
            zone: "default".parse().expect("a zone"),
            version: "0".into(),
            capacity: Capacity { memory_bytes: 64 << 30, instances: self.instances, extra: Extra::new() },
            isolation: "none".into(),
            boot_id: "b".into(),
            seal_key: None,
            services: None,
            since: "2026-01-01T00:00:00Z".parse().expect("a time"),
            token: self.name.to_string(),
            extra: Extra::new(),
        }
    }
}

/// A proxy that takes everything in at once, and says so when something about routing changed.
async fn proxy(visor: Visor, name: HostName, timing: LeaseTiming, stop: CancellationToken) {
    let keeper = LeaseKeeper::start(visor.store().clone(), timing);
    let mut mirror = Mirror::new(visor.store().clone(), keys::everything(), Snapshot::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changes = mirror.next() => {
                let routing = |key: &String| key.starts_with("assigned/") || key.starts_with("status/");
                if !mirror.is_synced() || !(changes.relisted || changes.keys.iter().any(routing)) {
                    continue;
                }
                let row = Proxy {
                    token: None,
                    schema: None,
                    url: "http://127.0.0.1:1".into(),
                    public: "127.0.0.1:1".into(),
                    domain: "localhost".into(),
                    zone: None,
                    version: "0".into(),
                    applied: mirror.revision(),
                    busy: BTreeSet::new(),
                    refused: BTreeMap::new(),
                    extra: Extra::new(),
                };
                // A write that fails is made good by the next one.
                let _ = visor.publish_proxy(&name, &row, keeper.wait_held().await).await;
            }
        }
    }
    keeper.release().await;
}
