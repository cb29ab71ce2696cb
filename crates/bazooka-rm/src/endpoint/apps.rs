//! Requests that register and destroy apps.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use bazooka_daemon::{CallsFrom, Cluster};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use visor::{
    access::{Act, Rows},
    identity::{Caller, Identity},
    names::{AppName, InvalidName},
};

use super::{ApiError, allow, read_body};
use crate::{
    access::InForce,
    audit::Auditor,
    registrations::{Registrations, TooManyApps},
};

/// The largest body in bytes; a real one has some hundred.
const MAX_BODY: usize = 16 * 1024;

/// The body of a request to register an app.
#[derive(Debug, Deserialize)]
struct Register {
    name: String,
    owner: String,
    token: String,
}

/// The answer: an app that was registered or is being destroyed.
#[derive(Debug, Serialize)]
pub struct AppBody {
    name: AppName,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

fn too_many(bound: TooManyApps) -> ApiError {
    let hint = "destroy one that nobody needs; whoever runs bazooka-rm can raise apps-per-person in rm.toml";
    ApiError::new(StatusCode::CONFLICT, bound.to_string(), hint)
}

/// Handles `POST /apps`. Safe to repeat: the same token is the same registration.
pub async fn register(
    State(cluster): State<Cluster>,
    State(auditor): State<Auditor>,
    State(in_force): State<InForce>,
    State(registrations): State<Registrations>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    body: Body,
) -> Result<(StatusCode, Json<AppBody>), ApiError> {
    // Callers who are not admitted are rejected before their body is read.
    allow(&cluster, &caller, Act::Register, None).await?;
    let body = read_body(body).await?;
    let bad = |error: String| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            error,
            r#"send {"name": "...", "owner": "...", "token": "..."}"#,
        )
    };
    if body.len() > MAX_BODY {
        return Err(bad(format!("the request is {} bytes long; {MAX_BODY} is the most", body.len())));
    }
    let asked: Register =
        serde_json::from_slice(&body).map_err(|error| bad(format!("the request can't be read: {error}")))?;
    let name: AppName = asked.name.parse().map_err(invalid)?;
    let is_word = |text: &str, most: usize| {
        (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    };
    if !is_word(&asked.owner, 100) {
        return Err(bad("owner must be a line of 1 to 100 characters".into()));
    }
    if !is_word(&asked.token, 200) {
        return Err(bad("token must be a line of 1 to 200 characters".into()));
    }
    // A caller with an identity owns the app under that name, whatever the body says.
    let (owner, user) = match &caller {
        Caller::Known(Identity::User(user)) => (user.to_string(), Some(user)),
        Caller::Known(other) => (other.to_string(), None),
        Caller::Anyone | Caller::Unknown => (asked.owner, None),
    };
    let visor = auditor.visor(caller.to_string(), from.0, "init".into(), Some(&name));
    let registering = visor.register_app_of(&name, &owner, user, &asked.token, Timestamp::now());
    registrations.within_bound(&owner, &name, registering).await.map_err(too_many)??;
    tracing::info!(app = %name, owner, "app registered");
    if let Some(user) = user {
        // The caller's next command needs access to the app, so wait until etcd enforces it.
        let is_theirs = |rows: &Rows| rows.apps.get(&name).is_some_and(|people| people.contains(user));
        in_force.wait(true, is_theirs).await;
    }
    Ok((StatusCode::CREATED, Json(AppBody { name, owner: Some(owner) })))
}

/// Handles `DELETE /apps/A`: marks the app, whose instances are then stopped and rows deleted.
pub async fn destroy(
    State(cluster): State<Cluster>,
    State(auditor): State<Auditor>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    Path(app): Path<String>,
) -> Result<(StatusCode, Json<AppBody>), ApiError> {
    let name: AppName = app.parse().map_err(invalid)?;
    allow(&cluster, &caller, Act::App, Some(&name)).await?;
    auditor.visor(caller.to_string(), from.0, "destroy".into(), Some(&name)).destroy_app(&name).await?;
    tracing::info!(app = %name, "app is being destroyed");
    Ok((StatusCode::ACCEPTED, Json(AppBody { name, owner: None })))
}

pub(super) fn invalid(error: InvalidName) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, error.to_string(), "choose a name by that rule")
}
