//! The checks of booting instances: one task checks all of them.
//!
//! Owns the checking; the plan decides what follows. The task looks every few milliseconds while an instance has just
//! been started, less often the longer that takes, and not at all while nothing boots.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bazooka_sandbox::loopback::{as_seen_inside, is_private};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use visor::{
    names::InstanceId,
    schema::{Check, CheckPath},
};

use super::{
    listeners::{Listener, Owner, Ownership, Table},
    observe::Event,
    runtime::Answers,
};

/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(2);

/// The longest time between two looks.
const LONGEST: Duration = Duration::from_millis(50);

/// The pause before a failed HTTP check is repeated.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The longest time that an answer to an HTTP check may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// An instance that boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The number of the start.
    pub run: u32,
    /// The time of the start.
    pub since: Instant,
    /// The instance's port.
    pub port: u16,
    /// The address at which it is reached.
    pub address: IpAddr,
    /// The owner that its listeners must have.
    pub owner: Owner,
    /// The check that it must pass: listening, or an answer.
    pub check: Check,
}

/// The instances that boot at present.
pub type Probes = BTreeMap<InstanceId, Probe>;

/// Checks booting instances for ever.
pub async fn run(mut probes: watch::Receiver<Probes>, answers: Answers) {
    let mut table = None;
    let mut told: BTreeMap<InstanceId, u32> = BTreeMap::new();
    let mut unseen: BTreeMap<InstanceId, u32> = BTreeMap::new();
    loop {
        let now = probes.borrow_and_update().clone();
        let boots = |id: &InstanceId, run: &mut u32| now.get(id).is_some_and(|probe| probe.run == *run);
        told.retain(boots);
        unseen.retain(boots);
        if now.is_empty() {
            if probes.changed().await.is_err() {
                return;
            }
            continue;
        }
        match look(&mut table) {
            Ok(listeners) => {
                let mut ownership = Ownership::default();
                for (id, probe) in &now {
                    if told.contains_key(id) {
                        continue;
                    }
                    match judge(probe, &listeners, &mut ownership) {
                        Ok(Some(verdict)) => {
                            told.insert(*id, probe.run);
                            report(*id, probe, verdict, &answers, &probes);
                        }
                        Ok(None) => {}
                        // The next look may tell; until its boot timeout the instance is neither healthy nor displaced.
                        Err(error) if unseen.insert(*id, probe.run).is_none() => {
                            tracing::warn!(instance = %id, error = %error, "can't see whether it listens; looking again");
                        }
                        Err(_) => {}
                    }
                }
            }
            Err(error) => {
                table = None;
                tracing::warn!(error = %error, "can't see who listens; looking again");
                sleep(LONGEST).await;
            }
        }
        let youngest = now.values().map(|probe| probe.since.elapsed()).min().unwrap_or_default();
        let pause = (youngest / 16).clamp(SHORTEST, LONGEST);
        // A new start shortens the pause.
        let _ = timeout(pause, probes.changed()).await;
    }
}

fn look(table: &mut Option<Table>) -> io::Result<Vec<Listener>> {
    match table {
        Some(table) => table.listeners(),
        None => table.insert(Table::open()?).listeners(),
    }
}

/// The result of a look at an instance's port.
enum Verdict {
    Listens,
    Taken(Listener),
}

/// Judges what listens on an instance's port; none while nothing does.
///
/// # Errors
/// Something does, and whose it is can't be seen.
fn judge(probe: &Probe, listeners: &[Listener], ownership: &mut Ownership) -> io::Result<Option<Verdict>> {
    let (mut foreign, mut unknown) = (None, None);
    for listener in listeners.iter().filter(|listener| listener.address.port() == probe.port) {
        match ownership.is_of(listener, probe.owner) {
            Ok(true) if listener.answers(probe.address) => return Ok(Some(Verdict::Listens)),
            Ok(true) => {}
            // A listener on another instance's own loopback is in nobody's way.
            Ok(false) if is_private(listener.address.ip()) => {}
            Ok(false) => foreign = foreign.or(Some(Verdict::Taken(*listener))),
            Err(error) => unknown = unknown.or(Some(error)),
        }
    }
    unknown.map_or(Ok(foreign), Err)
}

