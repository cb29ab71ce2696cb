//! Slugs: a built tree as one compressed archive, named by the SHA-256 of its bytes.
//!
//! Owns their format and their way into this rm's slug folder. The same tree makes the same bytes: entries are sorted,
//! and times, owners and all rights except the one to execute are dropped. A slug is written under another name, synced
//! and renamed, so that a file with a slug's name is complete after any crash.
//!
//! A build may have left anything in its tree, but none of its processes is left to change the tree. A slug holds
//! regular files, folders and links that stay inside. A file with several names becomes several files.

mod largest;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use visor::{names::Digest, schema::Slug};

use self::largest::Largest;
use crate::{
    layout::{self, Layout},
    tree::links,
};

/// The largest slug in bytes, as with Heroku.
pub const MAX_BYTES: u64 = 500_000_000;

/// The size in bytes from which the pusher is warned: each host fetches the slug before its first instance can start.
pub const WARN_BYTES: u64 = 300_000_000;

/// The largest total size of its files in bytes, for which each host must have room. Checked before anything is packed.
const MAX_UNPACKED_BYTES: u64 = 2_000_000_000;

/// The largest number of files, folders and links; hosts unpack no more.
const MAX_ENTRIES: usize = 500_000;

/// The largest depth of folders, which bounds the recursion.
const MAX_DEPTH: usize = 200;

/// The number of slugs kept on this rm if a shared storage has all of them.
const KEPT: usize = 32;

/// zstd's level: 3 keeps up with a disk, and a higher one costs each push more time than it saves a fetch.
const LEVEL: i32 = 3;

/// The reasons why a slug was not made.
#[derive(Debug, thiserror::Error)]
pub enum SlugError {
    /// The slug is too large.
    #[error(
        "the slug is larger than {} MB; leave out what needn't run (.slugignore). The largest in it: {}",
        MAX_BYTES / 1_000_000,
        .0
    )]
    TooLarge(Largest),
    /// The unpacked files are too large or too many.
    #[error(
        "the slug's files are larger than {} MB, or more than {MAX_ENTRIES}; leave out what needn't run (.slugignore). The largest: {}",
        MAX_UNPACKED_BYTES / 1_000_000,
        .0
    )]
    TooMuch(Largest),
    /// The build left a file of a kind that a slug can't hold.
    #[error("{} is a {kind}; an app may have regular files, folders and links", path.display())]
    Strange {
        /// The file's path.
        path: PathBuf,
        /// The file's kind.
        kind: &'static str,
    },
    /// The build left a link that leads out of the tree.
    #[error("{} is a symbolic link that leads out of the app: {}", .path.display(), .target.display())]
    LinkOut {
        /// The link's path.
        path: PathBuf,
        /// The link's target.
        target: PathBuf,
    },
    /// The pusher has left.
    #[error("the push was called off")]
    Cancelled,
    /// The disk failed.
    #[error("{what} failed: {source}")]
    Disk {
        /// The action that failed.
        what: String,
        /// The file system's error.
        #[source]
        source: io::Error,
    },
}

impl SlugError {
    fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> SlugError {
        let what = what.into();
        move |source| SlugError::Disk { what, source }
    }
}

/// The kind of a tree's entry.
enum Kind {
    Folder,
    File { executable: bool },
    Link(PathBuf),
}

/// A packed tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The slug.
    pub slug: Slug,
    /// Sockets that tools of the build have left, by path. Nobody listens on them any more, so they are left out.
    pub sockets: Vec<PathBuf>,
}

/// Packs a tree into this rm's slug folder.
///
/// # Errors
/// [`SlugError`]. No file is left in the folder then.
pub fn store(tree: &Path, layout: &Layout, cancelled: &CancellationToken) -> Result<Packed, SlugError> {
    store_within(tree, layout, cancelled, MAX_BYTES).map_err(|error| match error {
        SlugError::TooLarge(_) => SlugError::TooLarge(Largest::of(tree)),
        SlugError::TooMuch(_) => SlugError::TooMuch(Largest::of(tree)),
        other => other,
    })
}

