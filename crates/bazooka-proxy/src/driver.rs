//! The balancer that runs on a machine: brings plans about in HAProxy.
//!
//! Owns the order of effects: files before a reload, a reload before anything is believed of it, and what
//! HAProxy says over what was sent. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use async_trait::async_trait;
use bazooka_daemon::Loops;
use tokio::{
    io::AsyncReadExt,
    sync::watch,
    time::{Instant, sleep},
};
use visor::names::InstanceId;

use crate::{
    balancer::{Balancer, InTheWay, ReloadError},
    config::{GIT, PUBLIC, Settings, hosts, instance_of, port_of_frontend, render, render_map},
    files::{Contents, Place, Writer},
    haproxy::{
        Cli, CliError, Processes,
        process::{Presence, Process, ProcessError, end_worker},
        says,
    },
    metrics::ProxyMetrics,
    plan::{InForce, Step, Wanted},
    ports::{self, PortRefused},
    routes::Routes,
};

/// How many workers there are at most, the one that takes connections included.
pub const MOST_WORKERS: usize = 3;

/// How long a reload may take.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a reload is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How often a master is looked for while it isn't there.
const LOOK_FOR_MASTER: Duration = Duration::from_millis(50);

/// How long an old worker may take to end once it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// HAProxy through its master's socket, its files, and its process where bazooka-proxy runs it.
pub struct Driver {
    cli: Cli,
    place: Place,
    writer: Writer,
    /// None where a unit of its own runs it.
    process: Option<Process>,
    metrics: ProxyMetrics,
}

impl Driver {
    /// Over HAProxy's master and its files; with a process, where bazooka-proxy runs it.
    pub fn new(
        cli: Cli,
        place: Place,
        process: Option<Process>,
        metrics: ProxyMetrics,
        loops: &mut Loops,
    ) -> Self {
        let (writer, writing) = Writer::new(place.clone());
        loops.spawn_endless("the writer of HAProxy's files", writing);
        Driver { cli, place, writer, process, metrics }
    }

    async fn observe_worker(&self, master: u32, worker: u32) -> Result<InForce, CliError> {
        let map = format!("show map {}", self.place.map.display());
        // Frontends are of type 1, backends of type 2.
        let frontends = "show stat -1 1 -1".to_owned();
        let backends = "show stat -1 2 -1".to_owned();
        let commands = ["show info".to_owned(), "show servers state".to_owned(), frontends, backends, map];
        let answers = self.cli.worker(worker, &commands).await?;
        let [info, servers, frontends, backends, map] = &answers[..] else {
            return Err(CliError::Miscounted { commands: commands.len(), answers: answers.len() });
        };
        let structural_hash = says::structural_hash(info).unwrap_or_default().to_owned();
        let frontends = says::proxies(frontends);
        Ok(InForce {
            master,
            worker,
            structural_hash,
            servers: says::servers(servers),
            backends: says::proxies(backends).into_iter().collect(),
            ports: frontends.iter().filter_map(|name| port_of_frontend(name)).collect(),
            public: frontends.iter().any(|name| name == PUBLIC),
            git: frontends.iter().any(|name| name == GIT),
            hosts: says::map(map),
        })
    }

