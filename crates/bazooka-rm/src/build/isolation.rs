//! The isolation of builds on this machine, chosen and tested once at start.
//!
//! Owns the choice, the builds' users, and their limits. An isolation that was requested and is not available is an
//! error at start: a build never gets a weaker one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use bazooka_daemon::{in_words, settings::Range};
use bazooka_sandbox::{
    cgroups::{Cgroups, CgroupsError, GroupLimits},
    fences::Keeper,
    isolation::{Isolation, Part},
    loopback,
    machine::memory_for_instances,
    protocol::{LaunchSpec, Mount},
    sandboxes::{Holder, SandboxError, SandboxParts, Sandboxes},
    surroundings::{Named, UnresolvedError},
    targets::Target,
    uids::{MARKS, Uids, UidsError},
};
use sha2::{Digest, Sha256};
use visor::names::AppName;

use super::{
    place,
    place::Place,
    run::{self, TryOutError},
};
use crate::{
    layout::{self, Layout},
    queue::builds_at_once,
};

/// The size limit of a build's `/tmp`, in bytes; it counts against the memory limit. TMPDIR is on the disk.
const TMP_BYTES: u64 = 256 << 20;

/// The name of the trial at start; no app's name begins with a dot.
const TRIAL: &str = ".trial";

/// The ports that hosts give to instances, unless their settings say otherwise. A build may run on a host's machine, and
/// takes none of them in private.
const PORTS_OF_HOSTS: (u16, u16) = (21_000, 31_999);

/// The files of `/etc` that package clients read, besides those that every program needs.
const MORE_OF_ETC: [&str; 3] = ["gitconfig", "npmrc", "pip.conf"];

/// The options of builds.
#[derive(Clone, Debug, clap::Args)]
pub struct BuildOptions {
    /// How builds are kept apart; sandbox for root unless given, none (with a warning) for others
    #[arg(long = "build-isolation", env = "BAZOOKA_BUILD_ISOLATION", value_name = "KIND")]
    pub isolation: Option<Isolation>,
    /// Parts of a build's sandbox to do without, where this machine can't give them
    #[arg(long = "build-without", env = "BAZOOKA_BUILD_WITHOUT", value_name = "PART", value_delimiter = ',')]
    pub without: Vec<Part>,
    /// What else of this machine builds see, read-only; they see the folders of PATH and the toolchains of rustup
    #[arg(long = "build-path", env = "BAZOOKA_BUILD_PATH", value_name = "PATH", value_delimiter = ':')]
    pub paths: Vec<PathBuf>,
    /// A folder of toolchains for apps that ask for another version than this machine's: python/3.13.1, node/22.1.0,
    /// go/1.25.0, each with its bin
    #[arg(long = "build-toolchains", env = "BAZOOKA_BUILD_TOOLCHAINS", value_name = "DIR")]
    pub toolchains: Option<PathBuf>,
    /// Where else builds can't connect to, such as the daemons of hosts: an address, a range of addresses (10.0.0.0/8)
    /// or a name; without a port, to any port of it
    #[arg(
        long = "build-closed",
        env = "BAZOOKA_BUILD_CLOSED",
        value_name = "ADDR[:PORT]",
        value_delimiter = ','
    )]
    pub closed: Vec<Target>,
    /// Where builds can connect to although it is this machine's own, such as a mirror of packages on it
    #[arg(
        long = "build-open",
        env = "BAZOOKA_BUILD_OPEN",
        value_name = "ADDR[:PORT]",
        value_delimiter = ','
    )]
    pub open: Vec<Target>,
    /// How long a build may take, in seconds
    #[arg(long = "build-time", env = "BAZOOKA_BUILD_TIME", value_name = "SECONDS", default_value_t = 15 * 60)]
    pub seconds: u64,
    /// How much memory a build may use, in bytes
    #[arg(long = "build-memory", env = "BAZOOKA_BUILD_MEMORY", value_name = "BYTES", default_value_t = 2 << 30)]
    pub memory_bytes: u64,
    /// How many processes and threads a build may have
    #[arg(
        long = "build-processes",
        env = "BAZOOKA_BUILD_PROCESSES",
        value_name = "N",
        default_value_t = 1024
    )]
    pub processes: u64,
    /// How many builds run at once; others wait in a queue [default: one a processor, as far as the memory goes]
    #[arg(long = "builds", env = "BAZOOKA_BUILDS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub most: Option<u16>,
    /// The users that builds get; by default none that useradd, rootless containers or systemd give out
    #[arg(
        long = "build-uids",
        env = "BAZOOKA_BUILD_UIDS",
        value_name = "FIRST-LAST",
        default_value = "1879048192-1879113727"
    )]
    pub uids: Range<u32>,
}

