//! `bazooka init`: registers an app and prepares this folder to push it.
//!
//! bazooka-rm registers the app and sets up its repository; the command prints each step once it is done. For an app
//! that the user may use already, the command changes only this repository's git configuration, the remote included.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use visor::{
    identity::{Credentials, Identity},
    keys::{self, Key},
    mirror::Mirror,
    names::AppName,
    schema::{Access, App, Repo},
    snapshot::Snapshot,
};

use crate::{
    command::{Audited, CommandKind},
    context::{Context, REMOTE, app_of, git},
    failure::{Failure, Kind, Result},
    rm::{self, NewApp},
    show::{put_line, say},
};

/// Register an app and make the git remote `bazooka` for it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The app [default: the one of the git remote, else the name of this repository's folder]
    pub name: Option<AppName>,
    /// Push over SSH, with a key of `bazooka keys`
    #[arg(long)]
    pub ssh: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Changes(Audited::ByRm)
    }
}

/// The time that bazooka-rm may take to set up a repository, which normally takes a moment.
const SET_UP_FOR: Duration = Duration::from_secs(30);

/// Registers the app and adds the remote.
///
/// # Errors
/// No git repository; a name that is invalid or taken; no bazooka-rm.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { name, ssh: over_ssh } = args;
    let top = git(&["rev-parse", "--show-toplevel"]).await.map(|top| top.trim_end().to_owned());
    let remote = context.remote_url().await;
    let name = match (name, context.said()) {
        (Some(name), Some(said)) if name != *said => {
            let what = format!("the app is named twice: {name} and, with -a, {said}");
            return Err(Failure::new(Kind::Usage, what));
        }
        (Some(name), _) => name,
        (None, Some(said)) => said.clone(),
        // A second run without a name takes the app that the first run registered, even if the folder's name differs.
        (None, None) => match remote.and_then(app_of) {
            Some(app) => app,
            None => {
                let here = std::env::current_dir().ok().map(|dir| dir.display().to_string());
                name_of(top.as_deref().or(here.as_deref()).unwrap_or_default())?
            }
        },
    };
    // Check everything that can be checked before any change.
    if top.is_none() {
        let what = "this is no git repository (or git isn't installed)";
        return Err(Failure::new(Kind::Usage, what).hint("git init && git add -A && git commit -m begin"));
    }
    if let Some(url) = remote.as_ref().filter(|url| app_of(url).as_ref() != Some(&name)) {
        let what = format!("there is a git remote '{REMOTE}' already, and it leads elsewhere: {url}");
        return Err(Failure::new(Kind::Refused, what)
            .hint(format!("git remote rename {REMOTE} OTHER, or name that app")));
    }

    let ssh_url = if over_ssh { Some(ssh_url(context, &name).await?) } else { None };
    let known = context.visor.get::<App>(&Key::App(name.clone())).await?;
    let is_new = known.is_none();
    match known {
        Some(app) if app.destroying => {
            let what = format!("an earlier app '{name}' is still being destroyed");
            return Err(Failure::new(Kind::Refused, what).hint("try again in a moment"));
        }
        Some(app) if app.owner == context.who || is_theirs(context, &name).await? => {
            put_line(&format!("app '{name}' registered already"))
        }
        Some(app) => return Err(anothers(context, &name, &app.owner).await),
        None => {
            let token = format!("{:032x}", rand::random::<u128>());
            rm::register(context, &NewApp { name: &name, owner: &context.who, token: &token }).await?;
            context.note_change();
            put_line(&format!("app '{name}' registered"));
        }
    }
    let url = set_up(context, &name, is_new).await?;
    if let Some(ssh_url) = ssh_url {
        return add_remote(remote, &ssh_url).await;
    }
    add_remote(remote, &url).await?;
    if let Some(credentials) = &context.credentials {
        set_git_up(credentials, &url).await?;
    }
    Ok(())
}

/// Returns the URL for pushing an app over SSH.
async fn ssh_url(context: &Context, name: &AppName) -> Result<String> {
    let there = context.visor.read(vec![keys::rms()]).await?;
    let base = there.rms.values().find_map(|rm| rm.ssh_url.as_deref());
    let base = base.ok_or_else(|| {
        Failure::new(Kind::PartMissing, "no bazooka-rm takes pushes over SSH")
            .hint("an operator sets it up: bazooka-rm --ssh-keys FILE --ssh-url URL; without --ssh it goes over HTTPS")
    })?;
    Ok(format!("{}/{name}.git", base.trim_end_matches('/')))
}

