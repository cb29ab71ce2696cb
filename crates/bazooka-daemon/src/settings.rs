//! A daemon's settings: from its command line, else its environment, else its file, else the defaults.
//!
//! Owns the order of these, the file of each daemon (`/etc/bazooka/NAME.toml`), and the report of all faults at once,
//! each with its place. There is one list of options, clap's: a file's keys are their long names, and their parsers
//! read its values. Nothing here binds an address, writes a file or asks the coordinator.
//!
//! ```text
//! words ─▶ which file ─▶ its keys, one by one ─▶ words again, with the file's entries ─▶ the daemon's own validation
//!                          faults, with lines            conflicts, what is missing        files, users, programs
//! ```

mod file;
mod range;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use crate::documents;
use file::{Entry, Reading};
pub use range::{Range, RangeError};

/// The folder of the files.
const FOLDER: &str = "/etc/bazooka";

/// A command with a configuration file.
#[derive(Clone, Copy, Debug)]
pub struct ConfigFile {
    /// The subcommand; none for the program without one.
    pub subcommand: Option<&'static str>,
    /// The file's name without `.toml`.
    pub file: &'static str,
    /// True if the command reads another command's file and ignores the keys that it doesn't know. It has no
    /// `--check`.
    pub borrows: bool,
}

/// The arguments of a program whose commands may have files.
pub trait Settings: clap::Parser {
    /// The commands that have a file.
    const FILES: &'static [ConfigFile];

    /// Returns the faults that can be found before anything is done.
    fn validate(&self) -> Vec<ConfigError>;
}

/// A fault in an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The option's long name, without dashes.
    pub option: &'static str,
    /// The fault, and how to correct it.
    pub what: String,
}

impl ConfigError {
    /// Creates a fault of this option.
    pub fn new(option: &'static str, what: impl Into<String>) -> ConfigError {
        ConfigError { option, what: what.into() }
    }
}

/// The place of a fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A line of a file.
    Line(PathBuf, usize),
    /// A file as a whole.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// The command line.
    Words,
}

/// A fault with its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    place: Place,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match &self.place {
            Place::Line(path, line) => write!(f, "{}:{line}: {what}", path.display()),
            Place::File(path) => write!(f, "{}: {what}", path.display()),
            Place::Variable(name) => write!(f, "{name}: {what}"),
            Place::Words => write!(f, "command line: {what}"),
        }
    }
}

/// The result of reading all settings.
#[derive(Debug)]
struct Settled {
    /// None if the faults leave nothing to build the arguments from.
    matches: Option<ArgMatches>,
    faults: Vec<Fault>,
    /// The file that was read.
    path: Option<PathBuf>,
    /// The place of each option that isn't set by default, by its long name.
    places: BTreeMap<String, Place>,
    /// True if the settings are only to be checked.
    check: bool,
}

/// Reads a program's settings. Ends the process for faults, for help and after a check: with status 2 for faults, 1 if
/// a check found faults, else 0.
pub fn read<S: Settings>() -> S {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == documents::WORD) {
        std::process::exit(documents::run(command::<S>(), &words[2..]).into());
    }
    let settled = match settle(&command::<S>(), S::FILES, &words, Path::new(FOLDER), &read_file) {
        Ok(settled) => settled,
        Err(error) => error.exit(),
    };
    let checked = settled.check.then(|| settled.path.clone());
    match conclude::<S>(settled) {
        Ok(settings) => match checked {
            None => settings,
            Some(path) => {
                let what = path.map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
                eprintln!("{what}: nothing wrong");
                std::process::exit(0)
            }
        },
        Err(faults) => {
            for fault in &faults {
                eprintln!("{fault}");
            }
            if checked.is_some() {
                std::process::exit(1)
            }
            eprintln!("hint: nothing was started; mend this, and look at it again with --check");
            std::process::exit(2)
        }
    }
}

/// Returns a program's command, with the options `--config` and `--check` for each command that has a file.
pub fn command<S: Settings>() -> Command {
    with_files(S::command(), S::FILES)
}

