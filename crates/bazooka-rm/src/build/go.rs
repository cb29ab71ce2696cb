//! Builds for Go: go builds in the app's cache, and its programs go to `bin` in the slug.

use std::path::Path;

use async_trait::async_trait;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Kit, Tool, Tree, web_of},
    run::Runner,
    statics,
    toolchains::{self, Chosen},
    versions::Language,
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

    async fn prepare(&self, work: &Work<'_>, runner: &Runner<'_>, kit: &mut Kit) -> Result<(), BuildError> {
        if let Chosen::Folder { path, .. } = toolchains::choose(work, runner, Language::Go).await? {
            kit.path.push(path.join("bin"));
        }
        Ok(())
    }

    /// Builds all programs of the module. Go itself finds out whether the dependencies are vendored, and obeys go.sum.
    async fn compile(&self, _: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        // The tree has no `.git` that go could ask for a version.
        let words = ["build", "-buildvcs=false", "-trimpath", "-o", "bin/", "./..."];
        runner.step("go", &words).await
    }

    fn may_release(&self) -> bool {
        true
    }

    /// Returns the program as `web`, if go built one alone beside what was pushed.
    fn release(&self, tree: Tree<'_>) -> Result<Procs, BuildError> {
        let mut built = tree.programs(BIN)?;
        let is_built =
            |name: &str| name != statics::SERVER && !tree.files.contains_key(&Path::new(BIN).join(name));
        built.retain(|name| is_built(name));
        Ok(web_of(BIN, &built))
    }
}