fn store_within(
    tree: &Path,
    layout: &Layout,
    cancelled: &CancellationToken,
    most: u64,
) -> Result<Packed, SlugError> {
    let mut listing = Listing::default();
    listing.list(tree, Path::new(""), 0)?;
    let Listing { entries, sockets, .. } = listing;
    let found: BTreeMap<PathBuf, PathBuf> = entries
        .iter()
        .filter_map(|(path, kind)| match kind {
            Kind::Link(target) => Some((path.clone(), target.clone())),
            _ => None,
        })
        .collect();
    if let Some((path, target)) = links::first_out(&found) {
        return Err(SlugError::LinkOut { path, target });
    }
    let unfinished = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(layout.unfinished_slugs())
        .map_err(SlugError::disk("writing the slug"))?;
    let (mut file, unfinished) = unfinished.into_parts();
    let (sha256, size_bytes) = write(tree, &entries, &mut file, cancelled, most)?;
    file.sync_all().map_err(SlugError::disk("syncing the slug"))?;
    {
        let _alone = layout.slugs_alone();
        layout::remove(&layout.unneeded_slug(&sha256)).map_err(SlugError::disk("storing the slug"))?;
        unfinished
            .persist(layout.slug(&sha256))
            .map_err(|error| SlugError::disk("storing the slug")(error.error))?;
    }
    // Syncs the folder too, so that the name survives a power cut as the bytes do.
    File::open(layout.slugs())
        .and_then(|folder| folder.sync_all())
        .map_err(SlugError::disk("syncing the file storage"))?;
    Ok(Packed { slug: Slug { sha256, size_bytes }, sockets })
}

/// Returns a warning for the pusher if a slug of this size is large.
pub fn warning(size_bytes: u64) -> Option<String> {
    (size_bytes > WARN_BYTES).then(|| {
        let (size, most) = (size_bytes / 1_000_000, MAX_BYTES / 1_000_000);
        format!("the slug is {size} MB large, of {most} MB at most: each host must fetch that before it can start one")
    })
}

/// Removes all but the newest slugs from this rm's folder. Used with a shared storage; hosts mostly ask for the newest.
///
/// # Errors
/// If the disk fails.
pub fn keep_newest(layout: &Layout) -> Result<(), SlugError> {
    let failed = || SlugError::disk("clearing old slugs");
    let mut found = Vec::new();
    for entry in fs::read_dir(layout.slugs()).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let metadata = entry.metadata().map_err(failed())?;
        if metadata.is_file() {
            found.push((metadata.modified().map_err(failed())?, entry.path()));
        }
    }
    found.sort();
    for (_, path) in found.iter().rev().skip(KEPT) {
        layout::remove(path).map_err(failed())?;
    }
    Ok(())
}

/// Marks the slugs that no rev names, and removes those that have had their mark for this time. Returns how many.
///
/// # Errors
/// If the disk fails; some may be removed.
pub fn sweep(layout: &Layout, needed: &BTreeSet<Digest>, time: Duration) -> Result<usize, SlugError> {
    let failed = || SlugError::disk("removing old slugs");
    let mut gone = 0;
    let named = |path: PathBuf| -> Result<Vec<Digest>, SlugError> {
        let entries = fs::read_dir(path).map_err(failed())?;
        let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
        Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
    };
    for sha256 in named(layout.slugs())? {
        let mark = layout.unneeded_slug(&sha256);
        let _alone = layout.slugs_alone();
        if needed.contains(&sha256) {
            layout::remove(&mark).map_err(failed())?;
            continue;
        }
        match fs::metadata(&mark).and_then(|mark| mark.modified()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                drop(File::create(&mark).map_err(failed())?)
            }
            Err(error) => return Err(failed()(error)),
            Ok(at) if at.elapsed().is_ok_and(|age| age >= time) => {
                layout::remove(&layout.slug(&sha256)).map_err(failed())?;
                layout::remove(&mark).map_err(failed())?;
                gone += 1;
            }
            Ok(_) => {}
        }
    }
    for sha256 in named(layout.unneeded_slugs())? {
        let _alone = layout.slugs_alone();
        if !layout.slug(&sha256).exists() {
            layout::remove(&layout.unneeded_slug(&sha256)).map_err(failed())?;
        }
    }
    Ok(gone)
}

/// True if this rm has the slug. A slug was complete when it got its name.
pub fn is_stored(layout: &Layout, slug: &Slug) -> bool {
    fs::metadata(layout.slug(&slug.sha256)).is_ok_and(|file| file.len() == slug.size_bytes)
}

/// The contents of a tree.
#[derive(Default)]
struct Listing {
    entries: BTreeMap<PathBuf, Kind>,
    sockets: Vec<PathBuf>,
    bytes: u64,
}

