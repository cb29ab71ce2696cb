//! The listening sockets of this machine: one look at the kernel's table serves all booting instances.
//!
//! Owns reading the table (netlink's sock_diag) and telling whose a listener is. It never connects to anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use bazooka_sandbox::machine::{listed_processes, look_at, of_process};

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// True if it takes no connections by IPv4, although it listens on every address (IPV6_V6ONLY).
    pub is_six_only: bool,
    /// The user who owns it.
    pub uid: u32,
    /// The socket's inode, by which its process can be found.
    pub inode: u32,
}

impl Listener {
    /// Reports whether it would receive a connection to this address.
    pub fn answers(&self, ip: IpAddr) -> bool {
        match self.address.ip() {
            IpAddr::V6(own) if own.is_unspecified() => ip.is_ipv6() || !self.is_six_only,
            IpAddr::V4(own) if own.is_unspecified() => ip.is_ipv4(),
            IpAddr::V6(own) => own.to_ipv4_mapped().map_or(IpAddr::V6(own), IpAddr::V4) == ip,
            own => own == ip,
        }
    }
}

/// An open socket to the kernel's table.
pub struct Table {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Table {
    /// Opens the table.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Table> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Table { socket, buffer: vec![0; 16 << 10] })
    }

    /// Returns all listening TCP sockets.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listeners(&mut self) -> io::Result<Vec<Listener>> {
        let mut found = Vec::new();
        self.dump(AF_INET, SocketId::new_v4(), &mut found)?;
        self.dump(AF_INET6, SocketId::new_v6(), &mut found)?;
        Ok(found)
    }

    fn dump(&mut self, family: u8, socket_id: SocketId, found: &mut Vec<Listener>) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id,
        };
        let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let size = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            let mut rest = &self.buffer[..size];
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        found.push(listener(&response));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
                // Messages are aligned to four bytes.
                let length = (message.header.length as usize).max(16).div_ceil(4) * 4;
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn listener(response: &InetResponse) -> Listener {
    let id = &response.header.socket_id;
    Listener {
        address: SocketAddr::new(id.source_address, id.source_port),
        // The kernel sends the attribute with each IPv6 listener.
        is_six_only: response.nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true))),
        uid: response.header.uid,
        inode: response.header.inode,
    }
}

/// The property by which an instance's listeners are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The instance's own user.
    Uid(u32),
    /// Descent from its shim's process.
    Below(i32),
}

/// Finds the owners of listeners, with at most one look at the machine's processes.
#[derive(Default)]
pub struct Ownership {
    parents: Option<BTreeMap<i32, i32>>,
    sockets: BTreeMap<i32, Sockets>,
}

/// The sockets of the processes below a shim.
#[derive(Default)]
struct Sockets {
    /// The inodes of those that were read.
    inodes: BTreeSet<u32>,
    /// The first process whose sockets could not be read, and why: others of the shim's sockets may be there.
    unread: Option<(i32, io::ErrorKind)>,
}

impl Ownership {
    /// Reports whether a listener belongs to this owner.
    ///
    /// # Errors
    /// The machine's processes can't be read, or one below the shim can't: the listener may be the owner's.
    pub fn is_of(&mut self, listener: &Listener, owner: Owner) -> io::Result<bool> {
        match owner {
            Owner::Uid(uid) => Ok(listener.uid == uid),
            Owner::Below(shim) => {
                let below = self.sockets_below(shim)?;
                match below.unread {
                    _ if below.inodes.contains(&listener.inode) => Ok(true),
                    None => Ok(false),
                    Some((pid, kind)) => {
                        Err(io::Error::new(kind, format!("can't read the sockets of process {pid}: {kind}")))
                    }
                }
            }
        }
    }

    /// Returns what was seen of a shim: a socket below it, and a process whose sockets could not be read.
    #[cfg(test)]
    pub fn seen(shim: i32, inode: u32, unread: Option<i32>) -> Ownership {
        let unread = unread.map(|pid| (pid, io::ErrorKind::PermissionDenied));
        let sockets = Sockets { inodes: [inode].into(), unread };
        Ownership { parents: Some(BTreeMap::new()), sockets: [(shim, sockets)].into() }
    }

    fn sockets_below(&mut self, shim: i32) -> io::Result<&Sockets> {
        let parents = match self.parents.take() {
            Some(parents) => parents,
            None => parents()?,
        };
        let parents = self.parents.insert(parents);
        Ok(self.sockets.entry(shim).or_insert_with(|| {
            let descends = |pid: i32| {
                let mut at = pid;
                // Process trees have no cycles, but two looks at a changing table could show one.
                for _ in 0..64 {
                    match parents.get(&at) {
                        Some(parent) if *parent == shim => return true,
                        Some(parent) => at = *parent,
                        None => return false,
                    }
                }
                false
            };
            let mut sockets = Sockets::default();
            for pid in parents.keys().filter(|pid| descends(**pid)) {
                match sockets_in(Path::new(&format!("/proc/{pid}/fd"))) {
                    Ok(inodes) => sockets.inodes.extend(inodes),
                    Err(error) => sockets.unread = sockets.unread.or(Some((*pid, error.kind()))),
                }
            }
            sockets
        }))
    }
}

