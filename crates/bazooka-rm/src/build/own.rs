//! Builds by the app's own `bin/build`.

use std::path::Path;

use async_trait::async_trait;

use super::{
    BuildError, Work,
    buildpack::{Buildpack, Kit, Tree},
    run::Runner,
};
use crate::tree::File;

/// The path of the app's own build.
pub const PATH: &str = "bin/build";

/// An app that builds itself.
#[derive(Clone, Copy, Debug)]
pub struct Own;

#[async_trait]
impl Buildpack for Own {
    fn name(&self) -> &'static str {
        PATH
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        matches!(tree.files.get(Path::new(PATH)), Some(File::Regular { executable: true } | File::Link))
    }

    async fn compile(&self, _: &Work<'_>, runner: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        runner.run(Path::new("./bin/build"), &[""; 0]).await
    }
}
