//! Tests of reading settings from files, variables and command lines, in tables.

use std::{io, net::SocketAddr};

use clap::{Parser, Subcommand, ValueEnum};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Sandbox,
    None,
}

#[derive(Debug, Parser)]
#[command(name = "daemon", args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    coordinator: Vec<String>,
    // cargo sets these two variables for every test that it runs.
    #[arg(long, env = "CARGO_PKG_NAME", default_value = "nobody")]
    owner: String,
    #[arg(long, env = "BAZOOKA_NEVER_SET", default_value = "somewhere")]
    zone: String,
    #[arg(long)]
    listen: Option<SocketAddr>,
    #[arg(long, default_value_t = 7)]
    slots: u32,
    #[arg(long)]
    isolation: Option<Kind>,
    #[arg(long, conflicts_with = "socket", required_unless_present = "socket")]
    run: bool,
    #[arg(long)]
    socket: Option<PathBuf>,
    #[arg(long)]
    keys: Option<PathBuf>,
    #[arg(long, requires = "keys")]
    user: Option<String>,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Debug, Subcommand)]
enum Sub {
    Converge {
        #[arg(long)]
        name: Option<String>,
    },
    Rotate {
        #[arg(long, default_value_t = 7)]
        slots: u32,
    },
    Probe,
}

impl Settings for Args {
    const FILES: &'static [ConfigFile] = &[
        ConfigFile { subcommand: None, file: "pm", borrows: false },
        ConfigFile { subcommand: Some("converge"), file: "converge", borrows: false },
        ConfigFile { subcommand: Some("rotate"), file: "pm", borrows: true },
    ];

    fn validate(&self) -> Vec<ConfigError> {
        let keys = self.keys.iter().filter(|keys| *keys == Path::new("/none"));
        keys.map(|keys| ConfigError::new("keys", format!("there is no {}", keys.display()))).collect()
    }
}

/// Returns the command without its variable for a file, which may be set for the tests' own daemons.
fn deaf() -> Command {
    let without = |command: Command| command.mut_arg("config", |config| config.env(None::<&str>));
    let named = Args::FILES.iter().filter_map(|told| told.subcommand);
    named.fold(without(command::<Args>()), |command, name| command.mut_subcommand(name, without))
}

