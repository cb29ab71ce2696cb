//! Machines with a systemd of their own, in namespaces, each on a copy of this machine's files.
//!
//! Owns their start and their end, and the way in. What it writes is in memory and goes with it; nothing of the real machine is written.

use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;

use crate::{Nets, Turn, program, until};

/// What starts it.
const BOOT: &str = include_str!("systemd/boot.sh");

/// How long it may take until it has come up, and for whatever else takes a moment there.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machine. Dropping it ends all that runs there.
pub struct Systemd {
    unshare: Child,
    group: String,
    /// Its process 1, as this machine counts.
    init: u32,
    // Ends after the processes: it is unmounted with them.
    dir: TempDir,
    _turn: Turn,
}

impl Systemd {
    /// Boots it and waits until it has come up.
    ///
    /// # Panics
    /// If it doesn't, with what it said; without root, or where no control groups can be made.
    pub fn boot() -> Systemd {
        Systemd::begin("machine1", None, None).up()
    }

    /// Boots some by these names at once, joined by a network: the first at [`Nets::address`] 1, and so on. They know each
    /// other by name, and share a folder, which each has at `/srv/bazooka`.
    ///
    /// # Panics
    /// As [`Systemd::boot`].
    pub fn boot_all(nets: &Nets, names: &[&str], files: &Path) -> Vec<Systemd> {
        let begin = |(host, name): (u8, &&str)| Systemd::begin(name, Some((nets, host)), Some(files));
        let begun: Vec<Systemd> = (1..).zip(names).map(begin).collect();
        let machines: Vec<Systemd> = begun.into_iter().map(Systemd::up).collect();
        let known = (1..).zip(names).fold("127.0.0.1 localhost\n".to_owned(), |known, (host, name)| {
            known + &format!("{} {name}\n", Nets::address(host))
        });
        machines.iter().for_each(|machine| machine.write("/etc/hosts", &known));
        machines
    }

    fn begin(name: &str, link: Option<(&Nets, u8)>, files: Option<&Path>) -> Systemd {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let turn = Turn::whole();
        let dir = tempfile::Builder::new().prefix("bazooka-systemd.").tempdir();
        let dir = dir.expect("a temporary folder can be made");
        let group = format!("bazooka-tests-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let log = fs::File::create(dir.path().join("boot.log")).expect("the log can be written");
        let root = dir.path().join("machine");
        fs::create_dir(&root).expect("the folder can be made");
        let on = link.map(|(nets, host)| nets.on(host)).unwrap_or_default();
        let unshare = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(on)
            .args(["bash", "-c", BOOT, "boot"])
            .arg(&root)
            .arg(&group)
            .arg(program("bazooka-pm").parent().expect("a program has a folder"))
            .args([name, if link.is_some() { "" } else { "--net" }])
            .args(files)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be duplicated"))
            .stderr(log)
            .spawn()
            .expect("setpriv is installed");
        Systemd { unshare, group, init: 0, dir, _turn: turn }
    }

    fn up(mut self) -> Systemd {
        let machine = &mut self;
        machine.init = until("a systemd boots in namespaces", PATIENCE, || {
            let said = fs::read_to_string(machine.dir.path().join("boot.log")).unwrap_or_default();
            if let Ok(Some(status)) = machine.unshare.try_wait() {
                // No use in waiting on.
                panic!(
                    "no systemd could be booted in namespaces ({status}); it takes root and control groups:\n{said}"
                );
            }
            let id = machine.unshare.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            let init: Option<u32> = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            let init = init.ok_or_else(|| said.clone())?;
            let name = fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
            if name.trim() == "systemd" { Ok(init) } else { Err(said) }
        });
        until("systemd has come up", PATIENCE, || {
            let output = machine.command(&["systemctl", "is-system-running"]).output().expect("it runs");
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if ["running", "degraded"].contains(&state.as_str()) { Ok(()) } else { Err(state) }
        });
        self
    }

    /// A command on the machine, as its root.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "--wdns=/root", "--", "env", "-i"]);
        command.args(["HOME=/root", "USER=root", "LANG=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs one and returns all that came of it.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("nsenter is installed")
    }

    /// Runs one and returns what it says.
    ///
    /// # Panics
    /// If it fails.
    pub fn says(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{words:?} failed ({:?}, {:?}): {said}{}",
            output.status.code(),
            output.status.signal(),
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// Runs lines of a shell, which end at the first that fails, and returns what they say.
    ///
    /// # Panics
    /// If they fail.
    pub fn shell(&self, lines: &str) -> String {
        self.says(&["bash", "-euc", lines])
    }

    /// Writes a file there, with its folders.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn write(&self, path: &str, content: &str) {
        let mut command = self.command(&["sh", "-c", "mkdir -p \"${0%/*}\" && cat >\"$0\"", path]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("nsenter is installed");
        let mut stdin = child.stdin.take().expect("it was asked for");
        stdin.write_all(content.as_bytes()).expect("it reads all");
        drop(stdin);
        assert!(child.wait().is_ok_and(|status| status.success()), "{path} can be written");
    }

    /// Copies a file or folder of this machine's in.
    ///
    /// # Panics
    /// If it can't be.
    pub fn copy(&self, from: &Path, to: &str) {
        let inside = PathBuf::from(format!("/proc/{}/root{to}", self.init));
        let copied = Command::new("cp").arg("-rL").arg(from).arg(&inside).status();
        assert!(copied.is_ok_and(|status| status.success()), "{} can be copied in", from.display());
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.says(&["systemctl", "show", "--value", "--property", name, unit]).trim().to_owned()
    }

    /// What a unit has logged.
    pub fn log(&self, unit: &str) -> String {
        self.says(&["journalctl", "--no-pager", "--output=cat", "--unit", unit])
    }

    /// Waits until a unit is in a state.
    ///
    /// # Panics
    /// If it doesn't come to be, with what it logged.
    pub fn until_is(&self, unit: &str, wanted: &str) {
        until(&format!("{unit} is {wanted}"), PATIENCE, || {
            let state = self.property(unit, "ActiveState");
            if state == wanted { Ok(()) } else { Err(format!("{state}: {}", self.log(unit))) }
        });
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init != 0 {
            let words = ["journalctl", "--no-pager", "--lines=60", "--output=short-monotonic"];
            let output = self.command(&words).output();
            let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            eprintln!("--- the last of the machine's journal\n{}", said.unwrap_or_default());
        }
        // Its child goes with it, and with that, as their process 1, all others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let groups = || {
            let below = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
            let below = below.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink());
            below.chain([PathBuf::from("/sys/fs/cgroup")]).map(|path| path.join(&self.group))
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while groups().any(|group| group.is_dir()) && std::time::Instant::now() < deadline {
            for group in groups().filter(|group| group.is_dir()) {
                remove_groups(&group);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes control groups from the innermost outwards, as far as nothing runs in them any more.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
