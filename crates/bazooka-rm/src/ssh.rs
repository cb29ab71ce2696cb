//! Pushes and fetches over the system's OpenSSH.
//!
//! Owns `authorized_keys`, which is written from the rows of people's keys, and the way from sshd's forced command to a
//! repository. Does nothing of SSH itself: sshd has verified the key, and each key's line has its owner.
//!
//! ```text
//! git ─ssh─▶ sshd ─▶ bazooka-rm ssh SOCKET USER ─frames─▶ the daemon ─▶ git receive-pack
//! ```
//!
//! The forced command only carries bytes. Only the user that sshd runs it as may open the socket. Whoever has that
//! user's rights can push as any person, as with any `authorized_keys`.

pub mod carry;

use std::{fmt::Write as _, fs, io, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use axum::body::Body;
use bazooka_daemon::{Bounds, Party, Places};
use bytes::Bytes;
use futures::StreamExt;
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    time::timeout,
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use visor::{
    access::Act,
    identity::{Caller, Identity},
    names::{AppName, InvalidName, UserName},
    schema::SshKeys,
    visor::VisorError,
};

use crate::{
    apps::{Apps, Known},
    audit::refusals::Refusals,
    endpoint::{
        git::{GitService, MAX_FETCH, is_protocol},
        process::{Answering, git},
    },
    layout::Layout,
    tasks,
};

/// The socket's name in the state folder.
const SOCKET: &str = "ssh.sock";

/// The largest first message of a connection in bytes: a user's name and a command.
const MAX_HELLO: usize = 16 * 1024;

/// The number of connections answered at a time; others wait.
const MOST_CONNECTIONS: usize = 1024;

/// The number of pushes and fetches of one person at a time.
const MOST_OF_ONE: usize = 64;

/// The longest time for which a user may take nothing of git's output; an endpoint's bound is the same.
const STALL: Duration = Duration::from_secs(60);

/// The time that the forced command has to send its first message.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// How SSH keys are used.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SshArgs {
    /// An authorized_keys file to keep, of the user that developers connect as; then SSH keys can be used
    #[arg(long, env = "BAZOOKA_SSH_KEYS", value_name = "FILE")]
    pub ssh_keys: Option<PathBuf>,
    /// That user; the one who runs bazooka-rm unless given
    #[arg(long, env = "BAZOOKA_SSH_USER", value_name = "USER", requires = "ssh_keys")]
    pub ssh_user: Option<String>,
    /// The base of the URL that is pushed to over SSH, such as ssh://git@rm.example.org
    #[arg(long, env = "BAZOOKA_SSH_URL", value_name = "URL", requires = "ssh_keys")]
    pub ssh_url: Option<String>,
}

/// The first message of the forced command.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The owner of the key.
    pub user: String,
    /// The command that git asked for (`SSH_ORIGINAL_COMMAND`).
    pub command: String,
    /// The value of `GIT_PROTOCOL`, if sshd accepts it.
    pub protocol: Option<String>,
}

/// The daemon's first answer, before any output of git's.
#[derive(Debug, Serialize, Deserialize)]
pub enum Welcome {
    /// Accepted; git's output follows.
    Go,
    /// Rejected; with the reason in words for the user.
    No(String),
}

/// The service that git asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Push,
    Fetch,
}

/// The reasons why the socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket can't be made, or given to the user.
    #[error("can't open {}", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The file system's error.
        source: io::Error,
    },
    /// The user of `--ssh-user` doesn't exist.
    #[error("there is no user {0:?} (--ssh-user)")]
    NoUser(String),
}

/// The reasons to reject a request, in words for the user.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    User(InvalidName),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "{user} may not push to or fetch '{app}'; one of its people or an operator can grant it: bazooka access grant {user} {app}"
    )]
    NotAllowed { user: UserName, app: AppName },
    #[error("bazooka-rm can't tell who may: {0}; try again in a moment")]
    Unknown(#[source] VisorError),
}

/// The faults of a command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum CommandError {
    #[error("only git's pushes and fetches are taken here")]
    Other,
    #[error(transparent)]
    App(#[from] InvalidName),
}

