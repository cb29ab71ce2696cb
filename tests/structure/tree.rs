//! The files of this repository, as the tests beside this one read them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A text file of the repository.
pub struct File {
    /// The path from the repository's root, as in `crates/visor/src/keys.rs`.
    pub path: String,
    /// The whole content.
    pub text: String,
}

/// The repository's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in a folder of the repository")
        .to_owned()
}

/// Reads all files below a folder of the repository whose name has this ending, in the order of their paths.
///
/// Build folders (`target`) and hidden folders are left out.
pub fn files(below: &str, ending: &str) -> Vec<File> {
    let mut found = Vec::new();
    collect(&root().join(below), ending, &mut found);
    found.sort();
    found.into_iter().map(|path| read(&path)).collect()
}

/// Reads one file, named from the repository's root.
pub fn file(path: &str) -> File {
    read(&root().join(path))
}

fn read(path: &Path) -> File {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let path = path.strip_prefix(root()).expect("the file lies in the repository");
    File { path: path.display().to_string(), text }
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder can be read to its end").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}
