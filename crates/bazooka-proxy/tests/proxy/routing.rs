//! Requests reach the right instance, and nobody else's.

use std::net::SocketAddr;

use bazooka_proxy::config::GIVE_UP;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use visor::{
    schema::{Desired, State},
    testing::until,
};

use crate::{
    http::{self, Connection},
    rig::{Instance, PATIENCE, Rig},
};

#[tokio::test]
async fn a_request_reaches_its_instance_by_host_and_by_port() {
    let rig = Rig::start().await;
    let port = rig.service("rocket", "web").await;
    let one = Instance::start("one", &rig.folder).await;
    let revision = rig.running(("rocket", "web"), &[(1, one.address)]).await;
    rig.applied(revision).await;
    let row = rig.row().await.expect("it has said how far it is");
    assert_eq!(row.zone, Some("default".parse().expect("valid")), "where it stands");
    for host in ["rocket.localhost", "ROCKET.localhost:8080", "rocket.localhost."] {
        let answer = rig.ask(host).await.expect("it answers");
        assert_eq!((answer.status, answer.body.as_str()), (200, "one\n"), "{host}");
    }
    let own = SocketAddr::new(rig.public.ip(), port);
    let answer = http::get(own, "whatever", "/").await.expect("it answers");
    assert_eq!((answer.status, answer.body.as_str()), (200, "one\n"));
}

#[tokio::test]
async fn who_asks_for_nothing_that_is_there_is_told_so() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    until("the app is known", PATIENCE, async || {
        let answer = rig.ask("rocket.localhost").await?;
        let told = answer.status == 503 && answer.body.contains("No instance of rocket/web");
        if told { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let answer = rig.ask("pocket.localhost:8080").await.expect("it answers");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("'pocket.localhost:8080'"), "{answer:?}");
    assert!(answer.head.contains("text/plain"), "{answer:?}");
}

#[tokio::test]
async fn instances_come_and_go_without_a_reload() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let reloads = rig.metric("bazooka_proxy_reloads_total").await;
    rig.applied(rig.running(("rocket", "web"), &[(2, two.address)]).await).await;
    assert_eq!(rig.spread("rocket.localhost", 20).await.len(), 2);
    let row = rig.applied(rig.desire(("rocket", "web"), &[1], Desired::Drain).await).await;
    assert!(row.busy.is_empty(), "{row:?}");
    assert_eq!(rig.spread("rocket.localhost", 10).await.into_keys().collect::<Vec<_>>(), ["two"]);
    rig.applied(rig.state(&[2], State::Backoff).await).await;
    assert_eq!(rig.ask("rocket.localhost").await.expect("it answers").status, 503);
    rig.applied(rig.running(("rocket", "web"), &[(2, two.address)]).await).await;
    assert_eq!(rig.spread("rocket.localhost", 10).await.into_keys().collect::<Vec<_>>(), ["two"]);
    assert_eq!(rig.metric("bazooka_proxy_reloads_total").await, reloads);
}

#[tokio::test]
async fn traffic_is_shared_out_by_release_and_a_share_changes_without_a_reload() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.running(("rocket", "web"), &[(1, one.address)]).await;
    rig.running_of(("rocket", "web"), "v2", &[(2, two.address)]).await;
    rig.applied(rig.share(("rocket", "web"), Some(5)).await).await;
    let reloads = rig.metric("bazooka_proxy_reloads_total").await;
    for (percent, wanted) in [(10, 17..=23), (50, 97..=103), (100, 200..=200), (0, 0..=0), (1, 1..=4)] {
        rig.applied(rig.share(("rocket", "web"), Some(percent)).await).await;
        let of_two = rig.spread("rocket.localhost", 200).await.get("two").copied().unwrap_or(0);
        assert!(wanted.contains(&of_two), "{of_two} of 200 at {percent} %");
    }
    // Instances come and go as ever, and the share stays a release's.
    let three = Instance::start("three", &rig.folder).await;
    rig.applied(rig.share(("rocket", "web"), Some(20)).await).await;
    rig.applied(rig.running(("rocket", "web"), &[(3, three.address)]).await).await;
    let of_two = rig.spread("rocket.localhost", 200).await["two"];
    assert!((37..=43).contains(&of_two), "{of_two}");
    assert_eq!(rig.metric("bazooka_proxy_reloads_total").await, reloads);
    rig.applied(rig.share(("rocket", "web"), None).await).await;
    let even = rig.spread("rocket.localhost", 30).await;
    assert!(even.len() == 3 && even.values().all(|n| *n >= 5), "{even:?}");
}

#[tokio::test]
async fn an_instance_that_was_started_again_on_another_port_is_followed() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let (one, two) = (Instance::start("one", &rig.folder).await, Instance::start("two", &rig.folder).await);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    rig.wait_answer("rocket.localhost", "one").await;
    // Once seen to be down in between, and once not.
    rig.applied(rig.state(&[1], State::Claimed).await).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, two.address)]).await).await;
    assert_eq!(rig.spread("rocket.localhost", 5).await.into_keys().collect::<Vec<_>>(), ["two"]);
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    assert_eq!(rig.spread("rocket.localhost", 5).await.into_keys().collect::<Vec<_>>(), ["one"]);
}

