//! The start of an instance's first process, where isolation is chosen.
//!
//! Owns everything between fork and exec of a plain process; [`crate::init`] has the sandboxed one.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
        stat::{Mode, umask},
    },
    unistd::{Gid, Pid, Uid, getppid, setgroups, setresgid, setresuid, setsid},
};

use crate::{
    fence,
    groups::{self, GroupError},
    init::{self, InitError, InitSocket},
    protocol::{Group, LaunchSpec},
    shim::Ends,
};

/// The most files that a process may have open, if the hard limit allows it.
const OPEN_FILES: u64 = 65_536;

/// An instance that has been started.
pub struct Launched {
    /// The shim's own child. When it ends, the whole instance does.
    pub child: Pid,
    /// The instance's first process: `child` itself, or in a sandbox a child of it.
    pub command: Pid,
    /// The socket that reports how `command` ended, if that isn't the shim's child.
    pub init: Option<InitSocket>,
}

/// The reason why an instance's first process can't be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum LaunchError {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Sandbox(#[from] InitError),
    #[error("can't start {} in {}", shell(), folder.display())]
    Plain { folder: PathBuf, source: io::Error },
}

/// Starts an instance's first process, which dies with the shim.
///
/// # Errors
/// [`LaunchError`]; nothing of the instance is left then.
pub fn launch(spec: &LaunchSpec, groups: &[Group], ends: Ends) -> Result<Launched, LaunchError> {
    let launched = groups::make(groups).map_err(LaunchError::from).and_then(|()| match &spec.sandbox {
        Some(sandbox) => Ok(init::launch(spec, sandbox, groups, ends)?),
        None => plain(spec, groups, ends),
    });
    launched.inspect_err(|_| remove(spec, groups))
}

/// Returns the shell that runs commands: bash where the root has it, because people write for it, and because it becomes
/// the command's last program instead of waiting for it. So signals reach that program, and its end is the instance's.
pub fn shell() -> &'static str {
    const BASH: &str = "/bin/bash";
    if Path::new(BASH).exists() { BASH } else { "/bin/sh" }
}

/// Removes what an instance has on the machine beside its processes, of which none is left: its control groups and its
/// private addresses.
pub fn remove(spec: &LaunchSpec, groups: &[Group]) {
    groups::remove(groups);
    if let Some(fence) = spec.sandbox.as_ref().and_then(|sandbox| sandbox.fence.as_ref()) {
        fence::release(fence);
    }
}

/// Sets the limits of every process, as systemd would.
///
/// # Errors
/// The kernel's.
pub fn common_limits() -> nix::Result<()> {
    // The hard limit too: a core dump that a process asks for leaves the sandbox, with its memory, to the machine's
    // collector of dumps.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)?;
    take_short_turns();
    Ok(())
}

/// The processor time, in nanoseconds, after which a process yields to another one that waits.
///
/// With the kernel's own 3 ms, a neighbour that answers requests waits that long at each wake-up beside a process that
/// is always busy. The kernel takes 0.1 to 100 ms.
const TURN_NS: u64 = 500_000;

/// Makes this process and its children yield the processor soon when others wait for it. Their share of the processor
/// stays the same.
///
/// Linux before 6.12 accepts the call and ignores it.
fn take_short_turns() {
    let turn = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).expect("it is small"),
        sched_policy: u32::try_from(libc::SCHED_OTHER).expect("it is 0"),
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: TURN_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads the structure, which lives as long as the call, and keeps nothing of it.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const turn, 0) };
}

/// Starts a process without a sandbox: in its own session and group, as its own user and with limits where the spec
/// has them.
fn plain(spec: &LaunchSpec, groups: &[Group], ends: Ends) -> Result<Launched, LaunchError> {
    let procs: Vec<_> = groups.iter().map(|group| group.folder.join("cgroup.procs")).collect();
    let own_id = Pid::this();
    let (uid, processes) = (spec.uid, spec.processes);
    let mut command = Command::new(shell());
    command
        .arg("-c")
        .arg(&spec.command)
        .current_dir(&spec.folder)
        .env_clear()
        .envs(&spec.env)
        .stdin(Stdio::null())
        .stdout(ends.out)
        .stderr(ends.err);
    let between = move || -> io::Result<()> {
        SigSet::empty().thread_set_mask()?;
        setsid()?;
        umask(Mode::from_bits_truncate(0o022));
        for procs in &procs {
            fs::write(procs, "0")?;
        }
        common_limits()?;
        if let Some(uid) = uid {
            if let Some(most) = processes {
                setrlimit(Resource::RLIMIT_NPROC, most, most)?;
            }
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
            setgroups(&[])?;
            setresgid(group, group, group)?;
            setresuid(user, user, user)?;
        }
        prctl::set_no_new_privs()?;
        // After the change of user, which clears this setting.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The shim may have died before the call above.
        if getppid() != own_id {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: the shim has one thread, so no lock is held that the closure's calls could need.
    #[allow(unsafe_code, reason = "what is set between fork and exec can't be set otherwise")]
    unsafe {
        command.pre_exec(between);
    }
    let child =
        command.spawn().map_err(|source| LaunchError::Plain { folder: spec.folder.clone(), source })?;
    // The shim's own loop reaps the child, so std's handle isn't needed.
    let child = Pid::from_raw(i32::try_from(child.id()).expect("Linux process ids fit"));
    Ok(Launched { child, command: child, init: None })
}
