//! The buildpacks of a tree.

use std::path::Path;

use super::{
    buildpack::{Buildpack, LANGUAGES, OWN, PAGES, Tree},
    own,
};

/// The detected way to build a tree.
#[derive(Clone, Debug)]
pub struct Detected {
    /// The buildpacks in the order of their builds; none if the Procfile is enough.
    pub buildpacks: Vec<&'static dyn Buildpack>,
    /// Notes for the pusher.
    pub notes: Vec<String>,
}

impl Detected {
    /// Returns the names of the buildpacks: `node`, or `node+python` for an app with both; `procfile` if there is none.
    pub fn name(&self) -> String {
        if self.buildpacks.is_empty() {
            return "procfile".to_owned();
        }
        self.buildpacks.iter().map(|buildpack| buildpack.name()).collect::<Vec<_>>().join("+")
    }

    /// Reports whether the build starts processes.
    pub fn runs_processes(&self) -> bool {
        self.buildpacks.iter().any(|buildpack| buildpack.runs_processes())
    }
}

/// Detects a tree's buildpacks.
///
/// If there is a `bin/build`, it alone is run. Otherwise each language whose file is there is built.
pub fn detect(tree: Tree<'_>) -> Detected {
    let mut notes = Vec::new();
    if OWN.detects(tree) {
        return Detected { buildpacks: vec![OWN], notes };
    }
    if tree.files.contains_key(Path::new(own::PATH)) {
        notes.push(
            "bin/build can't be executed and is passed over; `git update-index --chmod=+x bin/build` makes it the app's build"
                .into(),
        );
    }
    let mut buildpacks: Vec<&'static dyn Buildpack> =
        LANGUAGES.into_iter().filter(|language| language.detects(tree)).collect();
    if buildpacks.is_empty() && PAGES.detects(tree) {
        buildpacks.push(PAGES);
    }
    Detected { buildpacks, notes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{File, Files};

    /// Detects a tree of these files: executable ones begin with `*`; what follows a `=` is the content.
    fn detected(files: &[&str]) -> Detected {
        let dir = tempfile::tempdir().expect("a folder");
        let mut names = Files::new();
        for file in files {
            let (name, content) = file.split_once('=').unwrap_or((file, ""));
            let (name, executable) = name.strip_prefix('*').map_or((name, false), |name| (name, true));
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            std::fs::write(path, content).expect("written");
            names.insert(name.into(), File::Regular { executable });
        }
        detect(Tree { dir: dir.path(), files: &names })
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
            (&["Cargo.toml=[lib]"], "rust"),
            (&["Cargo.toml=[lib]", "package.json"], "node"),
            (&["Cargo.toml=[lib]", "src/lib.rs", "requirements.txt"], "python"),
            (&["Cargo.toml", "src/main.rs", "package.json"], "node+rust"),
            (&["Cargo.toml", "src/bin/x.rs", "package.json"], "node+rust"),
            (&["Cargo.toml=[[bin]]\nname = 'x'", "package.json"], "node+rust"),
            (&["Cargo.toml=[workspace]", "package.json"], "node+rust"),
            (&["go.mod", "main.go"], "go"),
            (&["go.mod", "package.json"], "node+go"),
            (&["Gemfile", "Gemfile.lock"], "ruby"),
            (&["Gemfile", "package.json"], "node+ruby"),
            (&["composer.json"], "php"),
            (&["index.php"], "php"),
            (&["public/index.php", "package.json"], "node+php"),
            (&["pom.xml", "src/main/java/A.java"], "java"),
            (&["build.gradle.kts"], "java"),
            (&["Main.java"], "java"),
            (&["Main.java", "Procfile"], "procfile"),
            (&["src/Main.java"], "procfile"),
            (&["uv.lock", "pyproject.toml", "package.json"], "node+python"),
            (&["pyproject.toml=[project]\ndependencies = ['flask']", "package.json"], "node+python"),
            (&["pyproject.toml=[tool.ruff]", "go.mod"], "go"),
            (&["Pipfile"], "python"),
            (&["index.html", "a.css"], "static"),
            (&["index.html", "package.json"], "node"),
            (&["*bin/build", "package.json", "Cargo.toml"], "bin/build"),
            (&["bin/build", "package.json"], "node"),
            (&["sub/package.json", "sub/index.html"], "procfile"),
            (&[], "procfile"),
        ] {
            assert_eq!(detected(files).name(), wanted, "{files:?}");
        }
    }

    #[test]
    fn what_is_passed_over_is_told() {
        let notes = detected(&["bin/build", "package.json"]).notes;
        assert!(notes[0].contains("chmod=+x bin/build"), "{notes:?}");
    }
}