#[tokio::test]
async fn each_proc_that_speaks_http_has_a_name_and_a_domain_needs_no_reload() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    rig.service("rocket", "web-admin").await;
    let (one, admin) =
        (Instance::start("one", &rig.folder).await, Instance::start("admin", &rig.folder).await);
    rig.running(("rocket", "web"), &[(1, one.address)]).await;
    rig.applied(rig.running(("rocket", "web-admin"), &[(2, admin.address)]).await).await;
    rig.wait_answer("rocket.localhost", "one").await;
    assert_eq!(rig.ask("web-admin.rocket.localhost").await.expect("it answers").status, 404, "it speaks TCP");
    rig.applied(rig.speaks_http("rocket", "web-admin").await).await;
    rig.wait_answer("web-admin.rocket.localhost", "admin").await;
    let reloads = rig.metric("bazooka_proxy_reloads_total").await;
    assert_eq!(rig.ask("www.example.org").await.expect("it answers").status, 404);
    rig.applied(rig.domain("www.example.org", "rocket").await).await;
    assert_eq!(rig.ask("www.example.org").await.expect("it answers").body, "one\n");
    rig.applied(rig.forget_domain("www.example.org").await).await;
    assert_eq!(rig.ask("www.example.org").await.expect("it answers").status, 404);
    assert_eq!(rig.metric("bazooka_proxy_reloads_total").await, reloads);
}

#[tokio::test]
async fn a_service_that_goes_answers_no_more() {
    let rig = Rig::start().await;
    rig.service("keep", "web").await;
    let port = rig.service("rocket", "web").await;
    let one = Instance::start("one", &rig.folder).await;
    rig.running(("keep", "web"), &[(1, one.address)]).await;
    rig.applied(rig.running(("rocket", "web"), &[(2, one.address)]).await).await;
    rig.wait_answer("rocket.localhost", "one").await;
    rig.forget(&[2]).await;
    rig.applied(rig.forget_service("rocket", "web").await).await;
    assert_eq!(rig.ask("rocket.localhost").await.expect("it answers").status, 404);
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    assert_eq!(rig.ask("keep.localhost").await.expect("it answers").body, "one\n");
}

#[tokio::test]
async fn an_instance_learns_who_asked_and_nobody_can_pretend() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let one = Instance::start("one", &rig.folder).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    let mut connection = Connection::open(rig.public).await.expect("it is open");
    let more = "x-bazooka-service: evil.web\r\nx-forwarded-proto: gopher\r\n";
    let answer =
        connection.request("GET", "rocket.localhost", "/headers", more, "").await.expect("it answers");
    let told = answer.body.to_lowercase();
    assert!(told.contains("x-forwarded-for: 127.0.0.1"), "{told}");
    assert!(told.contains("x-forwarded-proto: http\n"), "{told}");
    assert!(told.contains("host: rocket.localhost"), "{told}");
    assert!(!told.contains("x-bazooka-service") && !told.contains("gopher"), "{told}");
}

/// A server that answers each connection's first bytes with an upgrade, then echoes.
async fn echo(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it listens");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let mut greeted = greeting.is_empty();
                while let Ok(read) = stream.read(&mut bytes).await {
                    if read == 0 {
                        return;
                    }
                    let sent = if std::mem::replace(&mut greeted, true) {
                        stream.write_all(&bytes[..read]).await
                    } else {
                        stream.write_all(greeting.as_bytes()).await
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_check_ends_its_connection_in_peace() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it listens");
    rig.running(("rocket", "web"), &[(1, address)]).await;
    for _ in 0..2 {
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (mut stream, _) = accepted.expect("a check comes").expect("it is accepted");
        // The end of the stream, not a reset.
        assert_eq!(stream.read(&mut [0; 16]).await.expect("no reset"), 0);
    }
}

#[tokio::test]
async fn a_websocket_goes_through() {
    let rig = Rig::start().await;
    rig.service("rocket", "web").await;
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let address = echo(upgrade).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, address)]).await).await;
    let mut stream = TcpStream::connect(rig.public).await.expect("it is open");
    let request = "GET /chat HTTP/1.1\r\nhost: rocket.localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut bytes = vec![0; 4096];
    let read = stream.read(&mut bytes).await.expect("it answers");
    assert!(String::from_utf8_lossy(&bytes[..read]).starts_with("HTTP/1.1 101"));
    for word in ["ping", "pong"] {
        stream.write_all(word.as_bytes()).await.expect("it is sent");
        let read = stream.read(&mut bytes).await.expect("it answers");
        assert_eq!(&bytes[..read], word.as_bytes());
    }
}

#[tokio::test]
async fn a_proc_that_is_not_http_takes_bytes_on_its_port() {
    let rig = Rig::start().await;
    let port = rig.service("rocket", "smtp").await;
    let address = echo("").await;
    rig.applied(rig.running(("rocket", "smtp"), &[(1, address)]).await).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it is open");
    stream.write_all(b"HELO\0").await.expect("it is sent");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).await.expect("it answers");
    assert_eq!(&bytes, b"HELO\0");
    let row = rig.applied(rig.desire(("rocket", "smtp"), &[1], Desired::Drain).await).await;
    assert_eq!(row.busy.len(), 1, "the connection is open still");
    drop(stream);
    until("the connection is seen to have ended", PATIENCE, async || {
        let row = rig.row().await.ok_or("no row")?;
        if row.busy.is_empty() { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await;
}

#[tokio::test]
async fn haproxy_takes_every_golden_file_without_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("hosts.map"), "").expect("it can be written");
    std::fs::write(folder.path().join("give-up-1.lua"), GIVE_UP).expect("it can be written");
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in ["empty.cfg", "cluster.cfg", "refused.cfg"] {
        let text = std::fs::read_to_string(golden.join(name)).expect("it can be read");
        let path = folder.path().join(name);
        let here = folder.path().to_str().expect("plain");
        std::fs::write(&path, text.replace("/var/lib/bazooka-proxy", here)).expect("it can be written");
        let output = std::process::Command::new("haproxy").arg("-c").arg("-f").arg(&path).output();
        let output = output.expect("haproxy runs; apt install haproxy");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !words.contains("[WARNING]"), "{name}: {words}");
    }
}
