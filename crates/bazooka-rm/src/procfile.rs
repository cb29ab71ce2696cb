//! The parser of an app's Procfile: a name and a command in each line.
//!
//! Owns the parsing and the words for each fault. Pure: bytes in, procs or a fault out.

use std::collections::BTreeMap;

use visor::names::ProcName;

/// The largest Procfile in bytes; a real one has some hundred.
pub const MAX_BYTES: usize = 64 * 1024;

/// The largest number of procs. Each is compared and written in the transaction that registers the rev, and etcd
/// accepts 128 operations in one.
pub const MAX_PROCS: usize = 50;

/// The longest command in bytes; each instance's row has a copy.
pub const MAX_COMMAND: usize = 4096;

/// A fault in a Procfile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file is too large; with its size in bytes.
    #[error("Procfile: it is {0} bytes long; {MAX_BYTES} is the most")]
    TooLong(usize),
    /// A line has a fault.
    #[error("Procfile, line {line}: {what}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// The fault, with the line's own words where they help.
        what: String,
    },
    /// There is no proc.
    #[error("Procfile: there is no proc in it; a line such as `web: ./server` makes one")]
    NoProcs,
    /// There are too many procs; with their number.
    #[error("Procfile: it has {0} procs; {MAX_PROCS} is the most")]
    TooManyProcs(usize),
}

/// The line's name of the command that runs once before a release: it is no proc.
const RELEASE: &str = "release";

/// A read Procfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Procfile {
    /// The procs, with their commands.
    pub procs: BTreeMap<ProcName, String>,
    /// The spelling of each proc.
    pub spellings: BTreeMap<ProcName, String>,
    /// The command of the release phase.
    pub release: Option<String>,
}

