//! Git's own address: whichever rm serves is led to.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use visor::testing::{free_port, until};

use crate::{
    http,
    rig::{Instance, Options, PATIENCE, Rig},
};

async fn ask(git: SocketAddr, path: &str) -> Result<String, String> {
    let answer = http::get(git, "git.example.org", path).await?;
    Ok(format!("{} {}", answer.status, answer.body.trim()))
}

#[tokio::test]
async fn git_reaches_an_rm_that_serves_and_the_next_one_once_that_has_gone() {
    let git = SocketAddr::new([127, 0, 0, 1].into(), free_port());
    let mut rig = Rig::prepare(Options { git: Some(git), ..Options::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    let path = "/pages.git/info/refs?service=git-upload-pack";
    until("nobody serves", PATIENCE, async || {
        let told = ask(git, path).await?;
        if told == "503 No bazooka-rm answers now; try again in a moment." { Ok(()) } else { Err(told) }
    })
    .await;

    let mut rms = Vec::new();
    for name in ["rm1", "rm2"] {
        let rm = Instance::start(name, &rig.folder).await;
        rig.applied(rig.rm(name, &format!("http://{}", rm.address)).await).await;
        rms.push((format!("200 {name}"), rm));
    }
    // One app's requests go to one of them; of many apps', some go to each.
    let first = ask(git, path).await.expect("it answers");
    for path in ["/pages.git/git-receive-pack", "/pages.git/git-upload-pack", path] {
        assert_eq!(ask(git, path).await.as_ref(), Ok(&first), "{path}");
    }
    let mut others = std::collections::BTreeSet::new();
    for n in 0..20 {
        others.insert(ask(git, &format!("/app{n}.git/info/refs")).await.expect("it answers"));
    }
    assert_eq!(others.len(), 2, "{others:?}");

    let served = rms.iter().position(|(told, _)| *told == first).expect("one of them");
    rms[served].1.kill();
    // No request is lost: a connection that is refused leads to the other at once.
    for _ in 0..20 {
        assert_eq!(ask(git, path).await.as_ref(), Ok(&rms[1 - served].0));
    }
    rms[1 - served].1.kill();
    until("nobody serves", PATIENCE, async || {
        let told = ask(git, path).await?;
        if told.starts_with("503") { Ok(()) } else { Err(told) }
    })
    .await;
}

#[tokio::test]
async fn what_else_an_rm_answers_is_not_led_to() {
    let git = SocketAddr::new([127, 0, 0, 1].into(), free_port());
    let mut rig = Rig::prepare(Options { git: Some(git), ..Options::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    let rm = Instance::start("rm1", &rig.folder).await;
    rig.applied(rig.rm("rm1", &format!("http://{}", rm.address)).await).await;
    assert_eq!(ask(git, "/pages.git/info/refs").await, Ok("200 rm1".into()));
    for path in [
        "/",
        "/apps",
        "/apps/pages",
        "/slugs/0",
        "/metrics",
        "/apps/pages.git/info/refs",
        "/pages.git/config",
    ] {
        assert_eq!(ask(git, path).await, Ok("404 Only git is answered here: <app>.git".into()), "{path}");
    }
    // Nor does the public port lead to one.
    let public = rig.ask("git.localhost").await.expect("it answers");
    assert_eq!(public.status, 404);
}

/// Opens a connection from an address of this machine. A refused one may be reset before it is made.
async fn connect_from(last: u8, git: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket can be made");
    socket.bind(SocketAddr::new([127, 0, 0, last].into(), 0)).expect("the address is this machine's");
    socket.connect(git).await
}

/// Reports whether a connection was accepted: HAProxy waits for its request.
async fn is_held(stream: &mut io::Result<TcpStream>) -> bool {
    match stream {
        Ok(stream) => timeout(Duration::from_millis(300), stream.read(&mut [0])).await.is_err(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn one_visitor_leaves_connections_for_others() {
    let git = SocketAddr::new([127, 0, 0, 1].into(), free_port());
    let mut rig = Rig::prepare(Options { git: Some(git), ..Options::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    let rm = Instance::start("rm1", &rig.folder).await;
    rig.applied(rig.rm("rm1", &format!("http://{}", rm.address)).await).await;
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(connect_from(2, git).await);
    }
    assert!(is_held(held.last_mut().expect("there are some")).await, "so many it may have");
    assert!(!is_held(&mut connect_from(2, git).await).await, "no more of the same visitor");
    assert_eq!(ask(git, "/pages.git/info/refs").await, Ok("200 rm1".into()), "another visitor is served");
    held.truncate(200);
    until("the visitor is served again", PATIENCE, async || {
        if is_held(&mut connect_from(2, git).await).await { Ok(()) } else { Err("refused".into()) }
    })
    .await;
}