/// The requested isolation takes root.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("build isolation {} takes root; run as root or with --build-isolation none", .0.as_str())]
pub struct NeedsRoot(Isolation);

/// The reasons why builds can't be isolated as requested, with the options that go on without it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum IsolationError {
    #[error(transparent)]
    NeedsRoot(#[from] NeedsRoot),
    #[error("{option} {}: it must be absolute, and not hold the state folder", path.display())]
    ForbiddenPath { option: &'static str, path: PathBuf },
    #[error("{option} {}", path.display())]
    Path { option: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Users(#[from] UidsError),
    #[error("{}", lacking(Part::Limits, &in_words(.0)))]
    Limits(CgroupsError),
    #[error(
        "{}",
        lacking(
            Part::Fence,
            "control groups version 2, by which sockets are fenced, aren't mounted (not even beside version 1)"
        )
    )]
    Fence,
    #[error("{}", lacking(Part::Fence, &in_words(.0)))]
    Unresolved(UnresolvedError),
    #[error("{}", lacking(Part::Fence, &in_words(.0)))]
    Loopback(SandboxError),
    #[error(transparent)]
    Sandbox(SandboxError),
    #[error(
        "builds can't have a sandbox here: {}; it takes Linux 5.12 or later, and root in the machine's own namespaces; go on \
         with the weaker --build-isolation uid, or, where it is about limits or the fence, with --build-without limits or \
         --build-without fence",
        in_words(.0)
    )]
    Trial(TrialError),
}

/// The reasons why nothing runs in a build's sandbox.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum TrialError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    TryOut(#[from] TryOutError),
}

/// The reasons why the place of a build can't be prepared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum PlaceError {
    #[error("can't use {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("every user for builds is in use; name more with --build-uids")]
    NoUser,
}

impl PlaceError {
    fn at(path: &Path) -> impl Fn(io::Error) -> PlaceError + use<> {
        let path = path.to_owned();
        move |source| PlaceError::Folder { path: path.clone(), source }
    }
}

/// The isolation of builds on this machine.
#[derive(Debug)]
pub struct Builds {
    options: BuildOptions,
    cgroups: Option<Cgroups>,
    sandboxes: Option<Sandboxes>,
    /// The keeper of the builds' fences, until a loop takes it.
    keeper: Mutex<Option<Keeper>>,
    /// The users of builds; `None` if builds run as bazooka-rm's own user.
    users: Option<Mutex<Uids>>,
}

