//! The identity of a daemon's state folder: a token in the folder itself.
//!
//! By this token the cluster recognises a restarted daemon as the same one, and distinguishes it from a daemon on
//! another machine that was given the same name.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use visor::seal::{Os, Random};

/// The reason why a state folder has no token.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum FolderError {
    #[error("can't read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Returns the token that names this folder: 32 hexadecimal digits in its file `token`, created at the first call.
/// Blocks.
///
/// # Errors
/// [`FolderError`].
pub fn folder_token(folder: &Path) -> Result<String, FolderError> {
    let path = folder.join("token");
    match fs::read_to_string(&path) {
        Ok(token) if token.len() == 32 => return Ok(token),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(FolderError::Read { path, source }),
    }
    let mut random = [0; 16];
    Os.fill(&mut random);
    let token = format!("{:032x}", u128::from_be_bytes(random));
    let draft = folder.join("token.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&draft)?;
        file.write_all(token.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &path)
    };
    write().map_err(|source| FolderError::Write { path, source })?;
    Ok(token)
}
