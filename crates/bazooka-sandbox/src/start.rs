//! Starting a shim: its program over the file of a start, and the environment that no disk gets to see.
//!
//! Owns the inheritance: the lock goes with stdin and stderr, the socket with stdout, and nothing else.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

#[cfg(debug_assertions)]
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    files::entries,
    protocol::{Answer, ExitRecord, SANDBOXES, Spec, Start, append},
    shim::in_words,
};

/// How long a shim may take to listen.
const SLOW_SHIM: Duration = Duration::from_secs(10);

/// Spawns a shim over the file of a start, and tells it the environment of what it is to run. Blocks.
///
/// # Errors
/// Why it can't be spawned.
pub fn spawn_shim(
    shim: &Path,
    path: &Path,
    file: fs::File,
    env: &impl Serialize,
) -> io::Result<(Child, UnixStream)> {
    let (mut socket, theirs) = UnixStream::pair()?;
    // The lock goes with stdin and stderr, the socket with stdout: nothing else is inherited, not even by
    // a neighbour that is spawned in the same moment.
    let child = Command::new(shim)
        .arg(path)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::from(file))
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", shim.display())))?;
    failpoint("silent");
    socket.set_write_timeout(Some(SLOW_SHIM))?;
    let text = Zeroizing::new(serde_json::to_vec(env).map_err(io::Error::other)?);
    // One that doesn't listen, because it has ended or is an older one, says why itself.
    let _ = socket.write_all(&text);
    let _ = socket.shutdown(Shutdown::Write);
    Ok((child, socket))
}

/// Has a shim start something that ends at once, and waits for that. Blocks.
///
/// # Errors
/// Why it can't, in one line.
pub fn try_out(shim: &Path, path: &Path, spec: &Spec) -> Result<(), String> {
    let begin = || -> io::Result<(Child, UnixStream)> {
        let file = fs::File::options().create_new(true).read(true).append(true).mode(0o600).open(path)?;
        append(&file, &Start { spec: Some(spec), ..Start::default() })?;
        spawn_shim(shim, path, file, &BTreeMap::<String, String>::new())
    };
    let (mut child, mut answers) = begin().map_err(|error| error.to_string())?;
    let mut said = String::new();
    let read = answers.read_to_string(&mut said);
    let _ = child.wait();
    read.map_err(|error| error.to_string())?;
    match serde_json::from_str(&said) {
        Ok(Answer::Started(state)) if state.protocol < SANDBOXES => {
            Err("the bazooka-shim program is older than bazooka-pm and knows no sandbox".to_owned())
        }
        Ok(Answer::Started(_)) => match Start::<Spec>::read(path).exit {
            Some(ExitRecord { code: Some(0), .. }) => Ok(()),
            Some(exit) => Err(format!("what was tried in it {}", in_words(&exit))),
            None => Err("its shim ended at once".to_owned()),
        },
        Ok(Answer::Failed { cause }) => Err(cause),
        Err(_) => Err("its shim gave no answer".to_owned()),
    }
}

/// The ids of all processes.
pub fn processes() -> impl Iterator<Item = i32> {
    entries(Path::new("/proc")).filter_map(|name| name.parse().ok())
}

/// Dies here if a test says so: `BAZOOKA_PM_DIE_AT=locked`. Debug builds only.
pub fn failpoint(step: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("BAZOOKA_PM_DIE_AT").is_ok_and(|at| at == step) {
        let own = Pid::from_raw(i32::try_from(std::process::id()).expect("Linux process ids fit"));
        let _ = kill_process(own.expect("no process has id 0"), Signal::KILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = step;
}
