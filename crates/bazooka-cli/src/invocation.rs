//! An invocation of `bazooka`: its global options, and its connection to the cluster.
//!
//! Owns the precedence of flags, environment and settings files, the audit entry of a change, and the effect of an
//! interrupt.

use bazooka_daemon::{Cluster, CoordinatorArgs, in_words};
use clap::{ArgMatches, parser::ValueSource};
use futures::future::LocalBoxFuture;
use tokio::runtime::{Builder, Runtime};
use visor::{
    identity::Credentials,
    names::AppName,
    schema::{AuditEntry, Extra},
    visor::Visor,
};

use crate::{
    cli::Global,
    command::{Audited, CommandKind},
    context::{self, Context, Remote},
    failure::{Failure, Kind, Result},
    settings,
};

/// The options that say where the coordinator is.
pub const COORDINATOR_OPTIONS: [&str; 2] = ["coordinator", "prefix"];

/// The work of a command in the cluster.
pub type Work = Box<dyn for<'a> FnOnce(&'a Context) -> LocalBoxFuture<'a, Result<()>>>;

/// An invocation of `bazooka`.
pub struct Invocation {
    /// True to print JSON.
    pub json: bool,
    app: Option<AppName>,
    coordinator: CoordinatorArgs,
    /// True for each of endpoints and prefix that a flag or the environment sets.
    named: [bool; 2],
    flag: Option<&'static str>,
}

impl Invocation {
    /// Creates the invocation from the global options.
    pub fn new(global: Global, matches: &ArgMatches) -> Self {
        let source = |name: &str| matches.value_source(name);
        Invocation {
            json: global.json,
            app: global.app,
            coordinator: global.coordinator,
            named: COORDINATOR_OPTIONS
                .map(|name| source(name).is_some_and(|source| source != ValueSource::DefaultValue)),
            flag: COORDINATOR_OPTIONS.into_iter().find(|name| source(name) == Some(ValueSource::CommandLine)),
        }
    }

    /// Returns the option of this command line that says where the coordinator is, if there is one.
    pub fn coordinator_flag(&self) -> Option<&'static str> {
        self.flag
    }

    /// Returns the coordinator's address and the identity: from flags, else from the environment, else from the
    /// settings files.
    ///
    /// # Errors
    /// If a settings file can't be used.
    pub fn coordinator(&self) -> Result<CoordinatorArgs> {
        let mut coordinator = self.coordinator.clone();
        let settings = settings::read(&settings::files(|name| std::env::var_os(name).map(Into::into)))?;
        let [endpoints_named, prefix_named] = self.named;
        if let Some(endpoints) = settings.coordinator.filter(|_| !endpoints_named) {
            coordinator.coordinator = endpoints;
        }
        if let Some(prefix) = settings.prefix.filter(|_| !prefix_named) {
            coordinator.prefix = prefix;
        }
        // The settings' identity doesn't apply to an endpoint without TLS.
        let takes_one = coordinator.coordinator.iter().any(|url| url.starts_with("https://"));
        if coordinator.identity.identity.is_none() && takes_one {
            coordinator.identity.identity = settings.identity;
        }
        Ok(coordinator)
    }

    /// Runs a command's work with a context.
    ///
    /// # Errors
    /// Those of the work; an invalid endpoint or identity; an interrupt.
    pub fn in_cluster(&self, kind: CommandKind, work: Work) -> Result<()> {
        let coordinator = self.coordinator()?;
        let runtime = runtime()?;
        let ended = runtime.block_on(self.with_context(kind, &coordinator, work));
        // A pending request must not delay the exit.
        runtime.shutdown_background();
        ended
    }

    async fn with_context(&self, kind: CommandKind, coordinator: &CoordinatorArgs, work: Work) -> Result<()> {
        let cluster = coordinator.cluster().map_err(|error| Failure::new(Kind::Usage, in_words(&error)))?;
        let remote = Remote::default();
        let follows = kind == CommandKind::Follows;
        let visor = match kind {
            CommandKind::Changes(audited) => self.audited(&cluster, &remote, audited).await,
            CommandKind::Local { .. } | CommandKind::Shows | CommandKind::Follows => cluster.visor.clone(),
        };
        let context = Context::new(visor, cluster.credentials, self.app.clone(), self.json)
            .with_etcd(cluster.etcd)
            .with_remote(remote);
        tokio::select! {
            done = work(&context) => done,
            interrupted = tokio::signal::ctrl_c() => {
                let failure = match context.has_changed() {
                    // A command that follows ends only by an interrupt, so that is no failure to report.
                    false if follows => Failure::silent(Kind::Interrupted),
                    true => Failure::new(Kind::Interrupted, "interrupted; the change stands and goes on")
                        .hint("`bazooka events` shows how it goes"),
                    false => Failure::new(Kind::Interrupted, "interrupted"),
                };
                Err(match interrupted {
                    Ok(()) => failure,
                    Err(error) => failure.because(error.to_string()),
                })
            }
        }
    }

    /// Returns access to the cluster's state that writes an audit entry with each change.
    async fn audited(&self, cluster: &Cluster, remote: &Remote, audited: Audited) -> Visor {
        let (what, is_of_an_app) = match audited {
            Audited::Words => (words(std::env::args().skip(1)), true),
            Audited::WordsOfNoApp => (words(std::env::args().skip(1)), false),
            Audited::Instead(words) => (cut(&words), true),
            Audited::ByRm => return cluster.visor.clone(),
        };
        let app = match (is_of_an_app, &self.app) {
            (false, _) => None,
            (true, Some(app)) => Some(app.clone()),
            (true, None) => remote.app().await,
        };
        let from =
            nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let at = jiff::Timestamp::now();
        let entry = AuditEntry { what, app, by: None, from, kind: None, at, extra: Extra::new() };
        let who = cluster.credentials.as_ref().map(Credentials::identity);
        // Without identities, the system's login name, or `someone` if that isn't a valid name here.
        let who = who.or_else(|| context::who().parse().ok());
        match who.or_else(|| "someone".parse().ok()) {
            Some(who) => cluster.visor.audited(&who, entry, rand::random()),
            None => cluster.visor.clone(),
        }
    }
}

/// Creates a runtime on this thread.
///
/// # Errors
/// If the system refuses.
pub fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::from_error(Kind::Failed, "the runtime can't be started", &error))
}

/// Returns the command line's words without the global options.
fn words(words: impl IntoIterator<Item = String>) -> String {
    const WITH_VALUE: [&str; 5] = ["-a", "--app", "--coordinator", "--prefix", "--identity"];
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word.as_str()) {
            words.next();
        } else if !WITH_VALUE.iter().any(|flag| word.starts_with(&format!("{flag}="))) {
            kept.push(word);
        }
    }
    cut(&kept.join(" "))
}

/// Cleans and shortens words for the audit: at most 300 characters, none of which controls a terminal.
fn cut(words: &str) -> String {
    visor::terminal::clean(words).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_keeps_the_words_of_the_command_alone() {
        let kept = |line: &str| words(line.split(' ').map(str::to_owned));
        assert_eq!(kept("-a shop scale -n 2 web --no-wait"), "scale -n 2 web --no-wait");
        assert_eq!(kept("scale web=2 --app=shop --coordinator http://x:1 --prefix=/y"), "scale web=2");
        assert_eq!(kept(&"x".repeat(400)).len(), 300);
    }
}
