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
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use visor::{access::Act, identity::Caller};

use crate::{
    callers::{Callers, Peer},
    cluster::Cluster,
    exposition::{Format, expose},
    loops::LoopEnded,
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

/// A daemon's endpoint, served by a task of its own. Dropping this ends the task at once.
#[derive(Debug)]
pub struct Serving {
    task: AbortOnDropHandle<io::Result<()>>,
    end: CancellationToken,
    has_ended: bool,
}

/// The endpoint's name among a daemon's loops.
const NAME: &str = "the endpoint";

impl Serving {
    /// Serves an endpoint until `end` is cancelled. Running requests then have 2 s at most, because a followed log would
    /// never end. With an identity it serves TLS, and each request has its [`Caller`].
    pub fn start(
        listener: TcpListener,
        routes: Router,
        cluster: &Cluster,
        end: CancellationToken,
    ) -> Serving {
        let task = tokio::spawn(serve(listener, routes, cluster.clone(), end.clone()));
        Serving { task: AbortOnDropHandle::new(task), end, has_ended: false }
    }

    /// Waits until the endpoint ends without having been asked to.
    ///
    /// # Cancel safety
    /// If this is dropped, no end is lost.
    pub async fn ended(&mut self) -> LoopEnded {
        if !self.has_ended {
            let ended = (&mut self.task).await;
            self.has_ended = true;
            let was_asked = self.end.is_cancelled() && matches!(ended, Ok(Ok(())));
            if !was_asked {
                return LoopEnded::of(NAME, ended);
            }
        }
        std::future::pending().await
    }

    /// Ends the endpoint, and waits for its running requests.
    ///
    /// # Errors
    /// If it ended with an error that [`Serving::ended`] has not returned.
    pub async fn drain(mut self) -> Result<(), LoopEnded> {
        self.end.cancel();
        if self.has_ended {
            return Ok(());
        }
        match (&mut self.task).await {
            Ok(Ok(())) => Ok(()),
            failed => Err(LoopEnded::of(NAME, failed)),
        }
    }
}

async fn serve(
    listener: TcpListener,
    routes: Router,
    cluster: Cluster,
    end: CancellationToken,
) -> io::Result<()> {
    let callers = Callers::new(cluster.credentials.clone());
    let routes = routes.layer(from_fn(move |request, next| callers.clone().find_out(request, next)));
    let routes = routes.into_make_service_with_connect_info::<Peer>();
    let asked = end.clone().cancelled_owned();
    let serving = async {
        match &cluster.credentials {
            None => axum::serve(listener, routes).with_graceful_shutdown(asked).await,
            Some(credentials) => {
                let listener = TlsListener::new(listener, credentials.clone());
                axum::serve(listener, routes).with_graceful_shutdown(asked).await
            }
        }
    };
    tokio::select! {
        served = serving => served,
        () = async {
            end.cancelled().await;
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
    }
}
