//! Unpacking a slug: tar + zstd into a folder, safely.
//!
//! Owns what a slug may contain: files, folders, and links that stay inside or lead to the system's own programs. A
//! hostile archive is rejected, and nothing is ever written outside the folder.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use tar::EntryType;

/// The most bytes of an unpacked slug.
const MOST_BYTES: u64 = 8 << 30;

/// The most files of a slug.
const MOST_ENTRIES: usize = 500_000;

/// The reason why a slug can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is broken.
    #[error("the archive is incomplete")]
    Broken(#[source] io::Error),
    /// The archive contains a forbidden entry.
    #[error("it holds {what}: {}", path.display())]
    Forbidden {
        /// The kind of entry.
        what: &'static str,
        /// The entry's path.
        path: PathBuf,
    },
    /// The archive is larger than allowed.
    #[error("it is too large when unpacked")]
    TooLarge,
    /// A file can't be written here.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Unpacks an archive into an existing, empty folder. After a failure the caller removes what was unpacked.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(archive: impl io::Read, into: &Path) -> Result<(), UnpackError> {
    let decoder = zstd::Decoder::new(archive).map_err(UnpackError::Broken)?;
    let mut archive = tar::Archive::new(decoder);
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(false);
    archive.set_unpack_xattrs(false);
    archive.set_overwrite(false);
    let (mut bytes, mut entries) = (0_u64, 0_usize);
    let (mut folders, mut links) = (Vec::new(), Vec::new());
    for entry in archive.entries().map_err(UnpackError::Broken)? {
        let mut entry = entry.map_err(UnpackError::Broken)?;
        let path = entry.path().map_err(UnpackError::Broken)?.into_owned();
        let forbidden = |what| UnpackError::Forbidden { what, path: path.clone() };
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if bytes > MOST_BYTES || entries > MOST_ENTRIES {
            return Err(UnpackError::TooLarge);
        }
        if !is_inside(&path) {
            return Err(forbidden("a path that leads out of it"));
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            EntryType::Symlink => {
                let target = entry.link_name().map_err(UnpackError::Broken)?;
                if !target.is_some_and(|target| link_may_lead(&path, &target)) {
                    return Err(forbidden("a link that leads out of it"));
                }
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(UnpackError::Broken)?;
                if !target.is_some_and(|target| is_inside(&target)) {
                    return Err(forbidden("a link that leads out of it"));
                }
            }
            _ => return Err(forbidden("something that is no file, folder or link")),
        }
        match entry.unpack_in(into) {
            Ok(true) => {}
            Ok(false) => return Err(forbidden("a path that leads out of it")),
            Err(error) => return Err(unpack_failed(error, into.join(&path))),
        }
        match kind {
            EntryType::Directory => folders.push(into.join(&path)),
            EntryType::Symlink => links.push(path),
            _ => {}
        }
    }
    // A link through another link may seem to stay inside by its text alone.
    if let Some(path) = links.into_iter().find(|path| leads_out(into, path)) {
        return Err(UnpackError::Forbidden { what: "a link that leads out of it", path });
    }
    // The folder is shared, so it is read-only for everyone. Deepest folders first, because each must stay reachable.
    folders.sort_unstable();
    for folder in folders.iter().rev() {
        let closed = fs::Permissions::from_mode(0o555);
        fs::set_permissions(folder, closed)
            .map_err(|source| UnpackError::Write { path: folder.clone(), source })?;
    }
    Ok(())
}

