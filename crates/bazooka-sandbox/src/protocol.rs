//! The protocol between bazooka-pm and a shim: one file for each start of an instance.
//!
//! Owns the types in that file. A shim outlives many versions of bazooka-pm, so the protocol has a version and only
//! grows: new fields have a default, and no field is ever removed. The module uses nothing that would make the shim
//! large.
//!
//! ```text
//! STATE/instances/ID/run.N   0600; locked (flock) from before the shim exists until it has gone
//!   {"spec":…}   pm ──▶ shim   what to run, without the values of its env
//!   {"shim":…}   shim ──▶ pm   who runs; a line before the instance's process starts, and one after
//!   {"exit":…}   shim ──▶ pm   how it ended; nothing of it is left then
//!   any other    shim ──▶ pm   an error of the shim itself, in words
//! stdin, stderr  that file, so that the shim inherits its lock
//! stdout         a socket: pm ──▶ shim, the env as one JSON map, which is never on disk; then pm shuts its end
//!                for writing, and shim ──▶ pm, one line: [`Answer`]
//! SIGTERM       end the instance: SIGTERM, its stop timeout, SIGKILL
//! SIGUSR1       end it at once
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{files::load, machine::proc_stat};

/// This build's version of the protocol. A shim from [`SANDBOXES`] on knows [`SandboxSpec`]; from version 3 on it
/// takes [`LaunchSpec::env`] from its socket. An older shim can't read a spec without that field, and reports so. From
/// [`LOOPBACKS`] on it knows [`Rules`].
pub const PROTOCOL: u32 = 4;

/// The first version with a loopback of its own for each instance. An older shim would give it the machine's.
pub const LOOPBACKS: u32 = 4;

/// The first version with sandboxes. An older shim would silently start an instance without one.
pub const SANDBOXES: u32 = 2;

/// The current output file, in an instance's log folder.
pub const LOG_CURRENT: &str = "current";
/// The output file before that.
pub const LOG_PREVIOUS: &str = "previous";
/// The most bytes in each of the two files.
pub const LOG_FILE_BYTES: u64 = 4 << 20;

/// The group that limits an instance's memory. Version 1 wrote it in place of [`LaunchSpec::groups`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// The control group to create, as an absolute path. Only this instance uses it.
    pub cgroup: PathBuf,
    /// The version of the control groups there: 1 or 2.
    pub version: u8,
    /// The limit of resident memory, without swap.
    pub limit_bytes: u64,
}

/// A control group that the shim creates for one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The folder, as an absolute path.
    pub folder: PathBuf,
    /// The version of the control groups there: 1 or 2.
    pub version: u8,
    /// The contents of its files, in the order of writing.
    #[serde(default)]
    pub settings: Vec<Setting>,
}

/// One file of a control group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The file's name.
    pub file: String,
    /// The content to write.
    pub content: String,
    /// True if some kernels are built without this file (swap accounting). It is then skipped.
    #[serde(default)]
    pub if_there: bool,
}

/// The view of the machine that an instance has, in namespaces of its own.
///
/// Its root holds the folders of `base`, read-only; `/app`, its slug; `/tmp`, `/proc` and `/dev` of its own; and the
/// `mounts`. A build of bazooka-rm has the same, around the tree that it builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// An empty folder on which the root is mounted. The mount is visible only in the sandbox.
    pub root: PathBuf,
    /// The tree that the root is made of: the machine's own, or a stack.
    pub base: PathBuf,
    /// The folder for `/etc`; that of `base` unless given.
    #[serde(default)]
    pub etc: Option<PathBuf>,
    /// The size of `/tmp` in bytes, where it is in memory. Its content counts towards the memory limit then.
    pub tmp_bytes: u64,
    /// The sockets that the instance may use; all unless given.
    #[serde(default)]
    pub fence: Option<Fence>,
    /// True if `/app` is writable, as far as the user's rights to it go.
    #[serde(default)]
    pub app_writable: bool,
    /// Other folders and files of the machine to mount.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// True if it sees its own control groups, read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shows_groups: bool,
    /// The image of its `/tmp`, in place of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmp_disk: Option<Image>,
    /// The image of its writable layer over the slug; `/app` is read-only unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_disk: Option<Image>,
}

/// A file system of an instance's own, in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The file with an empty one, of which the instance has a copy. The copy has no name.
    pub template: PathBuf,
}

/// A folder or file of the machine that a sandbox has too, at the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The path; absolute, and not a symbolic link.
    pub path: PathBuf,
    /// True if it is writable, as far as the user's rights to it go.
    #[serde(default)]
    pub writable: bool,
}

/// The sockets that an instance may use, on the machine's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The one port that it may bind on the machine's addresses, 0 for none. It may also let the kernel choose a port.
    pub port: u16,
    /// The addresses that it can't connect to, for shims before [`LOOPBACKS`].
    #[serde(default)]
    pub closed: Vec<Closed>,
    /// The ports of the services that it links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<u16>,
    /// The effect of the fence; versions before [`LOOPBACKS`] wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Rules>,
}

/// The rules of a fence for addresses. Of the lists the first that holds an address decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The address at which the instance is reached.
    pub host: IpAddr,
    /// The addresses behind its loopback.
    pub loopback: Loopback,
    /// The addresses that it can't connect to, whatever is open.
    #[serde(default)]
    pub closed: Vec<Span>,
    /// The addresses that it reaches although they are the machine's.
    #[serde(default)]
    pub open: Vec<Span>,
    /// The machine's own addresses, and others that are closed unless they are open.
    #[serde(default)]
    pub machine: Vec<Span>,
    /// First and last of ports that it can't bind in private, because others need them on every address.
    #[serde(default)]
    pub reserved: Vec<(u16, u16)>,
}

