//! The ports of a local cluster: checks that they are free, and finds the process that has a taken one.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    command::dev::Args,
    failure::{Failure, Kind, Result},
    show::clean,
};

/// The time that parts of a killed cluster may take to end: their instances have 30 s.
const LEFTOVERS_FOR: Duration = Duration::from_secs(40);

/// Checks that each port is free.
///
/// Waits for processes of a killed cluster on the same folder while they end. An HAProxy of that cluster stays: the
/// new proxy adopts it.
///
/// # Errors
/// If a port is taken. The error names the process, if it can be known, and the flag that changes the port.
pub async fn check(args: &Args, state: &Path) -> Result<()> {
    let ports = [
        ("--coordinator-port", args.coordinator_port, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ("--rm-port", args.rm_port, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ("--public-port", args.public_port, args.public_address),
    ];
    for (at, (flag, port, _)) in ports.iter().enumerate() {
        if let Some((other, ..)) = ports[..at].iter().find(|(_, other, _)| other == port) {
            return Err(Failure::new(Kind::Usage, format!("{other} and {flag} are both {port}")));
        }
        if *port == 0 {
            return Err(Failure::new(Kind::Usage, format!("{flag} can't be 0: clients must know it")));
        }
    }
    let until = Instant::now() + LEFTOVERS_FOR;
    for (flag, port, address) in ports {
        loop {
            let error = match TcpListener::bind((address, port)) {
                Ok(_) => break,
                Err(error) => error,
            };
            let address = SocketAddr::new(address, port);
            let failure = Failure::new(Kind::Failed, format!("{address} can't be listened on"));
            if error.kind() == ErrorKind::AddrNotAvailable && flag == "--public-port" {
                return Err(failure.because(error.to_string()).hint(
                    "choose an address of this machine with --public-address, or 0.0.0.0 for all of them",
                ));
            }
            if error.kind() != ErrorKind::AddrInUse {
                return Err(failure.because(error.to_string()).hint(format!("choose another with {flag}")));
            }
            let holder = holder_of(address);
            if holder.as_ref().is_some_and(|holder| holder.is_of(state)) {
                if flag == "--public-port" {
                    break;
                }
                if Instant::now() < until {
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
            let who = match holder {
                Some(holder) => format!("process {} ({}) has it", holder.pid, holder.name),
                None => "another process has it".to_owned(),
            };
            return Err(failure
                .because(who)
                .hint(format!("stop that one, or choose another port with {flag}")));
        }
    }
    Ok(())
}

/// A process that listens on a port.
#[derive(Debug)]
struct Holder {
    pid: u32,
    name: String,
    command: String,
}

impl Holder {
    /// Reports whether the process belongs to a cluster on this folder.
    fn is_of(&self, state: &Path) -> bool {
        let folder = format!("{}/", state.display());
        self.command.contains(&folder)
    }
}

/// Returns the process that listens on `address`, if this user may see it.
fn holder_of(address: SocketAddr) -> Option<Holder> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listeners(&table, address))
        .collect();
    let processes =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    processes.filter_map(|name| name.parse::<u32>().ok()).find_map(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let holds =
            open.filter_map(Result::ok).filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| {
                let target = target.to_string_lossy();
                inodes.iter().any(|inode| target == format!("socket:[{inode}]"))
            });
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let text = |file: &str| String::from_utf8_lossy(&read(file)).replace('\0', " ");
        holds.then(|| Holder { pid, name: clean(text("comm").trim()), command: text("cmdline") })
    })
}

/// Returns the sockets of a `/proc/net/tcp` table that listen on an address, or on all addresses.
fn listeners(table: &str, wanted: SocketAddr) -> Vec<String> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let ip = ip_of(ip)?;
        let overlaps = ip == wanted.ip() || ip.is_unspecified() || wanted.ip().is_unspecified();
        let is_same_port = u16::from_str_radix(port, 16) == Ok(wanted.port());
        // 0A is LISTEN.
        let is_it = overlaps && is_same_port && *fields.get(3)? == "0A";
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().filter_map(row).collect()
}

/// Parses an address of the kernel's table: words of 32 bits, each in this machine's byte order.
fn ip_of(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(digits.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match digits.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().expect("four words are sixteen bytes");
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   \
            1: 0100007F:094B 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n";
        let at = |address: &str| listeners(table, address.parse().expect("an address"));
        assert_eq!(at("127.0.0.1:2379"), ["4711"]);
        assert_eq!(at("0.0.0.0:2379"), ["4711"], "it takes every address");
        assert_eq!(at("127.0.0.2:2379"), [""; 0], "another address is another's");
        assert_eq!(at("127.0.0.1:2380"), [""; 0]);
        let every = "   0: 00000000000000000000000000000000:094B 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4713 1\n";
        assert_eq!(listeners(every, "127.0.0.1:2379".parse().expect("an address")), ["4713"]);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_its_holder_and_its_flag() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = taken.local_addr().expect("it has an address").port();
        let free =
            |not: u16| (20_000..60_000).find(|p| *p != not && TcpListener::bind(("0.0.0.0", *p)).is_ok());
        let args = Args {
            state: None,
            hosts: 1,
            coordinator_port: free(0).expect("one is free"),
            public_port: free(1).expect("one is free") + 1,
            public_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            rm_port: port,
            domain: "localhost".into(),
        };
        let failure = check(&args, Path::new("/nonexistent")).await.expect_err("it is taken");
        let told = failure.to_string();
        assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        assert!(told.contains("--rm-port"), "{told}");
        let twice = Args { rm_port: args.coordinator_port, ..args };
        assert_eq!(
            check(&twice, Path::new("/nonexistent")).await.expect_err("twice the same").kind,
            Kind::Usage
        );
    }
}
