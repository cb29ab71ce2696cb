//! The way from a pushed commit to a registered rev: export, build, store, register.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bazooka_daemon::in_words;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use visor::{
    keys,
    names::{AppName, EnvRef, ProcName, RevId},
    quota::Bounds,
    schema::{Extra, Rev},
    seal::OpenError,
    transitions::envs::{Opened, base_env},
    visor::{Visor, VisorError},
    wrapping::SharedRing,
};

use crate::{
    apps::Apps,
    build::{
        self, BuildError, Work, buildpack::Tree, detect::Detected, environment::environment,
        isolation::Builds, place::Place,
    },
    layout::{self, Layout},
    metrics::RmMetrics,
    procfile::Procfile,
    queue::BuildQueue,
    slug::{self, Packed, SlugError},
    slugs::{NotStored, Slugs},
    storage::StorageError,
    tree::{self, TreeError},
    voice::Voice,
};

/// The number of service ports after the last assigned one that are probed for foreign listeners.
const PORTS_TRIED: usize = 100;

/// The most sockets that are named to a pusher.
const SOCKETS_SAID: usize = 10;

/// The reasons why a commit did not become a rev.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum Unprepared {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Slug(#[from] SlugError),
    #[error("{0}; nothing was registered")]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Visor(#[from] VisorError),
    #[error(
        "this bazooka-rm can't open the config vars that builds see ({0}): {1}; another bazooka-rm adds a wrap for it"
    )]
    VarsClosed(EnvRef, OpenError),
    #[error("the commit can't be read: {0}")]
    Git(#[from] git2::Error),
    #[error(
        "{0} was built before, and its slug is no longer in the file storage; commit again and push that"
    )]
    SlugGone(String),
    #[error("bazooka-rm failed: {0}")]
    Disk(#[from] std::io::Error),
    #[error("bazooka-rm failed: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

impl From<NotStored> for Unprepared {
    fn from(error: NotStored) -> Unprepared {
        match error {
            NotStored::Slug(error) => Unprepared::Slug(error),
            NotStored::Storage(error) => Unprepared::Storage(error),
            NotStored::Panicked(error) => Unprepared::Panicked(error),
        }
    }
}

/// A commit to build and register.
pub struct Commit<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The commit's id.
    pub rev: &'a RevId,
    /// The folder where git keeps the pushed objects until the push is accepted.
    pub quarantine: Option<&'a Path>,
    /// The pusher's name, if known.
    pub user: Option<&'a str>,
}

