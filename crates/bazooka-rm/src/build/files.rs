//! What bazooka-rm itself does with files that a build has had in its hands: as a step of that build.
//!
//! A build may have put a link, a pipe or a file without end wherever it could write. Who follows it is then this
//! program as the build's own user, in the build's own sandbox and limits, and not bazooka-rm.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::{python, rust};
use crate::layout;

/// The argument by which the program is told to do it.
pub const WORD: &str = "build-files";

/// Does what the arguments say, and returns an exit status; the cause of a failure is on standard error.
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
        ("copy", [from, to]) => python::copy_tree(from, to),
        ("move-venv", [venv, tree]) => python::relocate(venv, tree),
        ("keep-venv", [venv, kept]) => python::keep(venv, kept),
        ("remove", [path]) => layout::remove(path),
        _ => Err(io::Error::other("bazooka-rm runs this itself, in builds")),
    }
}