/// Reads a command line, split at blanks, with these files.
fn told(words: &str, files: &[(&str, &str)]) -> Result<Args, Vec<String>> {
    let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
    let read = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| text.as_bytes().to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let settled = settle(&deaf(), Args::FILES, &words, Path::new("/etc"), &read)
        .map_err(|error| vec![format!("clap: {}", first_line(&error))])?;
    conclude(settled).map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[test]
fn words_beat_variables_beat_the_file_beats_defaults() {
    let file =
        "zone = 'a'\nowner = 'file'\nrun = true\nslots = 3\ncoordinator = ['http://x:1', 'http://y:2']\n";
    let args = told("daemon --slots 9", &[("/etc/pm.toml", file)]).expect("all is right");
    assert_eq!(args.slots, 9, "the command line said so");
    assert_eq!(args.owner, env!("CARGO_PKG_NAME"), "the environment said so");
    assert_eq!((args.zone.as_str(), args.run), ("a", true), "the file said so");
    assert_eq!(args.coordinator, ["http://x:1", "http://y:2"]);
    assert_eq!(args.listen, None, "nobody said anything");

    let args = told("daemon --run", &[]).expect("a file need not be there");
    assert_eq!((args.zone.as_str(), args.slots), ("somewhere", 7));
    assert_eq!(args.coordinator, ["http://127.0.0.1:2379"]);

    let args = told("daemon --config /other --zone c", &[("/etc/pm.toml", "wrong"), ("/other", file)]);
    assert_eq!(args.expect("the other one counts").zone, "c");
}

#[test]
fn a_word_outdoes_what_it_cannot_stand_beside() {
    let args = told("daemon --socket /s", &[("/etc/pm.toml", "run = true")]).expect("one of them counts");
    assert_eq!((args.run, args.socket), (false, Some("/s".into())));
}

#[test]
fn each_command_has_its_own_file_and_others_have_none() {
    let files = [("/etc/pm.toml", "run = true\nslots = 3"), ("/etc/converge.toml", "name = 'c1'")];
    let args = told("daemon converge", &files).expect("all is right");
    assert!(matches!(args.command, Some(Sub::Converge { name: Some(name) }) if name == "c1"));
    let args = told("daemon rotate", &files).expect("it takes what it knows");
    assert!(matches!(args.command, Some(Sub::Rotate { slots: 3 })));
    let args = told("daemon probe", &[("/etc/pm.toml", "wrong")]).expect("it reads none");
    assert!(matches!(args.command, Some(Sub::Probe)));
}

#[test]
fn every_fault_is_told_at_once_with_its_line() {
    // Each case: a file, and the expected faults.
    let cases: &[(&str, &[&str])] = &[
        ("run = true\nzon = 'a'", &["/etc/pm.toml:2: zon: there is no such option; zone is one"]),
        (
            "run = true\nxyzzy = 1",
            &["/etc/pm.toml:2: xyzzy: there is no such option; daemon --help lists them"],
        ),
        (
            "run = true\nconfig = '/x'",
            &["/etc/pm.toml:2: config: there is no such option; daemon --help lists them"],
        ),
        (
            "run = 'yes'\nslots = '3'\nzone = 4\nlisten = ['1.2.3.4:5']\nowner = 1979-05-27",
            &[
                "/etc/pm.toml:1: run: it takes true or false, not a string",
                "/etc/pm.toml:2: slots: it takes a number, not a string",
                "/etc/pm.toml:3: zone: it takes a string in quotes, not a number",
                "/etc/pm.toml:4: listen: it takes one value, not a list",
                "/etc/pm.toml:5: owner: it takes a string in quotes, not a date",
            ],
        ),
        (
            "run = true\nlisten = 'here'\nslots = -1\nisolation = 'strong'\nzone = ''\n",
            &[
                "/etc/pm.toml:2: listen: \"here\": invalid socket address syntax",
                "/etc/pm.toml:3: slots: \"-1\": -1 is not in 0..=4294967295",
                "/etc/pm.toml:4: isolation: \"strong\" is none of sandbox, none",
            ],
        ),
        (
            "run = true\ncoordinator = [\n  'http://x:1',\n  7,\n]\n[table]\nx = 1",
            &[
                "/etc/pm.toml:4: coordinator: it takes a string in quotes, not a number",
                "/etc/pm.toml:6: table: there is no such option; daemon --help lists them",
            ],
        ),
        (
            "run = true\ncoordinator = []",
            &["/etc/pm.toml:2: coordinator: the list is empty; leave the line out instead"],
        ),
        (
            "run = true\nsocket = '/s'\nslot = 1",
            &[
                "/etc/pm.toml:2: socket: it can't stand beside run",
                "/etc/pm.toml:3: slot: there is no such option; slots is one",
            ],
        ),
        ("run = true\nuser = 'git'\nkeys = '/none'", &["/etc/pm.toml:3: keys: there is no /none"]),
        (
            "run = true\nuser = 'git'\nslots = 'x'",
            &[
                "/etc/pm.toml:2: user: it takes keys too",
                "/etc/pm.toml:3: slots: it takes a number, not a string",
            ],
        ),
        (
            "keys = '/none'\nzone == 1",
            &[
                "/etc/pm.toml:1: keys: there is no /none",
                "/etc/pm.toml:2: extra `=`, expected nothing",
                "/etc/pm.toml: run or socket must be said",
            ],
        ),
    ];
    for (file, wanted) in cases {
        let faults = told("daemon", &[("/etc/pm.toml", file)]).expect_err(file);
        assert_eq!(&faults, wanted, "{file}");
    }
}

#[test]
fn a_fault_says_whether_a_word_or_the_file_is_wrong() {
    let files = [("/etc/pm.toml", "run = true\nslot = 1")];
    let faults = told("daemon --keys /none", &files).expect_err("two faults");
    assert_eq!(
        faults,
        [
            "/etc/pm.toml:2: slot: there is no such option; slots is one",
            "command line: keys: there is no /none"
        ]
    );
    let faults = told("daemon --config /gone", &files).expect_err("no such file");
    assert!(faults[0].starts_with("/gone: it can't be read: "), "{faults:?}");
    let faults = told("daemon --wrong", &[("/etc/pm.toml", "run = true")]).expect_err("no such word");
    assert_eq!(faults, ["clap: unexpected argument '--wrong' found"]);
}

#[test]
fn what_is_no_text_is_told_with_the_line_where_that_begins() {
    let reading = file::read(&deaf(), "daemon", b"run = true\nzone = '\xff'");
    assert_eq!(reading.faults, [(Some(2), "it isn't text (UTF-8)".to_owned())]);
}

#[test]
fn numbers_may_be_written_as_toml_has_them() {
    for (text, slots) in [("4_000", 4_000), ("0x10", 16), ("0", 0)] {
        let file = format!("run = true\nslots = {text}");
        assert_eq!(told("daemon", &[("/etc/pm.toml", &file)]).expect("right").slots, slots);
    }
}
