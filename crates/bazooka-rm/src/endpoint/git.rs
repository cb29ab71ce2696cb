//! Git's smart HTTP: advertisements, fetches and pushes. The system's git handles the packs.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bazooka_daemon::{CallsFrom, Cluster, git_token::GitRequest};
use serde::Deserialize;
use tokio::time::timeout;
use visor::{
    access::Act,
    identity::{Caller, Identity},
    keys,
    names::{AppName, InvalidName},
    snapshot::AppView,
    visor::VisorError,
};

use super::process::{Answering, git};
use crate::{
    apps::Apps,
    metrics::RmMetrics,
    push::{Push, Pushes},
    repos::origin::{OpenError, Origin, OriginError},
    tasks::{Errands, unharmed},
};

/// The largest body of a push in bytes: the limit of `receive.maxInputSize`, and 1 MiB for commands.
const MAX_PUSH: u64 = 2 * 1024 * 1024 * 1024 + 1024 * 1024;

/// The largest body of a fetch in bytes.
pub const MAX_FETCH: u64 = 64 * 1024 * 1024;

/// The time that a request waits for a repository that is being made, which takes some milliseconds.
const REPOSITORY_IN: Duration = Duration::from_secs(5);

/// The reasons to reject a request, in words that the git client shows.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum Refused {
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(
        "{who} may not push to or fetch '{app}'; one of its people or an operator can grant it: bazooka access grant {who} {app}"
    )]
    NotAllowed { who: Identity, app: AppName },
    #[error("this takes an identity; `bazooka init` sets git up")]
    NoIdentity,
    #[error("bazooka-rm can't tell who may: {0}; try again in a moment")]
    Unknown(#[source] VisorError),
    #[error("bazooka-rm hasn't reached the coordinator yet; try again in a moment")]
    NotReady,
    #[error("there is no app '{0}'; `bazooka init` registers one")]
    NoSuchApp(AppName),
    #[error("app '{0}' is being destroyed")]
    Destroying(AppName),
    #[error("the repository of '{app}' can't be brought up to date: {source}; try again")]
    NotCurrent { app: AppName, source: OriginError },
    #[error("the repository of '{app}' is {url}; `git remote set-url bazooka {url}` leads there")]
    Elsewhere { app: AppName, url: String },
    #[error("the repository of '{0}' is being made; try again in a moment")]
    BeingMade(AppName),
    #[error("only git's smart protocol is spoken here")]
    DumbProtocol,
    #[error("the repository can't be read")]
    Unreadable,
    #[error("git can't be started on bazooka-rm's machine")]
    NoGit(#[source] io::Error),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Refused::Name(_) | Refused::NoSuchApp(_) | Refused::Elsewhere { .. } => StatusCode::NOT_FOUND,
            Refused::NotAllowed { .. } | Refused::DumbProtocol => StatusCode::FORBIDDEN,
            Refused::NoIdentity => StatusCode::UNAUTHORIZED,
            Refused::Destroying(_) => StatusCode::GONE,
            Refused::Unknown(_) | Refused::NotReady | Refused::NotCurrent { .. } | Refused::BeingMade(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refused::Unreadable | Refused::NoGit(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        (self.status(), kind, format!("{self}\n")).into_response()
    }
}

/// Serves as a layer: has git ask its credential helper where an identity is missing, and tells the helper for which
/// service a token is needed.
pub async fn challenge(request: Request, next: Next) -> Response {
    let asked = GitRequest::of(request.method(), request.uri());
    let mut response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED {
        let service = asked.map(|asked| format!(", service=\"{}\"", asked.service)).unwrap_or_default();
        let how = format!("Basic realm=\"bazooka\", charset=\"UTF-8\"{service}");
        if let Ok(how) = HeaderValue::try_from(how) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
    }
    response
}

/// The repositories for git's requests, over HTTP and SSH. Cheap to clone.
#[derive(Clone)]
pub struct GitService {
    /// The cluster, and this rm's identity in it.
    pub cluster: Cluster,
    /// The image of all apps.
    pub apps: Apps,
    /// The repositories.
    pub origin: Arc<dyn Origin>,
    /// The pushes under way.
    pub pushes: Arc<Pushes>,
    /// The metrics.
    pub metrics: RmMetrics,
    /// Tasks that were started by requests and outlive them.
    pub errands: Errands,
}

/// The query of `info/refs`.
#[derive(Debug, Deserialize)]
pub struct Service {
    service: Option<String>,
}

/// Handles `GET /A.git/info/refs?service=...`.
pub async fn info_refs(
    State(service): State<GitService>,
    Path(repo): Path<String>,
    Query(asked): Query<Service>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let (_, repository) = service.repository(&caller, &repo).await?;
    let command = match asked.service.as_deref() {
        Some("git-receive-pack") => "receive-pack",
        Some("git-upload-pack") => "upload-pack",
        _ => return Err(Refused::DumbProtocol),
    };
    let protocol = protocol(&headers);
    let mut git = git(&[command, "--stateless-rpc", "--advertise-refs"], &repository, protocol.as_deref());
    let told = git.output().await.map_err(no_git)?;
    if !told.status.success() {
        let error = String::from_utf8_lossy(&told.stderr).into_owned();
        tracing::error!(repo, error, "a repository can't be read");
        return Err(Refused::Unreadable);
    }
    let mut body = Vec::new();
    // Protocol version 2 has no such announcement.
    if !protocol.is_some_and(|protocol| protocol.contains("version=2")) {
        let line = format!("# service=git-{command}\n");
        body = format!("{:04x}{line}0000", line.len() + 4).into_bytes();
    }
    body.extend(told.stdout);
    Ok((answer_headers(&format!("application/x-git-{command}-advertisement")), body).into_response())
}

/// Handles `POST /A.git/git-upload-pack`: a clone or a fetch.
pub async fn upload_pack(
    State(service): State<GitService>,
    Path(repo): Path<String>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    request: Body,
) -> Result<Response, Refused> {
    let (_, repository) = service.repository(&caller, &repo).await?;
    let command = git(&["upload-pack", "--stateless-rpc"], &repository, protocol(&headers).as_deref());
    let (answering, body) = Answering::start(command).map_err(no_git)?;
    service.errands.spawn("a fetch", answering.carry(request, MAX_FETCH, || false));
    Ok((answer_headers("application/x-git-upload-pack-result"), body).into_response())
}

/// Handles `POST /A.git/git-receive-pack`: a push.
pub async fn receive_pack(
    State(service): State<GitService>,
    Path(repo): Path<String>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    headers: HeaderMap,
    request: Body,
) -> Result<Response, Refused> {
    let (app, repository) = service.repository(&caller, &repo).await?;
    let user = match &caller {
        Caller::Known(who) => Some(who.to_string()),
        Caller::Anyone | Caller::Unknown => user(&headers),
    };
    let push = service.pushes.open(app, user, from.0);
    let mut command = git(&["receive-pack", "--stateless-rpc"], &repository, protocol(&headers).as_deref());
    command.env("BAZOOKA_PUSH", &push.id);
    if let Some(user) = &push.user {
        command.env("REMOTE_USER", user);
    }
    let started = Answering::start(command);
    let (answering, body) = match started {
        Ok(started) => started,
        Err(error) => {
            service.pushes.close(&push).await;
            return Err(no_git(error));
        }
    };
    let errands = service.errands.clone();
    errands.spawn("a push", async move { service.carry_push(push, answering, request).await });
    Ok((answer_headers("application/x-git-receive-pack-result"), body).into_response())
}

impl GitService {
    /// Carries a push to its end, even if the pusher leaves, and closes it however its git process ended.
    pub async fn carry_push(&self, push: Arc<Push>, answering: Answering, request: Body) {
        self.metrics.pushes_under_way.inc();
        let carried = answering.carry(request, MAX_PUSH, || {
            push.gone.cancel();
            // Git is moving the branch; it must finish, so that head moves too.
            push.is_accepted()
        });
        unharmed("a push's process", carried).await;
        self.pushes.close(&push).await;
        self.metrics.pushes_under_way.dec();
    }

    /// Returns the app of a path and its up-to-date repository, if the caller may use them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn repository(&self, caller: &Caller, repo: &str) -> Result<(AppName, PathBuf), Refused> {
        let name = repo.strip_suffix(".git").unwrap_or(repo);
        let app: AppName = name.parse()?;
        // Checked before the request's body is read, and before the answer tells whether the app exists.
        match self.cluster.may(caller, Act::App, Some(&app)).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(match caller {
                    Caller::Known(who) => Refused::NotAllowed { who: who.clone(), app },
                    _ => Refused::NoIdentity,
                });
            }
            Err(error) => return Err(Refused::Unknown(error)),
        }
        if !self.apps.is_complete() {
            return Err(Refused::NotReady);
        }
        let Some(view) = self.view(&app).await else { return Err(Refused::NoSuchApp(app)) };
        if view.app.as_ref().is_some_and(|row| row.destroying) {
            return Err(Refused::Destroying(app));
        }
        let Some(repo) = view.repo.as_ref().filter(|repo| repo.hooks) else {
            return Err(Refused::BeingMade(app));
        };
        match self.origin.open(&app, repo).await {
            Ok(path) => Ok((app, path)),
            Err(OpenError::Elsewhere(url)) => Err(Refused::Elsewhere { app, url }),
            Err(OpenError::NotCurrent(error)) => {
                tracing::warn!(app = %app, error = %error, "a repository can't be brought up to what is stored");
                Err(Refused::NotCurrent { app, source: error })
            }
        }
    }

    /// Returns an app, and waits for its repository: a client that has just registered the app may be faster than this
    /// rm's image. Returns `None` if there is no such app. After [`REPOSITORY_IN`], returns the app without a repository.
    async fn view(&self, app: &AppName) -> Option<Arc<AppView>> {
        // Subscribed before the first look, so that no change is missed.
        let mut changes = self.apps.changes();
        let is_there = |view: &Arc<AppView>| view.repo.as_ref().is_some_and(|repo| repo.hooks);
        let known = self.apps.view(app);
        if known.as_ref().is_some_and(is_there) {
            return known;
        }
        if known.is_none() {
            // If the coordinator doesn't answer, the app counts as unknown, as in the image.
            let asked = self.cluster.visor.read(keys::app(app)).await.ok()?;
            asked.apps.get(app)?.app.as_ref()?;
        }
        let awaited = async {
            while changes.changed().await.is_ok() {
                if self.apps.view(app).as_ref().is_some_and(is_there) {
                    return;
                }
            }
        };
        let _ = timeout(REPOSITORY_IN, awaited).await;
        self.apps.view(app)
    }
}

