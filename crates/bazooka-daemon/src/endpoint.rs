//! A daemon's HTTP endpoint: its address, the routes that every daemon has, and its serving and end.
//!
//! Owns `/healthz`, `/readyz`, `/metrics` and the answer to a caller without permission. A daemon's own routes are
//! merged with these.

use std::{
    io,
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
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use visor::{access::Act, identity::Caller};

use crate::{
    callers::{Callers, Peer},
    cluster::Cluster,
    exposition::{Format, expose},
    readiness::Readiness,
    tls::TlsListener,
};

/// The longest time that running requests may go on at the end.
const GRACE: Duration = Duration::from_secs(2);

/// The metrics of a process, filled at start and read by `/metrics`.
pub type Metrics = Arc<Mutex<Registry>>;

/// An address that can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Opens a daemon's endpoint, and returns the address that it listens on (with port 0 the kernel chooses the port).
///
/// # Errors
/// [`ListenError`].
pub async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Returns the routes `/healthz` (the process answers), `/readyz` (503 until every part is ready) and, for admitted
/// callers, `/metrics`.
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

/// Returns the answer to a caller without permission: 401 to an unknown caller, 403 to every other one, with the
/// reason in words.
pub fn refused(caller: &Caller) -> (StatusCode, String) {
    match caller {
        Caller::Known(who) => (
            StatusCode::FORBIDDEN,
            format!("{who} may not do this; an operator can grant it: bazooka access grant\n"),
        ),
        _ => (StatusCode::UNAUTHORIZED, "this takes a certificate of the cluster's authority\n".into()),
    }
}

/// Serves an endpoint until `shutdown`. Running requests then have 2 s at most, because a followed log would never
/// end. With an identity it serves TLS, and each request has its [`Caller`].
pub async fn serve(listener: TcpListener, routes: Router, cluster: &Cluster, shutdown: CancellationToken) {
    let callers = Callers::new(cluster.credentials.clone());
    let routes = routes.layer(from_fn(move |request, next| callers.clone().find_out(request, next)));
    let routes = routes.into_make_service_with_connect_info::<Peer>();
    let end = shutdown.clone().cancelled_owned();
    let serving = async {
        match &cluster.credentials {
            None => axum::serve(listener, routes).with_graceful_shutdown(end).await,
            Some(credentials) => {
                let listener = TlsListener::new(listener, credentials.clone());
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
            tokio::time::sleep(GRACE).await;
        } => {}
    }
}