/// The addresses behind an instance's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loopback {
    /// In place of 127.0.0.0/8.
    pub four: Ipv4Addr,
    /// In place of `::1`; none on a machine without IPv6.
    #[serde(default)]
    pub six: Option<Ipv6Addr>,
}

/// Ports of a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// The first address.
    pub address: IpAddr,
    /// The number of leading bits that count: 32 or 128 for one address alone.
    pub bits: u8,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// A port of a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Closed {
    /// The first address.
    pub address: IpAddr,
    /// The number of leading bits that count: 32 or 128 for one address alone.
    pub bits: u8,
    /// The port.
    pub port: u16,
}

/// The order to a shim: what to run, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The [`PROTOCOL`] of the bazooka-pm that wrote it.
    pub protocol: u32,
    /// The command, a line for the shell.
    pub command: String,
    /// The folder that it runs in: the unpacked slug.
    pub folder: PathBuf,
    /// The whole environment, as versions 1 and 2 wrote it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// True if the whole environment comes by the socket instead.
    #[serde(default)]
    pub env_apart: bool,
    /// The user and group that it runs as; the shim's own unless given.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The memory limit, if version 1 wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLimit>,
    /// The control groups.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The most processes and threads that its user may have.
    #[serde(default)]
    pub processes: Option<u64>,
    /// The view of the machine; all of it unless given.
    #[serde(default)]
    pub sandbox: Option<SandboxSpec>,
    /// The folder for its output.
    pub log_folder: PathBuf,
    /// The time from SIGTERM to SIGKILL, in milliseconds.
    pub stop_timeout_ms: u64,
    /// A file that says until when its host surely holds its lease. The instance ends before that.
    #[serde(default)]
    pub lease_file: Option<PathBuf>,
}

impl LaunchSpec {
    /// Returns the control groups, whichever version wrote them.
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

/// A process, told apart from a later one with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The id.
    pub pid: i32,
    /// The time of its start, in clock ticks since boot (`/proc/PID/stat`).
    pub start_time: u64,
}

/// The running processes of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    /// The [`PROTOCOL`] of the shim.
    pub protocol: u32,
    /// The kernel's boot id. Process ids of another boot mean nothing.
    pub boot_id: String,
    /// The shim itself.
    pub shim: ProcessId,
    /// The instance's first process, once it has been started.
    #[serde(default)]
    pub child: Option<ProcessId>,
    /// The time of its start, in microseconds since 1970.
    #[serde(default)]
    pub started_us: u64,
}

/// The shim's answer, in one line, once the instance has started or failed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The instance runs.
    Started(ShimState),
    /// The instance couldn't be started, by the host's fault. An app's own faults show as exits.
    Failed {
        /// The cause, in one line.
        cause: String,
    },
}

/// The exit of an instance's first process. The shim has ended all other processes by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit status, if it exited.
    #[serde(default)]
    pub code: Option<i32>,
    /// The signal, if one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// True if the kernel killed a process of the instance for lack of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// The memory limit in bytes, if memory ran out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// The peak use of memory in bytes, if memory ran out and the kernel reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// The length of the run in milliseconds.
    pub ran_ms: u64,
    /// The time of the end, in microseconds since 1970.
    pub at_us: u64,
    /// True if the shim ended it because its host's lease was running out.
    #[serde(default)]
    pub partitioned: bool,
    /// True if its writable layer over `/app` had no room left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub app_full: bool,
    /// True if its `/tmp` had no room left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tmp_full: bool,
}

/// One start of an instance, as far as it is written; the file has one line for each part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start<S> {
    /// The order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<S>,
    /// The running processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shim: Option<ShimState>,
    /// The exit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
}

impl<S> Default for Start<S> {
    fn default() -> Self {
        Start { spec: None, shim: None, exit: None }
    }
}

impl<S: DeserializeOwned> Start<S> {
    /// Reads the file of a start; every part is none if there is no file, or it can't be read.
    pub fn read(path: &Path) -> Start<S> {
        Start::parse(&fs::read(path).unwrap_or_default())
    }

    /// Reads the file of a start, for a reader that takes a missing part for a start that came to nothing.
    ///
    /// # Errors
    /// The file system's: a file that can't be looked at isn't missing.
    pub fn load(path: &Path) -> io::Result<Start<S>> {
        Ok(Start::parse(&load(path)?.unwrap_or_default()))
    }

    /// Parses the file of a start. The last complete line of each part counts.
    pub fn parse(text: &[u8]) -> Start<S> {
        lines(text).fold(Start::default(), |known: Start<S>, line: Start<S>| Start {
            spec: line.spec.or(known.spec),
            shim: line.shim.or(known.shim),
            exit: line.exit.or(known.exit),
        })
    }
}

/// Returns a `T` from each complete line that holds one.
pub fn lines<T: DeserializeOwned>(text: &[u8]) -> impl Iterator<Item = T> {
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    whole.filter_map(|line| serde_json::from_slice(line).ok())
}

impl ProcessId {
    /// Returns the process that has this id now.
    pub fn of(pid: i32) -> Option<ProcessId> {
        proc_stat(pid).map(|stat| ProcessId { pid, start_time: stat.start_time })
    }

    /// Reports whether this very process still has the id.
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
