//! The configuration and the host map on disk.
//!
//! Owns that no half or invalid file ever stands there: written beside, checked by HAProxy where its
//! shape is new, synced, renamed. A crash halfway leaves the files as they were.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::Command,
    sync::{mpsc, oneshot},
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

/// What is on disk at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The configuration.
    pub config: String,
    /// The host map.
    pub map: String,
}

/// Where the files are.
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

enum Request {
    /// Only servers or hosts differ from what is there.
    Update(Contents),
    /// Another shape: checked, and answered.
    Install(Contents, oneshot::Sender<Result<(), FilesError>>),
}

/// Writes the files in the background, in order. Many updates at once end as one write.
#[derive(Clone, Debug)]
pub struct Writer {
    requests: mpsc::UnboundedSender<Request>,
}

impl Writer {
    /// Starts to take requests; it ends with its last handle, after what it was given.
    pub fn start(place: Place) -> Self {
        let (requests, mut taken) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut next: Option<Request> = None;
            loop {
                let request = match next.take() {
                    Some(request) => request,
                    None => match taken.recv().await {
                        Some(request) => request,
                        None => return,
                    },
                };
                match request {
                    Request::Install(contents, answer) => {
                        // Who asked may have been ended meanwhile.
                        let _ = answer.send(place.install(contents, true).await);
                    }
                    Request::Update(mut contents) => {
                        while let Ok(newer) = taken.try_recv() {
                            match newer {
                                Request::Update(newer) => contents = newer,
                                install => {
                                    next = Some(install);
                                    break;
                                }
                            }
                        }
                        // What is to be installed next holds all of this.
                        if next.is_none() {
                            if let Err(error) = place.install(contents, false).await {
                                tracing::error!(
                                    error = &error as &dyn std::error::Error,
                                    "HAProxy's files are behind"
                                );
                            }
                        }
                    }
                }
            }
        });
        Writer { requests }
    }

    /// Writes contents of the shape that is there, some time soon.
    pub fn update(&self, contents: Contents) {
        // It takes requests until its last handle has gone.
        let _ = self.requests.send(Request::Update(contents));
    }

    /// Checks contents, puts them in place, and waits for that.
    ///
    /// # Errors
    /// As they stood before, they stand still.
    pub async fn install(&self, contents: Contents) -> Result<(), FilesError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Install(contents, answer)).map_err(|_| FilesError::Ending)?;
        answered.await.map_err(|_| FilesError::Ending)?
    }
}
