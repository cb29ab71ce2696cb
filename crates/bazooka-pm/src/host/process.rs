//! The processes of shims: starting a shim, and signalling it. `adopt` finds one again, and waits for its end.
//!
//! A shim is held by its pidfd from the moment that it is known, so that a reused
//! process id can't be mistaken for it. Blocking calls run on the pool for process work.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt, chown},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
};

use bazooka_sandbox::{
    files::{append, private_folder, try_lock},
    protocol::{Answer, LOG_CURRENT, LOG_PREVIOUS, LaunchSpec, ProcessId, ShimState, Start},
    start::{SpawnedShim, needed},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use visor::{names::InstanceId, seal::Vars};

use super::{
    descriptor::readable,
    folders::Folders,
    pools::Pool,
    sweep::{Remains, sweep},
};

/// A running shim.
#[derive(Clone, Debug)]
pub struct Shim {
    /// The state that the shim wrote: what it has started.
    pub state: ShimState,
    held: Arc<AsyncFd<OwnedFd>>,
    /// The child process, to be reaped once it has ended; none for a shim of an earlier bazooka-pm.
    child: Option<Arc<std::sync::Mutex<Child>>>,
}

/// The spec of a start, with what bazooka-pm itself needs when it finds the start again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FullSpec {
    /// The shim's part.
    #[serde(flatten)]
    pub spec: LaunchSpec,
    /// bazooka-pm's part.
    pub pm: PmPart,
}

/// The data with which bazooka-pm can start an instance again while the coordinator is away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PmPart {
    /// The instance's state at the start, in case no note was written since.
    pub local: super::model::Local,
    /// The values of its env, as versions before 3 of the protocol wrote them. The field is never written, so that an
    /// older bazooka-pm takes the env for unreadable, not for one without vars.
    #[serde(default, skip_serializing)]
    pub vars: Option<Vars>,
}

/// The reason why an instance can't be started. The host is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't start it: {0}")]
pub struct StartError(pub String);

/// Starts a shim, and waits until it has started the instance.
///
/// # Errors
/// [`StartError`]; nothing of the instance runs then.
///
/// # Cancel safety
/// Not cancel safe: a dropped future leaves the instance running; [`super::adopt::find`] finds it.
pub async fn start(
    pool: &Pool,
    folders: Folders,
    shim: PathBuf,
    id: InstanceId,
    run: u32,
    spec: FullSpec,
    env: Vars,
) -> Result<Shim, StartError> {
    let place = folders.clone();
    let uid = spec.spec.uid;
    let groups = spec.spec.all_groups();
    let needed = needed(&spec.spec);
    let spawned = pool.run(move || spawn(&place, &shim, id, run, &spec, &env)).await;
    let spawned = spawned.map_err(|error| StartError(error.to_string()))?;
    let SpawnedShim { mut child, socket: answers } =
        spawned.map_err(|error| StartError(error.to_string()))?;
    failpoint("spawned");
    let answer = read_answer(answers).await;
    let failed = match answer {
        Ok(Answer::Started(state)) if state.protocol < needed => {
            "the bazooka-shim program is older than bazooka-pm and knows not all of its limits and its sandbox"
                .to_owned()
        }
        Ok(Answer::Started(state)) => match hold(state.shim) {
            Some(held) => {
                let child = Some(Arc::new(std::sync::Mutex::new(child)));
                return Ok(Shim { state, held, child });
            }
            // The shim ended before it could be held; its own exit file has the reason.
            None => "its shim ended at once".to_owned(),
        },
        Ok(Answer::Failed { cause }) => cause,
        Err(error) => format!("its shim gave no answer: {error}"),
    };
    let file = folders.run(id, run);
    let ended = pool.run(move || {
        let _ = child.kill();
        let _ = child.wait();
        let said = fs::read_to_string(file).unwrap_or_default();
        match said.lines().find(|line| !line.is_empty() && !line.starts_with('{')) {
            Some(complaint) if !failed.contains(complaint) => format!("{failed} ({complaint})"),
            _ => failed,
        }
    });
    let words = ended.await.unwrap_or_else(|error| error.to_string());
    sweep(pool, Remains { home: folders.home(id), uid, groups }).await;
    Err(StartError(words))
}

