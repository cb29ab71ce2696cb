//! HAProxy's process, where bazooka-proxy runs it.
//!
//! Owns starting, adopting and ending HAProxy. HAProxy is started in a process group of its own, so it continues when
//! bazooka-proxy ends for whatever reason. After a restart, bazooka-proxy finds HAProxy by its command line, which
//! names the master socket in this proxy's own folder. It signals a process through a pidfd that it opened before
//! reading the command line, so a reused process id is never hit.
//!
//! A process that can't be looked at is not gone: this process may lack a descriptor, or the right to look. Only the
//! kernel's own "no such process" counts as an end.
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
    io::Errno,
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
    /// This machine's processes can't be looked at, so an earlier HAProxy may still run.
    #[error("can't tell whether an earlier HAProxy still runs; nothing was ended or started")]
    Unseen(#[source] io::Error),
}

/// The presence of a process.
#[derive(Debug)]
pub enum Presence {
    /// The process runs.
    Running,
    /// The kernel says that there is no such process.
    Gone,
    /// The process can't be looked at: it may run.
    Unknown(io::Error),
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
        // A pidfd becomes readable when its process has ended, reaped or not. A failed look says nothing.
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
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

    /// Tells whether this master is there, even if it doesn't answer. Without a master: whether any process of this
    /// HAProxy is.
    pub fn presence(&mut self, master: Option<u32>) -> Presence {
        self.reap();
        let found = match master {
            Some(pid) => hold(pid, self.cli.path()).map(|held| held.is_some_and(|master| master.is_alive())),
            None => self.processes().map(|all| !all.is_empty()),
        };
        match found {
            Ok(true) => Presence::Running,
            Ok(false) => Presence::Gone,
            Err(error) => Presence::Unknown(error),
        }
    }

    /// Remembers these processes, so that their end can be awaited.
    pub fn remember(&mut self, pids: impl IntoIterator<Item = u32>) {
        self.known.retain(Held::is_alive);
        for pid in pids {
            if !self.known.iter().any(|held| held.pid == pid) {
                // A process that can't be held now is found by its command line when it is to be ended.
                self.known.extend(hold(pid, self.cli.path()).ok().flatten());
            }
        }
    }

    /// Kills all remaining processes of this HAProxy.
    ///
    /// # Errors
    /// [`ProcessError::Unseen`]; nothing was ended then.
    pub async fn clear(&mut self) -> Result<(), ProcessError> {
        self.end_all(Signal::KILL).await.map_err(ProcessError::Unseen)
    }

    /// Starts HAProxy with the current file, after killing all processes of an earlier one.
    ///
    /// # Errors
    /// If HAProxy doesn't start; none of its processes is left then, unless they can't be looked at.
    pub async fn start(&mut self) -> Result<(), ProcessError> {
        self.clear().await?;
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
                    self.clear().await?;
                    return Err(ProcessError::Ended(self.last_words()));
                }
                Err(error) => {
                    self.clear().await?;
                    return Err(ProcessError::Silent(error));
                }
            }
        }
        self.child = Some(child);
        Ok(())
    }

    /// Ends HAProxy with all its workers, whichever process started it.
    ///
    /// # Errors
    /// [`ProcessError::Unseen`]; nothing was ended then.
    pub async fn stop(&mut self) -> Result<(), ProcessError> {
        let ended = self.end_all(Signal::TERM).await;
        self.reap();
        ended.map_err(ProcessError::Unseen)
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

    async fn end_all(&mut self, signal: Signal) -> io::Result<()> {
        let mut processes = self.processes()?;
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
        Ok(())
    }

    /// Returns all processes of this proxy's HAProxy: master and workers have the same command line.
    ///
    /// # Errors
    /// If one that may be its can't be looked at.
    fn processes(&self) -> io::Result<Vec<Held>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match hold(pid, self.cli.path()) {
                Ok(held) => found.extend(held.filter(Held::is_alive)),
                // Another user's process is closed to this one (`hidepid`), and so is no HAProxy that it started.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Kills a worker, if it belongs to this HAProxy. Returns false if it doesn't, or can't be looked at.
pub fn end_worker(pid: u32, socket: &Path) -> bool {
    let held = hold(pid, socket).ok().flatten();
    if let Some(worker) = &held {
        worker.signal(Signal::TERM);
    }
    held.is_some()
}

/// Opens a process, if its command line names this master socket; none if there is no such process.
///
/// # Errors
/// If the process can't be looked at.
fn hold(pid: u32, socket: &Path) -> io::Result<Option<Held>> {
    // A pidfd for each process of the machine would be expensive: check, then open, then check again.
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    if !is_of(pid, socket)? {
        return Ok(None);
    }
    let fd = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(is_of(pid, socket)?.then_some(Held { pid, fd }))
}

/// Reports whether a process's command line names this master socket; false if there is no such process.
fn is_of(pid: u32, socket: &Path) -> io::Result<bool> {
    let line = match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => line,
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut words = line.split(|byte| *byte == 0);
    let named = words.find(|word| *word == b"-S").and_then(|_| words.next());
    let named = named.and_then(|word| word.split(|byte| *byte == b',').next());
    Ok(named == Some(socket.as_os_str().as_bytes()))
}

/// Reports whether an error of looking at a process says that there is none. `/proc` says it in two ways: the folder is
/// missing, or the process ended while its file was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    /// Uses up this process's descriptors while it lives. nextest runs each test in a process of its own.
    struct Shortage {
        _held: Vec<fs::File>,
        before: (u64, u64),
    }

    impl Shortage {
        fn new() -> Shortage {
            let before = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked");
            setrlimit(Resource::RLIMIT_NOFILE, 64, before.1).expect("a soft limit can be lowered");
            let held = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
            Shortage { _held: held, before }
        }
    }

    impl Drop for Shortage {
        fn drop(&mut self) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, self.before.0, self.before.1);
        }
    }

    #[tokio::test]
    async fn a_haproxy_that_cannot_be_looked_at_is_neither_gone_nor_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("master.sock");
        // Any program whose command line names the socket as HAProxy's does.
        let mut stand_in = std::process::Command::new("sh")
            .args(["-c", "sleep 600", "haproxy", "-S"])
            .arg(&socket)
            .spawn()
            .expect("sh is there");
        let pid = stand_in.id();
        let path = |name: &str| folder.path().join(name);
        let mut process =
            Process::new("haproxy".into(), path("haproxy.cfg"), path("log"), Cli::new(socket.clone()));
        while !matches!(process.presence(Some(pid)), Presence::Running) {
            sleep(LOOK_EVERY).await;
        }
        assert!(matches!(process.presence(None), Presence::Running));
        {
            let _shortage = Shortage::new();
            for master in [Some(pid), None] {
                let seen = process.presence(master);
                assert!(matches!(seen, Presence::Unknown(_)), "{master:?}: {seen:?}");
            }
            let cleared = process.clear().await;
            assert!(matches!(cleared, Err(ProcessError::Unseen(_))), "{cleared:?}");
        }
        assert!(stand_in.try_wait().expect("it is ours").is_none(), "it runs on");
        assert!(matches!(process.presence(Some(pid)), Presence::Running));
        stand_in.kill().expect("it is ours");
        stand_in.wait().expect("it is ours");
        assert!(matches!(process.presence(Some(pid)), Presence::Gone));
    }
}
