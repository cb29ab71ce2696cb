//! The build: from a pushed tree to the contents of its slug.
//!
//! Owns the order of a build: detect the kinds of the tree, then run each kind's own tools. Each kind's steps are in a
//! file of its own. Processes run in the build's sandbox, under a supervisor that leaves none behind. A build never
//! gets the app's config vars: a slug is built once, and runs with each env of its app.

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

/// A failed build, in words for the pusher.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no Procfile, and the kind of app has no default proc.
    #[error(
        "there is no Procfile; put a file of that name at the top, with a line such as `web: ./server` for each proc"
    )]
    NoProcfile,
    /// The Procfile has a fault.
    #[error(transparent)]
    Procfile(#[from] procfile::Fault),
    /// A file of the app that its build must read has a fault.
    #[error("{0}")]
    Faulty(String),
    /// A step failed.
    #[error("`{step}` {how}")]
    Failed {
        /// The step's command.
        step: String,
        /// The command's end, in words.
        how: String,
    },
    /// No step can be started on this machine; with the cause.
    #[error("nothing can be built here: {0}")]
    NotStarted(String),
    /// The build took longer than its limit.
    #[error("the build took longer than {} and was ended", in_words(*.0))]
    TimedOut(Duration),
    /// The pusher has left.
    #[error("the push was called off")]
    Cancelled,
    /// A file can't be read or written.
    #[error("{what} failed: {source}")]
    Disk {
        /// The action that failed.
        what: String,
        /// The file system's error.
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

/// The input of a build, and its surroundings.
pub struct Work<'a> {
    /// The folder of the exported tree.
    pub dir: &'a Path,
    /// The files that were exported.
    pub files: &'a Files,
    /// The app's dependency caches.
    pub cache: &'a Path,
    /// The path of this program, which also supervises steps; bazooka's other programs are beside it.
    pub own_program: &'a Path,
    /// The place where the build's processes run.
    pub place: &'a Place,
    /// The time limit of the whole build.
    pub time: Duration,
    /// The lines to the pusher.
    pub voice: &'a Voice,
    /// Cancelled when the pusher has left.
    pub cancelled: &'a CancellationToken,
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 120 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

/// A finished build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The app's procs and their commands.
    pub procs: BTreeMap<ProcName, String>,
    /// The kinds of the tree, as [`Detected::name`].
    pub kind: String,
}

/// Returns a tree's kinds and procs, without running anything.
///
/// # Errors
/// [`BuildError::NoProcfile`], [`BuildError::Procfile`].
pub fn read(dir: &Path, files: &Files) -> Result<(Detected, BTreeMap<ProcName, String>), BuildError> {
    let detected = detect::detect(files);
    let procs = if files.contains_key(Path::new("Procfile")) {
        // A plain read is safe: the export rejects links out of the tree, and files above its size limit.
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

/// True if the build needs no process.
pub fn runs_nothing(detected: &Detected) -> bool {
    detected.kinds.iter().all(|kind| matches!(kind, Kind::Static | Kind::Procfile))
}

/// Builds a tree in its folder.
///
/// # Errors
/// [`BuildError`]. The folder then stays as it is; no process of the build is left.
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
