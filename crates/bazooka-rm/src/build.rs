//! From a pushed tree to what its slug holds: detect what it is, and run its own tools.
//!
//! Owns the order of a build and its limits. Each kind's steps are in a file of its own; processes run
//! under a supervisor that leaves none behind. An app's config vars are not given to its build: a slug is
//! built once and runs with each of its app's envs.

pub mod detect;
pub mod environment;
mod node;
mod python;
pub mod run;
mod rust;
mod statics;
pub mod supervisor;

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use visor::names::ProcName;

use self::{
    detect::{Detected, Kind},
    run::Runner,
};
use crate::{layout, procfile, tree::Files, voice::Voice};

/// How long a build may take: as long as Heroku lets one.
pub const BUILD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A build that failed, in words for the pusher.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no Procfile, and the kind of app has no proc of its own.
    #[error(
        "there is no Procfile; put a file of that name at the top, with a line such as `web: ./server` for each proc"
    )]
    NoProcfile,
    /// The Procfile is faulty.
    #[error(transparent)]
    Procfile(#[from] procfile::Fault),
    /// A file of the app that its build must read is faulty.
    #[error("{0}")]
    Faulty(String),
    /// A step failed.
    #[error("`{step}` {how}")]
    Failed {
        /// The command.
        step: String,
        /// How it ended.
        how: String,
    },
    /// A step's program isn't on this machine.
    #[error("`{program}` can't be started here: {source}")]
    NoProgram {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("the build took longer than {} minutes and was ended", .0.as_secs() / 60)]
    TimedOut(Duration),
    /// The push has gone.
    #[error("the push was called off")]
    Cancelled,
    /// A file can't be read or written.
    #[error("{what} failed: {source}")]
    Disk {
        /// What was done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    pub(crate) fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
        let what = what.into();
        move |source| BuildError::Disk { what, source }
    }
}

/// What a build works on.
pub struct Work<'a> {
    /// The exported tree.
    pub dir: &'a Path,
    /// What was exported.
    pub files: &'a Files,
    /// The app's dependency caches.
    pub cache: &'a Path,
    /// bazooka-rm's own program, which supervises; other programs of ours stand beside it.
    pub own_program: &'a Path,
    /// The variables that the build's processes get.
    pub environment: BTreeMap<String, String>,
    /// Speaks to the pusher.
    pub voice: &'a Voice,
    /// The push has gone.
    pub cancelled: &'a CancellationToken,
}

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Its procs.
    pub procs: BTreeMap<ProcName, String>,
    /// What it was built as.
    pub kind: String,
}

/// What a tree is, and its procs, before anything is run.
///
/// # Errors
/// [`BuildError::NoProcfile`], [`BuildError::Procfile`].
pub fn read(dir: &Path, files: &Files) -> Result<(Detected, BTreeMap<ProcName, String>), BuildError> {
    let detected = detect::detect(files);
    let procs = if files.contains_key(Path::new("Procfile")) {
        // Links lead nowhere out of the tree, and no file is larger than git's own limit here.
        let content =
            std::fs::read(dir.join("Procfile")).map_err(BuildError::disk("reading the Procfile"))?;
        procfile::parse(&content)?
    } else if detected.kinds == [Kind::Static] {
        statics::procs()
    } else {
        return Err(BuildError::NoProcfile);
    };
    Ok((detected, procs))
}

/// Builds a tree in its place.
///
/// # Errors
/// [`BuildError`]. The folder is left as it stands then; no process is.
pub async fn build(work: &Work<'_>, detected: &Detected) -> Result<(), BuildError> {
    for note in &detected.notes {
        work.voice.say(note).await;
    }
    let home = work.cache.join("home");
    std::fs::create_dir_all(&home).map_err(BuildError::disk("making the cache"))?;
    let scratch = work.cache.join("tmp");
    layout::remove(&scratch)
        .and_then(|()| std::fs::create_dir_all(&scratch))
        .map_err(BuildError::disk("making the build's temporary folder"))?;
    let runner = Runner {
        own_program: work.own_program,
        dir: work.dir,
        environment: &work.environment,
        voice: work.voice,
        cancelled: work.cancelled,
        deadline: Instant::now() + BUILD_TIMEOUT,
        limit: BUILD_TIMEOUT,
    };
    for kind in &detected.kinds {
        match kind {
            Kind::Own => runner.run(Path::new("./bin/build"), &[""; 0]).await?,
            Kind::Node => node::build(work, &runner).await?,
            Kind::Python => python::build(work, &runner).await?,
            Kind::Rust => rust::build(work, &runner).await?,
            Kind::Static => statics::build(work)?,
            Kind::Procfile => {}
        }
    }
    layout::remove(&scratch).map_err(BuildError::disk("clearing the build's temporary folder"))
}
