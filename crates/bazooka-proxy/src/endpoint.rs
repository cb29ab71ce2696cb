//! bazooka-proxy's HTTP endpoint, beside health and its own metrics: the directory, and HAProxy's metrics.
//!
//! Owns the check of who may read them; it decides nothing else. Visitors of apps can't reach it: it is the daemon's
//! own endpoint, behind TLS in a cluster whose daemons have identities.
//!
//! ```text
//! GET /sd                  the targets, for Prometheus
//! GET /services/APP/PROC   the instances of a service, as by DNS
//! GET /haproxy/metrics     HAProxy's own exporter
//! ```

use std::{
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes, HttpBody},
    extract::{Path, RawQuery, State},
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bazooka_daemon::{Cluster, refused};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{net::UnixStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use visor::{
    access::Act,
    identity::Caller,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, RevId, ZoneName},
};

use crate::{
    directory::{Shown, targets::targets},
    routes::ServiceId,
};

/// The path of HAProxy's metrics.
pub const HAPROXY_METRICS: &str = "/haproxy/metrics";

/// The time that HAProxy may take to begin its answer.
const HAPROXY_ANSWERS: Duration = Duration::from_secs(5);

/// The data from which requests are answered.
#[derive(Clone)]
pub struct Endpoint {
    /// The cluster, which checks who may read.
    pub cluster: Cluster,
    /// The current directory.
    pub directory: Shown,
    /// The proxy's own zone.
    pub zone: ZoneName,
    /// The socket of HAProxy's exporter; `None` if HAProxy was built without it.
    pub exporter: Option<PathBuf>,
}

/// Returns the routes of this endpoint.
pub fn routes(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/sd", get(sd))
        .route("/services/{app}/{proc}", get(service))
        .route(HAPROXY_METRICS, get(haproxy))
        .with_state(endpoint)
}

impl Endpoint {
    /// Checks that a caller may do `act`.
    ///
    /// # Errors
    /// The response to a caller that may not, or 503 if that can't be checked.
    async fn allow(&self, caller: &Caller, act: Act) -> Result<(), Response> {
        match self.cluster.may(caller, act, None).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(caller).into_response()),
            Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()),
        }
    }
}

/// Answers `GET /sd`. While the coordinator is unreachable, the answer is the last known directory.
///
/// # Errors
/// 503 until there is a first directory: Prometheus then keeps its targets, where an empty list would remove them.
async fn sd(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Response> {
    endpoint.allow(&caller, Act::Directory).await?;
    let directory = endpoint.directory.borrow().clone();
    match directory {
        Some(directory) => {
            Ok(([(header::CACHE_CONTROL, "no-store")], Json(targets(&directory))).into_response())
        }
        None => Err(not_yet()),
    }
}

/// A service and the instances that take its requests, those of the proxy's own zone first.
#[derive(Debug, Serialize)]
struct Found {
    service: String,
    instances: Vec<FoundInstance>,
}

#[derive(Debug, Serialize)]
struct FoundInstance {
    instance: InstanceId,
    address: IpAddr,
    port: u16,
    host: HostName,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<ZoneName>,
    release: ReleaseId,
    rev: RevId,
}

/// Answers `GET /services/APP/PROC`.
///
/// # Errors
/// 404 if there is no such service (a service that runs nothing has an empty list). 503 until there is a first
/// directory.
async fn service(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Caller>,
    Path((app, proc)): Path<(String, String)>,
) -> Result<Response, Response> {
    endpoint.allow(&caller, Act::Directory).await?;
    let Some(directory) = endpoint.directory.borrow().clone() else { return Err(not_yet()) };
    let id = app.parse::<AppName>().ok().zip(proc.parse::<ProcName>().ok());
    let id = id.map(|(app, proc)| ServiceId { app, proc });
    let Some((id, places)) = id.and_then(|id| directory.services.get_key_value(&id)) else {
        return Err((StatusCode::NOT_FOUND, "there is no such service\n").into_response());
    };
    let mut routed: Vec<_> = places.iter().filter(|(_, place)| place.routed).collect();
    routed.sort_by_key(|(_, place)| place.zone.as_ref() != Some(&endpoint.zone));
    let instances = routed.into_iter().map(|(instance, place)| FoundInstance {
        instance: *instance,
        address: place.address.ip(),
        port: place.address.port(),
        host: place.host.clone(),
        zone: place.zone.clone(),
        release: place.release,
        rev: place.rev.clone(),
    });
    let found = Found { service: id.to_string(), instances: instances.collect() };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(found)).into_response())
}

/// Answers `GET /haproxy/metrics` with the response of HAProxy's exporter, unchanged. The query is passed on:
/// `?scope=server`, `?no-maint`.
///
/// # Errors
/// 404 if this HAProxy has no exporter; 502 while HAProxy doesn't answer.
async fn haproxy(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    endpoint.allow(&caller, Act::Directory).await?;
    let Some(socket) = &endpoint.exporter else {
        return Err((StatusCode::NOT_FOUND, "this HAProxy was built without its exporter\n").into_response());
    };
    let failed = |error: &dyn std::fmt::Display| {
        (StatusCode::BAD_GATEWAY, format!("HAProxy doesn't tell its metrics: {error}\n")).into_response()
    };
    let path = query.map_or_else(|| "/metrics".to_owned(), |query| format!("/metrics?{query}"));
    let request = Request::get(path).header(header::HOST, "haproxy").body(Body::empty());
    let request = request.map_err(|error| failed(&error))?;
    let asking = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| failed(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        Ok(answer.map(|body| Body::new(Carried { body, _connection: connection })))
    };
    match timeout(HAPROXY_ANSWERS, asking).await {
        Ok(answer) => Ok(answer?.into_response()),
        Err(late) => Err(failed(&late)),
    }
}

/// A response's body with the task of its connection, which ends with it. If the task panics, the body breaks off with
/// an error.
struct Carried {
    body: Incoming,
    _connection: AbortOnDropHandle<hyper::Result<()>>,
}

impl HttpBody for Carried {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn not_yet() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "what runs isn't known yet\n").into_response()
}
