//! Pushes that are cut anywhere, and rms that die under them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};
use visor::{names::AppName, testing::until};

use crate::{
    rig::{Folder, Rig, SOON},
    shared::Two,
};

/// Forwards connections to an rm, and cuts all of them once so many bytes have gone there.
struct Cutter {
    url: String,
    left: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl Cutter {
    async fn before(rig: &Rig) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let to = rig.url.strip_prefix("http://").expect("a plain url").to_owned();
        let (left, sent) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
        let (budget, count) = (left.clone(), sent.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&to).await else { continue };
                tokio::spawn(forward(client, server, budget.clone(), count.clone()));
            }
        });
        Cutter { url, left, sent }
    }

    fn after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::SeqCst);
        self.sent.store(0, Ordering::SeqCst);
    }
}

async fn forward(client: TcpStream, server: TcpStream, left: Arc<AtomicU64>, sent: Arc<AtomicU64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut chunk = [0; 1024];
        while let Ok(read @ 1..) = from_client.read(&mut chunk).await {
            let may = left.load(Ordering::SeqCst).min(read as u64);
            let passed = &chunk[..usize::try_from(may).expect("it is a chunk's length")];
            left.fetch_sub(may, Ordering::SeqCst);
            sent.fetch_add(may, Ordering::SeqCst);
            if to_server.write_all(passed).await.is_err() || may < read as u64 {
                break;
            }
        }
    };
    // Both ends are dropped with whichever way ends first.
    tokio::select! {
        () = there => {}
        _ = copy(&mut from_server, &mut to_client) => {}
    }
}

fn bulky(folder: &Folder, rng: &mut rand::rngs::StdRng) -> String {
    for n in 0..3 {
        let text: String = (0..3000).map(|_| char::from(rng.random_range(33..127_u8))).collect();
        folder.write(&format!("file{n}"), &text);
    }
    folder.write("Procfile", "web: x\n");
    folder.commit("bulky")
}

async fn cut_pushes(rig: Rig, times: u32) -> AppName {
    let seed: u64 = std::env::var("BAZOOKA_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    eprintln!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let (app, folder) = rig.app("pages").await;
    let cutter = Cutter::before(&rig).await;
    folder.git_now(&["remote", "add", "cut", &format!("{}/pages.git", cutter.url)]);
    // How much a whole push sends.
    bulky(&folder, &mut rng);
    cutter.after(u64::MAX);
    folder.git(&["push", "cut", "master"]).await.ok();
    let whole = cutter.sent.load(Ordering::SeqCst);
    let mut through = 1;
    for _ in 0..times {
        bulky(&folder, &mut rng);
        cutter.after(rng.random_range(0..whole));
        let pushed = folder.git(&["push", "cut", "master"]).await;
        // The last bytes are an end of chunks, or nothing: a push may have all it needs.
        through += usize::from(pushed.ok);
    }
    rig.fsck(&app);
    let view = rig.view(&app).await;
    assert_eq!(view.revs.len(), through, "a push that was cut registers nothing");
    assert_eq!(view.releases.len(), through);
    until("nothing of them is left", SOON, || async {
        let objects = std::fs::read_dir(rig.state().join("repos/pages.git/objects")).expect("it is there");
        let quarantined = objects
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("tmp_objdir"))
            })
            .count();
        let left = rig.left_over();
        if quarantined == 0 && left.is_empty() { Ok(()) } else { Err(format!("{quarantined} {left:?}")) }
    })
    .await;
    folder.push().await.ok();
    rig.fsck(&app);
    app
}

#[tokio::test]
async fn a_push_that_is_cut_anywhere_registers_nothing_and_harms_nothing() {
    cut_pushes(Rig::start().await, 25).await;
}

#[tokio::test]
async fn a_push_to_rms_that_share_a_storage_is_cut_anywhere_and_the_other_has_what_went_through() {
    let Two { one, two, storage: _storage } = Two::start().await;
    let url = format!("{}/pages.git", two.url);
    let app = cut_pushes(one, 25).await;
    let dir = tempfile::tempdir().expect("a folder");
    let cloned =
        std::process::Command::new("git").args(["clone", "-q", &url]).arg(dir.path().join("clone")).output();
    assert!(cloned.expect("git can be started").status.success());
    two.fsck(&app);
}

#[tokio::test]
#[ignore = "takes some minutes; tests/run --long"]
async fn five_hundred_pushes_that_are_cut_anywhere_harm_nothing() {
    cut_pushes(Rig::start().await, 500).await;
}

#[tokio::test]
async fn an_rm_that_is_killed_in_mid_upload_leaves_no_rev_and_a_retry_works() {
    let mut rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    bulky(&folder, &mut rng);
    let cutter = Cutter::before(&rig).await;
    folder.git_now(&["remote", "add", "cut", &format!("{}/pages.git", cutter.url)]);
    cutter.after(u64::MAX);
    // The hook runs, and the slug is being written or about to be.
    folder.write("bin/build", "#!/bin/sh\necho built\nhead -c 30000000 /dev/urandom > big\n").commit("big");
    let mut push =
        folder.command(&["push", "cut", "master"]).stderr(std::process::Stdio::piped()).spawn().expect("git");
    let mut output = push.stderr.take().expect("piped");
    until("the slug is being written", SOON, || async {
        let unfinished =
            rig.left_over().into_iter().find(|path| path.to_string_lossy().contains("slugs/.new"));
        let length = unfinished.and_then(|path| std::fs::metadata(path).ok()).map(|file| file.len());
        if length > Some(100_000) { Ok(()) } else { Err(format!("{length:?}")) }
    })
    .await;
    rig.end(Signal::SIGKILL).await;
    let mut told = String::new();
    output.read_to_string(&mut told).await.expect("readable");
    assert!(!push.wait().await.expect("it is ours").success(), "{told}");
    rig.restart().await;
    assert!(rig.left_over().is_empty());
    assert!(rig.view(&app).await.revs.is_empty());
    folder.write("bin/build", "#!/bin/sh\ntrue\n").commit("small");
    folder.git_now(&["remote", "set-url", "bazooka", &format!("{}/pages.git", rig.url)]);
    until("a retry goes through", SOON, || async {
        let pushed = folder.push().await;
        if pushed.ok { Ok(()) } else { Err(pushed.stderr) }
    })
    .await;
    assert_eq!(rig.view(&app).await.revs.len(), 1);
    rig.fsck(&app);
}
