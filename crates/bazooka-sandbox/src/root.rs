//! An instance's root: a small tree in memory, on which the machine's programs and the slug are mounted.
//!
//! Owns the mounts. All are in a mount namespace that ends with the instance. The tree itself is read-only once it is
//! complete.
//!
//! ```text
//! /usr /bin /sbin /lib*   of the machine, or all folders of a stack   read-only
//! /etc                    what bazooka-pm put together, or the stack's with the machine's names   read-only
//! /app                    the slug, with a layer of its own over it   read-only without one, unless it is being built
//! /tmp                    its own, sized; /var/tmp is the same
//! /dev/shm                its own, in memory
//! /sys/fs/cgroup          its own control groups                      read-only
//! /proc                   its own processes; entries that reveal or change the machine are masked or read-only
//! /dev                    null zero full random urandom tty, and terminals of its own
//! mounts                  other named folders and files, same paths   read-only, unless named as writable
//! ```

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{chdir, pivot_root},
};

use crate::{
    disks::{Disk, DiskError, Layer},
    protocol::{Group, LaunchSpec, Mount, SandboxSpec},
};

/// The name of the folder with the slug, in the root.
pub const APP: &str = "app";

/// The folders of the machine that the root has.
const OF_THE_MACHINE: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// The folders of a stack that are not mounted: others take their place, or they are of no use.
const NOT_OF_A_STACK: [&str; 11] =
    ["app", "boot", "dev", "etc", "lost+found", "media", "mnt", "proc", "run", "sys", "tmp"];

/// The devices: name, major and minor number.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The hidden entries of `/proc`, as in every container: they reveal the machine. Those of file systems and buses are
/// hidden for one more reason: a read of one of them keeps a processor in the kernel for up to 3 ms, and most kernels of
/// servers let nobody else run meanwhile.
const MASKED: [&str; 10] =
    ["acpi", "asound", "bus", "fs", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi"];

/// The read-only entries of `/proc`: they can change the machine.
const READ_ONLY: [&str; 3] = ["irq", "sys", "sysrq-trigger"];

/// The size of `/dev/shm`, which is memory, as in other containers.
const SHARED_MEMORY: &str = "mode=1777,size=64m,nr_inodes=16384";

/// The disks that an instance is about to have.
#[derive(Default)]
pub struct Disks {
    /// The layer over the slug.
    pub app: Option<Layer>,
    /// `/tmp`.
    pub tmp: Option<Disk>,
}

impl Disks {
    /// Makes the disks that a sandbox asks for. The calling process must have one thread.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(sandbox: &SandboxSpec, uid: u32) -> Result<Disks, DiskError> {
        Ok(Disks {
            app: sandbox.app_disk.as_ref().map(|image| Layer::open(image, uid)).transpose()?,
            tmp: sandbox.tmp_disk.as_ref().map(Disk::open).transpose()?,
        })
    }

    /// Returns the descriptors of the disks.
    pub fn files(&self) -> Vec<RawFd> {
        let app = self.app.iter().flat_map(|layer| layer.files().map(|file| file.as_fd().as_raw_fd()));
        app.chain(self.tmp.iter().map(|disk| disk.file().as_raw_fd())).collect()
    }
}

