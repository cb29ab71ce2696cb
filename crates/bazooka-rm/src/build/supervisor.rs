//! The process between bazooka-rm and a build's step: whatever the step starts ends with it.
//!
//! Owns the step's descendants: as their subreaper it inherits those whose parents have gone, however they
//! detach. Its standard input is a pipe from bazooka-rm, whose end says that the step is to end at once, be
//! it because the push has gone or because bazooka-rm has.
//!
//! ```text
//! running ──step exits──▶ ending (kill what is left) ──nothing left──▶ exit with the step's status
//!    └──input ends──────▶ ending
//! ```

use std::{
    ffi::OsString,
    io::Read,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

/// The name by which the program is told to be a supervisor.
pub const NAME: &str = "bazooka-build";

/// The exit status that says that the step could not be started; the cause is on standard error.
pub const CANT_START: i32 = 127;

/// How often what is left is killed while it goes on to fork.
const KILL_EVERY: Duration = Duration::from_millis(5);

static ENDING: AtomicBool = AtomicBool::new(false);

/// Runs the step that the arguments name, and returns its exit status, as a shell would give it.
pub fn run(mut args: impl Iterator<Item = OsString>) -> i32 {
    let Some(program) = args.next() else { return 2 };
    if let Err(error) = prctl::set_child_subreaper(true) {
        eprintln!("bazooka-build: {error}");
        return CANT_START;
    }
    std::thread::spawn(|| {
        let mut nothing = [0; 64];
        // Whatever comes, the end of it is what counts.
        while std::io::stdin().read(&mut nothing).is_ok_and(|n| n > 0) {}
        ENDING.store(true, Ordering::SeqCst);
        kill_for_ever();
    });
    let step = Command::new(&program).args(args).stdin(Stdio::null()).process_group(0).spawn();
    let step = match step {
        Ok(step) => Pid::from_raw(i32::try_from(step.id()).expect("the kernel's process ids fit")),
        Err(error) => {
            eprintln!("{}: {error}", program.to_string_lossy());
            return CANT_START;
        }
    };
    let mut status = 0;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == step => {
                status = code;
                end_the_rest();
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == step => {
                status = 128 + signal as i32;
                end_the_rest();
            }
            Ok(_) | Err(Errno::EINTR) => {}
            // No child is left.
            Err(_) => return status,
        }
    }
}

/// Describes how a supervisor ended.
pub fn describe(status: std::process::ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) if code > 128 => match Signal::try_from(code - 128) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("exited with status {code}"),
        },
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The step has ended: what it left behind goes too.
fn end_the_rest() {
    if !ENDING.swap(true, Ordering::SeqCst) {
        std::thread::spawn(kill_for_ever);
    }
}

/// Kills all descendants, again and again: the process exits once none is left to wait for.
fn kill_for_ever() {
    loop {
        for pid in descendants(getpid()) {
            // It may have ended meanwhile. Its id isn't another's: nobody but this process reaps it, or its
            // own parent, which is a descendant that was killed just before.
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(KILL_EVERY);
    }
}

/// All descendants of a process, parents first.
fn descendants(of: Pid) -> Vec<Pid> {
    let mut pairs = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return pairs.into_iter().map(|(pid, _)| pid).collect();
    };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        // The name stands in parentheses and may hold anything; the parent is the second field after it.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        if let Some(parent) = parent {
            pairs.push((Pid::from_raw(pid), Pid::from_raw(parent)));
        }
    }
    let mut found = vec![of];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(pairs.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}
