//! The file storage that several rms share: an object store (S3 or compatible), or a folder that all of them mount.
//!
//! Owns the objects' names, and all writes and reads of them. A stored object has the SHA-256 of its bytes in its name
//! and never changes; each fetch verifies it. The storage doesn't know which objects are current: the coordinator does.
//!
//! ```text
//! slugs/SHA256                               a slug
//! unneeded/SHA256                            the mark of a slug that no rev names; its age counts
//! repos/APP/REGISTRATION/GENERATION-SHA256   a manifest: a repository's branches and packs
//! repos/APP/REGISTRATION/packs/SHA256        a pack, complete in itself
//! ```
//!
//! An rm without a storage keeps slugs and repositories in its state folder.

use std::{
    path::Path as File,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ClientConfigKey, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    buffered::BufWriter,
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use visor::names::{AppName, Digest};

/// The number of bytes of a file held in memory at a time. S3 requires parts of at least 5 MiB.
const PART: usize = 8 * 1024 * 1024;

/// The number of parts in transfer at a time.
const PARTS_AT_ONCE: usize = 4;

/// The time limit of a call; each part is a call of its own.
const CALL_TIMEOUT: &str = "60s";

/// The time limit of a connection attempt.
const CONNECT_TIMEOUT: &str = "2s";

/// The time for which an unresponsive storage is retried. A pusher waits for it.
const TRY_FOR: Duration = Duration::from_secs(10);

/// The largest object that is read into memory, which is a manifest; in bytes.
const MAX_SMALL: u64 = 16 * 1024 * 1024;

/// A failed call on the file storage.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The storage failed, or does not answer.
    #[error("the file storage failed: {0}")]
    Store(#[source] object_store::Error),
    /// There is no object with this name.
    #[error("{0} is not in the file storage")]
    Missing(String),
    /// The object has other bytes than its name says.
    #[error("{name} in the file storage is not what its name says: its SHA-256 is {found}")]
    Different {
        /// The object's name.
        name: String,
        /// The SHA-256 of the bytes that were read.
        found: String,
    },
    /// This rm's own disk failed.
    #[error("this bazooka-rm's disk failed: {0}")]
    Disk(#[source] std::io::Error),
}

/// The reasons why the storage of a URL can't be opened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum OpenError {
    #[error("{0:?} must name a whole path: file:///FOLDER")]
    RelativePath(String),
    #[error("{0:?} must begin with s3:// or file://")]
    UnknownScheme(String),
    #[error("{0:?} names no bucket: s3://BUCKET/PREFIX")]
    NoBucket(String),
    #[error("{folder} can't be made")]
    Folder { folder: String, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] object_store::Error),
    #[error(transparent)]
    Prefix(#[from] object_store::path::Error),
}

impl From<object_store::Error> for StorageError {
    fn from(error: object_store::Error) -> StorageError {
        match error {
            object_store::Error::NotFound { path, .. } => StorageError::Missing(path),
            error => StorageError::Store(error),
        }
    }
}

/// The result of a call on the file storage.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// A file storage. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
}

impl Storage {
    /// Returns the fault of a storage URL, if it has one, without touching the storage.
    pub fn fault_of(url: &str) -> Option<OpenError> {
        match (url.strip_prefix("file://"), url.strip_prefix("s3://")) {
            (Some(folder), _) if !folder.starts_with('/') => Some(OpenError::RelativePath(url.into())),
            (None, None) => Some(OpenError::UnknownScheme(url.into())),
            (None, Some(place)) if place.is_empty() || place.starts_with('/') => {
                Some(OpenError::NoBucket(url.into()))
            }
            _ => None,
        }
    }

