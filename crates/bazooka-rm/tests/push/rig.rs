//! A bazooka-rm of a test's own, developers' folders, and a stand-in for the converger's word.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use visor::{
    keys::{self, Key},
    names::{AppName, ProcName, ReleaseId},
    schema::{ReleaseStatus, Rev, Rm},
    snapshot::{AppView, Versioned},
    store::Keys,
    testing::{Etcd, fresh_prefix, observer, until},
    transitions::releases::{failure, verification},
    visor::{Committed, Visor},
};

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// A build that says that it waits, and does so until [`Rig::open_gate`].
pub const WAITS: &str = r#"#!/bin/sh
echo waits
echo > "$TMPDIR/../begun"
until [ -e "$TMPDIR/../gate" ]; do sleep 0.02; done
"#;

/// A bazooka-rm with a coordinator.
pub struct Rig {
    pub dir: TempDir,
    pub visor: Visor,
    pub url: String,
    endpoint: String,
    prefix: String,
    setup: Setup,
    daemon: Child,
}

/// How a bazooka-rm is started.
#[derive(Clone, Debug)]
pub struct Setup {
    pub name: &'static str,
    pub args: Vec<String>,
    pub envs: Vec<(&'static str, String)>,
    /// Its user; the test's own unless given.
    pub uid: Option<u32>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { name: "rm1", args: Vec::new(), envs: Vec::new(), uid: None }
    }
}

impl Rig {
    /// Starts one on the run's own etcd and waits until it is ready.
    pub async fn start() -> Rig {
        Rig::on(Etcd::shared().await.endpoint()).await
    }

    /// Starts one on this coordinator.
    pub async fn on(endpoint: &str) -> Rig {
        Rig::with(endpoint, fresh_prefix(), Setup::default()).await
    }

    /// Starts one with these arguments, on the run's own etcd.
    pub async fn told(args: &[&str]) -> Rig {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let setup = Setup { args, ..Setup::default() };
        Rig::with(Etcd::shared().await.endpoint(), fresh_prefix(), setup).await
    }

    /// Starts one whose PATH has git and no language, on the run's own etcd. The folder of that PATH goes with its handle.
    pub async fn on_a_bare_machine() -> (Rig, TempDir) {
        let bare = tempfile::Builder::new().prefix("bazooka-bare-").tempdir().expect("a folder");
        for program in ["git", "sh", "setpriv"] {
            let found = std::env::var("PATH").expect("it is set");
            let found =
                found.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
            std::os::unix::fs::symlink(found.expect("it is installed"), bare.path().join(program))
                .expect("made");
        }
        let setup = Setup { envs: vec![("PATH", bare.path().display().to_string())], ..Setup::default() };
        (Rig::with(Etcd::shared().await.endpoint(), fresh_prefix(), setup).await, bare)
    }

