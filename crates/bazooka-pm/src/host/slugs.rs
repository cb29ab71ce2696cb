//! The slugs on this host: fetched once, verified, unpacked, shared.
//!
//! Owns the way from an rm to a read-only folder. An archive whose digest doesn't match its name is never unpacked,
//! and a folder gets its name only once it is complete. A slug that is here runs without any other part of the
//! cluster.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bazooka_daemon::{http_client, in_words};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use visor::{
    identity::Credentials,
    keys,
    names::{Digest, HostName},
    pause::Doubling,
    visor::{Visor, VisorError},
};

use super::{folders::Folders, pools::Pool};
use bazooka_sandbox::{
    files::{entries, read_file, remove_all, write_file},
    machine::boot_id,
    unpack::{UnpackError, unpack},
};

/// The time for which a slug is tried while no rm has it, or none answers.
const TRY_FOR: Duration = Duration::from_secs(60);

/// The pause between two rounds over all rms.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_secs(5));

/// The number of rounds, each finding the slug broken at every rm, after which it counts as broken.
const BROKEN_ROUNDS: u32 = 2;

/// The bytes of an archive that are written at a time.
const WRITE_BYTES: usize = 256 << 10;

/// The number of unused slugs that are kept, for a rollback.
pub const KEPT_UNUSED: usize = 10;

/// The reason why a slug can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no bazooka-rm is there to fetch its slug from")]
    NoRm,
    #[error("can't look for a bazooka-rm")]
    Rms(#[from] VisorError),
    #[error("{rm} doesn't answer: {detail}")]
    Unreachable { rm: HostName, detail: String },
    #[error("{rm} answers with status {status}")]
    Refused { rm: HostName, status: u16 },
    #[error("what {rm} sends is not the slug: its SHA-256 is {found}")]
    Different { rm: HostName, found: String },
    #[error("the slug from {rm} can't be unpacked")]
    Broken { rm: HostName, source: UnpackError },
    /// This host's own disk failed, so no other rm helps.
    #[error("can't write {}", path.display())]
    Disk { path: PathBuf, source: io::Error },
}

/// The mark beside a slug's folder.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// The boot in which it was unpacked.
    boot_id: String,
    /// True if it has been synced to the disk since.
    synced: bool,
}

/// The slugs of a host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slugs {
    folders: Folders,
    pool: Pool,
    client: reqwest::Client,
}

impl Slugs {
    /// Creates the slugs of a state folder. Work that blocks runs on the pool.
    pub fn new(folders: Folders, pool: Pool, credentials: Option<&Credentials>) -> Slugs {
        let client = http_client(credentials)
            .connect_timeout(Duration::from_secs(2))
            .read_timeout(Duration::from_secs(15))
            .build()
            .expect("its TLS is made already");
        Slugs { folders, pool, client }
    }