/// Opens the socket, only for the user that sshd runs the forced command as.
///
/// # Errors
/// [`ListenError`].
pub fn listen(layout: &Layout, args: &SshArgs) -> Result<UnixListener, ListenError> {
    let path = layout.root().join(SOCKET);
    let failed = |source: io::Error| ListenError::Socket { path: path.clone(), source };
    let owner = match &args.ssh_user {
        None => None,
        Some(name) => {
            let user = User::from_name(name).map_err(|error| failed(error.into()))?;
            Some(user.ok_or_else(|| ListenError::NoUser(name.clone()))?)
        }
    };
    crate::layout::remove(&path).map_err(failed)?;
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    if let Some(user) = owner.filter(|user| user.uid != Uid::effective()) {
        nix::unistd::chown(&path, Some(user.uid), None).map_err(|error| failed(error.into()))?;
        // That user must pass through the state folder, and must not list it.
        let root = layout.root();
        let mode = fs::metadata(root).map_err(failed)?.permissions().mode();
        fs::set_permissions(root, fs::Permissions::from_mode(mode | 0o011)).map_err(failed)?;
    }
    Ok(listener)
}

/// Answers connections until the listener fails.
///
/// # Errors
/// The listener's.
pub async fn serve(repositories: GitService, refusals: Refusals, listener: UnixListener) -> io::Result<()> {
    let bounds = Bounds { all: MOST_CONNECTIONS, unknown: 0, each: MOST_OF_ONE, each_carrier: 0 };
    let places = Places::new(bounds);
    let answer = |stream| answer(repositories.clone(), refusals.clone(), places.clone(), stream);
    tasks::accept(listener, "a connection of sshd's", MOST_CONNECTIONS, answer).await
}

async fn answer(repositories: GitService, refusals: Refusals, places: Places, stream: UnixStream) {
    let (input, mut output) = stream.into_split();
    let codec = LengthDelimitedCodec::builder().max_frame_length(1 << 20).new_codec();
    let mut frames = FramedRead::new(BufReader::new(input), codec);
    let hello = match timeout(HELLO_WITHIN, frames.next()).await {
        Ok(Some(Ok(frame))) if frame.len() <= MAX_HELLO => serde_json::from_slice::<Hello>(&frame).ok(),
        _ => None,
    };
    let Some(hello) = hello else { return tracing::warn!("a connection of sshd's didn't say what it wants") };
    let (user, service, app) = match wanted(&repositories, &hello).await {
        Ok(wanted) => wanted,
        Err(refused) => {
            let words = refused.to_string();
            tracing::info!(user = hello.user, command = hello.command, words, "refused over SSH");
            if let Refused::NotAllowed { user, app } = refused {
                // sshd alone knows the address.
                refusals.add(Identity::User(user), None, Some(app), &format!("{} over SSH", hello.command));
            }
            return drop(welcome(&mut output, &Welcome::No(words)).await);
        }
    };
    let who = Identity::User(user.clone());
    let _place = match places.take(Party::Identity(who.clone())) {
        // One request is all that this connection carries.
        Ok(place) => place.busy(),
        Err(full) => {
            tracing::warn!(%user, reason = %full, "refused over SSH");
            let words = format!("{full}: wait until one of your pushes or fetches has ended");
            return drop(welcome(&mut output, &Welcome::No(words)).await);
        }
    };
    let caller = Caller::Known(who);
    let repository = match repositories.repository(&caller, app.as_str()).await {
        Ok((_, repository)) => repository,
        Err(refused) => return drop(welcome(&mut output, &Welcome::No(refused.to_string())).await),
    };
    if welcome(&mut output, &Welcome::Go).await.is_err() {
        return;
    }
    // An empty frame ends git's input. The end of the connection means that the user has left.
    let request = Body::from_stream(
        frames
            .map(|frame| frame.map(bytes::BytesMut::freeze))
            .take_while(|frame| std::future::ready(!frame.as_ref().is_ok_and(Bytes::is_empty))),
    );
    let protocol = hello.protocol.as_deref().filter(|protocol| is_protocol(protocol));
    match service {
        Service::Fetch => {
            let started = Answering::start(git(&["upload-pack"], &repository, protocol));
            let Ok((answering, body)) = started else { return tracing::error!("git can't be started") };
            tokio::join!(answering.carry(request, MAX_FETCH, || false), tell(body, output));
        }
        Service::Push => {
            let push = repositories.pushes.open(app, Some(user.to_string()), None);
            let mut command = git(&["receive-pack"], &repository, protocol);
            command.env("BAZOOKA_PUSH", &push.id).env("REMOTE_USER", user.as_str());
            let Ok((answering, body)) = Answering::start(command) else {
                repositories.pushes.close(&push).await;
                return tracing::error!("git can't be started");
            };
            let carrying = repositories.carry_push(push, answering, request);
            tokio::join!(carrying, tell(body, output));
        }
    }
}

async fn welcome(output: &mut OwnedWriteHalf, words: &Welcome) -> io::Result<()> {
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    output.write_all(&line).await
}

