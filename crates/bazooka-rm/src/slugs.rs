//! The slugs that hosts fetch: in this rm's folder, and in the file storage if rms share one.
//!
//! Owns the order of the two. A slug that was stored is in the shared storage, if there is one, and this rm's folder has
//! the newest. Without a shared storage, the folder has all of them.

use std::{collections::BTreeSet, io, path::Path as File, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::path::Path;
use tokio::task::JoinError;
use tokio_util::{io::ReaderStream, sync::CancellationToken};
use visor::{names::Digest, schema::Slug};

use crate::{
    layout::Layout,
    slug::{self, Packed, SlugError},
    storage::{self, Storage, StorageError},
};

/// The number of bytes read from the disk at a time.
const CHUNK: usize = 64 * 1024;

/// The reasons why a slug was not stored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum NotStored {
    #[error(transparent)]
    Slug(#[from] SlugError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Panicked(#[from] JoinError),
}

/// The reasons why a slug can't be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum Unreadable {
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A slug that was found.
pub struct Found {
    /// The slug's length in bytes.
    pub length: u64,
    /// The slug's bytes, if they were asked for.
    pub bytes: Option<BoxStream<'static, io::Result<Bytes>>>,
    /// True if they come from the shared storage.
    pub is_passed_on: bool,
}

/// The slugs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slugs {
    layout: Layout,
    shared: Option<Storage>,
}

impl Slugs {
    /// Returns the slugs of a state folder and, if there is one, of a shared storage.
    pub fn new(layout: Layout, shared: Option<Storage>) -> Slugs {
        Slugs { layout, shared }
    }

    /// True if every host can fetch the slug.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn has(&self, slug: &Slug) -> Result<bool, StorageError> {
        match &self.shared {
            Some(shared) => Ok(shared.size(&storage::slug(&slug.sha256)).await? == Some(slug.size_bytes)),
            None => Ok(slug::is_stored(&self.layout, slug)),
        }
    }

    /// Packs a tree into a slug and stores it.
    ///
    /// # Errors
    /// [`NotStored`].
    pub async fn store(&self, tree: &File, cancelled: &CancellationToken) -> Result<Packed, NotStored> {
        let (tree, layout, cancelled) = (tree.to_owned(), self.layout.clone(), cancelled.clone());
        let packed = tokio::task::spawn_blocking(move || slug::store(&tree, &layout, &cancelled)).await??;
        let slug = &packed.slug;
        if let Some(shared) = &self.shared {
            // The mark first: a sweep looks for it again before it removes the slug.
            let mark = storage::unneeded_slug(&slug.sha256);
            if shared.size(&mark).await?.is_some() {
                shared.remove(vec![mark]).await?;
            }
            self.share(shared, slug).await?;
            let layout = self.layout.clone();
            tokio::task::spawn_blocking(move || slug::keep_newest(&layout)).await??;
        }
        Ok(packed)
    }

    /// Stores a slug of this rm's folder in the shared storage, unless it is there.
    async fn share(&self, shared: &Storage, slug: &Slug) -> Result<(), StorageError> {
        let name = storage::slug(&slug.sha256);
        if shared.size(&name).await? == Some(slug.size_bytes) {
            return Ok(());
        }
        shared.put_file(&name, &self.layout.slug(&slug.sha256)).await
    }

    /// Stores a slug again that a sweep has removed while its rev was being registered.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn ensure(&self, slug: &Slug) -> Result<(), StorageError> {
        match &self.shared {
            Some(shared) if slug::is_stored(&self.layout, slug) => self.share(shared, slug).await,
            _ => Ok(()),
        }
    }

    /// Marks the slugs that no rev names, and removes those that have had their mark for this time. Returns how many
    /// files and objects were removed. Several rms may do this at once.
    ///
    /// # Errors
    /// [`NotStored`]; some may be removed.
    pub async fn sweep(&self, needed: BTreeSet<Digest>, time: Duration) -> Result<usize, NotStored> {
        let gone = match &self.shared {
            Some(shared) => sweep_shared(shared, &needed, time).await?,
            None => 0,
        };
        let layout = self.layout.clone();
        Ok(gone + tokio::task::spawn_blocking(move || slug::sweep(&layout, &needed, time)).await??)
    }

    /// Returns a slug, or `None` if there is none of this name. A stored slug is complete.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub async fn find(&self, sha256: &Digest, with_bytes: bool) -> Result<Option<Found>, Unreadable> {
        match tokio::fs::File::open(self.layout.slug(sha256)).await {
            Ok(file) => {
                let length = file.metadata().await?.len();
                let bytes = with_bytes.then(|| ReaderStream::with_capacity(file, CHUNK).boxed());
                Ok(Some(Found { length, bytes, is_passed_on: false }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => match &self.shared {
                Some(shared) => Ok(passed_on(shared, sha256, with_bytes).await?),
                None => Ok(None),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// Marks and removes slugs of the shared storage, as [`slug::sweep`] does on the disk.
async fn sweep_shared(
    shared: &Storage,
    needed: &BTreeSet<Digest>,
    time: Duration,
) -> Result<usize, StorageError> {
    let named = async |folder: &str, age: Duration| -> Result<BTreeSet<Digest>, StorageError> {
        let found = shared.litter(&Path::from(folder), age, |_| false).await?;
        Ok(found.iter().filter_map(|name| name.filename()?.parse().ok()).collect())
    };
    let slugs = named("slugs", Duration::ZERO).await?;
    let marked = named("unneeded", Duration::ZERO).await?;
    let over = named("unneeded", time).await?;
    let mut gone = 0;
    for sha256 in &slugs {
        let mark = storage::unneeded_slug(sha256);
        if needed.contains(sha256) {
            if marked.contains(sha256) {
                shared.remove(vec![mark]).await?;
            }
        } else if !marked.contains(sha256) {
            shared.put(&mark, Vec::new()).await?;
        } else if over.contains(sha256) && shared.size(&mark).await?.is_some() {
            shared.remove(vec![storage::slug(sha256), mark]).await?;
            gone += 1;
        }
    }
    let of_nothing = marked.difference(&slugs).map(storage::unneeded_slug);
    shared.remove(of_nothing.collect()).await?;
    Ok(gone)
}

/// Returns a slug of the shared storage.
async fn passed_on(
    shared: &Storage,
    sha256: &Digest,
    with_bytes: bool,
) -> Result<Option<Found>, StorageError> {
    let name = storage::slug(sha256);
    if !with_bytes {
        let length = shared.size(&name).await?;
        return Ok(length.map(|length| Found { length, bytes: None, is_passed_on: true }));
    }
    match shared.stream(&name).await {
        Ok((length, bytes)) => {
            let bytes = Some(bytes.map_err(io::Error::other).boxed());
            Ok(Some(Found { length, bytes, is_passed_on: true }))
        }
        Err(StorageError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
