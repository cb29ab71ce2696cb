//! The kinds of a tree, detected only from the names of its files.

use std::path::Path;

use crate::tree::{File, Files};

/// A kind of tree, with its way to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Built by the app's own `bin/build`.
    Own,
    /// Built by npm.
    Node,
    /// Built by pip, in a virtual environment.
    Python,
    /// Built by cargo.
    Rust,
    /// A folder of static files; gets a server.
    Static,
    /// Not built: the Procfile is enough.
    Procfile,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Own => "bin/build",
            Kind::Node => "node",
            Kind::Python => "python",
            Kind::Rust => "rust",
            Kind::Static => "static",
            Kind::Procfile => "procfile",
        }
    }
}

/// The detected way to build a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The kinds in the order of their builds; never empty.
    pub kinds: Vec<Kind>,
    /// Notes for the pusher.
    pub notes: Vec<String>,
}

impl Detected {
    /// Returns the names of the kinds: `node`, or `node+python` for an app with both.
    pub fn name(&self) -> String {
        self.kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join("+")
    }
}

/// Detects a tree's kinds.
///
/// If there is a `bin/build`, it alone is run. Otherwise each language whose file is there is built: an app in Python
/// may have pages that Node makes. A `pyproject.toml` counts only if no other file does, since many hold no more than a
/// linter's settings.
pub fn detect(files: &Files) -> Detected {
    let has = |name: &str| files.contains_key(Path::new(name));
    let mut notes = Vec::new();
    match files.get(Path::new("bin/build")) {
        Some(File::Regular { executable: true }) | Some(File::Link) => {
            return Detected { kinds: vec![Kind::Own], notes };
        }
        Some(File::Regular { executable: false }) => notes.push(
            "bin/build can't be executed and is passed over; `git update-index --chmod=+x bin/build` makes it the app's build"
                .into(),
        ),
        None => {}
    }
    let mut kinds = Vec::new();
    if has("package.json") {
        kinds.push(Kind::Node);
    }
    if has("requirements.txt") {
        kinds.push(Kind::Python);
    }
    if has("Cargo.toml") {
        kinds.push(Kind::Rust);
    }
    if kinds.is_empty() && has("pyproject.toml") {
        kinds.push(Kind::Python);
    }
    if kinds.is_empty() && has("index.html") {
        kinds.push(Kind::Static);
    }
    if kinds.is_empty() {
        kinds.push(Kind::Procfile);
    }
    if kinds.contains(&Kind::Node) && !has("package-lock.json") && !has("npm-shrinkwrap.json") {
        for other in ["yarn.lock", "pnpm-lock.yaml", "bun.lock"] {
            if has(other) {
                notes.push(format!(
                    "{other} is not read: npm installs from package.json; commit a package-lock.json, or build with a bin/build"
                ));
            }
        }
    }
    Detected { kinds, notes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(files: &[&str]) -> String {
        let regular = |executable| File::Regular { executable };
        let files = files.iter().map(|f| match f.strip_prefix('*') {
            Some(f) => (f.into(), regular(true)),
            None => (f.into(), regular(false)),
        });
        detect(&files.collect()).name()
    }

    #[test]
    fn a_tree_is_told_by_its_files() {
        for (files, wanted) in [
            (&["Procfile", "server.py"][..], "procfile"),
            (&["Procfile", "package.json"], "node"),
            (&["requirements.txt", "package.json"], "node+python"),
            (&["requirements.txt", "pyproject.toml"], "python"),
            (&["pyproject.toml"], "python"),
            (&["pyproject.toml", "package.json"], "node"),
            (&["Cargo.toml", "Cargo.lock"], "rust"),
            (&["index.html", "a.css"], "static"),
            (&["index.html", "package.json"], "node"),
            (&["*bin/build", "package.json", "Cargo.toml"], "bin/build"),
            (&["bin/build", "package.json"], "node"),
            (&["sub/package.json", "sub/index.html"], "procfile"),
            (&[], "procfile"),
        ] {
            assert_eq!(kinds(files), wanted, "{files:?}");
        }
    }

    #[test]
    fn what_is_passed_over_is_told() {
        let regular = File::Regular { executable: false };
        let files = Files::from([
            ("bin/build".into(), regular),
            ("package.json".into(), regular),
            ("yarn.lock".into(), regular),
        ]);
        let notes = detect(&files).notes;
        assert!(notes[0].contains("chmod=+x bin/build") && notes[1].contains("yarn.lock is not read"));
    }
}
