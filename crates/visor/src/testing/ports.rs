//! Ports for the programs that tests start: which are free, which are claimed, and who listens where.
//!
//! A claim holds for the whole machine until the process that made it ends, however it ends: it is a socket with a name
//! and no file. The ports are below those that the kernel gives to outgoing connections, so that no connection takes
//! one between the claim and its use, and outside of those of `bazooka dev` (21000 and up).

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddress, UnixListener},
    },
    sync::Mutex,
};

/// The ports for single tests.
const PORTS: Range<u16> = 9_000..11_000;

/// A claim that one process of the machine has at a time. Dropping it releases the claim.
#[derive(Debug)]
pub struct Claim {
    _socket: UnixListener,
}

impl Claim {
    /// Claims a name, unless another process or another claim has it.
    pub fn take(name: &str) -> Option<Claim> {
        let address = UnixAddress::from_abstract_name(format!("bazooka-test-{name}")).expect("it is short");
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Some(Claim { _socket: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            Err(error) => panic!("{name} can't be claimed: {error}"),
        }
    }
}

/// Returns a port on which nobody listens, and that no other test gets as long as this process runs.
///
/// # Panics
/// If there is none left.
pub fn free_port() -> u16 {
    static CLAIMS: Mutex<Vec<Claim>> = Mutex::new(Vec::new());
    let count = u32::from(PORTS.end - PORTS.start);
    // Different processes begin at different places.
    let begin = u16::try_from(std::process::id().wrapping_mul(37) % count).expect("below the count");
    let later = PORTS.start + begin..PORTS.end;
    let (claim, port) = later
        .chain(PORTS.start..PORTS.start + begin)
        .find_map(|port| {
            let claim = Claim::take(&format!("port-{port}"))?;
            is_free(port).then_some((claim, port))
        })
        .unwrap_or_else(|| panic!("a port of {PORTS:?} is free"));
    CLAIMS.lock().expect("no holder panics").push(claim);
    port
}

/// Reports whether nobody listens on a port, on any address.
pub fn is_free(port: u16) -> bool {
    let bind = |address: SocketAddr| TcpListener::bind(address).map(drop);
    match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        // An IPv6 socket covers IPv4 too, unless the machine is configured otherwise or has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => false,
        _ => bind((Ipv4Addr::UNSPECIFIED, port).into()).is_ok(),
    }
}

/// Returns the TCP addresses (IPv4) on which a process itself listens.
pub fn listeners(pid: u32) -> Vec<SocketAddrV4> {
    let Ok(table) = fs::read_to_string(format!("/proc/{pid}/net/tcp")) else { return Vec::new() };
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let sockets: BTreeSet<String> = open
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok()?.into_os_string().into_string().ok())
        .collect();
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            // 0A is LISTEN.
            if *state != "0A" || !sockets.contains(&format!("socket:[{inode}]")) {
                return None;
            }
            let (ip, port) = local.split_once(':')?;
            // The kernel prints the address in the machine's byte order.
            let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_str_radix(port, 16).ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let given: BTreeSet<u16> = (0..20).map(|_| free_port()).collect();
        assert_eq!(given.len(), 20);
        assert!(given.iter().all(|port| Claim::take(&format!("port-{port}")).is_none()));
    }

    #[test]
    fn a_port_on_which_anybody_listens_is_not_free() {
        let port = free_port();
        assert!(is_free(port));
        let listener = TcpListener::bind(("127.0.0.9", port)).expect("it is free");
        assert!(!is_free(port));
        let own = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 9), port);
        assert!(listeners(std::process::id()).contains(&own), "{own} is this process's");
        drop(listener);
        assert!(!listeners(std::process::id()).contains(&own));
    }

    #[test]
    fn a_claim_ends_with_its_holder() {
        let name = format!("claim-{}", std::process::id());
        let first = Claim::take(&name).expect("nobody has it");
        assert!(Claim::take(&name).is_none());
        drop(first);
        assert!(Claim::take(&name).is_some());
    }
}
