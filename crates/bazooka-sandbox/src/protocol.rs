//! The file by which bazooka-pm and a shim speak, one for each start of an instance.
//!
//! Owns its shape. A shim outlives many versions of bazooka-pm, so the shape is versioned and only grows:
//! a field is only ever added, with a default. It uses nothing that would make the shim large.
//!
//! ```text
//! STATE/instances/ID/run.N   0600; held (flock) from before the shim exists until it has gone
//!   {"spec":…}   pm ──▶ shim   what to run, without the values of its env
//!   {"shim":…}   shim ──▶ pm   who runs; a line before the instance's process starts, and one after
//!   {"exit":…}   shim ──▶ pm   how it ended; nothing of it is left then
//!   any other    shim ──▶ pm   what the shim itself had to complain of
//! stdin, stderr  that file, by which the lock is inherited
//! stdout         a socket: pm ──▶ shim, the env as one JSON map, which no disk gets to see; then pm's end of it is
//!                shut, and shim ──▶ pm, one line: [`Answer`]
//! SIGTERM       end the instance: SIGTERM, its stop timeout, SIGKILL
//! SIGUSR1       end it at once
//! ```

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::machine::proc_stat;

/// This build's version of the protocol. A shim from [`SANDBOXES`] on knows what a [`SandboxSpec`] is; from version 3 on
/// it takes [`LaunchSpec::env`] from its socket. An older one can't read a spec without it, and says so.
pub const PROTOCOL: u32 = 3;

/// The first version with sandboxes: an older shim would start an instance without one, and say nothing.
pub const SANDBOXES: u32 = 2;

/// The output that is being written, in an instance's log folder.
pub const LOG_CURRENT: &str = "current";
/// The output before that.
pub const LOG_PREVIOUS: &str = "previous";
/// Each of the two files is this long at most.
pub const LOG_FILE_BYTES: u64 = 4 << 20;

/// Where an instance's memory is limited; what version 1 wrote in place of [`LaunchSpec::groups`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// The control group to be made, as an absolute path; it is the instance's alone.
    pub cgroup: PathBuf,
    /// 1 or 2: the version of the control groups there.
    pub version: u8,
    /// Resident memory, no swap.
    pub limit_bytes: u64,
}

/// A control group that is to be made for an instance, and is its alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its folder, as an absolute path.
    pub folder: PathBuf,
    /// 1 or 2: the version of the control groups there.
    pub version: u8,
    /// What is written to its files, in order.
    #[serde(default)]
    pub settings: Vec<Setting>,
}

/// One file of a control group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub file: String,
    /// What is written to it.
    pub content: String,
    /// Some kernels are built without it (swap accounting): then it is left out.
    #[serde(default)]
    pub if_there: bool,
}

/// What an instance sees of the machine, in namespaces of its own.
///
/// Its root holds the folders of `base`, read-only; `/app`, its slug; `/tmp`, `/proc` and `/dev` of its own; and the
/// `mounts`. A build of bazooka-rm has the same, around the tree that it builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// An empty folder on which the root is mounted; nobody else sees that.
    pub root: PathBuf,
    /// The tree that the root is made of: the machine's own, or a stack.
    pub base: PathBuf,
    /// What `/etc` is; that of `base` unless given.
    #[serde(default)]
    pub etc: Option<PathBuf>,
    /// How much `/tmp` holds. It counts to the memory limit.
    pub tmp_bytes: u64,
    /// Which sockets it may use; any unless given.
    #[serde(default)]
    pub fence: Option<Fence>,
    /// `/app` can be written, as far as the user's rights to it go.
    #[serde(default)]
    pub app_writable: bool,
    /// What else of the machine is there.
    #[serde(default)]
    pub mounts: Vec<Mount>,
}

/// A folder or file of the machine that is in a sandbox, too, by the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is; absolute, and no link.
    pub path: PathBuf,
    /// It can be written, as far as the user's rights to it go.
    #[serde(default)]
    pub writable: bool,
}

/// Which sockets an instance may use, on the machine's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The one port that it may bind, 0 for none; besides, the kernel may pick one for it.
    pub port: u16,
    /// Where it can't connect to.
    #[serde(default)]
    pub closed: Vec<Closed>,
}

/// A port of some addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Closed {
    /// The first of them.
    pub address: IpAddr,
    /// How many leading bits of it count: 32 or 128 for one address alone.
    pub bits: u8,
    /// The port.
    pub port: u16,
}

/// What a shim runs, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// [`PROTOCOL`] of the bazooka-pm that wrote it.
    pub protocol: u32,
    /// A line for `/bin/sh -c`.
    pub command: String,
    /// Where it runs: the unpacked slug.
    pub folder: PathBuf,
    /// All of its environment, as versions 1 and 2 wrote it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// All of its environment comes by the socket instead.
    #[serde(default)]
    pub env_apart: bool,
    /// The user and group that it runs as; the shim's own unless given.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Its memory limit, where version 1 wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLimit>,
    /// Its control groups.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// How many processes and threads its user may have.
    #[serde(default)]
    pub processes: Option<u64>,
    /// What it sees of the machine; all of it unless given.
    #[serde(default)]
    pub sandbox: Option<SandboxSpec>,
    /// Where its output goes.
    pub log_folder: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub stop_timeout_ms: u64,
    /// A file that says until when its host surely holds its lease; the instance ends before that.
    #[serde(default)]
    pub lease_file: Option<PathBuf>,
}