/// Reports whether an existing app belongs to the user.
async fn is_theirs(context: &Context, name: &AppName) -> Result<bool> {
    let Some(Identity::User(user)) = context.credentials.as_ref().map(Credentials::identity) else {
        return Ok(false);
    };
    let access = context.visor.get::<Access>(&Key::Access(name.clone())).await?;
    Ok(access.is_some_and(|access| access.users.contains_key(&user)))
}

/// Configures git: to trust the cluster's authority at this repository's host, and to ask this program for credentials for
/// this repository's URL only.
async fn set_git_up(credentials: &Credentials, url: &str) -> Result<()> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::new(
            Kind::Failed,
            "git couldn't be told who you are; the app is registered, and the remote is there",
        )
        .because(what.to_string())
        .hint("run `bazooka init` here again")
    };
    let absolute = |path: &Path| path.canonicalize().map_err(|error| failed(&error));
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let identity = absolute(credentials.dir())?;
    let helper = format!(
        "!{} --identity {} git-credential --for {}",
        quoted(&program),
        quoted(&identity),
        quoted(Path::new(url))
    );
    let authority = absolute(&credentials.authority_file())?.display().to_string();
    let base = base_of(url);
    forget_helper_of(base).await;
    let key = |name: &str| format!("credential.{url}.{name}");
    let settings = [
        ("--replace-all", format!("http.{base}.sslCAInfo"), authority.as_str()),
        ("--replace-all", key("useHttpPath"), "true"),
        // An empty entry clears git's list of helpers: no other helper is asked, and none can store our token.
        ("--replace-all", key("helper"), ""),
        ("--add", key("helper"), helper.as_str()),
    ];
    for (how, key, value) in &settings {
        if git(&["config", how, key, value]).await.is_none() {
            return Err(failed(&format!("git config {how} {key} failed")));
        }
    }
    put_line("git set up to push as you");
    if std::env::var_os("GIT_SSL_CAINFO").is_some() {
        // git prefers this variable to any configuration.
        say("warning: GIT_SSL_CAINFO is set and overrides the cluster's authority: unset it to push");
    }
    Ok(())
}

/// Removes the helper that earlier versions registered for all repositories of a host.
async fn forget_helper_of(base: &str) {
    let section = format!("credential.{base}");
    let helpers = git(&["config", "--local", "--get-all", &format!("{section}.helper")]).await;
    if helpers.is_some_and(|helpers| helpers.contains(" git-credential")) {
        // If it stays, it is asked after the one for the repository, and says no more than that.
        let _ = git(&["config", "--local", "--remove-section", &section]).await;
    }
}

/// Quotes a path for the shell, through which git starts a helper.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Returns a URL without its path.
fn base_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find('/').map_or(url, |at| &url[..start + at])
}

/// Derives an app's name from a folder's name.
fn name_of(folder: &str) -> Result<AppName> {
    let last = Path::new(folder).file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let mut name = String::new();
    for c in last.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(40);
    let name = name.trim_end_matches('-');
    name.parse().map_err(|_| {
        let what = format!("no app name can be made of this folder's name, {last:?}");
        Failure::new(Kind::Usage, what)
            .because(format!("an app name is {}", AppName::RULE))
            .hint("name it: bazooka init NAME")
    })
}

async fn anothers(context: &Context, name: &AppName, owner: &str) -> Failure {
    let failure = Failure::new(Kind::Refused, format!("there is an app '{name}' already, owned by {owner}"));
    let repo = context.visor.get::<Repo>(&Key::Repo(name.clone())).await.ok().flatten();
    failure.hint(match repo {
        Some(repo) => format!(
            "take another name: bazooka init NAME; to work on that one: git remote add {REMOTE} {}",
            repo.url
        ),
        None => "take another name: bazooka init NAME".to_owned(),
    })
}

