//! What every daemon's first screen needs: arguments, logs, shutdown, readiness, the endpoint's common part.
//!
//! Owns nothing of what a daemon does. Each daemon's `main` reads: logs, arguments, listen, wait for the
//! coordinator, run until [`shutdown`].

mod callers;
pub mod documents;
pub mod exposition;
mod folder;
mod journal;
pub mod settings;
pub mod supervisor;

use std::{
    io::IsTerminal,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    middleware::from_fn,
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use visor::{
    access::{self, Act},
    identity::{Caller, Credentials, Identity, IdentityArgs, Kind},
    keys::Key,
    names::{AppName, HostName},
    schema::{Access, Admission},
    snapshot::Versioned,
    store::{
        SharedStore,
        etcd::{EtcdConfig, EtcdStore, holes_closed_in},
    },
    visor::{Visor, VisorError},
};

pub use callers::{Callers, From as CallsFrom, Peer, TlsListener};
use exposition::{Format, expose};
pub use folder::folder_token;
use settings::Wrong;

/// Where the coordinator is.
#[derive(Clone, Debug, clap::Args)]
pub struct CoordinatorArgs {
    /// The coordinator's endpoints (etcd), parted by commas
    #[arg(
        long,
        env = "BAZOOKA_COORDINATOR",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        value_name = "URL"
    )]
    pub coordinator: Vec<String>,
    /// The prefix of the cluster's keys
    #[arg(long, env = "BAZOOKA_PREFIX", default_value = "/bazooka", value_name = "PREFIX")]
    pub prefix: String,
    /// Who asks.
    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// The cluster, as one of its parts reaches it.
#[derive(Clone)]
pub struct Cluster {
    /// Its coordinator, with what only an etcd has.
    pub etcd: Arc<EtcdStore>,
    /// Its state.
    pub visor: Visor,
    /// Who this part is. None: the cluster tells nobody apart.
    pub credentials: Option<Credentials>,
}

impl CoordinatorArgs {
    /// The cluster. Nothing is connected yet.
    ///
    /// # Errors
    /// If an endpoint is no URL, or the identity is no good, in words for the user.
    pub fn cluster(&self) -> Result<Cluster, String> {
        let credentials = self.identity.open()?;
        let etcd = Arc::new(EtcdStore::new(self.config(credentials.clone())?));
        let store: SharedStore = etcd.clone();
        Ok(Cluster { etcd, visor: Visor::new(store), credentials })
    }

    fn config(&self, credentials: Option<Credentials>) -> Result<EtcdConfig, String> {
        if let Some(Wrong { option, what }) = self.addresses_wrong(credentials.is_some()).into_iter().next() {
            return Err(format!("{option} {what}"));
        }
        let config = EtcdConfig::new(self.coordinator.clone(), self.prefix.clone());
        Ok(EtcdConfig { credentials, ..config })
    }

    /// What is wrong with these, for a part of this kind that was said to have this name. Nothing is connected.
    pub fn wrong(&self, kind: Kind, said: Option<&HostName>) -> Vec<Wrong> {
        let mut wrong = self.addresses_wrong(self.identity.identity.is_some());
        let whose = self.identity.open().and_then(|own| own_name(own.as_ref(), kind, said.cloned()));
        wrong.extend(whose.err().map(|what| Wrong::new("identity", what)));
        wrong
    }

    fn addresses_wrong(&self, has_identity: bool) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.contains("//") {
            let what = format!("{:?} must begin with a slash and not end with one", self.prefix);
            wrong.push(Wrong::new("prefix", what));
        }
        for endpoint in &self.coordinator {
            let url: Result<axum::http::Uri, _> = endpoint.parse();
            let what = if !url.is_ok_and(|url| url.scheme().is_some() && url.host().is_some()) {
                "must be a URL such as http://127.0.0.1:2379"
            } else {
                // In the clear it would show nobody who asks, and be told everything.
                match (endpoint.starts_with("https://"), has_identity) {
                    (false, true) => "must begin with https:// where there is an identity",
                    (true, false) => {
                        "takes an identity: name its folder with --identity or BAZOOKA_IDENTITY, or in the daemon's file"
                    }
                    _ => continue,
                }
            };
            wrong.push(Wrong::new("coordinator", format!("{endpoint:?} {what}")));
        }
        wrong
    }
}

/// The name that a part goes by: as its identity says, or as it was said, or none.
fn own_name(
    own: Option<&Credentials>,
    kind: Kind,
    said: Option<HostName>,
) -> Result<Option<HostName>, String> {
    match own.map(Credentials::identity) {
        None => Ok(said),
        Some(Identity::Daemon(own, name))
            if own == kind && said.as_ref().is_none_or(|said| *said == name) =>
        {
            Ok(Some(name))
        }
        Some(other) => {
            let wanted = said.map_or_else(|| "NAME".to_owned(), |said| said.to_string());
            Err(format!("the identity is that of {other}; this takes one of {}:{wanted}", kind.as_str()))
        }
    }
}

impl Cluster {
    /// Says once, in the log, if the coordinator is of a version with known holes. Where it doesn't answer nothing is
    /// said; whoever waits for it does that.
    pub async fn warn_of_old_coordinator(&self) {
        if let Ok(version) = self.etcd.version().await
            && let Some(closed) = holes_closed_in(&version)
        {
            tracing::warn!(
                %version, take = closed,
                "this etcd has known holes in telling users apart; SECURITY.md says what they give away"
            );
        }
    }

    /// Finds out who calls an endpoint of this part's.
    pub fn callers(&self) -> Callers {
        Callers::new(self.credentials.clone())
    }

