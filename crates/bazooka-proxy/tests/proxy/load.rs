//! Steady requests while everything around them changes: none may be lost that is safe to repeat.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use visor::{
    schema::Desired,
    testing::{free_port, until},
};

use crate::{
    http::Connection,
    rig::{Instance, PATIENCE, Rig},
};

/// Clients that ask on and on over kept-alive connections, as browsers do: one that HAProxy announced
/// to close is opened anew.
pub struct Load {
    stop: Arc<AtomicBool>,
    pub answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(address: SocketAddr, host: &'static str, clients: usize) -> Self {
        let mut load = Load {
            stop: Arc::default(),
            answered: Arc::default(),
            failed: Arc::default(),
            clients: Vec::new(),
        };
        for client in 0..clients {
            let (stop, answered, failed) = (load.stop.clone(), load.answered.clone(), load.failed.clone());
            load.clients.push(tokio::spawn(async move {
                let mut connection = None;
                while !stop.load(Ordering::Relaxed) {
                    let mut open = match connection.take() {
                        Some(open) => open,
                        None => match Connection::open(address).await {
                            Ok(open) => open,
                            Err(error) => {
                                failed.lock().expect("no panic").push(error);
                                continue;
                            }
                        },
                    };
                    match open.request("GET", host, "/", "", "").await {
                        Ok(answer) if answer.status == 200 => {
                            answered.fetch_add(1, Ordering::Relaxed);
                            // Each second client opens a connection for each request.
                            if client % 2 == 0 && !answer.head.contains("connection: close") {
                                connection = Some(open);
                            }
                        }
                        Ok(answer) => failed.lock().expect("no panic").push(format!("{answer:?}")),
                        Err(error) => failed.lock().expect("no panic").push(error),
                    }
                }
            }));
        }
        load
    }

    /// Waits until this many more requests were answered.
    pub async fn more(&self, requests: usize) {
        let from = self.answered.load(Ordering::Relaxed);
        until("requests are answered", PATIENCE, async || {
            let answered = self.answered.load(Ordering::Relaxed) - from;
            if answered >= requests { Ok(()) } else { Err(format!("{answered} answered")) }
        })
        .await;
    }

    /// Ends it. Returns how many were answered, and what failed.
    pub async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client doesn't panic");
        }
        let failed = self.failed.lock().expect("no panic").clone();
        (self.answered.load(Ordering::Relaxed), failed)
    }
}