impl LaunchSpec {
    /// Its control groups, as whichever version wrote them.
    pub fn all_groups(&self) -> Vec<Group> {
        let older = self.memory.as_ref().map(|memory| {
            let setting =
                |file: &str, content: String, if_there| Setting { file: file.into(), content, if_there };
            let limit = memory.limit_bytes.to_string();
            let settings = if memory.version == 1 {
                vec![
                    setting("memory.limit_in_bytes", limit.clone(), false),
                    setting("memory.memsw.limit_in_bytes", limit, true),
                    setting("memory.swappiness", "0".into(), true),
                ]
            } else {
                vec![
                    setting("memory.max", limit, false),
                    setting("memory.swap.max", "0".into(), true),
                    setting("memory.oom.group", "1".into(), true),
                ]
            };
            Group { folder: memory.cgroup.clone(), version: memory.version, settings }
        });
        older.into_iter().chain(self.groups.iter().cloned()).collect()
    }
}

/// A process that can be told from a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its id.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (`/proc/PID/stat`).
    pub start_time: u64,
}

/// Who runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    /// [`PROTOCOL`] of the shim.
    pub protocol: u32,
    /// The kernel's boot id: process ids of another boot mean nothing.
    pub boot_id: String,
    /// The shim itself.
    pub shim: ProcessId,
    /// The instance's first process, once it has been started.
    #[serde(default)]
    pub child: Option<ProcessId>,
    /// When that was, in microseconds since 1970.
    #[serde(default)]
    pub started_us: u64,
}

/// What a shim answers, in one line, once it has started the instance or couldn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It runs.
    Started(ShimState),
    /// It doesn't, and the host is to blame: an app's own mistakes show as exits.
    Failed {
        /// Why, in one line.
        cause: String,
    },
}

/// How an instance's first process ended. The shim has ended all others by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit status, if it exited.
    #[serde(default)]
    pub code: Option<i32>,
    /// The signal, if one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The kernel killed a process of the instance for lack of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// The memory limit that was in force, where memory ran out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// The most memory that it had, where memory ran out and the kernel says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// How long it ran.
    pub ran_ms: u64,
    /// When it ended, in microseconds since 1970.
    pub at_us: u64,
    /// The shim ended it because its host's lease was running out.
    #[serde(default)]
    pub partitioned: bool,
}

/// One start of an instance, as far as it is written down; in the file, one line for each part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start<S> {
    /// What is to be run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<S>,
    /// Who runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shim: Option<ShimState>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
}

impl<S> Default for Start<S> {
    fn default() -> Self {
        Start { spec: None, shim: None, exit: None }
    }
}

impl<S: DeserializeOwned> Start<S> {
    /// Reads what is there of it; nothing if it isn't there.
    pub fn read(path: &Path) -> Start<S> {
        Start::parse(&fs::read(path).unwrap_or_default())
    }

    /// Of each part the last whole line counts.
    pub fn parse(text: &[u8]) -> Start<S> {
        lines(text).fold(Start::default(), |known: Start<S>, line: Start<S>| Start {
            spec: line.spec.or(known.spec),
            shim: line.shim.or(known.shim),
            exit: line.exit.or(known.exit),
        })
    }
}

/// The lines of a file that are whole and hold a `T`.
pub fn lines<T: DeserializeOwned>(text: &[u8]) -> impl Iterator<Item = T> {
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    whole.filter_map(|line| serde_json::from_slice(line).ok())
}

impl ProcessId {
    /// The process that has this id now.
    pub fn of(pid: i32) -> Option<ProcessId> {
        proc_stat(pid).map(|stat| ProcessId { pid, start_time: stat.start_time })
    }

    /// Whether it is this very process that has the id now.
    pub fn is_there(&self) -> bool {
        ProcessId::of(self.pid) == Some(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::append;

    #[test]
    fn an_id_that_was_used_again_is_another_process() {
        let own = ProcessId::of(std::process::id() as i32).expect("this test runs");
        assert!(own.is_there());
        assert!(!ProcessId { start_time: own.start_time + 1, ..own }.is_there());
    }

    #[test]
    fn what_was_cut_short_spoils_its_own_line_alone() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let first = ExitRecord { ran_ms: 1, ..ExitRecord::default() };
        let add = |start: &Start<LaunchSpec>| append(file.as_file(), start).expect("there is room");
        add(&Start { exit: Some(first), ..Start::default() });
        std::io::Write::write_all(&mut file.as_file(), br#"{"exit":{"ran_ms":2"#).expect("there is room");
        assert_eq!(Start::<LaunchSpec>::read(file.path()).exit, Some(first));
        let last = ExitRecord { ran_ms: 3, ..ExitRecord::default() };
        add(&Start { exit: Some(last), ..Start::default() });
        assert_eq!(Start::<LaunchSpec>::read(file.path()), Start { exit: Some(last), ..Start::default() });
    }

    #[test]
    fn what_the_first_version_wrote_has_its_limits_still_and_no_sandbox() {
        let older = r#"{"protocol":1,"command":"sleep 1","folder":"/f","env":{},"uid":7,"log_folder":"/l",
            "memory":{"cgroup":"/sys/fs/cgroup/memory/own/7","version":1,"limit_bytes":64},"stop_timeout_ms":1}"#;
        let spec: LaunchSpec = serde_json::from_str(older).expect("it reads");
        assert_eq!((&spec.sandbox, spec.processes), (&None, None));
        let groups = spec.all_groups();
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].folder, Path::new("/sys/fs/cgroup/memory/own/7"));
        assert_eq!(groups[0].settings[0].file, "memory.limit_in_bytes");
    }

    #[test]
    fn a_later_versions_fields_are_no_hindrance() {
        let exit: ExitRecord =
            serde_json::from_str(r#"{"ran_ms":1,"at_us":2,"later":true}"#).expect("it reads");
        assert_eq!(exit, ExitRecord { ran_ms: 1, at_us: 2, ..ExitRecord::default() });
    }
}
