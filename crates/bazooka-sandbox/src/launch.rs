//! How an instance's first process comes to be: the seam at which isolation is chosen.
//!
//! Owns everything between fork and exec of a plain process; [`crate::init`] has the rest.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::PathBuf,
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
    groups::{self, GroupError},
    init::{self, InitError, InitSocket},
    protocol::{Group, LaunchSpec},
    shim::Ends,
};

/// How many files a process may have open, where the hard limit allows it.
const OPEN_FILES: u64 = 65_536;

/// What runs, once it has been started.
pub struct Launched {
    /// The shim's own child: with it all ends.
    pub child: Pid,
    /// The instance's first process; the same, unless it is in a sandbox.
    pub command: Pid,
    /// Who says how that ended, where it isn't the shim's child.
    pub init: Option<InitSocket>,
}

/// Why an instance's first process can't be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum LaunchError {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Sandbox(#[from] InitError),
    #[error("can't start /bin/sh in {}", folder.display())]
    Plain { folder: PathBuf, source: io::Error },
}

/// Starts an instance's first process, which dies with the shim.
///
/// # Errors
/// [`LaunchError`]; nothing of it is left then.
pub fn launch(spec: &LaunchSpec, groups: &[Group], ends: Ends) -> Result<Launched, LaunchError> {
    let launched = groups::make(groups).map_err(LaunchError::from).and_then(|()| match &spec.sandbox {
        Some(sandbox) => Ok(init::launch(spec, sandbox, groups, ends)?),
        None => plain(spec, groups, ends),
    });
    launched.inspect_err(|_| groups::remove(groups))
}

/// What holds for every process, as for one that systemd starts.
///
/// # Errors
/// The kernel's.
pub fn common_limits() -> nix::Result<()> {
    for (resource, wanted) in [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, OPEN_FILES)] {
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, wanted.min(hard), hard)?;
    }
    take_short_turns();
    Ok(())
}

/// How long a process may go on before another that is due gets the processor, in nanoseconds.
///
/// The kernel's own 3 ms are what a neighbour that answers requests waits for, at each of its wake-ups, beside
/// one that is always busy. The kernel takes 0.1 to 100 ms.
const TURN_NS: u64 = 500_000;

/// Lets go of the processor soon where others wait for it; what it forks does too. Its share stays as it is.
///
/// Linux before 6.12 takes the call and does nothing of the kind.
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

/// A process of its own: own session and group, own user where one is given, limited where wanted.
fn plain(spec: &LaunchSpec, groups: &[Group], ends: Ends) -> Result<Launched, LaunchError> {
    let procs: Vec<_> = groups.iter().map(|group| group.folder.join("cgroup.procs")).collect();
    let own_id = Pid::this();
    let (uid, processes) = (spec.uid, spec.processes);
    let mut command = Command::new("/bin/sh");
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
        // After the change of user, which clears it.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The shim may have died before that.
        if getppid() != own_id {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: the shim has one thread, so that whatever the closure calls finds no lock held.
    #[allow(unsafe_code, reason = "what is set between fork and exec can't be set otherwise")]
    unsafe {
        command.pre_exec(between);
    }
    let child =
        command.spawn().map_err(|source| LaunchError::Plain { folder: spec.folder.clone(), source })?;
    // Reaped by the shim's own loop: std's handle would only get in the way.
    let child = Pid::from_raw(i32::try_from(child.id()).expect("Linux process ids fit"));
    Ok(Launched { child, command: child, init: None })
}
