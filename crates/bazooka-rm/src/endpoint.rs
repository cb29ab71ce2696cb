//! The HTTP endpoint: apps, access, keys, slugs, the page, and git's smart HTTP.

mod access;
mod apps;
pub mod envs;
pub mod git;
mod keys;
pub(crate) mod process;
pub mod slugs;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::FromRef,
    http::StatusCode,
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use bazooka_daemon::{Cluster, Metrics, Readiness, common_routes};
use serde::Serialize;
use tower_http::decompression::RequestDecompressionLayer;
use visor::{
    access::Act,
    identity::Caller,
    names::AppName,
    store::StoreError,
    visor::{Refusal, VisorError},
};

use self::{envs::Envs, git::GitService, slugs::SlugService};
use crate::{
    access::InForce,
    audit::{Auditor, refusals::Refusals},
    page,
    registrations::Registrations,
    tasks::Errands,
};

/// The largest body in bytes but git's. An SSH key has some hundred.
const MOST_BODY: usize = 64 << 10;

/// The parts of bazooka-rm that its endpoint serves. Each handler takes those that it needs.
#[derive(Clone)]
pub struct Parts {
    /// The cluster, and this rm's identity in it.
    pub cluster: Cluster,
    /// The coordinator's rows for audited changes.
    pub auditor: Auditor,
    /// The note-taker of refused requests.
    pub refusals: Refusals,
    /// The access rights that etcd enforces now.
    pub in_force: InForce,
    /// The bound of each person's apps.
    pub registrations: Registrations,
    /// The repositories for git's requests.
    pub git: GitService,
    /// The slugs for hosts' requests.
    pub slugs: SlugService,
    /// The config vars.
    pub envs: Envs,
    /// Tasks that were started by requests and outlive them.
    pub errands: Errands,
}

/// Lets a handler take these parts as its `State`.
macro_rules! handed_out {
    ($($field:ident: $part:ty),*) => {
        $(impl FromRef<Parts> for $part {
            fn from_ref(parts: &Parts) -> $part {
                parts.$field.clone()
            }
        })*
    };
}

handed_out! {
    cluster: Cluster,
    auditor: Auditor,
    in_force: InForce,
    registrations: Registrations,
    git: GitService,
    slugs: SlugService,
    envs: Envs
}

/// Returns all routes.
pub fn routes(parts: Parts, readiness: Readiness, metrics: Metrics) -> Router {
    let git = Router::new()
        .route("/{repo}/info/refs", get(git::info_refs))
        .route("/{repo}/git-receive-pack", post(git::receive_pack))
        .route("/{repo}/git-upload-pack", post(git::upload_pack))
        // Git compresses its request when it fetches.
        .layer(RequestDecompressionLayer::new())
        .layer(from_fn(git::challenge));
    Router::new()
        .route("/apps", post(apps::register))
        .route("/apps/{app}", delete(apps::destroy))
        .route("/access/grant", post(access::grant))
        .route("/access/revoke", post(access::revoke))
        .route("/keys", post(keys::add))
        .route("/keys/{*fingerprint}", delete(keys::remove))
        .route("/apps/{app}/envs/{env}", get(envs::show))
        .route("/slugs/{sha256}", get(slugs::serve))
        .merge(git)
        .with_state(parts.clone())
        .merge(page::routes(parts.cluster.clone(), parts.errands.clone()))
        .merge(common_routes(readiness, metrics, &parts.cluster))
        .layer(from_fn_with_state(parts.refusals.clone(), Refusals::note))
}

/// Rejects a caller who may not perform an act.
pub(crate) async fn allow(
    cluster: &Cluster,
    caller: &Caller,
    act: Act,
    app: Option<&AppName>,
) -> Result<(), ApiError> {
    if cluster.may(caller, act, app).await? {
        return Ok(());
    }
    let what = match (act, app) {
        (Act::Register, _) => "register apps".to_owned(),
        (Act::App, Some(app)) => format!("do this to app '{app}'"),
        (Act::Admit, _) => "say who takes part".to_owned(),
        _ => "do this".to_owned(),
    };
    Err(match (caller, app) {
        (Caller::Known(who), Some(app)) => ApiError::new(
            StatusCode::FORBIDDEN,
            format!("{who} may not {what}"),
            format!("one of its people or an operator can grant it: bazooka access grant {who} {app}"),
        ),
        (Caller::Known(who), None) => ApiError::new(
            StatusCode::FORBIDDEN,
            format!("{who} may not {what}"),
            format!("an operator can grant it: bazooka access grant {who}"),
        ),
        _ => ApiError::new(
            StatusCode::UNAUTHORIZED,
            "this takes an identity",
            "name its folder with --identity or BAZOOKA_IDENTITY",
        ),
    })
}

/// Reads the body of a request. To be called once the caller's right is known, so that nobody else's body holds anything
/// up.
///
/// # Errors
/// If it is longer than the endpoint takes, or doesn't come.
async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, MOST_BODY).await.map_err(|error| {
        let words = format!("the request's body can't be read: {error}");
        ApiError::new(
            StatusCode::BAD_REQUEST,
            words,
            format!("{MOST_BODY} bytes are the most, and 30 seconds"),
        )
    })
}

/// A failed call of the API, in words for the caller.
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
            VisorError::Refused(Refusal::NotAdmitted(_)) => {
                (StatusCode::CONFLICT, "an operator lets people in: bazooka access grant NAME")
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