/// The way from a commit to a rev.
#[async_trait]
pub trait Build: Send + Sync {
    /// Builds a commit and registers it as a rev; a commit that has a rev and a stored slug is not built again.
    ///
    /// # Errors
    /// [`Unprepared`]: nothing is registered, and only the caches have changed.
    async fn prepare(
        &self,
        commit: &Commit<'_>,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Unprepared>;
}

/// The builds of a real rm: in a sandbox, with a slug in the storage.
#[derive(Clone)]
pub struct Builder {
    /// The image of all apps.
    pub apps: Apps,
    /// The coordinator's rows.
    pub visor: Visor,
    /// The paths below the state folder.
    pub layout: Layout,
    /// The path of this program, which also supervises builds.
    pub program: PathBuf,
    /// The isolation of builds.
    pub builds: Arc<Builds>,
    /// The private keys to which config vars are sealed for this rm.
    pub ring: SharedRing,
    /// The queue of builds.
    pub queue: Arc<BuildQueue>,
    /// The slugs.
    pub slugs: Slugs,
    /// The metrics.
    pub metrics: RmMetrics,
}

/// An exported commit.
struct Exported {
    commit: tree::Commit,
    files: tree::Files,
    detected: Detected,
    procfile: Procfile,
}

#[async_trait]
impl Build for Builder {
    async fn prepare(
        &self,
        commit: &Commit<'_>,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<(), Unprepared> {
        let known = self.apps.view(commit.app).and_then(|view| view.revs.get(commit.rev).cloned());
        if let Some(known) = &known
            && self.slugs.has(&known.slug).await?
        {
            self.metrics.built("reused", &known.kind);
            voice.say(format!("{} is built already", commit.rev.short())).await;
            return self.register(commit, &known.value, voice).await;
        }
        // A pusher without a name counts by the app.
        let who = commit.user.map_or_else(|| format!("app {}", commit.app), |user| format!("user {user}"));
        let slot = self.queue.take(&who, voice, cancelled).await;
        let Some(_slot) = slot else { return Err(BuildError::Cancelled.into()) };
        let begin = std::time::Instant::now();
        let mut kind = "none".to_owned();
        let folder = self.layout.build(commit.app);
        let built = self.build_in(commit, &folder, &mut kind, voice, cancelled).await;
        let cleared = tokio::task::spawn_blocking(move || layout::remove(&folder)).await;
        if let Ok(Err(error)) = cleared {
            tracing::warn!(app = %commit.app, error = %error, "the build's folder can't be removed");
        }
        self.metrics.built(if built.is_ok() { "done" } else { "failed" }, &kind);
        self.metrics.build_duration.observe(begin.elapsed().as_secs_f64());
        let rev = built?;
        if known.is_some_and(|known| known.slug != rev.slug) {
            return Err(Unprepared::SlugGone(commit.rev.short().into()));
        }
        self.register(commit, &rev, voice).await
    }
}

impl Builder {
    async fn build_in(
        &self,
        commit: &Commit<'_>,
        folder: &Path,
        kind: &mut String,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Result<Rev, Unprepared> {
        let exported = self.export(commit, folder, cancelled).await?;
        let Exported { commit: says, files, detected, procfile } = &exported;
        *kind = detected.name();
        let cache = self.layout.cache(commit.app);
        let place = self.place(commit, says, folder, detected).await?;
        let place = match detected.runs_processes() {
            true => place.showing(self.vars(commit.app, voice).await?),
            false => place,
        };
        let work = Work {
            dir: folder,
            files,
            cache: &cache,
            own_program: &self.program,
            place: &place,
            time: self.builds.time(),
            toolchains: self.builds.toolchains(),
            voice,
            cancelled,
        };
        if !detected.buildpacks.is_empty() {
            voice.say(format!("building: {kind}")).await;
        }
        build::build(&work, detected).await?;
        let procs = match procfile.procs.is_empty() {
            false => procfile.procs.clone(),
            true => build::release(&work, detected).await?,
        };
        if procfile.release.is_some() {
            let words =
                "the Procfile's release command is NOT RUN: there is no release phase yet; run it yourself";
            voice.say(words).await;
        }

        voice.say("uploading container to file storage").await;
        let Packed { slug, sockets } = self.slugs.store(folder, cancelled).await?;
        for socket in sockets.iter().take(SOCKETS_SAID) {
            voice.say(format!("{} is a socket, and is left out", socket.display())).await;
        }
        self.metrics.slug_bytes.observe(slug.size_bytes as f64);
        if let Some(warning) = slug::warning(slug.size_bytes) {
            voice.say(warning).await;
        }
        let by = commit.user.map_or_else(|| says.committer.clone(), str::to_owned);
        let mut rev = Rev {
            slug,
            procs,
            kind: kind.clone(),
            by,
            at: Timestamp::now(),
            subject: says.subject.clone(),
            extra: Extra::new(),
        };
        rev.spell(&procfile.spellings);
        Ok(rev)
    }

    /// Writes the commit's tree to the build's folder.
    async fn export(
        &self,
        commit: &Commit<'_>,
        folder: &Path,
        cancelled: &CancellationToken,
    ) -> Result<Exported, Unprepared> {
        let repository = self.layout.repo(commit.app);
        let (quarantine, rev) = (commit.quarantine.map(Path::to_owned), commit.rev.clone());
        let (folder, cancelled) = (folder.to_owned(), cancelled.clone());
        blocking(move || {
            // An rm that died during an earlier push to this app may have left the folder.
            layout::remove(&folder)?;
            let repository = tree::open(&repository, quarantine.as_deref())?;
            let commit = tree::describe(&repository, rev.as_str())?;
            let files = tree::export(&repository, rev.as_str(), &folder, &cancelled)?;
            let (detected, procfile) = build::read(Tree { dir: &folder, files: &files })?;
            Ok(Exported { commit, files, detected, procfile })
        })
        .await
    }

    /// Prepares the place where the build's processes run.
    async fn place(
        &self,
        commit: &Commit<'_>,
        says: &tree::Commit,
        folder: &Path,
        detected: &Detected,
    ) -> Result<Place, Unprepared> {
        let own: BTreeMap<String, String> = std::env::vars().collect();
        let mut variables = environment(&own, &self.layout.cache(commit.app), Path::exists);
        variables.insert("BAZOOKA_APP".into(), commit.app.to_string());
        variables.insert("BAZOOKA_REV".into(), commit.rev.to_string());
        variables.insert("SOURCE_VERSION".into(), commit.rev.to_string());
        variables.insert("SOURCE_DATE_EPOCH".into(), says.seconds.to_string());
        if !detected.runs_processes() {
            return Ok(Place::plain(folder, variables));
        }
        let (builder, app) = (self.clone(), commit.app.clone());
        blocking(move || {
            let place = builder.builds.place(&builder.layout, &app, &builder.program, variables);
            place.map_err(|error| BuildError::NotStarted(in_words(&error)).into())
        })
        .await
    }

    /// Returns the app's config vars that its builds see, and tells the pusher if there are others.
    async fn vars(&self, app: &AppName, voice: &Voice) -> Result<BTreeMap<String, String>, Unprepared> {
        // The env may have been set just now, and the apps' image may not have it yet.
        let snapshot = self.visor.read(keys::app(app)).await?;
        let Some(view) = snapshot.apps.get(app) else { return Ok(BTreeMap::new()) };
        let env = base_env(view);
        let Some(row) = view.envs.get(&env) else { return Ok(BTreeMap::new()) };
        let names = row.build_names();
        let all = match self.visor.open_env(app, env, &self.ring.get()).await? {
            Opened::Vars(vars) => vars,
            Opened::Missing => return Ok(BTreeMap::new()),
            Opened::Closed(_) if names.is_empty() => return Ok(BTreeMap::new()),
            Opened::Closed(why) => return Err(Unprepared::VarsClosed(env, why)),
        };
        let is_shown = |name: &String| names.iter().any(|shown| shown.as_str() == name);
        let shown: BTreeMap<String, String> = all
            .as_map()
            .iter()
            .filter(|(name, _)| is_shown(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let others = all.as_map().len() - shown.len();
        if others > 0 {
            let vars = if others == 1 { "1 config var is" } else { &format!("{others} config vars are") };
            voice.say(format!("{vars} not seen by builds; bazooka config set --build shows one")).await;
        }
        Ok(shown)
    }

    async fn register(&self, commit: &Commit<'_>, rev: &Rev, voice: &Voice) -> Result<(), Unprepared> {
        voice.say("registering revisions in coordinator").await;
        let known = self.apps.view(commit.app);
        let is_new = |proc: &ProcName| known.as_ref().is_none_or(|view| !view.procs.contains_key(proc));
        let new = rev.procs.keys().filter(|proc| is_new(proc)).count();
        let taken = if new > 0 { taken_ports(&self.visor, new).await? } else { BTreeSet::new() };
        let ports = self.visor.register_rev(commit.app, commit.rev, rev, &taken).await?;
        for proc in ports.keys() {
            voice.say(format!("pty registered: {}", rev.spelling(proc).unwrap_or(proc.as_str()))).await;
        }
        self.slugs.ensure(&rev.slug).await?;
        let bounds = Bounds::of(self.apps.known().rms.values());
        if let Some(words) = self.apps.view(commit.app).and_then(|view| bounds.warning(&view)) {
            voice.say(words).await;
        }
        Ok(())
    }
}

/// Returns those of the next service ports on which another program listens on this machine. A proxy on another machine
/// detects its own conflicts; this covers the common case of a single machine.
async fn taken_ports(visor: &Visor, new: usize) -> Result<BTreeSet<u16>, VisorError> {
    let mut free = 0;
    let mut taken = BTreeSet::new();
    for port in visor.free_ports(PORTS_TRIED + new).await? {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            Ok(_) => free += 1,
            Err(_) => drop(taken.insert(port)),
        }
        if free == new {
            break;
        }
    }
    Ok(taken)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unprepared> + Send + 'static,
) -> Result<T, Unprepared> {
    tokio::task::spawn_blocking(work).await?
}
