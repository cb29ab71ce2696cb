//! The bounded folders of a sandbox that lie on the host's disk: the layer over `/app`, and `/tmp`.
//!
//! Owns the images. Each is a sparse file with an ext4 file system, copied from a template of its size, without a name
//! from the first moment on, and behind a loop device that the kernel releases with the last mount. So nothing of them
//! is left, however their processes end. An image bounds bytes and files, its content counts to no memory, and a write
//! past its end is ENOSPC.
//!
//! ```text
//! pm      template(size)            once for each size: mkfs.ext4 in the state folder
//! shim    Disk::open                a copy of the template without a name; for /app a user namespace for its users
//! init    mount, over_slug          a loop device, ext4; for /app an overlay over the slug, whose files are the app's
//! ```

mod idmap;
mod loops;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{Whence, ftruncate, lseek},
};
use rustix::fs::copy_file_range;

use crate::protocol::Image;

/// The size of a disk unless it is set.
pub const USUAL_BYTES: u64 = 512 << 20;

/// The smallest image: below it a file system has no room for its own tables.
const LEAST_BYTES: u64 = 16 << 20;

/// The bytes of an image for each file that it can hold, and the bounds of that number.
const BYTES_FOR_A_FILE: u64 = 16 << 10;
const FILES: (u64, u64) = (1_024, 262_144);

/// The free bytes below which a file system counts as full, and the part of it: a write that is refused leaves as much.
const FULL_BELOW: u64 = 1 << 20;
const FULL_PART: u64 = 256;

/// The folders in an image: the one with the content, and one for the overlay's own use. They are made with the image,
/// because to make or remove a folder at each start takes milliseconds.
const OWN: &str = "own";
const WORK: &str = "work";

/// The names of folders in the root while it is made.
const DISK: &str = ".disk";
const SLUG: &str = ".slug";

/// A step on the way to a disk that the kernel or the file system refuses.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum DiskError {
    #[error("can't make a file system with mkfs.ext4 in {}", path.display())]
    Template { path: PathBuf, source: io::Error },
    #[error("can't make a copy of {}", path.display())]
    Copy { path: PathBuf, source: io::Error },
    #[error("can't map its users")]
    Users(#[source] io::Error),
    #[error("can't use a loop device")]
    Loop(#[source] io::Error),
    #[error("can't mount its {what}")]
    Mount { what: &'static str, source: Errno },
    #[error("can't use its {what}")]
    Folder { what: &'static str, source: io::Error },
}

/// Returns a template with a file system of so many bytes, made in the folder unless it is there. Blocks.
///
/// # Errors
/// [`DiskError::Template`].
pub fn template(folder: &Path, bytes: u64) -> Result<Image, DiskError> {
    let bytes = (bytes.max(LEAST_BYTES) >> 20) << 20;
    let path = folder.join(format!("{}M.ext4", bytes >> 20));
    let failed = |source| DiskError::Template { path: path.clone(), source };
    if fs::metadata(&path).is_ok_and(|known| known.len() == bytes) {
        return Ok(Image { template: path });
    }
    fs::create_dir_all(folder).map_err(failed)?;
    let draft = path.with_extension("new");
    let made = || -> io::Result<()> {
        let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
        file.set_len(bytes)?;
        let skeleton = folder.join("skeleton");
        for name in [OWN, WORK] {
            fs::create_dir_all(skeleton.join(name))?;
            fs::set_permissions(skeleton.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let files = (bytes / BYTES_FOR_A_FILE).clamp(FILES.0, FILES.1);
        let made = Command::new("mkfs.ext4")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args([
                "-q",
                "-F",
                "-O",
                "^has_journal,^resize_inode",
                "-E",
                "lazy_itable_init=1,nodiscard",
                "-m",
                "0",
                "-N",
            ])
            .arg(files.to_string())
            .arg("-d")
            .arg(&skeleton)
            .arg(&draft)
            .stdin(Stdio::null())
            .output()?;
        if !made.status.success() {
            let words = String::from_utf8_lossy(&made.stderr);
            return Err(io::Error::other(words.lines().next().unwrap_or("mkfs.ext4 failed").to_owned()));
        }
        fs::rename(&draft, &path)
    };
    made().map_err(failed)?;
    Ok(Image { template: path })
}

/// A disk that an instance is about to have.
pub struct Disk {
    image: File,
}

/// A layer that an instance is about to have over its slug.
pub struct Layer {
    disk: Disk,
    /// The user namespace in which the slug's files are those of the instance's user.
    users: OwnedFd,
}

impl Disk {
    /// Makes a copy of the template, which has no name and goes with its last user.
    ///
    /// # Errors
    /// [`DiskError::Copy`].
    pub fn open(image: &Image) -> Result<Disk, DiskError> {
        let path = &image.template;
        copy_of(path)
            .map(|image| Disk { image })
            .map_err(|source| DiskError::Copy { path: path.clone(), source })
    }

    /// Returns the descriptor.
    pub fn file(&self) -> &File {
        &self.image
    }

    /// Mounts it as `/tmp`. The current folder is the new root.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn as_tmp(&self, target: &str) -> Result<(), DiskError> {
        let what = "/tmp";
        self.mount(what)?;
        let own = format!("{DISK}/{OWN}");
        let at = |source| DiskError::Folder { what, source };
        fs::set_permissions(&own, fs::Permissions::from_mode(0o1777)).map_err(at)?;
        let none: Option<&str> = None;
        let failed = |source| DiskError::Mount { what, source };
        mount(Some(own.as_str()), target, none, MsFlags::MS_BIND, none).map_err(failed)?;
        leave(DISK, what)
    }

    /// Mounts the whole image on a folder that is made for it.
    fn mount(&self, what: &'static str) -> Result<(), DiskError> {
        fs::create_dir(DISK).map_err(|source| DiskError::Folder { what, source })?;
        let (device, path) = loops::attach(&self.image).map_err(DiskError::Loop)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        // The content ends with the instance, so no write has to be safe from a power failure.
        let mounted = mount(Some(&path), DISK, Some("ext4"), flags, Some("discard,barrier=0"));
        drop(device);
        mounted.map_err(|source| DiskError::Mount { what, source })
    }
}

/// Takes a mount away that others are made of, with its folder.
fn leave(folder: &str, what: &'static str) -> Result<(), DiskError> {
    umount2(folder, MntFlags::MNT_DETACH).map_err(|source| DiskError::Mount { what, source })?;
    fs::remove_dir(folder).map_err(|source| DiskError::Folder { what, source })
}

impl Layer {
    /// Makes a layer for an instance of this user. The calling process must have one thread.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(image: &Image, uid: u32) -> Result<Layer, DiskError> {
        let users = idmap::of_root_as(uid).map_err(DiskError::Users)?;
        Ok(Layer { disk: Disk::open(image)?, users })
    }

    /// Returns the descriptors.
    pub fn files(&self) -> [&dyn AsFd; 2] {
        [&self.disk.image, &self.users]
    }

    /// Mounts the slug on a folder, with this layer over it. The current folder is the new root.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn over_slug(&self, slug: &Path, target: &str, uid: u32) -> Result<(), DiskError> {
        let what = "writable layer";
        let at = |source| DiskError::Folder { what, source };
        self.disk.mount(what)?;
        let (upper, work) = (format!("{DISK}/{OWN}"), format!("{DISK}/{WORK}"));
        chown(&upper, Some(uid), Some(uid)).map_err(at)?;
        fs::create_dir(SLUG).map_err(at)?;
        idmap::bind(slug, SLUG, self.users.as_fd())
            .map_err(|source| DiskError::Mount { what: "slug", source })?;
        let options = format!("lowerdir={SLUG},upperdir={upper},workdir={work},redirect_dir=on,volatile");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        let failed = |source| DiskError::Mount { what, source };
        mount(Some("app"), target, Some("overlay"), flags, Some(options.as_str())).map_err(failed)?;
        // The overlay holds what it is made of.
        leave(DISK, what)?;
        leave(SLUG, what)
    }
}

/// Reports whether the file system at a path has no room left, for bytes or for files.
pub fn is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|room| {
        let (all, free) = (room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize);
        free < FULL_BELOW.max(all / FULL_PART) || room.f_favail == 0
    })
}

