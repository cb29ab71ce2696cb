//! The machine's control groups, and the limits of instances by them.
//!
//! Owns reading `/proc`, finding the controllers (control groups version 1, 2, or both side by side), and the choice
//! of groups and of their files' contents. The shim creates the groups.
//!
//! | limit | version 2 | version 1 |
//! |---|---|---|
//! | memory, no swap | `memory.max`, `memory.swap.max` | `memory.limit_in_bytes`, `memory.memsw.limit_in_bytes` |
//! | processor | `cpu.max` | `cpu.cfs_quota_us` |
//! | its share of a busy processor | `cpu.weight`, alike for each | `cpu.shares`, alike for each that has a quota |
//! | processes | `pids.max`, and its user's own | its user's own |
//!
//! With version 1 an instance has a group only if that group limits it: a process that joins one waits until all
//! processors have noticed, ten milliseconds. With version 2 it is born in its group.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::protocol::{Group, Setting};

/// The period of the processor's quota, in microseconds: the kernel's own default.
const TURN_US: u64 = 100_000;

/// The reason why instances can't be limited here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum CgroupsError {
    #[error("/proc/mounts")]
    Mounts(#[source] io::Error),
    #[error("the control groups' controllers for memory and cpu aren't mounted")]
    NotMounted,
    #[error("{}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("{}", path.display())]
    Delegate { path: PathBuf, source: io::Error },
}

/// The limits of an instance or a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Resident memory in bytes; no limit unless given.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor; no limit unless given.
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub processes: u64,
}

/// The paths of the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Controllers {
    /// Version 1's, each in a hierarchy of its own.
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    /// Version 2's hierarchy, and whether it has all needed controllers.
    unified: Option<PathBuf>,
    is_whole: bool,
}

/// The places of instances' control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    controllers: Controllers,
    /// The folder of this state folder's own groups, below each hierarchy.
    own: PathBuf,
}

impl Cgroups {
    /// Finds the controllers, and creates a folder named `own` below each.
    ///
    /// # Errors
    /// [`CgroupsError`].
    pub fn find(own: &str) -> Result<Cgroups, CgroupsError> {
        let mounts = fs::read_to_string("/proc/mounts").map_err(CgroupsError::Mounts)?;
        let controllers = controllers(&mounts, |path| {
            fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
        });
        let Controllers { memory, cpu, is_whole, .. } = &controllers;
        if !is_whole && (memory.is_none() || cpu.is_none()) {
            return Err(CgroupsError::NotMounted);
        }
        let found = Cgroups { controllers, own: Path::new("bazooka").join(own) };
        found.make().inspect_err(|_| _ = found.leave())?;
        Ok(found)
    }

    fn make(&self) -> Result<(), CgroupsError> {
        for path in self.folders() {
            fs::create_dir_all(&path).map_err(|source| CgroupsError::Make { path, source })?;
        }
        if let (Some(root), true) = (&self.controllers.unified, self.controllers.is_whole) {
            for parent in [root.clone(), root.join("bazooka"), root.join(&self.own)] {
                let path = parent.join("cgroup.subtree_control");
                fs::write(&path, "+memory +cpu +pids")
                    .map_err(|source| CgroupsError::Delegate { path, source })?;
            }
        }
        Ok(())
    }

    /// Returns the own folder below each hierarchy.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let Controllers { memory, cpu, unified, .. } = &self.controllers;
        memory.iter().chain(cpu).chain(unified).map(|root| root.join(&self.own))
    }

    /// Removes empty groups whose names are not `wanted`: shims that were killed have left them behind.
    pub fn sweep(&self, wanted: impl Fn(&str) -> bool) {
        for entry in self.folders().flat_map(fs::read_dir).flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| !wanted(name)) {
                // A group's own files can't be removed, nor a group with processes.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Removes the own folders again, unless a group is left there. Returns true if no daemon of this machine has
    /// groups any more.
    pub fn leave(&self) -> bool {
        for folder in self.folders() {
            let _ = fs::remove_dir(&folder);
            // The folder of all daemons' groups; another one's group keeps it.
            let _ = folder.parent().map(fs::remove_dir);
        }
        self.folders().all(|folder| folder.parent().is_some_and(|all| !all.exists()))
    }

    /// Reports whether an instance's sockets can be fenced: version 2 exists, at least beside version 1.
    pub fn can_fence(&self) -> bool {
        self.controllers.unified.is_some()
    }

    /// Returns the groups of the instance or build with this name. `apart` demands a group of version 2 whatever the
    /// limits, if version 2 exists.
    pub fn of(&self, name: &str, limits: GroupLimits, apart: bool) -> Vec<Group> {
        let Controllers { memory, cpu, unified, is_whole } = &self.controllers;
        let group = |root: &Path, version, settings: Vec<Setting>| Group {
            folder: root.join(&self.own).join(name),
            version,
            settings,
        };
        let memory_limit = limits.memory_bytes.map(|bytes| bytes.to_string());
        let quota_us = limits.cpu_millis.map(|millis| u64::from(millis) * TURN_US / 1_000);
        let mut groups = Vec::new();
        if let (Some(root), true) = (unified, is_whole) {
            let mut settings = Vec::new();
            if let Some(limit) = memory_limit {
                settings.push(set("memory.max", limit));
                settings.push(set_if_there("memory.swap.max", "0"));
                // The kernel kills the group as a whole: half an instance is of no use.
                settings.push(set_if_there("memory.oom.group", "1"));
            }
            settings.extend(quota_us.map(|quota| set("cpu.max", format!("{quota} {TURN_US}"))));
            // The sandbox's own process counts too.
            settings.push(set("pids.max", (limits.processes + 1).to_string()));
            if apart || settings.len() > 1 {
                groups.push(group(root, 2, settings));
            }
            return groups;
        }
        if let (Some(root), Some(limit)) = (memory, memory_limit) {
            let swap = set_if_there("memory.memsw.limit_in_bytes", &limit);
            let settings =
                vec![set("memory.limit_in_bytes", limit), swap, set_if_there("memory.swappiness", "0")];
            groups.push(group(root, 1, settings));
        }
        if let (Some(root), Some(quota)) = (cpu, quota_us) {
            let turn = set("cpu.cfs_period_us", TURN_US.to_string());
            groups.push(group(root, 1, vec![turn, set("cpu.cfs_quota_us", quota.to_string())]));
        }
        if let (Some(root), true) = (unified, apart) {
            groups.push(group(root, 2, Vec::new()));
        }
        groups
    }
}

