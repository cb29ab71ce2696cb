//! The shim: a small process, one for each start of an instance, that outlives its bazooka-pm.
//!
//! Owns the instance's processes from the first to the last: starts the instance, stores its output, ends it, kills
//! what it leaves behind, and writes how it ended. It never decides whether to start anything again, and communicates
//! only by the file and socket of [`crate::protocol`].
//!
//! ```text
//! starting ─▶ running ──SIGTERM──▶ stopping ──all gone, or time is up──▶ clearing ─▶ gone
//!                └──────its first process ended, or SIGUSR1──────────────▶┘
//! ```
//!
//! If the shim itself is killed, the kernel kills the instance's first process (parent-death signal), and bazooka-pm
//! cleans up the rest.

mod output;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, RawFd},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use visor::deadlines::{LEASE_LOOK, STOP_BEFORE_LEASE_ENDS, STOP_ON_PARTITION};

pub use output::Ends;

use crate::{
    family,
    files::{append, read_file},
    groups::{self, out_of_memory},
    in_one_line,
    init::{Full, Heard, InitSocket},
    ipc,
    launch::{self, LaunchError, Launched, launch},
    machine::{boot_clock_ms, boot_id, now_us},
    protocol::{Answer, ExitRecord, Group, LaunchSpec, PROTOCOL, ProcessId, ShimState, Start},
};
use output::{Output, OutputError};

/// The pause between two rounds of killing. Each round kills the processes that appeared meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The number of rounds of killing after which the remaining processes are assumed to multiply.
const STUBBORN_ROUNDS: u32 = 20;

/// The reason why a shim can't do its work.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error("the shim can't read what it is to start")]
    Spec,
    #[error("can't receive its environment")]
    Hear(#[source] io::Error),
    #[error("bazooka-pm sent only a part of its environment")]
    HalfEnv,
    #[error("can't use its own {what}")]
    Stream { what: &'static str, source: io::Error },
    #[error("can't write to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{what}")]
    Kernel { what: &'static str, source: Errno },
    #[error("/proc doesn't show the shim")]
    NoProc,
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Runs a shim, from its start to its end.
pub fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("bazooka-shim is started by bazooka-pm, with the file of a start");
        return ExitCode::from(2);
    };
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = in_one_line(&error);
            eprintln!("{cause}");
            answer(&Answer::Failed { cause });
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path) -> Result<(), ShimError> {
    close_others(&[]);
    let mut spec = Start::<LaunchSpec>::read(path).spec.ok_or(ShimError::Spec)?;
    if spec.env_apart {
        spec.env = hear_env()?;
    }
    // bazooka-pm opened and locked the file before it spawned the shim.
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let file = File::from(stdin.map_err(|source| ShimError::Stream { what: "stdin", source })?);
    let write = |start: &Start<LaunchSpec>| {
        append(&file, start).map_err(|source| ShimError::Write { path: path.to_owned(), source })
    };
    let failed = |what: &'static str| move |source: Errno| ShimError::Kernel { what, source };
    // A new session keeps signals to the terminal's process group away. The call fails only for a group's leader,
    // which gets none anyway.
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true).map_err(failed("can't become the subreaper"))?;
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        mask.add(signal);
    }
    mask.thread_block().map_err(failed("can't block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(failed("can't receive signals"))?;
    let own_id = i32::try_from(std::process::id()).expect("Linux process ids fit");
    let mut state = ShimState {
        protocol: PROTOCOL,
        boot_id: boot_id(),
        shim: ProcessId::of(own_id).ok_or(ShimError::NoProc)?,
        child: None,
        started_us: 0,
    };
    write(&Start { shim: Some(state.clone()), ..Start::default() })?;

    let (mut output, ends) = Output::open(&spec.log_folder)?;
    let groups = spec.all_groups();
    let Launched { child, command, init } = launch(&spec, &groups, ends)?;
    // The run begins with the command: on a busy machine a sandbox may take longer than a job must live.
    let begun = Instant::now();
    state.started_us = now_us();
    state.child = ProcessId::of(command.as_raw());
    write(&Start { shim: Some(state.clone()), ..Start::default() })?;
    output.say("started");
    answer(&Answer::Started(state));

    let mut shim = Shim {
        child,
        command,
        init,
        begun,
        stop_timeout: Duration::from_millis(spec.stop_timeout_ms),
        lease_file: spec.lease_file.clone(),
        groups: &groups,
        ended: None,
        full: Full::default(),
        partitioned: false,
        phase: Phase::Running,
    };
    shim.watch_over(&signals, &mut output)?;
    output.drain();

    let mut exit =
        shim.ended.map_or_else(ExitRecord::default, |(status, at_us, ran)| record(status, at_us, ran));
    exit.partitioned = shim.partitioned;
    (exit.app_full, exit.tmp_full) = (shim.full.app, shim.full.tmp);
    if let Some(known) = out_of_memory(&groups) {
        exit.out_of_memory = true;
        exit.memory_limit_bytes = known.limit_bytes;
        exit.memory_peak_bytes = known.peak_bytes;
    }
    launch::remove(&spec, &groups);
    // In a sandbox these have gone with its namespace.
    if let (Some(uid), None) = (spec.uid, &spec.sandbox) {
        ipc::remove_of(uid);
    }
    output.say(&in_words(&exit));
    output.finish();
    write(&Start { exit: Some(exit), ..Start::default() })
}

/// The phase of the instance.
enum Phase {
    Running,
    /// The instance was told to end. Processes left at `until` are killed.
    Stopping {
        until: Instant,
    },
    /// All remaining processes are being killed.
    Clearing {
        rounds: u32,
    },
}

struct Shim<'a> {
    /// The shim's own child. When it has ended, the whole instance has.
    child: Pid,
    /// The instance's first process: `child` itself, or in a sandbox a child of it.
    command: Pid,
    init: Option<InitSocket>,
    begun: Instant,
    stop_timeout: Duration,
    lease_file: Option<PathBuf>,
    groups: &'a [Group],
    /// The exit of its first process, the time of that (microseconds since 1970), and the length of the run.
    ended: Option<(WaitStatus, u64, Duration)>,
    /// The disks that had no room left then.
    full: Full,
    partitioned: bool,
    phase: Phase,
}

