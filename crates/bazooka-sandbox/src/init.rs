//! The start of an instance in namespaces of its own.
//!
//! Owns the instance's process 1 ("init"): a copy of the shim that makes the root, gives up every right, starts the
//! command, reaps orphans, and reports how the command ended. It is the shim's child and dies with it; all processes
//! of its namespace die with it at once.
//!
//! ```text
//! shim ── clone (pid, mount, ipc, uts; in its control group) ──▶ init: root, user, no rights, filter
//!   ◀── s ───────────────────────────────────── command starts ◀──┘ │
//!   ─── ! ──▶ (until then nothing is reaped: the shim looks for its process id)
//!   ◀── e, how it ended ─────────────────────────────────────────────┘ then waits for the rest
//! ```
//!
//! The command itself isn't process 1: the kernel ignores signals to process 1 that have no handler, so Node would
//! ignore SIGTERM.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigSet, Signal},
        stat::{Mode, umask},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, setresgid, setresuid, setsid},
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{BpfProgram, apply_filter};

use crate::{
    disks::{self, DiskError},
    family,
    fence::{self, EncloseError},
    in_one_line, landlock,
    launch::{Launched, common_limits, shell},
    protocol::{Group, LaunchSpec, SandboxSpec},
    root::{self, Disks, RootError},
    seccomp,
    shim::{Ends, close_others},
};

const STARTED: u8 = b's';
const FAILED: u8 = b'f';
const ENDED: u8 = b'e';
const GO_ON: u8 = b'!';

const APP_FULL: u8 = 1;
const TMP_FULL: u8 = 2;

/// CLONE_INTO_CGROUP. Its type in `libc` is too small for it.
const INTO_GROUP: u64 = 1 << 33;

/// Everything that init needs, prepared by the shim.
struct Init<'a> {
    spec: &'a LaunchSpec,
    sandbox: &'a SandboxSpec,
    filter: BpfProgram,
    /// The open `cgroup.procs` files of the groups that init has to join.
    joins: Vec<File>,
    disks: Disks,
}

