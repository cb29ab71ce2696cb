//! The port at which etcd's members reach each other: who gets in, what one could do there, and the ways from the cluster's
//! authority or a stolen one to a new one of the peers' own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bazooka_daemon::probing_client;
use bazooka_rm::pki::{Address, Authority, Issued};
use bazooka_tests::{Part, SOON, program, until};
use jiff::Timestamp;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use visor::{
    identity::Credentials,
    store::{
        Keys, Op, Store, Txn,
        etcd::{EtcdConfig, EtcdStore},
    },
    testing::free_port,
};

/// The members' addresses. Connections between loopback addresses come from the first, so certificates name it as well.
const ADDRESSES: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];

/// The prefix of the test's keys.
const PREFIX: &str = "/peers";

/// The files by which a member knows its peers: its certificate and key, and the authority that it trusts.
type PeerFiles = [&'static str; 3];

/// Those of a cluster whose peers have no authority of their own, as the page once had it.
const OF_THE_CLUSTER: PeerFiles = ["cert.pem", "key.pem", "ca.pem"];

/// Those of a cluster whose peers have one.
const OF_THEIR_OWN: PeerFiles = ["peer-cert.pem", "peer-key.pem", "peers.pem"];

/// Three members of etcd, as docs/cluster.md sets them up, and those who have a certificate of the cluster.
struct Site {
    members: Vec<Member>,
    authority: Authority,
    runtime: Runtime,
    dir: TempDir,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    /// The variables, as the file in /etc/default has them.
    envs: BTreeMap<&'static str, String>,
    part: Option<Part>,
}

/// A member as `GET /members` of the peer port has it.
#[derive(Deserialize)]
struct Listed {
    id: u64,
}

impl Site {
    /// Starts three members that know each other by these files.
    fn start(peers: PeerFiles) -> Site {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::create(&dir.path().join("pki"), Timestamp::now(), 1).expect("made");
        let members: Vec<Member> = (1..).zip(ADDRESSES).map(|(n, ip)| Member::new(n, ip)).collect();
        let all: Vec<String> =
            members.iter().map(|member| format!("{}={}", member.name, member.peer)).collect();
        let runtime = Runtime::new().expect("a runtime can be made");
        let mut site = Site { members, authority, runtime, dir };
        for (at, address) in ADDRESSES.into_iter().enumerate() {
            site.issue(&format!("etcd:{}", site.members[at].name), address);
            let folder = site.folder(at);
            let data = site.dir.path().join(&site.members[at].name).display().to_string();
            let file = |name: &str| folder.join(name).display().to_string();
            let member = &mut site.members[at];
            member.envs.extend(peer_envs(&folder, peers));
            member.envs.extend([
                ("ETCD_NAME", member.name.clone()),
                ("ETCD_DATA_DIR", data),
                ("ETCD_INITIAL_CLUSTER", all.join(",")),
                ("ETCD_LISTEN_PEER_URLS", member.peer.clone()),
                ("ETCD_INITIAL_ADVERTISE_PEER_URLS", member.peer.clone()),
                ("ETCD_LISTEN_CLIENT_URLS", member.client.clone()),
                ("ETCD_ADVERTISE_CLIENT_URLS", member.client.clone()),
                ("ETCD_CERT_FILE", file("cert.pem")),
                ("ETCD_KEY_FILE", file("key.pem")),
                ("ETCD_TRUSTED_CA_FILE", file("ca.pem")),
                ("ETCD_CLIENT_CERT_AUTH", "true".to_owned()),
                ("ETCD_PEER_CLIENT_CERT_AUTH", "true".to_owned()),
                ("ETCD_LOGGER", "zap".to_owned()),
                ("ETCD_LOG_LEVEL", "warn".to_owned()),
            ]);
        }
        for who in ["rm:rm1", "ada"] {
            site.issue(who, if who == "ada" { "" } else { "127.0.0.1" });
        }
        (0..3).for_each(|at| site.start_member(at));
        (0..3).for_each(|at| site.answers(at));
        site
    }

    fn issue(&self, who: &str, address: &str) {
        self.issued(who, address).write(&self.dir.path().join("id").join(who)).expect("written");
    }

    fn issued(&self, who: &str, address: &str) -> Issued {
        let named: Vec<Address> = [address, "127.0.0.1"]
            .into_iter()
            .filter(|_| !address.is_empty())
            .map(|address| address.parse().expect("an address"))
            .collect();
        let who = who.parse().expect("valid");
        self.authority.issue(&who, &named, Timestamp::now(), 1).expect("issued")
    }

    /// The folder of a member's certificates.
    fn folder(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("id/etcd:{}", self.members[at].name))
    }

    fn credentials(&self, who: &str) -> Credentials {
        Credentials::open(&self.dir.path().join("id").join(who)).expect("it was made")
    }

    fn start_member(&mut self, at: usize) {
        let log = self.dir.path().join(format!("{}.log", self.members[at].name));
        let member = &mut self.members[at];
        member.part = Some(Part::start(&member.name, &log, Command::new("etcd").envs(&member.envs)));
    }

    /// Stops a member, starts it with what its variables say now, and waits until it takes part in the quorum again.
    fn restart(&mut self, at: usize) {
        // Ended and waited for.
        self.members[at].part = None;
        self.start_member(at);
        self.answers(at);
    }

    /// Gives the members a new authority, one after the other, while writes go on: what `peers.pem` in their folder
    /// `next` says, with the certificates there. `trusted` is the file with the authority that they trust so far.
    fn change_authority(&mut self, trusted: &str, writer: &Writer) {
        let next = |folder: &Path, name: &str| folder.join("next").join(name);
        // Each member trusts both authorities and still shows its old certificate.
        for at in 0..3 {
            let folder = self.folder(at);
            let both = [folder.join(trusted), next(&folder, "peers.pem")];
            let both = both.map(|file| std::fs::read(file).expect("there"));
            std::fs::write(folder.join("both.pem"), both.concat()).expect("written");
            self.members[at].envs.extend(peer_envs(&folder, ["peer-cert.pem", "peer-key.pem", "both.pem"]));
            self.restart(at);
            writer.goes_on(&format!("after m{} trusts both", at + 1));
        }
        // The new certificates take their places. etcd reads them at each handshake.
        for at in 0..3 {
            let folder = self.folder(at);
            for name in OF_THEIR_OWN {
                std::fs::rename(next(&folder, name), folder.join(name)).expect("renamed");
            }
            writer.goes_on(&format!("after m{} shows its new certificate", at + 1));
        }
        // Each member trusts the new authority alone.
        for at in 0..3 {
            let envs = peer_envs(&self.folder(at), OF_THEIR_OWN);
            self.members[at].envs.extend(envs);
            self.restart(at);
            writer.goes_on(&format!("after m{} trusts the new authority alone", at + 1));
        }
    }

    /// Waits until a member answers a read that needs the quorum.
    fn answers(&self, at: usize) {
        let store = self.store(&[at]);
        until(&format!("{} answers", self.members[at].name), SOON, || {
            let asked = self.runtime.block_on(store.range(Keys::One("any".into()), None));
            asked.map(drop).map_err(|error| format!("{error}: {}", self.log(at)))
        });
    }

    fn log(&self, at: usize) -> String {
        self.members[at].part.as_ref().map(Part::log).unwrap_or_default()
    }

    /// A store on some of the members, as the rm.
    fn store(&self, of: &[usize]) -> EtcdStore {
        let urls = of.iter().map(|at| self.members[*at].client.clone()).collect();
        let credentials = Some(self.credentials("rm:rm1"));
        EtcdStore::new(EtcdConfig { credentials, ..EtcdConfig::new(urls, PREFIX) })
    }

    fn read(&self, key: &str) -> Option<String> {
        let page = self.runtime.block_on(self.store(&[0, 1, 2]).range(Keys::One(key.into()), None));
        let value = page.expect("a quorum answers").entries.first()?.value.clone();
        Some(String::from_utf8(value.to_vec()).expect("text"))
    }

    /// Has each member's peer port propose a write past users and roles, with a certificate of the cluster. Returns the
    /// members that took the request.
    fn propose(&self, as_who: &str, key: &str, value: &str) -> usize {
        let client = probing_client(&self.credentials(as_who)).http1_only().timeout(Duration::from_secs(5));
        let client = client.build().expect("made");
        let ask = async |member: &Member| -> Result<(), reqwest::Error> {
            let listed = client.get(format!("{}/members", member.peer)).send().await?;
            let cluster = listed.headers()["X-Etcd-Cluster-Id"].clone();
            for Listed { id } in listed.json::<Vec<Listed>>().await? {
                // Only the leader acts on a proposal; which one that is, it says to nobody here.
                let request = client
                    .post(format!("{}/raft", member.peer))
                    .header("X-Etcd-Cluster-ID", cluster.clone())
                    .header("X-Server-From", "1")
                    .header("X-Server-Version", "3.4.0")
                    .header("X-Min-Cluster-Version", "3.0.0")
                    .header("Content-Type", "application/protobuf")
                    .body(proposal(id, &format!("{PREFIX}/{key}"), value));
                // A member refuses a message for another member.
                request.send().await?;
            }
            Ok(())
        };
        let asked = self.members.iter().map(|member| self.runtime.block_on(ask(member)));
        asked.filter(Result::is_ok).count()
    }

    /// Runs `bazooka check` as somebody; returns its exit status and its output.
    fn check(&self, who: &str) -> (Option<i32>, String) {
        let endpoints: Vec<&str> = self.members.iter().map(|member| &*member.client).collect();
        let mut command = Command::new(program("bazooka"));
        command.args(["check", "--json", "--coordinator", &endpoints.join(","), "--prefix", PREFIX]);
        command.arg("--identity").arg(self.dir.path().join("id").join(who)).env("HOME", self.dir.path());
        let output = command.output().expect("it can be started");
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    }
}

