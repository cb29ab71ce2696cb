//! The parts of a local cluster: each part's program and arguments.
//!
//! Pure, except that [`Programs::find`] looks for the programs.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::isolation::Apart;
use crate::{
    command::dev::Args,
    failure::{Failure, Kind as FailureKind, Result},
};

/// The first instance port of the first host. Each host has a thousand ports, all below Linux's ephemeral ports.
const FIRST_PORT: u16 = 21_000;
const PORTS_PER_HOST: u16 = 1_000;

/// The time that a part without instances may take to stop.
const SOON: Duration = Duration::from_secs(10);

/// The time that bazooka-pm may take to stop: instances have 30 s from SIGTERM, unless their proc has another setting.
const AFTER_INSTANCES: Duration = Duration::from_secs(60);

/// The paths of the programs.
#[derive(Clone, Debug)]
pub struct Programs {
    etcd: PathBuf,
    haproxy: PathBuf,
    rm: PathBuf,
    pm: PathBuf,
    proxy: PathBuf,
}

impl Programs {
    /// Finds each program in `$PATH`. For Bazooka's own programs, the folder of this executable comes first.
    ///
    /// # Errors
    /// If a program is missing; the error names its package.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian installs daemons in folders that aren't in an ordinary user's `$PATH`.
        let path = || std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let find = |name: &str, mut dirs: Box<dyn Iterator<Item = PathBuf>>| {
            dirs.find_map(|dir| Some(dir.join(name)).filter(|file| is_executable(file)))
        };
        let system = |name: &str, package: &str| {
            find(name, Box::new(path().collect::<Vec<_>>().into_iter())).ok_or_else(|| {
                Failure::new(FailureKind::PartMissing, format!("{name} is not installed"))
                    .hint(format!("apt-get install {package}"))
            })
        };
        let ours = |name: &str| {
            let dirs: Vec<PathBuf> = beside.clone().into_iter().chain(path()).collect();
            find(name, Box::new(dirs.into_iter())).ok_or_else(|| {
                Failure::new(
                    FailureKind::PartMissing,
                    format!("{name} is neither beside bazooka nor in $PATH"),
                )
                .hint("build all of it: cargo build --release --workspace, or deploy/up")
            })
        };
        // bazooka-rm starts git, bazooka-pm starts bazooka-shim. Fail now rather than at the first push.
        system("git", "git")?;
        let programs = Programs {
            etcd: system("etcd", "etcd-server")?,
            haproxy: system("haproxy", "haproxy")?,
            rm: ours("bazooka-rm")?,
            pm: ours("bazooka-pm")?,
            proxy: ours("bazooka-proxy")?,
        };
        let shim = programs.pm.with_file_name("bazooka-shim");
        if !is_executable(&shim) {
            let what = format!("{} is missing beside bazooka-pm", shim.display());
            return Err(Failure::new(FailureKind::PartMissing, what)
                .hint("build all of it: cargo build --release --workspace, or deploy/up"));
        }
        Ok(programs)
    }

    /// Returns the path of bazooka-pm.
    pub fn pm(&self) -> &Path {
        &self.pm
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The kind of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// etcd, the coordinator.
    Etcd,
    /// bazooka-rm.
    Rm,
    /// bazooka-pm converge.
    Converger,
    /// bazooka-pm of a host.
    Host,
    /// bazooka-proxy.
    Proxy,
}

/// The address of a part's endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// No endpoint: the part is not a daemon of Bazooka.
    None,
    /// A fixed address.
    At(SocketAddr),
    /// Any free port of this address, chosen at each start and added to the arguments.
    On(IpAddr),
}

/// A part of a local cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The part's name in messages, and the name of its log.
    pub name: String,
    /// The kind of part.
    pub kind: Kind,
    /// The path of its program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// The working folder, which nobody else may enter; made if it isn't there.
    pub folder: Option<PathBuf>,
    /// The address of its endpoint.
    pub endpoint: Endpoint,
    /// The time that it may take to stop.
    pub stop_within: Duration,
}

