//! Instances that take all they can get: each is held, and its neighbour doesn't notice.

use std::{fs, path::Path, time::Duration};

use visor::{
    names::InstanceId,
    schema::{Assignment, Desired, State},
    testing::until,
};

use crate::{
    neighbour::Neighbour,
    world::{SOON, World, has_sandboxes, shelve},
};

/// Begins each script: outside of a sandbox it does nothing.
const HARMLESS: &str =
    "import errno, json, os, signal, sys, time\nassert os.getuid() != 0 and os.getcwd() == '/app'\n";

/// How much more memory a bazooka-pm may take whatever its instances print and whoever reads it: with it, it stays under 64 MiB. That
/// of a shim is bounded alike.
const MOST_KIB: u64 = 40 << 10;

/// A job that runs this script.
fn hostile(world: &World, script: &str) -> Assignment {
    let mut job = world.job("exec python3 -S -E -u hostile.py");
    job.slug = shelve(&world.shelf, &[("hostile.py", &format!("{HARMLESS}{script}"))]);
    job.run.stop_timeout_ms = Some(500);
    job
}

/// Ends an instance and sees that nothing of it is left.
async fn ends(world: &World, id: InstanceId) {
    world.want(id, Desired::Stop).await;
    world.until_state(id, State::Exited).await;
    assert_eq!(world.processes(id), [0_i32; 0]);
}

fn peak_kib(pid: impl std::fmt::Display) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    peak.expect("the kernel says so").parse().expect("a number")
}

/// What the files below a folder take on the disk.
fn bytes_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[tokio::test]
async fn a_fork_bomb_is_held_and_ends() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let neighbour = Neighbour::of(&world).await;
    let script = "while True:\n \
            try: os.fork()\n \
            except OSError:\n  \
                print('held', flush=True)\n  \
                time.sleep(0.5)\n";
    let mut bomb = hostile(&world, script);
    bomb.run.limits.processes_limit = Some(60);
    let id = world.place(bomb).await;
    world.until_logged(&format!("app=rocket&instance={id}&n=1"), "held").await;
    // One may be looked at while it forks.
    let many = world.processes(id).len();
    assert!((50..=60).contains(&many), "{many}");
    ends(&world, id).await;
    neighbour.stays_well(&world).await;
}

/// Prints so many lines of a kilobyte as fast as it can.
async fn flood(lines: u64) {
    let world = World::start().await;
    let neighbour = Neighbour::of(&world).await;
    let script = format!(
        "for first in range(0, {lines}, 100):\n \
            text = ''.join(f'{{first + n:08}}' + 'x' * 991 + '\\n' for n in range(100)).encode()\n \
            while text: text = text[os.write(1, text):]\n\
        time.sleep(2)\n\
        print('ended')\n\
        time.sleep(1000)\n"
    );
    let before = peak_kib(world.pm_pid());
    let id = world.place(hostile(&world, &script)).await;
    let folder = world.state().join("instances").join(id.to_string()).join("log");
    let counted = || {
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let text = read("previous") + &read("current");
        let line = |line: &str| line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
        let kept: Vec<u64> = text.lines().filter_map(|said| line(said).get(..8)?.parse().ok()).collect();
        let told =
            text.lines().filter_map(|said| line(said).split_once(" lines dropped")?.0.parse::<u64>().ok());
        (kept, told.sum::<u64>())
    };
    let (kept, dropped) = until("it is told what was dropped", 12 * SOON, || async {
        let (kept, dropped) = counted();
        let all = kept.first() == Some(&0) && kept.len() as u64 + dropped == lines;
        // Of a long one the first lines aren't kept any more, nor what was told among them.
        let has_ended = world
            .logs(&format!("app=rocket&instance={id}&n=10"))
            .await
            .iter()
            .any(|said| said["line"] == "ended");
        let rolled = kept.first() != Some(&0) && has_ended;
        if all || rolled { Ok((kept, dropped)) } else { Err(format!("{} and {dropped}", kept.len())) }
    })
    .await;
    assert!(dropped > 0 && kept.len() as u64 + dropped <= lines, "{} {dropped}", kept.len());
    for _ in 0..5 {
        let told = world.logs(&format!("app=rocket&instance={id}&n=10000")).await;
        assert!(told.len() > 2_000, "{}", told.len());
    }
    let log = bytes_below(&world.state().join("instances").join(id.to_string()));
    assert!(log < 9 << 20, "{log}");
    for pid in world.shims() {
        assert!(peak_kib(pid) < MOST_KIB, "{}", peak_kib(pid));
    }
    let more = peak_kib(world.pm_pid()) - before;
    eprintln!("{before} KiB before, {more} KiB more");
    assert!(more < MOST_KIB, "{more} KiB more than {before}");
    ends(&world, id).await;
    neighbour.stays_well(&world).await;
}

