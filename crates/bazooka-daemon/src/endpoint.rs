//! A daemon's HTTP endpoint: its address, the routes that every daemon has, and its serving and end.
//!
//! Owns `/healthz`, `/readyz`, `/metrics` and the answer to a caller without permission. A daemon's own routes are
//! merged with these.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use visor::{access::Act, identity::Caller};

use crate::{
    callers::{Callers, GitFronts},
    cluster::Cluster,
    exposition::{Format, expose},
    foreign::{KnownHosts, look},
    loops::LoopEnded,
    paced::paced,
    places::Bounds,
    readiness::Readiness,
    server::{EndpointMetrics, Server, places},
};

/// The connections that the kernel keeps until they are accepted. Beyond it a client waits a second before it tries again,
/// so it is more than come at once.
const BACKLOG: u32 = 4_096;

/// The largest body in bytes but git's, which its handlers bound. An SSH key has some hundred bytes.
const MOST_BODY: usize = 64 << 10;

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
    let listener = bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As the standard library does: connections of an earlier daemon don't keep the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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

/// The routes of an endpoint, and who may use them.
#[derive(Clone, Debug)]
pub struct Door {
    routes: Router,
    metrics: Metrics,
    bounds: Bounds,
    known: KnownHosts,
    git: Option<GitFronts>,
}

impl Door {
    /// Serves these routes, with the usual bounds. What is counted of the endpoint is registered with `metrics`.
    pub fn new(routes: Router, metrics: Metrics) -> Door {
        Door { routes, metrics, bounds: Bounds::USUAL, known: KnownHosts::default(), git: None }
    }

    /// Adds the URLs by which others reach the endpoint, beside its IP addresses and `localhost`. Without identities,
    /// requests for other names are refused.
    pub fn known_as<'a>(self, urls: impl IntoIterator<Item = &'a str>) -> Door {
        Door { known: KnownHosts::of(urls), ..self }
    }

    /// Has the endpoint serve git, too, with the bounds and the tokens for it.
    pub fn with_git(self, git: GitFronts) -> Door {
        Door { bounds: Bounds::OF_RM, git: Some(git), ..self }
    }

    /// Puts everything before the routes that each request passes: first the refusal of web pages, then the caller.
    fn server(self, cluster: &Cluster) -> Server {
        let places = places(self.bounds);
        let metrics = {
            let mut registry = self.metrics.lock().expect("no holder of this lock panics");
            EndpointMetrics::register(&mut registry, &places)
        };
        let callers = Callers::new(cluster.credentials.clone(), self.git.clone());
        let guard =
            Guard { known: cluster.credentials.is_none().then_some(self.known), metrics: metrics.clone() };
        let routes = self
            .routes
            .layer(DefaultBodyLimit::max(MOST_BODY))
            .layer(from_fn(move |request, next| callers.clone().find_out(request, next)))
            .layer(from_fn(move |request, next| guard.clone().refuse(request, next)));
        Server { routes, credentials: cluster.credentials.clone(), places, git: self.git, metrics }
    }
}

/// Refuses what web pages send.
#[derive(Clone)]
struct Guard {
    /// The endpoint's own names; none where callers have identities.
    known: Option<KnownHosts>,
    metrics: EndpointMetrics,
}

impl Guard {
    async fn refuse(self, request: Request, next: Next) -> Response {
        match look(&request, self.known.as_ref()) {
            Ok(()) => next.run(paced(request)).await,
            Err(foreign) => {
                tracing::debug!(path = request.uri().path(), reason = %foreign, "a request is refused");
                self.metrics.foreign.get_or_create(&[("reason", foreign.reason())]).inc();
                foreign.into_response()
            }
        }
    }
}

impl Serving {
    /// Serves an endpoint until `end` is cancelled. Running requests then have 2 s at most, because a followed log would
    /// never end. With an identity it serves TLS, and each request has its [`Caller`].
    pub fn start(listener: TcpListener, door: Door, cluster: &Cluster, end: CancellationToken) -> Serving {
        let task = tokio::spawn(door.server(cluster).serve(listener, end.clone()));
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
