//! The process between bazooka-rm and a build's step: all processes that the step starts end with it.
//!
//! Owns the step from its start to the end of its last process. It starts the step as bazooka-shim starts an instance,
//! in a sandbox if the build has one, and kills what is left. As the subreaper it inherits processes whose parents have
//! ended, however they detach.
//!
//! ```text
//! stdin    one line: what to start, as in bazooka_sandbox::protocol. When stdin closes, because the pusher has left or
//!          bazooka-rm has ended, the step ends at once
//! stderr   the step's output
//! stdout   one line at the end: how the step ended, or why it couldn't be started
//!
//! running ──step exits──▶ ending (kill what is left) ──nothing left──▶ answer
//!    └──input ends──────▶ ending
//! ```

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use bazooka_daemon::in_words;
use bazooka_sandbox::{
    family::{kill_children, signal_all},
    groups::{kill as kill_groups, out_of_memory, remove as remove_groups},
    init::{Heard, InitSocket},
    ipc,
    launch::{LaunchError, Launched, launch, remove},
    machine::now_us,
    protocol::{ExitRecord, Group, LaunchSpec},
    shim::{Ends, record},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, setsid},
};
use serde::{Deserialize, Serialize};

/// The program's name in its role as supervisor.
pub const NAME: &str = "bazooka-build";

/// The interval at which remaining processes are killed while they go on to fork.
const KILL_EVERY: Duration = Duration::from_millis(5);

/// The number of rounds of killing after which the remaining processes are treated as ones that keep forking.
const STUBBORN_ROUNDS: u32 = 20;

/// A supervisor's answer at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The step has ended, and none of its processes is left.
    Ended(ExitRecord),
    /// The step couldn't be started; with the cause in one line.
    Failed(String),
}

/// The reasons why a step can't be supervised.
#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    #[error("can't use its own streams")]
    Streams(#[source] std::io::Error),
    #[error("bazooka-rm has gone")]
    Abandoned,
    #[error("can't read what to start")]
    Spec(#[source] serde_json::Error),
    #[error("can't {action}")]
    System { action: &'static str, source: Errno },
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Supervises the step that standard input describes, and returns an exit status.
pub fn run() -> i32 {
    let (answer, status) = match supervise() {
        Ok(exit) => (Answer::Ended(exit), 0),
        Err(cause) => (Answer::Failed(in_words(&cause)), 1),
    };
    // If bazooka-rm has ended, nobody reads the answer.
    let _ = serde_json::to_writer(std::io::stdout(), &answer);
    status
}

fn supervise() -> Result<ExitRecord, SuperviseError> {
    let failed = |action: &'static str| move |source| SuperviseError::System { action, source };
    let copy = |fd: std::io::Result<OwnedFd>| fd.map_err(SuperviseError::Streams);
    let mut life = File::from(copy(std::io::stdin().as_fd().try_clone_to_owned())?);
    let spec = spec_from(&mut life)?;
    // Leaves the terminal's process group, whose signals are not for builds: bazooka-rm decides when a build ends.
    let _ = setsid();
    prctl::set_child_subreaper(true).map_err(failed("become the subreaper"))?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(failed("block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(failed("receive signals"))?;

    let groups = spec.all_groups();
    // A group that a killed supervisor left still has the counters of that supervisor's step.
    remove_groups(&groups);
    let output = || copy(std::io::stderr().as_fd().try_clone_to_owned());
    let begun = Instant::now();
    let launched = launch(&spec, &groups, Ends { out: output()?, err: output()? });
    let Launched { child, command, init } = launched?;
    let mut step = Step { child, command, init, groups: &groups, ended: None };
    step.watch_over(&signals, &mut life)?;

    let mut exit =
        step.ended.map_or_else(ExitRecord::default, |status| record(status, now_us(), begun.elapsed()));
    if let Some(known) = out_of_memory(&groups) {
        exit.out_of_memory = true;
        exit.memory_limit_bytes = known.limit_bytes;
        exit.memory_peak_bytes = known.peak_bytes;
    }
    remove(&spec, &groups);
    // In a sandbox these have gone with its namespace.
    if let (Some(uid), None) = (spec.uid, &spec.sandbox) {
        ipc::remove_of(uid);
    }
    Ok(exit)
}

/// Reads the first line of the input.
fn spec_from(life: &mut File) -> Result<LaunchSpec, SuperviseError> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while !line.ends_with(b"\n") {
        match life.read(&mut piece) {
            Ok(n @ 1..) => line.extend_from_slice(&piece[..n]),
            _ => return Err(SuperviseError::Abandoned),
        }
    }
    serde_json::from_slice(&line).map_err(SuperviseError::Spec)
}

struct Step<'a> {
    /// The child whose end is the end of the whole step, if it is in a sandbox.
    child: Pid,
    /// The step's first process; the same as `child` without a sandbox.
    command: Pid,
    init: Option<InitSocket>,
    groups: &'a [Group],
    /// The wait status of the first process, once it has ended.
    ended: Option<WaitStatus>,
}

impl Step<'_> {
    /// Waits until none of the step's processes is left.
    fn watch_over(&mut self, signals: &SignalFd, life: &mut File) -> Result<(), SuperviseError> {
        let mut given_up = false;
        let mut rounds = 0;
        loop {
            {
                let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                fds.extend(
                    self.init.iter().map(|init| PollFd::new(init.socket().as_fd(), PollFlags::POLLIN)),
                );
                if !given_up {
                    fds.push(PollFd::new(life.as_fd(), PollFlags::POLLIN));
                }
                let wait = u16::try_from(KILL_EVERY.as_millis()).expect("it is a few milliseconds");
                let wait = if rounds > 0 { PollTimeout::from(wait) } else { PollTimeout::NONE };
                match poll(&mut fds, wait) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(source) => return Err(SuperviseError::System { action: "wait for events", source }),
                }
                let last = fds.last().and_then(PollFd::revents);
                // Any data on the input is ignored; only its end counts.
                let said = !given_up && last.is_some_and(|events| !events.is_empty());
                drop(fds);
                given_up |= said && !life.read(&mut [0; 64]).is_ok_and(|n| n > 0);
            }
            while let Ok(Some(_)) = signals.read_signal() {}
            self.hear();
            if self.reap() {
                return Ok(());
            }
            if given_up || self.ended.is_some() {
                kill_groups(self.groups);
                if rounds == 0 {
                    signal_all(Signal::SIGKILL);
                } else {
                    kill_children(rounds > STUBBORN_ROUNDS);
                }
                rounds += 1;
            }
        }
    }

    /// Reads the sandbox's report on the first process, if there is one.
    fn hear(&mut self) {
        let Some(init) = &mut self.init else { return };
        match init.ended(self.command) {
            Heard::NotYet => return,
            Heard::Ended(status, _) => self.ended = Some(status),
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
                    // The build's last report may be unread.
                    self.hear();
                    self.ended.get_or_insert(status);
                }
                Ok(_) => {}
                Err(Errno::ECHILD) => return true,
                Err(_) => return false,
            }
        }
    }
}
