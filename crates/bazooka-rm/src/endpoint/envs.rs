//! Requests for an app's opened config vars. Never logs a name or value.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL},
    },
};
use bazooka_daemon::{CallsFrom, Cluster};
use visor::{
    access::Act,
    identity::Caller,
    names::{AppName, EnvRef},
    schema::{Ask, AuditEntry},
    seal::Vars,
    transitions::envs::Opened,
    wrapping::SharedRing,
};

use super::{ApiError, allow, apps::invalid};
use crate::audit::Auditor;

/// The config vars that this rm opens.
#[derive(Clone)]
pub struct Envs {
    /// The cluster, and this rm's identity in it.
    pub cluster: Cluster,
    /// The audit, in which each reading stands.
    pub auditor: Auditor,
    /// The private keys to which config vars are sealed for this rm.
    pub ring: SharedRing,
    /// The random word that a caller without an identity presents to read config vars; only readers of `asks/` in the
    /// coordinator know it.
    pub ask: Ask,
}

/// Handles `GET /apps/A/envs/E`: returns names and values as one JSON map.
pub async fn show(
    State(envs): State<Envs>,
    Path((app, env)): Path<(String, String)>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    headers: HeaderMap,
) -> Result<([(HeaderName, &'static str); 1], Json<Vars>), ApiError> {
    let app: AppName = app.parse().map_err(invalid)?;
    let env: EnvRef = env.parse().map_err(invalid)?;
    may_see(&envs, &caller, &headers, &app).await?;
    // First the entry, then the answer: what can't be recorded isn't read.
    let what = format!("config read {env}");
    envs.auditor.note(AuditEntry::READ, caller.to_string(), from.0, what, Some(&app)).await?;
    match envs.cluster.visor.open_env(&app, env, &envs.ring.get()).await? {
        Opened::Vars(vars) => Ok(([(CACHE_CONTROL, "no-store")], Json(vars))),
        Opened::Missing => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("app '{app}' has no env {env}"),
            "`bazooka releases` shows the env of each release",
        )),
        Opened::Closed(error) => {
            tracing::error!(%app, %env, error = %error, "can't open config vars");
            Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("this bazooka-rm can't open {env} of app '{app}': {error}"),
                "another bazooka-rm that can adds a wrap for this one",
            ))
        }
    }
}

/// Rejects callers who may not see an app's config vars. With identities, only the app's people may. In a cluster
/// without identities, a caller must present this rm's word from the coordinator, which an instance can't read.
async fn may_see(envs: &Envs, caller: &Caller, headers: &HeaderMap, app: &AppName) -> Result<(), ApiError> {
    if *caller != Caller::Anyone {
        return allow(&envs.cluster, caller, Act::App, Some(app)).await;
    }
    let said = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let word = said.and_then(|said| said.strip_prefix("Bearer "));
    if word.is_some_and(|word| is_same(word.as_bytes(), envs.ask.word.as_bytes())) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "config vars are for those who can read asks/ in the coordinator",
        "use `bazooka config`",
    ))
}

/// Compares in a time that doesn't depend on where the two differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn a_word_is_the_same_from_its_first_byte_to_its_last() {
        assert!(is_same(b"word", b"word"));
        for other in ["", "wor", "words", "wOrd", "xord", "worx"] {
            assert!(!is_same(other.as_bytes(), b"word"), "{other}");
        }
    }
}
