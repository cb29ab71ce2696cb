//! Builds for folders of static files: a small server of bazooka's goes into the slug, because hosts need not have one.

use std::path::Path;

use async_trait::async_trait;

use super::{
    BuildError, Procs, Work,
    buildpack::{Buildpack, Kit, Tree, web},
    place,
    run::Runner,
};

/// The name of the first page.
pub const PAGE: &str = "index.html";

/// The server's name, beside bazooka-rm's own program and in the slug's `bin`, which is in an instance's PATH.
pub const SERVER: &str = "bazooka-static";

/// A folder of pages.
#[derive(Clone, Copy, Debug)]
pub struct Static;

#[async_trait]
impl Buildpack for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn detects(&self, tree: Tree<'_>) -> bool {
        tree.has(PAGE)
    }

    async fn compile(&self, work: &Work<'_>, _: &Runner<'_>, _: &Kit) -> Result<(), BuildError> {
        add_server(work)
    }

    fn may_release(&self) -> bool {
        true
    }

    fn release(&self, _: Tree<'_>) -> Result<Procs, BuildError> {
        Ok(web(serve(".")))
    }

    fn runs_processes(&self) -> bool {
        false
    }
}

/// Returns the command that serves the pages of a folder in the tree.
pub fn serve(folder: &str) -> String {
    let folder = if folder == "." { String::new() } else { format!(" {folder}") };
    format!("exec ./bin/{SERVER}{folder}")
}

/// Puts the server into the tree. A file of that name in the tree is the app's own and stays as it is.
///
/// No process of the build may have run: this writes with the rights of bazooka-rm.
///
/// # Errors
/// If there is no server beside bazooka-rm.
pub fn add_server(work: &Work<'_>) -> Result<(), BuildError> {
    if work.files.contains_key(&Path::new("bin").join(SERVER)) {
        return Ok(());
    }
    let server = work.own_program.with_file_name(SERVER);
    let bin = work.dir.join("bin");
    std::fs::create_dir_all(&bin)
        .and_then(|()| std::fs::copy(&server, bin.join(SERVER)))
        // The build's user may write there, as into all of its tree.
        .and_then(|_| work.place.uid().map_or(Ok(()), |uid| place::give_all(&bin, uid)))
        .map_err(BuildError::disk(format!("copying the server of static files ({})", server.display())))
}
