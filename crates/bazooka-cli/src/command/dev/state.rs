//! The folder of a local cluster, with its lock and its logs.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::failure::{Failure, Kind, Result};

/// The size beyond which a log is renamed when a cluster starts; one earlier log is kept.
const MOST_LOG_BYTES: u64 = 10 << 20;

/// A local cluster's folder, locked as long as this value exists.
pub struct State {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl State {
    /// Opens and locks the folder; creates it if it doesn't exist.
    ///
    /// # Errors
    /// If the folder can't be created, or another cluster runs on it.
    pub fn open(said: Option<&Path>) -> Result<State> {
        let dir = match said {
            // Absolute, because children have other working folders.
            Some(dir) => std::path::absolute(dir).map_err(|error| failed(dir, &error))?,
            None => by_default()?,
        };
        // World-readable, because each instance has its own user, and the slugs are below this folder.
        let make = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir.join("logs"));
        make.map_err(|error| failed(&dir, &error))?;
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&dir, open).map_err(|error| failed(&dir, &error))?;
        let path = dir.join("lock");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| failed(&path, &error))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // If this read fails, or the holder has not written its id yet, the message lacks only the id.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    id => format!("process {id}"),
                };
                let what = format!("a cluster runs on {} already", dir.display());
                return Err(Failure::new(Kind::Refused, what)
                    .because(format!("{holder} holds its lock"))
                    .hint("stop that one, or choose another folder (and ports) with --state"));
            }
            Err((_, error)) => return Err(failed(&path, &error)),
        };
        let write = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        write.map_err(|error| failed(&path, &error))?;
        Ok(State { dir, _lock: lock })
    }

    /// Returns the folder as an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of a part's log.
    ///
    /// # Errors
    /// If a long earlier log can't be renamed.
    pub fn log(&self, part: &str) -> Result<PathBuf> {
        let log = self.dir.join("logs").join(format!("{part}.log"));
        if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > MOST_LOG_BYTES) {
            fs::rename(&log, log.with_extension("log.1")).map_err(|error| failed(&log, &error))?;
        }
        Ok(log)
    }
}

fn by_default() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/bazooka/dev"));
    }
    let share = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share"));
    share.or_else(home).map(|share| share.join("bazooka/dev")).ok_or_else(|| {
        Failure::new(Kind::Usage, "there is no home folder to keep the cluster's state in")
            .hint("--state DIR")
    })
}

fn failed(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::from_error(Kind::Failed, format!("{} can't be used", path.display()), error)
        .hint("choose another folder with --state")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_cluster_on_the_same_folder_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let path = dir.path().join("dev");
        let first = State::open(Some(&path)).expect("it is free");
        let refused = State::open(Some(&path)).err().expect("it is held");
        assert_eq!(refused.kind, Kind::Refused);
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        State::open(Some(&path)).expect("it is free again");
    }
}
