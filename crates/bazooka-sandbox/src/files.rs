//! Files and folders as bazooka-pm and a shim share them: whole or not at all, locked, private.
//!
//! Owns how they are written. What stands in them is in [`crate::protocol`].

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// Adds a line to a file that is open for appending.
///
/// It isn't synced: what it tells of is gone too after a loss of power. What an earlier write that failed
/// has left of its line spoils that line alone.
///
/// # Errors
/// The file system's.
pub fn append(mut file: &fs::File, content: &impl Serialize) -> io::Result<()> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, content).map_err(io::Error::other)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// Writes a file as a whole or not at all, readable by its owner alone.
///
/// It isn't synced: what it tells of is gone too after a loss of power.
///
/// # Errors
/// The file system's.
pub fn write_file(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let mut bytes = serde_json::to_vec(content).map_err(io::Error::other)?;
    bytes.push(b'\n');
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&bytes)?;
    fs::rename(&draft, path)
}

/// Reads such a file; none if it isn't there or isn't whole.
pub fn read_file<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Takes the lock of a file that nobody else has; none if somebody has it. It is held until every copy
/// of the descriptor has been closed, those of other processes among them.
///
/// # Errors
/// The file system's.
pub fn try_lock(file: &fs::File) -> io::Result<Option<()>> {
    use rustix::{
        fs::{FlockOperation, flock},
        io::Errno,
    };
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names in a folder; none if it isn't there.
pub fn entries(folder: &Path) -> impl Iterator<Item = String> {
    let listed = fs::read_dir(folder).into_iter().flatten();
    listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Makes a folder that only its owner gets into, if it isn't there.
///
/// # Errors
/// The file system's.
pub fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a folder and all in it, read-only folders too. One that isn't there is no error.
///
/// # Errors
/// The file system's.
pub fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) => Err(error),
    }
}

fn make_writable(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}
