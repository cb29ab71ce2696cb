//! The build: from a pushed tree to the contents of its slug.
//!
//! Owns the order of a build: detect the buildpacks of the tree, then have each compile it. Processes run in the build's sandbox, under a supervisor that leaves none behind. A build never
//! gets the app's config vars: a slug is built once, and runs with each env of its app.

pub mod buildpack;
pub mod detect;
pub mod environment;
pub mod files;
mod go;
pub mod isolation;
mod java;
mod kept;
mod node;
mod own;
mod php;
pub mod place;
mod profile;
mod python;
mod ruby;
pub mod run;
mod rust;
mod statics;
pub mod supervisor;
mod toolchains;
mod tools;
mod versions;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::Path,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use visor::names::ProcName;

use self::{
    buildpack::{Carried, Kit, Tool, Tree},
    detect::Detected,
    place::Place,
    run::Runner,
};
use crate::{
    layout,
    procfile::{self, Procfile},
    tree::Files,
    voice::Voice,
};

/// The folder of the slug for tools that instances need.
const CARRIED: &str = ".bazooka";

/// A failed build, in words for the pusher.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no Procfile, and no buildpack knows what the app runs.
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
    /// This machine lacks a program that the build needs.
    #[error(
        "this app is built with {program}, and this bazooka-rm has no {program}: its operator installs it (`apt install {package}`)"
    )]
    NoTool {
        /// The program.
        program: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },
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

/// The procs of an app, with their commands.
pub type Procs = BTreeMap<ProcName, String>;

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
    /// The operator's folder of toolchains.
    pub toolchains: Option<&'a Path>,
    /// The time limit of the whole build.
    pub time: Duration,
    /// The lines to the pusher.
    pub voice: &'a Voice,
    /// Cancelled when the pusher has left.
    pub cancelled: &'a CancellationToken,
}

impl Work<'_> {
    /// Returns the tree as it is now.
    pub fn tree(&self) -> Tree<'_> {
        Tree { dir: self.dir, files: self.files }
    }
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 120 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}

/// Returns a tree's buildpacks and its Procfile, without running anything. A tree without one has an empty one.
///
/// # Errors
/// [`BuildError::Procfile`]; [`BuildError::NoProcfile`] if there is none and no buildpack may know what the app runs.
pub fn read(tree: Tree<'_>) -> Result<(Detected, Procfile), BuildError> {
    let detected = detect::detect(tree);
    let mut procfile = Procfile::default();
    if tree.has("Procfile") {
        // A plain read is safe: the export rejects links out of the tree, and files above its size limit.
        let content =
            std::fs::read(tree.dir.join("Procfile")).map_err(BuildError::disk("reading the Procfile"))?;
        procfile = procfile::parse(&content)?;
    }
    if procfile.procs.is_empty() && !detected.buildpacks.iter().any(|buildpack| buildpack.may_release()) {
        return Err(match procfile.release {
            Some(_) => BuildError::Procfile(procfile::Fault::NoProcs),
            None => BuildError::NoProcfile,
        });
    }
    Ok((detected, procfile))
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
    let mut kit = Kit::default();
    for buildpack in &detected.buildpacks {
        buildpack.prepare(work, &runner, &mut kit).await?;
    }
    let place = work.place.clone().with_path(&kit.path);
    let (work, runner) = (&Work { place: &place, ..*work }, runner.at(&place));
    let tools = detected.buildpacks.iter().filter_map(|buildpack| buildpack.tool(work.tree()));
    for Tool { program, package } in tools {
        if !place.has(program) {
            return Err(BuildError::NoTool { program, package });
        }
    }
    for buildpack in &detected.buildpacks {
        buildpack.compile(work, &runner, &kit).await?;
    }
    carry(work, &runner, &kit).await?;
    write_profile(work, &runner, detected, &kit).await?;
    layout::remove(&work.cache.join("tmp")).map_err(BuildError::disk("clearing the build's temporary folder"))
}

/// Copies what instances need into the tree.
async fn carry(work: &Work<'_>, runner: &Runner<'_>, kit: &Kit) -> Result<(), BuildError> {
    for Carried { name, from } in &kit.carried {
        let to = work.place.seen().join(CARRIED).join(name);
        runner.files("removing what an earlier build left", &[OsStr::new("remove"), to.as_os_str()]).await?;
        let words = [OsStr::new("copy"), from.as_os_str(), to.as_os_str()];
        runner.files(&format!("copying {name} into the slug"), &words).await?;
    }
    Ok(())
}

/// Writes the defaults of the instances' variables, if there are any.
async fn write_profile(
    work: &Work<'_>,
    runner: &Runner<'_>,
    detected: &Detected,
    kit: &Kit,
) -> Result<(), BuildError> {
    let path =
        kit.carried.iter().map(|carried| format!("{}={CARRIED}/{}/bin", profile::PATH_BEGINS, carried.name));
    let defaults = detected.buildpacks.iter().flat_map(|buildpack| buildpack.defaults());
    let defaults = defaults.map(|(name, value)| format!("{name}={value}"));
    let lines: Vec<OsString> = path.chain(defaults).map(OsString::from).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let what = [OsString::from("write-profile"), profile::path(work.place.seen()).into()];
    let words: Vec<OsString> = what.into_iter().chain(lines).collect();
    runner.files("writing the app's defaults", &words).await
}

/// Returns the procs of a built tree whose Procfile names none, and says them to the pusher.
///
/// # Errors
/// [`BuildError::NoProcfile`], unless one buildpack alone knows what the app runs.
pub async fn release(work: &Work<'_>, detected: &Detected) -> Result<Procs, BuildError> {
    let mut found = Vec::new();
    for buildpack in &detected.buildpacks {
        let procs = buildpack.release(work.tree())?;
        if !procs.is_empty() {
            found.push(procs);
        }
    }
    let [procs] = &found[..] else { return Err(BuildError::NoProcfile) };
    for (proc, command) in procs {
        let why = match work.tree().has("Procfile") {
            true => "the Procfile names no proc",
            false => "there is no Procfile",
        };
        work.voice.say(format!("{why}; {proc} runs `{command}`")).await;
    }
    Ok(procs.clone())
}
