//! The machine's state and its processes, as `/proc` shows them.
//!
//! Owns reading `/proc`. It never writes.

use std::{
    fs, io,
    path::Path,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

use crate::files::names;

/// Returns the kernel's boot id; an empty text if it can't be read, which says nothing.
///
/// The id is read once: a later lack of descriptors must not look like another boot.
pub fn boot_id() -> String {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return known.clone();
    }
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    if read.is_empty() { read } else { KNOWN.get_or_init(|| read).clone() }
}

/// Returns the time in microseconds since 1970.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Returns milliseconds on the machine's monotonic clock, which counts the time of a suspended machine too.
pub fn boot_clock_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A process's entry in `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcStat {
    /// The letter of the process's state.
    pub state: char,
    /// The parent's id.
    pub parent: i32,
    /// The session's id.
    pub session: i32,
    /// The time of its start, in clock ticks since boot.
    pub start_time: u64,
}

/// Reads `/proc/PID/stat`; none if there is no such process, or it can't be looked at.
pub fn proc_stat(pid: i32) -> Option<ProcStat> {
    look_at(pid).ok().flatten()
}

/// Reads `/proc/PID/stat`; none if there is no such process.
///
/// # Errors
/// If the process can't be looked at: it may be there.
pub fn look_at(pid: i32) -> io::Result<Option<ProcStat>> {
    Ok(of_process(fs::read_to_string(format!("/proc/{pid}/stat")))?.as_deref().and_then(parse_stat))
}

/// Turns the errors of a look into `/proc/PID` that say that there is no such process into none.
///
/// # Errors
/// Every other one: the process may be there.
pub fn of_process<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        // The folder is missing, or the process ended while its file was open.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn parse_stat(line: &str) -> Option<ProcStat> {
    // The name is in brackets and may hold anything, brackets too.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(ProcStat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// Returns the ids of all processes.
///
/// # Errors
/// If they can't be listed.
pub fn listed_processes() -> io::Result<Vec<i32>> {
    Ok(names(Path::new("/proc"))?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Returns the machine's memory in bytes, less a tenth and at least 256 MiB of it for the system.
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

    #[test]
    fn a_process_may_have_any_name() {
        let line = "17 (a) R (b) S 4 17 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 5711 1 1 1";
        assert_eq!(parse_stat(line), Some(ProcStat { state: 'S', parent: 4, session: 9, start_time: 5711 }));
    }
}
