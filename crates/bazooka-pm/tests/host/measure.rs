//! Measurements, to be looked at: `cargo nextest run --run-ignored only -p bazooka-pm measure --no-capture`,
//! with `BAZOOKA_TEST_PM` naming a release build.

#![allow(clippy::print_stdout, reason = "figures are for whoever runs it")]

use std::{fs, time::Instant};

use visor::{
    keys,
    schema::{Desired, State},
    testing::until,
};

use crate::world::{SERVER, SOON, World, ask, signal};

/// A field of a file in /proc/PID, in KiB.
fn kib(pid: i64, file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.trim_start_matches(':').trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

async fn until_all(world: &World, state: State, count: usize) {
    until("all are there", SOON, || async {
        let found =
            world.visor.read(vec![keys::status_of(&world.host)]).await.map_err(|error| error.to_string())?;
        let found = found
            .hosts
            .get(&world.host)
            .map_or(0, |view| view.status.values().filter(|status| status.state == state).count());
        if found == count { Ok(()) } else { Err(format!("{found} of {count}")) }
    })
    .await;
}

/// Hundredths of a second of processor time: its own, and that of the children that it has waited for.
fn cpu(pid: u32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u64> = text
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    [fields[11] + fields[12], fields[13] + fields[14]]
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_hundred_instances() {
    let world = World::start().await;
    let warm = world.place(world.job("exec sleep 1000")).await;
    world.until_state(warm, State::Running).await;
    println!("pm with 1 instance: {} KiB", kib(world.pm_pid().into(), "status", "VmRSS"));
    let before = cpu(world.pm_pid());
    let begun = Instant::now();
    let ids = world.place_all(vec![world.job("sleep 1000"); 99]).await;
    until_all(&world, State::Running, 100).await;
    println!("99 sleeps, from the write to the last one running: {:?}", begun.elapsed());
    println!("its processor time for that: {} ms", (cpu(world.pm_pid())[0] - before[0]) * 10);
    println!("pm with 100 instances: {} KiB", kib(world.pm_pid().into(), "status", "VmRSS"));
    let shims = world.shims();
    let sum = |field| {
        shims.iter().map(|pid| kib((*pid).into(), "smaps_rollup", field)).sum::<u64>() / shims.len() as u64
    };
    println!("a shim of {}: PSS {} KiB, private {} KiB", shims.len(), sum("Pss"), sum("Private_Dirty"));
    let begun = Instant::now();
    for id in &ids {
        world.want(*id, Desired::Stop).await;
    }
    until_all(&world, State::Exited, 99).await;
    println!("99 ended: {:?}", begun.elapsed());
    println!("shims' processor time in their life: {} ms", (cpu(world.pm_pid())[1] - before[1]) * 10);
    println!("pm after that: {} KiB", kib(world.pm_pid().into(), "status", "VmRSS"));

    let begun = Instant::now();
    let id = world.place(world.web("exec /usr/bin/python3 -S -E serve.py")).await;
    let status = world.until_state(id, State::Running).await;
    println!("one python server, from the write to seen running: {:?}", begun.elapsed());
    println!("{:#?}", status.story);
    for _ in 0..3 {
        let status = world.until_state(id, State::Running).await;
        let begun = Instant::now();
        signal(status.pid.expect("it runs") as i32, nix::sys::signal::Signal::SIGKILL);
        while ask(status.port.expect("it has one")).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        println!("killed; answers again after {:?}", begun.elapsed());
        world
            .until_status(id, "runs again", |now| now.state == State::Running && now.pid != status.pid)
            .await;
    }
    let _ = SERVER;
}