/// Copies git's output to the user. If the user has left, the body is dropped, which the carrier of the process
/// notices.
async fn tell(body: Body, mut output: OwnedWriteHalf) {
    let mut body = body.into_data_stream();
    while let Some(Ok(chunk)) = body.next().await {
        if !matches!(timeout(STALL, output.write_all(&chunk)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Returns user, service and app of a request, if the user may use the app.
async fn wanted(repositories: &GitService, hello: &Hello) -> Result<(UserName, Service, AppName), Refused> {
    let user: UserName = hello.user.parse().map_err(Refused::User)?;
    let (service, app) = parse(&hello.command)?;
    let caller = Caller::Known(Identity::User(user.clone()));
    match repositories.cluster.may(&caller, Act::App, Some(&app)).await {
        Ok(true) => Ok((user, service, app)),
        Ok(false) => Err(Refused::NotAllowed { user, app }),
        Err(error) => Err(Refused::Unknown(error)),
    }
}

/// Parses a command of git's: `git-receive-pack '/A.git'`. No other command is accepted.
fn parse(command: &str) -> Result<(Service, AppName), CommandError> {
    let (service, path) = command.trim().split_once(' ').ok_or(CommandError::Other)?;
    let service = match service {
        "git-receive-pack" => Service::Push,
        "git-upload-pack" => Service::Fetch,
        _ => return Err(CommandError::Other),
    };
    let path = path.trim();
    let path = path.strip_prefix('\'').and_then(|path| path.strip_suffix('\'')).unwrap_or(path);
    let name = path.trim_start_matches('/');
    let app = name.strip_suffix(".git").unwrap_or(name).parse()?;
    Ok((service, app))
}

/// Returns the text of `authorized_keys`: one line for each key of each admitted person.
pub fn authorized_keys(program: &str, socket: &str, known: &Known) -> String {
    let mut lines = String::from("# Written by bazooka-rm; changes are lost. `bazooka keys` changes it.\n");
    let admitted = known
        .ssh_keys
        .iter()
        .filter(|(user, _)| known.identities.contains_key(&Identity::User((*user).clone())));
    for (user, SshKeys { keys, .. }) in admitted {
        for key in keys.values() {
            let _ = writeln!(
                lines,
                "restrict,command=\"{} ssh {} {user}\" {} {user}",
                quoted(program),
                quoted(socket),
                key.key
            );
        }
    }
    lines
}

/// Quotes a word for the shell, inside the quotes of one of sshd's options.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''")).replace('\\', r"\\").replace('"', "\\\"")
}

/// Keeps `authorized_keys` current. Never returns before shutdown.
pub async fn keep(program: PathBuf, layout: Layout, apps: Apps, file: PathBuf) {
    let program = program.display().to_string();
    let socket = layout.root().join(SOCKET).display().to_string();
    let mut changes = apps.changes();
    let mut written = None;
    loop {
        let known = apps.known();
        if known.complete {
            let wanted = authorized_keys(&program, &socket, &known);
            if written.as_ref() != Some(&wanted) {
                match write(&file, &wanted) {
                    Ok(()) => written = Some(wanted),
                    Err(error) => {
                        tracing::error!(file = %file.display(), error = %error, "can't write it; trying on");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Renames the new file into place, so that sshd reads either the old or the new one.
fn write(file: &std::path::Path, text: &str) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut draft = tempfile::Builder::new()
        .prefix(".authorized_keys-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder.unwrap_or(std::path::Path::new(".")))?;
    io::Write::write_all(&mut draft, text.as_bytes())?;
    draft.persist(file).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gits_two_commands_are_understood() {
        let app = |name: &str| name.parse::<AppName>().expect("valid");
        assert_eq!(parse("git-receive-pack '/shop.git'"), Ok((Service::Push, app("shop"))));
        assert_eq!(parse("git-upload-pack 'shop'"), Ok((Service::Fetch, app("shop"))));
        assert_eq!(parse("git-upload-pack shop.git"), Ok((Service::Fetch, app("shop"))));
        for bad in [
            "",
            "sh",
            "git-receive-pack",
            "git-upload-archive 'shop.git'",
            "git-receive-pack '../../etc'",
            "git-receive-pack '--help'",
            "git-receive-pack 'shop.git' 'x'",
            "git-receive-pack 'shop.git'; id",
            "git-receive-pack '$(id)'",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_one_word_for_sshd_and_the_shell() {
        assert_eq!(quoted("/usr/bin/bazooka-rm"), "'/usr/bin/bazooka-rm'");
        assert_eq!(quoted(r#"/a "b" c"#), r#"'/a \"b\" c'"#);
    }
}