/// Returns the parts, in the order in which they start.
pub fn of(args: &Args, state: &Path, programs: &Programs, apart: Apart) -> Vec<Part> {
    let coordinator = format!("http://127.0.0.1:{}", args.coordinator_port);
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ours = |name: &str, kind, program: &Path, endpoint, words: Vec<OsString>| Part {
        name: name.to_owned(),
        kind,
        program: program.to_owned(),
        args: words.into_iter().chain(["--coordinator".into(), coordinator.clone().into()]).collect(),
        folder: None,
        endpoint,
        stop_within: if kind == Kind::Host { AFTER_INSTANCES } else { SOON },
    };
    let folder = |name: &str| state.join(name).into_os_string();

    let rm_at = SocketAddr::new(localhost, args.rm_port);
    let mut rm: Vec<OsString> = vec!["--name".into(), "rm1".into(), "--state".into(), folder("rm")];
    rm.extend(["--listen".into(), rm_at.to_string().into()]);
    rm.extend(apart.words("--build-"));
    let converger: Vec<OsString> = vec!["converge".into(), "--name".into(), "converger1".into()];
    let mut proxy: Vec<OsString> = vec!["--name".into(), "proxy1".into(), "--state".into(), folder("proxy")];
    proxy.extend(["--run-haproxy".into(), "--on-exit".into(), "stop".into()]);
    proxy.extend(["--haproxy".into(), programs.haproxy.clone().into_os_string()]);
    proxy.extend(["--domain".into(), args.domain.clone().into()]);
    let public = SocketAddr::new(args.public_address, args.public_port);
    proxy.extend(["--public".into(), public.to_string().into()]);
    proxy.extend(["--bind".into(), args.public_address.to_string().into()]);
    // The address at which instances reach the services' ports. 0.0.0.0 includes this machine's loopback address.
    let services = if args.public_address.is_unspecified() { localhost } else { args.public_address };

    let mut parts = vec![
        etcd(&coordinator, state, programs),
        ours("rm", Kind::Rm, &programs.rm, Endpoint::At(rm_at), rm),
        ours("converger", Kind::Converger, &programs.pm, Endpoint::On(localhost), converger),
    ];
    for n in 1..=args.hosts {
        let name = format!("host{n}");
        let (address, first) = (address_of(n), first_port_of(n));
        let mut host: Vec<OsString> = vec!["--host".into(), name.clone().into()];
        host.extend(["--address".into(), address.to_string().into()]);
        host.extend(["--ports".into(), format!("{first}-{}", first + PORTS_PER_HOST - 1).into()]);
        host.extend(["--state".into(), folder(&name), "--on-exit".into(), "stop".into()]);
        host.extend(["--closed".into(), rm_at.to_string().into()]);
        host.extend(["--services".into(), services.to_string().into()]);
        host.extend(["--open".into(), open_to(n, args, services).into()]);
        host.extend(apart.words("--"));
        parts.push(ours(&name, Kind::Host, &programs.pm, Endpoint::On(address.into()), host));
    }
    parts.push(ours("proxy", Kind::Proxy, &programs.proxy, Endpoint::On(localhost), proxy));
    parts
}

/// Returns the address of a host, one of `127.0.0.0/8` so that all have the same machine.
fn address_of(host: u16) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, u8::try_from(host + 1).expect("hosts are eleven at most"))
}

/// Returns the first of a host's ports.
fn first_port_of(host: u16) -> u16 {
    FIRST_PORT + (host - 1) * PORTS_PER_HOST
}

/// Returns what a host's instances reach of this machine besides linked services: the apps' public names, and the
/// instances of the other hosts, which would be other machines elsewhere.
fn open_to(host: u16, args: &Args, services: IpAddr) -> String {
    let others = (1..=args.hosts).filter(|other| *other != host).map(|other| {
        let first = first_port_of(other);
        format!("{}:{first}-{}", address_of(other), first + PORTS_PER_HOST - 1)
    });
    let public = SocketAddr::new(services, args.public_port).to_string();
    std::iter::once(public).chain(others).collect::<Vec<_>>().join(",")
}

