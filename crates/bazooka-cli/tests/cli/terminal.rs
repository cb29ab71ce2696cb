//! What a person at a terminal sees, and what Ctrl-C does there.

use std::{
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::pty::openpty;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout},
};
use visor::{keys::Key, schema::Formation, testing::until};

use crate::{
    player::{Player, Word},
    rig::{Rig, app, proc},
};

/// A command whose three streams are one terminal, as a shell there starts it.
///
/// The shell lives on after it: the kernel hangs a terminal up when the leader of its session ends, and
/// then throws away what was written and has not been taken over yet.
struct Seated {
    shell: Child,
    /// What the shell writes once its command has ended: that one's exit code, as shells give it.
    code: BufReader<ChildStdout>,
    keyboard: std::fs::File,
    screen: Arc<Mutex<String>>,
}

impl Seated {
    fn start(rig: &Rig, args: &[&str]) -> Seated {
        // The shell is no one whom Ctrl-C ends, as an interactive one isn't; its command is not told so.
        const SHELL: &str = r#"trap : INT; "$0" "$@" >&0 2>&0; echo $?; read -r _"#;
        let pty = openpty(None, None).expect("a terminal can be had");
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor is free"));
        let words = ["-c", "sh", "-c", SHELL, env!("CARGO_BIN_EXE_bazooka")];
        let mut command = rig.command("setsid", &[&words, args].concat());
        command.stdin(end(&pty.slave)).stdout(Stdio::piped()).stderr(end(&pty.slave)).kill_on_drop(true);
        let mut shell = command.spawn().expect("setsid is there");
        let code = BufReader::new(shell.stdout.take().expect("it is piped"));
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut read, written) = (std::fs::File::from(pty.master), screen.clone());
        let keyboard = read.try_clone().expect("a descriptor is free");
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It fails once nobody has the other end any more.
            while let Ok(n @ 1..) = read.read(&mut bytes) {
                written.lock().expect("no panic").push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Seated { shell, code, keyboard, screen }
    }

    fn screen(&self) -> String {
        self.screen.lock().expect("no panic").replace('\r', "")
    }

    async fn shows(&self, words: &str) {
        until("it is on the screen", Duration::from_secs(10), || async {
            let screen = self.screen();
            if screen.contains(words) { Ok(()) } else { Err(screen) }
        })
        .await;
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("it is there");
    }

    async fn ends(&mut self) -> Option<i32> {
        let mut line = String::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.code.read_line(&mut line)).await;
        ended.unwrap_or_else(|_| panic!("it goes on: {}", self.screen())).expect("the shell can be read");
        assert!(self.shell.try_wait().expect("it can be asked").is_none(), "the shell ended: {line}");
        line.trim().parse().ok()
    }
}

#[tokio::test]
async fn ctrl_c_at_a_question_ends_it_and_nothing_is_destroyed() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let mut destroy = Seated::start(&rig, &["-a", "goto-rocket", "destroy"]);
    destroy.shows("Type the app's name").await;
    destroy.types("\u{3}");
    assert_eq!(destroy.ends().await, Some(130), "{}", destroy.screen());
    let mut destroy = Seated::start(&rig, &["-a", "goto-rocket", "destroy"]);
    destroy.shows("This ends 0 instances of 'goto-rocket'").await;
    destroy.types("goto-roket\n");
    assert_eq!(destroy.ends().await, Some(1), "{}", destroy.screen());
    destroy.shows("nothing was destroyed").await;
}

#[tokio::test]
async fn ctrl_c_ends_what_never_ends_by_itself_without_a_word() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    let _player = Player::start(&rig.visor).await;
    let mut events = Seated::start(&rig, &["-a", "goto-rocket", "events"]);
    // Each is another event, so that one comes after it has begun to look.
    let began = async {
        for n in (1..=2).cycle() {
            let n = n.to_string();
            rig.bazooka(&["-a", "goto-rocket", "scale", "--no-wait", "-n", &n, "web"]).await.ok();
            if events.screen().contains("wanted") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), began).await.expect("it begins");
    events.types("\u{3}");
    assert_eq!(events.ends().await, Some(130));
    assert!(!events.screen().contains("interrupted"), "{}", events.screen());
}

#[tokio::test]
async fn a_word_in_between_has_a_line_of_its_own() {
    let rig = Rig::with_app("goto-rocket", &["web"]).await;
    // Nobody acts, and after two seconds that is told.
    let mut scale = Seated::start(&rig, &["-a", "goto-rocket", "scale", "-n", "1", "web"]);
    scale
        .shows("web@16f7cbf 0 -> 1\nwaiting: no converger is elected, so that nothing is placed or stopped\n")
        .await;
    let _player = Player::with(&rig.visor, |_, _| Word::Run).await;
    assert_eq!(scale.ends().await, Some(0), "{}", scale.screen());
    scale.shows("stopped\nweb@16f7cbf 0 -> 1 .\n").await;
    let formation = rig.visor.get::<Formation>(&Key::Formation(app("goto-rocket"), proc("web"))).await;
    assert_eq!(formation.expect("the coordinator answers").map(|row| row.count), Some(1));
}