impl Listing {
    fn list(&mut self, tree: &Path, at: &Path, depth: usize) -> Result<(), SlugError> {
        if depth > MAX_DEPTH {
            return Err(SlugError::TooMuch(Largest::default()));
        }
        let reading = |at: &Path| SlugError::disk(format!("reading {}", at.display()));
        for entry in fs::read_dir(tree.join(at)).map_err(reading(at))? {
            let entry = entry.map_err(reading(at))?;
            let path = at.join(entry.file_name());
            let metadata = entry.metadata().map_err(reading(&path))?;
            let kind = if metadata.is_dir() {
                self.list(tree, &path, depth + 1)?;
                Kind::Folder
            } else if metadata.is_symlink() {
                Kind::Link(fs::read_link(entry.path()).map_err(reading(&path))?)
            } else if metadata.is_file() {
                self.bytes = self.bytes.saturating_add(metadata.len());
                Kind::File { executable: metadata.permissions().mode() & 0o111 != 0 }
            } else if metadata.file_type().is_socket() {
                self.sockets.push(path);
                continue;
            } else {
                return Err(SlugError::Strange { path, kind: strange(metadata.file_type()) });
            };
            self.entries.insert(path, kind);
            if self.bytes > MAX_UNPACKED_BYTES || self.entries.len() + self.sockets.len() > MAX_ENTRIES {
                return Err(SlugError::TooMuch(Largest::default()));
            }
        }
        Ok(())
    }
}

fn strange(kind: fs::FileType) -> &'static str {
    if kind.is_fifo() { "pipe" } else { "device" }
}

fn write(
    tree: &Path,
    entries: &BTreeMap<PathBuf, Kind>,
    file: &mut File,
    cancelled: &CancellationToken,
    most: u64,
) -> Result<(Digest, u64), SlugError> {
    let hashing = Hashing { out: BufWriter::new(file), hash: Sha256::new(), bytes: 0, most };
    let writing = |error: io::Error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Full>()) {
        Some(Full) => SlugError::TooLarge(Largest::default()),
        None => SlugError::disk("writing the slug")(error),
    };
    let zstd = zstd::Encoder::new(hashing, LEVEL).map_err(writing)?;
    let mut archive = tar::Builder::new(zstd);
    for (path, kind) in entries {
        if cancelled.is_cancelled() {
            return Err(SlugError::Cancelled);
        }
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match kind {
            Kind::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                archive.append_data(&mut header, path, io::empty()).map_err(writing)?;
            }
            Kind::File { executable } => {
                let content = File::open(tree.join(path))
                    .map_err(SlugError::disk(format!("reading {}", path.display())))?;
                let length =
                    content.metadata().map_err(SlugError::disk(format!("reading {}", path.display())))?.len();
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                header.set_size(length);
                // No process of the build is left that could change the file's length.
                archive
                    .append_data(&mut header, path, BufReader::new(content).take(length))
                    .map_err(writing)?;
            }
            Kind::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                archive.append_link(&mut header, path, target).map_err(writing)?;
            }
        }
    }
    let zstd = archive.into_inner().map_err(writing)?;
    let mut hashing = zstd.finish().map_err(writing)?;
    hashing.flush().map_err(writing)?;
    let name: String = hashing.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((name.parse().expect("a SHA-256 in hexadecimal is a digest"), hashing.bytes))
}

/// A writer that hashes and counts the bytes.
struct Hashing<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
    most: u64,
}

