//! What the same work takes without us: the floors that figures are compared with.

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Starts `count` Node servers side by side and returns the time until the last accepts.
pub fn node_servers(dir: &std::path::Path, count: u16) -> Duration {
    let ports: Vec<u16> = (0..count)
        .map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free"))
        .collect::<Vec<_>>()
        .iter()
        .map(|listener| listener.local_addr().expect("it listens").port())
        .collect();
    let begin = Instant::now();
    let mut children: Vec<Child> = ports
        .iter()
        .map(|port| {
            let mut node = Command::new("node");
            // As an instance has it: what else is in a shell's environment can double a start of Node
            // (NODE_EXTRA_CA_CERTS does).
            node.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
            node.arg("server.js").current_dir(dir).env("PORT", port.to_string()).env("BAZOOKA_INSTANCE", "0");
            node.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("node can be started")
        })
        .collect();
    for port in ports {
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let took = begin.elapsed();
    end(&mut children);
    took
}

/// Starts `count` sleeps side by side and returns the time until all are there.
pub fn sleepers(count: usize) -> Duration {
    let begin = Instant::now();
    let mut children: Vec<Child> = (0..count)
        .map(|_| Command::new("sleep").arg("1000").spawn().expect("sleep can be started"))
        .collect();
    let took = begin.elapsed();
    end(&mut children);
    took
}

fn end(children: &mut [Child]) {
    for child in &mut *children {
        let _ = child.kill();
    }
    for child in children {
        let _ = child.wait();
    }
}