    /// Starts one so, on this coordinator.
    pub async fn with(endpoint: &str, prefix: String, setup: Setup) -> Rig {
        let dir = tempfile::Builder::new().prefix("bazooka-rm-test-").tempdir().expect("a folder");
        if let Some(uid) = setup.uid {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).expect("the test's user is root");
        }
        let store = observer(endpoint, &prefix);
        let daemon = start_daemon(dir.path(), endpoint, &prefix, &setup);
        let visor = Visor::new(store);
        let endpoint = endpoint.to_owned();
        let mut rig = Rig { dir, visor, url: String::new(), endpoint, prefix, setup, daemon };
        rig.ready().await;
        rig
    }

    /// Starts another one of the same cluster.
    pub async fn other(&self, name: &'static str) -> Rig {
        Rig::with(&self.endpoint, self.prefix.clone(), Setup { name, ..self.setup.clone() }).await
    }

    /// Starts it from now on with these arguments too.
    pub fn set_up(&mut self, args: &[String]) {
        self.setup.args.extend_from_slice(args);
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("rm")
    }

    /// The folder of an app's builds that they and a test can reach.
    pub fn cache(&self, app: &str) -> PathBuf {
        self.state().join("cache").join(app)
    }

    /// Lets builds of an app go on, those to come too.
    pub fn open_gate(&self, app: &str) {
        fs::create_dir_all(self.cache(app)).expect("made");
        fs::write(self.cache(app).join("gate"), "").expect("written");
    }

    /// Waits until an app's build has begun.
    pub async fn until_it_builds(&self, app: &str) {
        let begun = self.cache(app).join("begun");
        until("it builds", SOON, || async { if begun.exists() { Ok(()) } else { Err(self.log()) } }).await;
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        pid_of(&self.daemon)
    }

    /// Ends it by this signal, and waits.
    pub async fn end(&mut self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
        self.daemon.wait().await.expect("it is ours");
    }

    /// Starts it again and waits until it is ready.
    pub async fn restart(&mut self) {
        self.daemon = start_daemon(self.dir.path(), &self.endpoint, &self.prefix, &self.setup);
        self.ready().await;
    }

    /// The coordinator.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("rm.log")).unwrap_or_default()
    }

    async fn ready(&mut self) {
        let key = Key::Rm(self.setup.name.parse().expect("valid"));
        let (visor, before) = (self.visor.clone(), self.url.clone());
        let url = until("the rm is ready", SOON, || async {
            let row: Option<Versioned<Rm>> = visor.get(&key).await.map_err(|error| error.to_string())?;
            let url = row.map(|row| row.value.url).ok_or_else(|| format!("no row: {}", self.log()))?;
            if url == before {
                return Err("the row is the one before".into());
            }
            let (status, body) = ask(&url, "GET", "/readyz", "").await?;
            if status == 200 { Ok(url) } else { Err(format!("{status} {body}: {}", self.log())) }
        })
        .await;
        self.url = url;
    }

    /// Registers an app and waits for its repository.
    pub async fn init(&self, name: &str) -> AppName {
        let app = self.register(name).await;
        self.until_app(&app, "its repository is there", |view| {
            view.repo.as_ref().is_some_and(|repo| repo.created && repo.configured && repo.hooks)
        })
        .await;
        app
    }

    /// Registers an app.
    pub async fn register(&self, name: &str) -> AppName {
        let body = format!(r#"{{"name":"{name}","owner":"ada","token":"token of {name}"}}"#);
        let (status, answer) = ask(&self.url, "POST", "/apps", &body).await.expect("it answers");
        assert_eq!(status, 201, "{answer}");
        name.parse().expect("valid")
    }

    /// An app's folder with a remote, registered.
    pub async fn app(&self, name: &str) -> (AppName, Folder) {
        let app = self.init(name).await;
        (app, self.folder(name, name))
    }

    /// A developer's folder for an app.
    pub fn folder(&self, name: &str, app: &str) -> Folder {
        let folder = Folder { dir: self.dir.path().join("src").join(name), home: self.dir.path().to_owned() };
        fs::create_dir_all(&folder.dir).expect("made");
        folder.git_now(&["init", "-q", "-b", "master"]);
        folder.git_now(&["remote", "add", "bazooka", &format!("{}/{app}.git", self.url)]);
        folder
    }

    /// All of an app.
    pub async fn view(&self, app: &AppName) -> AppView {
        let snapshot = self.visor.read(keys::app(app)).await.expect("the coordinator answers");
        snapshot.apps.get(app).cloned().unwrap_or_default()
    }

    /// Waits until an app is so.
    pub async fn until_app(&self, app: &AppName, what: &str, is_so: impl Fn(&AppView) -> bool) -> AppView {
        until(what, SOON, || async {
            let view = self.view(app).await;
            if is_so(&view) { Ok(view) } else { Err(format!("{view:?}\n{}", self.log())) }
        })
        .await
    }

    /// Waits until a release is tried, and says as the converger would that it is good, or why it isn't.
    pub async fn judge(&self, app: &AppName, release: ReleaseId, cause: Option<&str>) {
        until("the trial is judged", SOON, || async {
            let view = self.view(app).await;
            let seen = format!("{:?} {:?}", view.trial, view.releases.get(&release));
            let row = view.releases.get(&release).ok_or(seen.clone())?;
            let trial = view.trial.as_ref().filter(|trial| trial.release == release).ok_or(seen.clone())?;
            let change = match cause {
                Some(cause) => failure(app, &view, release, row, cause),
                None => verification(app, &view, release, row, trial),
            };
            match self.visor.commit(change).await {
                Ok(Committed::Done(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Has some instances of a proc wanted.
    pub async fn scale(&self, app: &AppName, proc: &str, count: u32) {
        let proc: ProcName = proc.parse().expect("valid");
        self.visor
            .scale(app, &proc, count, None, "ada", jiff::Timestamp::now())
            .await
            .expect("the formation is written");
    }

    /// What is left in the folders where pushes work.
    pub fn left_over(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for folder in ["builds", "slugs/.new", "gone", "packs"] {
            for entry in fs::read_dir(self.state().join(folder)).expect("it is there") {
                left.push(entry.expect("readable").path());
            }
        }
        left
    }

    /// Unpacks a rev's slug into a folder of its own.
    pub fn unpacked(&self, rev: &Rev, name: &str) -> PathBuf {
        let unpacked = self.dir.path().join(format!("unpacked-{name}"));
        let file = fs::File::open(self.state().join(format!("slugs/{}", rev.slug.sha256))).expect("stored");
        tar::Archive::new(zstd::Decoder::new(file).expect("zstd")).unpack(&unpacked).expect("it is tar");
        unpacked
    }

    /// Has git check all of a repository.
    pub fn fsck(&self, app: &AppName) {
        let checked = std::process::Command::new("git")
            .args(["fsck", "--full", "--strict", "--no-progress"])
            .current_dir(self.state().join(format!("repos/{app}.git")))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .expect("git can be started");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Killed here already, or with its handle.
        let _ = self.daemon.start_kill();
        if std::thread::panicking() {
            eprintln!("--- bazooka-rm's log\n{}", self.log());
        }
    }
}

fn start_daemon(dir: &Path, endpoint: &str, prefix: &str, setup: &Setup) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("rm.log")).expect("a log");
    // setpriv sets the parent-death signal and becomes the daemon: a test that is killed leaves nothing.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(setup.uid.iter().flat_map(|uid| {
            [format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()]
        }))
        .args(["--", env!("CARGO_BIN_EXE_bazooka-rm")])
        .args([
            "--name",
            setup.name,
            "--listen",
            "127.0.0.1:0",
            "--coordinator",
            endpoint,
            "--prefix",
            prefix,
        ])
        .args(&setup.args)
        .envs(setup.envs.iter().cloned())
        .arg("--state")
        .arg(dir.join("rm"))
        .envs(setup.uid.map(|_| ("HOME", dir.as_os_str())))
        .env("SECRET_OF_THE_OPERATOR", "told-nobody")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("setpriv (Debian: util-linux) can be started")
}

/// A request, on a connection of its own; the status and the body.
pub async fn ask(url: &str, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = url.strip_prefix("http://").expect("a plain url");
    let work = async {
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let request = format!("{head}{kind}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = work.await.map_err(|error| error.to_string())?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or(answer)
}

/// What a command of git's came to.
#[derive(Clone, Debug)]
pub struct Ran {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Fails the test unless it succeeded.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert!(self.ok, "{self:#?}");
        self
    }

    /// Fails the test unless it was rejected with these words.
    #[track_caller]
    pub fn rejected(self, words: &str) -> Ran {
        assert!(!self.ok && self.stderr.contains(words), "wanted {words:?}: {self:#?}");
        self
    }

    /// The remote's lines.
    pub fn remote_lines(&self) -> Vec<&str> {
        let lines = self.stderr.split(['\n', '\r']).filter_map(|line| line.strip_prefix("remote: "));
        lines.map(str::trim_end).collect()
    }
}

/// A developer's folder.
pub struct Folder {
    pub dir: PathBuf,
    home: PathBuf,
}

impl Folder {
    /// Writes a file; one that begins with `#!` can be executed.
    pub fn write(&self, path: &str, content: &str) -> &Folder {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        fs::write(&path, content).expect("written");
        let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        self
    }

    /// Commits all there is, and returns the commit's id.
    pub fn commit(&self, subject: &str) -> String {
        self.git_now(&["add", "-A"]);
        self.git_now(&["commit", "-q", "--allow-empty", "-m", subject]);
        self.git_now(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Runs git here, at once, and returns what it printed.
    pub fn git_now(&self, args: &[&str]) -> String {
        let output = std::process::Command::new("git")
            .args(args)
            .current_dir(&self.dir)
            .envs(self.envs())
            .output()
            .expect("git can be started");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs git here, with a remote at the other end that must be served meanwhile.
    pub async fn git(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().await.expect("git can be started");
        Ran {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `git push bazooka master`, as most do.
    pub async fn push(&self) -> Ran {
        self.git(&["push", "bazooka", "master"]).await
    }

    /// A command of git's here. It ends with its handle.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(args).current_dir(&self.dir).envs(self.envs()).stdin(Stdio::null()).kill_on_drop(true);
        // A group of its own: git's helpers hold the connection, and go with it in `kill_all`.
        command.process_group(0);
        command
    }

    fn envs(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("HOME", self.home.display().to_string()),
            ("GIT_CONFIG_NOSYSTEM", "1".into()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".into()),
            ("GIT_TERMINAL_PROMPT", "0".into()),
            ("GIT_AUTHOR_NAME", "Ada".into()),
            ("GIT_AUTHOR_EMAIL", "ada@localhost".into()),
            ("GIT_COMMITTER_NAME", "Ada".into()),
            ("GIT_COMMITTER_EMAIL", "ada@localhost".into()),
        ])
    }
}

/// Kills a git with its helpers, as a closed laptop would, and waits.
pub async fn kill_all(git: &mut Child) {
    let pid = pid_of(git);
    nix::sys::signal::killpg(pid, Signal::SIGKILL).expect("it runs");
    git.wait().await.expect("it is ours");
}

/// Each release's number and status.
pub fn releases(view: &AppView) -> Vec<(u32, ReleaseStatus)> {
    view.releases.iter().map(|(id, row)| (id.0, row.status)).collect()
}

/// The keys of a prefix that are there.
pub async fn keys_below(visor: &Visor, prefix: &str) -> Vec<String> {
    let page = visor.store().range(Keys::Prefix(prefix.into()), None).await.expect("it answers");
    page.entries.into_iter().map(|entry| entry.key).collect()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().expect("it runs").try_into().expect("a process id fits"))
}