/// A step on the way to an instance's root that the kernel or the file system refuses.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum RootError {
    #[error("can't make its root: {what}")]
    Enter { what: &'static str, source: Errno },
    #[error("can't read {}", base.display())]
    Base { base: PathBuf, source: io::Error },
    #[error("can't make its root: {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("can't make its root: {} as {}", from.display(), to.display())]
    Bind { from: PathBuf, to: PathBuf, source: Errno },
    #[error("can't make its root: {path}")]
    Special { path: String, source: Errno },
    #[error("can't make its root")]
    Disk(#[from] DiskError),
}

/// Builds the root and enters it. The calling process must have a mount namespace and a process namespace of its own.
///
/// # Errors
/// [`RootError`]; the process can't be used then.
pub fn enter(spec: &LaunchSpec, sandbox: &SandboxSpec, disks: &Disks) -> Result<(), RootError> {
    let at = |what: &'static str| move |source: Errno| RootError::Enter { what, source };
    let none: Option<&str> = None;
    // Private mounts: none of these reaches the machine, and later mounts of the machine don't reach this namespace.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(at("own mounts"))?;
    let tree = Some("mode=755,size=256k,nr_inodes=256");
    mount(Some("root"), &sandbox.root, Some("tmpfs"), MsFlags::MS_NOSUID, tree).map_err(at("its tree"))?;
    chdir(&sandbox.root).map_err(at("its tree"))?;

    of_base(sandbox)?;
    folder(APP)?;
    match (&disks.app, spec.uid) {
        (Some(layer), Some(uid)) => layer.over_slug(&spec.folder, APP, uid)?,
        _ => bind(&spec.folder, APP, sandbox.app_writable)?,
    }
    tmp(sandbox, disks)?;
    own_files(spec)?;
    if sandbox.shows_groups {
        groups(&spec.all_groups())?;
    }
    if sandbox.etc.is_none() {
        over_stack()?;
    }
    devices()?;
    proc()?;
    let sources = sources(&sandbox.mounts)?;

    pivot_root(".", ".").map_err(at("entering it"))?;
    // Only after the pivot do symbolic links lead to files of this root. The machine's tree is still mounted below.
    for (source, Mount { path, writable }) in sources {
        mount_point(path, source.metadata().is_ok_and(|known| known.is_dir()))?;
        bind(Path::new(&format!("/proc/self/fd/{}", source.as_raw_fd())), path, *writable)?;
    }
    umount2(".", MntFlags::MNT_DETACH).map_err(at("leaving the machine's"))?;
    chdir("/").map_err(at("entering it"))?;
    let closed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(none, "/", none, closed, none).map_err(at("closing it"))
}

/// Mounts the folders of the machine or of the stack.
fn of_base(sandbox: &SandboxSpec) -> Result<(), RootError> {
    let SandboxSpec { base, etc, .. } = sandbox;
    let names: Vec<PathBuf> = if base == Path::new("/") {
        OF_THE_MACHINE.iter().map(PathBuf::from).collect()
    } else {
        let listed = fs::read_dir(base);
        let listed = listed.map_err(|source| RootError::Base { base: base.clone(), source })?;
        let names = listed.filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name())));
        names.filter(|name| !NOT_OF_A_STACK.iter().any(|not| name == Path::new(not))).collect()
    };
    for name in names {
        let source = base.join(&name);
        let Ok(known) = fs::symlink_metadata(&source) else { continue };
        let made = if known.is_symlink() {
            fs::read_link(&source).and_then(|target| symlink(target, &name))
        } else if known.is_dir() {
            folder(&name)?;
            bind(&source, &name, false)?;
            Ok(())
        } else {
            Ok(())
        };
        made.map_err(|source| RootError::Make { path: Path::new("/").join(&name), source })?;
    }
    folder("etc")?;
    let etc = etc.clone().unwrap_or_else(|| base.join("etc"));
    if etc.is_dir() { bind(&etc, "etc", false) } else { Ok(()) }
}

fn tmp(sandbox: &SandboxSpec, disks: &Disks) -> Result<(), RootError> {
    folder("tmp")?;
    match &disks.tmp {
        Some(disk) => Ok(disk.as_tmp("tmp")?),
        None => {
            let size = format!("mode=1777,size={},nr_inodes=16384", sandbox.tmp_bytes);
            memory("tmp", &size)
        }
    }
}

/// Mounts a file system in memory.
fn memory(target: &str, options: &str) -> Result<(), RootError> {
    let private = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmp"), target, Some("tmpfs"), private, Some(options)).map_err(special(target))
}

/// Shows the instance its own control groups, at the paths where programs look for them.
///
/// The namespace makes its groups the roots of what `/proc` tells of them. A controller in whose hierarchy the instance has
/// no group stays hidden, because its files would be the daemon's.
fn groups(groups: &[Group]) -> Result<(), RootError> {
    if unshare(CloneFlags::CLONE_NEWCGROUP).is_err() {
        // A kernel without the namespace: programs would look for their groups at paths that aren't here.
        return Ok(());
    }
    folder("sys/fs/cgroup")?;
    let is_whole = |group: &&Group| group.version == 2 && !group.settings.is_empty();
    if let Some(group) = groups.iter().find(is_whole) {
        return bind(&group.folder, "sys/fs/cgroup", false);
    }
    for group in groups.iter().filter(|group| group.version == 1) {
        // HIERARCHY/bazooka/OWN/ID; a hierarchy of several controllers has them in its name: `cpu,cpuacct`.
        let Some(hierarchy) = group.folder.ancestors().nth(3).and_then(Path::file_name) else { continue };
        let target = Path::new("sys/fs/cgroup").join(hierarchy);
        folder(&target)?;
        bind(&group.folder, &target, false)?;
        let names = hierarchy.to_string_lossy().into_owned();
        for name in names.split(',').filter(|name| **name != *names) {
            made(&target, symlink(hierarchy, target.with_file_name(name)))?;
        }
    }
    Ok(())
}

