//! The way from a pushed commit to a registered rev: export, build, store, register.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use bazooka_daemon::in_words;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use visor::{
    keys::Key,
    names::{AppName, ProcName, RevId},
    schema::{Extra, Rev, Slug},
    transitions::apps::SERVICE_PORT_BASE,
    visor::VisorError,
};

use crate::{
    build::{self, BuildError, Work, environment::environment, place::Place},
    layout,
    rm::SharedRm,
    slug::{self, SlugError},
    storage::{self, StorageError},
    tree::{self, TreeError},
    voice::Voice,
};

/// The number of service ports after the last assigned one that are probed for foreign listeners.
const PORTS_TRIED: u16 = 100;

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
    #[error("the commit can't be read: {0}")]
    Git(#[from] git2::Error),
    #[error(
        "{0} was built before, and its slug is no longer in the file storage; commit again and push that"
    )]
    SlugGone(String),
    #[error("bazooka-rm failed: {0}")]
    Internal(String),
}

/// A commit to build and register.
pub struct Commit<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The commit's id.
    pub rev: &'a RevId,
    /// The folder where git keeps the pushed objects until the push is accepted.
    pub quarantine: Option<PathBuf>,
    /// The pusher's name, if known.
    pub user: Option<&'a str>,
}

/// Builds a commit and registers it as a rev; a commit that has a rev and a stored slug is not built again.
///
/// # Errors
/// [`Unprepared`]: nothing is registered, and only the caches have changed.
pub async fn prepare(
    rm: &SharedRm,
    commit: &Commit<'_>,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<BTreeMap<ProcName, u16>, Unprepared> {
    let known = rm.apps.view(commit.app).and_then(|view| view.revs.get(commit.rev).cloned());
    let stored = match &known {
        Some(known) => is_stored(rm, &known.slug).await?,
        None => false,
    };
    if let Some(known) = known.as_ref().filter(|_| stored) {
        rm.metrics.built("reused", &known.kind);
        voice.say(format!("{} is built already", commit.rev.short())).await;
        return register(rm, commit, &known.value, voice).await;
    }
    let begin = std::time::Instant::now();
    let mut kind = "none".to_owned();
    let folder = rm.layout.build(commit.app);
    let built = build_in(rm, commit, &folder, &mut kind, voice, cancelled).await;
    let cleared = tokio::task::spawn_blocking(move || layout::remove(&folder)).await;
    if let Ok(Err(error)) = cleared {
        tracing::warn!(app = %commit.app, error = %error, "the build's folder can't be removed");
    }
    rm.metrics.built(if built.is_ok() { "done" } else { "failed" }, &kind);
    rm.metrics.build_duration.observe(begin.elapsed().as_secs_f64());
    let rev = built?;
    if known.is_some_and(|known| known.slug != rev.slug) {
        return Err(Unprepared::SlugGone(commit.rev.short().into()));
    }
    register(rm, commit, &rev, voice).await
}

