//! HAProxy's own metrics: at bazooka-proxy's endpoint, and nowhere that a visitor comes.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt};

use visor::testing::{free_port, until};

use crate::{
    http,
    rig::{Instance, Options, PATIENCE, Rig},
};

#[tokio::test]
async fn haproxys_own_metrics_are_at_the_proxys_endpoint_and_nowhere_else() {
    let rig = Rig::start().await;
    let port = rig.service("rocket", "web").await;
    let one = Instance::start("one", &rig.folder).await;
    rig.applied(rig.running(("rocket", "web"), &[(1, one.address)]).await).await;
    rig.wait_answer("rocket.localhost", "one").await;
    until("what the instance has answered is counted", PATIENCE, async || {
        let answer = rig.endpoint("/haproxy/metrics").await?;
        let line = "haproxy_server_bytes_out_total{proxy=\"rocket.web\",server=\"i1\"} ";
        let bytes = answer.body.lines().find_map(|found| found.strip_prefix(line)?.parse::<u64>().ok());
        if bytes.is_some_and(|bytes| bytes > 0) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let narrow = rig.endpoint("/haproxy/metrics?scope=global").await.expect("it answers");
    assert!(
        narrow.body.contains("haproxy_process_") && !narrow.body.contains("haproxy_server_"),
        "{narrow:?}"
    );
    // A visitor's request for the same path is the app's to answer.
    for (address, host) in [(rig.public, "rocket.localhost"), (SocketAddr::new(rig.public.ip(), port), "x")] {
        let answer = http::get(address, host, "/metrics").await.expect("it answers");
        assert_eq!((answer.status, answer.body.trim()), (200, "one"), "{host}");
    }
    let answer = http::get(rig.public, "exporter", "/metrics").await.expect("it answers");
    assert_eq!(answer.status, 404, "{answer:?}");
    let socket = std::fs::metadata(rig.folder.join("exporter.sock")).expect("it is there");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_haproxy_without_an_exporter_routes_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let bare = folder.path().join("haproxy");
    std::fs::write(&bare, "#!/bin/sh\n[ \"$1\" = -vv ] && exit\nexec haproxy \"$@\"\n")
        .expect("it can be written");
    std::fs::set_permissions(&bare, PermissionsExt::from_mode(0o755)).expect("a mode");
    let mut rig = Rig::prepare(Options { haproxy: bare, ..Default::default() }).await;
    rig.start_proxy();
    rig.wait_ready().await;
    rig.applied(rig.service_at("rocket", "web", free_port()).await).await;
    let answer = rig.endpoint("/haproxy/metrics").await.expect("it answers");
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(rig.log().contains("has no exporter"), "it is warned of");
}
