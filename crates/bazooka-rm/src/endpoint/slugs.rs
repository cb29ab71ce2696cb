//! Requests for slugs, by hosts and other rms.

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bazooka_daemon::Cluster;
use visor::{
    access::Act,
    identity::{Caller, Identity, Kind},
    keys,
    names::Digest,
    snapshot::HostView,
};

use super::{ApiError, allow};
use crate::{
    metrics::RmMetrics,
    slugs::{Found, Slugs, Unreadable},
};

/// The slugs for hosts' requests.
#[derive(Clone)]
pub struct SlugService {
    /// The cluster, and this rm's identity in it.
    pub cluster: Cluster,
    /// The slugs.
    pub slugs: Slugs,
    /// The metrics.
    pub metrics: RmMetrics,
}

/// Handles `GET /slugs/SHA256` (and `HEAD`). A stored slug is complete; a host verifies it all the same.
pub async fn serve(
    State(service): State<SlugService>,
    Extension(caller): Extension<Caller>,
    method: Method,
    Path(sha256): Path<String>,
) -> Result<Response, ApiError> {
    let sha256: Digest = sha256.parse().map_err(|error: visor::names::InvalidName| {
        ApiError::new(StatusCode::BAD_REQUEST, error.to_string(), "")
    })?;
    may_have(&service.cluster, &caller, &sha256).await?;
    let with_bytes = method != Method::HEAD;
    let found = service.slugs.find(&sha256, with_bytes).await.map_err(|error| {
        let status = match error {
            Unreadable::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Unreadable::Storage(_) => StatusCode::BAD_GATEWAY,
        };
        ApiError::new(status, error.to_string(), "try again")
    })?;
    let Some(Found { length, bytes, is_passed_on }) = found else {
        service.metrics.slug_requested("missing");
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("there is no slug {sha256}"),
            "another rm may have it",
        ));
    };
    if is_passed_on {
        service.metrics.slug_requested("passed-on");
    } else if with_bytes {
        service.metrics.slug_requested("served");
    }
    Ok(answer(length, bytes.map_or_else(Body::empty, Body::from_stream)))
}

/// Rejects callers who may not have a slug: only hosts with an assignment that needs it and other rms may.
async fn may_have(cluster: &Cluster, caller: &Caller, sha256: &Digest) -> Result<(), ApiError> {
    allow(cluster, caller, Act::Slug, None).await?;
    let Caller::Known(Identity::Daemon(Kind::Pm, host)) = caller else { return Ok(()) };
    let told = cluster.visor.read(vec![keys::assigned_to(host)]).await?;
    let runs = |view: &HostView| view.assigned.values().any(|assigned| assigned.slug.sha256 == *sha256);
    if told.hosts.get(host).is_some_and(runs) {
        return Ok(());
    }
    let words = format!("host '{host}' runs nothing of slug {sha256}");
    Err(ApiError::new(StatusCode::FORBIDDEN, words, "a host has the slugs of its own instances"))
}

fn answer(length: u64, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/zstd".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        // A slug's name never has other bytes.
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable".to_owned()),
    ];
    (headers, body).into_response()
}