/// Writes the files that differ for each instance.
fn own_files(spec: &LaunchSpec) -> Result<(), RootError> {
    let made = |path: &str, done: io::Result<()>| made(Path::new(path), done);
    for name in ["run", "run/bazooka", "dev"] {
        folder(name)?;
    }
    if !Path::new("var").exists() {
        folder("var")?;
        made("var/tmp", symlink("/tmp", "var/tmp"))?;
    }
    let uid = spec.uid.unwrap_or(0);
    let users = format!(
        "root:x:0:0:root:/:/bin/sh\napp:x:{uid}:{uid}:app:/{APP}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    );
    made("run/bazooka/passwd", fs::write("run/bazooka/passwd", users))?;
    let groups = format!("root:x:0:\napp:x:{uid}:\ntty:x:5:\nnogroup:x:65534:\n");
    made("run/bazooka/group", fs::write("run/bazooka/group", groups))
}

/// Replaces a stack's users, groups, hosts and resolver by the instance's own. A symbolic link there is left alone.
fn over_stack() -> Result<(), RootError> {
    for (source, target) in [
        ("run/bazooka/passwd", "etc/passwd"),
        ("run/bazooka/group", "etc/group"),
        ("/etc/hosts", "etc/hosts"),
        ("/etc/resolv.conf", "etc/resolv.conf"),
    ] {
        let is_file = fs::symlink_metadata(target).is_ok_and(|known| known.is_file());
        if is_file && Path::new(source).exists() {
            bind(Path::new(source), target, false)?;
        }
    }
    Ok(())
}

fn devices() -> Result<(), RootError> {
    for (name, major, minor) in DEVICES {
        let path = format!("dev/{name}");
        let all = Mode::from_bits_truncate(0o666);
        mknod(path.as_str(), SFlag::S_IFCHR, all, makedev(major, minor)).map_err(special(&path))?;
        // Set explicitly, because `mknod` applies the umask.
        made(Path::new(&path), fs::set_permissions(&path, fs::Permissions::from_mode(0o666)))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let path = format!("dev/{name}");
        made(Path::new(&path), symlink(target, &path))?;
    }
    folder("dev/shm")?;
    memory("dev/shm", SHARED_MEMORY)?;
    folder("dev/pts")?;
    let own = Some("newinstance,ptmxmode=0666,mode=0620,gid=5");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), "dev/pts", Some("devpts"), flags, own).map_err(special("dev/pts"))
}

fn proc() -> Result<(), RootError> {
    folder("proc")?;
    let none: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "proc", Some("proc"), flags, none).map_err(special("proc"))?;
    let nothing = Path::new("run/bazooka/nothing");
    made(nothing, fs::DirBuilder::new().mode(0o000).create(nothing))?;
    for name in MASKED {
        let path = format!("proc/{name}");
        let Ok(known) = fs::metadata(&path) else { continue };
        bind(if known.is_dir() { nothing } else { Path::new("dev/null") }, &path, false)?;
    }
    for name in READ_ONLY {
        let path = format!("proc/{name}");
        if Path::new(&path).exists() {
            bind(Path::new(&path), &path, false)?;
        }
    }
    Ok(())
}

fn special(path: &str) -> impl Fn(Errno) -> RootError {
    move |source| RootError::Special { path: format!("/{path}"), source }
}

/// Adds the path in the root to an error.
fn made(path: &Path, done: io::Result<()>) -> Result<(), RootError> {
    done.map_err(|source| RootError::Make { path: Path::new("/").join(path), source })
}

fn folder(name: impl AsRef<Path>) -> Result<(), RootError> {
    let name = name.as_ref();
    made(name, fs::DirBuilder::new().mode(0o755).recursive(true).create(name))
}

/// Opens the mounts' sources while their paths can still be reached. Symbolic links are not followed.
fn sources(mounts: &[Mount]) -> Result<Vec<(File, &Mount)>, RootError> {
    let held = |mount: &Mount| {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let opened = File::options().read(true).custom_flags(flags).open(&mount.path);
        opened.map_err(|source| RootError::Make { path: mount.path.clone(), source })
    };
    mounts.iter().map(|mount| Ok((held(mount)?, mount))).collect()
}

/// Creates a mount point unless it exists.
fn mount_point(path: &Path, is_folder: bool) -> Result<(), RootError> {
    if is_folder {
        return folder(path);
    }
    if path.exists() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), folder)?;
    made(path, fs::write(path, ""))
}

/// Mounts a folder or file at another place, with everything mounted below it.
fn bind(from: &Path, target: impl AsRef<Path>, writable: bool) -> Result<(), RootError> {
    let target = target.as_ref();
    let failed = |source| RootError::Bind { from: from.to_owned(), to: target.to_owned(), source };
    let none: Option<&str> = None;
    mount(Some(from), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(failed)?;
    without_rights(target, writable).map_err(failed)
}

/// Removes from a mount the rights that no process in here should have.
fn without_rights(target: &Path, writable: bool) -> nix::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(target.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // A device that masks a file must be readable, which nodev would prevent.
    let is_device = target.starts_with("proc");
    let nodev = if is_device { 0 } else { libc::MOUNT_ATTR_NODEV };
    let read_only = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
    let attributes = libc::mount_attr {
        attr_set: read_only | libc::MOUNT_ATTR_NOSUID | nodev,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: path and attributes outlive the call, which only reads them.
    #[allow(unsafe_code, reason = "no library of ours has this call")]
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}
