//! The answers of a host that is asked to wrap the key of an env for another host.
//!
//! Owns the time of each answer. The converger asks a host that has the env when no bazooka-rm does it, and only such a
//! host can answer: the env's key is opened with the host's own, and sealed again at once. No config var is opened.

use std::time::Duration;

use tokio::time::Instant;
use visor::{
    keys::{self, Key},
    mirror::Mirror,
    names::{AppName, EnvRef, HostName},
    pause::until,
    planted::{Bug, planted},
    schema::{Handed, WrapRequest},
    seal::OpenError,
    snapshot::{Snapshot, Versioned},
    transitions::envs::{Answered, are_of_registrations},
    visor::{Visor, VisorError},
};

use super::vault::Vault;

/// The pause before a failed answer is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Answers the requests to a host, for ever.
pub async fn run(visor: Visor, host: HostName, vault: Vault) {
    until_there_may_be_some(&visor).await;
    let scopes = vec![keys::wrap_requests_to(&host)];
    let mut mirror = Mirror::new(visor.store().clone(), scopes, Snapshot::default());
    let mut again: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            _ = mirror.next() => {}
            () = until(again) => again = None,
        }
        if !mirror.is_synced() || again.is_some() || planted(Bug::NoHostWrapsForOthers) {
            continue;
        }
        if let Err(error) = answer(&visor, &host, &vault, mirror.image()).await {
            tracing::warn!(error = %error, "can't wrap config vars for another host; trying again");
            again = Some(Instant::now() + AGAIN);
        }
    }
}

/// Waits for the version of the schema from which on there are requests. Before that a bazooka-rm of an earlier release may
/// rule over etcd's roles, which gives no right to read them.
async fn until_there_may_be_some(visor: &Visor) {
    let mut mirror = Mirror::new(visor.store().clone(), vec![keys::schema()], Snapshot::default());
    while !are_of_registrations(mirror.image()) {
        mirror.next().await;
    }
}

/// Answers each open request for an env that this host has.
async fn answer(visor: &Visor, own: &HostName, vault: &Vault, image: &Snapshot) -> Result<(), VisorError> {
    for (app, view) in &image.apps {
        for ((by, env, to), request) in view.wrap_requests.iter().filter(|(_, row)| row.key.is_none()) {
            let has: Option<Versioned<Handed>> =
                visor.get(&Key::Handed(own.clone(), app.clone(), *env)).await?;
            let Some(has) = has else { continue };
            match wrapped(vault, &has, request) {
                Ok(answered) => {
                    // An rm may have answered meanwhile, or the request has ended.
                    visor.commit(answered.change((by, to), app, *env, request)).await?;
                    tracing::info!(%app, %env, host = %to, action = "wrap", "wrapped config vars for another host");
                }
                Err(error) => note(app, *env, to, error),
            }
        }
    }
    Ok(())
}

fn wrapped(vault: &Vault, has: &Handed, request: &WrapRequest) -> Result<Answered, OpenError> {
    let mut wraps = vault.wrapped_for(has, [&request.to])?;
    wraps.remove(&request.to).map(Answered).ok_or(OpenError::NotForUs)
}

fn note(app: &AppName, env: EnvRef, to: &HostName, error: OpenError) {
    tracing::warn!(%app, %env, host = %to, error = %error, "can't wrap config vars for another host");
}
