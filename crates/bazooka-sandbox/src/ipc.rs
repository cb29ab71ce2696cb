//! Shared memory, semaphores and message queues that a user leaves behind.
//!
//! Owns their removal. In a sandbox they end with its namespace; a user without one would leave them to the next holder
//! of its id.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use nix::libc;

/// The folders of POSIX shared memory and semaphores, and of POSIX message queues.
const POSIX: [&str; 2] = ["/dev/shm", "/dev/mqueue"];

/// Removes what a user without processes has left. What others own stays.
pub fn remove_of(uid: u32) {
    for (list, remove) in [
        ("shm", remove_memory as fn(i32)),
        ("sem", remove_semaphores as fn(i32)),
        ("msg", remove_queue as fn(i32)),
    ] {
        let table = fs::read_to_string(Path::new("/proc/sysvipc").join(list)).unwrap_or_default();
        owned(&table, uid).into_iter().for_each(remove);
    }
    for entry in POSIX.iter().flat_map(fs::read_dir).flatten().flatten() {
        let Ok(known) = entry.metadata() else { continue };
        if known.uid() != uid {
            continue;
        }
        // A failure leaves it to the next sweep of this user.
        let _ = if known.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
    }
}

/// Returns the ids in a table of `/proc/sysvipc` whose owner or creator is this user.
fn owned(table: &str, uid: u32) -> Vec<i32> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let heads = lines.next().unwrap_or_default();
    let at = |name: &str| heads.iter().position(|head| *head == name);
    let (Some(owner), Some(creator)) = (at("uid"), at("cuid")) else { return Vec::new() };
    let is_of =
        |line: &[&str], column: usize| line.get(column).and_then(|word| word.parse().ok()) == Some(uid);
    // The id is in the second column of each table: shmid, semid, msqid.
    lines
        .filter(|line| is_of(line, owner) || is_of(line, creator))
        .filter_map(|line| line.get(1)?.parse().ok())
        .collect()
}

#[allow(unsafe_code, reason = "no library of ours has this call")]
fn remove_memory(id: i32) {
    // SAFETY: with IPC_RMID the call reads no memory of this process.
    let _ = unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

#[allow(unsafe_code, reason = "no library of ours has this call")]
fn remove_semaphores(id: i32) {
    // SAFETY: with IPC_RMID the call takes no fourth argument.
    let _ = unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
}

#[allow(unsafe_code, reason = "no library of ours has this call")]
fn remove_queue(id: i32) {
    // SAFETY: with IPC_RMID the call reads no memory of this process.
    let _ = unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_owns_or_made_is_found_by_the_names_of_the_columns() {
        let table = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                              0          3   600          1    71    71    71    71          0 1764464400\n\
                              0          4   600          1    72    72    72    72          0 1764464400\n\
                              0          5   600          1    72    72    71    71          0 1764464400\n";
        assert_eq!(owned(table, 71), [3, 5]);
        assert_eq!(owned("", 71), Vec::<i32>::new());
    }

    #[test]
    fn what_a_user_left_is_removed_and_what_others_have_stays() {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/shm").is_dir() {
            eprintln!("not tried: it takes root and /dev/shm");
            return;
        }
        // No test has these users; each run has its own.
        let uid = 1_610_000_000 + std::process::id() % 1_000_000 * 2;
        let left = |uid: u32| {
            // SAFETY: the call makes a segment, which nobody attaches.
            #[allow(unsafe_code, reason = "no library of ours has this call")]
            let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 4_096, 0o600) };
            assert!(id >= 0, "it can be made");
            // SAFETY: the structure lives as long as the two calls, which fill and read it.
            #[allow(unsafe_code, reason = "no library of ours has these calls")]
            unsafe {
                let mut known: libc::shmid_ds = std::mem::zeroed();
                assert_eq!(libc::shmctl(id, libc::IPC_STAT, &raw mut known), 0);
                known.shm_perm.uid = uid;
                assert_eq!(libc::shmctl(id, libc::IPC_SET, &raw mut known), 0);
            }
            let file = Path::new("/dev/shm").join(format!("bazooka-test-{uid}"));
            fs::write(&file, "x").expect("there is room");
            std::os::unix::fs::chown(&file, Some(uid), Some(uid)).expect("root may");
            (id, file)
        };
        let of = |uid: u32| owned(&fs::read_to_string("/proc/sysvipc/shm").expect("it is there"), uid);
        let ((id, file), (other_id, other_file)) = (left(uid), left(uid + 1));
        assert_eq!((of(uid), of(uid + 1)), (vec![id], vec![other_id]));
        remove_of(uid);
        assert_eq!((of(uid), file.exists()), (Vec::new(), false));
        assert_eq!((of(uid + 1), other_file.exists()), (vec![other_id], true));
        remove_of(uid + 1);
        assert!(!other_file.exists());
    }
}