    /// The scheme of this part's endpoint.
    pub fn scheme(&self) -> &'static str {
        if self.credentials.is_some() { "https" } else { "http" }
    }

    /// The name that this part goes by: as its identity says, or as it was said, or none.
    ///
    /// # Errors
    /// If the identity is of another kind of part, or of another name.
    pub fn own_name(&self, kind: Kind, said: Option<HostName>) -> Result<Option<HostName>, String> {
        own_name(self.credentials.as_ref(), kind, said)
    }

    /// Whether a caller may, by what the coordinator says now.
    ///
    /// # Errors
    /// The store's: who can't be asked about isn't let in.
    pub async fn may(&self, caller: &Caller, act: Act, app: Option<&AppName>) -> Result<bool, VisorError> {
        let Caller::Known(who) = caller else { return Ok(access::may(caller, act, None, None)) };
        let admission: Option<Versioned<Admission>> = match who {
            Identity::Daemon(Kind::Rm, _) => None,
            _ => self.visor.get(&Key::Admission(who.clone())).await?,
        };
        let access: Option<Versioned<Access>> = match app {
            Some(app) => self.visor.get(&Key::Access(app.clone())).await?,
            None => None,
        };
        let admission = admission.map(|found| found.value);
        Ok(access::may(caller, act, admission.as_ref(), access.map(|found| found.value).as_ref()))
    }
}

/// Writes log lines to stderr: for people on a terminal, as JSON where `BAZOOKA_LOG_FORMAT=json`, as entries with fields where
/// stderr is systemd's journal.
///
/// What is logged is set by `BAZOOKA_LOG` (`info` unless set).
pub fn init_logs() {
    let filter = EnvFilter::try_from_env("BAZOOKA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let json = std::env::var("BAZOOKA_LOG_FORMAT").is_ok_and(|format| format == "json");
    if let Some(journal) = journal::Journal::find().filter(|_| !json) {
        tracing_subscriber::registry().with(filter).with(journal).init();
        return;
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if json {
        lines.json().flatten_event(true).init();
    } else {
        lines.init();
    }
}

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// If the handlers can't be installed.
pub fn shutdown() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}

/// Readiness as a latch: ready once each part that asked for time has dropped its [`NotReady`].
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<usize>);

/// Holds readiness back until it is dropped.
#[derive(Debug)]
pub struct NotReady(watch::Sender<usize>);

impl Default for Readiness {
    fn default() -> Self {
        Readiness(watch::Sender::new(0))
    }
}

impl Readiness {
    /// Holds readiness back for one more part.
    pub fn hold(&self) -> NotReady {
        self.0.send_modify(|held| *held += 1);
        NotReady(self.0.clone())
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow() == 0
    }

    /// Waits until every part is ready.
    pub async fn reached(&self) {
        // It can't be closed while this holds a sender.
        let _ = self.0.subscribe().wait_for(|held| *held == 0).await;
    }
}

impl Drop for NotReady {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

/// The metrics of a process, to be filled at start and read by `/metrics`.
pub type Metrics = Arc<Mutex<Registry>>;

/// `/healthz` (the process answers), `/readyz` (503 until every part is ready) and, for who is admitted, `/metrics`.
pub fn common_routes(readiness: Readiness, metrics: Metrics, cluster: &Cluster) -> Router {
    let ready = move || async move {
        if readiness.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
        }
    };
    let metrics = move |State(cluster): State<Cluster>,
                        Extension(caller): Extension<Caller>,
                        headers: HeaderMap| async move {
        match cluster.may(&caller, Act::Metrics, None).await {
            Ok(true) => {}
            Ok(false) => return refused(&caller).into_response(),
            Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
        }
        let format = Format::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
        let registry = metrics.lock().expect("no holder of this lock panics");
        match expose(&registry, format) {
            Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(cluster.clone())
}

/// The answer to who may not: 401 to nobody known, 403 to everyone else, in words.
pub fn refused(caller: &Caller) -> (StatusCode, String) {
    match caller {
        Caller::Known(who) => (
            StatusCode::FORBIDDEN,
            format!("{who} may not do this; an operator can grant it: bazooka access grant\n"),
        ),
        _ => (StatusCode::UNAUTHORIZED, "this takes a certificate of the cluster's authority\n".into()),
    }
}

/// Opens a daemon's endpoint, and says where it came to listen (port 0: the kernel chooses).
///
/// # Errors
/// In words that name the address.
pub async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let listener =
        TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("can't listen on {address}: {error}"))?;
    Ok((listener, address))
}

/// Serves an endpoint until `shutdown`, and then what is under way for 2 s at most: a log that is being
/// followed would never end. With an identity it is TLS, and each request knows its [`Caller`].
pub async fn serve(listener: TcpListener, routes: Router, cluster: &Cluster, shutdown: CancellationToken) {
    let callers = cluster.callers();
    let routes = routes.layer(from_fn(move |request, next| callers.clone().find_out(request, next)));
    let routes = routes.into_make_service_with_connect_info::<Peer>();
    let end = shutdown.clone().cancelled_owned();
    let serving = async {
        match &cluster.credentials {
            None => axum::serve(listener, routes).with_graceful_shutdown(end).await,
            Some(credentials) => {
                let listener = TlsListener::new(listener, credentials.clone())?;
                axum::serve(listener, routes).with_graceful_shutdown(end).await
            }
        }
    };
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::error!(error = %error, "the endpoint failed");
            }
        }
        () = async {
            shutdown.cancelled().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        } => {}
    }
}
