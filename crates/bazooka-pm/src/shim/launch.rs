//! How an instance's first process comes to be: the seam at which isolation is chosen.
//!
//! Owns everything between fork and exec, and the control group around it.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
        stat::{Mode, umask},
    },
    unistd::{Gid, Pid, Uid, getppid, setgroups, setresgid, setresuid, setsid},
};

use super::{output::Ends, remove_cgroup};
use crate::protocol::{MemoryLimit, Spec};

/// How many files a process may have open, where the hard limit allows it.
const OPEN_FILES: u64 = 65_536;

/// A way to start an instance, and to clear away what that made.
pub trait Launcher {
    /// Starts the first process, which dies with the shim.
    ///
    /// # Errors
    /// Why it can't be, in one line; nothing of it is left then.
    fn launch(&self, spec: &Spec, ends: Ends) -> Result<Pid, String>;

    /// Clears away what was made for it, after its last process has gone; says whether memory ran out.
    fn clear(&self, spec: &Spec) -> bool;
}

/// A process of its own: own session and group, own user where one is given, limited memory where wanted.
pub struct Plain;

impl Launcher for Plain {
    fn launch(&self, spec: &Spec, ends: Ends) -> Result<Pid, String> {
        if let Some(memory) = &spec.memory {
            make_cgroup(memory)?;
        }
        let procs = spec.memory.as_ref().map(|memory| memory.cgroup.join("cgroup.procs"));
        let own_id = Pid::this();
        let uid = spec.uid;
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
        let between = move || -> std::io::Result<()> {
            SigSet::empty().thread_set_mask()?;
            setsid()?;
            umask(Mode::from_bits_truncate(0o022));
            if let Some(procs) = &procs {
                fs::write(procs, "0")?;
            }
            for (resource, wanted) in [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, OPEN_FILES)] {
                let (_, hard) = getrlimit(resource)?;
                setrlimit(resource, wanted.min(hard), hard)?;
            }
            if let Some(uid) = uid {
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
        let child = command.spawn().map_err(|error| {
            self.clear(spec);
            format!("can't start /bin/sh in {}: {error}", spec.folder.display())
        })?;
        // Reaped by the shim's own loop: std's handle would only get in the way.
        Ok(Pid::from_raw(i32::try_from(child.id()).expect("Linux process ids fit")))
    }

    fn clear(&self, spec: &Spec) -> bool {
        let Some(memory) = &spec.memory else { return false };
        let killed = out_of_memory(memory);
        remove_cgroup(&memory.cgroup);
        killed
    }
}

fn make_cgroup(memory: &MemoryLimit) -> Result<(), String> {
    let folder = &memory.cgroup;
    let failed = |error: std::io::Error| format!("can't limit its memory by {}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(failed)?;
    let limit = memory.limit_bytes.to_string();
    match memory.version {
        1 => {
            fs::write(folder.join("memory.limit_in_bytes"), &limit).map_err(failed)?;
            write_if_there(&folder.join("memory.memsw.limit_in_bytes"), &limit).map_err(failed)?;
            write_if_there(&folder.join("memory.swappiness"), "0").map_err(failed)
        }
        _ => {
            fs::write(folder.join("memory.max"), &limit).map_err(failed)?;
            write_if_there(&folder.join("memory.swap.max"), "0").map_err(failed)?;
            // It dies as a whole: half an instance helps nobody.
            write_if_there(&folder.join("memory.oom.group"), "1").map_err(failed)
        }
    }
}

/// Some kernels are built without swap accounting.
fn write_if_there(path: &Path, content: &str) -> std::io::Result<()> {
    if path.exists() { fs::write(path, content) } else { Ok(()) }
}

/// Whether the kernel killed something in this group for lack of memory.
fn out_of_memory(memory: &MemoryLimit) -> bool {
    let file = if memory.version == 1 { "memory.oom_control" } else { "memory.events" };
    let events = fs::read_to_string(memory.cgroup.join(file)).unwrap_or_default();
    events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
}
