//! What this host has, whatever the coordinator knows: `GET /found`.
//!
//! Asked by who recovers a coordinator from a backup, when nobody can be asked what anybody may: so it is an rm's
//! alone, which holds all rights anyway. Config vars are sealed in it, their keys wrapped for rms that were registered.

use axum::{
    Extension, Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bazooka_daemon::refused;
use tokio::sync::oneshot;
use visor::identity::{Caller, Identity, Kind};

use super::runtime::{Answers, Message};

/// The route.
pub fn routes(engine: Answers) -> Router {
    Router::new().route("/found", get(found)).with_state(engine)
}

async fn found(State(engine): State<Answers>, Extension(caller): Extension<Caller>) -> Response {
    if !matches!(caller, Caller::Anyone | Caller::Known(Identity::Daemon(Kind::Rm, _))) {
        return refused(&caller).into_response();
    }
    let (answer, answered) = oneshot::channel();
    engine.send(Message::Asked(answer));
    match answered.await {
        Ok(found) => Json(found).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "this bazooka-pm ends\n").into_response(),
    }
}
