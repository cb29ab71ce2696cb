//! The options of a host's bazooka-pm.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use bazooka_daemon::settings::Range;
use bazooka_sandbox::{
    disks::USUAL_BYTES,
    isolation::{Isolation, Part},
    targets::Target,
};
use visor::{
    links::ServicesAddress,
    names::{HostName, ZoneName},
};

/// What becomes of the instances when bazooka-pm is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// They run on, and the next bazooka-pm takes them over
    Keep,
    /// They are ended first
    Stop,
}

/// A host's options.
#[derive(Clone, Debug, clap::Args)]
pub struct HostOptions {
    /// This host's name; the machine's unless given
    #[arg(long, env = "BAZOOKA_HOST", value_name = "NAME")]
    pub host: Option<HostName>,
    /// Where this host's instances are reached; the address of the default route unless given
    #[arg(long, env = "BAZOOKA_ADDRESS", value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Where this host stands
    #[arg(long, env = "BAZOOKA_ZONE", value_name = "ZONE", default_value = "default")]
    pub zone: ZoneName,
    /// The ports that instances get
    #[arg(long, env = "BAZOOKA_PORTS", value_name = "FIRST-LAST", default_value = "21000-21999")]
    pub ports: Range<u16>,
    /// Where to keep slugs and instances
    #[arg(long, env = "BAZOOKA_STATE", value_name = "DIR", default_value = "/var/lib/bazooka-pm")]
    pub state: PathBuf,
    /// Where to listen for questions about logs and metrics; port 0: any
    #[arg(long, env = "BAZOOKA_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// How instances are kept apart; sandbox for root unless given, none (with a warning) for others
    #[arg(long, env = "BAZOOKA_ISOLATION", value_name = "KIND")]
    pub isolation: Option<Isolation>,
    /// Parts of the sandbox to do without, where this machine can't give them
    #[arg(long, env = "BAZOOKA_WITHOUT", value_name = "PART", value_delimiter = ',')]
    pub without: Vec<Part>,
    /// The tree that a sandbox's root is made of; this machine's own programs unless given
    #[arg(long, env = "BAZOOKA_STACK", value_name = "DIR")]
    pub stack: Option<PathBuf>,
    /// How much /tmp of a sandbox holds, in bytes, unless its proc sets it
    #[arg(long, env = "BAZOOKA_TMP", value_name = "BYTES", default_value_t = USUAL_BYTES)]
    pub tmp: u64,
    /// Where else sandboxed instances can't connect to, such as a bazooka-rm: an address, a range of addresses
    /// (10.0.0.0/8) or a name; without a port, to any port of it
    #[arg(long, env = "BAZOOKA_CLOSED", value_name = "ADDR[:PORT]", value_delimiter = ',')]
    pub closed: Vec<Target>,
    /// Where sandboxed instances can connect to although it is this machine's own, such as a database on it
    #[arg(long, env = "BAZOOKA_OPEN", value_name = "ADDR[:PORT]", value_delimiter = ',')]
    pub open: Vec<Target>,
    /// Where instances reach the services that their app links: the address or the name of this zone's proxy, or of one
    /// that zones share; without it no instance of an app with links runs here
    #[arg(long, env = "BAZOOKA_SERVICES", value_name = "ADDR")]
    pub services: Option<ServicesAddress>,
    /// The users that instances get; by default none that useradd, rootless containers or systemd give out
    #[arg(long, env = "BAZOOKA_UIDS", value_name = "FIRST-LAST", default_value = "1879048192-1879113727")]
    pub uids: Range<u32>,
    /// Memory for instances, in bytes; most of the machine's unless given
    #[arg(long, env = "BAZOOKA_MEMORY", value_name = "BYTES")]
    pub memory: Option<u64>,
    /// How many instances run here at most; unless given, one for each 64 MiB of that memory, 100 for each processor at
    /// most, and no more than there are ports
    #[arg(long, env = "BAZOOKA_SLOTS", value_name = "N")]
    pub slots: Option<u32>,
    /// What becomes of the instances when bazooka-pm is told to end
    #[arg(long, env = "BAZOOKA_ON_EXIT", value_name = "WHAT", default_value = "keep")]
    pub on_exit: OnExit,
    /// The bazooka-shim program; the one beside bazooka-pm unless given
    #[arg(long, env = "BAZOOKA_SHIM", value_name = "PATH")]
    pub shim: Option<PathBuf>,
}

/// Returns the address from which this machine reaches others: that of its default route.
pub fn own_address() -> IpAddr {
    // Nothing is sent: connecting a datagram socket only chooses a route. The target is reserved for examples.
    let chosen = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| {
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        })
        .map(|address| address.ip());
    chosen.unwrap_or(Ipv4Addr::LOCALHOST.into())
}
