//! Parsers for HAProxy's reports about itself.
//!
//! Owns the formats of `show proc`, `show info`, `show servers state`, `show stat` and `show map`.

use std::{collections::BTreeMap, net::SocketAddr};

use super::cli::{Cli, CliError};
use crate::shares::EVEN;

/// HAProxy's processes, as its master reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// The master's process id.
    pub master: u32,
    /// The number of reloads that have failed.
    pub failed_reloads: u32,
    /// The process id of the worker that accepts connections.
    pub worker: Option<u32>,
    /// The process ids of old workers, oldest last. Each ends once its last connection closes.
    pub old: Vec<u32>,
}

impl Processes {
    fn read(answer: &str) -> Option<Self> {
        let mut processes = Processes::default();
        let mut old = false;
        for line in answer.lines() {
            if let Some(title) = line.strip_prefix("# ") {
                old = title.starts_with("old workers");
                continue;
            }
            let mut words = line.split_whitespace();
            let Some(Ok(pid)) = words.next().map(str::parse) else { continue };
            match words.next() {
                Some("master") => {
                    processes.master = pid;
                    let failed = line.split_once("[failed: ").and_then(|(_, rest)| rest.split_once(']'));
                    processes.failed_reloads = failed.and_then(|(n, _)| n.trim().parse().ok()).unwrap_or(0);
                }
                Some("worker") if old => processes.old.push(pid),
                Some("worker") => processes.worker = Some(pid),
                _ => {}
            }
        }
        (processes.master != 0).then_some(processes)
    }
}

/// A worker's state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// The server's address; `None` if it isn't an IP address (a socket).
    pub address: Option<SocketAddr>,
    /// True if the server is in maintenance: HAProxy sends it no new requests.
    pub maintenance: bool,
    /// The weight that was last set.
    pub weight: u16,
}

/// The open sessions of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// The number of requests or connections, queued ones included.
    pub open: u32,
}

impl Cli {
    /// Returns HAProxy's processes.
    ///
    /// # Errors
    /// If the master gives no whole answer.
    pub async fn processes(&self) -> Result<Processes, CliError> {
        let answer = self.master("show proc").await?;
        Processes::read(&answer).ok_or_else(|| CliError::unreadable("show proc", &answer))
    }
}

/// Returns the structural hash of a worker's configuration from `show info`.
pub fn structural_hash(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("description: shape="))
}

/// Returns the number of a worker's open connections from `show info`.
pub fn connections(info: &str) -> Option<u32> {
    info.lines().find_map(|line| line.strip_prefix("CurrConns: ")?.parse().ok())
}

/// Returns the servers by backend and name from `show servers state`.
pub fn servers(answer: &str) -> BTreeMap<String, BTreeMap<String, ServerState>> {
    // The operator or the configuration set maintenance (SRV_ADMF_FMAINT, IMAINT, CMAINT).
    const MAINTENANCE: u32 = 0x01 | 0x02 | 0x04;
    let mut backends: BTreeMap<String, BTreeMap<String, ServerState>> = BTreeMap::new();
    for line in answer.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, backend, _, name, ip, _, admin, weight, ..] = fields[..] else { continue };
        let port = fields.get(18).and_then(|port| port.parse().ok()).unwrap_or(0);
        let address = ip.parse().ok().map(|ip| SocketAddr::new(ip, port));
        let maintenance = admin.parse::<u32>().is_ok_and(|flags| flags & MAINTENANCE != 0);
        let server = ServerState { address, maintenance, weight: weight.parse().unwrap_or(EVEN) };
        backends.entry(backend.to_owned()).or_default().insert(name.to_owned(), server);
    }
    backends
}

/// Returns the lines of `show stat`, each as its columns by name.
fn stat_lines(answer: &str) -> impl Iterator<Item = BTreeMap<&str, &str>> {
    let header: Vec<&str> = answer.lines().next().unwrap_or("").trim_start_matches("# ").split(',').collect();
    answer.lines().skip(1).map(move |line| header.iter().copied().zip(line.split(',')).collect())
}

