//! The endpoint: apps, slugs, and git's smart HTTP.

mod apps;
mod git;
mod process;
mod slugs;

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::Serialize;
use tower_http::decompression::RequestDecompressionLayer;
use visor::{
    daemon::{Metrics, Readiness, common_routes},
    store::StoreError,
    visor::{Refusal, VisorError},
};

use crate::rm::SharedRm;

/// All routes.
pub fn routes(rm: SharedRm, readiness: Readiness, metrics: Metrics) -> Router {
    let git = Router::new()
        .route("/{repo}/info/refs", get(git::info_refs))
        .route("/{repo}/git-receive-pack", post(git::receive_pack))
        .route("/{repo}/git-upload-pack", post(git::upload_pack))
        // Git compresses what it asks for when it fetches.
        .layer(RequestDecompressionLayer::new());
    Router::new()
        .route("/apps", post(apps::register))
        .route("/apps/{app}", delete(apps::destroy))
        .route("/slugs/{sha256}", get(slugs::serve))
        .merge(git)
        .with_state(rm)
        .merge(common_routes(readiness, metrics))
}

/// A failed call of the API, in words for whoever made it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    error: String,
    hint: String,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    hint: &'a str,
}

impl ApiError {
    fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> ApiError {
        ApiError { status, error: error.into(), hint: hint.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: &self.error, hint: &self.hint })).into_response()
    }
}

impl From<VisorError> for ApiError {
    fn from(error: VisorError) -> ApiError {
        let (status, hint) = match &error {
            VisorError::Refused(Refusal::NoSuchApp(_)) => {
                (StatusCode::NOT_FOUND, "`bazooka apps` lists the apps that there are")
            }
            VisorError::Refused(Refusal::AppExists(..)) => {
                (StatusCode::CONFLICT, "choose another name, or ask its owner to let you push")
            }
            VisorError::Refused(_) => (StatusCode::CONFLICT, ""),
            VisorError::Store(StoreError::Unreachable { .. } | StoreError::OutcomeUnknown { .. })
            | VisorError::NotSetUp => {
                (StatusCode::SERVICE_UNAVAILABLE, "the coordinator (etcd) must be running; then try again")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "try again"),
        };
        ApiError::new(status, error.to_string(), hint)
    }
}
