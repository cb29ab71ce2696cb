//! A daemon's file of key pairs, in its state folder and readable only by its owner.
//!
//! ```text
//! seal.key   0600   {"keys": ["<current>", "<replaced, still needed>", ...]}
//! ```
//!
//! The file is replaced as a whole and synced: after a crash at any moment it holds either the keys before or the keys
//! after the change.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Keyring, Random, SecretKey};

/// The file's name in the state folder.
const NAME: &str = "seal.key";

#[derive(Deserialize)]
struct Stored {
    keys: Vec<String>,
}

#[derive(Serialize)]
struct Storing<'a> {
    keys: Vec<&'a str>,
}

/// A key file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Other users may read the file.
    #[error("{} can be read by others; make it its owner's alone (chmod 600), and rotate it", path.display())]
    Open {
        /// The file's path.
        path: PathBuf,
    },
    /// The file's content is no list of keys.
    #[error("{} isn't whole; put it back from a copy", path.display())]
    Broken {
        /// The file's path.
        path: PathBuf,
    },
    /// There is no key to replace.
    #[error("there is no {} yet; it is made at the first start", path.display())]
    Missing {
        /// The file's path.
        path: PathBuf,
    },
    /// The file has a newer key, which counts from the next start on.
    #[error("{} has another key since the start", path.display())]
    Newer {
        /// The file's path.
        path: PathBuf,
    },
    /// The file can't be written; the previous one stays.
    #[error("can't write {}", path.display())]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A daemon's key file.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// Returns the key file of a state folder.
    pub fn of(state: &Path) -> KeyFile {
        KeyFile { path: state.join(NAME) }
    }

    /// Reads the keys, and makes a first one if there is no file.
    ///
    /// # Errors
    /// If the file can't be read, is incomplete, or others may read it. No key is made then, because everything sealed
    /// to the file's keys would be lost.
    pub fn load(&self, random: &mut dyn Random) -> Result<Keyring, KeyFileError> {
        if let Some(found) = self.read()? {
            return Ok(found);
        }
        let made = Keyring::of(SecretKey::fresh(random));
        self.store(&made)?;
        Ok(made)
    }

    /// Makes another key the current one, and keeps the earlier ones.
    ///
    /// # Errors
    /// As [`KeyFile::load`]; there is no key yet.
    pub fn rotate(&self, random: &mut dyn Random) -> Result<Keyring, KeyFileError> {
        let before = self.read()?.ok_or_else(|| KeyFileError::Missing { path: self.path.clone() })?;
        let after = before.rotated(SecretKey::fresh(random));
        self.store(&after)?;
        Ok(after)
    }

    /// Writes that only these keys are left, unless a newer key was made meanwhile, which must not be lost.
    ///
    /// # Errors
    /// As [`KeyFile::load`]; there is a newer key, which counts from the next start on.
    pub fn retire(&self, left: &Keyring) -> Result<(), KeyFileError> {
        match self.read()? {
            Some(found) if found.current() == left.current() => self.store(left),
            _ => Err(KeyFileError::Newer { path: self.path.clone() }),
        }
    }

    fn store(&self, keys: &Keyring) -> Result<(), KeyFileError> {
        let failed = |source| KeyFileError::Write { path: self.path.clone(), source };
        let texts: Vec<_> = keys.keys.iter().map(SecretKey::to_text).collect();
        let storing = Storing { keys: texts.iter().map(|text| text.as_str()).collect() };
        let bytes = Zeroizing::new(serde_json::to_vec(&storing).expect("strings are always valid JSON"));
        let draft = self.path.with_extension("key.new");
        let write = || {
            let mut file =
                fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &self.path)?;
            // The file's name must be as durable as its bytes, because a lost key cannot be made again.
            fs::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(failed)
    }

    fn read(&self) -> Result<Option<Keyring>, KeyFileError> {
        let path = || self.path.clone();
        let failed = |source| KeyFileError::Read { path: path(), source };
        let text = match fs::read(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mode = fs::metadata(&self.path).map_err(failed)?;
        if mode.permissions().mode() & 0o077 != 0 {
            return Err(KeyFileError::Open { path: path() });
        }
        let broken = || KeyFileError::Broken { path: path() };
        let stored: Stored = serde_json::from_slice(&text).map_err(|_| broken())?;
        let texts = stored.keys.into_iter().map(Zeroizing::new);
        let keys: Result<Vec<_>, _> = texts.map(|text| SecretKey::from_text(&text)).collect();
        let keys = keys.map_err(|_| broken())?;
        if keys.is_empty() { Err(broken()) } else { Ok(Some(Keyring { keys })) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Os;

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().expect("there is room");
        let file = KeyFile::of(dir.path());
        let made = file.load(&mut Os).expect("there is room");
        assert_eq!(file.load(&mut Os).expect("it is there").current(), made.current());
        let mode = fs::metadata(&file.path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o644)).expect("it is ours");
        let refused = file.load(&mut Os).expect_err("others could read it");
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
    }

    #[test]
    fn a_file_that_is_not_whole_is_never_replaced_by_a_new_key() {
        let dir = tempfile::tempdir().expect("there is room");
        let file = KeyFile::of(dir.path());
        file.load(&mut Os).expect("there is room");
        let text = fs::read(&file.path).expect("it is there");
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            fs::write(&file.path, &text[..cut]).expect("there is room");
            let refused = file.load(&mut Os).expect_err("it isn't whole");
            assert!(matches!(refused, KeyFileError::Broken { .. }), "{refused}");
            assert_eq!(fs::read(&file.path).expect("it is there"), &text[..cut]);
        }
    }

    #[test]
    fn a_rotation_keeps_the_keys_before_until_they_are_taken_out() {
        let dir = tempfile::tempdir().expect("there is room");
        let file = KeyFile::of(dir.path());
        assert!(file.rotate(&mut Os).is_err(), "there is nothing to rotate");
        let first = file.load(&mut Os).expect("there is room").current();
        let second = file.rotate(&mut Os).expect("there is room").current();
        assert_ne!(first, second);
        let both = file.load(&mut Os).expect("it is there");
        assert_eq!((both.current(), both.retired()), (second.clone(), vec![first]));
        file.retire(&both.without_retired()).expect("there is room");
        let one = file.load(&mut Os).expect("it is there");
        assert_eq!((one.current(), one.retired()), (second, vec![]));
        let third = file.rotate(&mut Os).expect("there is room").current();
        assert!(file.retire(&one).is_err(), "it would lose the newest");
        assert_eq!(file.load(&mut Os).expect("it is there").current(), third);
    }
}
