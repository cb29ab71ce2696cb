//! Whose turn it is on this machine: many clusters at a time, or one that needs the whole of it.
//!
//! Owns two files that runs of the tests lock, whoever started them and from whichever folder. A process has at most one
//! hold at a time, which all that is started in it share. Who waits for the whole machine lets nobody else begin meanwhile.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Locked shared by clusters, and alone by what needs the whole machine.
const MACHINE: &str = "/tmp/bazooka-tests.machine";

/// Locked by who waits for the machine.
const QUEUE: &str = "/tmp/bazooka-tests.queue";

/// What this process holds.
static HELD: Mutex<Weak<Held>> = Mutex::new(Weak::new());

#[derive(Debug)]
struct Held {
    whole: bool,
    _machine: Flock<File>,
}

/// A hold on the machine. It ends when the last one of this process is dropped.
#[derive(Clone, Debug)]
pub struct Turn(#[allow(dead_code, reason = "held, not read")] Arc<Held>);

impl Turn {
    /// A turn beside others.
    ///
    /// # Panics
    /// If the files can't be locked.
    pub fn shared() -> Turn {
        Turn::take(false)
    }

    /// A turn alone: waits until each other process has ended its own.
    ///
    /// # Panics
    /// If this process has one beside others, or the files can't be locked.
    pub fn whole() -> Turn {
        Turn::take(true)
    }

    fn take(whole: bool) -> Turn {
        let mut slot = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = slot.upgrade() {
            assert!(held.whole || !whole, "this process has a turn beside others, and asks for one alone");
            return Turn(held);
        }
        let queue = lock(QUEUE, FlockArg::LockExclusive);
        let kind = if whole { FlockArg::LockExclusive } else { FlockArg::LockShared };
        let held = Arc::new(Held { whole, _machine: lock(MACHINE, kind) });
        drop(queue);
        *slot = Arc::downgrade(&held);
        Turn(held)
    }
}

/// Locks a file, and says so where that takes waiting.
fn lock(path: &str, how: FlockArg) -> Flock<File> {
    let at_once = match how {
        FlockArg::LockExclusive => FlockArg::LockExclusiveNonblock,
        _ => FlockArg::LockSharedNonblock,
    };
    match Flock::lock(open(Path::new(path)), at_once) {
        Ok(locked) => locked,
        Err((file, Errno::EWOULDBLOCK)) => {
            eprintln!("waiting for another run of the tests, which has {path} locked");
            match Flock::lock(file, how) {
                Ok(locked) => locked,
                Err((_, errno)) => panic!("{path} can't be locked: {errno}"),
            }
        }
        Err((_, errno)) => panic!("{path} can't be locked: {errno}"),
    }
}

/// Opens a file that may be another user's, or makes it.
fn open(path: &Path) -> File {
    let made = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o666).open(path);
    File::open(path).or_else(|_| made()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