/// Creates the file of a start and spawns its shim. Blocks.
fn spawn(
    folders: &Folders,
    shim: &Path,
    id: InstanceId,
    run: u32,
    spec: &FullSpec,
    env: &Vars,
) -> io::Result<SpawnedShim> {
    let (path, home) = (folders.run(id, run), folders.home(id));
    fs::DirBuilder::new().recursive(true).mode(0o711).create(folders.instance(id))?;
    if !home.is_dir() {
        private_folder(&home)?;
        if let Some(uid) = spec.spec.uid {
            chown(&home, Some(uid), Some(uid))?;
        }
    }
    private_folder(&folders.log(id))?;
    failpoint("folders");
    for old in folders.runs(id)?.into_iter().filter(|old| *old < run) {
        fs::remove_file(folders.run(id, old))?;
    }
    let file = fs::File::options().create_new(true).read(true).append(true).mode(0o600).open(&path)?;
    failpoint("file");
    // Lock the file before it has any content, so that another reader can tell whether the start is under way.
    try_lock(&file)?.ok_or_else(|| io::Error::other("its start is somebody else's"))?;
    failpoint("locked");
    append(&file, &Start { spec: Some(spec), ..Start::default() })?;
    failpoint("spec");
    let mut spawned = SpawnedShim::spawn(shim, &path, file)?;
    failpoint("silent");
    spawned.tell(env)?;
    Ok(spawned)
}

async fn read_answer(answers: UnixStream) -> io::Result<Answer> {
    use tokio::io::AsyncReadExt;
    answers.set_nonblocking(true)?;
    let mut answers = tokio::net::UnixStream::from_std(answers)?;
    let mut line = Vec::with_capacity(512);
    while !line.ends_with(b"\n") {
        if answers.read_buf(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    serde_json::from_slice(&line).map_err(io::Error::other)
}

/// Opens a pidfd of a process; none if the process isn't the expected one any more.
fn hold(process: ProcessId) -> Option<Arc<AsyncFd<OwnedFd>>> {
    let fd = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::NONBLOCK).ok()?;
    // A pidfd never comes to mean another process. If the process is still the expected one now that the pidfd is
    // open, the pidfd is its.
    if !process.is_there() {
        return None;
    }
    readable(fd).ok().map(Arc::new)
}

impl Shim {
    /// Holds a shim of an earlier bazooka-pm; none if it has ended.
    pub fn of(state: ShimState) -> Option<Shim> {
        hold(state.shim).map(|held| Shim { state, held, child: None })
    }

    /// Waits until the shim has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn gone(&self) {
        // The descriptor becomes readable only when the process has ended.
        let _ = self.held.readable().await;
    }

    /// Reaps the ended shim, if it is this process's child.
    pub fn reap(&self) {
        if let Some(child) = &self.child {
            // The process has ended, so this returns at once.
            let _ = child.lock().expect("nobody panics with it").wait();
        }
    }

    /// Tells the shim to end the instance, with its stop timeout.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Tells the shim to end the instance at once.
    pub fn end_at_once(&self) {
        self.signal(Signal::USR1);
    }

    /// Kills the shim. The kernel then kills the instance's first process.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // A shim that has ended needs no signal.
        let _ = pidfd_send_signal(self.held.get_ref(), signal);
    }
}

