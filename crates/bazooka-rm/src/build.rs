//! From a pushed tree to what its slug holds: detect what it is, and run its own tools.
//!
//! Owns the order of a build. Each kind's steps are in a file of its own; processes run in the build's sandbox, under a
//! supervisor that leaves none behind. An app's config vars are not given to its build: a slug is built once and runs with
//! each of its app's envs.

pub mod detect;
pub mod environment;
pub mod files;
pub mod isolation;
mod node;
pub mod place;
mod python;
pub mod run;
mod rust;
mod statics;
pub mod supervisor;

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;
use visor::names::ProcName;

use self::{
    detect::{Detected, Kind},
    place::Place,
    run::Runner,
};
use crate::{layout, procfile, tree::Files, voice::Voice};

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
    /// A step can't be started here, whatever it is.
    #[error("nothing can be built here: {0}")]
    NotStarted(String),
    /// It took too long.
    #[error("the build took longer than {} and was ended", in_words(*.0))]
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
    /// Where the build's processes run.
    pub place: &'a Place,
    /// How long they may, in all.
    pub time: Duration,
    /// Speaks to the pusher.
    pub voice: &'a Voice,
    /// The push has gone.
    pub cancelled: &'a CancellationToken,
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 120 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
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

/// Whether no process is needed for it.
pub fn runs_nothing(detected: &Detected) -> bool {
    detected.kinds.iter().all(|kind| matches!(kind, Kind::Static | Kind::Procfile))
}

/// Builds a tree in its place.
///
/// # Errors
/// [`BuildError`]. The folder is left as it stands then; no process is.
pub async fn build(work: &Work<'_>, detected: &Detected) -> Result<(), BuildError> {
    for note in &detected.notes {
        work.voice.say(note).await;
    }
    let runner = Runner::new(work.own_program, work.place, work.voice, work.cancelled, work.time);
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
    layout::remove(&work.cache.join("tmp")).map_err(BuildError::disk("clearing the build's temporary folder"))
}
