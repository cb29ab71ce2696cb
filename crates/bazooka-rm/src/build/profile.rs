//! The defaults that buildpacks give to instances, as a file that an instance's shell reads at its start.
//!
//! Owns that file. A config var of the app wins over a default.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file's path in the slug, before those of the app's own by its name.
const PATH: &str = ".profile.d/000-bazooka.sh";

/// The name of a default that is a folder of the slug, which comes first in PATH.
pub const PATH_BEGINS: &str = "PATH+";

/// A variable and its value, which has no character that a shell knows.
pub type Default = (&'static str, &'static str);

/// Returns the file's path in a tree.
pub fn path(tree: &Path) -> PathBuf {
    tree.join(PATH)
}

/// Writes the file, as one of a build's steps. Each of `defaults` is a name and a value, with a `=` between them; with the name
/// [`PATH_BEGINS`], a folder of the slug.
pub(super) fn write(path: &Path, defaults: &[&Path]) -> io::Result<()> {
    let mut text = String::from("# Defaults; `bazooka config set` wins over them.\n");
    for default in defaults {
        let text_of = default.to_str().and_then(|default| default.split_once('='));
        let (name, value) = text_of.ok_or(io::ErrorKind::InvalidInput)?;
        text.push_str(&match name {
            PATH_BEGINS => format!("export PATH=\"$PWD/{value}:$PATH\"\n"),
            name => format!("export {name}=\"${{{name}-{value}}}\"\n"),
        });
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, text)
}
