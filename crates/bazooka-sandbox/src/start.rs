//! The start of a shim: spawns its program over the file of a start, and sends it the environment, which is never on
//! disk.
//!
//! Owns what the shim inherits: the lock by stdin and stderr, the socket by stdout, and nothing else.

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

use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    files::append,
    protocol::{Answer, ExitRecord, LOOPBACKS, LaunchSpec, SANDBOXES, Start},
    shim::in_words,
};

/// The longest time that a shim may take to read its environment.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// The reason why nothing can be started in a sandbox here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum TrialError {
    #[error("its shim can't be started")]
    Begin(#[source] io::Error),
    #[error("can't read its shim's messages")]
    Hear(#[source] io::Error),
    #[error("the bazooka-shim program is older than bazooka-pm and knows not all of its sandbox")]
    OldShim,
    #[error("what was tried in it {}", in_words(.0))]
    Ended(ExitRecord),
    #[error("its shim ended at once")]
    NoExit,
    /// The shim's own message.
    #[error("{cause}")]
    Failed { cause: String },
    #[error("its shim gave no answer")]
    NoAnswer(#[source] serde_json::Error),
}

/// A shim that has been spawned and doesn't have its environment yet.
#[derive(Debug)]
pub struct SpawnedShim {
    /// The shim's process.
    pub child: Child,
    /// The socket to it, by which it also sends its [`Answer`].
    pub socket: UnixStream,
}

impl SpawnedShim {
    /// Spawns a shim over the file of a start. Blocks.
    ///
    /// # Errors
    /// The system's, with the program's path.
    pub fn spawn(shim: &Path, path: &Path, file: fs::File) -> io::Result<SpawnedShim> {
        let (socket, theirs) = UnixStream::pair()?;
        // The shim inherits the lock by stdin and stderr and the socket by stdout. Nothing else is inherited, not even
        // by another process that is spawned in the same moment.
        let child = Command::new(shim)
            .arg(path)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(file.try_clone()?))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::from(file))
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", shim.display())))?;
        Ok(SpawnedShim { child, socket })
    }

    /// Sends the environment of the command. Blocks.
    ///
    /// # Errors
    /// The system's. A shim that doesn't read is no error here: it reports the reason itself.
    pub fn tell(&mut self, env: &impl Serialize) -> io::Result<()> {
        self.socket.set_write_timeout(Some(LISTENS_WITHIN))?;
        let text = Zeroizing::new(serde_json::to_vec(env).map_err(io::Error::other)?);
        let _ = self.socket.write_all(&text);
        let _ = self.socket.shutdown(Shutdown::Write);
        Ok(())
    }
}

/// Returns the version of the protocol that a shim needs to know all of a spec. An older one silently leaves out the
/// rest.
pub fn needed(spec: &LaunchSpec) -> u32 {
    match &spec.sandbox {
        Some(sandbox) if sandbox.fence.is_some() => LOOPBACKS,
        Some(_) => SANDBOXES,
        None if !spec.groups.is_empty() => SANDBOXES,
        None => 0,
    }
}

/// Lets a shim start a command that ends at once, and waits for its end. Blocks.
///
/// # Errors
/// [`TrialError`].
pub fn try_out(shim: &Path, path: &Path, spec: &LaunchSpec) -> Result<(), TrialError> {
    let begin = || -> io::Result<SpawnedShim> {
        let file = fs::File::options().create_new(true).read(true).append(true).mode(0o600).open(path)?;
        append(&file, &Start { spec: Some(spec), ..Start::default() })?;
        let mut spawned = SpawnedShim::spawn(shim, path, file)?;
        spawned.tell(&BTreeMap::<String, String>::new())?;
        Ok(spawned)
    };
    let SpawnedShim { mut child, mut socket } = begin().map_err(TrialError::Begin)?;
    let mut said = String::new();
    let read = socket.read_to_string(&mut said);
    let _ = child.wait();
    read.map_err(TrialError::Hear)?;
    match serde_json::from_str(&said) {
        Ok(Answer::Started(state)) if state.protocol < needed(spec) => Err(TrialError::OldShim),
        Ok(Answer::Started(_)) => match Start::<LaunchSpec>::read(path).exit {
            Some(ExitRecord { code: Some(0), .. }) => Ok(()),
            Some(exit) => Err(TrialError::Ended(exit)),
            None => Err(TrialError::NoExit),
        },
        Ok(Answer::Failed { cause }) => Err(TrialError::Failed { cause }),
        Err(error) => Err(TrialError::NoAnswer(error)),
    }
}