impl Builds {
    /// Sets up the requested isolation and tests it. Builds can't connect to the targets in `closed`.
    ///
    /// # Errors
    /// [`IsolationError`].
    pub async fn find(
        options: BuildOptions,
        layout: &Layout,
        own_program: &Path,
        closed: Vec<Target>,
    ) -> Result<Builds, IsolationError> {
        let isolation = chosen(options.isolation, nix::unistd::geteuid().is_root())?;
        let toolchains = options.toolchains.iter().map(|path| ("--build-toolchains", path));
        for (option, path) in options.paths.iter().map(|path| ("--build-path", path)).chain(toolchains) {
            if !path.is_absolute() || layout.root().starts_with(path) {
                return Err(IsolationError::ForbiddenPath { option, path: path.clone() });
            }
            fs::metadata(path).map_err(|source| IsolationError::Path {
                option,
                path: path.clone(),
                source,
            })?;
        }
        let mark = Sha256::digest(layout.root().as_os_str().as_encoded_bytes());
        let mark: String = mark.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let named = Named {
            closed: closed.into_iter().chain(options.closed.iter().cloned()).collect(),
            open: options.open.iter().cloned().collect(),
            services: None,
            reserved: vec![PORTS_OF_HOSTS],
        };
        let mut builds =
            Builds { options, cgroups: None, sandboxes: None, keeper: Mutex::default(), users: None };
        if isolation == Isolation::None {
            return Ok(builds);
        }
        let uids = Uids::new(builds.options.uids.inclusive(), Path::new(MARKS), layout.root());
        let uids = uids?;
        // No build runs yet.
        loopback::sweep(|uid| uids.owns(uid));
        builds.users = Some(Mutex::new(uids));
        // The group's name contains a hash of the state folder, so another rm of this machine keeps its own groups.
        let cgroups = Cgroups::find(&format!("builds-{mark}")).inspect(|found| found.sweep(|_| false));
        if isolation == Isolation::Uid {
            let complained = cgroups.inspect_err(|error| {
                tracing::warn!(error = in_words(error), "the memory of builds can't be limited here")
            });
            builds.cgroups = complained.ok();
            return Ok(builds);
        }
        if !builds.options.without.is_empty() {
            let parts: Vec<&str> = builds.options.without.iter().map(|part| part.as_str()).collect();
            tracing::warn!(
                without = parts.join(","),
                "builds have a sandbox that is weaker than it could be"
            );
        }
        builds.cgroups = match cgroups {
            Ok(cgroups) => Some(cgroups),
            Err(_) if builds.options.without.contains(&Part::Limits) => None,
            Err(cause) => return Err(IsolationError::Limits(cause)),
        };
        match builds.find_sandboxes(layout, own_program, named).await {
            Ok(()) => Ok(builds),
            Err(cause) => {
                builds.leave();
                Err(cause)
            }
        }
    }

    async fn find_sandboxes(
        &mut self,
        layout: &Layout,
        own_program: &Path,
        named: Named,
    ) -> Result<(), IsolationError> {
        let fences = !self.options.without.contains(&Part::Fence);
        if fences && !self.cgroups.as_ref().is_some_and(Cgroups::can_fence) {
            return Err(IsolationError::Fence);
        }
        let keeper = fences.then(|| Keeper::begin(Ipv4Addr::UNSPECIFIED.into(), named)).transpose();
        let keeper = keeper.map_err(IsolationError::Unresolved)?;
        let sandboxes = Sandboxes::new(SandboxParts {
            state: layout.root(),
            stack: None,
            more_of_etc: &MORE_OF_ETC,
            tmp_bytes: TMP_BYTES,
            has_disks: false,
            fences: keeper.as_ref().map(Keeper::fences),
        });
        self.sandboxes = Some(sandboxes.map_err(|error| match error {
            SandboxError::Loopback(_) => IsolationError::Loopback(error),
            other => IsolationError::Sandbox(other),
        })?);
        *self.keeper.lock().expect("nobody panics with it") = keeper;
        self.try_out(layout, own_program).await.map_err(IsolationError::Trial)
    }

    /// Removes the control groups. No build may be running.
    pub fn leave(&self) {
        if let Some(groups) = &self.cgroups {
            groups.sweep(|_| false);
            if groups.leave() {
                loopback::leave();
            }
        }
    }

    /// Returns the number of builds that run at once.
    pub fn at_once(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let fitting = || builds_at_once(processors, memory_for_instances(), self.options.memory_bytes);
        self.options.most.map_or_else(fitting, usize::from)
    }

    /// Returns the keeper of the builds' fences, once; none if they have no fences.
    pub fn keeper(&self) -> Option<Keeper> {
        self.keeper.lock().expect("nobody panics with it").take()
    }

    /// Returns the operator's folder of toolchains.
    pub fn toolchains(&self) -> Option<&Path> {
        self.options.toolchains.as_deref()
    }