impl Shim<'_> {
    /// Supervises the instance until no process of it is left.
    fn watch_over(&mut self, signals: &SignalFd, output: &mut Output) -> Result<(), ShimError> {
        loop {
            let timeout = self.next_look(output);
            let ready = {
                let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                let init = self.init.iter().map(|init| init.socket().as_fd());
                fds.extend(output.open_ends().chain(init).map(|end| PollFd::new(end, PollFlags::POLLIN)));
                match poll(&mut fds, timeout) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(source) => return Err(ShimError::Kernel { what: "can't wait for events", source }),
                }
                fds[1..].iter().any(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            };
            if ready {
                output.read();
            }
            while let Ok(Some(info)) = signals.read_signal() {
                match Signal::try_from(i32::try_from(info.ssi_signo).unwrap_or(0)) {
                    Ok(Signal::SIGTERM) => self.stop(self.stop_timeout),
                    Ok(Signal::SIGUSR1) => self.clear(),
                    // SIGCHLD only asks for reaping, which happens anyway. The other signals are ignored.
                    _ => {}
                }
            }
            self.look_at_lease();
            self.hear();
            if self.reap() {
                return Ok(());
            }
            self.go_on();
            output.tick();
        }
    }

    /// Reads from init how the instance's first process ended.
    fn hear(&mut self) {
        let Some(init) = &mut self.init else { return };
        match init.ended(self.command) {
            Heard::NotYet => return,
            Heard::Ended(status, full) => {
                self.ended = Some((status, now_us(), self.begun.elapsed()));
                self.full = full;
            }
            Heard::Silence => {}
        }
        self.init = None;
    }

    /// Reaps ended processes. Returns true if none is left.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return false,
                Ok(status) if status.pid() == Some(self.child) => {
                    // Init's last message may not have been read yet.
                    self.hear();
                    self.ended.get_or_insert_with(|| (status, now_us(), self.begun.elapsed()));
                }
                Ok(_) => {}
                Err(Errno::ECHILD) => return true,
                Err(_) => return false,
            }
        }
    }

    fn go_on(&mut self) {
        match self.phase {
            // Processes that outlive the first process don't make an instance.
            Phase::Running if self.ended.is_some() => self.clear(),
            Phase::Running => {}
            Phase::Stopping { until } if Instant::now() >= until => self.clear(),
            Phase::Stopping { .. } => {}
            Phase::Clearing { ref mut rounds } => {
                *rounds += 1;
                groups::kill(self.groups);
                family::kill_children(*rounds > STUBBORN_ROUNDS);
            }
        }
    }

    fn stop(&mut self, grace: Duration) {
        if matches!(self.phase, Phase::Running) {
            family::signal_all(Signal::SIGTERM);
            self.phase = Phase::Stopping { until: Instant::now() + grace };
        }
    }

    fn clear(&mut self) {
        if !matches!(self.phase, Phase::Clearing { .. }) {
            groups::kill(self.groups);
            family::signal_all(Signal::SIGKILL);
            self.phase = Phase::Clearing { rounds: 0 };
        }
    }

    fn look_at_lease(&mut self) {
        let Some(file) = &self.lease_file else { return };
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        // An unreadable file doesn't mean that the lease has ended; bazooka-pm replaces the file atomically.
        let Some(until) = read_file::<u64>(file) else { return };
        let margin = u64::try_from(STOP_BEFORE_LEASE_ENDS.as_millis()).expect("it is a few seconds");
        if boot_clock_ms() + margin >= until {
            self.partitioned = true;
            self.stop(self.stop_timeout.min(STOP_ON_PARTITION));
        }
    }

    /// Returns the time for which nothing needs to be done without an event.
    fn next_look(&self, output: &Output) -> PollTimeout {
        let own = match self.phase {
            Phase::Running => self.lease_file.as_ref().map(|_| LEASE_LOOK),
            Phase::Stopping { until } => Some(until.saturating_duration_since(Instant::now())),
            Phase::Clearing { .. } => Some(LOOK_AGAIN),
        };
        let Some(wait) = own.into_iter().chain(output.next_look()).min() else { return PollTimeout::NONE };
        // Round up to the next millisecond: waking too early would spin.
        let wait = i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }
}