/// Returns the parent of each process.
///
/// # Errors
/// The processes can't be listed, or one can't be looked at, unless it is another user's that this one may not see.
fn parents() -> io::Result<BTreeMap<i32, i32>> {
    let mut parents = BTreeMap::new();
    for pid in listed_processes()? {
        match look_at(pid) {
            Ok(stat) => parents.extend(stat.map(|stat| (pid, stat.parent))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parents)
}

/// Returns the inodes of a process's sockets, from its folder of open files; none if the process has ended.
///
/// # Errors
/// The folder or a link in it can't be read.
fn sockets_in(folder: &Path) -> io::Result<Vec<u32>> {
    let Some(open) = of_process(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let mut inodes = Vec::new();
    for entry in open {
        let Some(entry) = of_process(entry)? else { continue };
        // A file may be closed meanwhile.
        let Some(target) = of_process(fs::read_link(entry.path()))? else { continue };
        let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u32>().ok()));
    }
    Ok(inodes)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use bazooka_sandbox::machine::proc_stat;

    use super::*;

    #[test]
    fn a_listener_is_seen_and_known_to_be_its_process_own() {
        let own = TcpListener::bind(("127.0.0.9", 0)).expect("a port is free");
        let address = own.local_addr().expect("it listens");
        let mut table = Table::open().expect("the kernel has sock_diag");
        let listeners = table.listeners().expect("it answers");
        let seen = listeners.iter().find(|seen| seen.address == address).expect("ours is among them");
        assert!(seen.answers("127.0.0.9".parse().expect("valid")));
        assert!(!seen.answers("127.0.0.8".parse().expect("valid")));
        let mut ownership = Ownership::default();
        let parent = proc_stat(std::process::id() as i32).expect("this test runs").parent;
        let mut is_below = |pid| ownership.is_of(seen, Owner::Below(pid)).expect("/proc can be read");
        assert!(is_below(parent));
        assert!(!is_below(std::process::id() as i32), "nobody below us listens");
        drop(own);
        let later = table.listeners().expect("it answers");
        assert!(later.iter().all(|seen| seen.address != address));
    }

    #[test]
    fn a_listener_on_every_address_answers_on_each() {
        let (four, six): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().expect("valid"), "fd00::1".parse().expect("valid"));
        for (address, is_six_only, answers) in [
            ("0.0.0.0:80", false, (true, false)),
            ("[::]:80", false, (true, true)),
            ("[::]:80", true, (false, true)),
            ("10.0.0.1:80", false, (true, false)),
            ("[::ffff:10.0.0.1]:80", false, (true, false)),
            ("127.0.0.1:80", false, (false, false)),
            ("[::1]:80", false, (false, false)),
        ] {
            let address = address.parse().expect("valid");
            let listener = Listener { address, is_six_only, uid: 0, inode: 0 };
            assert_eq!((listener.answers(four), listener.answers(six)), answers, "{listener:?}");
        }
    }

    #[test]
    fn the_kernel_tells_who_takes_ipv6_alone() {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket,
            sockopt,
        };
        use std::os::fd::AsRawFd;
        let mut made = Vec::new();
        for only in [true, false] {
            let every = SockaddrIn6::from("[::]:0".parse::<std::net::SocketAddrV6>().expect("valid"));
            let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None);
            let Some(fd) = fd.ok().filter(|fd| {
                setsockopt(fd, sockopt::Ipv6V6Only, &only).is_ok() && bind(fd.as_raw_fd(), &every).is_ok()
            }) else {
                eprintln!("not tried: this machine has no IPv6");
                return;
            };
            listen(&fd, Backlog::new(1).expect("it is small")).expect("it listens");
            made.push((TcpListener::from(fd), only));
        }
        let listeners = Table::open().expect("the kernel has sock_diag").listeners().expect("it answers");
        for (own, only) in made {
            let address = own.local_addr().expect("it listens");
            let seen = listeners.iter().find(|seen| seen.address == address).expect("ours is among them");
            assert_eq!(seen.is_six_only, only);
        }
    }

    #[test]
    fn sockets_that_cannot_be_read_are_not_taken_for_none() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("fd");
        assert!(sockets_in(&file).expect("the process has ended").is_empty());
        fs::write(&file, "").expect("it can be written");
        sockets_in(&file).expect_err("this is no folder");
        let address = "10.0.0.1:80".parse().expect("valid");
        let listener = |inode| Listener { address, is_six_only: false, uid: 0, inode };
        let mut ownership = Ownership::seen(5, 7, Some(12));
        assert!(ownership.is_of(&listener(7), Owner::Below(5)).expect("it was read"));
        let unknown = ownership.is_of(&listener(8), Owner::Below(5)).expect_err("process 12 may have it");
        assert!(unknown.to_string().contains("process 12"), "{unknown}");
    }
}
