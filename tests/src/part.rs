//! One daemon as a child, ended with the test.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::RwLock,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The folder with Bazooka's programs, where they aren't those beside the one that runs.
static PROGRAMS: RwLock<Option<PathBuf>> = RwLock::new(None);

/// Has clusters run the programs of another folder from now on, or those beside the one that runs again.
pub fn use_programs(folder: Option<&Path>) {
    *PROGRAMS.write().expect("no holder panics") = folder.map(Path::to_owned);
}

/// A program of the workspace, as it was built beside the one that runs, or of the folder that was told.
///
/// # Panics
/// If it isn't there, with the command that builds it.
pub fn program(name: &str) -> PathBuf {
    // The tests' own servers are no part of a build.
    let told = PROGRAMS.read().expect("no holder panics").clone().filter(|_| name.starts_with("bazooka"));
    if let Some(folder) = told {
        let program = folder.join(name);
        assert!(program.is_file(), "there is no {}", program.display());
        return program;
    }
    let own = std::env::current_exe().expect("a running program has a path");
    let dir =
        own.ancestors().skip(1).find(|dir| dir.join(name).is_file()).unwrap_or_else(|| {
            panic!("no {name} beside {}: run cargo build --workspace first", own.display())
        });
    dir.join(name)
}

/// A running daemon.
pub struct Part {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Part {
    /// Starts a program with its output in `log`. It ends with the thread that started it, at the latest.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(name: &str, log: &Path, command: &mut Command) -> Part {
        let file = File::options().create(true).append(true).open(log).expect("the log can be written");
        // setpriv sets the parent-death signal and becomes the program: a test that is killed leaves nothing.
        let mut with_death = Command::new("setpriv");
        with_death.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
        // What this machine's own daemons are told is none of the test's.
        with_death.env("BAZOOKA_CONFIG", "/dev/null");
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => with_death.env(key, value),
                None => with_death.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            with_death.current_dir(dir);
        }
        let child = with_death
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file can be duplicated"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} can't be started: {error}"));
        Part { name: name.into(), child, log: log.into() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it listens on this address, itself and no other process.
    pub fn listens(&self, address: SocketAddr) -> bool {
        visor::testing::listeners(self.child.id()).into_iter().any(|own| SocketAddr::V4(own) == address)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"));
        // It may have ended by itself; then there is nothing to signal, and its id is still ours until waited for.
        let _ = kill(pid, signal);
    }

    /// Stops it where it stands (SIGSTOP).
    pub fn pause(&self) {
        visor::testing::stand_still(Pid::from_raw(
            i32::try_from(self.child.id()).expect("a process id fits"),
        ));
    }

    /// Ends it with SIGKILL and waits.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Ends it with SIGTERM and waits, for a minute at most; then with SIGKILL.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let begin = Instant::now();
        while self.is_running() {
            if begin.elapsed() > Duration::from_secs(60) {
                eprintln!("{} did not end on SIGTERM; its log:\n{}", self.name, self.log());
                self.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.is_running() {
            self.stop();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the last of {}'s log", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
