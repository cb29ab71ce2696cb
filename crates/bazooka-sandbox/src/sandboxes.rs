//! The sandboxes of this host's instances: their parts, and whether the machine can give them.
//!
//! Owns the choice, made once at start, and the trial that verifies it. A demanded part that the machine can't give is
//! an error at start, so an instance never has weaker isolation than its host registers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    cgroups::{Cgroups, GroupLimits},
    disks,
    etc::{Etc, EtcError},
    fences::Fences,
    files::{private_folder, remove_all},
    in_one_line,
    loopback::{self, LoopbackError},
    protocol::{Fence, Group, LaunchSpec, PROTOCOL, SandboxSpec},
    start::{self, TrialError},
};

/// The program that a stack must have besides what the app needs: the command is a line for it.
const SHELL: &str = "bin/sh";

/// The limits of the trial: one of each kind.
const OF_THE_TRIAL: GroupLimits =
    GroupLimits { memory_bytes: Some(64 << 20), cpu_millis: Some(1_000), processes: 1_024 };

/// The reason why instances can't have sandboxes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum SandboxError {
    #[error("can't use {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Etc(#[from] EtcError),
    #[error("can't use the stack {}", path.display())]
    Stack { path: PathBuf, source: io::Error },
    #[error(
        "{} is no stack: it must be a root tree of its own with /{SHELL} in it, as debootstrap makes one", path.display()
    )]
    NotAStack { path: PathBuf },
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
    #[error(transparent)]
    Trial(#[from] TrialError),
}

/// The parts that sandboxes are to be made of.
#[derive(Clone, Copy, Debug)]
pub struct SandboxParts<'a> {
    /// The folder for the folders that they need.
    pub state: &'a Path,
    /// The tree of a stack, in place of the machine's.
    pub stack: Option<&'a Path>,
    /// The entries of `/etc` besides those that every program needs.
    pub more_of_etc: &'a [&'a str],
    /// The size of `/tmp` in bytes, unless its holder asks for another.
    pub tmp_bytes: u64,
    /// True if `/tmp` is on the disk, and if its holders may have layers.
    pub has_disks: bool,
    /// The fences of their sockets; none if these aren't fenced.
    pub fences: Option<&'a Fences>,
}

/// The holder of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The control groups.
    pub groups: &'a [Group],
    /// The user.
    pub uid: u32,
    /// The port of the instance on the machine's addresses, 0 for none.
    pub port: u16,
    /// The ports of the services that it links.
    pub links: &'a [u16],
    /// The size of its `/tmp` in bytes, where that isn't the usual one.
    pub tmp_bytes: Option<u64>,
    /// The size of its layer over `/app` in bytes; 0 for none.
    pub disk_bytes: u64,
}

/// The parts of sandboxes on this machine.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    root: PathBuf,
    base: PathBuf,
    /// The machine's `/etc`; none with a stack.
    etc: Option<Etc>,
    tmp_bytes: u64,
    /// The folder with the templates of disks; none if there are none here.
    disks: Option<PathBuf>,
    /// None if sockets aren't fenced.
    fences: Option<Fences>,
}

