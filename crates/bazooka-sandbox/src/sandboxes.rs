//! The sandboxes of this host's instances: their parts, and whether the machine can give them.
//!
//! Owns the choice, made once at start, and the trial that verifies it. A demanded part that the machine can't give is
//! an error at start, so an instance never has weaker isolation than its host registers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    cgroups::{Cgroups, GroupLimits},
    etc::{Etc, EtcError},
    files::{private_folder, remove_all},
    protocol::{Closed, Fence, LaunchSpec, PROTOCOL, SandboxSpec},
    start::{self, TrialError},
};

/// The program that a stack must have besides what the app needs: the command is a line for it.
const SHELL: &str = "bin/sh";

/// The limits of the trial: one of each kind.
const OF_THE_TRIAL: GroupLimits =
    GroupLimits { memory_bytes: Some(64 << 20), cpu_millis: Some(1_000), processes: 1_024 };

/// The reason why instances can't have sandboxes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum SandboxError {
    #[error("can't use {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Etc(#[from] EtcError),
    #[error("can't use the stack {}", path.display())]
    Stack { path: PathBuf, source: io::Error },
    #[error(
        "{} is no stack: it must be a root tree of its own with /{SHELL} in it, as debootstrap makes one", path.display()
    )]
    NotAStack { path: PathBuf },
    #[error(transparent)]
    Trial(#[from] TrialError),
}

/// The parts that sandboxes are to be made of.
#[derive(Clone, Copy, Debug)]
pub struct SandboxParts<'a> {
    /// The folder for the folders that they need.
    pub state: &'a Path,
    /// The tree of a stack, in place of the machine's.
    pub stack: Option<&'a Path>,
    /// The entries of `/etc` besides those that every program needs.
    pub more_of_etc: &'a [&'a str],
    /// The size of `/tmp` in bytes.
    pub tmp_bytes: u64,
    /// The addresses that they can't connect to; none if sockets aren't fenced.
    pub closed: Option<&'a [SocketAddr]>,
}

/// The parts of sandboxes on this machine.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    root: PathBuf,
    base: PathBuf,
    /// The machine's `/etc`; none with a stack.
    etc: Option<Etc>,
    tmp_bytes: u64,
    /// None if sockets aren't fenced.
    closed: Option<Vec<Closed>>,
}

impl Sandboxes {
    /// Prepares the parts. Blocks.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn new(parts: SandboxParts<'_>) -> Result<Sandboxes, SandboxError> {
        let root = parts.state.join("root");
        private_folder(&root).map_err(|source| SandboxError::Folder { path: root.clone(), source })?;
        let (base, etc) = match parts.stack {
            None => {
                let own = parts.state.join("etc");
                (PathBuf::from("/"), Some(Etc::make(Path::new("/etc"), &own, parts.more_of_etc)?))
            }
            Some(stack) => (stack_at(stack)?, None),
        };
        let closed = parts.closed.map(with_all_addresses);
        Ok(Sandboxes { root, base, etc, tmp_bytes: parts.tmp_bytes, closed })
    }

    /// Returns the sandbox of an instance with this port, or with none (0). Blocks briefly.
    pub fn of(&self, port: u16) -> SandboxSpec {
        if let Some(etc) = &self.etc {
            etc.renew();
        }
        SandboxSpec {
            root: self.root.clone(),
            base: self.base.clone(),
            etc: self.etc.as_ref().map(|etc| etc.folder().to_owned()),
            tmp_bytes: self.tmp_bytes,
            fence: self.closed.as_ref().map(|closed| Fence { port, closed: closed.clone() }),
            app_writable: false,
            mounts: Vec::new(),
        }
    }

    /// Starts a command in a sandbox with a limit of each kind. Blocks.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn try_out(
        &self,
        shim: &Path,
        state: &Path,
        cgroups: Option<&Cgroups>,
        uid: u32,
    ) -> Result<(), SandboxError> {
        let place = state.join("trial");
        let failed = |source| SandboxError::Folder { path: place.clone(), source };
        let app = place.join("app");
        let made = || {
            remove_all(&place)?;
            private_folder(&place)?;
            fs::create_dir(&app)?;
            fs::set_permissions(&app, fs::Permissions::from_mode(0o755))
        };
        made().map_err(failed)?;
        let groups = cgroups.map(|cgroups| cgroups.of("0", OF_THE_TRIAL, true));
        let spec = LaunchSpec {
            protocol: PROTOCOL,
            command: "exit 0".to_owned(),
            folder: app,
            env: BTreeMap::new(),
            // As at each start, the shim reads the environment: unread bytes would reset the socket and lose its answer.
            env_apart: true,
            uid: Some(uid),
            memory: None,
            groups: groups.unwrap_or_default(),
            processes: Some(OF_THE_TRIAL.processes),
            sandbox: Some(self.of(1)),
            log_folder: place.clone(),
            stop_timeout_ms: 1_000,
            lease_file: None,
        };
        let tried = start::try_out(shim, &place.join("run"), &spec);
        let _ = fs::remove_dir_all(&place);
        Ok(tried?)
    }
}

