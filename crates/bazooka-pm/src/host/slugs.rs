//! The slugs on this host: fetched once, verified, unpacked, shared.
//!
//! Owns the way from an rm, or from another host, to a read-only folder. An archive whose digest doesn't match its name
//! is never unpacked, and a folder gets its name only once it is complete. A slug that is here runs without any other
//! part of the cluster. Its archive stays beside it, for other hosts ([`super::archives`]).

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bazooka_daemon::{http_client, in_words};
use futures::StreamExt;
use nix::sys::statvfs::statvfs;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};
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

/// The time for which a slug is tried while nobody has it, or nobody answers.
const TRY_FOR: Duration = Duration::from_secs(60);

/// The time for which a slug is tried while hosts that have it serve it to too many others.
const TRY_BUSY_FOR: Duration = Duration::from_secs(600);

/// The time within which a source begins its answer, as long as there is another one to try. The last one of a round has
/// the client's own time: an rm may have to fetch the slug from a slow storage first.
const BEGINS_WITHIN: Duration = Duration::from_secs(3);

/// The longest time that an archive of one megabyte may take from a host, and then for each megabyte more.
const FROM_HOST_WITHIN: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(1)];

/// An archive is kept only while one part in so many of the disk is free.
const FREE_PART: u64 = 20;

/// The pause between two rounds over all rms and hosts.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_secs(5));

/// The number of rounds, each finding the slug broken everywhere, after which it counts as broken.
const BROKEN_ROUNDS: u32 = 2;

/// The bytes of an archive that are written at a time.
const WRITE_BYTES: usize = 256 << 10;

/// The number of unused slugs that are kept, for a rollback.
pub const KEPT_UNUSED: usize = 10;

/// The reason why a slug can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no bazooka-rm is there to fetch its slug from, and no host is known to have it")]
    Nobody,
    #[error("can't look for a bazooka-rm")]
    Rms(#[from] VisorError),
    #[error("{from} doesn't answer: {detail}")]
    Unreachable { from: HostName, detail: String },
    #[error("{from} answers with status {status}")]
    Refused { from: HostName, status: u16 },
    #[error("{from} serves its slug to many others")]
    Busy { from: HostName },
    #[error("{from} doesn't begin its answer within {} s", BEGINS_WITHIN.as_secs())]
    Silent { from: HostName },
    #[error("{from} takes too long")]
    Slow { from: HostName },
    #[error("what {from} sends is not the slug: its SHA-256 is {found}")]
    Different { from: HostName, found: String },
    #[error("what {from} sends is not the slug: it is longer than {bytes} bytes")]
    Longer { from: HostName, bytes: u64 },
    #[error("the slug from {from} can't be unpacked")]
    Broken { from: HostName, source: UnpackError },
    /// This host's own disk failed, so no other source helps.
    #[error("can't write {}", path.display())]
    Disk { path: PathBuf, source: io::Error },
}

impl FetchError {
    /// Reports whether what came is not the slug.
    fn is_of_the_bytes(&self) -> bool {
        matches!(self, FetchError::Different { .. } | FetchError::Longer { .. } | FetchError::Broken { .. })
    }
}

/// The kind of a source, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A bazooka-rm.
    Rm,
    /// A host that the converger named.
    Host,
}

/// A daemon that may have a slug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The kind of daemon.
    pub kind: SourceKind,
    /// The daemon's name.
    pub name: HostName,
    /// The base URL of its endpoint.
    pub url: String,
}

/// The daemons that may have a slug, and how long it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The rms, then the hosts that the converger named.
    pub sources: Vec<Source>,
    /// The length of the archive in bytes; none if no assignment names the slug any more.
    pub size_bytes: Option<u64>,
}

/// Looks where a host may fetch a slug.
///
/// # Errors
/// The coordinator's.
pub async fn whereabouts(visor: &Visor, host: &HostName, slug: &Digest) -> Result<Whereabouts, VisorError> {
    let snapshot = visor.read(vec![keys::rms(), keys::assigned_to(host)]).await?;
    let assigned = snapshot.hosts.get(host).into_iter().flat_map(|view| view.assigned.values());
    let assigned: Vec<_> = assigned.filter(|assigned| assigned.slug.sha256 == *slug).collect();
    let size_bytes = assigned.iter().map(|assigned| assigned.slug.size_bytes).max();
    let mut sources: Vec<Source> = Vec::new();
    for (name, rm) in &snapshot.rms {
        sources.push(Source { kind: SourceKind::Rm, name: name.clone(), url: rm.url.clone() });
    }
    for named in assigned.iter().flat_map(|assigned| &assigned.sources) {
        let source = Source { kind: SourceKind::Host, name: named.host.clone(), url: named.url.clone() };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    Ok(Whereabouts { sources, size_bytes })
}

/// A slug that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The kind of its source.
    pub from: SourceKind,
    /// True if its archive was kept.
    pub kept: bool,
}

