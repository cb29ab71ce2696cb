//! Supervision of a part of a local cluster: a child that is started, restarted when it dies, and stopped.
//!
//! Owns a task for each part; the part's process never outlives its task.
//!
//! ```text
//! starting ─▶ up ──died──▶ pause (0.2 s, doubling to 5 s) ─▶ starting
//!               └─asked to stop─▶ SIGTERM ─▶ (too long: SIGKILL) ─▶ gone
//! ```

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs::{DirBuilder, File},
    io::{Read, Seek, SeekFrom},
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use visor::{pause::Doubling, store::StoreError};

use super::parts::{Endpoint, Kind, Part};
use crate::{
    failure::{Failure, Kind as FailureKind},
    show::clean,
};

/// The pause before a dead part is started again.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(200), Duration::from_secs(5));

/// A part that ran this long starts again with the first pause.
const STEADY_AFTER: Duration = Duration::from_secs(30);

/// A part that dies this often before it was ready is given up.
const DEATHS_BEFORE_READY: u32 = 3;

/// The interval at which a starting part is asked if it is ready. A start takes some tens of milliseconds.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// The time that a restarted part without an endpoint must live to count as back.
const BACK_AFTER: Duration = Duration::from_secs(1);

/// A message about a part, for the person at the terminal.
#[derive(Debug)]
pub struct Notice {
    /// The part's name.
    pub part: String,
    /// The message.
    pub words: String,
}

/// The reason why a part didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The part died each time that it was started.
    #[error("ended {deaths} times as it started: {last_end}")]
    Died {
        /// The number of deaths.
        deaths: u32,
        /// A description of how its last process ended.
        last_end: String,
    },
    /// The part runs but can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The state of a part's process.
#[derive(Clone, Debug, Default)]
struct Process {
    endpoint: Option<SocketAddr>,
    deaths: u32,
    last_end: String,
}

/// A supervised part.
pub struct Running {
    part: Part,
    log: PathBuf,
    process: watch::Receiver<Process>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts a part and its supervision.
    pub fn start(part: Part, log: PathBuf, notices: mpsc::Sender<Notice>) -> Self {
        let (says, process) = watch::channel(Process::default());
        let stop = CancellationToken::new();
        let keeping = Keeping { part: part.clone(), log: log.clone(), says, notices, stop: stop.clone() };
        Running { part, log, process, stop, task: tokio::spawn(keeping.run()) }
    }

    /// Returns the part's name.
    pub fn name(&self) -> &str {
        &self.part.name
    }

    /// Returns the kind of part.
    pub fn kind(&self) -> Kind {
        self.part.kind
    }

    /// Waits until the part has died too often.
    pub async fn gave_up(&mut self) -> StartError {
        // The sender lives as long as the task, and the task as long as this value.
        let _ = self.process.wait_for(|process| process.deaths >= DEATHS_BEFORE_READY).await;
        let process = self.process.borrow();
        StartError::Died { deaths: process.deaths, last_end: process.last_end.clone() }
    }

    /// Waits until the supervising task has ended without having been asked to.
    pub async fn unattended(&mut self) {
        while self.process.changed().await.is_ok() {}
    }

    /// Waits until the part's endpoint reports ready; returns a message with the endpoint's address.
    ///
    /// # Errors
    /// If the part dies too often.
    pub async fn answers_ready(&mut self) -> Result<String, StartError> {
        let mut process = self.process.clone();
        let ready = async {
            loop {
                let endpoint = process.borrow_and_update().endpoint;
                let ready = async {
                    match endpoint {
                        Some(at) => is_ready(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = ready => {}
                    // A restarted part may have another endpoint.
                    changed = process.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => std::future::pending().await,
                    },
                }
                if let Some(at) = endpoint {
                    return format!("is ready, with its endpoint at http://{at}");
                }
            }
        };
        tokio::select! {
            ready = ready => Ok(ready),
            gave_up = self.gave_up() => Err(gave_up),
        }
    }

    /// Creates a failure about this part, with the last lines of its log.
    pub fn failure(&self, words: &str) -> Failure {
        let mut failure = Failure::new(FailureKind::PartMissing, format!("{} {words}", self.name()));
        failure.causes = last_lines(&self.log, 10);
        failure.hint(format!("its whole log is {}", self.log.display()))
    }

    /// Asks the part to stop; [`Running::stopped`] waits for it.
    pub fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the part's process has ended.
    pub async fn stopped(self) {
        // If the task panicked, dropping its child has killed the process.
        let _ = self.task.await;
    }
}

struct Keeping {
    part: Part,
    log: PathBuf,
    says: watch::Sender<Process>,
    notices: mpsc::Sender<Notice>,
    stop: CancellationToken,
}

impl Keeping {
    async fn run(self) {
        let mut pauses = PAUSE.begin();
        let mut again = false;
        loop {
            let begin = Instant::now();
            let end = match self.spawn() {
                Ok(mut child) => {
                    tokio::select! {
                        ended = wait(&mut child) => match ended {
                            Ok(status) => how(status),
                            Err(error) => format!("can't be waited for: {error}"),
                        },
                        never = self.tell_when_back(again) => match never {},
                        () = self.stop.cancelled() => {
                            self.end(child).await;
                            return;
                        }
                    }
                }
                Err(error) => format!("can't be started: {error}"),
            };
            if begin.elapsed() >= STEADY_AFTER {
                pauses.reset();
            }
            let pause = pauses.next();
            self.notice(format!(
                "{end}; starting it again in {:.1} s (log: {})",
                pause.as_secs_f64(),
                self.log.display()
            ))
            .await;
            self.says.send_modify(|process| {
                process.deaths += 1;
                process.endpoint = None;
                process.last_end = end;
            });
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            again = true;
        }
    }

