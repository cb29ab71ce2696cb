//! The context in which a command runs: the cluster, the app and the user.
//!
//! Owns how a command finds its app (from `-a`, else the git remote) and its user (from the credentials, else the login
//! name). Commands read an app through this file, so that the error for an unknown app names the nearest app.

use std::{cell::Cell, collections::BTreeMap, process::Stdio, sync::Arc};

use jiff::Timestamp;
use tokio::{process::Command, sync::OnceCell};
use visor::{
    access::{Act, may},
    identity::{Caller, Credentials, Identity},
    keys,
    names::{AppName, ProcName, ReleaseId, RevId},
    ports::PortBook,
    schema::{Access, Admission},
    snapshot::{AppView, Snapshot},
    store::{Keys, etcd::EtcdStore},
    transitions::releases,
    visor::{Refusal, Visor, VisorError},
};

use crate::{
    failure::{Failure, Kind, Result, unknown},
    target::RevPrefix,
};

/// The name of the git remote that leads to an app.
pub const REMOTE: &str = "bazooka";

/// The git remote `bazooka` of this folder. git is asked at most once, when the remote is first needed.
#[derive(Debug, Default)]
pub struct Remote(OnceCell<Option<String>>);

impl Remote {
    /// Returns the remote's URL, if this folder is in a repository that has the remote.
    pub async fn url(&self) -> Option<&str> {
        let ask = async || Some(git(&["remote", "get-url", REMOTE]).await?.trim_end().to_owned());
        self.0.get_or_init(ask).await.as_deref()
    }

    /// Returns the app in the remote's URL.
    pub async fn app(&self) -> Option<AppName> {
        app_of(self.url().await?)
    }
}

/// The cluster, the app and the user of a command.
pub struct Context {
    /// The cluster's state.
    pub visor: Visor,
    /// The coordinator, for calls that only an etcd has. None on a model.
    pub etcd: Option<Arc<EtcdStore>>,
    /// The user's credentials, in a cluster with identities.
    pub credentials: Option<Credentials>,
    /// True to print JSON.
    pub json: bool,
    /// The user's name, as shown to people.
    pub who: String,
    said: Option<AppName>,
    remote: Remote,
    changed: Cell<bool>,
}

impl Context {
    /// Creates a context, without reading anything.
    pub fn new(visor: Visor, credentials: Option<Credentials>, said: Option<AppName>, json: bool) -> Self {
        let who = credentials.as_ref().map_or_else(who, |credentials| credentials.identity().to_string());
        let (remote, changed) = (Remote::default(), Cell::new(false));
        Context { visor, etcd: None, credentials, json, said, remote, who, changed }
    }

    /// Sets the coordinator, for calls that only an etcd has.
    pub fn with_etcd(self, etcd: Arc<EtcdStore>) -> Self {
        Context { etcd: Some(etcd), ..self }
    }

    /// Sets the git remote, which keeps git's answer if git was asked already.
    pub fn with_remote(self, remote: Remote) -> Self {
        Context { remote, ..self }
    }

    /// Records that the command has made a change. From now on, an interrupt reports that the change stands.
    pub fn note_change(&self) {
        self.changed.set(true);
    }

    /// Reports whether a change was made.
    pub fn has_changed(&self) -> bool {
        self.changed.get()
    }

    /// Returns the app that `-a` names, if it is given.
    pub fn said(&self) -> Option<&AppName> {
        self.said.as_ref()
    }

    /// Returns the app that `-a` names, else the app of this folder's git remote.
    ///
    /// # Errors
    /// If `-a` is not given, and the remote is missing or names no app.
    pub async fn app(&self) -> Result<AppName> {
        if let Some(app) = &self.said {
            return Ok(app.clone());
        }
        let hint = "name it with -a APP, or register this repository: bazooka init";
        let Some(url) = self.remote_url().await else {
            return Err(
                Failure::new(Kind::Usage, "which app? There is no git remote 'bazooka' here").hint(hint)
            );
        };
        app_of(url).ok_or_else(|| {
            let what = format!("which app? The git remote 'bazooka' ({url}) doesn't end with an app's name");
            Failure::new(Kind::Usage, what).hint(hint)
        })
    }

    /// Returns the URL of the git remote `bazooka`, if this folder is in a repository that has it.
    pub async fn remote_url(&self) -> Option<&str> {
        self.remote.url().await
    }

    /// Reads an app and everything that belongs to it.
    ///
    /// # Errors
    /// `Unknown` with the nearest name; errors of the store.
    pub async fn view(&self, app: &AppName) -> Result<AppView> {
        self.view_with(app, Vec::new()).await.map(|(view, _)| view)
    }