/// The slug has become too large.
#[derive(Debug, thiserror::Error)]
#[error("the slug is too large")]
struct Full;

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        if self.bytes > self.most {
            return Err(io::Error::other(Full));
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(dir: &Path, names: &[&str]) {
        fs::create_dir(dir).expect("made");
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            if let Some(target) = name.strip_suffix(".link") {
                std::os::unix::fs::symlink(target, &path).expect("made");
            } else {
                fs::write(&path, name.repeat(100)).expect("written");
            }
        }
        fs::set_permissions(dir.join(names[0]), fs::Permissions::from_mode(0o4711)).expect("set");
    }

    #[test]
    fn the_same_tree_makes_the_same_bytes_whenever_it_was_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let names = ["bin/run", "z", "a/b/c", "a/b.link", "a.link"];
        tree(&dir.path().join("one"), &names);
        let reversed: Vec<&str> = std::iter::once(names[0]).chain(names[1..].iter().rev().copied()).collect();
        tree(&dir.path().join("two"), &reversed);
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::open(dir.path().join("two/z")).expect("it is there").set_modified(old).expect("set");
        let live = CancellationToken::new();
        let one = store(&dir.path().join("one"), &layout, &live).expect("stored").slug;
        let two = store(&dir.path().join("two"), &layout, &live).expect("stored").slug;
        assert_eq!(one, two);
        assert!(is_stored(&layout, &one));
        let bytes = fs::read(layout.slug(&one.sha256)).expect("it is there");
        let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((sum.as_str(), bytes.len() as u64), (one.sha256.as_str(), one.size_bytes));
        assert_eq!(fs::read_dir(layout.unfinished_slugs()).expect("it is there").count(), 0);

        let into = dir.path().join("out");
        let zstd = zstd::Decoder::new(&bytes[..]).expect("it is zstd");
        tar::Archive::new(zstd).unpack(&into).expect("it is tar");
        let mode = |name: &str| fs::metadata(into.join(name)).expect(name).permissions().mode() & 0o7777;
        assert_eq!((mode("bin/run"), mode("z")), (0o755, 0o644), "no setuid bit is kept");
        assert_eq!(fs::read(into.join("a/b/c")).expect("it is there"), b"a/b/c".repeat(100));
        assert_eq!(fs::read_link(into.join("a.link")).expect("it is a link"), Path::new("a"));
    }

    #[test]
    fn what_a_slug_can_not_hold_is_refused_by_its_name_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let app = dir.path().join("app");
        tree(&app, &["file"]);
        let refused = |most: u64| {
            let error = store_within(&app, &layout, &CancellationToken::new(), most).expect_err("refused");
            let left = fs::read_dir(layout.unfinished_slugs()).expect("it is there").count();
            assert_eq!((left, fs::read_dir(layout.slugs()).expect("it is there").count()), (0, 1));
            error.to_string()
        };
        let pipe = app.join("a.pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(refused(MAX_BYTES).starts_with("a.pipe is a pipe;"));
        fs::remove_file(&pipe).expect("it is there");
        let sparse = File::create(app.join("sparse")).expect("made");
        sparse.set_len(MAX_UNPACKED_BYTES).expect("it holds nothing");
        let error = refused(MAX_BYTES);
        assert!(error.contains("larger than 2000 MB"), "{error}");
        fs::remove_file(app.join("sparse")).expect("it is there");
        assert!(refused(50).contains("the slug is larger than 500 MB"));
        let deep = (0..=MAX_DEPTH).fold(app.join("d"), |path, _| path.join("d"));
        fs::create_dir_all(deep).expect("made");
        refused(MAX_BYTES);
    }

    #[test]
    fn a_socket_is_left_out_and_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let trees = ["one", "two"].map(|name| dir.path().join(name));
        for tree_of in &trees {
            tree(tree_of, &["bin/run"]);
        }
        let _socket = std::os::unix::net::UnixListener::bind(trees[1].join("bin/a.sock")).expect("made");
        let [one, two] = trees.map(|tree| store(&tree, &layout, &CancellationToken::new()).expect("stored"));
        assert_eq!((one.sockets.len(), two.sockets), (0, vec![PathBuf::from("bin/a.sock")]));
        assert_eq!(one.slug, two.slug);
    }

    #[test]
    fn a_file_with_two_names_becomes_two_and_a_large_slug_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let live = CancellationToken::new();
        tree(&dir.path().join("one"), &["a", "b"]);
        fs::write(dir.path().join("one/b"), "a".repeat(100)).expect("written");
        fs::set_permissions(dir.path().join("one/b"), fs::Permissions::from_mode(0o755)).expect("set");
        tree(&dir.path().join("two"), &["a"]);
        fs::hard_link(dir.path().join("two/a"), dir.path().join("two/b")).expect("made");
        let one = store(&dir.path().join("one"), &layout, &live).expect("stored");
        assert_eq!(one, store(&dir.path().join("two"), &layout, &live).expect("stored"));
        assert_eq!(warning(WARN_BYTES), None);
        let told = warning(WARN_BYTES + 1_000_000).expect("it is large");
        assert!(told.contains("301 MB large, of 500 MB at most"), "{told}");
    }

    #[test]
    fn a_link_out_or_a_called_off_push_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::open(&dir.path().join("state")).expect("made");
        let app = dir.path().join("app");
        tree(&app, &["file"]);
        let off = CancellationToken::new();
        off.cancel();
        assert!(matches!(store(&app, &layout, &off), Err(SlugError::Cancelled)));
        std::os::unix::fs::symlink("/usr/bin/env", app.join("env")).expect("made");
        let error = store(&app, &layout, &CancellationToken::new()).expect_err("refused").to_string();
        assert!(error.contains("env is a symbolic link that leads out of the app: /usr/bin/env"), "{error}");
        let left = |dir: PathBuf| fs::read_dir(dir).expect("it is there").count();
        assert_eq!((left(layout.unfinished_slugs()), left(layout.slugs())), (0, 1));
    }
}