/// Returns the protocol version that the client offers.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("git-protocol")?.to_str().ok()?;
    is_protocol(value).then(|| value.to_owned())
}

/// True if a word may be passed to git as a protocol version.
pub fn is_protocol(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '=' | ':' | '.' | '-' | '_' | '/');
    value.len() <= 200 && value.chars().all(plain)
}

/// Returns the user's name from the client's credentials, if there are any.
fn user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let encoded = value.strip_prefix("Basic ")?;
    let decoded = base64(encoded)?;
    let text = String::from_utf8(decoded).ok()?;
    let name = text.split(':').next()?;
    let is_word = (1..=100).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    is_word.then(|| name.to_owned())
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bits = 0u32;
    let mut held = 0;
    let mut out = Vec::new();
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from((bits >> held) & 0xff).expect("it is masked"));
        }
    }
    Some(out)
}

fn answer_headers(kind: &str) -> [(header::HeaderName, String); 2] {
    [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CACHE_CONTROL, "no-cache, max-age=0, must-revalidate".into()),
    ]
}

fn no_git(error: io::Error) -> Refused {
    tracing::error!(error = %error, "git can't be started");
    Refused::NoGit(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_read_from_the_request() {
        let mut headers = HeaderMap::new();
        assert_eq!(user(&headers), None);
        headers.insert(header::AUTHORIZATION, "Basic YWRhOmxvdmVsYWNl".parse().expect("a value"));
        assert_eq!(user(&headers).as_deref(), Some("ada"));
        headers.insert(header::AUTHORIZATION, "Basic YQpiOmM=".parse().expect("a value"));
        assert_eq!(user(&headers), None, "a name is one line");
    }

    #[test]
    fn a_strange_protocol_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        headers.insert("git-protocol", "version=2".parse().expect("a value"));
        assert_eq!(protocol(&headers).as_deref(), Some("version=2"));
        headers.insert("git-protocol", "version=2 $(id)".parse().expect("a value"));
        assert_eq!(protocol(&headers), None);
    }
}
