//! What every daemon's first screen needs: arguments, logs, shutdown, readiness, the endpoint's common part.
//!
//! Owns nothing of what a daemon does. Each daemon's `main` reads: logs, arguments, listen, wait for the
//! coordinator, run until [`shutdown`].

use std::{
    io::IsTerminal,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    store::{
        SharedStore,
        etcd::{EtcdConfig, EtcdStore},
    },
    visor::Visor,
};

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
}

impl CoordinatorArgs {
    /// A store over these endpoints. Nothing is connected yet.
    ///
    /// # Errors
    /// If an endpoint is no URL, in words for the user.
    pub fn store(&self) -> Result<SharedStore, String> {
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.contains("//") {
            return Err(format!("prefix {:?} must begin with a slash and not end with one", self.prefix));
        }
        for endpoint in &self.coordinator {
            let url: Result<axum::http::Uri, _> = endpoint.parse();
            if !url.is_ok_and(|url| url.scheme().is_some() && url.host().is_some()) {
                return Err(format!("coordinator {endpoint:?} must be a URL such as http://127.0.0.1:2379"));
            }
        }
        let config = EtcdConfig::new(self.coordinator.clone(), self.prefix.clone());
        Ok(Arc::new(EtcdStore::new(config)))
    }

    /// A handle on the cluster's state, over [`CoordinatorArgs::store`].
    ///
    /// # Errors
    /// As [`CoordinatorArgs::store`].
    pub fn visor(&self) -> Result<Visor, String> {
        Ok(Visor::new(self.store()?))
    }
}

/// Writes log lines to stderr: for people on a terminal, as JSON where `BAZOOKA_LOG_FORMAT=json`.
///
/// What is logged is set by `BAZOOKA_LOG` (`info` unless set).
pub fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BAZOOKA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if std::env::var("BAZOOKA_LOG_FORMAT").is_ok_and(|format| format == "json") {
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
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicUsize>);

/// Holds readiness back until it is dropped.
#[derive(Debug)]
pub struct NotReady(Arc<AtomicUsize>);

impl Readiness {
    /// Holds readiness back for one more part.
    pub fn hold(&self) -> NotReady {
        self.0.fetch_add(1, Ordering::SeqCst);
        NotReady(self.0.clone())
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Drop for NotReady {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The metrics of a process, to be filled at start and read by `/metrics`.
pub type Metrics = Arc<Mutex<Registry>>;

/// `/healthz` (the process answers), `/readyz` (503 until every part is ready) and `/metrics` (OpenMetrics).
pub fn common_routes(readiness: Readiness, metrics: Metrics) -> Router {
    let ready = move || async move {
        if readiness.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
        }
    };
    let metrics = move || async move {
        let mut text = String::new();
        let registry = metrics.lock().expect("no holder of this lock panics");
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([("content-type", kind)], text).into_response()
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
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
/// followed would never end.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: CancellationToken) {
    let graceful = axum::serve(listener, routes).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        served = graceful => {
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