fn copy_of(template: &Path) -> io::Result<File> {
    let source = File::open(template)?;
    let length = source.metadata()?.len();
    let folder = template.parent().unwrap_or(Path::new("/"));
    let copy =
        File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder)?;
    ftruncate(&copy, i64::try_from(length).map_err(io::Error::other)?)?;
    let mut at = 0;
    // Only what mkfs has written is copied: some 64 KiB.
    loop {
        let begin = match lseek(&source, at, Whence::SeekData) {
            Ok(begin) => begin,
            Err(Errno::ENXIO) => return Ok(copy),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(&source, begin, Whence::SeekHole)?;
        let (mut from, mut to) = (begin.unsigned_abs(), begin.unsigned_abs());
        while from < end.unsigned_abs() {
            let left = usize::try_from(end.unsigned_abs() - from).map_err(io::Error::other)?;
            if copy_file_range(&source, Some(&mut from), &copy, Some(&mut to), left)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_of_a_template_is_the_same_takes_little_and_has_no_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let Ok(image) = template(dir.path(), 40 << 20) else {
            panic!("mkfs.ext4 is missing: apt-get install e2fsprogs");
        };
        let copy = Disk::open(&image).expect("there is room");
        let (meta, of) =
            (copy.image.metadata().expect("it is open"), fs::metadata(&image.template).expect("it is there"));
        assert_eq!((meta.len(), meta.nlink()), (40 << 20, 0));
        assert!(meta.blocks() <= of.blocks() && of.blocks() * 512 < 1 << 20, "{} blocks", of.blocks());
        let read = |mut file: &File| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes).map(|_| bytes).expect("it can be read")
        };
        let source = File::open(&image.template).expect("it is there");
        let copied = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy.image)));
        assert!(read(&source) == read(&copied.expect("it is open")));
        // The template and the skeleton.
        assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 2);
    }

    #[test]
    fn a_template_is_made_once_for_each_size_and_none_is_too_small() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |bytes| template(dir.path(), bytes).expect("mkfs.ext4 is there").template;
        let first = path(1);
        assert_eq!(fs::metadata(&first).expect("it is there").len(), LEAST_BYTES);
        let made = fs::metadata(&first).expect("it is there").mtime_nsec();
        assert_eq!(path(LEAST_BYTES + 5), first);
        assert_eq!(fs::metadata(&first).expect("it is there").mtime_nsec(), made);
        assert_ne!(path(32 << 20), first);
    }
}
