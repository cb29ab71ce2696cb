//! The configuration and the host map on disk.
//!
//! Owns that no half or invalid file ever stands there: written beside, checked by HAProxy where its
//! shape is new, synced, renamed. A crash halfway leaves the files as they were.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    process::Command,
    sync::{Notify, oneshot},
    time::timeout,
};

/// How long HAProxy may take to check a file.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// A configuration that was not installed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file could not be written.
    #[error("can't write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// HAProxy could not be asked.
    #[error("can't run {} to check a configuration", program.display())]
    NoChecker {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// HAProxy refuses the configuration.
    #[error("HAProxy refuses the configuration: {0}")]
    Invalid(String),
    /// The writer has gone with the process.
    #[error("the process is ending")]
    Ending,
}

/// The files on disk at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The configuration.
    pub config: String,
    /// The host map.
    pub map: String,
}

/// The folder of the files.
#[derive(Clone, Debug)]
pub struct Place {
    /// The configuration.
    pub config: PathBuf,
    /// The last configuration that HAProxy is known to have taken.
    pub last_good: PathBuf,
    /// The host map.
    pub map: PathBuf,
    /// HAProxy.
    pub program: PathBuf,
}

impl Place {
    /// Lets HAProxy check a file.
    ///
    /// # Errors
    /// [`FilesError::Invalid`] with HAProxy's words.
    pub async fn check(&self, config: &Path) -> Result<(), FilesError> {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg("-f").arg(config);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let no_checker = |source| FilesError::NoChecker { program: self.program.clone(), source };
        let output = timeout(CHECK_TIMEOUT, command.output())
            .await
            .map_err(|_| no_checker(io::ErrorKind::TimedOut.into()))?
            .map_err(no_checker)?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let alerts: Vec<&str> = words.lines().filter(|line| line.contains("[ALERT]")).take(3).collect();
        Err(FilesError::Invalid(if alerts.is_empty() {
            words.lines().take(3).collect::<Vec<_>>().join("; ")
        } else {
            alerts.join("; ")
        }))
    }

    /// Puts the contents in place.
    async fn install(&self, contents: Contents, check: bool) -> Result<(), FilesError> {
        let candidate = self.config.with_extension("candidate");
        // The map first: the configuration names it, and a reload reads both.
        let (map, text) = (self.map.clone(), contents.map);
        blocking(move || replace(&map, &map.with_extension("candidate"), &text)).await?;
        let (path, text) = (candidate.clone(), contents.config);
        blocking(move || write(&path, &text)).await?;
        if check {
            self.check(&candidate).await?;
        }
        let config = self.config.clone();
        blocking(move || rename(&candidate, &config)).await
    }

    /// Notes that HAProxy has taken the configuration that is in place.
    ///
    /// # Errors
    /// If it can't be copied.
    pub async fn keep_as_good(&self) -> Result<(), FilesError> {
        let (from, to) = (self.config.clone(), self.last_good.clone());
        blocking(move || {
            let text = std::fs::read_to_string(&from)
                .map_err(|source| FilesError::Write { path: from.clone(), source })?;
            replace(&to, &to.with_extension("candidate"), &text)
        })
        .await
    }
}

async fn blocking(work: impl FnOnce() -> Result<(), FilesError> + Send + 'static) -> Result<(), FilesError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FilesError::Ending)?
}

fn replace(path: &Path, beside: &Path, text: &str) -> Result<(), FilesError> {
    write(beside, text)?;
    rename(beside, path)
}

fn write(path: &Path, text: &str) -> Result<(), FilesError> {
    let written = || {
        let mut file = std::fs::File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().map_err(|source| FilesError::Write { path: path.to_owned(), source })
}

fn rename(from: &Path, to: &Path) -> Result<(), FilesError> {
    let renamed = || {
        std::fs::rename(from, to)?;
        // The name lasts only once its folder is synced.
        std::fs::File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    renamed().map_err(|source| FilesError::Write { path: to.to_owned(), source })
}

/// The contents that are still to be written. Only the newest count, so there is at most one of each kind.
#[derive(Default)]
struct Due {
    /// To be checked, put in place and answered; written before `update`.
    install: Option<(Contents, oneshot::Sender<Result<(), FilesError>>)>,
    /// Differs from the contents before it only in servers or hosts.
    update: Option<Contents>,
}

/// Writes the files in the background, in order. Many updates at once end as one write.
#[derive(Clone)]
pub struct Writer {
    due: Arc<Mutex<Due>>,
    wake: Arc<Notify>,
}

impl Writer {
    /// Creates a writer, and its work, which never ends.
    pub fn new(place: Place) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let writer = Writer { due: Arc::default(), wake: Arc::default() };
        (writer.clone(), async move {
            loop {
                writer.wake.notified().await;
                let Due { install, update } = std::mem::take(&mut *writer.due());
                if let Some((contents, answer)) = install {
                    // The caller may have been cancelled meanwhile.
                    let _ = answer.send(place.install(contents, true).await);
                }
                if let Some(contents) = update
                    && let Err(error) = place.install(contents, false).await
                {
                    tracing::error!(error = &error as &dyn std::error::Error, "HAProxy's files are behind");
                }
            }
        })
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().expect("no panic happens while what is due is locked")
    }

    /// Writes contents that differ from those before only in servers or hosts, some time soon.
    pub fn update(&self, contents: Contents) {
        self.due().update = Some(contents);
        self.wake.notify_one();
    }

    /// Checks contents, puts them in place, and waits for that. They supersede an update that is still to be written.
    ///
    /// # Cancel safety
    /// If this is dropped, the contents may or may not be put in place.
    ///
    /// # Errors
    /// The files stand as before.
    pub async fn install(&self, contents: Contents) -> Result<(), FilesError> {
        let (answer, answered) = oneshot::channel();
        *self.due() = Due { install: Some((contents, answer)), update: None };
        self.wake.notify_one();
        answered.await.map_err(|_| FilesError::Ending)?
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    fn contents(text: &str) -> Contents {
        Contents { config: text.to_owned(), map: format!("map of {text}") }
    }

    #[tokio::test]
    async fn the_newest_contents_stand_in_the_end() {
        let dir = tempfile::tempdir().expect("a folder");
        // Refuses a configuration with "wrong" in it, as `haproxy -c -f FILE` would.
        let program = dir.path().join("checker");
        std::fs::write(&program, "#!/bin/sh\n! grep -q wrong \"$3\"\n").expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("set");
        let config = dir.path().join("haproxy.cfg");
        let place = Place {
            config: config.clone(),
            last_good: dir.path().join("good"),
            map: dir.path().join("map"),
            program,
        };
        let (writer, writing) = Writer::new(place);
        let _writing = AbortOnDropHandle::new(tokio::spawn(writing));
        let is_there = || std::fs::read_to_string(&config).unwrap_or_default();

        for n in 0..100 {
            writer.update(contents(&format!("update {n}")));
        }
        writer.install(contents("installed")).await.expect("it is valid");
        assert_eq!(is_there(), "installed", "an install supersedes the updates before it");
        assert!(matches!(writer.install(contents("wrong")).await, Err(FilesError::Invalid(_))));
        assert_eq!(is_there(), "installed", "an invalid one is not put in place");
        for n in 0..100 {
            writer.update(contents(&format!("update {n}")));
        }
        visor::testing::until("the last update is written", Duration::from_secs(20), || async {
            let now = is_there();
            if now == "update 99" { Ok(()) } else { Err(now) }
        })
        .await;
    }
}