/// Returns a stack's canonical path, after verifying that it is a stack.
///
/// # Errors
/// [`SandboxError::Stack`], [`SandboxError::NotAStack`].
pub fn stack_at(stack: &Path) -> Result<PathBuf, SandboxError> {
    let base = stack.canonicalize();
    let base = base.map_err(|source| SandboxError::Stack { path: stack.to_owned(), source })?;
    // A stack's links are meant for its own root, so a link at the end isn't followed. /bin may be a link to usr/bin,
    // so both paths are tried.
    let shell = [SHELL, "usr/bin/sh"].iter().any(|shell| base.join(shell).symlink_metadata().is_ok());
    if base == Path::new("/") || !shell {
        return Err(SandboxError::NotAStack { path: stack.to_owned() });
    }
    Ok(base)
}

/// Returns the coordinator's addresses, from its URLs. A name that can't be resolved now is logged and left out.
pub fn resolved(urls: &[String]) -> Vec<SocketAddr> {
    let mut found = BTreeSet::new();
    for url in urls {
        let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or(host);
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let usual = if url.starts_with("https:") { 443 } else { 80 };
        let host = if has_port { host.to_owned() } else { format!("{host}:{usual}") };
        match host.to_socket_addrs() {
            Ok(addresses) => found.extend(addresses),
            Err(error) => {
                tracing::warn!(url, error = %error, "can't tell an address; instances aren't kept from it");
            }
        }
    }
    found.into_iter().collect()
}

/// Returns the same addresses, and for each address of this machine all others that lead to this machine.
fn with_all_addresses(closed: &[SocketAddr]) -> Vec<Closed> {
    let mut all = BTreeSet::new();
    for address in closed {
        let port = address.port();
        let mut add = |address: IpAddr, bits| {
            all.insert(Closed { address, bits, port });
        };
        let is_own = address.ip().is_unspecified() || UdpSocket::bind((address.ip(), 0)).is_ok();
        if !address.ip().is_unspecified() {
            add(address.ip(), if address.is_ipv4() { 32 } else { 128 });
        }
        if is_own {
            add(Ipv4Addr::new(127, 0, 0, 0).into(), 8);
            add(Ipv4Addr::UNSPECIFIED.into(), 32);
            add(Ipv6Addr::LOCALHOST.into(), 128);
            add(Ipv6Addr::UNSPECIFIED.into(), 128);
            for address in own_addresses() {
                add(address, if address.is_ipv4() { 32 } else { 128 });
            }
        }
    }
    all.into_iter().collect()
}

fn own_addresses() -> Vec<IpAddr> {
    let listed = nix::ifaddrs::getifaddrs().into_iter().flatten();
    listed
        .filter_map(|interface| {
            let address = interface.address?;
            let four = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .filter(|address| !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_one_line;

    #[test]
    fn a_stack_is_a_root_tree() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = stack_at(&dir.path().join("missing")).expect_err("it is missing");
        assert!(in_one_line(&missing).contains("missing: No such file"), "{missing:?}");
        assert!(matches!(stack_at(dir.path()), Err(SandboxError::NotAStack { .. })));
        fs::create_dir_all(dir.path().join("bin")).expect("it can be made");
        fs::write(dir.path().join("bin/sh"), "").expect("it can be made");
        assert!(stack_at(dir.path()).is_ok());
        assert!(stack_at(Path::new("/")).is_err());
    }

    #[test]
    fn what_is_on_this_machine_is_closed_by_each_of_its_addresses() {
        let closed = |addresses: &[&str]| -> Vec<String> {
            let addresses: Vec<SocketAddr> =
                addresses.iter().map(|address| address.parse().expect("valid")).collect();
            let closed = with_all_addresses(&addresses).into_iter();
            closed.map(|closed| format!("{}/{}:{}", closed.address, closed.bits, closed.port)).collect()
        };
        assert_eq!(closed(&["192.0.2.1:2379"]), ["192.0.2.1/32:2379"]);
        let here = closed(&["127.0.0.1:2379"]);
        for wanted in ["127.0.0.0/8:2379", "0.0.0.0/32:2379", "::1/128:2379"] {
            assert!(here.iter().any(|known| known == wanted), "{here:?}");
        }
    }

    #[test]
    fn an_endpoint_is_an_address() {
        let urls =
            ["http://127.0.0.1:2379", "https://[::1]:2380/", "https://192.0.2.1/git"].map(str::to_owned);
        let expected: Vec<SocketAddr> =
            ["127.0.0.1:2379", "192.0.2.1:443", "[::1]:2380"].map(|at| at.parse().expect("valid")).into();
        assert_eq!(resolved(&urls), expected);
    }
}
