//! Requests that grant and revoke access: to the cluster, to operators' rights, and to apps.

use axum::{Extension, Json, body::Body, extract::State, http::StatusCode};
use bazooka_daemon::{CallsFrom, Cluster};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use visor::{
    access::{Act, Rows},
    identity::{Caller, Identity},
    names::{AppName, UserName},
    visor::Visor,
};

use super::{ApiError, allow, read_body};
use crate::{access::InForce, audit::Auditor};

/// The body of a request to grant or revoke.
#[derive(Debug, Deserialize)]
struct Asked {
    who: String,
    /// The app to which access is granted; `None` for admission to the cluster.
    #[serde(default)]
    app: Option<String>,
    /// True for an operator's rights.
    #[serde(default)]
    operator: bool,
}

/// The answer: whether etcd enforces the change already.
#[derive(Debug, Serialize)]
pub struct Done {
    in_force: bool,
}

enum What {
    App(AppName),
    Operator,
    Admission,
}

/// Handles `POST /access/grant`. Safe to repeat.
pub async fn grant(
    State(cluster): State<Cluster>,
    State(auditor): State<Auditor>,
    State(in_force): State<InForce>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let Order { who, what, by, visor } = order(&cluster, &auditor, &caller, from, "grant", body).await?;
    let now = Timestamp::now();
    match &what {
        What::App(app) => visor.grant_app(app, person(&who)?, &by, now).await?,
        What::Operator => {
            person(&who)?;
            visor.admit(&who, true, &by, now).await?;
        }
        What::Admission => visor.admit(&who, false, &by, now).await?,
    }
    tracing::info!(%who, by, what = %words(&what), "granted");
    done(&cluster, &in_force, |rows| holds(rows, &who, &what)).await
}

/// Handles `POST /access/revoke`.
pub async fn revoke(
    State(cluster): State<Cluster>,
    State(auditor): State<Auditor>,
    State(in_force): State<InForce>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let Order { who, what, by, visor } = order(&cluster, &auditor, &caller, from, "revoke", body).await?;
    match &what {
        What::App(app) => visor.revoke_app(app, person(&who)?).await?,
        What::Operator => visor.demote(&who, &by, Timestamp::now()).await?,
        What::Admission => visor.expel(&who).await?,
    }
    tracing::info!(%who, by, what = %words(&what), "revoked");
    done(&cluster, &in_force, |rows| !holds(rows, &who, &what)).await
}

/// A request that its caller was allowed to make.
struct Order {
    who: Identity,
    what: What,
    by: String,
    /// The coordinator's rows; writes record the request in the audit.
    visor: Visor,
}

/// Reads a request and checks its caller: people of an app grant access to it, operators grant everything else.
async fn order(
    cluster: &Cluster,
    auditor: &Auditor,
    caller: &Caller,
    from: CallsFrom,
    how: &str,
    body: Body,
) -> Result<Order, ApiError> {
    // Callers who are not admitted are rejected before their body is read.
    allow(cluster, caller, Act::Register, None).await?;
    let (who, what) = read(&read_body(body).await?)?;
    let (act, app) = match &what {
        What::App(app) => (Act::App, Some(app)),
        What::Operator | What::Admission => (Act::Admit, None),
    };
    allow(cluster, caller, act, app).await?;
    let by = caller.to_string();
    let visor = auditor.visor(by.clone(), from.0, format!("access {how} {who}: {}", words(&what)), app);
    Ok(Order { who, what, by, visor })
}

async fn done(
    cluster: &Cluster,
    in_force: &InForce,
    is_so: impl FnMut(&Rows) -> bool,
) -> Result<Json<Done>, ApiError> {
    let in_force = in_force.wait(cluster.credentials.is_some(), is_so).await;
    Ok(Json(Done { in_force }))
}

fn holds(rows: &Rows, who: &Identity, what: &What) -> bool {
    match (what, who) {
        (What::App(app), Identity::User(user)) => {
            rows.apps.get(app).is_some_and(|people| people.contains(user))
        }
        (What::App(_), Identity::Daemon(..)) => false,
        (What::Operator, _) => rows.identities.get(who) == Some(&true),
        (What::Admission, _) => rows.identities.contains_key(who),
    }
}

fn words(what: &What) -> String {
    match what {
        What::App(app) => format!("app {app}"),
        What::Operator => "operator".into(),
        What::Admission => "the cluster".into(),
    }
}

fn read(body: &[u8]) -> Result<(Identity, What), ApiError> {
    let bad = |error: String| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            error,
            r#"send {"who": "...", "app": "..."}, or {"who": "...", "operator": true}, or {"who": "..."}"#,
        )
    };
    let asked: Asked =
        serde_json::from_slice(body).map_err(|error| bad(format!("the request can't be read: {error}")))?;
    let who: Identity = asked.who.parse().map_err(|error| bad(format!("{error}")))?;
    let what = match (asked.app, asked.operator) {
        (Some(_), true) => return Err(bad("an app or operator, not both".into())),
        (Some(app), false) => What::App(app.parse().map_err(|error| bad(format!("{error}")))?),
        (None, true) => What::Operator,
        (None, false) => What::Admission,
    };
    Ok((who, what))
}

fn person(who: &Identity) -> Result<&UserName, ApiError> {
    match who {
        Identity::User(user) => Ok(user),
        Identity::Daemon(..) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("{who} is a daemon, and this is for people"),
            format!("let it take part: bazooka access grant {who}"),
        )),
    }
}
