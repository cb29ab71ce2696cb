//! Requests that add and remove people's SSH keys.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use bazooka_daemon::{CallsFrom, Cluster};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ssh_key::{HashAlg, PublicKey};
use visor::{
    access::Act,
    identity::{Caller, Identity},
    names::UserName,
    schema::SshKey,
};

use super::{ApiError, allow, read_body};
use crate::audit::Auditor;

/// The body of a request: a key as in the `.pub` file of `ssh-keygen`.
#[derive(Debug, Deserialize)]
struct Asked {
    key: String,
}

/// The answer: the key that was added or removed.
#[derive(Debug, Serialize)]
pub struct Done {
    fingerprint: String,
}

/// Handles `POST /keys`: adds a key of the caller's. Safe to repeat.
pub async fn add(
    State(cluster): State<Cluster>,
    State(auditor): State<Auditor>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    body: Body,
) -> Result<Json<Done>, ApiError> {
    let user = person(&cluster, &caller).await?;
    let body = read_body(body).await?;
    let bad = |error: String| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            error,
            "give the file with the public key: ~/.ssh/id_ed25519.pub",
        )
    };
    let asked: Asked =
        serde_json::from_slice(&body).map_err(|error| bad(format!("the request can't be read: {error}")))?;
    if asked.key.contains("PRIVATE KEY") {
        return Err(bad("this is a private key, which belongs to nobody else; it wasn't kept".into()));
    }
    let mut key = PublicKey::from_openssh(asked.key.trim())
        .map_err(|error| bad(format!("this is no public key of OpenSSH's: {error}")))?;
    let comment: String = key.comment().chars().filter(|c| !c.is_control()).take(100).collect();
    // The line written for sshd is made from the parsed key without its comment, so nothing else of the body gets into
    // it.
    key.set_comment("");
    let line = key.to_openssh().map_err(|error| bad(format!("this key can't be written: {error}")))?;
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let row = SshKey {
        key: line.trim().to_owned(),
        comment,
        at: Timestamp::now(),
        extra: visor::schema::Extra::new(),
    };
    let visor = auditor.visor(caller.to_string(), from.0, format!("keys add {fingerprint}"), None);
    visor.add_key(&user, &fingerprint, &row).await?;
    tracing::info!(%user, fingerprint, "SSH key added");
    Ok(Json(Done { fingerprint }))
}

/// Handles `DELETE /keys/FINGERPRINT`: removes a key of the caller's.
pub async fn remove(
    State(cluster): State<Cluster>,
    State(auditor): State<Auditor>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    Path(fingerprint): Path<String>,
) -> Result<Json<Done>, ApiError> {
    let user = person(&cluster, &caller).await?;
    let shown: String = fingerprint.chars().filter(|c| !c.is_control()).take(100).collect();
    let visor = auditor.visor(caller.to_string(), from.0, format!("keys remove {shown}"), None);
    visor.remove_key(&user, &fingerprint).await?;
    tracing::info!(%user, fingerprint, "SSH key removed");
    Ok(Json(Done { fingerprint }))
}

async fn person(cluster: &Cluster, caller: &Caller) -> Result<UserName, ApiError> {
    allow(cluster, caller, Act::Register, None).await?;
    match caller {
        Caller::Known(Identity::User(user)) => Ok(user.clone()),
        _ => Err(ApiError::new(
            StatusCode::CONFLICT,
            "keys are for people, and this cluster doesn't tell who asks",
            "give the cluster identities: bazooka-rm pki",
        )),
    }
}
