//! The state of this host, independently of the coordinator: `GET /found`.
//!
//! An rm asks for it when it recovers a coordinator from a backup. At that time no coordinator can say who may see
//! what, so only rms may ask, which hold all rights anyway. Config vars in the answer are sealed, with their keys
//! wrapped for rms that were registered.

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

/// Returns the route.
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