/// An instance within this process that closes its listener when it is dropped; what is under way goes on.
pub struct Local {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Local {
    /// Answers each request with its name; with none, it reads a request and ends the connection.
    pub async fn start(name: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let requests: Arc<AtomicUsize> = Arc::default();
        let counted = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let Some(name) = name else { return };
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Local { address, requests, task }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Replaces the only instance again and again, as a rollout does, with a reload each third time.
async fn rollouts(rounds: u64, clients: usize, requests: usize) {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let mut instance = Local::start(Some("x")).await;
    rig.applied(rig.running(("rocket", "web"), &[(0, instance.address)]).await).await;
    let load = Load::start(rig.public, "rocket.localhost", clients);
    load.more(requests).await;
    for round in 1..=rounds {
        let next = Local::start(Some("x")).await;
        rig.applied(rig.running(("rocket", "web"), &[(round, next.address)]).await).await;
        if round % 3 == 0 {
            let revision = rig.service_at("other", "web", free_port()).await;
            rig.applied(revision).await;
        }
        load.more(requests).await;
        let old = round - 1;
        let drained = rig.desire(("rocket", "web"), &[old], Desired::Drain).await;
        until("the old instance is drained", PATIENCE, async || {
            let row = rig.applied(drained).await;
            if row.busy.is_empty() { Ok(()) } else { Err(format!("{row:?}")) }
        })
        .await;
        // As the converger and the pm do: drained, so it ends at once.
        instance = next;
        rig.forget(&[old]).await;
        load.more(requests).await;
    }
    let (answered, failed) = load.end().await;
    eprintln!("{answered} requests over {rounds} rollouts");
    assert!(failed.is_empty(), "{} of {answered} failed: {:?}", failed.len(), failed.first());
    drop(instance);
}

#[tokio::test]
async fn rollouts_and_reloads_under_load_lose_nothing() {
    rollouts(9, 8, 50).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn rollouts_and_reloads_lose_nothing_in_a_million_requests() {
    rollouts(300, 16, 1_700).await;
}

#[tokio::test]
async fn a_killed_instance_costs_nothing_while_another_one_is_healthy() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let mut instances = Vec::new();
    for name in ["one", "two", "three"] {
        instances.push(Instance::start(name, &rig.folder).await);
    }
    let running: Vec<(u64, SocketAddr)> = (1..).zip(instances.iter().map(|one| one.address)).collect();
    rig.applied(rig.running(("rocket", "web"), &running).await).await;
    let load = Load::start(rig.public, "rocket.localhost", 8);
    load.more(100).await;
    instances[0].kill();
    load.more(200).await;
    instances[1].kill();
    load.more(200).await;
    let (answered, failed) = load.end().await;
    assert!(failed.is_empty(), "{} of {answered} failed: {:?}", failed.len(), failed.first());
}

#[tokio::test]
async fn an_instance_that_listens_again_is_asked_again_without_anyone_saying_so() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let mut one = Instance::start("one", &rig.folder).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    rig.wait_answer("rocket.localhost", "one").await;
    one.kill();
    assert_eq!(rig.ask("rocket.localhost").await.expect("it answers").status, 503);
    let _again = Instance::start_at("again", one.address.port(), &rig.folder).await;
    rig.wait_answer("rocket.localhost", "again").await;
}

#[tokio::test]
async fn what_is_not_safe_to_repeat_is_never_sent_twice() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    // It takes a request and ends the connection: it may have done what it was asked.
    let (bad, worse) = (Local::start(None).await, Local::start(None).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, bad.address), (2, worse.address)]).await).await;
    let requests = || bad.requests.load(Ordering::Relaxed) + worse.requests.load(Ordering::Relaxed);
    for (method, body) in [("POST", "once"), ("PATCH", "once"), ("POST", "")] {
        let before = requests();
        let mut connection = Connection::open(rig.public).await.expect("it is open");
        let answer = connection.request(method, "rocket.localhost", "/", "", body).await.expect("it answers");
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(answer.body.contains("without a whole answer"), "{answer:?}");
        assert_eq!(requests() - before, 1, "{method}");
    }
    // What is safe goes to another instance.
    let good = Local::start(Some("good")).await;
    rig.running(("rocket", "web"), &[(3, good.address)]).await;
    rig.applied(rig.desire(("rocket", "web"), &[2], Desired::Drain).await).await;
    for method in ["GET", "PUT", "DELETE"] {
        for _ in 0..6 {
            let mut connection = Connection::open(rig.public).await.expect("it is open");
            let answer =
                connection.request(method, "rocket.localhost", "/", "", "").await.expect("it answers");
            assert_eq!((answer.status, answer.body.as_str()), (200, "good"), "{method}");
        }
    }
}

#[tokio::test]
async fn what_was_not_sent_yet_is_sent_elsewhere_whatever_it_is() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let good = Local::start(Some("good")).await;
    let gone: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().expect("an address");
    rig.applied(rig.running(("rocket", "web"), &[(1, gone), (2, good.address), (3, gone)]).await).await;
    for _ in 0..6 {
        let mut connection = Connection::open(rig.public).await.expect("it is open");
        let answer =
            connection.request("POST", "rocket.localhost", "/", "", "once").await.expect("it answers");
        assert_eq!((answer.status, answer.body.as_str()), (200, "good"));
    }
}

/// An address where connections stay without an answer, as with a host that has vanished.
struct Silent {
    address: SocketAddr,
    /// They fill the queue of those that wait to be accepted: the kernel drops whoever comes next.
    _held: (TcpListener, Vec<TcpStream>),
}

impl Silent {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("it listens");
        let mut waiting = Vec::new();
        while let Ok(opened) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(opened.expect("it is taken into the queue"));
        }
        Silent { address, _held: (listener, waiting) }
    }
}

#[tokio::test]
async fn a_request_is_not_held_up_by_a_vanished_host() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (silent, good) = (Silent::start().await, Local::start(Some("good")).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, silent.address), (2, good.address)]).await).await;
    for method in ["POST", "GET", "POST", "GET"] {
        let begin = Instant::now();
        let mut connection = Connection::open(rig.public).await.expect("it is open");
        let answer =
            connection.request(method, "rocket.localhost", "/", "", "once").await.expect("it answers");
        assert_eq!((answer.status, answer.body.as_str()), (200, "good"));
        // Some tenths on an idle machine; a host that has vanished answers no connection for two minutes.
        assert!(begin.elapsed() < Duration::from_secs(5), "{method}: {:?}", begin.elapsed());
    }
}
