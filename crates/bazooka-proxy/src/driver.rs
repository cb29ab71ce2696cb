//! Brings a plan about in HAProxy.
//!
//! Owns the order of effects: files before a reload, a reload before anything is believed of it, and what
//! HAProxy says over what was sent. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use visor::names::InstanceId;

use crate::{
    config::{GIT, PUBLIC, instance_of, port_of_frontend},
    files::{Contents, FilesError, Writer},
    haproxy::{Cli, CliError, Processes, process::end_worker, says},
    metrics::ProxyMetrics,
    plan::{InForce, Step},
};

/// How many workers there are at most, the one that takes connections included.
pub const MOST_WORKERS: usize = 3;

/// How long a reload may take.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a reload is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long an old worker may take to end once it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A reload that didn't come about. What was in force is so still.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The files could not be put in place, or HAProxy refuses them.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// HAProxy took the files and could not start with them.
    #[error("HAProxy could not start with the new configuration")]
    Refused,
    /// HAProxy didn't say in time what became of it.
    #[error("HAProxy did not finish a reload in {} s", RELOAD_TIMEOUT.as_secs())]
    Unfinished,
    /// HAProxy could not be asked.
    #[error("HAProxy can't be asked")]
    Cli(#[from] CliError),
}

/// What a reload would cut for want of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InTheWay {
    /// Nothing: there is room, or what has to end is idle.
    Nothing,
    /// Kept connections without a request. Each is told with its next answer to close.
    Connections,
    /// Requests under way.
    Requests,
}

/// A way to bring plans about.
#[derive(Clone, Debug)]
pub struct Driver {
    cli: Cli,
    writer: Writer,
    map: PathBuf,
    metrics: ProxyMetrics,
}

impl Driver {
    /// Over HAProxy's master, and files that this writer writes.
    pub fn new(cli: Cli, writer: Writer, map: PathBuf, metrics: ProxyMetrics) -> Self {
        Driver { cli, writer, map, metrics }
    }

    /// The way to HAProxy's master.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// The files.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// What the current worker runs, in its own words.
    ///
    /// # Errors
    /// If it can't be asked, or there is none.
    pub async fn observe(&self) -> Result<InForce, CliError> {
        let processes = self.cli.processes().await?;
        let worker = processes.worker.ok_or(CliError::NoWorker(0))?;
        self.observe_worker(processes.master, worker).await
    }

    async fn observe_worker(&self, master: u32, worker: u32) -> Result<InForce, CliError> {
        let map = format!("show map {}", self.map.display());
        // Frontends are of type 1, backends of type 2.
        let frontends = "show stat -1 1 -1".to_owned();
        let backends = "show stat -1 2 -1".to_owned();
        let commands = ["show info".to_owned(), "show servers state".to_owned(), frontends, backends, map];
        let answers = self.cli.worker(worker, &commands).await?;
        let [info, servers, frontends, backends, map] = &answers[..] else {
            return Err(CliError::Miscounted { commands: commands.len(), answers: answers.len() });
        };
        let shape = says::shape(info).unwrap_or_default().to_owned();
        let frontends = says::proxies(frontends);
        Ok(InForce {
            master,
            worker,
            shape,
            servers: says::servers(servers),
            backends: says::proxies(backends).into_iter().collect(),
            ports: frontends.iter().filter_map(|name| port_of_frontend(name)).collect(),
            public: frontends.iter().any(|name| name == PUBLIC),
            git: frontends.iter().any(|name| name == GIT),
            hosts: says::map(map),
        })
    }

    /// Carries out steps in one exchange, and notes in `in_force` what came about.
    ///
    /// Returns the steps that HAProxy refused, with its words.
    ///
    /// # Errors
    /// If the worker can't be asked: any of the steps may have been carried out.
    pub async fn carry_out(
        &self,
        in_force: &mut InForce,
        steps: &[Step],
    ) -> Result<Vec<(Step, String)>, CliError> {
        let map = self.map.display().to_string();
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

    /// Installs the files and reloads; returns what is in force then.
    ///
    /// When it returns, no worker but the new one takes new requests: the old ones have stopped and hand
    /// over what still reaches them.
    ///
    /// # Errors
    /// The configuration is invalid, or HAProxy didn't take it; what was in force is so still.
    pub async fn reload(&self, contents: Contents) -> Result<InForce, ReloadError> {
        self.writer.install(contents).await?;
        let before = self.make_room().await?;
        self.cli.reload().await?;
        let deadline = Instant::now() + RELOAD_TIMEOUT;
        loop {
            // It doesn't answer while it starts again.
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
                return Err(ReloadError::Unfinished);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether these workers take no more connections.
    async fn have_stopped(&self, workers: &[u32]) -> bool {
        for worker in workers {
            match self.cli.worker(*worker, &["show info".to_owned()]).await {
                Ok(info) if info.concat().lines().any(|line| line == "Stopping: 1") => {}
                // It has gone.
                Err(CliError::NoWorker(_)) => {}
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    /// What is open on the old workers that another reload would end.
    ///
    /// # Errors
    /// If the master can't be asked.
    pub async fn in_the_way(&self) -> Result<InTheWay, CliError> {
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

    /// What is under way for instances on these backends, over all workers.
    ///
    /// # Errors
    /// If a worker that is there can't be asked.
    pub async fn sessions(&self, backends: &BTreeSet<String>) -> Result<BTreeMap<InstanceId, u32>, CliError> {
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
}

/// A worker that takes no more connections, and what is open on it.
struct OldWorker {
    requests: u32,
    connections: u32,
    pid: u32,
}
