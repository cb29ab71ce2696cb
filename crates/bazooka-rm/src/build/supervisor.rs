//! The process between bazooka-rm and a build's step: whatever the step starts ends with it.
//!
//! Owns the step from its start to the last of its processes: starts it as bazooka-shim starts an instance, in its
//! sandbox where it has one, and ends what is left. As their subreaper it inherits those whose parents have gone, however
//! they detach.
//!
//! ```text
//! stdin    a line: what to start, as of bazooka_sandbox::protocol; its end says that the step is to end at once, be it
//!          because the push has gone or because bazooka-rm has
//! stderr   what the step prints
//! stdout   a line, at the end: how it ended, or why it couldn't be started
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
    groups::{out_of_memory, remove as remove_groups},
    init::{Heard, InitSocket},
    launch::{Launched, launch},
    machine::now_us,
    protocol::{ExitRecord, LaunchSpec},
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

/// The name by which the program is told to be a supervisor.
pub const NAME: &str = "bazooka-build";

/// How often what is left is killed while it goes on to fork.
const KILL_EVERY: Duration = Duration::from_millis(5);

/// After so many rounds of killing, what is left is taken for something that multiplies.
const STUBBORN_ROUNDS: u32 = 20;

/// What a supervisor says in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The step has ended, and nothing of it is left.
    Ended(ExitRecord),
    /// It couldn't be started: why, in one line.
    Failed(String),
}

/// Supervises the step that it is told of, and returns an exit status.
pub fn run() -> i32 {
    let (answer, status) = match supervise() {
        Ok(exit) => (Answer::Ended(exit), 0),
        Err(cause) => (Answer::Failed(cause), 1),
    };
    // Nobody hears it if bazooka-rm has gone.
    let _ = serde_json::to_writer(std::io::stdout(), &answer);
    status
}

fn supervise() -> Result<ExitRecord, String> {
    let failed = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let copy =
        |fd: std::io::Result<OwnedFd>| fd.map_err(|error| format!("can't use its own streams: {error}"));
    let mut life = File::from(copy(std::io::stdin().as_fd().try_clone_to_owned())?);
    let spec = told_by(&mut life)?;
    // A signal to the terminal's group isn't for us: bazooka-rm says when a build ends.
    let _ = setsid();
    prctl::set_child_subreaper(true).map_err(failed("can't become the subreaper"))?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(failed("can't block signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(failed("can't receive signals"))?;

    let groups = spec.all_groups();
    // What a supervisor that was killed left has counted already.
    remove_groups(&groups);
    let output = || copy(std::io::stderr().as_fd().try_clone_to_owned());
    let begun = Instant::now();
    let launched = launch(&spec, &groups, Ends { out: output()?, err: output()? });
    let Launched { child, command, init } = launched.map_err(|error| in_words(&error))?;
    let mut step = Step { child, command, init, ended: None };
    step.watch_over(&signals, &mut life)?;

    let mut exit =
        step.ended.map_or_else(ExitRecord::default, |status| record(status, now_us(), begun.elapsed()));
    if let Some(known) = out_of_memory(&groups) {
        exit.out_of_memory = true;
        exit.memory_limit_bytes = known.limit_bytes;
        exit.memory_peak_bytes = known.peak_bytes;
    }
    remove_groups(&groups);
    Ok(exit)
}

/// The first line of the input.
fn told_by(life: &mut File) -> Result<LaunchSpec, String> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while !line.ends_with(b"\n") {
        match life.read(&mut piece) {
            Ok(n @ 1..) => line.extend_from_slice(&piece[..n]),
            _ => return Err("bazooka-rm has gone".to_owned()),
        }
    }
    serde_json::from_slice(&line).map_err(|error| format!("can't read what to start: {error}"))
}

struct Step {
    /// With this one all has ended, where it has a sandbox.
    child: Pid,
    /// Its first process; the same, unless it is in a sandbox.
    command: Pid,
    init: Option<InitSocket>,
    /// How its first process ended.
    ended: Option<WaitStatus>,
}

impl Step {
    /// Until no process of it is left.
    fn watch_over(&mut self, signals: &SignalFd, life: &mut File) -> Result<(), String> {
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
                    Err(error) => return Err(format!("can't wait for events: {error}")),
                }
                let last = fds.last().and_then(PollFd::revents);
                // Whatever comes, the end of it is what counts.
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
                if rounds == 0 {
                    signal_all(Signal::SIGKILL);
                } else {
                    kill_children(rounds > STUBBORN_ROUNDS);
                }
                rounds += 1;
            }
        }
    }

    /// Takes up what is said of the first process.
    fn hear(&mut self) {
        let Some(init) = &mut self.init else { return };
        match init.ended(self.command) {
            Heard::NotYet => return,
            Heard::Ended(status) => self.ended = Some(status),
            Heard::Silence => {}
        }
        self.init = None;
    }

    /// Takes up what has ended; says whether nothing is left.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return false,
                Ok(status) if status.pid() == Some(self.child) => {
                    // What it said last may not have been heard yet.
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
