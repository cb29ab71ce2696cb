//! Builds for Go: go builds in the app's cache, and its programs go to `bin` in the slug.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use async_trait::async_trait;
use visor::names::ProcName;

use super::{
    BuildError, Work,
    buildpack::{Buildpack, Tool, Tree, web},
    run::Runner,
};

/// The folder of the programs in a tree.
const BIN: &str = "bin";

/// An app with a go.mod.
#[derive(Clone, Copy, Debug)]
pub struct Go;

#[async_trait]
impl Buildpack for Go {
    fn name(&self) -> &'static str {
        "go"
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        tree.has("go.mod")
    }

    fn tool(&self, _: Tree<'_>) -> Option<Tool> {
        Some(Tool { program: "go", package: "golang" })
    }

    /// Builds all programs of the module. Go itself finds out whether the dependencies are vendored, and obeys go.sum.
    async fn compile(&self, work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
        // The tree has no `.git` that go could ask for a version.
        let words = ["build", "-buildvcs=false", "-trimpath", "-o", "bin/", "./..."];
        work.voice.say(format!("$ go {}", words.join(" "))).await;
        runner.run(Path::new("go"), &words).await
    }

    fn may_release(&self) -> bool {
        true
    }

    /// Returns the program as `web`, if go built one alone.
    fn release(&self, tree: Tree<'_>) -> Result<BTreeMap<ProcName, String>, BuildError> {
        Ok(match &built(tree)?[..] {
            [program] => web(format!("exec './{BIN}/{}'", program.replace('\'', r"'\''"))),
            _ => BTreeMap::new(),
        })
    }
}

/// Returns the names of the programs in `bin` that were not pushed.
fn built(tree: Tree<'_>) -> Result<Vec<String>, BuildError> {
    let reading = || BuildError::disk("reading what go built");
    let mut found = Vec::new();
    // Without a program, go makes no folder.
    for entry in fs::read_dir(tree.dir.join(BIN)).into_iter().flatten() {
        let entry = entry.map_err(reading())?;
        let known = entry.metadata().map_err(reading())?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let is_program = known.is_file() && known.permissions().mode() & 0o111 != 0;
        if is_program && !tree.files.contains_key(&Path::new(BIN).join(&name)) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}
