//! Descriptors of the kernel that the runtime waits on: pidfds, and watches of folders.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor to wait until it can be read. Must be called inside a tokio runtime.
///
/// # Errors
/// The system's.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for as long as it lives.
    #[allow(unsafe_code, reason = "there is no safe way to wait on a descriptor of any kind")]
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}
