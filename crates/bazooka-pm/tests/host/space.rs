//! An instance's own space: its layer over `/app` and its `/tmp` are bounded, private, and gone with it.

use std::{fs, path::Path};

use nix::sys::signal::Signal;
use visor::{
    names::InstanceId,
    schema::{Assignment, Desired, State},
    testing::until,
};

use crate::world::{SOON, World, has_sandboxes, shelve, signal};

/// A program that writes beside its code and over it, says what came of it, and fills its layer and `/tmp`.
const WRITER: &str = r#"
import errno, json, os, pathlib, shutil, sqlite3, sys, time

def outcome(what):
    try:
        what()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]

def fill(path):
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))

said = {
    "own": os.stat("writer.py").st_uid == os.getuid(),
    "append": outcome(lambda: open("writer.py", "a").write("\n")),
    "make": outcome(lambda: pathlib.Path("tmp/pids").mkdir(parents=True)),
    "move": outcome(lambda: os.rename("lib", "library")),
    "remove": outcome(lambda: shutil.rmtree("library")),
    "mode": outcome(lambda: os.chmod("writer.py", 0o700)),
    "database": outcome(lambda: sqlite3.connect("cache.sqlite3").execute("create table t (n)")),
    "home": outcome(lambda: open(os.path.expanduser("~/.config"), "w").close()),
    "tmp": shutil.disk_usage("/tmp").total >> 20,
    "fill_tmp": outcome(lambda: fill("/tmp/full")),
    "fill": outcome(lambda: fill("full")),
    "size": os.stat("full").st_size >> 20,
    "seen": os.path.exists("mark"),
}
print(json.dumps(said, sort_keys=True))
print("said", flush=True)
if os.environ.get("LEAVES"):
    sys.exit(3)
time.sleep(1000)
"#;

/// Returns the loop devices over disks of this world's instances.
fn loops(world: &World) -> Vec<String> {
    let state = world.state().display().to_string();
    let devices = fs::read_dir("/sys/block").expect("Linux has it").flatten();
    let behind = devices.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    behind.filter(|file| file.contains(&state)).collect()
}

async fn until_loops(world: &World, count: usize) {
    until("the loop devices are released", SOON, || async {
        let found = loops(world);
        if found.len() == count { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

fn writer(world: &World) -> Assignment {
    let mut job = world.job("exec python3 writer.py");
    job.slug = shelve(&world.shelf, &[("writer.py", WRITER), ("lib/one", "1")]);
    for (name, bytes) in [("disk_bytes", 20 << 20), ("tmp_bytes", 32_u64 << 20)] {
        job.run.extra.insert(name.to_owned(), bytes.into());
    }
    job
}

/// Waits for the writer's words, and checks them.
async fn writes(world: &World, id: InstanceId) {
    let logs = world.until_logged(&format!("app=rocket&instance={id}"), "said").await;
    let said = logs.iter().filter_map(|line| line["line"].as_str()).find(|line| line.starts_with('{'));
    let said: serde_json::Value = serde_json::from_str(said.expect("it was logged")).expect("JSON");
    for what in ["append", "make", "move", "remove", "mode", "database", "home"] {
        assert_eq!(said[what], "done", "{what}: {said}");
    }
    assert_eq!((&said["own"], &said["seen"]), (&true.into(), &false.into()), "{said}");
    for what in ["fill", "fill_tmp"] {
        assert_eq!(said[what], "ENOSPC", "{said}");
    }
    let (tmp, size) = (said["tmp"].as_u64().expect("a number"), said["size"].as_u64().expect("a number"));
    assert!((20..=32).contains(&tmp) && (10..=20).contains(&size), "{said}");
}

#[tokio::test]
async fn an_instance_writes_over_its_code_within_its_bound_and_nothing_is_left() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let job = writer(&world);
    let slug = world.state().join("slugs").join(job.slug.sha256.as_str());
    let before = loops(&world);
    assert!(before.is_empty(), "{before:?}");
    // Two at once have layers of their own.
    let ids = world.place_all(vec![job.clone(), job]).await;
    for id in &ids {
        writes(&world, *id).await;
    }
    assert_eq!(loops(&world).len(), 4);
    assert_eq!(fs::read_to_string(slug.join("writer.py")).expect("it is there"), WRITER);
    assert!(slug.join("lib/one").exists() && !slug.join("full").exists());
    let images: Vec<_> = fs::read_dir(world.state().join("disks")).expect("it is there").flatten().collect();
    assert!(
        images.iter().all(|image| image.path().is_dir() || image.path().extension().is_some_and(|kind| kind == "ext4")),
        "{images:?}"
    );

    // The one ends as it should, the other with its shim.
    world.want(ids[0], Desired::Stop).await;
    world.until_state(ids[0], State::Exited).await;
    until_loops(&world, 2).await;
    let shim = *world.shims().first().expect("one runs");
    signal(shim, Signal::SIGKILL);
    world.want(ids[1], Desired::Stop).await;
    world.until_state(ids[1], State::Exited).await;
    until_loops(&world, 0).await;
}

#[tokio::test]
async fn a_full_disk_is_told_where_the_instance_ends() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let mut job = writer(&world);
    job.env = world.env(1, &[("LEAVES", "1")]).await;
    let id = world.place(job).await;
    let status = world.until_status(id, "has crashed", |status| !status.exits.is_empty()).await;
    let cause = status.cause.expect("it is said");
    let full = "with its /app full (`bazooka procs set` has --disk), with its /tmp full";
    assert!(cause.contains("exited with status 3") && cause.contains(full), "{cause}");
}

#[tokio::test]
async fn without_a_disk_the_code_is_read_only() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let mut job = world.job("touch x; echo $? of $(touch /tmp/x; echo $?); exec sleep 1000");
    job.run.extra.insert("disk_bytes".to_owned(), 0.into());
    let id = world.place(job).await;
    world.until_logged(&format!("app=rocket&instance={id}"), "1 of 0").await;
}

#[tokio::test]
async fn an_instance_sees_its_own_limits() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes 2>/dev/null; \
        echo $MEMORY_LIMIT_BYTES $WEB_CONCURRENCY; touch x 2>/dev/null || echo closed; exec sleep 1000";
    let mut job = world.job(script);
    job.run.limits.memory_limit_bytes = Some(300 << 20);
    let id = world.place(job).await;
    let at = format!("app=rocket&instance={id}");
    let logs = world.until_logged(&at, "closed").await;
    let lines: Vec<_> =
        logs.iter().filter(|line| line["stream"] == "out").map(|line| &line["line"]).collect();
    assert_eq!(lines, ["314572800", "314572800 1", "closed"]);
    // One without limits sees nobody else's.
    let id =
        world.place(world.job("find /sys -name 'memory*' | grep -c .; echo looked; exec sleep 1000")).await;
    let logs = world.until_logged(&format!("app=rocket&instance={id}"), "looked").await;
    let whole = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert!(whole || logs.iter().any(|line| line["line"] == "0"), "{logs:#?}");
}