    /// Reads an app and everything that belongs to it, and `more` keys in the same read.
    ///
    /// # Errors
    /// Those of [`Context::view`].
    pub async fn view_with(&self, app: &AppName, more: Vec<Keys>) -> Result<(AppView, Snapshot)> {
        let mut scopes = keys::app(app);
        scopes.extend(more);
        let mut snapshot = self.visor.read(scopes).await?;
        self.registered(app, &snapshot).await?;
        let view = snapshot.apps.remove(app).unwrap_or_default();
        Ok((view, snapshot))
    }

    /// Reads an app and everything that belongs to it, with the port of each of its services that has one.
    ///
    /// # Errors
    /// Those of [`Context::view`].
    pub async fn view_with_ports(&self, app: &AppName) -> Result<(AppView, BTreeMap<ProcName, u16>)> {
        let (view, around) = self.view_with(app, [keys::schema(), keys::ports()].into()).await?;
        let ports = ports_of(app, &view, &around);
        Ok((view, ports))
    }

    /// Checks that an app exists in `snapshot`, which must include the app's own row.
    ///
    /// # Errors
    /// `Unknown` with the nearest name; a row that can't be read.
    pub async fn registered(&self, app: &AppName, snapshot: &Snapshot) -> Result<()> {
        if snapshot.apps.get(app).is_some_and(|view| view.app.is_some()) {
            return Ok(());
        }
        let key = keys::Key::App(app.clone()).to_string();
        if let Some(detail) = snapshot.unreadable.get(&key) {
            return Err(VisorError::Unreadable { key, detail: detail.clone() }.into());
        }
        Err(self.no_such_app(app).await)
    }

    /// Returns the failure for an app that doesn't exist.
    pub async fn no_such_app(&self, app: &AppName) -> Failure {
        // The list only serves the hint; the failure is the same without it.
        let all = self.visor.read(vec![keys::apps()]).await.unwrap_or_default();
        let names = all.apps.iter().filter(|(_, view)| view.app.is_some()).map(|(name, _)| name.as_str());
        unknown(format!("there is no app '{app}'"), app.as_str(), names, "apps")
    }

    /// Checks that the user may access an app, in a cluster with identities. Each daemon checks the access too; this
    /// check comes first, so that the user gets one error instead of one from every host.
    ///
    /// # Errors
    /// If the user has no access, with a hint at how to get it; errors of the store.
    pub async fn theirs(&self, app: &AppName) -> Result<()> {
        let Some(Identity::User(user)) = self.credentials.as_ref().map(Credentials::identity) else {
            return Ok(());
        };
        let who = Identity::User(user.clone());
        let admission = self.visor.get::<Admission>(&keys::Key::Admission(who.clone())).await?;
        let access = self.visor.get::<Access>(&keys::Key::Access(app.clone())).await?;
        let caller = Caller::Known(who);
        if may(&caller, Act::App, admission.as_deref(), access.as_deref()) {
            return Ok(());
        }
        Err(Failure::new(Kind::Refused, format!("{user} has no access to app '{app}'")).hint(format!(
            "one of its people or an operator can grant it: bazooka access grant {user} {app}"
        )))
    }

    /// Turns an error of a change into a failure, with the nearest name where a name is unknown.
    pub async fn explain(&self, view: &AppView, error: VisorError) -> Failure {
        match error {
            VisorError::Refused(Refusal::NoSuchApp(app)) => self.no_such_app(&app).await,
            VisorError::Refused(Refusal::NoSuchProc(app, proc)) => no_such_proc(&app, view, &proc),
            other => other.into(),
        }
    }

