//! What the machine has to give, and where an instance's memory is limited.
//!
//! Owns reading `/proc` and finding the memory controller (control groups version 1 or 2).

use std::{
    fs,
    path::{Path, PathBuf},
};

use visor::names::InstanceId;

use crate::protocol::MemoryLimit;

/// Where instances' control groups go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    /// The folder of this state folder's own groups.
    folder: PathBuf,
    version: u8,
}

impl Cgroups {
    /// Finds the memory controller, and makes a folder named `own` below it.
    ///
    /// # Errors
    /// Why instances can't be limited here, in one line.
    pub fn find(own: &str) -> Result<Cgroups, String> {
        let mounts = fs::read_to_string("/proc/mounts").map_err(|error| format!("/proc/mounts: {error}"))?;
        let (root, version) = memory_controller(&mounts, |path| {
            fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
        })
        .ok_or("no memory controller is mounted")?;
        let family = root.join("bazooka");
        let folder = family.join(own);
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(&folder).map_err(failed)?;
        if version == 2 {
            for parent in [&root, &family, &folder] {
                fs::write(parent.join("cgroup.subtree_control"), "+memory").map_err(failed)?;
            }
        }
        Ok(Cgroups { folder, version })
    }

    /// The group of one instance, with its limit.
    pub fn limit(&self, id: InstanceId, limit_bytes: u64) -> MemoryLimit {
        MemoryLimit { cgroup: self.folder.join(id.to_string()), version: self.version, limit_bytes }
    }
}

fn memory_controller(mounts: &str, controllers: impl Fn(&Path) -> String) -> Option<(PathBuf, u8)> {
    let fields = |line: &'_ str| -> Option<(PathBuf, String, String)> {
        let mut words = line.split(' ');
        let (_, path, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some((path.into(), kind.to_owned(), options.to_owned()))
    };
    let mounted: Vec<_> = mounts.lines().filter_map(fields).collect();
    let first = mounted
        .iter()
        .find(|(_, kind, options)| kind == "cgroup" && options.split(',').any(|option| option == "memory"));
    if let Some((path, ..)) = first {
        return Some((path.clone(), 1));
    }
    let second = mounted.iter().find(|(path, kind, _)| {
        kind == "cgroup2" && controllers(path).split_whitespace().any(|name| name == "memory")
    });
    second.map(|(path, ..)| (path.clone(), 2))
}

/// The machine's memory, less a tenth and at least 256 MiB of it for the system.
pub fn memory_for_instances() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let all = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(1 << 20)
        << 10;
    all - (all / 10).max(256 << 20).min(all / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";

    #[test]
    fn memory_is_limited_where_its_controller_is() {
        let none = |_: &Path| String::new();
        assert_eq!(memory_controller(HYBRID, none), Some(("/sys/fs/cgroup/memory".into(), 1)));
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let all = |_: &Path| "cpuset cpu io memory pids\n".to_owned();
        assert_eq!(memory_controller(unified, all), Some(("/sys/fs/cgroup".into(), 2)));
        assert_eq!(memory_controller(unified, none), None);
    }
}