/// Waits until the repository is set up, and returns the URL for pushing.
async fn set_up(context: &Context, name: &AppName, tell: bool) -> Result<String> {
    let until = Instant::now() + SET_UP_FOR;
    let mut mirror = Mirror::new(context.visor.store().clone(), keys::app(name), Snapshot::default());
    let mut told = 0;
    loop {
        if timeout_at(until, mirror.next()).await.is_err() {
            let what =
                format!("bazooka-rm hasn't set up the repository of '{name}' in {} s", SET_UP_FOR.as_secs());
            return Err(Failure::new(Kind::PartMissing, what)
                .hint("once it works again, the same command goes on from here: bazooka init"));
        }
        let Some(view) = mirror.image().apps.get(name) else { continue };
        let (Some(app), Some(repo)) = (&view.app, &view.repo) else { continue };
        if repo.token != app.token {
            // The row is from an earlier app of this name.
            continue;
        }
        let steps = [
            (repo.created, "remote repository created"),
            (repo.configured, "git config updated"),
            (repo.hooks, "hooks setup"),
        ];
        for (_, step) in steps.iter().skip(told).take_while(|(done, _)| *done) {
            if tell {
                put_line(&format!("[bazooka-rm] {step}"));
            }
            told += 1;
        }
        if told == steps.len() {
            return Ok(repo.url.clone());
        }
    }
}

async fn add_remote(before: Option<&str>, url: &str) -> Result<()> {
    let (args, done) = match before {
        Some(before) if before == url => (None, "remote entry there already"),
        Some(_) => (Some(["remote", "set-url", REMOTE, url]), "remote entry updated"),
        None => (Some(["remote", "add", REMOTE, url]), "remote entry created"),
    };
    if let Some(args) = args {
        if git(&args).await.is_none() {
            let what = "the git remote couldn't be made; the app is registered";
            return Err(Failure::new(Kind::Failed, what).hint(format!("git {}", args.join(" "))));
        }
    }
    if is_on_this_machine(url) {
        // Otherwise git uses a configured HTTP proxy, which connects to the loopback address of its own machine. If no
        // proxy is configured, a failure of this command has no effect.
        let _ = git(&["config", &format!("remote.{REMOTE}.proxy"), ""]).await;
    }
    put_line(done);
    Ok(())
}

/// Reports whether a repository's URL has a loopback address.
fn is_on_this_machine(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| authority.parse());
    host.map_or_else(|_| authority.split(':').next() == Some("localhost"), |ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_on_this_machine() {
        for (url, wanted) in [
            ("http://127.0.0.1:8081/a.git", true),
            ("http://127.77.3.1:8081/a.git", true),
            ("http://127.0.0.1/a.git", true),
            ("http://[::1]:8081/a.git", true),
            ("http://localhost:8081/a.git", true),
            ("http://localhost.example.org/a.git", false),
            ("http://10.0.0.1:8081/127.0.0.1:1/a.git", false),
            ("https://git.example.org/a.git", false),
            ("", false),
        ] {
            assert_eq!(is_on_this_machine(url), wanted, "{url}");
        }
    }

    #[test]
    fn the_base_of_a_url_ends_where_its_path_begins() {
        for (url, wanted) in [
            ("https://10.0.0.1:8081/a.git", "https://10.0.0.1:8081"),
            ("https://git.example.org/x/a.git", "https://git.example.org"),
            ("https://git.example.org", "https://git.example.org"),
        ] {
            assert_eq!(base_of(url), wanted);
        }
        assert_eq!(quoted(Path::new("/a b/c'd")), r"'/a b/c'\''d'");
    }

    #[test]
    fn a_folders_name_is_made_an_apps_name() {
        for (folder, wanted) in [
            ("/home/ada/goto-rocket", Some("goto-rocket")),
            ("/home/ada/Goto Rocket!", Some("goto-rocket")),
            ("/home/ada/my_app.v2", Some("my-app-v2")),
            ("/home/ada/--x--", Some("x")),
            ("/home/ada/Ångström", Some("ngstr-m")),
            ("/home/ada/2048", None),
            ("/home/ada/!!!", None),
            ("/", None),
            ("", None),
        ] {
            let made = name_of(folder);
            assert_eq!(made.as_ref().ok().map(AppName::as_str), wanted, "{folder}");
            if let Err(failure) = made {
                assert_eq!(failure.kind, Kind::Usage);
                assert!(failure.to_string().contains(AppName::RULE), "{failure}");
            }
        }
        assert_eq!(name_of(&format!("/{}", "a".repeat(60))).map(|name| name.as_str().len()), Ok(40));
    }
}