    /// Opens the storage of a URL: `s3://BUCKET/PREFIX`, with credentials, region and endpoint from the usual `AWS_*`
    /// variables, or `file:///FOLDER`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(url: &str) -> Result<Storage, OpenError> {
        if let Some(fault) = Storage::fault_of(url) {
            return Err(fault);
        }
        if let Some(folder) = url.strip_prefix("file://") {
            std::fs::create_dir_all(folder)
                .map_err(|source| OpenError::Folder { folder: folder.into(), source })?;
            let store = LocalFileSystem::new_with_prefix(folder)?;
            // A push that was acknowledged as stored must survive a loss of power.
            return Ok(Storage { store: Arc::new(store.with_fsync(true)) });
        }
        let place = url.strip_prefix("s3://").unwrap_or_default();
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let client = AmazonS3ConfigKey::Client;
        let retry = RetryConfig { max_retries: 3, retry_timeout: TRY_FOR, ..RetryConfig::default() };
        let mut s3 = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_config(client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
            .with_config(client(ClientConfigKey::Timeout), CALL_TIMEOUT)
            .with_retry(retry);
        // An explicit `http://` endpoint is deliberate, so plain HTTP is allowed for it.
        if std::env::var("AWS_ENDPOINT_URL").is_ok_and(|url| url.starts_with("http://")) {
            s3 = s3.with_allow_http(true);
        }
        visor::identity::share_tls_primitives();
        let s3 = s3.build()?;
        let prefix = Path::parse(prefix.trim_matches('/'))?;
        Ok(Storage { store: Arc::new(PrefixStore::new(s3, prefix)) })
    }

    /// Stores a file under a name that contains the SHA-256 of its bytes.
    ///
    /// # Errors
    /// [`StorageError`]. The object then does not exist, or is complete: the storage may have failed after the write.
    pub async fn put_file(&self, name: &Path, file: &File) -> Result<()> {
        let mut file = tokio::fs::File::open(file).await.map_err(StorageError::Disk)?;
        let mut out = BufWriter::with_capacity(self.store.clone(), name.clone(), PART)
            .with_max_concurrency(PARTS_AT_ONCE);
        let mut chunk = vec![0; 256 * 1024];
        let copied = async {
            loop {
                let read = file.read(&mut chunk).await.map_err(StorageError::Disk)?;
                if read == 0 {
                    return Ok(());
                }
                out.put(Bytes::copy_from_slice(&chunk[..read])).await?;
            }
        };
        if let Err(error) = copied.await {
            // An unfinished upload has no name; abandon its parts.
            let _ = out.abort().await;
            return Err(error);
        }
        out.shutdown().await.map_err(|error| match error.downcast::<object_store::Error>() {
            Ok(error) => error.into(),
            Err(error) => StorageError::Disk(error),
        })
    }

    /// Stores a few bytes.
    ///
    /// # Errors
    /// As [`Storage::put_file`].
    pub async fn put(&self, name: &Path, bytes: Vec<u8>) -> Result<()> {
        self.store.put(name, bytes.into()).await?;
        Ok(())
    }

