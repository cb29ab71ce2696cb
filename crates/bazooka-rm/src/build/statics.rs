//! Builds for folders of static files: a small server of bazooka's goes into the slug, because hosts need not have one.

use std::{collections::BTreeMap, path::Path};

use visor::names::ProcName;

use super::{BuildError, Work};

/// The server's name, beside bazooka-rm's own program and in the slug's `bin`, which is in an instance's PATH.
const SERVER: &str = "bazooka-static";

/// Returns the procs of such a folder without a Procfile.
pub fn procs() -> BTreeMap<ProcName, String> {
    BTreeMap::from([("web".parse().expect("it is a proc's name"), format!("exec ./bin/{SERVER}"))])
}

/// Puts the server into the tree. A file of that name in the tree is the app's own and stays as it is.
///
/// # Errors
/// If there is no server beside bazooka-rm.
pub fn build(work: &Work<'_>) -> Result<(), BuildError> {
    if work.files.contains_key(&Path::new("bin").join(SERVER)) {
        return Ok(());
    }
    let server = work.own_program.with_file_name(SERVER);
    let bin = work.dir.join("bin");
    std::fs::create_dir_all(&bin)
        .and_then(|()| std::fs::copy(&server, bin.join(SERVER)))
        .map(drop)
        .map_err(BuildError::disk(format!("copying the server of static files ({})", server.display())))
}