async fn build_in(
    rm: &SharedRm,
    commit: &Commit<'_>,
    folder: &Path,
    kind: &mut String,
    voice: &Voice,
    cancelled: &CancellationToken,
) -> Result<Rev, Unprepared> {
    let export = {
        let repository = rm.layout.repo(commit.app);
        let (quarantine, rev) = (commit.quarantine.clone(), commit.rev.clone());
        let (folder, cancelled) = (folder.to_owned(), cancelled.clone());
        move || -> Result<_, Unprepared> {
            // An rm that died during an earlier push to this app may have left the folder.
            layout::remove(&folder).map_err(|error| Unprepared::Internal(error.to_string()))?;
            let repository = tree::open(&repository, quarantine.as_deref())?;
            let says = tree::describe(&repository, rev.as_str())?;
            let files = tree::export(&repository, rev.as_str(), &folder, &cancelled)?;
            let (detected, procs) = build::read(&folder, &files)?;
            Ok((says, files, detected, procs))
        }
    };
    let (says, files, detected, procs) = blocking(export).await?;
    *kind = detected.name();
    let cache = rm.layout.cache(commit.app);
    let own: BTreeMap<String, String> = std::env::vars().collect();
    let mut variables = environment(&own, &cache, Path::exists);
    variables.insert("BAZOOKA_APP".into(), commit.app.to_string());
    variables.insert("BAZOOKA_REV".into(), commit.rev.to_string());
    let placing = {
        let (rm, app) = (rm.clone(), commit.app.clone());
        let (runs_nothing, folder) = (build::runs_nothing(&detected), folder.to_owned());
        move || {
            if runs_nothing {
                return Ok(Place::plain(&folder, variables));
            }
            let place = rm.builds.place(&rm.layout, &app, &rm.program, variables);
            place.map_err(|error| BuildError::NotStarted(in_words(&error)).into())
        }
    };
    let place: Place = blocking(placing).await?;
    let work = Work {
        dir: folder,
        files: &files,
        cache: &cache,
        own_program: &rm.program,
        place: &place,
        time: rm.builds.time(),
        voice,
        cancelled,
    };
    if detected.kinds != [build::detect::Kind::Procfile] {
        voice.say(format!("building: {kind}")).await;
    }
    build::build(&work, &detected).await?;

    voice.say("uploading container to file storage").await;
    let store = {
        let (folder, layout, cancelled) = (folder.to_owned(), rm.layout.clone(), cancelled.clone());
        move || slug::store(&folder, &layout, &cancelled).map_err(Unprepared::from)
    };
    let slug: Slug = blocking(store).await?;
    if let Some(storage) = &rm.storage {
        let name = storage::slug(&slug.sha256);
        if storage.size(&name).await? != Some(slug.size_bytes) {
            storage.put_file(&name, &rm.layout.slug(&slug.sha256)).await?;
        }
        let layout = rm.layout.clone();
        blocking(move || slug::keep_newest(&layout).map_err(Unprepared::from)).await?;
    }
    rm.metrics.slug_bytes.observe(slug.size_bytes as f64);
    if let Some(warning) = slug::warning(slug.size_bytes) {
        voice.say(warning).await;
    }
    let by = commit.user.map_or(says.committer, str::to_owned);
    Ok(Rev {
        slug,
        procs,
        kind: kind.clone(),
        by,
        at: Timestamp::now(),
        subject: says.subject,
        extra: Extra::new(),
    })
}

/// True if every host can fetch the slug.
async fn is_stored(rm: &SharedRm, slug: &Slug) -> Result<bool, StorageError> {
    match &rm.storage {
        Some(storage) => Ok(storage.size(&storage::slug(&slug.sha256)).await? == Some(slug.size_bytes)),
        None => Ok(slug::is_stored(&rm.layout, slug)),
    }
}

async fn register(
    rm: &SharedRm,
    commit: &Commit<'_>,
    rev: &Rev,
    voice: &Voice,
) -> Result<BTreeMap<ProcName, u16>, Unprepared> {
    voice.say("registering revisions in coordinator").await;
    let known = rm.apps.view(commit.app);
    let is_new = |proc: &ProcName| known.as_ref().is_none_or(|view| !view.procs.contains_key(proc));
    let new = rev.procs.keys().filter(|proc| is_new(proc)).count();
    let taken = if new > 0 { taken_ports(rm, new).await? } else { BTreeSet::new() };
    let ports = rm.visor.register_rev(commit.app, commit.rev, rev, &taken).await?;
    for proc in ports.keys() {
        voice.say(format!("pty registered: {proc}")).await;
    }
    Ok(ports)
}

/// Returns those of the next service ports on which another program listens on this machine. A proxy on another machine
/// detects its own conflicts; this covers the common case of a single machine.
async fn taken_ports(rm: &SharedRm, new: usize) -> Result<BTreeSet<u16>, VisorError> {
    let last = rm.visor.get::<u64>(&Key::PortCounter).await?;
    let last = last.map_or(u64::from(SERVICE_PORT_BASE), |last| last.value);
    let last = u16::try_from(last).unwrap_or(u16::MAX);
    let most = PORTS_TRIED.saturating_add(u16::try_from(new).unwrap_or(u16::MAX));
    let mut free = 0;
    let mut taken = BTreeSet::new();
    for port in (last..last.saturating_add(most)).map(|port| port.saturating_add(1)) {
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
    tokio::task::spawn_blocking(work).await.map_err(|error| Unprepared::Internal(error.to_string()))?
}