/// The reason why an instance can't be started in its sandbox.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum InitError {
    #[error("its sockets can't be fenced without a control group")]
    FenceWithoutGroup,
    #[error("its sockets can't be fenced without a user of its own")]
    FenceWithoutUser,
    #[error(transparent)]
    Fence(#[from] EncloseError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("can't use {}", path.display())]
    Group { path: PathBuf, source: io::Error },
    #[error("can't make its socket")]
    Socket(#[source] io::Error),
    #[error("can't make its namespaces")]
    Namespaces(#[source] Errno),
    /// The message of a [`BeginError`], received by the socket.
    #[error("{0}")]
    Begin(String),
    #[error("its sandbox ended before anything was started in it")]
    Silence,
    #[error("can't reach its sandbox")]
    Speak(#[source] io::Error),
}

/// The reason why init can't set up the sandbox.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error("can't start it: {what}")]
    Kernel { what: &'static str, source: Errno },
    #[error("can't start it: /dev/null")]
    Null(#[source] io::Error),
    #[error("can't limit it by its control group")]
    Join(#[source] io::Error),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("a sandbox requires a user of its own")]
    NoUser,
    #[error("can't start it: dropping its privileges")]
    Rights(#[source] rustix::io::Errno),
    #[error("can't keep it from others' abstract sockets")]
    Abstract(#[source] io::Error),
    #[error("can't filter its system calls")]
    Filter(#[source] seccompiler::Error),
    #[error("can't start {} in its root", shell())]
    Command(#[source] io::Error),
}

/// Starts an instance in its sandbox. Its groups must exist.
///
/// # Errors
/// [`InitError`]; nothing of the instance runs then.
pub fn launch(
    spec: &LaunchSpec,
    sandbox: &SandboxSpec,
    groups: &[Group],
    ends: Ends,
) -> Result<Launched, InitError> {
    // Version 2 has one hierarchy: a process can be born in its group, which costs nothing.
    let (born_in, joined): (Vec<&Group>, Vec<&Group>) = groups.iter().partition(|group| group.version == 2);
    let born_in = born_in.first().map(|group| group.folder.as_path());
    if let Some(fence) = &sandbox.fence {
        let uid = spec.uid.ok_or(InitError::FenceWithoutUser)?;
        fence::enclose(born_in.ok_or(InitError::FenceWithoutGroup)?, fence, uid)?;
    }
    let open = |path: &Path, options: &mut fs::OpenOptions| {
        options.open(path).map_err(|source| InitError::Group { path: path.to_owned(), source })
    };
    let joins =
        joined.iter().map(|group| open(&group.folder.join("cgroup.procs"), File::options().write(true)));
    let disks = match spec.uid {
        Some(uid) => Disks::open(sandbox, uid)?,
        None => Disks::default(),
    };
    let joins = joins.collect::<Result<_, _>>()?;
    let init = Init { spec, sandbox, filter: seccomp::filter(), joins, disks };
    let born_in = born_in.map(|folder| open(folder, File::options().read(true))).transpose()?;
    let (mut ours, theirs) = UnixStream::pair().map_err(InitError::Socket)?;

    match clone(born_in.as_ref()).map_err(InitError::Namespaces)? {
        None => {
            drop(ours);
            // The copy must never return into the shim's code, not even by a panic.
            let _ = catch_unwind(AssertUnwindSafe(|| init.live(ends, theirs)));
            exit()
        }
        Some(pid) => {
            drop((theirs, ends, init));
            heard(&mut ours).map(|()| ours).and_then(|mut ours| {
                let command =
                    family::children_of(pid.as_raw()).first().map(|command| Pid::from_raw(*command));
                ours.write_all(&[GO_ON])
                    .and_then(|()| ours.set_nonblocking(true))
                    .map_err(InitError::Speak)?;
                Ok(Launched { child: pid, command: command.unwrap_or(pid), init: Some(InitSocket(ours)) })
            })
        }
        .inspect_err(|_| {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }),
    }
}

fn heard(ours: &mut UnixStream) -> Result<(), InitError> {
    let mut word = [0];
    let mut rest = String::new();
    match ours.read_exact(&mut word) {
        Ok(()) if word == [STARTED] => Ok(()),
        Ok(()) => {
            let _ = ours.read_to_string(&mut rest);
            Err(InitError::Begin(rest))
        }
        Err(_) => Err(InitError::Silence),
    }
}

/// The socket by which init reports how the command ended.
pub struct InitSocket(UnixStream);

/// The disks of an instance that had no room left when its command ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Full {
    /// The layer over `/app`.
    pub app: bool,
    /// `/tmp`.
    pub tmp: bool,
}

/// The state of init's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The command has not ended yet.
    NotYet,
    /// The command ended like this.
    Ended(WaitStatus, Full),
    /// The socket has closed without a report.
    Silence,
}

impl InitSocket {
    /// Returns how the command ended, once it has.
    pub fn ended(&mut self, command: Pid) -> Heard {
        let mut words = [0; 4];
        match self.0.read(&mut words) {
            Ok(4) if words[0] == ENDED => {
                let number = i32::from(words[2]);
                let status = match Signal::try_from(number) {
                    Ok(signal) if words[1] == 1 => WaitStatus::Signaled(command, signal, false),
                    _ => WaitStatus::Exited(command, number),
                };
                let full = Full { app: words[3] & APP_FULL != 0, tmp: words[3] & TMP_FULL != 0 };
                Heard::Ended(status, full)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::NotYet,
            _ => Heard::Silence,
        }
    }

    /// Returns the socket, to poll for input.
    pub fn socket(&self) -> &UnixStream {
        &self.0
    }
}

impl Init<'_> {
    fn live(self, ends: Ends, mut shim: UnixStream) {
        // The name shows in lists of processes.
        let _ = prctl::set_name(c"bazooka-init");
        let (has_layer, has_tmp) = (self.disks.app.is_some(), self.disks.tmp.is_some());
        let command = match self.begin(ends, &shim) {
            Ok(command) => command,
            Err(cause) => {
                let _ =
                    shim.write_all(&[FAILED]).and_then(|()| shim.write_all(in_one_line(&cause).as_bytes()));
                return;
            }
        };
        let mut word = [0];
        if shim.write_all(&[STARTED]).and_then(|()| shim.read_exact(&mut word)).is_err() {
            return;
        }
        loop {
            let (kind, number) = match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) if pid == command => (0, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => (1, signal as i32),
                Ok(_) | Err(Errno::EINTR) => continue,
                // No child is left.
                Err(_) => return,
            };
            let is_full = |has_one: bool, path: &str, bit: u8| {
                if has_one && disks::is_full(Path::new(path)) { bit } else { 0 }
            };
            let full = is_full(has_layer, "/app", APP_FULL) | is_full(has_tmp, "/tmp", TMP_FULL);
            let number = u8::try_from(number & 0xff).expect("it is masked");
            let _ = shim.write_all(&[ENDED, kind, number, full]);
        }
    }

    /// Sets up the sandbox, and starts its command.
    fn begin(self, ends: Ends, shim: &UnixStream) -> Result<Pid, BeginError> {
        let at = |what: &'static str| move |source: Errno| BeginError::Kernel { what, source };
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("dying with the shim"))?;
        // The shim's lock, files and pipes must not reach the instance.
        let null = File::open("/dev/null").map_err(BeginError::Null)?;
        dup2_stdin(&null)
            .and_then(|()| dup2_stdout(&ends.out))
            .and_then(|()| dup2_stderr(&ends.err))
            .map_err(at("its output"))?;
        drop((null, ends));
        let mut kept: Vec<RawFd> =
            self.joins.iter().map(AsRawFd::as_raw_fd).chain([shim.as_raw_fd()]).collect();
        kept.extend(self.disks.files());
        close_others(&kept);
        setsid().map_err(at("its session"))?;
        umask(Mode::from_bits_truncate(0o022));
        common_limits().map_err(at("its limits"))?;
        for mut procs in self.joins {
            procs.write_all(b"0").map_err(BeginError::Join)?;
        }
        root::enter(self.spec, self.sandbox, &self.disks)?;
        drop(self.disks);
        if let Some(most) = self.spec.processes {
            // This process counts too.
            setrlimit(Resource::RLIMIT_NPROC, most + 1, most + 1).map_err(at("its processes"))?;
        }
        give_up_rights(self.spec.uid.ok_or(BeginError::NoUser)?)?;
        // After the change of user, which clears this setting.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("dying with the shim"))?;
        if self.sandbox.fence.is_some() {
            landlock::leave_abstract_sockets().map_err(BeginError::Abstract)?;
        }
        apply_filter(&self.filter).map_err(BeginError::Filter)?;

        let mut command = Command::new(shell());
        command.arg("-c").arg(&self.spec.command).current_dir(Path::new("/").join(root::APP));
        command.env_clear().envs(&self.spec.env).stdin(Stdio::null());
        let between = || -> io::Result<()> {
            SigSet::empty().thread_set_mask()?;
            setsid()?;
            Ok(())
        };
        // SAFETY: this process has one thread, so no lock is held that the closure's calls could need.
        #[allow(unsafe_code, reason = "what is set between fork and exec can't be set otherwise")]
        unsafe {
            command.pre_exec(between);
        }
        let started = command.spawn().map_err(BeginError::Command)?;
        Ok(Pid::from_raw(i32::try_from(started.id()).expect("Linux process ids fit")))
    }
}

/// Becomes a user without any right, for good.
fn give_up_rights(uid: u32) -> Result<(), BeginError> {
    let at = |what: &'static str| move |source: Errno| BeginError::Kernel { what, source };
    let rights = BeginError::Rights;
    for right in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(right) {
            // An older kernel doesn't know the newest capabilities.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(rights(error)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(rights)?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .map_err(at("its user"))?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).map_err(rights)?;
    prctl::set_no_new_privs().map_err(at("no new rights"))
}

/// Copies this process into namespaces of its own, born in a control group. Returns the copy's id, and none in the
/// copy.
fn clone(born_in: Option<&File>) -> nix::Result<Option<Pid>> {
    let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let mut flags = u64::try_from(namespaces).expect("flags are positive");
    let number = |value: i32| u64::try_from(value).expect("it isn't negative");
    if born_in.is_some() {
        flags |= INTO_GROUP;
    }
    let arguments = libc::clone_args {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: number(libc::SIGCHLD),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: born_in.map_or(0, |folder| number(folder.as_raw_fd())),
    };
    // SAFETY: as with fork, the copy has the memory of this process, which has one thread and holds no lock.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let made = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<libc::clone_args>()) };
    let pid = Errno::result(made)?;
    Ok((pid != 0).then(|| Pid::from_raw(i32::try_from(pid).expect("Linux process ids fit"))))
}

fn exit() -> ! {
    // SAFETY: no cleanup of the shim may run when the copy ends, and `_exit` runs none.
    #[allow(unsafe_code, reason = "std's exit would run what is registered for the shim's end")]
    unsafe {
        libc::_exit(0)
    }
}