    /// Returns the time limit of a build.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.options.seconds)
    }

    /// Prepares the place where an app's tree is built with these variables. The tree must exist; the cache is made if
    /// missing. Blocks.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn place(
        &self,
        layout: &Layout,
        app: &AppName,
        own_program: &Path,
        environment: BTreeMap<String, String>,
    ) -> Result<Place, PlaceError> {
        let (tree, cache) = (layout.build(app), layout.cache(app));
        let at_cache = PlaceError::at(&cache);
        fs::create_dir_all(&cache).map_err(&at_cache)?;
        let uid = match &self.users {
            Some(users) => {
                let mut users = users.lock().expect("nobody panics with it");
                Some(user_of(&mut users, &cache, std::process::id())?)
            }
            None => None,
        };
        for name in ["tmp", "given"] {
            layout::remove(&cache.join(name)).map_err(&at_cache)?;
        }
        for name in ["home", "tmp", "given"] {
            place::folder(&cache.join(name), uid).map_err(&at_cache)?;
        }
        let given = cache.join("given");
        let mut environment = environment;
        let mut mounts = Vec::new();
        if let Some(uid) = uid {
            place::give_all(&tree, uid).map_err(PlaceError::at(&tree))?;
            fs::set_permissions(&tree, fs::Permissions::from_mode(0o700)).map_err(&at_cache)?;
            let etc = match &self.sandboxes {
                Some(_) => layout.root().join("etc"),
                None => PathBuf::from("/etc"),
            };
            place::hand_over_files(&mut environment, &given, &etc, uid).map_err(&at_cache)?;
        }
        if self.sandboxes.is_some() {
            let shown = place::shown(&environment, layout.root()).into_iter();
            let more = self.options.paths.iter().chain(&self.options.toolchains).cloned();
            let shown = shown.chain(more).chain([layout.tools()]);
            mounts.extend(shown.map(|path| Mount { path, writable: false }));
            mounts.push(Mount { path: own_program.to_owned(), writable: false });
            mounts.push(Mount { path: cache, writable: true });
        }
        let place = Place::plain(&tree, environment).given(given);
        Ok(place.apart(|spec| self.keep_apart(spec, app.as_str(), uid, mounts)))
    }

    fn keep_apart(&self, spec: &mut LaunchSpec, name: &str, uid: Option<u32>, mounts: Vec<Mount>) {
        spec.uid = uid;
        if uid.is_some() {
            let processes = self.options.processes;
            let memory_bytes = Some(self.options.memory_bytes);
            let limits = GroupLimits { memory_bytes, cpu_millis: None, processes };
            let cgroups = self.cgroups.as_ref();
            spec.processes = Some(processes);
            spec.groups =
                cgroups.map(|cgroups| cgroups.of(name, limits, self.sandboxes.is_some())).unwrap_or_default();
        }
        spec.sandbox = self.sandboxes.as_ref().map(|sandboxes| {
            let mut sandbox = match uid {
                Some(uid) if name != TRIAL => {
                    let groups = &spec.groups;
                    sandboxes.of(Holder { groups, uid, port: 0, links: &[], tmp_bytes: None, disk_bytes: 0 })
                }
                _ => sandboxes.of_trial(),
            };
            sandbox.app_writable = true;
            sandbox.mounts = mounts;
            sandbox
        });
    }

    /// Runs a command in a build's sandbox.
    async fn try_out(&self, layout: &Layout, own_program: &Path) -> Result<(), TrialError> {
        let trial = layout.trial();
        fs::create_dir_all(&trial).map_err(PlaceError::at(&trial))?;
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let mounts = vec![
            Mount { path: own_program.to_owned(), writable: false },
            Mount { path: trial.clone(), writable: true },
        ];
        let mounts: Vec<Mount> = mounts
            .into_iter()
            .chain(self.options.paths.iter().map(|path| Mount { path: path.clone(), writable: false }))
            .collect();
        let uid = *self.options.uids.inclusive().start();
        let place =
            Place::plain(&trial, environment).apart(|spec| self.keep_apart(spec, TRIAL, Some(uid), mounts));
        let tried = run::try_out(own_program, &place).await;
        let _ = fs::remove_dir_all(&trial);
        Ok(tried?)
    }
}

