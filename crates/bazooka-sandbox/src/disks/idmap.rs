//! Mounts whose files belong to another user than on the disk.
//!
//! Owns the user namespace that says which, and the mount. A slug's files are root's; in an instance they are those of
//! its user, so that a layer over them lets the app change copies of them.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pause, pipe},
};

/// Returns a user namespace in which root stands for a user and the group of the same number. The calling process must
/// have one thread.
///
/// # Errors
/// The kernel's.
pub fn of_root_as(uid: u32) -> io::Result<OwnedFd> {
    let (read, write) = pipe()?;
    // SAFETY: this process has one thread, and the child makes no call that needs a lock.
    #[allow(unsafe_code, reason = "only a process of its own can have another user namespace")]
    let forked = unsafe { fork() }?;
    match forked {
        ForkResult::Child => {
            drop(read);
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            if unshare(CloneFlags::CLONE_NEWUSER).is_ok() && nix::unistd::write(&write, b"!").is_ok() {
                pause();
            }
            // SAFETY: no cleanup of the parent may run in its copy.
            #[allow(unsafe_code, reason = "std's exit would run what is registered for the parent's end")]
            unsafe {
                libc::_exit(0)
            }
        }
        ForkResult::Parent { child } => {
            drop(write);
            let made = mapped(child, File::from(read), uid);
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            made
        }
    }
}

fn mapped(child: Pid, mut ready: File, uid: u32) -> io::Result<OwnedFd> {
    let mut word = [0];
    ready.read_exact(&mut word)?;
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{child}/{map}"), format!("0 {uid} 1\n"))?;
    }
    Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
}

/// Mounts a folder at another place, read-only, with its users mapped.
///
/// # Errors
/// The kernel's: `EINVAL` if the folder's file system can't map users.
pub fn bind(from: &Path, target: &str, users: BorrowedFd<'_>) -> nix::Result<()> {
    let path = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL);
    let (from, target, empty) = (path(from)?, path(Path::new(target))?, c"");
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP
            | libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).map_err(|_| Errno::EBADF)?,
    };
    // SAFETY: paths and attributes outlive the calls, which only read them; the new descriptor is nobody else's.
    #[allow(unsafe_code, reason = "no library of ours has these calls")]
    unsafe {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let tree = Errno::result(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, from.as_ptr(), flags))?;
        let tree = OwnedFd::from_raw_fd(i32::try_from(tree).map_err(|_| Errno::EBADF)?);
        let (fd, size) = (tree.as_raw_fd(), size_of::<libc::mount_attr>());
        let set = libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size,
        );
        Errno::result(set)?;
        let from_the_descriptor = 4; // MOVE_MOUNT_F_EMPTY_PATH
        let moved = libc::syscall(
            libc::SYS_move_mount,
            fd,
            empty.as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            from_the_descriptor,
        );
        Errno::result(moved).map(drop)
    }
}
