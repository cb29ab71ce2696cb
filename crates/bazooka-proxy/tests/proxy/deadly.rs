//! Requests that kill the instance that takes them: no other instance dies of them but one, and the client is told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use visor::testing::free_port;

use crate::{
    http::{Answer, Connection},
    rig::{Options, Rig},
};

const HOST: &str = "rocket.localhost";

/// An instance that ends the connection of a request for `/die`, as one does that dies. For `/once` the first of all
/// instances that is asked dies.
struct Mortal {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// The record of all instances.
#[derive(Default)]
struct Fate {
    /// How many requests they took that were meant to kill them.
    deadly: AtomicUsize,
    has_died: AtomicBool,
}

impl Mortal {
    async fn start(fate: &Arc<Fate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let fate = fate.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, fate.clone()));
            }
        });
        Mortal { address, task }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a whole request, as a server does before it hands the request to the app. Returns `None` at the end.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let (mut request, mut bytes) = (String::new(), [0; 4096]);
    while !is_whole(&request) {
        let read = stream.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        request.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    Some(request)
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}

async fn serve(mut stream: TcpStream, fate: Arc<Fate>) {
    while let Some(request) = read_request(&mut stream).await {
        let path = request.split(' ').nth(1).unwrap_or_default();
        if path != "/" {
            fate.deadly.fetch_add(1, Ordering::SeqCst);
        }
        match path {
            "/die" => return,
            // A status line and no more: not a whole answer.
            "/half" => return drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await),
            "/once" if !fate.has_died.swap(true, Ordering::SeqCst) => return,
            _ => {}
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood").await.is_err() {
            return;
        }
    }
}

/// A proxy before four such instances.
async fn four() -> (Rig, Vec<Mortal>, Arc<Fate>) {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let fate = Arc::<Fate>::default();
    let mut instances = Vec::new();
    for _ in 0..4 {
        instances.push(Mortal::start(&fate).await);
    }
    let running: Vec<(u64, SocketAddr)> = (1..).zip(instances.iter().map(|one| one.address)).collect();
    rig.applied(rig.running(("rocket", "web"), &running).await).await;
    (rig, instances, fate)
}

/// Sends the request over a connection that has answered before.
async fn over_kept(rig: &Rig, method: &str, path: &str) -> Result<Answer, String> {
    let mut connection = Connection::open(rig.public).await?;
    let before = connection.request("GET", HOST, "/", "", "").await?;
    assert_eq!((before.status, before.body.as_str()), (200, "good"));
    let body = if method == "POST" { "body" } else { "" };
    let answer = connection.request(method, HOST, path, "", body).await?;
    let after = connection.request("GET", HOST, "/", "", "").await;
    assert!(after.is_ok_and(|after| after.status == 200), "the connection is of use afterwards");
    Ok(answer)
}

async fn over_new(rig: &Rig, method: &str, path: &str) -> Result<Answer, String> {
    let body = if method == "POST" { "body" } else { "" };
    Connection::open(rig.public).await?.request(method, HOST, path, "", body).await
}

/// Sends the request as the second one of an HTTP/2 connection.
async fn over_h2(rig: &Rig, method: &str, path: &str) -> Result<Answer, String> {
    let told = |error: hyper::Error| error.to_string();
    let stream = TcpStream::connect(rig.public).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(told)?;
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for (method, path) in [("GET", "/"), (method, path), ("GET", "/")] {
        let request = Request::builder().method(method).uri(format!("http://{HOST}{path}"));
        let body = if method == "POST" { "body" } else { "" };
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        let answer = sender.send_request(request).await.map_err(told)?;
        let (status, head) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
        let body = answer.into_body().collect().await.map_err(told)?.to_bytes();
        answers.push(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() });
    }
    connection.abort();
    let [first, answer, last] = &answers[..] else { unreachable!("three were sent") };
    assert_eq!((first.status, last.status), (200, 200));
    Ok(answer.clone())
}

#[tokio::test]
async fn a_request_that_kills_meets_two_instances_if_it_is_safe_to_repeat_and_one_otherwise() {
    let (rig, _instances, fate) = four().await;
    for path in ["/die", "/half"] {
        for (method, expected) in [("GET", 2), ("PUT", 2), ("POST", 1)] {
            for way in ["new", "kept", "h2"] {
                let before = fate.deadly.load(Ordering::SeqCst);
                let answer = match way {
                    "new" => over_new(&rig, method, path).await,
                    "kept" => over_kept(&rig, method, path).await,
                    _ => over_h2(&rig, method, path).await,
                };
                let asked = fate.deadly.load(Ordering::SeqCst) - before;
                let answer = answer.unwrap_or_else(|error| panic!("{method} {path} {way}: {error}"));
                assert_eq!((answer.status, asked), (502, expected), "{method} {path} {way}: {answer:?}");
                assert!(answer.body.contains("without a whole answer"), "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_died_once_is_answered_by_another_instance() {
    let (rig, _instances, fate) = four().await;
    for way in ["new", "kept", "h2"] {
        let before = fate.deadly.load(Ordering::SeqCst);
        fate.has_died.store(false, Ordering::SeqCst);
        let answer = match way {
            "new" => over_new(&rig, "GET", "/once").await,
            "kept" => over_kept(&rig, "GET", "/once").await,
            _ => over_h2(&rig, "GET", "/once").await,
        };
        let asked = fate.deadly.load(Ordering::SeqCst) - before;
        assert_eq!((answer.map(|answer| answer.status), asked), (Ok(200), 2), "{way}");
    }
}

#[tokio::test]
async fn instances_that_refuse_connections_are_passed_over_though_one_has_died() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let fate = Arc::<Fate>::default();
    let alive = Mortal::start(&fate).await;
    let gone = || SocketAddr::new([127, 0, 0, 1].into(), free_port());
    // Anew each time: HAProxy takes an instance out that has refused once.
    for round in 0..4 {
        let id = round * 10;
        let running = [(id + 1, gone()), (id + 2, gone()), (id + 3, gone()), (id + 4, alive.address)];
        rig.applied(rig.running(("rocket", "web"), &running).await).await;
        for method in ["GET", "POST"] {
            let answer = over_new(&rig, method, "/").await.expect("it answers");
            assert_eq!(answer.status, 200, "{method}: {answer:?}");
        }
        rig.applied(rig.forget(&[id + 1, id + 2, id + 3, id + 4]).await).await;
    }
}

#[tokio::test]
async fn without_lua_a_request_that_kills_meets_one_instance() {
    let folder = tempfile::tempdir().expect("a folder");
    let haproxy = crate::faults::wrapped_haproxy(
        folder.path(),
        "if [ \"$1\" = -vv ]; then haproxy -vv | sed '/Lua/d'; exit; fi",
    );
    let mut rig = Rig::prepare(Options { haproxy, ..Options::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    rig.service("rocket", "web").await;
    let fate = Arc::<Fate>::default();
    let instances = [Mortal::start(&fate).await, Mortal::start(&fate).await];
    let running = [(1, instances[0].address), (2, instances[1].address)];
    rig.applied(rig.running(("rocket", "web"), &running).await).await;
    let answer = over_new(&rig, "GET", "/die").await.expect("it answers");
    assert_eq!((answer.status, fate.deadly.load(Ordering::SeqCst)), (502, 1));
    assert!(rig.log().contains("this HAProxy has no Lua"), "{}", rig.log());
}