/// Returns the last lines that an instance wrote since `since_us`, cut to what a status may hold.
pub fn last_output(log: &Path, since_us: u64) -> Vec<String> {
    const LINES: usize = 20;
    const LINE_CHARS: usize = 200;
    const BYTES: usize = 4 << 10;
    const TAIL: u64 = 32 << 10;
    let mut text = Vec::new();
    for name in [LOG_PREVIOUS, LOG_CURRENT] {
        let Ok(mut file) = fs::File::open(log.join(name)) else { continue };
        let length = file.metadata().map_or(0, |meta| meta.len());
        let _ = io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(TAIL)));
        let _ = file.take(TAIL).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<String> = Vec::new();
    let (mut bytes, mut stream) = (0, "");
    for line in text.lines().rev() {
        let mut words = line.splitn(3, ' ');
        let (Some(at), Some(mark), Some(line)) = (words.next(), words.next(), words.next()) else { continue };
        let is_piece = at.starts_with('+');
        let Ok(at) = at.parse::<u64>() else { continue };
        if at < since_us {
            break;
        }
        if mark == "s" {
            continue;
        }
        let mut line: String = line.chars().take(LINE_CHARS).collect();
        // A piece belongs to the line after it, unless another stream's came between.
        if is_piece
            && stream == mark
            && let Some(rest) = lines.pop()
        {
            bytes -= rest.len();
            line.extend(rest.chars().take(LINE_CHARS.saturating_sub(line.chars().count())));
        }
        stream = mark;
        bytes += line.len();
        if lines.len() == LINES || bytes > BYTES {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    lines
}

/// Kills this process at a step that a test names: `BAZOOKA_PM_DIE_AT=locked`. Debug builds only.
pub fn failpoint(step: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("BAZOOKA_PM_DIE_AT").is_ok_and(|at| at == step) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = step;
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use nix::libc::SIGTERM;

    use super::*;
    use bazooka_sandbox::{machine::boot_id, protocol::PROTOCOL};

    /// The variable with the number of times that a process id is reused; [`used_again`] reads it.
    const ROUNDS: &str = "BAZOOKA_TEST_ROUNDS";

    /// Runs the test in its own pid namespace, where it can choose the next process id.
    fn in_own_namespace(rounds: u32) {
        let script = "echo 100 > /proc/sys/kernel/ns_last_pid";
        let may =
            Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "sh", "-c", script]).output();
        let may = may.expect("unshare is there");
        if !may.status.success() {
            eprintln!("not tried: no process id can be chosen here: {may:?}");
            return;
        }
        let own = std::env::current_exe().expect("a running program has a path");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(own);
        command.args(["--exact", "--ignored", "--nocapture", "host::process::tests::used_again"]);
        let output = command.env(ROUNDS, rounds.to_string()).output().expect("unshare is there");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
    }

    #[test]
    fn the_last_output_has_lines_as_they_were_printed() {
        let log = tempfile::tempdir().expect("a folder");
        let text = "1 o before\n+2 o na\n2 s a word\n3 o me?\n+4 o 1\n5 e other\n6 o 2\n";
        fs::write(log.path().join(LOG_CURRENT), text).expect("there is room");
        assert_eq!(last_output(log.path(), 2), ["name?", "1", "other", "2"]);
    }

    #[test]
    fn whoever_gets_the_id_of_one_that_has_ended_is_left_alone() {
        in_own_namespace(300);
    }

    #[test]
    #[ignore = "takes minutes"]
    fn ten_thousand_that_get_the_id_of_one_that_has_ended_are_left_alone() {
        in_own_namespace(10_000);
    }

    #[tokio::test]
    #[ignore = "runs within the two above"]
    async fn used_again() {
        let Ok(rounds) = std::env::var(ROUNDS) else { return };
        let sleeper = || Command::new("sleep").arg("600").spawn().expect("it can be started");
        for _ in 0..rounds.parse().expect("a number") {
            let mut first = sleeper();
            let pid = i32::try_from(first.id()).expect("it fits");
            let id = ProcessId::of(pid).expect("it runs");
            let held = hold(id).expect("it runs");
            first.kill().expect("it runs");
            first.wait().expect("it ends");
            // Two processes with the same id are told apart by the tick in which they started.
            let mut second = loop {
                fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("it can be set");
                let mut other = sleeper();
                let other_id = ProcessId::of(pid).expect("it has the id");
                assert_eq!(other.id(), first.id());
                if other_id != id {
                    break other;
                }
                other.kill().expect("it runs");
                other.wait().expect("it ends");
            };
            assert!(hold(id).is_none(), "it is another");
            let state =
                ShimState { protocol: PROTOCOL, boot_id: boot_id(), shim: id, child: None, started_us: 0 };
            let shim = Shim { state, held, child: None };
            shim.kill();
            shim.end_at_once();
            let other = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(other, nix::sys::signal::Signal::SIGTERM).expect("it runs");
            assert_eq!(second.wait().expect("it ends").signal(), Some(SIGTERM), "of nothing else");
        }
    }
}
