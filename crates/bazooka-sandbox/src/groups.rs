//! An instance's control groups: created before it starts, joined as it starts, removed once it is over.
//!
//! Owns the files in them. bazooka-pm decides their content.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::errno::Errno;

use crate::protocol::Group;

/// A control group, or a file of it, that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't limit it by {}", path.display())]
pub struct GroupError {
    path: PathBuf,
    source: io::Error,
}

/// Creates the groups of an instance and writes their settings.
///
/// # Errors
/// [`GroupError`]. The groups before it stay, for [`remove`].
pub fn make(groups: &[Group]) -> Result<(), GroupError> {
    for Group { folder, settings, .. } in groups {
        let failed = |path: &Path, source| GroupError { path: path.to_owned(), source };
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        for setting in settings {
            let file = folder.join(&setting.file);
            if setting.if_there && !file.exists() {
                continue;
            }
            fs::write(&file, &setting.content).map_err(|error| failed(&file, error))?;
        }
    }
    Ok(())
}

/// Kills all processes of the groups at once, where the kernel can: in version 2, from Linux 5.14 on.
///
/// Nothing that forks escapes it, whatever its user and session.
pub fn kill(groups: &[Group]) {
    for Group { folder, version, .. } in groups {
        if *version == 2 {
            // Without the file each process is found and killed by itself.
            let _ = fs::File::options()
                .write(true)
                .open(folder.join("cgroup.kill"))
                .and_then(|mut file| file.write_all(b"1"));
        }
    }
}

/// The memory figures of a group in which the kernel killed a process for lack of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The limit.
    pub limit_bytes: Option<u64>,
    /// The peak use.
    pub peak_bytes: Option<u64>,
}

/// Returns the figures if the kernel killed a process in these groups for lack of memory.
pub fn out_of_memory(groups: &[Group]) -> Option<OutOfMemory> {
    groups.iter().find_map(|Group { folder, version, .. }| {
        let [events, limit, peak] = match version {
            1 => ["memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes"],
            _ => ["memory.events", "memory.max", "memory.peak"],
        };
        let events = fs::read_to_string(folder.join(events)).ok()?;
        let killed = |line: &str| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0");
        let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
        events
            .lines()
            .any(killed)
            .then(|| OutOfMemory { limit_bytes: number(limit), peak_bytes: number(peak) })
    })
}

/// Removes the groups once their last process has gone.
pub fn remove(groups: &[Group]) {
    for Group { folder, .. } in groups {
        for _ in 0..50 {
            match fs::remove_dir(folder) {
                Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Setting;

    fn group(folder: &Path, version: u8, settings: &[(&str, &str, bool)]) -> Group {
        let settings = settings.iter().map(|(file, content, if_there)| Setting {
            file: (*file).into(),
            content: (*content).into(),
            if_there: *if_there,
        });
        Group { folder: folder.to_owned(), version, settings: settings.collect() }
    }

    #[test]
    fn what_holds_is_written_and_what_the_kernel_lacks_left_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("own/7");
        let settings = [("memory.max", "64", false), ("memory.swap.max", "0", true)];
        let groups = [group(&folder, 2, &settings)];
        make(&groups).expect("it can be made");
        assert_eq!(fs::read_to_string(folder.join("memory.max")).expect("it is there"), "64");
        assert!(!folder.join("memory.swap.max").exists());
    }

    #[test]
    fn memory_that_ran_out_is_told_with_limit_and_peak_in_either_version() {
        let dir = tempfile::tempdir().expect("a folder");
        let write =
            |file: &str, content: &str| fs::write(dir.path().join(file), content).expect("there is room");
        let second = [group(dir.path(), 2, &[])];
        assert_eq!(out_of_memory(&second), None);
        write("memory.events", "low 0\nmax 3\noom 1\noom_kill 0\noom_group_kill 0\n");
        assert_eq!(out_of_memory(&second), None);
        write("memory.events", "low 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n");
        write("memory.max", "64\n");
        let known = OutOfMemory { limit_bytes: Some(64), peak_bytes: None };
        assert_eq!(out_of_memory(&second), Some(known), "an older kernel keeps no peak");
        write("memory.peak", "63\n");
        assert_eq!(out_of_memory(&second), Some(OutOfMemory { peak_bytes: Some(63), ..known }));
        let first = [group(dir.path(), 1, &[])];
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        write("memory.limit_in_bytes", "128\n");
        write("memory.max_usage_in_bytes", "127\n");
        let known = OutOfMemory { limit_bytes: Some(128), peak_bytes: Some(127) };
        assert_eq!(out_of_memory(&first), Some(known));
    }

    #[test]
    fn a_group_of_version_2_is_killed_as_a_whole_and_no_other_is_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for name in ["first", "second"] {
            fs::create_dir(at(name)).expect("there is room");
            fs::write(at(name).join("cgroup.kill"), "").expect("there is room");
        }
        // An older kernel has no such file, and none is made.
        fs::create_dir(at("older")).expect("there is room");
        kill(&[group(&at("first"), 1, &[]), group(&at("second"), 2, &[]), group(&at("older"), 2, &[])]);
        let said = |name: &str| fs::read_to_string(at(name).join("cgroup.kill")).ok();
        assert_eq!(["first", "second", "older"].map(said), [Some(String::new()), Some("1".to_owned()), None]);
    }
}
