//! A bazooka-rm one of whose loops ends.

use std::{fs, os::fd::RawFd, path::Path};

use bazooka_rm::daemon::{RmArgs, run};
use clap::Parser;
use nix::sys::socket::{Shutdown, UnixAddr, getsockname, shutdown};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use visor::{
    testing::{Etcd, fresh_prefix, observer, until},
    visor::Visor,
};

use crate::rig::{SOON, keys_below};

/// This process's socket of this name.
fn socket(name: &str) -> Option<RawFd> {
    let open = fs::read_dir("/proc/self/fd").expect("it is there");
    let fds = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    fds.filter(|fd| {
        let address = getsockname::<UnixAddr>(*fd).ok();
        address.is_some_and(|address| address.path().is_some_and(|path| path.ends_with(Path::new(name))))
    })
    .min()
}

#[tokio::test]
async fn hooks_listener_fails_and_the_daemon_ends_with_its_name() {
    let (etcd, prefix) = (Etcd::shared().await.endpoint(), fresh_prefix());
    let dir = tempfile::tempdir().expect("a folder");
    let state = dir.path().join("rm").display().to_string();
    let args = RmArgs::try_parse_from([
        "bazooka-rm",
        "--name=rm1",
        "--listen=127.0.0.1:0",
        "--build-isolation=none",
        &format!("--coordinator={etcd}"),
        &format!("--prefix={prefix}"),
        &format!("--state={state}"),
    ]);
    let visor = Visor::new(observer(etcd, &prefix));
    let rows = || keys_below(&visor, "rms/");
    let breaking = async {
        until("it is there", SOON, || async {
            let rows = rows().await;
            if rows == ["rms/rm1"] { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
        // As the kernel would, should it take the socket away.
        shutdown(socket("hooks.sock").expect("it listens"), Shutdown::Both).expect("it listens");
    };
    let running = run(args.expect("it can be read"), CancellationToken::new());
    let (ended, ()) = tokio::join!(timeout(SOON, running), breaking);
    let error = ended.expect("it ends").expect_err("a loop of it has ended");
    assert_eq!(format!("{error:#}"), "the hooks' listener failed: Invalid argument (os error 22)");
    assert_eq!(rows().await, Vec::<String>::new(), "it leaves the cluster at once");
}
