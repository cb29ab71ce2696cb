//! The two commands of `deploy/`: a cluster from nothing, with the sample app in it, and away again.

use std::{
    fs::{self, File},
    io::Read,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bazooka_tests::{Ran, SOON, program, until};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use visor::testing::free_port;

/// A machine as far as these commands know one: folders and ports of its own.
struct Machine {
    dir: TempDir,
    ports: [u16; 3],
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::Builder::new().prefix("bazooka-up.").tempdir().expect("a temporary folder");
        // Instances have users of their own, and their slugs lie below.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the mode can be set");
        Machine { dir, ports: [0; 3].map(|_| free_port()) }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A script of `deploy/`, as somebody calls it whose shell is set up for another cluster.
    fn script(&self, name: &str, args: &[&str]) -> Command {
        let [coordinator, public, rm] = self.ports;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
        let built = program("bazooka");
        let mut command = Command::new(file);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("BAZOOKA_DEV_STATE", self.state());
        command.env("BAZOOKA_DEV_PREFIX", self.dir.path().join("prefix"));
        command.env("BAZOOKA_DEV_BUILT", built.parent().expect("a program has a folder"));
        command.env(
            "BAZOOKA_DEV_ARGS",
            format!("--coordinator-port {coordinator} --public-port {public} --rm-port {rm}"),
        );
        command.env("BAZOOKA_COORDINATOR", "http://127.0.0.1:1").env("BAZOOKA_PREFIX", "/elsewhere");
        command.env("http_proxy", "http://127.0.0.1:1").env("GIT_DIR", "/nonexistent");
        command
    }

    fn run(&self, name: &str, args: &[&str]) -> Ran {
        Ran::of(self.script(name, args))
    }

    /// The sample app's page, at the address that the command ended with.
    fn page(&self, ran: &Ran) -> String {
        let url = ran.stdout.lines().last().unwrap_or_default();
        assert_eq!(url, format!("http://goto-rocket.localhost:{}/", self.ports[1]), "{ran:#?}");
        let asked = Command::new("curl").args(["-fsS", "--noproxy", "*", "--max-time", "5", url]).output();
        let asked = asked.expect("curl is there");
        assert!(asked.status.success(), "{asked:?}");
        String::from_utf8_lossy(&asked.stdout).into_owned()
    }

    /// The command lines of processes that were started for this cluster, wherever they are.
    fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").expect("/proc is there").filter_map(Result::ok);
        let found = entries.filter_map(|entry| {
            let command = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).into_owned();
            let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let ours = command.contains(&self.state().display().to_string()) || at.starts_with(self.state());
            ours.then(|| command.replace('\0', " "))
        });
        found.collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let down = self.run("down", &[]);
        if std::thread::panicking() {
            eprintln!("{down:#?}\n{}", fs::read_to_string(self.state().join("dev.log")).unwrap_or_default());
        }
    }
}

/// Waits until it has said this on stderr; gives it back with what it said.
fn says(child: &mut Child, words: &str) {
    let mut stderr = child.stderr.take().expect("it is piped");
    let mut said = Vec::new();
    let mut piece = [0; 512];
    while !String::from_utf8_lossy(&said).contains(words) {
        match stderr.read(&mut piece).expect("it can be read") {
            0 => panic!("not {words:?}: {}", String::from_utf8_lossy(&said)),
            n => said.extend_from_slice(&piece[..n]),
        }
    }
    child.stderr = Some(stderr);
}

#[test]
fn the_two_commands_bring_the_sample_app_up_once_and_take_all_of_it_away() {
    let machine = Machine::new();
    let up = machine.run("up", &[]).ok();
    assert!(machine.page(&up).starts_with("go to rocket"), "{up:#?}");
    assert!(up.stdout.contains("$ bazooka scale -n 1 web"), "{up:#?}");

    let pid = fs::read_to_string(machine.state().join("dev.pid")).expect("it has a process id");
    let again = machine.run("up", &[]).ok();
    assert!(again.stdout.starts_with("nothing to do"), "{again:#?}");
    assert_eq!(fs::read_to_string(machine.state().join("dev.pid")).ok(), Some(pid));

    let down = machine.run("down", &[]).ok();
    assert_eq!(down.stdout, "the cluster is stopped\n");
    assert_eq!(machine.processes(), Vec::<String>::new());

    // What was deployed comes back; it isn't deployed again.
    let back = machine.run("up", &[]).ok();
    machine.page(&back);
    assert!(!back.stdout.contains("$ "), "{back:#?}");

    machine.run("down", &["--purge"]).ok();
    assert_eq!(machine.processes(), Vec::<String>::new());
    assert!(!machine.state().exists());
    let none = machine.run("down", &[]).ok();
    assert!(none.stdout.starts_with("the cluster is not running"), "{none:#?}");
}

#[test]
fn a_port_that_is_taken_is_told_with_who_has_it_and_where_another_is_named() {
    let machine = Machine::new();
    let _taken = TcpListener::bind(("127.0.0.1", machine.ports[1])).expect("it was free a moment ago");
    let up = machine.run("up", &[]).exits(1);
    assert!(up.stderr.contains(&format!("process {}", std::process::id())), "{up:#?}");
    assert!(up.stderr.contains("--public-port") && up.stderr.contains("BAZOOKA_DEV_ARGS="), "{up:#?}");
    assert_eq!(machine.processes(), Vec::<String>::new());
}

#[test]
fn a_cluster_that_somebody_runs_by_hand_is_neither_stopped_nor_purged() {
    let machine = Machine::new();
    fs::create_dir_all(machine.state()).expect("the folder can be made");
    let file = File::create(machine.state().join("lock")).expect("it can be made");
    let _held = Flock::lock(file, FlockArg::LockExclusive).expect("nobody else has it");
    for args in [["up"].as_slice(), &["down"], &["down", "--purge"]] {
        let ran = machine.run(args[0], &args[1..]).exits(1);
        assert!(ran.stderr.contains("deploy/up did not start"), "{ran:#?}");
    }
    assert!(machine.state().join("lock").exists());
}

#[test]
fn a_folder_that_is_no_clusters_is_neither_filled_nor_purged() {
    let machine = Machine::new();
    let precious = machine.state().join("thesis.txt");
    fs::create_dir_all(machine.state()).expect("the folder can be made");
    fs::write(&precious, "all of it").expect("it can be written");
    let down = machine.run("down", &["--purge"]).exits(1);
    assert!(down.stderr.contains("nothing is removed"), "{down:#?}");
    machine.run("down", &[]).ok();
    machine.run("down", &["--purge"]).exits(1);
    let up = machine.run("up", &[]).exits(1);
    assert!(up.stderr.contains("BAZOOKA_DEV_STATE"), "{up:#?}");
    let left: Vec<_> = fs::read_dir(machine.state()).expect("it is there").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(precious.exists());
}

#[test]
fn the_second_of_two_at_once_waits_for_the_first() {
    let machine = Machine::new();
    fs::create_dir_all(machine.state()).expect("the folder can be made");
    let file = File::create(machine.state().join("turn")).expect("it can be made");
    let held = Flock::lock(file, FlockArg::LockExclusive).expect("nobody else has it");
    let mut down = machine.script("down", &[]).spawn().expect("it can be started");
    says(&mut down, "waiting for it");
    assert!(matches!(down.try_wait(), Ok(None)), "it waits");
    drop(held);
    let ended = until("it goes on", SOON, || down.try_wait().ok().flatten().ok_or("it runs".into()));
    assert!(ended.success(), "{ended}");
}
