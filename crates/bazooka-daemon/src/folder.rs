//! Which state folder a daemon works on: a word that names it, in the folder itself.
//!
//! A daemon that is started again is known by it as the one before, and one of another machine that was given the same
//! name as another.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use visor::seal::{Os, Random};

/// The word that names this folder, 32 hexadecimal digits in its file `token`; made at the first call.
///
/// # Errors
/// The file system's, with the path.
pub fn folder_token(folder: &Path) -> Result<String, String> {
    let path = folder.join("token");
    let failed = |error: io::Error| format!("can't use {}: {error}", path.display());
    match fs::read_to_string(&path) {
        Ok(token) if token.len() == 32 => return Ok(token),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
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
    write().map_err(failed)?;
    Ok(token)
}