/// Closes all descriptors but stdin, stdout, stderr and `kept`, so that the instance doesn't inherit them.
pub(crate) fn close_others(kept: &[RawFd]) {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let open = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    // The list includes the descriptor of the folder itself, which is closed by now.
    for fd in open.collect::<Vec<_>>() {
        if fd > 2 && !kept.contains(&fd) {
            let _ = nix::unistd::close(fd);
        }
    }
}

/// Reads the instance's environment from bazooka-pm. If bazooka-pm ends before it has sent all of it, the shim fails
/// and starts nothing.
fn hear_env() -> Result<BTreeMap<String, String>, ShimError> {
    let socket = std::io::stdout().as_fd().try_clone_to_owned();
    let mut socket = File::from(socket.map_err(|source| ShimError::Stream { what: "stdout", source })?);
    let mut text = Vec::new();
    socket.read_to_end(&mut text).map_err(ShimError::Hear)?;
    serde_json::from_slice(&text).map_err(|_| ShimError::HalfEnv)
}

/// Sends bazooka-pm the answer, and closes the socket.
fn answer(answer: &Answer) {
    let line = serde_json::to_string(answer).expect("the protocol's types are always valid JSON");
    let mut stdout = std::io::stdout().lock();
    // If bazooka-pm has gone meanwhile, the next one reads the files.
    let _ = writeln!(stdout, "{line}");
    let _ = stdout.flush();
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

/// Converts an exit to the form that is written down.
pub fn record(status: WaitStatus, at_us: u64, ran: Duration) -> ExitRecord {
    let mut exit = ExitRecord {
        at_us,
        ran_ms: u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
        ..ExitRecord::default()
    };
    match status {
        WaitStatus::Exited(_, code) => exit.code = Some(code),
        WaitStatus::Signaled(_, signal, _) => exit.signal = Some(signal as i32),
        _ => {}
    }
    exit
}

fn mebibytes(bytes: u64) -> String {
    // Rounded up, so that a peak at the limit shows the same number as the limit.
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Describes an exit in words, for logs and causes.
pub fn in_words(exit: &ExitRecord) -> String {
    let mut words = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("", |signal| signal.as_str());
            format!("ended by signal {signal} ({name})")
        }
        (None, None) => "ended in an unknown way".to_owned(),
    };
    if exit.out_of_memory {
        words.push_str(", out of memory");
        let known = [("limit", exit.memory_limit_bytes), ("peak", exit.memory_peak_bytes)];
        let known = known.iter().filter_map(|(what, bytes)| Some(format!("{what} {}", mebibytes((*bytes)?))));
        let known = known.collect::<Vec<_>>().join(", ");
        if !known.is_empty() {
            words.push_str(&format!(": {known}"));
        }
    }
    for (is_full, what, option) in [(exit.app_full, "/app", "--disk"), (exit.tmp_full, "/tmp", "--tmp")] {
        if is_full {
            words.push_str(&format!(", with its {what} full (`bazooka procs set` has {option})"));
        }
    }
    if exit.partitioned {
        words.push_str(", because its host lost touch with the coordinator");
    }
    words
}