    /// Reports whether these workers take no more connections.
    async fn have_stopped(&self, workers: &[u32]) -> bool {
        for worker in workers {
            match self.cli.worker(*worker, &["show info".to_owned()]).await {
                Ok(info) if info.concat().lines().any(|line| line == "Stopping: 1") => {}
                // The worker has gone.
                Err(CliError::NoWorker(_)) => {}
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    /// The old workers that have to go before another reload: those with the least open.
    async fn surplus(&self, processes: &Processes) -> Vec<OldWorker> {
        let surplus = (processes.old.len() + 2).saturating_sub(MOST_WORKERS);
        if surplus == 0 {
            return Vec::new();
        }
        let mut open = Vec::new();
        // The oldest is the last; of equals it goes first.
        for pid in processes.old.iter().rev() {
            // Backends are of type 2: a kept connection without a request is on none.
            let commands = ["show info".to_owned(), "show stat -1 2 -1".to_owned()];
            let answers = match self.cli.worker(*pid, &commands).await {
                Ok(answers) => answers,
                Err(CliError::NoWorker(_)) => continue,
                // One that can't be asked is of no use to anyone.
                Err(_) => Vec::new(),
            };
            let [info, backends] = [0, 1].map(|n| answers.get(n).map_or("", String::as_str));
            open.push(OldWorker {
                requests: says::sessions(backends).values().map(|sessions| sessions.open).sum(),
                connections: says::connections(info).unwrap_or(0),
                pid: *pid,
            });
        }
        open.sort_by_key(|worker| (worker.requests, worker.connections));
        open.truncate(surplus);
        open
    }

    /// Ends old workers, so that another reload keeps to the limit.
    async fn make_room(&self) -> Result<Processes, CliError> {
        let mut processes = self.cli.processes().await?;
        let surplus = self.surplus(&processes).await;
        if surplus.is_empty() {
            return Ok(processes);
        }
        for OldWorker { requests, connections, pid } in &surplus {
            let ended = end_worker(*pid, self.cli.path());
            if *requests > 0 {
                tracing::warn!(
                    worker = pid,
                    requests,
                    ended,
                    "an old worker is ended for a reload, with what is under way"
                );
            } else {
                tracing::info!(worker = pid, connections, ended, "an old worker makes room for a reload");
            }
            self.metrics.ended_workers.inc();
        }
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            processes = self.cli.processes().await?;
            if !surplus.iter().any(|worker| processes.old.contains(&worker.pid)) {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(processes)
    }
}

#[async_trait]
impl Balancer for Driver {
    async fn observe(&self) -> Result<InForce, CliError> {
        let processes = self.cli.processes().await?;
        let worker = processes.worker.ok_or(CliError::NoWorker(0))?;
        self.observe_worker(processes.master, worker).await
    }

    async fn carry_out(
        &self,
        in_force: &mut InForce,
        steps: &[Step],
    ) -> Result<Vec<(Step, String)>, CliError> {
        let map = self.place.map.display().to_string();
        let commands: Vec<Vec<String>> = steps.iter().map(|step| step.commands(&map)).collect();
        let begun = Instant::now();
        let answers = self.cli.worker(in_force.worker, &commands.concat()).await?;
        self.metrics.command_duration.observe(begun.elapsed().as_secs_f64());
        let mut refused = Vec::new();
        let mut rest = &answers[..];
        for (step, commands) in steps.iter().zip(&commands) {
            let (answers, later) = rest.split_at(commands.len().min(rest.len()));
            rest = later;
            if step.succeeded(answers) {
                self.metrics.steps.get_or_create(&[("action", step.action())]).inc();
                in_force.note(step);
            } else {
                refused.push((step.clone(), answers.join(" ")));
            }
        }
        Ok(refused)
    }

    async fn reload(&self, wanted: &Wanted) -> Result<InForce, ReloadError> {
        self.writer.install(contents(wanted)).await?;
        let before = self.make_room().await?;
        self.cli.reload().await?;
        let deadline = Instant::now() + RELOAD_TIMEOUT;
        loop {
            // HAProxy doesn't answer while it starts again.
            if let Ok(now) = self.cli.processes().await {
                if now.failed_reloads > before.failed_reloads {
                    return Err(ReloadError::Refused);
                }
                if let Some(worker) = now.worker.filter(|worker| Some(*worker) != before.worker) {
                    if self.have_stopped(&now.old).await {
                        self.metrics.workers.set(i64::try_from(1 + now.old.len()).unwrap_or(i64::MAX));
                        self.metrics.reloads.inc();
                        return Ok(self.observe_worker(now.master, worker).await?);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(ReloadError::Unfinished(RELOAD_TIMEOUT.as_secs()));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn in_the_way(&self) -> Result<InTheWay, CliError> {
        let processes = self.cli.processes().await?;
        let surplus = self.surplus(&processes).await;
        Ok(if surplus.iter().any(|worker| worker.requests > 0) {
            InTheWay::Requests
        } else if surplus.iter().any(|worker| worker.connections > 0) {
            InTheWay::Connections
        } else {
            InTheWay::Nothing
        })
    }

    async fn sessions(&self, backends: &BTreeSet<String>) -> Result<BTreeMap<InstanceId, u32>, CliError> {
        let processes = self.cli.processes().await?;
        self.metrics.workers.set(
            i64::try_from(processes.old.len() + usize::from(processes.worker.is_some())).unwrap_or(i64::MAX),
        );
        // Servers are of type 4.
        let commands: Vec<String> =
            backends.iter().map(|backend| format!("show stat {backend} 4 -1")).collect();
        let mut open = BTreeMap::new();
        for worker in processes.worker.iter().chain(&processes.old) {
            let answers = match self.cli.worker(*worker, &commands).await {
                Ok(answers) => answers,
                Err(CliError::NoWorker(_)) => continue,
                Err(error) => return Err(error),
            };
            for answer in &answers {
                for ((_, server), sessions) in says::sessions(answer) {
                    if let Some(instance) = instance_of(&server) {
                        *open.entry(instance).or_insert(0) += sessions.open;
                    }
                }
            }
        }
        Ok(open)
    }

    fn masters(&self, loops: &mut Loops) -> watch::Receiver<u64> {
        let cli = self.cli.clone();
        let (says, masters) = watch::channel(0);
        loops.spawn_endless("the watch of HAProxy's master", async move {
            loop {
                match cli.open().await {
                    Ok(mut connection) => {
                        says.send_modify(|n| *n += 1);
                        // Nothing is asked, so that nothing comes until it ends.
                        let _ = connection.read(&mut [0_u8; 64]).await;
                        says.send_modify(|n| *n += 1);
                    }
                    // Each time: one that came and went in between was seen by the loop alone.
                    Err(_) => {
                        says.send_modify(|n| *n += 1);
                        sleep(LOOK_FOR_MASTER).await;
                    }
                }
            }
        });
        masters
    }

    fn is_free(&self, address: SocketAddr) -> Result<(), PortRefused> {
        ports::is_free(address)
    }

    fn write(&self, wanted: &Wanted) {
        self.writer.update(contents(wanted));
    }

    async fn lay_out(&self, wanted: Option<&Wanted>, settings: &Settings) -> bool {
        let place = &self.place;
        let here = place.config.exists() && place.map.exists();
        if wanted.is_none() && here && place.check(&place.config).await.is_ok() {
            return true;
        }
        let mut candidates: Vec<Contents> = wanted.map(contents).into_iter().collect();
        let map = std::fs::read_to_string(&place.map).unwrap_or_default();
        if let Ok(config) = std::fs::read_to_string(&place.last_good) {
            candidates.push(Contents { config, map });
        }
        candidates.push(contents(&Wanted { routes: Routes::default(), settings: settings.clone() }));
        for candidate in candidates {
            match self.writer.install(candidate).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "HAProxy can't start with this"
                    );
                }
            }
        }
        false
    }

    async fn keep_as_good(&self) {
        if let Err(error) = self.place.keep_as_good().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the last good configuration isn't kept"
            );
        }
    }

    fn runs_here(&self) -> bool {
        self.process.is_some()
    }

    fn presence(&mut self, master: Option<u32>) -> Presence {
        // Of one that a unit runs, its socket alone tells.
        self.process.as_mut().map_or(Presence::Running, |process| process.presence(master))
    }

    fn remember(&mut self, pids: [u32; 2]) {
        if let Some(process) = &mut self.process {
            process.remember(pids);
        }
    }

    async fn clear(&mut self) -> Result<(), ProcessError> {
        match &mut self.process {
            Some(process) => process.clear().await,
            None => Ok(()),
        }
    }

    async fn start(&mut self) -> Result<(), ProcessError> {
        match &mut self.process {
            Some(process) => process.start().await,
            None => Ok(()),
        }
    }

    async fn stop(&mut self) {
        if let Some(process) = &mut self.process
            && let Err(error) = process.stop().await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "HAProxy can't be stopped");
        }
    }

    fn last_words(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }

    fn bound_log(&self) {
        if let Some(process) = &self.process {
            process.bound_log();
        }
    }
}

/// The files for what is wanted.
fn contents(wanted: &Wanted) -> Contents {
    let Wanted { routes, settings } = wanted;
    Contents { config: render(routes, settings), map: render_map(&hosts(routes, settings)) }
}

/// A worker that takes no more connections, and what is open on it.
struct OldWorker {
    requests: u32,
    connections: u32,
    pid: u32,
}