    /// Cleans up after an earlier bazooka-pm, and returns the slugs that are here. Blocks.
    pub fn present(&self) -> BTreeSet<Digest> {
        let boot = boot_id();
        let mut present = BTreeSet::new();
        for name in entries(&self.folders.slugs()) {
            let path = self.folders.slugs().join(&name);
            if let Ok(digest) = name.parse::<Digest>() {
                // A slug that was never synced may have holes after a loss of power.
                if read_file::<Mark>(&self.mark(&digest))
                    .is_some_and(|mark| mark.synced || mark.boot_id == boot)
                {
                    present.insert(digest);
                    continue;
                }
            } else if name.strip_suffix(".json").is_some_and(|name| self.folders.slugs().join(name).is_dir())
            {
                continue;
            }
            let removed = if path.is_dir() { remove_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), error = %error, "can't remove what was left of a slug");
            }
        }
        present
    }

    /// Fetches a slug from whichever rm has it. `say` receives the cause of each delay.
    ///
    /// # Errors
    /// [`FetchError`], the last one if there were several.
    pub async fn fetch(
        &self,
        visor: &Visor,
        digest: &Digest,
        say: impl Fn(String),
    ) -> Result<(), FetchError> {
        let deadline = Instant::now() + TRY_FOR;
        let mut pauses = PAUSE.begin();
        let mut broken = 0;
        let mut last = None;
        loop {
            let mut cause = FetchError::NoRm;
            match visor.read(vec![keys::rms()]).await {
                Ok(snapshot) => {
                    last = Some(
                        snapshot.rms.into_iter().map(|(name, rm)| (name, rm.value.url)).collect::<Vec<_>>(),
                    );
                }
                Err(error) if last.is_none() => cause = error.into(),
                // The rms of the last round may well still be there.
                Err(_) => {}
            }
            let rms = last.as_deref().unwrap_or_default();
            let mut round_broken = !rms.is_empty();
            for (rm, url) in rms {
                match self.fetch_from(rm, url, digest).await {
                    Ok(()) => return Ok(()),
                    Err(error @ FetchError::Disk { .. }) => return Err(error),
                    Err(FetchError::Broken { source: UnpackError::Write { path, source }, .. }) => {
                        return Err(FetchError::Disk { path, source });
                    }
                    Err(error) => {
                        round_broken &=
                            matches!(error, FetchError::Different { .. } | FetchError::Broken { .. });
                        let words = in_words(&error);
                        tracing::warn!(%rm, slug = %digest, error = words, "can't fetch a slug; trying on");
                        cause = error;
                    }
                }
            }
            if round_broken {
                broken += 1;
            }
            if broken >= BROKEN_ROUNDS || Instant::now() >= deadline {
                return Err(cause);
            }
            say(in_words(&cause));
            sleep(pauses.next()).await;
        }
    }

    async fn fetch_from(&self, rm: &HostName, url: &str, digest: &Digest) -> Result<(), FetchError> {
        let unreachable =
            |error: reqwest::Error| FetchError::Unreachable { rm: rm.clone(), detail: innermost(&error) };
        let address = format!("{}/slugs/{digest}", url.trim_end_matches('/'));
        let response = self.client.get(address).send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(FetchError::Refused { rm: rm.clone(), status: response.status().as_u16() });
        }
        let folder = self.folders.slugs();
        let disk = |source| FetchError::Disk { path: folder.clone(), source };
        let mut archive = tempfile::Builder::new().prefix(".fetch-").tempfile_in(&folder).map_err(disk)?;
        let mut hash = Sha256::new();
        let mut body = response.bytes_stream();
        let mut bytes = Vec::new();
        loop {
            let piece = body.next().await.transpose().map_err(unreachable)?;
            bytes.extend_from_slice(piece.as_deref().unwrap_or_default());
            if bytes.len() >= WRITE_BYTES || piece.is_none() {
                // Once too much waits for the disk, the kernel holds whoever writes.
                let written = self.pool.run(move || {
                    hash.update(&bytes);
                    let written = archive.write_all(&bytes);
                    bytes.clear();
                    (archive, hash, bytes, written)
                });
                let written = written.await.map_err(|error| disk(io::Error::other(error)))?;
                (archive, hash, bytes) = (written.0, written.1, written.2);
                written.3.map_err(disk)?;
            }
            if piece.is_none() {
                break;
            }
        }
        let found = format!("{:x}", hash.finalize());
        if found != digest.as_str() {
            return Err(FetchError::Different { rm: rm.clone(), found });
        }
        let (slugs, digest, rm) = (self.clone(), digest.clone(), rm.clone());
        let unpacked = self.pool.run(move || slugs.install(archive, &digest, &rm)).await;
        unpacked.map_err(|error| FetchError::Disk { path: folder, source: io::Error::other(error) })?
    }

    /// Unpacks a verified archive and gives its folder the slug's name. Blocks.
    fn install(
        &self,
        mut archive: tempfile::NamedTempFile,
        digest: &Digest,
        rm: &HostName,
    ) -> Result<(), FetchError> {
        let folder = self.folders.slugs();
        let disk = |source| FetchError::Disk { path: folder.clone(), source };
        let draft = tempfile::Builder::new().prefix(".unpack-").tempdir_in(&folder).map_err(disk)?;
        // The guard's own removal can't remove read-only folders.
        let draft = draft.keep();
        let installed = (|| {
            archive.rewind().map_err(disk)?;
            unpack(io::BufReader::with_capacity(64 << 10, archive.as_file_mut()), &draft)
                .map_err(|source| FetchError::Broken { rm: rm.clone(), source })?;
            let mark = Mark { boot_id: boot_id(), synced: false };
            write_file(&self.mark(digest), &mark).map_err(disk)?;
            // A read-only folder can't be moved either.
            let mode = |mode| fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(mode));
            mode(0o755).map_err(disk)?;
            let place = self.folders.slug(digest);
            remove_all(&place).map_err(disk)?;
            fs::rename(&draft, &place).map_err(disk)?;
            fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o555)).map_err(disk)
        })();
        if installed.is_err() {
            if let Err(error) = remove_all(&draft) {
                tracing::warn!(path = %draft.display(), error = %error, "can't remove half a slug");
            }
        }
        installed
    }

    /// Syncs a slug, so that it survives a loss of power. Nothing waits for it: until then the slug counts for this
    /// boot only.
    pub async fn sync(&self, digest: Digest) {
        let slugs = self.clone();
        if let Err(error) = self.pool.run(move || slugs.sync_now(&digest)).await {
            tracing::error!(error = %error, "can't sync a slug");
        }
    }

    fn sync_now(&self, digest: &Digest) {
        let synced = fs::File::open(self.folders.slug(digest))
            .and_then(|folder| nix::unistd::syncfs(&folder).map_err(io::Error::from))
            .and_then(|()| write_file(&self.mark(digest), &Mark { boot_id: boot_id(), synced: true }));
        if let Err(error) = synced {
            tracing::warn!(slug = %digest, error = %error, "can't sync a slug; it will be fetched again after a restart of the machine");
        }
    }

    /// Renames a slug's folder away, so that [`Slugs::remove`] can remove it. Quick.
    pub fn discard(&self, digest: &Digest) -> Option<PathBuf> {
        let place = self.folders.slug(digest);
        let doomed = self.folders.slugs().join(format!(".gone-{digest}"));
        let mode =
            |path: &Path| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755));
        mode(&place).and_then(|()| fs::rename(&place, &doomed)).ok()?;
        let _ = fs::remove_file(self.mark(digest));
        Some(doomed)
    }

    /// Removes a discarded slug's folder. Blocks.
    pub fn remove(doomed: &Path) {
        if let Err(error) = remove_all(doomed) {
            tracing::warn!(path = %doomed.display(), error = %error, "can't remove a slug that nothing uses");
        }
    }

    /// Returns when a slug was last fetched or chosen, which orders slugs by age.
    pub fn age(&self, digest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.mark(digest)).ok()?.modified().ok()
    }

    fn mark(&self, digest: &Digest) -> PathBuf {
        self.folders.slugs().join(format!("{digest}.json"))
    }
}

/// Returns the innermost cause of an error, because reqwest's own message names only the URL.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
