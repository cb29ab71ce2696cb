//! Requests for slugs, by hosts and other rms.

use std::io;

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio_util::io::ReaderStream;
use visor::{
    access::Act,
    identity::{Caller, Identity, Kind},
    keys,
    names::Digest,
    snapshot::HostView,
};

use super::{ApiError, allow};
use crate::{
    rm::SharedRm,
    storage::{self, StorageError},
};

/// The number of bytes read from the disk at a time.
const CHUNK: usize = 64 * 1024;

/// Handles `GET /slugs/SHA256` (and `HEAD`). A stored slug is complete; a host verifies it all the same.
pub async fn serve(
    State(rm): State<SharedRm>,
    Extension(caller): Extension<Caller>,
    method: Method,
    Path(sha256): Path<String>,
) -> Result<Response, ApiError> {
    let sha256: Digest = sha256.parse().map_err(|error: visor::names::InvalidName| {
        ApiError::new(StatusCode::BAD_REQUEST, error.to_string(), "")
    })?;
    may_have(&rm, &caller, &sha256).await?;
    let failed =
        |error: io::Error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), "try again");
    let file = match tokio::fs::File::open(rm.layout.slug(&sha256)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(stored) = stored(&rm, &method, &sha256).await? {
                return Ok(stored);
            }
            rm.metrics.slug_requested("missing");
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("there is no slug {sha256}"),
                "another rm may have it",
            ));
        }
        Err(error) => return Err(failed(error)),
    };
    let length = file.metadata().await.map_err(failed)?.len();
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        rm.metrics.slug_requested("served");
        Body::from_stream(ReaderStream::with_capacity(file, CHUNK))
    };
    Ok(answer(length, body))
}

/// Rejects callers who may not have a slug: only hosts with an assignment that needs it and other rms may.
async fn may_have(rm: &SharedRm, caller: &Caller, sha256: &Digest) -> Result<(), ApiError> {
    allow(rm, caller, Act::Slug, None).await?;
    let Caller::Known(Identity::Daemon(Kind::Pm, host)) = caller else { return Ok(()) };
    let told = rm.visor.read(vec![keys::assigned_to(host)]).await?;
    let runs = |view: &HostView| view.assigned.values().any(|assigned| assigned.slug.sha256 == *sha256);
    if told.hosts.get(host).is_some_and(runs) {
        return Ok(());
    }
    let words = format!("host '{host}' runs nothing of slug {sha256}");
    Err(ApiError::new(StatusCode::FORBIDDEN, words, "a host has the slugs of its own instances"))
}

/// Streams a slug from the shared storage.
async fn stored(rm: &SharedRm, method: &Method, sha256: &Digest) -> Result<Option<Response>, ApiError> {
    let Some(storage) = &rm.storage else { return Ok(None) };
    let name = storage::slug(sha256);
    let found = if method == Method::HEAD {
        storage.size(&name).await.map(|found| found.map(|length| (length, Body::empty())))
    } else {
        match storage.stream(&name).await {
            Ok((length, stream)) => Ok(Some((length, Body::from_stream(stream)))),
            Err(StorageError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    };
    match found {
        Ok(found) => Ok(found.map(|(length, body)| {
            rm.metrics.slug_requested("passed-on");
            answer(length, body)
        })),
        Err(error) => Err(ApiError::new(StatusCode::BAD_GATEWAY, error.to_string(), "try again")),
    }
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