    /// Announces a restarted part once it is ready, and then waits for ever.
    async fn tell_when_back(&self, again: bool) -> Infallible {
        if again {
            let endpoint = self.says.borrow().endpoint;
            match endpoint {
                Some(at) => is_ready(at).await,
                None => sleep(BACK_AFTER).await,
            }
            self.notice("is back".to_owned()).await;
        }
        std::future::pending().await
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let endpoint = match self.part.endpoint {
            Endpoint::None => None,
            Endpoint::At(at) => Some(at),
            // The port is free now. If another process takes it first, the part dies and is started with another
            // port.
            Endpoint::On(address) => Some(TcpListener::bind((address, 0))?.local_addr()?),
        };
        // The running program itself, even if its file has been replaced.
        let mut command = Command::new("/proc/self/exe");
        command.args(["child", "--of", &std::process::id().to_string(), "--"]);
        // Absolute, because the part may have another working folder.
        command.arg(std::path::absolute(&self.part.program)?).args(&self.part.args);
        if let Some(folder) = &self.part.folder {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            command.current_dir(folder);
        }
        if let (Endpoint::On(_), Some(at)) = (self.part.endpoint, endpoint) {
            command.args(["--listen", &at.to_string()]);
        }
        // Variables for a daemon of another cluster, or for the command line, must not reach the parts.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let ours = name.starts_with("BAZOOKA_") && !name.starts_with("BAZOOKA_LOG");
            if ours || name.starts_with("ETCD_") {
                command.env_remove(name.as_ref());
            }
        }
        // Neither must this machine's settings file.
        command.env("BAZOOKA_CONFIG", "/dev/null");
        if self.part.kind == Kind::Etcd && cfg!(target_arch = "aarch64") {
            // etcd 3.4 doesn't start on this architecture without this acknowledgement.
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A group of its own, so that Ctrl-C reaches only `dev`, which stops the parts in order.
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn()?;
        if let Some(pid) = child.id() {
            parts().insert(pid);
        }
        self.says.send_modify(|process| process.endpoint = endpoint);
        Ok(child)
    }

    async fn end(&self, mut child: Child) {
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        // The child hasn't been reaped, so its process id can't have been reused.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if timeout(self.part.stop_within, wait(&mut child)).await.is_err() {
            let words = format!("has not ended in {} s: killed", self.part.stop_within.as_secs());
            self.notice(words).await;
            // This fails only if the process has just ended.
            let _ = child.start_kill();
            let _ = wait(&mut child).await;
        }
    }

    async fn notice(&self, words: String) {
        // Notices have no receiver while the cluster stops.
        let _ = self.notices.send(Notice { part: self.part.name.clone(), words }).await;
    }
}

/// Waits until an endpoint reports ready.
async fn is_ready(at: SocketAddr) {
    let client = bazooka_daemon::http_client(None).timeout(Duration::from_secs(1)).build();
    let client = client.expect("without TLS there is nothing that could be missing");
    loop {
        let answer = client.get(format!("http://{at}/readyz")).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        sleep(ASK_EVERY).await;
    }
}

/// Returns the process ids of parts, which must not be reaped as orphans.
fn parts() -> MutexGuard<'static, BTreeSet<u32>> {
    static PARTS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    PARTS.lock().expect("no holder of this lock panics")
}

/// Reports whether a process is a part that hasn't been reaped.
pub fn is_a_part(pid: Pid) -> bool {
    u32::try_from(pid.as_raw()).is_ok_and(|pid| parts().contains(&pid))
}

/// Reaps a part's process. From then on its process id may be reused.
async fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    let pid = child.id();
    let ended = child.wait().await;
    if let Some(pid) = pid {
        parts().remove(&pid);
    }
    ended
}

/// Describes how a process ended.
fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

/// Returns the last lines of a log, cleaned.
fn last_lines(log: &Path, most: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<String> = text.lines().map(clean).collect();
    lines[lines.len().saturating_sub(most)..].to_vec()
}
