//! A prefix of the run's etcd, a home folder, and the program in it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::Path, http::HeaderMap, routing::get};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};
use visor::{
    keys::Key,
    names::{AppName, Digest, ProcName, RevId},
    schema::{Ask, Extra, Promoter, Rev, Rm, Slug},
    seal::{Keyring, Os, SecretKey},
    testing::{Etcd, fresh_prefix, observer},
    transitions::{
        envs::Opened,
        releases::{Begun, NewRelease},
    },
    visor::Visor,
};

/// The commit of the original's transcript.
pub const REV: &str = "16f7cbf0123456789012345678901234567890ab";

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status; -1 where a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Fails the test unless it ended with this status.
    #[track_caller]
    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Fails the test unless it succeeded without a word on standard error.
    #[track_caller]
    pub fn ok(self) -> Ran {
        let ran = self.exits(0);
        assert_eq!(ran.stderr, "", "{ran:#?}");
        ran
    }
}

/// A cluster's state without any daemon, and a developer's home.
pub struct Rig {
    /// The cluster's state.
    pub visor: Visor,
    prefix: String,
    coordinator: String,
    home: TempDir,
}

impl Rig {
    /// An empty cluster.
    pub async fn new() -> Rig {
        let coordinator = Etcd::shared().await.endpoint().to_owned();
        let prefix = fresh_prefix();
        let visor = Visor::new(observer(&coordinator, &prefix));
        visor.set_up().await.expect("the coordinator answers");
        let home = tempfile::tempdir().expect("a temporary folder can be made");
        Rig { visor, prefix, coordinator, home }
    }

    /// With an app that has one rev with these procs, released.
    pub async fn with_app(name: &str, procs: &[&str]) -> Rig {
        let rig = Rig::new().await;
        rig.register(name).await;
        rig.push(name, REV, procs).await;
        rig
    }

    /// Has an rm serve that opens config vars, and does nothing else.
    pub async fn rm(&self) {
        let ring = Keyring::of(SecretKey::fresh(&mut Os));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let lease = self.visor.store().grant(Duration::from_secs(300)).await.expect("it is granted");
        let row = Rm { seal_key: Some(ring.current()), ..Rm::at(url) };
        let name = "rm1".parse().expect("valid");
        let said = self.visor.publish_rm(&name, &row, &Ask::new("word"), lease).await;
        said.expect("the coordinator answers");
        let visor = self.visor.clone();
        let opened = async move |Path((app, env)): Path<(String, String)>, headers: HeaderMap| {
            assert_eq!(headers["authorization"], "Bearer word");
            let (app, env) = (app.parse().expect("valid"), env.parse().expect("valid"));
            match visor.open_env(&app, env, &ring).await.expect("the coordinator answers") {
                Opened::Vars(vars) => Json(vars),
                other => panic!("{other:?}"),
            }
        };
        let routes = Router::new().route("/apps/{app}/envs/{env}", get(opened));
        tokio::spawn(async move { axum::serve(listener, routes).await });
    }

    /// Registers an app.
    pub async fn register(&self, name: &str) {
        let registered = self.visor.register_app(&app(name), "tester", "token", Timestamp::now()).await;
        registered.expect("the name is free");
    }

    /// Registers a rev, and makes it head where nothing of it is wanted.
    pub async fn push(&self, name: &str, rev: &str, procs: &[&str]) -> Begun {
        self.add_rev(name, rev, procs).await;
        let new = NewRelease {
            rev: Some(rev.parse().expect("valid")),
            by: "tester".into(),
            reason: "push".into(),
            token: rev.into(),
            ..NewRelease::default()
        };
        let begun =
            self.visor.begin_release(&app(name), &new, Promoter::Converger, None, Timestamp::now()).await;
        begun.expect("nothing else is being tried")
    }

    /// Registers a rev alone.
    pub async fn add_rev(&self, name: &str, rev: &str, procs: &[&str]) {
        let sha256: Digest = "0".repeat(64).parse().expect("valid");
        let row = Rev {
            slug: Slug { sha256, size_bytes: 1536 },
            procs: procs.iter().map(|proc| (self::proc(proc), format!("run {proc}"))).collect(),
            kind: "procfile".into(),
            by: "tester".into(),
            at: Timestamp::now(),
            subject: "go to rocket".into(),
            extra: Extra::new(),
        };
        let id: RevId = rev.parse().expect("valid");
        self.visor.register_rev(&app(name), &id, &row, &Default::default()).await.expect("the app is there");
    }

    /// The developer's home and working folder.
    pub fn home(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// A command in the home folder that knows this cluster.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut envs = BTreeMap::from([
            ("BAZOOKA_COORDINATOR", self.coordinator.clone()),
            ("BAZOOKA_PREFIX", self.prefix.clone()),
            ("HOME", self.home.path().display().to_string()),
            ("USER", "tester".to_owned()),
            ("TZ", "UTC".to_owned()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".to_owned()),
            ("GIT_CONFIG_NOSYSTEM", "1".to_owned()),
            // A repository around the temporary folder is none of the test's.
            ("GIT_CEILING_DIRECTORIES", std::env::temp_dir().display().to_string()),
        ]);
        envs.insert("PATH", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(envs).current_dir(self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs bazooka.
    pub async fn bazooka(&self, args: &[&str]) -> Ran {
        end(self.start(args)).await
    }

    /// Starts bazooka.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(env!("CARGO_BIN_EXE_bazooka"), args).spawn().expect("bazooka can be started")
    }

    /// Runs git.
    pub async fn git(&self, args: &[&str]) -> Ran {
        end(self.command("git", args).spawn().expect("git can be started")).await
    }

    /// Writes a key with a plain value.
    pub async fn write<T: serde::Serialize>(&self, key: &Key, value: &T) {
        let change = visor::visor::Change::new().put(key, value);
        self.visor.commit(change).await.expect("the coordinator answers");
    }
}

/// Waits for a command's end.
pub async fn end(child: Child) -> Ran {
    let begin = Instant::now();
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    let output = output.expect("it ends within a minute").expect("it can be waited for");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: begin.elapsed(),
    }
}

/// Reads what a command says until these words have come, and returns all of it.
pub async fn hears(pipe: &mut Option<impl AsyncRead + Unpin>, words: &str) -> String {
    let pipe = pipe.as_mut().expect("it is piped");
    let mut heard = Vec::new();
    let listening = async {
        while !String::from_utf8_lossy(&heard).contains(words) {
            assert_ne!(
                pipe.read_buf(&mut heard).await.expect("it can be read"),
                0,
                "it ended without {words:?}"
            );
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listening).await.expect("the words come in time");
    String::from_utf8_lossy(&heard).into_owned()
}

/// An app's name.
pub fn app(name: &str) -> AppName {
    name.parse().expect("valid")
}

/// A proc's name.
pub fn proc(name: &str) -> ProcName {
    name.parse().expect("valid")
}

/// Lines with runs of blanks and tabs made one blank.
pub fn words(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}