/// Returns the isolation to use, from the option and the user who runs bazooka-rm.
pub(crate) fn chosen(wanted: Option<Isolation>, is_root: bool) -> Result<Isolation, NeedsRoot> {
    match wanted {
        Some(kind @ (Isolation::Sandbox | Isolation::Uid)) if !is_root => Err(NeedsRoot(kind)),
        Some(kind @ (Isolation::Sandbox | Isolation::Uid)) => Ok(kind),
        None if is_root => Ok(Isolation::Sandbox),
        None | Some(Isolation::None) => {
            tracing::warn!(
                "BUILDS ARE NOT KEPT APART: they run as the user of bazooka-rm and can read and change all that it can, \
                 each other's apps among that"
            );
            Ok(Isolation::None)
        }
    }
}

fn lacking(part: Part, cause: &str) -> String {
    format!(
        "builds can't have a sandbox here: {cause}; go on with --build-without {}, or with the weaker --build-isolation uid",
        part.as_str()
    )
}

/// Returns the user of an app's builds, and gives that user the app's cache: the cache's owner if no other app's cache
/// has the same one, or else an unused user.
fn user_of(uids: &mut Uids, cache: &Path, seed: u32) -> Result<u32, PlaceError> {
    let failed = PlaceError::at(cache);
    let owner = fs::symlink_metadata(cache).map_err(&failed)?.uid();
    let mut used = BTreeSet::new();
    let others = fs::read_dir(cache.with_file_name("")).map_err(&failed)?;
    for other in others.filter_map(Result::ok).filter(|other| other.path() != cache) {
        used.extend(other.metadata().map(|known| known.uid()));
    }
    let uid = if !used.contains(&owner) && uids.keep(owner) {
        owner
    } else {
        uids.choose(&used, seed).ok_or(PlaceError::NoUser)?
    };
    place::give(cache, uid).map_err(&failed)?;
    fs::set_permissions(cache, fs::Permissions::from_mode(0o700)).map_err(&failed)?;
    Ok(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gets_a_sandbox_and_nobody_less_than_was_asked_for() {
        assert_eq!(chosen(None, true), Ok(Isolation::Sandbox));
        assert_eq!(chosen(None, false), Ok(Isolation::None));
        assert_eq!(chosen(Some(Isolation::None), true), Ok(Isolation::None));
        assert_eq!(chosen(Some(Isolation::Uid), true), Ok(Isolation::Uid));
        let refused = chosen(Some(Isolation::Sandbox), false).expect_err("it takes root").to_string();
        assert!(refused.contains("takes root") && refused.contains("--build-isolation none"), "{refused}");
    }

    #[test]
    fn an_app_keeps_its_user_and_shares_it_with_none() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not tried: it takes root");
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let marks = dir.path().join("marks");
        let state = dir.path().join("state");
        fs::create_dir_all(&state).expect("made");
        let uids = || Uids::new(700_000..=701_023, &marks, &state).expect("marks can be made");
        let cache = |name: &str| {
            let cache = state.join("cache").join(name);
            fs::create_dir_all(cache.join("a/b")).expect("made");
            cache
        };
        let (one, two) = (cache("one"), cache("two"));
        let mut first = uids();
        let mut first = move |cache: &Path| user_of(&mut first, cache, 0).expect("there are enough users");
        let anew = |cache: &Path| user_of(&mut uids(), cache, 0).expect("there are enough users");
        assert_eq!(first(&one), 700_000);
        assert_eq!(first(&two), 700_001);
        assert_eq!(anew(&two), 700_001, "after a restart, too");
        assert_eq!(fs::metadata(two.join("a/b")).expect("it is there").uid(), 700_001);
        fs::remove_dir_all(&one).expect("ours");
        let three = cache("three");
        assert_eq!(anew(&three), 700_000, "one that has gone gives its user back");
    }
}
