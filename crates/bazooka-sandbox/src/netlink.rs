//! Requests to the kernel's routing (rtnetlink): one route, and addresses of `lo`.
//!
//! Owns the form of these messages. A shim makes them at each start, so it starts no program for them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;

/// The index of `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

// linux/rtnetlink.h, linux/if_addr.h
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const TABLE_LOCAL: u8 = 255;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_HOST: u8 = 254;
const KIND_LOCAL: u8 = 2;
const NO_DUPLICATES_CHECK: u8 = 0x02;

/// A request, padded as the kernel wants it.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: i32, head: &[u8]) -> Request {
        let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags).expect("flags have 16 bits");
        // The length comes last; sequence and sender are the kernel's to set for us.
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(head);
        Request { bytes }
    }

    fn with(mut self, kind: u16, content: &[u8]) -> Request {
        let length = u16::try_from(4 + content.len()).expect("an attribute is short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Sends it, and waits for the kernel's answer, which comes at once.
    fn send(mut self) -> io::Result<()> {
        let length = u32::try_from(self.bytes.len()).expect("a request is short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let socket = socket()?;
        let mut answer = [0_u8; 1_024];
        // SAFETY: both buffers outlive their call and are as long as is said.
        #[allow(unsafe_code, reason = "nix has no way to send to the kernel's own address")]
        let received = unsafe {
            let (bytes, fd) = (&self.bytes, socket.as_raw_fd());
            if libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0)
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let word = |at: usize| answer[..received].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        // The answer is a head of 16 bytes, then the error's negative number, 0 for success.
        match word(16).map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the call has no memory of ours; its descriptor is ours alone.
    #[allow(unsafe_code, reason = "nix knows this protocol, but not without a feature for all of netlink")]
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn route(kind: u16, flags: i32, first: Ipv4Addr, bits: u8) -> io::Result<()> {
    let family = u8::try_from(libc::AF_INET).expect("families are small");
    let mut head = vec![family, bits, 0, 0, TABLE_LOCAL, PROTOCOL_BOOT, SCOPE_HOST, KIND_LOCAL];
    head.extend([0; 4]);
    Request::new(kind, flags, &head)
        .with(RTA_DST, &first.octets())
        .with(RTA_OIF, &LOOPBACK.to_ne_bytes())
        .send()
}

/// Makes a range of addresses this machine's own; again without harm.
///
/// # Errors
/// The kernel's.
pub fn add_local_route(first: Ipv4Addr, bits: u8) -> io::Result<()> {
    route(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, first, bits)
}

/// Removes such a range.
///
/// # Errors
/// The kernel's.
pub fn remove_local_route(first: Ipv4Addr, bits: u8) -> io::Result<()> {
    route(libc::RTM_DELROUTE, 0, first, bits)
}

fn address(kind: u16, flags: i32, six: Ipv6Addr, more: &[(u16, Vec<u8>)]) -> io::Result<()> {
    let family = u8::try_from(libc::AF_INET6).expect("families are small");
    let mut head = vec![family, 128, NO_DUPLICATES_CHECK, SCOPE_HOST];
    head.extend(LOOPBACK.to_ne_bytes());
    let mut request =
        Request::new(kind, flags, &head).with(IFA_LOCAL, &six.octets()).with(IFA_ADDRESS, &six.octets());
    for (kind, content) in more {
        request = request.with(*kind, content);
    }
    request.send()
}

/// Gives `lo` an address, deprecated from the start: no connection to elsewhere has it as its source.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::AlreadyExists`] if it is there.
pub fn add_address(six: Ipv6Addr) -> io::Result<()> {
    let lifetimes: Vec<u8> = [0, u32::MAX, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    address(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, six, &[(IFA_CACHEINFO, lifetimes)])
}

/// Takes an address from `lo`.
///
/// # Errors
/// The kernel's.
pub fn remove_address(six: Ipv6Addr) -> io::Result<()> {
    address(libc::RTM_DELADDR, 0, six, &[])
}