    /// Reads a small object and verifies it.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn get(&self, name: &Path, sha256: &Digest) -> Result<Bytes> {
        let found = self.store.get(name).await?;
        if found.meta.size > MAX_SMALL {
            let found = format!("unknown, and it is {} bytes long", found.meta.size);
            return Err(StorageError::Different { name: name.to_string(), found });
        }
        let bytes = found.bytes().await?;
        check(name, Sha256::digest(&bytes), sha256)?;
        Ok(bytes)
    }

    /// Fetches an object into a file and verifies it. After an error, the file's content is undefined.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn fetch(&self, name: &Path, sha256: &Digest, into: &File) -> Result<()> {
        let mut file = tokio::fs::File::create(into).await.map_err(StorageError::Disk)?;
        let mut hash = Sha256::new();
        let mut stream = self.store.get(name).await?.into_stream();
        while let Some(piece) = stream.try_next().await? {
            hash.update(&piece);
            file.write_all(&piece).await.map_err(StorageError::Disk)?;
        }
        file.flush().await.map_err(StorageError::Disk)?;
        check(name, hash.finalize(), sha256)
    }

    /// Returns an object's length in bytes and its unverified bytes.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn stream(
        &self,
        name: &Path,
    ) -> Result<(u64, BoxStream<'static, object_store::Result<Bytes>>)> {
        let found = self.store.get(name).await?;
        Ok((found.meta.size, found.into_stream()))
    }

    /// Returns an object's length in bytes, or `None` if there is no such object.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn size(&self, name: &Path) -> Result<Option<u64>> {
        match self.store.head(name).await.map_err(StorageError::from) {
            Ok(found) => Ok(Some(found.size)),
            Err(StorageError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the objects below a name that have reached an age and need not be kept.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn litter(
        &self,
        name: &Path,
        age: Duration,
        keep: impl Fn(&Path) -> bool,
    ) -> Result<Vec<Path>> {
        let now = SystemTime::now();
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|passed| passed >= age);
        let found: Vec<_> = self.store.list(Some(name)).try_collect().await?;
        let litter = found.into_iter().filter(|found| is_old(found.last_modified.into()));
        Ok(litter.map(|found| found.location).filter(|name| !keep(name)).collect())
    }

    /// Deletes objects. A missing object counts as deleted.
    ///
    /// # Errors
    /// [`StorageError`]; some objects may be deleted.
    pub async fn remove(&self, names: Vec<Path>) -> Result<()> {
        let mut gone = self.store.delete_stream(futures::stream::iter(names.into_iter().map(Ok)).boxed());
        while let Some(removed) = gone.next().await {
            match removed.map_err(StorageError::from) {
                Ok(_) | Err(StorageError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn check(name: &Path, found: impl AsRef<[u8]>, wanted: &Digest) -> Result<()> {
    let found = hex(found);
    if found == wanted.as_str() {
        return Ok(());
    }
    Err(StorageError::Different { name: name.to_string(), found })
}

/// Returns bytes in hexadecimal.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the SHA-256 of bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    hex(Sha256::digest(bytes)).parse().expect("a SHA-256 in hexadecimal is a digest")
}

/// Returns a slug's name.
pub fn slug(sha256: &Digest) -> Path {
    Path::from_iter(["slugs", sha256.as_str()])
}

/// Returns the name of the mark of a slug that no rev names.
pub fn unneeded_slug(sha256: &Digest) -> Path {
    Path::from_iter(["unneeded", sha256.as_str()])
}

/// Returns the name below which all objects of a repository are. Another registration of the app has another name, so
/// it starts empty.
pub fn repo(app: &AppName, registration: &str) -> Path {
    // A registration's token may be any text of one line, so its hash is used.
    let registration = hex(&Sha256::digest(registration)[..8]);
    Path::from_iter(["repos", app.as_str(), &registration])
}

/// Returns a manifest's name.
pub fn manifest(repo: &Path, generation: u64, sha256: &Digest) -> Path {
    repo.clone().join(format!("{generation}-{sha256}"))
}

/// Returns a pack's name.
pub fn pack(repo: &Path, sha256: &Digest) -> Path {
    repo.clone().join("packs").join(sha256.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_stored_comes_back_checked_and_goes_when_it_is_not_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let storage = Storage::open(&format!("file://{}/store", dir.path().display())).expect("opened");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        // Long enough for more than one part.
        let bytes: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&from, &bytes).expect("written");
        let app: AppName = "a".parse().expect("valid");
        let repo = repo(&app, "a token/of anything");
        let name = pack(&repo, &digest(&bytes));
        assert_eq!(storage.size(&name).await.expect("it answers"), None);
        storage.put_file(&name, &from).await.expect("stored");
        assert_eq!(storage.size(&name).await.expect("it answers"), Some(9_000_000));
        storage.fetch(&name, &digest(&bytes), &to).await.expect("fetched");
        assert!(std::fs::read(&to).expect("readable") == bytes);
        let other = storage.fetch(&name, &digest(b"other"), &to).await.expect_err("it is another");
        assert!(matches!(other, StorageError::Different { .. }), "{other}");

        let small = manifest(&repo, 1, &digest(b"small"));
        storage.put(&small, b"small".to_vec()).await.expect("stored");
        assert_eq!(storage.get(&small, &digest(b"small")).await.expect("there"), "small");
        let young = storage.litter(&repo, Duration::from_secs(3600), |_| false).await.expect("listed");
        assert!(young.is_empty(), "{young:?}");
        let litter = storage.litter(&repo, Duration::ZERO, |name| *name == small).await.expect("listed");
        assert_eq!(litter, std::slice::from_ref(&name));
        storage.remove(litter.clone()).await.expect("removed");
        storage.remove(litter).await.expect("what has gone is removed already");
        let gone = storage.fetch(&name, &digest(&bytes), &to).await.expect_err("it has gone");
        assert!(matches!(gone, StorageError::Missing(_)), "{gone}");
        assert_eq!(storage.size(&small).await.expect("it answers"), Some(5));
    }

    #[test]
    fn a_storage_that_cannot_be_is_told_in_words() {
        for (url, words) in [
            ("/var/lib/slugs", "must begin with s3:// or file://"),
            ("file://slugs", "whole path"),
            ("s3:///prefix", "names no bucket"),
        ] {
            let fault = Storage::open(url).expect_err(url).to_string();
            assert!(fault.contains(words), "{fault}");
        }
    }
}