/// Distinguishes a full disk from a broken archive.
fn unpack_failed(error: io::Error, path: PathBuf) -> UnpackError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            // The library keeps a cause's kind and loses its error number.
            let number = match io.kind() {
                io::ErrorKind::StorageFull => Some(nix::errno::Errno::ENOSPC as i32),
                _ => io.raw_os_error(),
            };
            if let Some(number) = number {
                return UnpackError::Write { path, source: io::Error::from_raw_os_error(number) };
            }
        }
        source = cause.source();
    }
    UnpackError::Broken(error)
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Reports whether a symbolic link at `path` may point to `target`: inside the slug, or to a program of the system (as
/// a Python environment's interpreter does).
fn link_may_lead(path: &Path, target: &Path) -> bool {
    if target.is_absolute() {
        let inside = target.components().all(|part| part != Component::ParentDir);
        return inside && (target.starts_with("/usr") || target.starts_with("/bin"));
    }
    let mut depth = path.parent().map_or(0, |parent| parent.components().count());
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// Reports whether an unpacked link leads to a place outside the slug that isn't the system's.
fn leads_out(into: &Path, link: &Path) -> bool {
    let (Ok(root), Ok(target)) = (fs::canonicalize(into), fs::canonicalize(into.join(link))) else {
        // The link leads to nothing.
        return false;
    };
    ![root.as_path(), Path::new("/usr"), Path::new("/bin")].iter().any(|place| target.starts_with(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds an archive of these entries: path, kind, link target or content.
    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written by hand, because the library refuses to make some of these.
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if is_link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let body = if is_link { &[] } else { content.as_bytes() };
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body).expect("it is in memory");
        }
        let tar = builder.into_inner().expect("it is in memory");
        zstd::encode_all(&tar[..], 3).expect("it is in memory")
    }

    #[test]
    fn a_slug_is_unpacked_read_only_with_its_links_and_no_more_rights_than_it_needs() {
        let dir = tempfile::tempdir().expect("a folder");
        let bytes = archive(&[
            ("bin/", EntryType::Directory, ""),
            ("bin/run", EntryType::Regular, "#!/bin/sh\n"),
            ("bin/again", EntryType::Symlink, "run"),
            ("bin/python3", EntryType::Symlink, "/usr/bin/python3"),
            ("same", EntryType::Link, "bin/run"),
        ]);
        unpack(&bytes[..], dir.path()).expect("it is fine");
        let mode = |path: &str| {
            fs::metadata(dir.path().join(path)).expect("it is there").permissions().mode() & 0o7777
        };
        assert_eq!((mode("bin"), mode("bin/run"), mode("same")), (0o555, 0o755, 0o755));
        assert_eq!(fs::read_link(dir.path().join("bin/again")).expect("a link"), Path::new("run"));
        crate::files::remove_all(&dir.path().join("bin")).expect("it can be removed");
    }

    #[test]
    fn a_hostile_archive_writes_nothing_outside() {
        for entries in [
            &[("../out", EntryType::Regular, "x")][..],
            &[("/tmp/bazooka-out", EntryType::Regular, "x")],
            &[("a/../../out", EntryType::Regular, "x")],
            &[("link", EntryType::Symlink, "../.."), ("link/out", EntryType::Regular, "x")],
            &[("link", EntryType::Symlink, "/etc"), ("link/out", EntryType::Regular, "x")],
            &[("link", EntryType::Symlink, "/usr/../etc/passwd")],
            &[
                ("a/b/", EntryType::Directory, ""),
                ("a/b/up", EntryType::Symlink, "../.."),
                ("link", EntryType::Symlink, "a/b/up/.."),
            ],
            &[("link", EntryType::Symlink, "/usr"), ("link/bazooka-out", EntryType::Regular, "x")],
            &[("link", EntryType::Link, "../secret")],
            &[("link", EntryType::Link, "/etc/passwd")],
            &[("device", EntryType::Char, "")],
            &[("pipe", EntryType::Fifo, "")],
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let into = dir.path().join("into");
            fs::create_dir(&into).expect("it can be made");
            let refused = unpack(&archive(entries)[..], &into);
            assert!(refused.is_err(), "{entries:?}");
            assert!(!dir.path().join("out").exists(), "{entries:?}");
            assert!(!Path::new("/usr/bazooka-out").exists(), "{entries:?}");
        }
    }

    #[test]
    fn half_an_archive_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let bytes = archive(&[("file", EntryType::Regular, &"x".repeat(100_000))]);
        let refused = unpack(&bytes[..bytes.len() / 2], dir.path());
        assert!(matches!(refused, Err(UnpackError::Broken(_))), "{refused:?}");
    }
}