impl Member {
    fn new(n: usize, ip: &str) -> Member {
        let at = |port: u16| format!("https://{ip}:{port}");
        Member {
            name: format!("m{n}"),
            client: at(free_port()),
            peer: at(free_port()),
            envs: BTreeMap::new(),
            part: None,
        }
    }
}

/// A message of raft to a member (`MsgProp`) whose entry puts a key in the name of etcd's root.
fn proposal(member: u64, key: &str, value: &str) -> Vec<u8> {
    fn number(mut n: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while n > 127 {
            bytes.push(u8::try_from(n & 127).expect("seven bits") | 128);
            n >>= 7;
        }
        bytes.push(u8::try_from(n).expect("seven bits"));
        bytes
    }
    let int = |field: u64, n: u64| [number(field << 3), number(n)].concat();
    let bytes = |field: u64, value: &[u8]| {
        [number(field << 3 | 2), number(value.len() as u64), value.to_vec()].concat()
    };
    let put = [bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat();
    // A revision of the rights that is newer than any.
    let header = [int(1, 0x12_3456_7890), bytes(2, b"root"), int(3, 1 << 63)].concat();
    let entry = bytes(4, &[bytes(4, &put), bytes(100, &header)].concat());
    [int(1, 2), int(2, member), int(3, member), bytes(7, &entry)].concat()
}

/// Writes one number after the other until it is told to stop, over all members.
struct Writer {
    stop: Arc<AtomicBool>,
    /// The numbers whose writes were acknowledged.
    written: Arc<Mutex<Vec<u64>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    fn start(site: &Site) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let store = site.store(&[0, 1, 2]);
        let (stops, noted) = (stop.clone(), written.clone());
        let task = site.runtime.spawn(async move {
            for n in 0_u64.. {
                if stops.load(Ordering::Relaxed) {
                    return;
                }
                let put = Op::Put { key: format!("n/{n:06}"), value: "x".into(), lease: None };
                let txn = Txn { when: Vec::new(), then: vec![put], otherwise: Vec::new() };
                // A member that is restarted at that moment leaves the outcome open; such a write is not counted.
                if store.txn(txn).await.is_ok() {
                    noted.lock().expect("no holder panics").push(n);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Writer { stop, written, task }
    }

    fn count(&self) -> usize {
        self.written.lock().expect("no holder panics").len()
    }

    /// Waits until more is written than now.
    fn goes_on(&self, when: &str) {
        let before = self.count();
        until(&format!("writes go on {when}"), SOON, || match self.count() {
            now if now > before + 3 => Ok(()),
            now => Err(format!("{now} writes, {before} before")),
        });
    }

    /// Ends it, and returns the writes that were acknowledged and are lost.
    fn lost(self, site: &Site) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        site.runtime.block_on(self.task).expect("it doesn't panic");
        let page = site.runtime.block_on(site.store(&[0, 1, 2]).range(Keys::Prefix("n/".into()), None));
        let there: Vec<String> =
            page.expect("a quorum answers").entries.into_iter().map(|entry| entry.key).collect();
        let written = self.written.lock().expect("no holder panics").clone();
        written.into_iter().filter(|n| !there.contains(&format!("n/{n:06}"))).collect()
    }
}

/// The variables by which a member knows its peers.
fn peer_envs(folder: &Path, files: PeerFiles) -> [(&'static str, String); 3] {
    let [certificate, key, trusted] = files.map(|name| folder.join(name).display().to_string());
    [
        ("ETCD_PEER_CERT_FILE", certificate),
        ("ETCD_PEER_KEY_FILE", key),
        ("ETCD_PEER_TRUSTED_CA_FILE", trusted),
    ]
}

#[test]
fn peers_get_an_authority_of_their_own_member_by_member_while_writes_go_on() {
    let mut site = Site::start(OF_THE_CLUSTER);
    let writer = Writer::start(&site);

    // Before: whoever has a certificate of the cluster writes any key, and the check says so.
    assert_eq!(site.propose("ada", "trial", "before"), 3, "each member takes her for one of them");
    until("the proposal is carried out", SOON, || match site.read("trial") {
        Some(value) if value == "before" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (status, checked) = site.check("ada");
    assert_eq!((status, checked.matches("peer-port-open").count()), (Some(1), 3), "{checked}");

    // The new files lie aside, and the old certificate at the new one's place.
    for at in 0..3 {
        let folder = site.folder(at);
        std::fs::create_dir(folder.join("next")).expect("made");
        for name in OF_THEIR_OWN {
            std::fs::rename(folder.join(name), folder.join("next").join(name)).expect("renamed");
        }
        for name in ["cert.pem", "key.pem"] {
            std::fs::copy(folder.join(name), folder.join(format!("peer-{name}"))).expect("copied");
        }
    }
    site.change_authority("ca.pem", &writer);

    // After: nobody but a member gets in.
    for who in ["ada", "rm:rm1", "etcd:m1"] {
        assert_eq!(site.propose(who, "trial", "after"), 0, "{who} gets in");
    }
    assert_eq!(site.read("trial").as_deref(), Some("before"));
    let (status, checked) = site.check("ada");
    assert_eq!((status, checked.matches("\"answer\": \"refused\"").count()), (Some(0), 3), "{checked}");
    // All of them once more, now that they know no other way: the old certificates were needed by none.
    for at in 0..3 {
        site.restart(at);
    }
    let count = writer.count();
    assert_eq!(writer.lost(&site), Vec::<u64>::new(), "of {count} writes");
}

#[test]
fn a_stolen_key_of_a_peer_is_worth_nothing_once_the_page_has_been_followed() {
    let mut site = Site::start(OF_THEIR_OWN);
    let writer = Writer::start(&site);
    let thief = site.dir.path().join("id/thief");
    std::fs::create_dir(&thief).expect("made");
    for (stolen, name) in
        [("peer-cert.pem", "cert.pem"), ("peer-key.pem", "key.pem"), ("peers.pem", "ca.pem")]
    {
        std::fs::copy(site.folder(0).join(stolen), thief.join(name)).expect("copied");
    }
    assert_eq!(site.propose("thief", "trial", "before"), 3, "each member takes the thief for one of them");
    until("the proposal is carried out", SOON, || match site.read("trial") {
        Some(value) if value == "before" => Ok(()),
        other => Err(format!("{other:?}")),
    });

    let pki = site.dir.path().join("pki");
    std::fs::rename(pki.join("peers.pem"), pki.join("stolen-peers.pem")).expect("renamed");
    std::fs::remove_file(pki.join("peers-key.pem")).expect("removed");
    site.authority = Authority::add_peers(&pki, Timestamp::now(), 1).expect("made");
    for (at, address) in ADDRESSES.into_iter().enumerate() {
        let issued = site.issued(&format!("etcd:{}", site.members[at].name), address);
        issued.write(&site.folder(at).join("next")).expect("written");
    }
    site.change_authority("peers.pem", &writer);

    assert_eq!(site.propose("thief", "trial", "after"), 0, "the thief gets in");
    assert_eq!(site.read("trial").as_deref(), Some("before"));
    let count = writer.count();
    assert_eq!(writer.lost(&site), Vec::<u64>::new(), "of {count} writes");
}
