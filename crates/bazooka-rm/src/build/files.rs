//! The actions of bazooka-rm on files that a build could write, run as steps of that build.
//!
//! A build may have put a link, a pipe or an endless file wherever it could write. As a step, the action that meets
//! such a file runs as the build's own user, in the build's own sandbox and limits, and not as the daemon.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::{kept, profile, python, rust};
use crate::layout;

/// The first argument that selects this role of the program.
pub const WORD: &str = "build-files";

/// Runs the action that the arguments name and returns an exit status. The cause of a failure goes to standard error.
pub fn run(mut args: impl Iterator<Item = OsString>) -> i32 {
    let name = args.next().unwrap_or_default();
    let paths: Vec<PathBuf> = args.map(PathBuf::from).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    match act(&name.to_string_lossy(), &paths) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

fn act(name: &str, paths: &[&Path]) -> io::Result<()> {
    match (name, paths) {
        ("clear-programs", [built]) => rust::clear(built),
        ("take-programs", [built, release]) => rust::take(built, release),
        ("copy", [from, to]) => kept::copy(from, to),
        ("keep", [from, to]) => kept::keep(from, to),
        ("move-venv", [venv, tree]) => python::venv::relocate(venv, tree),
        ("write-profile", [path, defaults @ ..]) => profile::write(path, defaults),
        ("remove", [path]) => layout::remove(path),
        _ => Err(io::Error::other("bazooka-rm runs this itself, in builds")),
    }
}
