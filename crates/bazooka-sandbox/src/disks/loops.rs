//! Loop devices: block devices over files.
//!
//! Owns taking a free device. The kernel releases it when its last mount and its last descriptor have gone.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    path::PathBuf,
};

use nix::{errno::Errno, libc};

const CONTROL: &str = "/dev/loop-control";

/// LOOP_CTL_GET_FREE.
const GET_FREE: libc::c_ulong = 0x4C82;

/// LOOP_CONFIGURE, from Linux 5.8 on.
const CONFIGURE: libc::c_ulong = 0x4C0A;

/// LO_FLAGS_AUTOCLEAR: released with its last user.
const AUTOCLEAR: u32 = 4;

/// LO_FLAGS_DIRECT_IO: the file's content isn't cached besides that of the file system in it.
const DIRECT_IO: u32 = 16;

/// The attempts to take a free device: another process may take it first.
const ATTEMPTS: u32 = 1_000;

/// `struct loop_config` of the kernel.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    /// The fields of `struct loop_info64` before its flags.
    before: [u64; 5],
    number: u32,
    encrypt: [u32; 2],
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// Takes a free device for a file. The device stays taken as long as its descriptor is open or it is mounted.
///
/// # Errors
/// The kernel's.
pub fn attach(file: &File) -> io::Result<(File, PathBuf)> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let mut flags = AUTOCLEAR | DIRECT_IO;
    for _ in 0..ATTEMPTS {
        let number = ioctl(&control, GET_FREE, 0)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match File::options().read(true).write(true).open(&path) {
            Ok(device) => device,
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => continue,
            Err(error) => return Err(error),
        };
        match configure(&device, file.as_raw_fd(), flags) {
            Ok(()) => return Ok((device, path)),
            Err(Errno::EBUSY) => {}
            // The file's own file system may not have it.
            Err(Errno::EINVAL) if flags & DIRECT_IO != 0 => flags = AUTOCLEAR,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::EBUSY.into())
}

fn configure(device: &File, file: RawFd, flags: u32) -> nix::Result<()> {
    let config = Config {
        fd: u32::try_from(file).expect("an open descriptor isn't negative"),
        block_size: 0,
        before: [0; 5],
        number: 0,
        encrypt: [0; 2],
        flags,
        names: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    let address = &raw const config as libc::c_ulong;
    ioctl(device, CONFIGURE, address).map(drop)
}

fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> nix::Result<libc::c_int> {
    // SAFETY: the argument is a number, or the address of a structure that outlives the call and that the kernel reads.
    #[allow(unsafe_code, reason = "no library of ours has these calls")]
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    Errno::result(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<Config>(), 304);
        assert_eq!(std::mem::offset_of!(Config, flags), 8 + 52);
    }
}
