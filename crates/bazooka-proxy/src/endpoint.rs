//! What bazooka-proxy is asked over HTTP, beside health and its own metrics: who is where, and HAProxy's metrics.
//!
//! Owns who may ask. It decides nothing, and no visitor of an app comes here: it is the daemon's own endpoint, behind TLS
//! where the cluster tells its parts apart.
//!
//! ```text
//! GET /sd                  targets, for Prometheus
//! GET /services/APP/PROC   where a service is, as by DNS
//! GET /haproxy/metrics     HAProxy's own exporter
//! ```

use std::{net::IpAddr, path::PathBuf, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bazooka_daemon::{Cluster, refused};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{net::UnixStream, time::timeout};
use visor::{
    access::Act,
    identity::Caller,
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, RevId, ZoneName},
};

use crate::{
    directory::{Shown, targets::targets},
    routes::ServiceId,
};

/// Where HAProxy's own metrics are.
pub const HAPROXY_METRICS: &str = "/haproxy/metrics";

/// How soon HAProxy must begin to answer.
const HAPROXY_ANSWERS: Duration = Duration::from_secs(5);

/// What the answers are made of.
#[derive(Clone)]
pub struct Endpoint {
    /// Who may ask.
    pub cluster: Cluster,
    /// Who is where.
    pub directory: Shown,
    /// Where this proxy stands.
    pub zone: ZoneName,
    /// Where HAProxy tells its own metrics; none: it can't.
    pub exporter: Option<PathBuf>,
}

/// The routes that are bazooka-proxy's own.
pub fn routes(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/sd", get(sd))
        .route("/services/{app}/{proc}", get(service))
        .route(HAPROXY_METRICS, get(haproxy))
        .with_state(endpoint)
}

impl Endpoint {
    /// # Errors
    /// The answer to who may not.
    async fn allow(&self, caller: &Caller, act: Act) -> Result<(), Response> {
        match self.cluster.may(caller, act, None).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(caller).into_response()),
            Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()),
        }
    }
}

/// `GET /sd`. With the coordinator gone, the last that was heard of it.
///
/// # Errors
/// 503 until there is a first list: Prometheus keeps what it has then, where an empty list would take it away.
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

/// `GET /services/APP/PROC`.
///
/// # Errors
/// 404 where there is no such service: one of which nothing runs has no instances. 503 until there is a first list.
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

/// `GET /haproxy/metrics`: what HAProxy's exporter answers, as it comes. What is asked goes through: `?scope=server`,
/// `?no-maint`.
///
/// # Errors
/// 404 where this HAProxy has none; 502 while HAProxy isn't there.
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
        // It ends with the answer's body.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| failed(&error))
    };
    match timeout(HAPROXY_ANSWERS, asking).await {
        Ok(answer) => Ok(answer?.map(Body::new).into_response()),
        Err(late) => Err(failed(&late)),
    }
}

fn not_yet() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "what runs isn't known yet\n").into_response()
}