fn etcd(client: &str, state: &Path, programs: &Programs) -> Part {
    // This etcd has no peers, and must listen for them all the same. Whoever reaches its peer port writes any key, so
    // the port is a Unix socket, `peer:0`, in a folder of its own. etcd takes no path in such a URL.
    let peer = "unix://peer:0";
    let mut data = OsString::from("--data-dir=");
    data.push(state.join("etcd"));
    let words = [
        "--name=dev".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=dev={peer}"),
        // Only watches that were briefly disconnected need the history.
        "--auto-compaction-mode=periodic".to_owned(),
        "--auto-compaction-retention=10m".to_owned(),
        "--quota-backend-bytes=2147483648".to_owned(),
        // A web page in this machine's browser reaches the client port too. Without the gateway, etcd takes nothing but
        // gRPC, which a browser can't speak; the other two keep pages of other names from reading what is left.
        "--enable-grpc-gateway=false".to_owned(),
        format!("--cors={client}"),
        "--host-whitelist=127.0.0.1,localhost".to_owned(),
        "--logger=zap".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    Part {
        name: "etcd".to_owned(),
        kind: Kind::Etcd,
        program: programs.etcd.clone(),
        args: words.into_iter().map(OsString::from).chain([data]).collect(),
        folder: Some(state.join("etcd-peer")),
        endpoint: Endpoint::None,
        stop_within: SOON,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(hosts: u16) -> Vec<Part> {
        parts_at(hosts, "127.0.0.1")
    }

    fn parts_at(hosts: u16, public_address: &str) -> Vec<Part> {
        let args = Args {
            state: None,
            hosts,
            coordinator_port: 2379,
            public_port: 8080,
            public_address: public_address.parse().expect("an address"),
            rm_port: 8081,
            domain: "localhost".into(),
        };
        let programs = Programs {
            etcd: "/usr/bin/etcd".into(),
            haproxy: "/usr/sbin/haproxy".into(),
            rm: "/x/bazooka-rm".into(),
            pm: "/x/bazooka-pm".into(),
            proxy: "/x/bazooka-proxy".into(),
        };
        of(&args, Path::new("/state"), &programs, Apart::Without("fence"))
    }

    fn words(part: &Part) -> String {
        let words: Vec<_> = part.args.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn hosts_have_addresses_and_ports_of_their_own() {
        let parts = parts(3);
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["etcd", "rm", "converger", "host1", "host2", "host3", "proxy"]);
        assert_eq!(
            words(&parts[5]),
            "--host host3 --address 127.0.0.4 --ports 23000-23999 --state /state/host3 --on-exit stop \
             --closed 127.0.0.1:8081 --services 127.0.0.1 \
             --open 127.0.0.1:8080,127.0.0.2:21000-21999,127.0.0.3:22000-22999 --without fence --coordinator http://127.0.0.1:2379"
        );
        assert_eq!(parts[5].endpoint, Endpoint::On("127.0.0.4".parse().expect("an address")));
    }

    #[test]
    fn the_last_of_eleven_hosts_stays_below_ephemeral_ports() {
        let parts = parts(11);
        assert!(
            words(&parts[13]).contains("--address 127.0.0.12 --ports 31000-31999"),
            "{}",
            words(&parts[13])
        );
    }

    #[test]
    fn public_and_service_ports_are_opened_on_one_address() {
        for (address, public, bind, services) in [
            ("127.0.0.1", "127.0.0.1:8080", "127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0:8080", "0.0.0.0", "127.0.0.1"),
            ("10.0.0.5", "10.0.0.5:8080", "10.0.0.5", "10.0.0.5"),
            ("::1", "[::1]:8080", "::1", "::1"),
        ] {
            let parts = parts_at(1, address);
            assert!(
                words(&parts[4]).contains(&format!("--public {public} --bind {bind} ")),
                "{:?}",
                words(&parts[4])
            );
            assert!(words(&parts[3]).contains(&format!("--services {services} ")), "{:?}", words(&parts[3]));
        }
    }

    #[test]
    fn the_coordinator_forgets_its_history_and_all_lies_in_the_state_folder() {
        let parts = parts(1);
        assert!(words(&parts[0]).contains("--auto-compaction-mode=periodic"));
        for flag in
            ["--listen-peer-urls=unix://", "--enable-grpc-gateway=false", "--host-whitelist=127.0.0.1,"]
        {
            assert!(words(&parts[0]).contains(flag), "{flag}: {}", words(&parts[0]));
        }
        assert!(words(&parts[1]).contains("--build-without fence"));
        for part in &parts {
            assert!(part.kind == Kind::Converger || words(part).contains("/state/"), "{part:?}");
        }
    }
}