/// Parses a Procfile: one `name: command` a line, as with Heroku. Skips empty lines and lines that begin with `#`.
///
/// Each proc's name is mapped from the file's spelling ([`ProcName::of_spelling`]).
///
/// # Errors
/// The first fault from the top.
pub fn parse(bytes: &[u8]) -> Result<Procfile, Fault> {
    if bytes.len() > MAX_BYTES {
        return Err(Fault::TooLong(bytes.len()));
    }
    // Some editors begin a file with a byte order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut read = Procfile::default();
    let mut lines: BTreeMap<ProcName, usize> = BTreeMap::new();
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let number = at + 1;
        let fault = |what: String| Fault::Line { line: number, what };
        let line =
            std::str::from_utf8(line).map_err(|_| fault("it has bytes in it that are not UTF-8".into()))?;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(strange) = line.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(fault(format!("it has a control character in it ({strange:?})")));
        }
        let Some((name, command)) = line.split_once(':') else {
            return Err(fault(format!("there is no colon in {:?}; it should be `name: command`", cut(line))));
        };
        let spelling = name.trim_end();
        let name = ProcName::of_spelling(spelling).map_err(|invalid| {
            fault(format!("{:?} can't name a proc: {}", cut(&invalid.name), invalid.rule))
        })?;
        let command = command.trim();
        if command.is_empty() {
            return Err(fault(format!("proc '{spelling}' has no command")));
        }
        if command.len() > MAX_COMMAND {
            return Err(fault(format!(
                "the command of proc '{spelling}' is {} bytes long; {MAX_COMMAND} is the most",
                command.len()
            )));
        }
        if let Some(first) = lines.insert(name.clone(), number) {
            let other = read.spellings.get(&name).map_or(name.as_str(), String::as_str);
            return Err(fault(match other == spelling {
                true => format!("proc '{spelling}' is there already, in line {first}"),
                false => format!(
                    "proc '{spelling}' and proc '{other}' of line {first} would both be named '{name}'; rename one"
                ),
            }));
        }
        read.spellings.insert(name.clone(), spelling.to_owned());
        match name.as_str() == RELEASE {
            true => read.release = Some(command.to_owned()),
            false => drop(read.procs.insert(name, command.to_owned())),
        }
    }
    match read.procs.len() {
        0 if read.release.is_none() => Err(Fault::NoProcs),
        0..=MAX_PROCS => Ok(read),
        many => Err(Fault::TooManyProcs(many)),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &str) -> String {
        parse(text.as_bytes()).expect_err(text).to_string()
    }

    #[test]
    fn names_and_commands_are_read() {
        let procs = parse(
            b"\xef\xbb\xbf# how it runs\r\nweb: node server.js --port $PORT\r\n\n  job :bin/work: fast \nrelease:\tx",
        )
        .expect("it is good");
        assert_eq!(procs.release.as_deref(), Some("x"));
        let procs: Vec<(&str, &str)> = procs.procs.iter().map(|(n, c)| (n.as_str(), c.as_str())).collect();
        assert_eq!(procs, [("job", "bin/work: fast"), ("web", "node server.js --port $PORT")]);
    }

    #[test]
    fn names_are_taken_as_foreman_takes_them() {
        let read = parse(b"Mail_Worker: a\nclock: b\nx__y-: c\n").expect("it is good");
        let names: Vec<&str> = read.procs.keys().map(ProcName::as_str).collect();
        assert_eq!(names, ["clock", "mail-worker", "x-y"]);
        let spellings: Vec<&str> = read.spellings.values().map(String::as_str).collect();
        assert_eq!(spellings, ["clock", "Mail_Worker", "x__y-"]);
    }

    #[test]
    fn a_fault_is_told_with_its_line_and_reason() {
        for (text, wanted) in [
            ("web node server.js\n", "Procfile, line 1: there is no colon"),
            ("\n\nweb: a\njob: b\nweb: c\n", "Procfile, line 5: proc 'web' is there already, in line 3"),
            ("web: a\n2web: b\n", "Procfile, line 2: \"2web\" can't name a proc: 1 to 30 letters"),
            ("web: a\nmail.worker: b\n", "Procfile, line 2: \"mail.worker\" can't name a proc"),
            (
                "mail_worker: a\nMail-Worker: b\n",
                "Procfile, line 2: proc 'Mail-Worker' and proc 'mail_worker' of line 1 would both be named 'mail-worker'",
            ),
            ("web:\n", "Procfile, line 1: proc 'web' has no command"),
            ("web:   \t \n", "Procfile, line 1: proc 'web' has no command"),
            (": node\n", "Procfile, line 1: \"\" can't name a proc"),
            ("web: a\0b\n", "Procfile, line 1: it has a control character in it ('\\0')"),
            ("web: a\u{1b}[2J\n", "Procfile, line 1: it has a control character"),
            ("# nothing\n\n", "Procfile: there is no proc in it"),
            ("", "Procfile: there is no proc in it"),
            ("$(id): x\n", "can't name a proc"),
            ("../x: y\n", "can't name a proc"),
        ] {
            assert!(fault(text).contains(wanted), "{text:?}: {}", fault(text));
        }
        let latin = parse(b"web: a\njob: caf\xe9\n").expect_err("not UTF-8").to_string();
        assert_eq!(latin, "Procfile, line 2: it has bytes in it that are not UTF-8");
    }

    #[test]
    fn what_is_too_long_is_refused() {
        assert!(matches!(parse(&vec![b'#'; MAX_BYTES + 1]), Err(Fault::TooLong(_))));
        let long = format!("web: {}\n", "x".repeat(MAX_COMMAND + 1));
        assert!(fault(&long).contains("4096 is the most"));
        let many: String = (0..=MAX_PROCS).map(|n| format!("p{n}: x\n")).collect();
        assert_eq!(parse(many.as_bytes()), Err(Fault::TooManyProcs(MAX_PROCS + 1)));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_the_answer_is_a_proc_or_a_fault(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            match parse(&bytes) {
                Ok(read) => {
                    prop_assert!(!read.procs.is_empty() || read.release.is_some());
                    for command in read.procs.values().chain(&read.release) {
                        prop_assert!(!command.is_empty() && !command.contains(['\n', '\0', '\r']));
                    }
                }
                Err(fault) => prop_assert!(!fault.to_string().contains('\n')),
            }
        }

        #[test]
        fn what_was_written_is_read_back(
            procs in proptest::collection::btree_map("[a-z]([a-z0-9]{0,8})", "[!-~]([ -~]{0,40}[!-~])?", 1..10),
            blank in proptest::collection::vec(prop_oneof![Just("\n"), Just("# note\n"), Just(" \r\n")], 0..4),
        ) {
            let text: String = procs.iter().map(|(n, c)| format!("{n}: {c}\n{}", blank.concat())).collect();
            let read = parse(text.as_bytes()).expect("it is good");
            let read: BTreeMap<String, String> = read.procs.into_iter().map(|(n, c)| (n.to_string(), c)).collect();
            prop_assert_eq!(read, procs);
        }
    }
}
