//! The hook's process, which git starts: sends git's call to the daemon, and prints the daemon's answer.
//!
//! Decides nothing and touches no repository. Git waits for the process, and its exit status is the verdict. If a hook
//! is killed, the daemon notices the end of its connection.

pub mod wire;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use self::wire::{Call, Hook, MAX_CALL, RefUpdate, Reply};
use crate::layout::SOCKET;

/// Returns the hook that the program was called as, if any.
pub fn by_name(program: &str) -> Option<Hook> {
    match program.rsplit('/').next() {
        Some("pre-receive") => Some(Hook::PreReceive),
        Some("post-receive") => Some(Hook::PostReceive),
        _ => None,
    }
}

/// Runs a hook and returns its exit status.
pub fn run(hook: Hook) -> i32 {
    match call(hook) {
        Ok(status) => status,
        Err(error) => {
            // If this can't be written, git has ended.
            let _ = writeln!(io::stdout(), "can't reach bazooka-rm: {error}");
            1
        }
    }
}

fn call(hook: Hook) -> io::Result<i32> {
    let mut said = String::new();
    io::stdin().lock().take(MAX_CALL).read_to_string(&mut said)?;
    let call = Call {
        hook,
        push: std::env::var("BAZOOKA_PUSH").unwrap_or_default(),
        updates: said.lines().filter_map(RefUpdate::parse).collect(),
        quarantine: std::env::var_os("GIT_QUARANTINE_PATH").map(PathBuf::from),
        options: push_options(),
    };
    // Git starts hooks in the repository, REPOS/A.git. A relative path fits the short length that a socket's path may
    // have.
    let mut daemon = UnixStream::connect(format!("../../{SOCKET}"))?;
    let mut words = serde_json::to_vec(&call)?;
    words.push(b'\n');
    daemon.write_all(&words)?;
    let mut out = io::stdout().lock();
    for reply in BufReader::new(&daemon).lines() {
        match serde_json::from_str(&reply?)? {
            Reply::Line(line) => {
                out.write_all(line.as_bytes())?;
                out.write_all(b"\n")?;
                out.flush()?;
            }
            Reply::Done { status } => return Ok(status),
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has gone away; push again"))
}

fn push_options() -> Vec<String> {
    let count: usize =
        std::env::var("GIT_PUSH_OPTION_COUNT").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    (0..count.min(100)).filter_map(|at| std::env::var(format!("GIT_PUSH_OPTION_{at}")).ok()).collect()
}
