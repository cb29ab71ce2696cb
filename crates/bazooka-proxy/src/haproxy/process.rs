//! HAProxy's process, where bazooka-proxy runs it.
//!
//! Owns starting, adopting and ending HAProxy. HAProxy is started in a process group of its own, so it continues when
//! bazooka-proxy ends for whatever reason. After a restart, bazooka-proxy finds HAProxy by its command line, which
//! names the master socket in this proxy's own folder. It signals a process through a pidfd that it opened before
//! reading the command line, so a reused process id is never hit.
//!
//! ```text
//!           answers ┌───────────┐
//!      ┌──────────▶ │  running  │ ◀── adopted after our own restart
//!      │            └─────┬─────┘
//!  ┌───┴────┐  start      │ killed: its workers stop serving too
//!  │  gone  │ ◀───────────┘
//!  └────────┘  leftovers are ended first: they hold ports
//! ```

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::cli::{Cli, CliError};

/// The time that HAProxy may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that HAProxy's processes may take to end after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval at which a process is checked while it starts or ends.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The size at which HAProxy's log is truncated, in bytes.
const LOG_LIMIT: u64 = 1024 * 1024;

/// A start of HAProxy that failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program can't be run.
    #[error("can't run {}", program.display())]
    Spawn {
        /// The path of the program.
        program: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// HAProxy ended during its start; with the last lines of its log.
    #[error("HAProxy ended as it started: {0}")]
    Ended(String),
    /// HAProxy runs but doesn't answer.
    #[error("HAProxy does not answer")]
    Silent(#[source] CliError),
}

/// A process of this HAProxy, held by a pidfd so that a reused process id is never meant.
struct Held {
    pid: u32,
    fd: OwnedFd,
}

impl Held {
    fn signal(&self, signal: Signal) {
        // The process may have ended by itself.
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    fn is_alive(&self) -> bool {
        // A pidfd becomes readable when its process has ended, reaped or not.
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }
}

/// The process of a HAProxy that bazooka-proxy runs.
pub struct Process {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    cli: Cli,
    /// The master, if this process started it and so must reap it.
    child: Option<Child>,
    /// The processes that were last seen. A process that is ending no longer has a command line, but still has its
    /// ports.
    known: Vec<Held>,
}

impl Process {
    /// Creates the handle, without looking for processes yet.
    pub fn new(program: PathBuf, config: PathBuf, log: PathBuf, cli: Cli) -> Self {
        Process { program, config, log, cli, child: None, known: Vec::new() }
    }

    /// Reports whether this master is alive, even if it doesn't answer. Without a master: whether any process of this
    /// HAProxy is.
    pub fn is_running(&mut self, master: Option<u32>) -> bool {
        self.reap();
        match master {
            Some(pid) => hold(pid, self.cli.path()).is_some_and(|master| master.is_alive()),
            None => !self.processes().is_empty(),
        }
    }

    /// Remembers these processes, so that their end can be awaited.
    pub fn remember(&mut self, pids: impl IntoIterator<Item = u32>) {
        self.known.retain(Held::is_alive);
        for pid in pids {
            if !self.known.iter().any(|held| held.pid == pid) {
                self.known.extend(hold(pid, self.cli.path()));
            }
        }
    }

    /// Kills all remaining processes of this HAProxy.
    pub async fn clear(&mut self) {
        self.end_all(Signal::KILL).await;
    }

    /// Starts HAProxy with the current file, after killing all processes of an earlier one.
    ///
    /// # Errors
    /// If HAProxy doesn't start; none of its processes is left then.
    pub async fn start(&mut self) -> Result<(), ProcessError> {
        self.end_all(Signal::KILL).await;
        let spawn = |source| ProcessError::Spawn { program: self.program.clone(), source };
        let log = fs::File::options().create(true).append(true).open(&self.log).map_err(spawn)?;
        log.set_len(0).map_err(spawn)?;
        let mut socket = self.cli.path().as_os_str().to_owned();
        socket.push(",mode,600");
        let mut command = Command::new(&self.program);
        // `-q`, because HAProxy would log each command of the Runtime API.
        command.args(["-W", "-q", "-S"]).arg(socket).arg("-f").arg(&self.config);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(spawn)?).stderr(log);
        // A group of its own, so that the terminal's signals don't reach HAProxy.
        command.process_group(0).current_dir("/");
        let mut child = command.spawn().map_err(spawn)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(Some(_)) = child.try_wait() {
                return Err(ProcessError::Ended(self.last_words()));
            }
            match self.cli.processes().await {
                // The worker answers or is about to; commands wait for it.
                Ok(processes) if processes.worker.is_some() => break,
                Ok(_) | Err(_) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Ok(_) => {
                    self.end_all(Signal::KILL).await;
                    return Err(ProcessError::Ended(self.last_words()));
                }
                Err(error) => {
                    self.end_all(Signal::KILL).await;
                    return Err(ProcessError::Silent(error));
                }
            }
        }
        self.child = Some(child);
        Ok(())
    }

    /// Ends HAProxy with all its workers, whichever process started it.
    pub async fn stop(&mut self) {
        self.end_all(Signal::TERM).await;
        self.reap();
    }

    /// Returns the last lines of HAProxy's log, as one line.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let alerts: Vec<&str> = text.lines().filter(|line| line.contains("[ALERT]")).collect();
        let lines = if alerts.is_empty() { text.lines().collect() } else { alerts };
        lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join("; ")
    }

    /// Truncates HAProxy's log if it exceeds its limit.
    pub fn bound_log(&self) {
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_LIMIT) {
            // HAProxy appends, so it continues at the start. A failure to truncate is no reason to stop.
            let _ = fs::File::options().write(true).open(&self.log).and_then(|log| log.set_len(0));
        }
    }

    /// Reaps the master if it has ended.
    fn reap(&mut self) {
        if let Some(child) = &mut self.child {
            if !matches!(child.try_wait(), Ok(None)) {
                self.child = None;
            }
        }
    }

    async fn end_all(&mut self, signal: Signal) {
        let mut processes = self.processes();
        processes.append(&mut self.known);
        processes.iter().for_each(|process| process.signal(signal));
        let deadline = Instant::now() + STOP_TIMEOUT;
        while processes.iter().any(Held::is_alive) {
            if Instant::now() >= deadline {
                processes.iter().for_each(|process| process.signal(Signal::KILL));
            }
            self.reap();
            sleep(LOOK_EVERY).await;
        }
        self.reap();
    }

    /// Returns all processes of this proxy's HAProxy: master and workers have the same command line.
    fn processes(&self) -> Vec<Held> {
        let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
        folder
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| hold(pid, self.cli.path()))
            .filter(Held::is_alive)
            .collect()
    }
}

/// Kills a worker, if it belongs to this HAProxy.
pub fn end_worker(pid: u32, socket: &Path) -> bool {
    let held = hold(pid, socket);
    if let Some(worker) = &held {
        worker.signal(Signal::TERM);
    }
    held.is_some()
}

/// Opens a process, if its command line names this master socket.
fn hold(pid: u32, socket: &Path) -> Option<Held> {
    let is_ours = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0);
        words.find(|word| *word == b"-S")?;
        let name = words.next()?.split(|byte| *byte == b',').next()?;
        (name == socket.as_os_str().as_bytes()).then_some(())
    };
    // A pidfd for each process of the machine would be expensive: check, then open, then check again.
    is_ours()?;
    let fd = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    is_ours()?;
    Some(Held { pid, fd })
}