    /// Returns the time of this machine's clock, which may differ from the daemons' clocks.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Returns the port of each of an app's services that has one; `around` has the schema and the rows of ports.
pub fn ports_of(app: &AppName, view: &AppView, around: &Snapshot) -> BTreeMap<ProcName, u16> {
    let apps = [(app.clone(), view.clone())].into();
    let (schema, ports) = (around.schema.clone(), around.ports.clone());
    let snapshot = Snapshot { apps, schema, ports, ..Snapshot::default() };
    let book = PortBook::of(&snapshot);
    let ports = view.procs.keys().filter_map(|proc| Some((proc.clone(), book.port(app, proc).ok()?)));
    ports.collect()
}

/// Checks that an app has a proc.
///
/// # Errors
/// `Unknown` with the nearest name.
pub fn known_proc(app: &AppName, view: &AppView, proc: &ProcName) -> Result<()> {
    if view.procs.contains_key(proc) { Ok(()) } else { Err(no_such_proc(app, view, proc)) }
}

fn no_such_proc(app: &AppName, view: &AppView, proc: &ProcName) -> Failure {
    let what = format!("app '{app}' has no proc '{proc}'");
    if view.procs.is_empty() {
        return Failure::new(Kind::Unknown, what)
            .hint("procs come with the first push: git push bazooka master");
    }
    unknown(what, proc.as_str(), view.procs.keys().map(ProcName::as_str), "procs")
}

/// Returns the failure for a release that doesn't exist, or no longer does.
pub fn no_such_release(app: &AppName, view: &AppView, release: ReleaseId) -> Failure {
    let refusal = releases::no_such_release(app, view, release);
    if let Refusal::Pruned(..) = refusal {
        return refusal.into();
    }
    let names: Vec<String> = view.releases.keys().map(ReleaseId::to_string).collect();
    let what = format!("app '{app}' has no release {release}");
    unknown(what, &release.to_string(), names.iter().map(String::as_str), "releases")
}

/// Returns the rev whose id begins with `prefix`.
///
/// # Errors
/// If no rev's id begins with `prefix`, or the ids of several revs do.
pub fn find_rev(app: &AppName, view: &AppView, prefix: &RevPrefix) -> Result<RevId> {
    let said = prefix.as_str();
    let found: Vec<&RevId> = view.revs.keys().filter(|rev| rev.as_str().starts_with(said)).collect();
    match found[..] {
        [rev] => Ok(rev.clone()),
        [] => {
            let cut = said.len().min(40);
            let names = view.revs.keys().map(|rev| &rev.as_str()[..cut]);
            Err(unknown(format!("app '{app}' has no rev {said}"), said, names, "revs"))
        }
        _ => {
            let some: Vec<&str> = found.iter().take(5).map(|rev| &rev.as_str()[..12]).collect();
            let what = format!("rev {said} could be any of {}", found.len());
            Err(Failure::new(Kind::Usage, what).because(some.join(", ")).hint("give more of its digits"))
        }
    }
}

/// Runs a git command and returns its output; `None` if it fails.
pub async fn git(args: &[&str]) -> Option<String> {
    let asked = Command::new("git").args(args).stdin(Stdio::null()).output().await.ok()?;
    asked.status.success().then(|| String::from_utf8_lossy(&asked.stdout).into_owned())
}

/// Returns the app at the end of a remote's URL.
pub fn app_of(url: &str) -> Option<AppName> {
    let last = url.trim_end_matches('/').rsplit(['/', ':']).next()?;
    last.strip_suffix(".git").unwrap_or(last).parse().ok()
}

/// Returns the login name of the user, in printable characters.
pub fn who() -> String {
    let name = std::env::var("USER").ok().filter(|name| !name.is_empty()).or_else(|| {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok()??;
        Some(user.name)
    });
    let name: String = name.unwrap_or_default().chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    if name.is_empty() { format!("uid{}", nix::unistd::getuid()) } else { name }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use visor::{
        schema::{Extra, Rev, Slug},
        snapshot::Versioned,
    };

    use super::*;

    #[test]
    fn the_app_stands_at_the_end_of_the_remote() {
        for (url, wanted) in [
            ("http://127.0.0.1:8081/goto-rocket.git", Some("goto-rocket")),
            ("http://127.0.0.1:8081/goto-rocket.git/", Some("goto-rocket")),
            ("http://127.0.0.1:8081/goto-rocket", Some("goto-rocket")),
            ("git@rm:goto-rocket.git", Some("goto-rocket")),
            ("http://127.0.0.1:8081/", None),
            ("/srv/Not Valid.git", None),
            ("", None),
        ] {
            assert_eq!(app_of(url).map(String::from).as_deref(), wanted, "{url}");
        }
    }

    #[test]
    fn a_rev_is_found_by_as_many_digits_as_make_it_the_only_one() {
        let app: AppName = "a".parse().expect("valid");
        let mut view = AppView::default();
        for id in ["16f7cbf0123456789012345678901234567890ab", "16f7d000000000000000000000000000000000ab"] {
            let rev = Rev {
                slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
                procs: Default::default(),
                kind: "procfile".into(),
                by: "ada".into(),
                at: Timestamp::UNIX_EPOCH,
                subject: String::new(),
                extra: Extra::new(),
            };
            let rev = Versioned { value: rev, create_revision: 1, mod_revision: 1, lease: None };
            view.revs.insert(id.parse().expect("valid"), rev);
        }
        let find = |said: &str| find_rev(&app, &view, &said.parse().expect("a prefix"));
        assert_eq!(find("16f7c").map(|rev| rev.short().to_owned()), Ok("16f7cbf".to_owned()));
        assert_eq!(find("16f7").expect_err("two").kind, Kind::Usage);
        assert_eq!(find("dead").expect_err("none").kind, Kind::Unknown);
        assert!(find("16f8c").expect_err("none").to_string().contains("16f7c"));
    }
}