impl Sandboxes {
    /// Prepares the parts. Blocks.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn new(parts: SandboxParts<'_>) -> Result<Sandboxes, SandboxError> {
        let root = parts.state.join("root");
        private_folder(&root).map_err(|source| SandboxError::Folder { path: root.clone(), source })?;
        let (base, etc) = match parts.stack {
            None => {
                let own = parts.state.join("etc");
                (PathBuf::from("/"), Some(Etc::make(Path::new("/etc"), &own, parts.more_of_etc)?))
            }
            Some(stack) => (stack_at(stack)?, None),
        };
        if parts.fences.is_some() {
            loopback::prepare()?;
        }
        let disks = parts.has_disks.then(|| parts.state.join("disks")).filter(|folder| {
            let made = disks::template(folder, disks::USUAL_BYTES);
            made.inspect_err(|error| tracing::warn!(error = in_one_line(error), "there are no disks here"))
                .is_ok()
        });
        Ok(Sandboxes { root, base, etc, tmp_bytes: parts.tmp_bytes, disks, fences: parts.fences.cloned() })
    }

    /// Returns the same sandboxes without disks.
    pub fn without_disks(self) -> Sandboxes {
        Sandboxes { disks: None, ..self }
    }

    /// Reports whether their holders may have layers over `/app`.
    pub fn has_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// Returns the sandbox of an instance or build. Blocks briefly.
    pub fn of(&self, holder: Holder<'_>) -> SandboxSpec {
        let Holder { groups, uid, port, links, .. } = holder;
        let group = groups.iter().find(|group| group.version == 2);
        let fence = self.fences.as_ref().map(|fences| match group {
            Some(group) => fences.begin(&group.folder, uid, port, links),
            // The shim says what is missing.
            None => fences.of_trial(port),
        });
        self.with(fence, holder.tmp_bytes.unwrap_or(self.tmp_bytes), holder.disk_bytes)
    }

    /// Returns a sandbox for a trial, whose processes end at once. Blocks briefly.
    pub fn of_trial(&self) -> SandboxSpec {
        let fence = self.fences.as_ref().map(|fences| fences.of_trial(1));
        self.with(fence, self.tmp_bytes, disks::USUAL_BYTES)
    }

    /// Remembers the fence of a start that an earlier daemon made.
    pub fn adopt(&self, spec: &LaunchSpec) {
        let fence = spec.sandbox.as_ref().and_then(|sandbox| sandbox.fence.as_ref());
        let group = spec.groups.iter().find(|group| group.version == 2);
        if let (Some(fences), Some(fence), Some(group), Some(uid)) = (&self.fences, fence, group, spec.uid) {
            fences.adopt(&group.folder, uid, fence);
        }
    }

    /// Returns the users whose control groups still exist.
    pub fn users(&self) -> BTreeSet<u32> {
        self.fences.as_ref().map(Fences::users).unwrap_or_default()
    }

    fn with(&self, fence: Option<Fence>, tmp_bytes: u64, disk_bytes: u64) -> SandboxSpec {
        let image = |bytes: u64| {
            let folder = self.disks.as_ref().filter(|_| bytes > 0)?;
            let made = disks::template(folder, bytes);
            made.inspect_err(|error| tracing::warn!(error = in_one_line(error), "no disk for an instance"))
                .ok()
        };
        if let Some(etc) = &self.etc {
            etc.renew();
        }
        SandboxSpec {
            root: self.root.clone(),
            base: self.base.clone(),
            etc: self.etc.as_ref().map(|etc| etc.folder().to_owned()),
            // A size of 0 would be no limit.
            tmp_bytes: tmp_bytes.max(4 << 10),
            fence,
            app_writable: false,
            mounts: Vec::new(),
            shows_groups: true,
            tmp_disk: image(tmp_bytes),
            app_disk: image(disk_bytes),
        }
    }

    /// Starts a command in a sandbox with a limit of each kind. Blocks.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn try_out(
        &self,
        shim: &Path,
        state: &Path,
        cgroups: Option<&Cgroups>,
        uid: u32,
    ) -> Result<(), SandboxError> {
        let place = state.join("trial");
        let failed = |source| SandboxError::Folder { path: place.clone(), source };
        let app = place.join("app");
        let made = || {
            remove_all(&place)?;
            private_folder(&place)?;
            fs::create_dir(&app)?;
            fs::set_permissions(&app, fs::Permissions::from_mode(0o755))
        };
        made().map_err(failed)?;
        let groups = cgroups.map(|cgroups| cgroups.of("0", OF_THE_TRIAL, true));
        let spec = LaunchSpec {
            protocol: PROTOCOL,
            command: "exit 0".to_owned(),
            folder: app,
            env: BTreeMap::new(),
            // As at each start, the shim reads the environment: unread bytes would reset the socket and lose its answer.
            env_apart: true,
            uid: Some(uid),
            memory: None,
            groups: groups.unwrap_or_default(),
            processes: Some(OF_THE_TRIAL.processes),
            sandbox: Some(self.of_trial()),
            log_folder: place.clone(),
            stop_timeout_ms: 1_000,
            lease_file: None,
        };
        let tried = start::try_out(shim, &place.join("run"), &spec);
        let _ = fs::remove_dir_all(&place);
        Ok(tried?)
    }
}

/// Returns a stack's canonical path, after verifying that it is a stack.
///
/// # Errors
/// [`SandboxError::Stack`], [`SandboxError::NotAStack`].
pub fn stack_at(stack: &Path) -> Result<PathBuf, SandboxError> {
    let base = stack.canonicalize();
    let base = base.map_err(|source| SandboxError::Stack { path: stack.to_owned(), source })?;
    // A stack's links are meant for its own root, so a link at the end isn't followed. /bin may be a link to usr/bin,
    // so both paths are tried.
    let shell = [SHELL, "usr/bin/sh"].iter().any(|shell| base.join(shell).symlink_metadata().is_ok());
    if base == Path::new("/") || !shell {
        return Err(SandboxError::NotAStack { path: stack.to_owned() });
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_a_root_tree() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = stack_at(&dir.path().join("missing")).expect_err("it is missing");
        assert!(in_one_line(&missing).contains("missing: No such file"), "{missing:?}");
        assert!(matches!(stack_at(dir.path()), Err(SandboxError::NotAStack { .. })));
        fs::create_dir_all(dir.path().join("bin")).expect("it can be made");
        fs::write(dir.path().join("bin/sh"), "").expect("it can be made");
        assert!(stack_at(dir.path()).is_ok());
        assert!(stack_at(Path::new("/")).is_err());
    }
}