/// Returns the open sessions by backend and server from `show stat`.
pub fn sessions(answer: &str) -> BTreeMap<(String, String), Sessions> {
    let number = |fields: &BTreeMap<&str, &str>, name| fields.get(name).and_then(|n| n.parse::<u32>().ok());
    stat_lines(answer)
        .filter_map(|fields| {
            let (backend, server) = (fields.get("pxname")?, fields.get("svname")?);
            let open = number(&fields, "scur").unwrap_or(0) + number(&fields, "qcur").unwrap_or(0);
            Some((((*backend).to_owned(), (*server).to_owned()), Sessions { open }))
        })
        .collect()
}

/// Returns the names of the proxies from `show stat`, one for each line.
pub fn proxies(answer: &str) -> Vec<String> {
    stat_lines(answer).filter_map(|fields| fields.get("pxname").map(|name| (*name).to_owned())).collect()
}

/// Returns the entries of a map from `show map FILE`.
pub fn map(answer: &str) -> BTreeMap<String, String> {
    answer
        .lines()
        .filter_map(|line| {
            let (_, entry) = line.split_once(' ')?;
            entry.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart() {
        let answer = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
            13751           master          2 [failed: 1]   0d00h00m21s     2.6.12-1+deb12u4\n\
            # workers\n\
            13882           worker          0               0d00h00m00s     2.6.12-1+deb12u4\n\
            # old workers\n\
            13807           worker          1               0d00h00m20s     2.6.12-1+deb12u4\n\
            13754           worker          2               0d00h00m40s     2.6.12-1+deb12u4\n\
            # programs";
        let expected =
            Processes { master: 13751, failed_reloads: 1, worker: Some(13882), old: vec![13807, 13754] };
        assert_eq!(Processes::read(answer), Some(expected));
        assert_eq!(Processes::read("Unknown command"), None);
    }

    #[test]
    fn a_servers_address_maintenance_and_weight_are_read() {
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state ...\n\
            4 a.web 1 i1 127.0.0.1 0 1 100 100 17 1 0 0 2 0 0 0 - 19001 - 0 0 - - 0\n\
            4 a.web 2 i2 ::1 2 0 14 100 16 6 3 2 6 0 0 0 - 19002 - 0 0 - - 0\n\
            5 successor 1 next - 2 0 1 1 16 1 0 0 0 0 0 0 - 0 - 0 0 - - 0";
        let servers = servers(answer);
        let at = |address: &str| address.parse().ok();
        let server = |address, maintenance, weight| ServerState { address, maintenance, weight };
        assert_eq!(servers["a.web"]["i1"], server(at("127.0.0.1:19001"), true, 100));
        assert_eq!(servers["a.web"]["i2"], server(at("[::1]:19002"), false, 14));
        assert_eq!(servers["successor"]["next"], server(None, false, 1));
    }

    #[test]
    fn waiting_requests_count_as_sessions() {
        let answer = "# pxname,svname,qcur,qmax,scur,smax,\na.web,i1,1,0,2,0,\na.web,i2,0,0,0,0,";
        let sessions = sessions(answer);
        assert_eq!(sessions[&("a.web".to_owned(), "i1".to_owned())].open, 3);
        assert_eq!(sessions[&("a.web".to_owned(), "i2".to_owned())].open, 0);
    }

    #[test]
    fn a_map_is_read_back() {
        let answer = "0x55d4c0 a.localhost a.web\n0x55d4c1 b.example.org b.web";
        let expected = [("a.localhost", "a.web"), ("b.example.org", "b.web")];
        assert_eq!(map(answer), expected.map(|(host, to)| (host.to_owned(), to.to_owned())).into());
    }

    #[test]
    fn the_structural_hash_is_found() {
        assert_eq!(structural_hash("Name: HAProxy\ndescription: shape=00ff\nStopping: 0"), Some("00ff"));
        assert_eq!(structural_hash("Name: HAProxy"), None);
    }
}