fn with_files(mut command: Command, told: &[ConfigFile]) -> Command {
    for told in told {
        let path = format!("{FOLDER}/{}.toml", told.file);
        let add = |command: Command| {
            let command = command.arg(
                Arg::new("config")
                    .long("config")
                    .env("BAZOOKA_CONFIG")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help(format!("A TOML file with these options, as in: coordinator = [\"http://10.0.0.1:2379\"] [default: {path}, if it is there]")),
            );
            if told.borrows {
                return command;
            }
            let help = "Say what is wrong with all this, each with its line, and do nothing else";
            command.arg(Arg::new("check").long("check").action(ArgAction::SetTrue).help(help))
        };
        command = match told.subcommand {
            None => add(command),
            Some(name) => command.mut_subcommand(name, add),
        };
    }
    command
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

/// Builds the program's arguments, or returns all faults.
fn conclude<S: Settings>(settled: Settled) -> Result<S, Vec<Fault>> {
    let Settled { matches, mut faults, path, places, .. } = settled;
    let made = matches.map(|matches| S::from_arg_matches(&matches));
    let settings = match made {
        Some(Ok(settings)) => Some(settings),
        Some(Err(error)) => {
            faults.push(Fault { place: Place::Words, what: first_line(&error) });
            None
        }
        None => None,
    };
    if let Some(settings) = &settings {
        for ConfigError { option, what } in settings.validate() {
            let place = places.get(option).cloned();
            let place = place.or_else(|| path.clone().map(Place::File)).unwrap_or(Place::Words);
            faults.push(Fault { place, what: format!("{option}: {what}") });
        }
    }
    faults.sort();
    faults.dedup();
    match settings {
        Some(settings) if faults.is_empty() => Ok(settings),
        _ => Err(faults),
    }
}

/// Reads the command line and the file.
///
/// # Errors
/// A request for help; or a faulty command line if no file is involved. Both in clap's form.
fn settle(
    command: &Command,
    told: &[ConfigFile],
    words: &[OsString],
    folder: &Path,
    read: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<Settled, clap::Error> {
    // The options on the command line and in the environment, valid or not.
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(words)?;
    let (name, said) = match lenient.subcommand() {
        Some((name, said)) => (Some(name), said),
        None => (None, &lenient),
    };
    let Some(told) = told.iter().find(|told| told.subcommand == name) else {
        return plain(command, words);
    };
    let asked: Option<&PathBuf> = said.get_one("config");
    let path = asked.cloned().unwrap_or_else(|| folder.join(told.file).with_extension("toml"));
    let bytes = match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && asked.is_none() => {
            let mut settled = plain(command, words)?;
            settled.check = !told.borrows && said.get_flag("check");
            return Ok(settled);
        }
        other => other,
    };
    let check = !told.borrows && said.get_flag("check");
    // A file is checked against the command that it belongs to, even if another one borrows it.
    let (owner, called) = match told.subcommand {
        Some(name) if !told.borrows => {
            (command.find_subcommand(name).unwrap_or(command), format!("{} {name}", command.get_name()))
        }
        _ => (command, command.get_name().to_owned()),
    };
    let own = match told.subcommand {
        Some(name) => command.find_subcommand(name).unwrap_or(command),
        None => command,
    };
    let Reading { entries, faults } = match bytes {
        Ok(bytes) => file::read(owner, &called, &bytes),
        Err(error) => Reading::unreadable(&error),
    };
    let mut settled = Settled {
        matches: None,
        faults: faults
            .into_iter()
            .map(|(line, what)| Fault {
                place: line.map_or_else(|| Place::File(path.clone()), |line| Place::Line(path.clone(), line)),
                what,
            })
            .collect(),
        path: Some(path.clone()),
        places: places(own, said),
        check,
    };
    let mut added = entries;
    added.retain(|entry| {
        let Some(arg) = own.get_arguments().find(|arg| arg.get_long() == Some(&entry.key)) else {
            return false;
        };
        // An option on the command line also overrides entries that conflict with it.
        let outdone = own.get_arg_conflicts_with(arg).into_iter().any(|other| is_said(said, other));
        !is_said(said, arg) && !outdone
    });
    for entry in &added {
        settled.places.insert(entry.key.clone(), Place::Line(path.clone(), entry.line));
    }
    settled.together(command, told.subcommand, words, added)?;
    Ok(settled)
}

/// Reads a command line without a file.
fn plain(command: &Command, words: &[OsString]) -> Result<Settled, clap::Error> {
    let matches = command.clone().try_get_matches_from(words)?;
    let said = matches.subcommand().map_or(&matches, |(_, said)| said);
    let own = matches.subcommand_name().and_then(|name| command.find_subcommand(name)).unwrap_or(command);
    let places = places(own, said);
    Ok(Settled { matches: Some(matches), faults: Vec::new(), path: None, places, check: false })
}

/// Reports whether an option is on the command line or in the environment.
fn is_said(said: &ArgMatches, arg: &Arg) -> bool {
    let known = said.try_contains_id(arg.get_id().as_str()).is_ok();
    let source = known.then(|| said.value_source(arg.get_id().as_str())).flatten();
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn places(own: &Command, said: &ArgMatches) -> BTreeMap<String, Place> {
    let said = own.get_arguments().filter(|arg| is_said(said, arg)).filter_map(|arg| {
        let by_variable = said.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable);
        let variable = arg.get_env().filter(|_| by_variable);
        let place =
            variable.map_or(Place::Words, |name| Place::Variable(name.to_string_lossy().into_owned()));
        Some((arg.get_long()?.to_owned(), place))
    });
    said.collect()
}

impl Settled {
    /// Parses the command line together with the file's entries. An entry that causes an error is reported and left
    /// out, and the rest is parsed again.
    fn together(
        &mut self,
        command: &Command,
        subcommand: Option<&str>,
        words: &[OsString],
        mut added: Vec<Entry>,
    ) -> Result<(), clap::Error> {
        let mut flags: BTreeSet<String> = BTreeSet::new();
        loop {
            let more = added.iter().flat_map(|entry| entry.words.clone());
            let more = more.chain(flags.iter().map(|flag| format!("--{flag}").into()));
            let error = match command.clone().try_get_matches_from(with(words, subcommand, more)) {
                Ok(matches) => {
                    self.matches = Some(matches);
                    return Ok(());
                }
                Err(error) => error,
            };
            let own = subcommand.and_then(|name| command.find_subcommand(name)).unwrap_or(command);
            let named = named(&error);
            match error.kind() {
                ErrorKind::ArgumentConflict => {
                    // The later of the two is left out.
                    let last = added
                        .iter()
                        .filter(|entry| named.contains(&entry.key))
                        .max_by_key(|entry| entry.line);
                    let Some(key) = last.map(|entry| entry.key.clone()) else { return self.end(error) };
                    let others: Vec<&str> =
                        named.iter().filter(|name| **name != key).map(String::as_str).collect();
                    self.fault(&key, format!("{key}: it can't stand beside {}", others.join(", ")));
                    added.retain(|entry| entry.key != key);
                }
                ErrorKind::MissingRequiredArgument => {
                    let flag = named.iter().find(|name| {
                        let arg = own.get_arguments().find(|arg| arg.get_long() == Some(name));
                        arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
                    });
                    let wants = added.iter().find(|entry| {
                        // Find the entry that requires another one.
                        let without = added.iter().filter(|other| other.key != entry.key);
                        let words = with(words, subcommand, without.flat_map(|other| other.words.clone()));
                        let again = command.clone().try_get_matches_from(words);
                        again.err().is_none_or(|again| again.kind() != ErrorKind::MissingRequiredArgument)
                    });
                    match (wants.map(|entry| entry.key.clone()), flag.cloned()) {
                        (Some(key), _) => {
                            self.fault(&key, format!("{key}: it takes {} too", named.join(" and ")));
                            added.retain(|entry| entry.key != key);
                        }
                        (None, flag) => {
                            // A missing option counts as a fault only if no invalid value for it has been reported.
                            if !named.iter().any(|name| self.is_told(name)) {
                                let place = self.path.clone().map_or(Place::Words, Place::File);
                                let what = lacks(own, &named);
                                self.faults.push(Fault { place, what });
                            }
                            // Parse again as if the flag had been given, so that the rest can be checked.
                            let Some(flag) = flag.filter(|flag| flags.insert(flag.clone())) else {
                                return Ok(());
                            };
                            let _ = flag;
                        }
                    }
                }
                _ => return self.end(error),
            }
        }
    }

    /// Handles a command line that is faulty by itself.
    fn end(&mut self, error: clap::Error) -> Result<(), clap::Error> {
        if self.faults.is_empty() || !error.use_stderr() {
            return Err(error);
        }
        self.faults.push(Fault { place: Place::Words, what: first_line(&error) });
        Ok(())
    }

    /// Reports whether a fault of this option has been reported already.
    fn is_told(&self, name: &str) -> bool {
        let about = |fault: &Fault| fault.what.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
        self.faults.iter().any(about)
    }

    fn fault(&mut self, key: &str, what: String) {
        let place = self.places.get(key).cloned().unwrap_or(Place::Words);
        self.faults.push(Fault { place, what });
    }
}

/// Describes the missing options, with their alternatives.
fn lacks(own: &Command, named: &[String]) -> String {
    let lacking = named.join(" or ");
    let first = own.get_arguments().find(|arg| arg.get_long() == named.first().map(String::as_str));
    let instead: Vec<&str> = first
        .map(|arg| own.get_arg_conflicts_with(arg).into_iter().filter_map(Arg::get_long).collect())
        .unwrap_or_default();
    match instead.as_slice() {
        [] => format!("{lacking} must be said"),
        others => format!("{lacking} or {} must be said", others.join(" or ")),
    }
}

/// Returns the command line with more words after the program's name or the subcommand's.
fn with(words: &[OsString], subcommand: Option<&str>, more: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let at = subcommand.and_then(|name| words.iter().skip(1).position(|word| word == name));
    let at = (at.map_or(1, |at| at + 2)).min(words.len());
    let mut all = words[..at].to_vec();
    all.extend(more);
    all.extend_from_slice(&words[at..]);
    all
}

/// Returns the long names of the options that a clap error is about.
fn named(error: &clap::Error) -> Vec<String> {
    let kinds = [ContextKind::InvalidArg, ContextKind::PriorArg];
    let values = kinds.into_iter().filter_map(|kind| error.get(kind));
    let texts = values.flat_map(|value| match value {
        ContextValue::String(text) => vec![text.clone()],
        ContextValue::Strings(texts) => texts.clone(),
        _ => Vec::new(),
    });
    let names = texts.filter_map(|text| {
        let text = text.trim_start_matches('<');
        let name: String =
            text.strip_prefix("--")?.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        Some(name)
    });
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(name.clone())).collect()
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