fn set(file: &str, content: String) -> Setting {
    Setting { file: file.to_owned(), content, if_there: false }
}

fn set_if_there(file: &str, content: &str) -> Setting {
    Setting { file: file.to_owned(), content: content.to_owned(), if_there: true }
}

fn controllers(mounts: &str, listed: impl Fn(&Path) -> String) -> Controllers {
    let mut found = Controllers::default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let path = PathBuf::from(path);
        match kind {
            "cgroup" => {
                for option in options.split(',') {
                    match option {
                        "memory" => found.memory = Some(path.clone()),
                        "cpu" => found.cpu = Some(path.clone()),
                        _ => {}
                    }
                }
            }
            "cgroup2" => {
                let listed = listed(&path);
                let has = |name: &str| listed.split_whitespace().any(|listed| listed == name);
                found.is_whole = has("memory") && has("cpu") && has("pids");
                found.unified = Some(path);
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
    const UNIFIED: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";

    const UNLIMITED: GroupLimits = GroupLimits { memory_bytes: None, cpu_millis: None, processes: 200 };
    const LIMITED: GroupLimits =
        GroupLimits { memory_bytes: Some(64), cpu_millis: Some(500), processes: 200 };

    /// Shows each group: its path, and what is written.
    fn shown(cgroups: &Cgroups, limits: GroupLimits, apart: bool) -> Vec<(String, Vec<String>)> {
        let groups = cgroups.of("7", limits, apart).into_iter();
        let line = |setting: &Setting| format!("{}={}", setting.file, setting.content);
        groups
            .map(|group| (group.folder.display().to_string(), group.settings.iter().map(line).collect()))
            .collect()
    }

    #[test]
    fn what_was_left_is_swept_and_what_is_wanted_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let own = PathBuf::from("bazooka/own");
        let controllers = Controllers {
            memory: Some(at("memory")),
            unified: Some(at("unified")),
            ..Controllers::default()
        };
        let cgroups = Cgroups { controllers, own: own.clone() };
        cgroups.make().expect("there is room");
        let below = |name: &str| dir.path().join("memory").join(&own).join(name);
        for name in ["7", "8", "9/busy"] {
            fs::create_dir_all(below(name)).expect("there is room");
        }
        cgroups.sweep(|name| name == "7");
        assert_eq!(["7", "8", "9"].map(|name| below(name).exists()), [true, false, true]);
        cgroups.leave();
        assert!(below("7").exists() && !at("unified").join(&own).exists());
    }

    #[test]
    fn an_instance_is_limited_where_the_controllers_are() {
        let none = |_: &Path| String::new();
        let all = |_: &Path| "cpuset cpu io memory pids\n".to_owned();
        let own = Path::new("bazooka/own").to_owned();
        let first = Cgroups { controllers: controllers(HYBRID, none), own: own.clone() };
        let memory = "/sys/fs/cgroup/memory/bazooka/own/7".to_owned();
        let cpu = "/sys/fs/cgroup/cpu/bazooka/own/7".to_owned();
        let unified = "/sys/fs/cgroup/unified/bazooka/own/7".to_owned();
        let of_memory = ["memory.limit_in_bytes=64", "memory.memsw.limit_in_bytes=64", "memory.swappiness=0"]
            .map(String::from);
        let of_cpu = ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"].map(String::from);
        let groups = [(memory, of_memory.to_vec()), (cpu, of_cpu.to_vec()), (unified.clone(), Vec::new())];
        assert_eq!(shown(&first, LIMITED, true), groups);
        assert_eq!(shown(&first, LIMITED, false), groups[..2]);
        assert_eq!(shown(&first, UNLIMITED, true), [(unified, Vec::new())]);

        let second = Cgroups { controllers: controllers(UNIFIED, all), own };
        let whole = "/sys/fs/cgroup/bazooka/own/7".to_owned();
        let of_all = [
            "memory.max=64",
            "memory.swap.max=0",
            "memory.oom.group=1",
            "cpu.max=50000 100000",
            "pids.max=201",
        ];
        assert_eq!(shown(&second, LIMITED, true), [(whole.clone(), of_all.map(String::from).to_vec())]);
        assert_eq!(shown(&second, UNLIMITED, true), [(whole, vec!["pids.max=201".to_owned()])]);
        assert_eq!(shown(&second, UNLIMITED, false), []);
        assert!(!controllers(UNIFIED, none).is_whole);
    }
}