#[tokio::test]
async fn a_flood_of_output_is_counted_and_takes_no_memory() {
    if has_sandboxes() {
        flood(24_000).await;
    }
}

#[tokio::test]
#[ignore = "takes some minutes; tests/run --long"]
async fn a_gigabyte_of_output_is_counted_and_takes_no_memory() {
    if has_sandboxes() {
        flood(1_000_000).await;
    }
}

#[tokio::test]
async fn who_takes_every_file_and_fills_every_disk_fills_its_own() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let neighbour = Neighbour::of(&world).await;
    let script = "def outcome(what):\n \
            try:\n  \
                while True: what()\n \
            except OSError as error: return errno.errorcode[error.errno]\n\
        said = {'files': []}\n\
        for _ in range(20):\n \
            read, write = os.pipe()\n \
            if os.fork() == 0:\n  \
                os.write(write, outcome(lambda: os.open('/dev/null', os.O_RDONLY)).encode())\n  \
                time.sleep(1000)\n \
            said['files'].append(os.read(read, 100).decode())\n\
        full = os.open('/dev/shm/full', os.O_CREAT | os.O_WRONLY)\n\
        said['bytes'] = [outcome(lambda: os.write(full, bytes(1 << 20))), os.fstat(full).st_size >> 20]\n\
        os.ftruncate(full, 0)\n\
        names = iter(range(10 ** 9))\n\
        said['names'] = outcome(lambda: os.close(os.open(f'/var/tmp/{next(names)}', os.O_CREAT)))\n\
        said['names'] = [said['names'], next(names) < 32768]\n\
        said['elsewhere'] = []\n\
        for folder, below, _ in os.walk('/'):\n \
            if folder.count('/') > 2 or folder in ('/proc', '/tmp', '/var/tmp', '/dev/shm'):\n  \
                below.clear()\n  \
                continue\n \
            try: os.close(os.open(folder + '/x', os.O_CREAT | os.O_WRONLY))\n \
            except OSError: continue\n \
            said['elsewhere'].append(folder)\n\
        print(json.dumps(said, sort_keys=True))\n\
        time.sleep(1000)\n";
    let before = bytes_below(world.dir.path());
    let id = world.place(hostile(&world, script)).await;
    let files = vec!["\"EMFILE\""; 20].join(", ");
    let wanted = format!(
        r#"{{"bytes": ["ENOSPC", 64], "elsewhere": ["/app"], "files": [{files}], "names": ["ENOSPC", true]}}"#
    );
    world.until_logged(&format!("app=rocket&instance={id}"), &wanted).await;
    let grown = bytes_below(world.dir.path()).saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more in the state folder");
    ends(&world, id).await;
    neighbour.stays_well(&world).await;
}

#[tokio::test]
async fn daemons_that_hide_from_their_end_end() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let neighbour = Neighbour::of(&world).await;
    let script = "for name in ('TERM', 'HUP', 'INT'): signal.signal(getattr(signal, 'SIG' + name), signal.SIG_IGN)\n\
        for n in range(30):\n \
            if os.fork() == 0:\n  \
                os.setsid()\n  \
                if os.fork() == 0:\n   \
                    os.closerange(0, 64)\n   \
                    while True: time.sleep(1000)\n  \
                os._exit(0)\n \
            os.wait()\n\
        print('away')\n\
        time.sleep(1000)\n";
    let id = world.place(hostile(&world, script)).await;
    world.until_logged(&format!("app=rocket&instance={id}"), "away").await;
    assert_eq!(world.processes(id).len(), 31);
    ends(&world, id).await;
    neighbour.stays_well(&world).await;
}

#[tokio::test]
async fn ten_thousand_zombies_are_reaped() {
    if !has_sandboxes() {
        return;
    }
    let world = World::start().await;
    let neighbour = Neighbour::of(&world).await;
    let script = "def processes(): return sum(1 for name in os.listdir('/proc') if name.isdigit())\n\
        if os.fork() == 0:\n \
            for _ in range(10000):\n  \
                if os.fork() == 0: os._exit(0)\n \
            print('made', processes())\n \
            os._exit(0)\n\
        os.wait()\n\
        while processes() > 2: time.sleep(0.01)\n\
        print('left', processes())\n\
        time.sleep(1000)\n";
    let mut job = hostile(&world, script);
    job.run.limits.processes_limit = Some(10_100);
    let id = world.place(job).await;
    // Ten thousand forks take four seconds of a core, and an instance gets a part of one while other tests run.
    let logs = world
        .until_logged_within(Duration::from_secs(90), &format!("app=rocket&instance={id}"), "left 2")
        .await;
    // Process 1, the two that made them, and those.
    assert!(logs.iter().any(|line| line["line"] == "made 10003"), "{logs:#?}");
    ends(&world, id).await;
    neighbour.stays_well(&world).await;
}