fn report(
    id: InstanceId,
    probe: &Probe,
    verdict: Verdict,
    answers: &Answers,
    probes: &watch::Receiver<Probes>,
) {
    let (run, port) = (probe.run, probe.port);
    let event = match (verdict, &probe.check) {
        (Verdict::Taken(listener), _) => {
            let by = format!("port {port} is taken: user {} listens on {}", listener.uid, listener.address);
            Event::PortTaken { id, run, by }
        }
        (Verdict::Listens, Check::Http { path }) => {
            let asking = ask(id, probe.clone(), path.clone(), answers.clone(), probes.clone());
            answers.spawn("an HTTP check", asking);
            return;
        }
        (Verdict::Listens, Check::Listening | Check::Started) => {
            Event::Healthy { id, run, how: format!("listens on port {port}") }
        }
    };
    answers.seen(event);
}

/// Repeats an HTTP check until it passes, or the instance no longer boots.
async fn ask(
    id: InstanceId,
    probe: Probe,
    path: CheckPath,
    answers: Answers,
    probes: watch::Receiver<Probes>,
) {
    let still = || probes.borrow().get(&id).is_some_and(|now| now.run == probe.run);
    let url = url(SocketAddr::new(probe.address, probe.port), &path);
    let client = bazooka_daemon::http_client(None).redirect(reqwest::redirect::Policy::none()).build();
    let client = client.expect("without TLS there is nothing that could be missing");
    let mut heard = String::new();
    while still() {
        let answer = timeout(ANSWER_WITHIN, client.get(url.clone()).send()).await;
        let what = match answer {
            Ok(Ok(answer)) if answer.status().as_u16() < 400 => {
                let how = format!("answers GET {path} with status {}", answer.status().as_u16());
                answers.seen(Event::Healthy { id, run: probe.run, how });
                return;
            }
            Ok(Ok(answer)) => format!("GET {path} is answered with status {}", answer.status().as_u16()),
            Ok(Err(_)) => format!("GET {path} is not answered"),
            Err(_) => format!("GET {path} is not answered within {} s", ANSWER_WITHIN.as_secs()),
        };
        if what != heard {
            heard.clone_from(&what);
            answers.seen(Event::Heard { id, run: probe.run, what });
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Returns the URL of a check. The path is set in a URL whose authority is fixed, so that no path changes who is asked.
fn url(address: SocketAddr, path: &CheckPath) -> reqwest::Url {
    let mut url = reqwest::Url::parse(&format!("http://{address}/")).expect("an address makes a URL");
    let (path, query) = path.parts();
    url.set_path(path);
    url.set_query(query);
    url
}

/// Describes what an instance listens on instead of its port. Blocks.
pub fn instead(owner: Owner, port: u16, address: IpAddr) -> String {
    match own_listeners(owner) {
        Ok(own) => described(&own, port, address),
        Err(error) => format!("whether it listens on $PORT ({port}) can't be seen: {error}"),
    }
}

/// Returns the listeners of an owner, as far as they can be seen.
///
/// # Errors
/// None can be seen, and some may be there.
fn own_listeners(owner: Owner) -> io::Result<Vec<Listener>> {
    let (mut ownership, mut own, mut unknown) = (Ownership::default(), Vec::new(), None);
    for listener in Table::open()?.listeners()? {
        match ownership.is_of(&listener, owner) {
            Ok(true) => own.push(listener),
            Ok(false) => {}
            Err(error) => unknown = unknown.or(Some(error)),
        }
    }
    unknown.filter(|_| own.is_empty()).map_or(Ok(own), Err)
}

fn described(own: &[Listener], port: u16, address: IpAddr) -> String {
    if let Some(there) = own.iter().find(|listener| listener.address.port() == port) {
        return out_of_reach(there, port, address);
    }
    let ports: BTreeSet<u16> = own.iter().map(|listener| listener.address.port()).collect();
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    match ports.split_last() {
        None => format!("it does not listen on $PORT ({port})"),
        Some((one, [])) => format!("it listens on port {one}, not on $PORT ({port})"),
        Some((last, others)) => {
            format!("it listens on ports {} and {last}, not on $PORT ({port})", others.join(", "))
        }
    }
}

/// Describes a listener on $PORT that gets no connection to the host's address.
fn out_of_reach(there: &Listener, port: u16, address: IpAddr) -> String {
    let (family, every) = if address.is_ipv4() { ("IPv4", "0.0.0.0") } else { ("IPv6", "[::]") };
    let ip = there.address.ip();
    if ip.is_unspecified() {
        let other = if address.is_ipv4() { "IPv6" } else { "IPv4" };
        let listens = there.address;
        return format!("it listens on {listens} for {other} alone; proxies come by {family}: bind {every}");
    }
    let ip = as_seen_inside(ip);
    format!("it listens on {ip} alone; proxies come to {}: bind {every}", SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_path_changes_who_is_asked(path in "/[!-~]{0,64}") {
            let (path, address): (CheckPath, SocketAddr) =
                (path.parse().expect("valid"), "10.0.0.1:21000".parse().expect("valid"));
            let url = url(address, &path);
            prop_assert_eq!((url.host_str(), url.port()), (Some("10.0.0.1"), Some(21000)));
            prop_assert_eq!((url.username(), url.password()), ("", None));
        }
    }

    #[test]
    fn a_path_is_asked_with_its_query() {
        let url = url("[::1]:21000".parse().expect("valid"), &"/h/z?full=1#x".parse().expect("valid"));
        assert_eq!(url.as_str(), "http://[::1]:21000/h/z?full=1");
    }

    #[test]
    fn a_listener_whose_owner_cannot_be_seen_displaces_nothing() {
        let probe = Probe {
            run: 1,
            since: Instant::now(),
            port: 21_000,
            address: "10.0.0.1".parse().expect("valid"),
            owner: Owner::Below(5),
            check: Check::Listening,
        };
        let address = "10.0.0.1:21000".parse().expect("valid");
        let listener = |inode| Listener { address, is_six_only: false, uid: 0, inode };
        let judged = |unread, inode| judge(&probe, &[listener(inode)], &mut Ownership::seen(5, 7, unread));
        assert!(matches!(judged(None, 7), Ok(Some(Verdict::Listens))));
        assert!(matches!(judged(None, 8), Ok(Some(Verdict::Taken(_)))));
        assert!(matches!(judged(Some(12), 7), Ok(Some(Verdict::Listens))), "one that can be seen is enough");
        assert!(judged(Some(12), 8).is_err(), "process 12 may be the one that listens");
    }

    #[test]
    fn a_listener_that_no_proxy_reaches_is_described_with_what_to_do() {
        let (four, six) = ("10.0.0.1", "fd00::1");
        for (address, listeners, wanted) in [
            (four, &[][..], "it does not listen on $PORT (21000)"),
            (four, &["0.0.0.0:3000"], "it listens on port 3000, not on $PORT (21000)"),
            (
                four,
                &["[::1]:9", "0.0.0.0:3000", "[::]:3000", "0.0.0.0:4000"],
                "it listens on ports 9, 3000 and 4000, not on $PORT (21000)",
            ),
            (
                four,
                &["0.0.0.0:3000", "[::]:21000"],
                "it listens on [::]:21000 for IPv6 alone; proxies come by IPv4: bind 0.0.0.0",
            ),
            (
                six,
                &["0.0.0.0:21000"],
                "it listens on 0.0.0.0:21000 for IPv4 alone; proxies come by IPv6: bind [::]",
            ),
            (
                four,
                &["127.0.0.1:21000"],
                "it listens on 127.0.0.1 alone; proxies come to 10.0.0.1:21000: bind 0.0.0.0",
            ),
            (
                four,
                &["127.99.1.2:21000"],
                "it listens on 127.0.0.1 alone; proxies come to 10.0.0.1:21000: bind 0.0.0.0",
            ),
        ] {
            let listener = |address: &&str| Listener {
                address: address.parse().expect("valid"),
                is_six_only: true,
                uid: 0,
                inode: 0,
            };
            let own: Vec<Listener> = listeners.iter().map(listener).collect();
            assert_eq!(described(&own, 21_000, address.parse().expect("valid")), wanted);
        }
    }
}
