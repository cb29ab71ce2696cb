//! The files and folders that bazooka-pm and a shim share: written atomically, locked, private.
//!
//! Owns how they are written. [`crate::protocol`] has their content.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// Appends a line to a file that is open for appending.
///
/// The file isn't synced: after a loss of power the processes that it describes are gone too. If an earlier write
/// failed in the middle of a line, only that line is spoilt.
///
/// # Errors
/// The file system's.
pub fn append(mut file: &fs::File, content: &impl Serialize) -> io::Result<()> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, content).map_err(io::Error::other)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// Writes a file atomically, readable by its owner alone.
///
/// The file isn't synced: after a loss of power the processes that it describes are gone too.
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

/// Reads such a file; none if it is missing or incomplete.
pub fn read_file<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Locks a file; none if another process has the lock. The lock is held until every copy of the descriptor has been
/// closed, in other processes too.
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

/// Reads such a file, for a reader that deletes or ends something if it is missing or incomplete, which is none.
///
/// # Errors
/// The file system's: a file that can't be looked at isn't missing.
pub fn load_file<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    Ok(load(path)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Reads a file; none if it is missing.
///
/// # Errors
/// The file system's: a file that can't be looked at isn't missing.
pub fn load(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the names in a folder, for a reader that ends something if a name is missing; none if the folder is.
///
/// # Errors
/// The file system's: a folder that can't be looked into isn't empty.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in listed {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Returns the names in a folder; none if it is missing or can't be read. [`names`] tells the two apart.
pub fn entries(folder: &Path) -> impl Iterator<Item = String> {
    let listed = fs::read_dir(folder).into_iter().flatten();
    listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Creates a folder that only its owner can enter, if it is missing.
///
/// # Errors
/// The file system's.
pub fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a folder with its content, read-only folders too. A missing folder is no error.
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
