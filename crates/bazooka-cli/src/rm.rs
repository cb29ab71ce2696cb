//! A client of bazooka-rm.
//!
//! Owns the HTTP requests. bazooka-rm registers and destroys apps, because an app's name affects the whole cluster.

use std::time::Duration;

use bazooka_daemon::http_client;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use visor::{
    identity::Identity,
    keys,
    names::{AppName, EnvRef},
    seal::Vars,
    snapshot::Snapshot,
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
};

/// The limit of a request. bazooka-rm answers at once, because it only writes to the coordinator.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The registration of an app.
#[derive(Clone, Debug, Serialize)]
pub struct NewApp<'a> {
    /// The app's name.
    pub name: &'a AppName,
    /// The user who registers the app.
    pub owner: &'a str,
    /// A token of this registration, so that the request may be repeated.
    pub token: &'a str,
}

/// The body of bazooka-rm's error responses.
#[derive(Debug, Default, Deserialize)]
struct No {
    #[serde(default)]
    error: String,
    #[serde(default)]
    hint: String,
}

/// Registers an app.
///
/// # Errors
/// `Refused` if the name is taken; if no bazooka-rm answers.
pub async fn register(context: &Context, app: &NewApp<'_>) -> Result<()> {
    ask(context, Method::POST, "/apps", Some(app)).await.map(drop)
}

/// Asks bazooka-rm to destroy an app.
///
/// # Errors
/// If there is no such app; if no bazooka-rm answers.
pub async fn destroy(context: &Context, app: &AppName) -> Result<()> {
    ask::<()>(context, Method::DELETE, &format!("/apps/{app}"), None).await.map(drop)
}

/// The access to grant or revoke, and its user.
#[derive(Clone, Debug, Serialize)]
pub struct Access<'a> {
    /// The identity that gains or loses the access.
    pub who: &'a Identity,
    /// The app, for access to one app.
    pub app: Option<&'a AppName>,
    /// True for operator rights.
    pub operator: bool,
}

/// The result of a change of access.
#[derive(Clone, Debug, Deserialize)]
pub struct Changed {
    /// True if the change is in force in the coordinator already.
    pub in_force: bool,
}

/// Grants access (`how` is `grant`) or revokes it.
///
/// # Errors
/// If the user may not; if there is no such app; if no bazooka-rm answers.
pub async fn access(context: &Context, how: &str, what: &Access<'_>) -> Result<Changed> {
    let answer = ask(context, Method::POST, &format!("/access/{how}"), Some(what)).await?;
    answer
        .json()
        .await
        .map_err(|error| Failure::from_error(Kind::Failed, "bazooka-rm's answer can't be read", &error))
}

/// The response to an added key.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyAdded {
    /// The key's fingerprint, which names it.
    pub fingerprint: String,
}

/// Adds an SSH key of the user.
///
/// # Errors
/// If the text is no key; without an identity; if no bazooka-rm answers.
pub async fn add_key(context: &Context, key: &str) -> Result<KeyAdded> {
    let answer = ask(context, Method::POST, "/keys", Some(&serde_json::json!({ "key": key }))).await?;
    answer
        .json()
        .await
        .map_err(|error| Failure::from_error(Kind::Failed, "bazooka-rm's answer can't be read", &error))
}

/// Removes an SSH key of the user.
///
/// # Errors
/// If there is no such key; without an identity; if no bazooka-rm answers.
pub async fn remove_key(context: &Context, fingerprint: &str) -> Result<()> {
    // A fingerprint is base64, whose `+` and `/` have other meanings in a URL; `%` doesn't occur in it.
    let word: String =
        fingerprint.chars().filter(|c| c.is_ascii_alphanumeric() || "+/:=".contains(*c)).collect();
    ask::<()>(context, Method::DELETE, &format!("/keys/{}", word.replace('+', "%2B")), None).await.map(drop)
}

/// Reads the values of an env, which a bazooka-rm with the key opens. `snapshot` has the rms and the credentials for
/// them.
///
/// # Errors
/// If no bazooka-rm that can open them answers. No error contains a value.
pub async fn vars(context: &Context, snapshot: &Snapshot, app: &AppName, env: EnvRef) -> Result<Vars> {
    let mut failure =
        Failure::new(Kind::PartMissing, format!("no bazooka-rm opens the config vars of app '{app}'"));
    let mut asked = false;
    let client = client(context)?;
    for (name, rm) in &snapshot.rms {
        if rm.seal_key.is_none() {
            continue;
        }
        asked = true;
        let url = format!("{}/apps/{app}/envs/{env}", rm.url.trim_end_matches('/'));
        let request = client.get(url);
        let ask = snapshot.asks.get(name).or_else(|| snapshot.earlier_asks.get(name));
        let request = match ask {
            Some(ask) => request.bearer_auth(&ask.word),
            None => request,
        };
        match request.send().await {
            Ok(answer) if answer.status().is_success() => {
                let text = answer.bytes().await.unwrap_or_default();
                match serde_json::from_slice(&text) {
                    Ok(vars) => return Ok(vars),
                    Err(_) => failure = failure.because(format!("{name}: its answer can't be read")),
                }
            }
            Ok(answer) => match read(answer).await {
                Err(no) if no.kind == Kind::Refused => return Err(no),
                Err(no) => failure = failure.because(format!("{name}: {}", no.what)),
                Ok(_) => {}
            },
            Err(error) => failure = failure.because(format!("{name}: {}", chain(&error))),
        }
    }
    if !asked {
        failure = failure.because("none is registered that can");
    }
    Err(failure.hint("they are sealed, and hosts and bazooka-rm alone have keys; start a bazooka-rm that has been there before"))
}

fn client(context: &Context) -> Result<reqwest::Client> {
    let client = http_client(context.credentials.as_ref()).timeout(TIMEOUT).build();
    client.map_err(|error| Failure::from_error(Kind::Failed, "no HTTP client can be made", &error))
}

async fn ask<B: Serialize>(
    context: &Context,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<reqwest::Response> {
    let there = context.visor.read(vec![keys::rms()]).await?;
    let missing = || Failure::new(Kind::PartMissing, "no bazooka-rm answers");
    if there.rms.is_empty() {
        return Err(missing().because("none is registered").hint("start one: bazooka-rm, or bazooka dev"));
    }
    let client = client(context)?;
    let mut failure = missing();
    for rm in there.rms.values() {
        let mut request = client.request(method.clone(), format!("{}{path}", rm.url.trim_end_matches('/')));
        if let Some(body) = body {
            request = request.json(body);
        }
        match request.send().await {
            Ok(answer) => return read(answer).await,
            // Both requests may be repeated, because they carry a token or a mark.
            Err(error) => failure = failure.because(format!("{}: {}", rm.url, chain(&error))),
        }
    }
    Err(failure)
}

async fn read(answer: reqwest::Response) -> Result<reqwest::Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::Unknown,
        StatusCode::BAD_REQUEST => Kind::Usage,
        status if status.is_client_error() => Kind::Refused,
        _ => Kind::Failed,
    };
    let text = answer.text().await.unwrap_or_default();
    let no: No = serde_json::from_str(&text).unwrap_or_default();
    let failure = if no.error.is_empty() {
        Failure::new(kind, format!("bazooka-rm answered {status}"))
    } else {
        Failure::new(kind, no.error)
    };
    Err(if no.hint.is_empty() { failure } else { failure.hint(no.hint) })
}

/// Formats an error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        words.push_str(": ");
        words.push_str(&source.to_string());
        next = source.source();
    }
    words
}
