//! A developer's folder: files, commits, git and bazooka in it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A command that has ended.
#[derive(Clone, Debug)]
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
    /// Runs a command to its end.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn of(mut command: Command) -> Ran {
        let begin = Instant::now();
        let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: begin.elapsed(),
        }
    }

    /// Fails the test unless the command succeeded.
    ///
    /// # Panics
    /// If it didn't.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Fails the test unless the command ended with this status.
    ///
    /// # Panics
    /// If it didn't.
    #[track_caller]
    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// The lines that git shows as the remote's, without the padding that it adds.
    pub fn remote_lines(&self) -> Vec<String> {
        let lines = self.stderr.split(['\n', '\r']).filter_map(|line| line.strip_prefix("remote: "));
        lines.map(|line| line.trim_end().to_owned()).collect()
    }
}

/// The variables that lead a developer's commands to a cluster.
pub(crate) fn developer(coordinator: &str, prefix: &str, home: &Path) -> BTreeMap<String, String> {
    fs::create_dir_all(home).expect("the folder can be made");
    let home = home.display().to_string();
    let pairs = [
        ("BAZOOKA_COORDINATOR", coordinator),
        ("BAZOOKA_PREFIX", prefix),
        ("HOME", &home),
        ("USER", "tester"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_AUTHOR_NAME", "Test"),
        ("GIT_AUTHOR_EMAIL", "test@localhost"),
        ("GIT_COMMITTER_NAME", "Test"),
        ("GIT_COMMITTER_EMAIL", "test@localhost"),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A developer's folder with a git repository in it.
pub struct Repo {
    dir: PathBuf,
    envs: BTreeMap<String, String>,
    inside: Vec<String>,
}

impl Repo {
    pub(crate) fn create(dir: &Path, envs: BTreeMap<String, String>, inside: Vec<String>) -> Repo {
        fs::create_dir_all(dir).expect("the folder can be made");
        let repo = Repo { dir: dir.into(), envs, inside };
        repo.git(&["-c", "init.defaultBranch=master", "init", "-q"]).ok();
        repo
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file; one that begins with `#!` can be executed.
    pub fn write(&self, path: &str, content: &str) -> &Self {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the folder can be made");
        fs::write(&path, content).expect("the file can be written");
        if content.starts_with("#!") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the mode can be set");
        }
        self
    }

    /// Copies a folder's files in.
    pub fn copy(&self, from: &Path) -> &Self {
        let copied =
            Command::new("cp").arg("-a").arg(format!("{}/.", from.display())).arg(&self.dir).status();
        assert!(copied.is_ok_and(|status| status.success()), "{} can be copied", from.display());
        self
    }

    /// Commits all there is and returns the commit's id.
    pub fn commit(&self, subject: &str) -> String {
        self.git(&["add", "-A"]).ok();
        self.git(&["commit", "-q", "--allow-empty", "-m", subject]).ok();
        self.git(&["rev-parse", "HEAD"]).ok().stdout.trim().to_owned()
    }

    /// Runs git here.
    pub fn git(&self, args: &[&str]) -> Ran {
        self.run("git", args)
    }

    /// Runs git here, with more variables than a developer's shell has.
    pub fn git_with(&self, envs: &[(&str, &str)], args: &[&str]) -> Ran {
        let mut command = self.command("git", args);
        command.envs(envs.iter().copied());
        Ran::of(command)
    }

    /// Runs the bazooka of another build here.
    pub fn bazooka_of(&self, build: &Path, args: &[&str]) -> Ran {
        self.run(&build.join("bazooka").display().to_string(), args)
    }

    /// Runs bazooka here.
    pub fn bazooka(&self, args: &[&str]) -> Ran {
        self.run(&crate::program("bazooka").display().to_string(), args)
    }

    /// A command here, as a developer's shell would start it.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let words: Vec<&str> =
            self.inside.iter().map(String::as_str).chain([program]).chain(args.iter().copied()).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(&self.dir).envs(&self.envs).stdin(Stdio::null());
        // It would stand above what `init` says of the cluster's own authority.
        command.env_remove("GIT_SSL_CAINFO");
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Ran {
        Ran::of(self.command(program, args))
    }
}