/// The end of the name of a slug's mark.
const MARK: &str = ".json";

/// The end of the name of a slug's archive.
const ARCHIVE: &str = ".tar.zst";

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
    host: HostName,
    folders: Folders,
    pool: Pool,
    client: reqwest::Client,
}

impl Slugs {
    /// Creates the slugs of a host with this state folder. Work that blocks runs on the pool.
    pub fn new(host: HostName, folders: Folders, pool: Pool, credentials: Option<&Credentials>) -> Slugs {
        let client = http_client(credentials)
            .connect_timeout(Duration::from_secs(2))
            .read_timeout(Duration::from_secs(15))
            .build()
            .expect("its TLS is made already");
        Slugs { host, folders, pool, client }
    }

    /// Cleans up after an earlier bazooka-pm, and returns the slugs that are here, and those of them with archives. Blocks.
    pub fn present(&self) -> Present {
        let boot = boot_id();
        let mut present = Present::default();
        // A slug that was never synced may have holes after a loss of power.
        let is_whole = |digest: &Digest| {
            let mark = read_file::<Mark>(&self.mark(digest));
            self.folders.slug(digest).is_dir() && mark.is_some_and(|mark| mark.synced || mark.boot_id == boot)
        };
        for name in entries(&self.folders.slugs()) {
            let path = self.folders.slugs().join(&name);
            let bare = name.strip_suffix(MARK).or_else(|| name.strip_suffix(ARCHIVE)).unwrap_or(&name);
            if let Some(digest) = bare.parse::<Digest>().ok().filter(is_whole) {
                if name.ends_with(ARCHIVE) {
                    present.archives.insert(digest);
                } else {
                    present.slugs.insert(digest);
                }
                continue;
            }
            let removed = if path.is_dir() { remove_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), error = %error, "can't remove what was left of a slug");
            }
        }
        present
    }

    /// Fetches a slug from an rm or from a host that was named to have it, whichever does first. `say` receives the
    /// cause of each delay.
    ///
    /// # Errors
    /// [`FetchError`], the last one if there were several.
    pub async fn fetch(
        &self,
        visor: &Visor,
        digest: &Digest,
        say: impl Fn(String),
    ) -> Result<Fetched, FetchError> {
        let begun = Instant::now();
        let mut deadline = begun + TRY_FOR;
        let mut pauses = PAUSE.begin();
        let mut broken = 0;
        let mut last = None;
        loop {
            let mut cause = FetchError::Nobody;
            match whereabouts(visor, &self.host, digest).await {
                Ok(found) => last = Some(found),
                Err(error) if last.is_none() => cause = error.into(),
                // The sources of the last round may well still be there.
                Err(_) => {}
            }
            let found = last.clone().unwrap_or_default();
            let mut round_broken = !found.sources.is_empty();
            for (number, source) in (1..).zip(&found.sources) {
                let others = number < found.sources.len();
                let error = match self.fetch_from(source, digest, found.size_bytes, others).await {
                    Ok(kept) => return Ok(Fetched { from: source.kind, kept }),
                    Err(error @ FetchError::Disk { .. }) => return Err(error),
                    Err(FetchError::Broken { source: UnpackError::Write { path, source }, .. }) => {
                        return Err(FetchError::Disk { path, source });
                    }
                    Err(error) => error,
                };
                round_broken &= error.is_of_the_bytes();
                if matches!(error, FetchError::Busy { .. }) {
                    // The hosts that are served now are sources themselves, soon.
                    deadline = (Instant::now() + TRY_FOR).min(begun + TRY_BUSY_FOR);
                }
                let (from, words) = (&source.name, in_words(&error));
                tracing::warn!(%from, slug = %digest, error = words, "can't fetch a slug; trying on");
                cause = error;
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

    /// Fetches a slug from one source. Returns whether its archive was kept. `others` says whether there are more sources.
    async fn fetch_from(
        &self,
        source: &Source,
        digest: &Digest,
        size_bytes: Option<u64>,
        others: bool,
    ) -> Result<bool, FetchError> {
        let (from, url) = (&source.name, source.url.trim_end_matches('/'));
        let archive = match source.kind {
            SourceKind::Rm => {
                self.download(from, format!("{url}/slugs/{digest}"), digest, size_bytes, others).await?
            }
            SourceKind::Host => {
                let [most, each] = FROM_HOST_WITHIN;
                let megabytes = u32::try_from(size_bytes.unwrap_or(0) >> 20).unwrap_or(u32::MAX);
                let within = most + each.saturating_mul(megabytes);
                let address = format!("{url}/archives/{digest}");
                let loading = self.download(from, address, digest, size_bytes, others);
                timeout(within, loading).await.map_err(|_| FetchError::Slow { from: from.clone() })??
            }
        };
        let (slugs, digest, from) = (self.clone(), digest.clone(), from.clone());
        let unpacked = self.pool.run(move || slugs.install(archive, &digest, &from)).await;
        let path = self.folders.slugs();
        unpacked.map_err(|error| FetchError::Disk { path, source: io::Error::other(error) })?
    }

    /// Downloads an archive, and verifies that it is the slug.
    async fn download(
        &self,
        from: &HostName,
        address: String,
        digest: &Digest,
        size_bytes: Option<u64>,
        others: bool,
    ) -> Result<tempfile::NamedTempFile, FetchError> {
        let unreachable =
            |error: reqwest::Error| FetchError::Unreachable { from: from.clone(), detail: innermost(&error) };
        let asking = self.client.get(address).send();
        let response = if others {
            let begun = timeout(BEGINS_WITHIN, asking).await;
            begun.map_err(|_| FetchError::Silent { from: from.clone() })?
        } else {
            asking.await
        };
        let response = response.map_err(unreachable)?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::TOO_MANY_REQUESTS => return Err(FetchError::Busy { from: from.clone() }),
            status => return Err(FetchError::Refused { from: from.clone(), status: status.as_u16() }),
        }
        let folder = self.folders.slugs();
        let disk = |source| FetchError::Disk { path: folder.clone(), source };
        let mut archive = tempfile::Builder::new().prefix(".fetch-").tempfile_in(&folder).map_err(disk)?;
        let mut hash = Sha256::new();
        let mut body = response.bytes_stream();
        let (mut bytes, mut taken) = (Vec::new(), 0_u64);
        loop {
            let piece = body.next().await.transpose().map_err(unreachable)?;
            bytes.extend_from_slice(piece.as_deref().unwrap_or_default());
            taken += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            if let Some(most) = size_bytes.filter(|most| taken > *most) {
                return Err(FetchError::Longer { from: from.clone(), bytes: most });
            }
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
            return Err(FetchError::Different { from: from.clone(), found });
        }
        Ok(archive)
    }

    /// Unpacks a verified archive, gives its folder the slug's name, and keeps the archive beside it, if the disk has
    /// room. Returns whether it was kept. Blocks.
    fn install(
        &self,
        mut archive: tempfile::NamedTempFile,
        digest: &Digest,
        from: &HostName,
    ) -> Result<bool, FetchError> {
        let folder = self.folders.slugs();
        let disk = |source| FetchError::Disk { path: folder.clone(), source };
        let draft = tempfile::Builder::new().prefix(".unpack-").tempdir_in(&folder).map_err(disk)?;
        // The guard's own removal can't remove read-only folders.
        let draft = draft.keep();
        let installed = (|| {
            archive.rewind().map_err(disk)?;
            unpack(io::BufReader::with_capacity(64 << 10, archive.as_file_mut()), &draft)
                .map_err(|source| FetchError::Broken { from: from.clone(), source })?;
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
        installed.map(|()| self.keep(archive, digest))
    }

    /// Keeps the archive of an unpacked slug, for other hosts. Nothing is copied: the download gets its name.
    fn keep(&self, archive: tempfile::NamedTempFile, digest: &Digest) -> bool {
        let kept = statvfs(&self.folders.slugs()).map_err(io::Error::from).and_then(|disk| {
            if disk.blocks_available() < disk.blocks() / FREE_PART {
                return Ok(false);
            }
            archive.persist(self.archive(digest)).map_err(|error| error.error).map(|_| true)
        });
        kept.unwrap_or_else(|error| {
            tracing::warn!(slug = %digest, error = %error, "can't keep the archive of a slug; other hosts can't fetch it here");
            false
        })
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
        let _ = fs::rename(self.archive(digest), archive_of(&doomed));
        Some(doomed)
    }

    /// Removes a discarded slug's folder and archive. Blocks.
    pub fn remove(doomed: &Path) {
        // A slug may have no archive.
        let _ = fs::remove_file(archive_of(doomed));
        if let Err(error) = remove_all(doomed) {
            tracing::warn!(path = %doomed.display(), error = %error, "can't remove a slug that nothing uses");
        }
    }

    /// Returns when a slug was last fetched or chosen, which orders slugs by age.
    pub fn age(&self, digest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.mark(digest)).ok()?.modified().ok()
    }

    fn mark(&self, digest: &Digest) -> PathBuf {
        self.folders.slugs().join(format!("{digest}{MARK}"))
    }

    /// Returns the file of a slug's archive.
    pub fn archive(&self, digest: &Digest) -> PathBuf {
        archive_of(&self.folders.slug(digest))
    }
}

/// Returns the file of the archive beside a slug's folder.
fn archive_of(folder: &Path) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push(ARCHIVE);
    path.into()
}

/// The slugs and archives that are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// The slugs that are unpacked as a whole.
    pub slugs: BTreeSet<Digest>,
    /// Those of them whose archives are here.
    pub archives: BTreeSet<Digest>,
}

/// Returns the innermost cause of an error, because reqwest's own message names only the URL.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
