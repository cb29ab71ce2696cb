//! The reading of one TOML file, key by key, against a command's options.
//!
//! Owns the lines of faults: each fault has its own, and no fault hides another. Pure.

use std::{any::TypeId, collections::BTreeSet, error::Error as _, ffi::OsString, io};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A file's value for one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The option's long name.
    pub key: String,
    /// The line of the value.
    pub line: usize,
    /// The value as words of a command line.
    pub words: Vec<OsString>,
}

/// The result of reading a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The valid entries.
    pub entries: Vec<Entry>,
    /// The faults, each with its line if it has one.
    pub faults: Vec<(Option<usize>, String)>,
}

impl Reading {
    /// Returns the result for a file that can't be read.
    pub fn unreadable(error: &io::Error) -> Reading {
        Reading { entries: Vec::new(), faults: vec![(None, format!("it can't be read: {error}"))] }
    }
}

/// The similarity to an option from which an unknown key is taken for a misspelling of it.
const LIKE: f64 = 0.8;

/// Reads a file for a command. `called` is the command's name in messages.
pub fn read(command: &Command, called: &str, bytes: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = line_of(bytes, error.valid_up_to());
            reading.faults.push((Some(line), "it isn't text (UTF-8)".into()));
            return reading;
        }
    };
    let line = |at: usize| line_of(bytes, at);
    let (table, errors) = DeTable::parse_recoverable(text);
    // Further errors on a line follow from the first one, and the value read from that line is a guess.
    let mut broken = BTreeSet::new();
    for error in errors {
        let at = error.span().map(|span| line(span.start));
        if broken.insert(at) {
            reading.faults.push((at, error.message().to_owned()));
        }
    }
    for (key, value) in table.get_ref() {
        let at = line(key.span().start);
        if broken.contains(&Some(at)) {
            continue;
        }
        let name: &str = key.get_ref();
        let option = options(command).find(|arg| arg.get_long() == Some(name));
        let Some(option) = option else {
            reading.faults.push((Some(at), unknown(command, called, name)));
            continue;
        };
        match words(option, value) {
            Ok(words) => reading.entries.push(Entry { key: name.to_owned(), line: at, words }),
            Err(faults) => {
                let faults = faults.into_iter();
                reading.faults.extend(faults.map(|(span, what)| {
                    (Some(line(span.unwrap_or(key.span().start))), format!("{name}: {what}"))
                }));
            }
        }
    }
    reading.entries.sort_by_key(|entry| entry.line);
    reading
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    bytes[..at.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Returns the options that a file may set.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let about_the_file = ["config", "check", "help", "version"];
    command.get_arguments().filter(move |arg| {
        arg.get_long().is_some_and(|long| !about_the_file.contains(&long)) && !arg.is_hide_set()
    })
}

fn unknown(command: &Command, called: &str, name: &str) -> String {
    let as_meant = name.replace('_', "-");
    let likely = options(command)
        .filter_map(Arg::get_long)
        .map(|long| (strsim::jaro_winkler(&as_meant, long), long))
        .filter(|(like, _)| *like >= LIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match likely {
        Some((_, long)) => format!("{name}: there is no such option; {long} is one"),
        None => format!("{name}: there is no such option; {called} --help lists them"),
    }
}

/// A fault in a value, and the offset at which the faulty part begins.
type ValueFault = (Option<usize>, String);

/// Converts a value to words of a command line.
fn words(option: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, Vec<ValueFault>> {
    let long = option.get_long().unwrap_or_default();
    let at = |value: &Spanned<DeValue<'_>>| Some(value.span().start);
    if matches!(option.get_action(), ArgAction::SetTrue) {
        return match value.get_ref() {
            DeValue::Boolean(true) => Ok(vec![format!("--{long}").into()]),
            DeValue::Boolean(false) => Ok(Vec::new()),
            other => Err(vec![(at(value), format!("it takes true or false, not {}", called(other)))]),
        };
    }
    let takes_many = matches!(option.get_action(), ArgAction::Append);
    let items: Vec<&Spanned<DeValue<'_>>> = match value.get_ref() {
        DeValue::Array(items) if takes_many => items.iter().collect(),
        DeValue::Array(_) => return Err(vec![(at(value), "it takes one value, not a list".into())]),
        _ => vec![value],
    };
    if items.is_empty() && !option.get_default_values().is_empty() {
        return Err(vec![(at(value), "the list is empty; leave the line out instead".into())]);
    }
    let (mut words, mut faults) = (Vec::new(), Vec::new());
    for item in items {
        let text = match (item.get_ref(), takes_number(option)) {
            (DeValue::String(text), false) => text.to_string(),
            (DeValue::Integer(number), true) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => number.to_string(),
                Err(error) => {
                    faults.push((at(item), error.to_string()));
                    continue;
                }
            },
            (other, true) => {
                faults.push((at(item), format!("it takes a number, not {}", called(other))));
                continue;
            }
            (other, false) => {
                faults.push((at(item), format!("it takes a string in quotes, not {}", called(other))));
                continue;
            }
        };
        match refused(option, &text) {
            None => words.push(format!("--{long}={text}").into()),
            Some(why) => faults.push((at(item), why)),
        }
    }
    if faults.is_empty() { Ok(words) } else { Err(faults) }
}

fn called(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn takes_number(option: &Arg) -> bool {
    let kind = option.get_value_parser().type_id();
    [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<i64>(),
    ]
    .into_iter()
    .any(|number| kind == number)
}

/// Returns why the option's own parser rejects a value.
fn refused(option: &Arg, text: &str) -> Option<String> {
    let mut alone = Arg::new("value")
        .long("value")
        .action(option.get_action().clone())
        .value_parser(option.get_value_parser().clone());
    if let Some(delimiter) = option.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let command = Command::new("file").no_binary_name(true).disable_help_flag(true).arg(alone);
    let error = command.try_get_matches_from([format!("--value={text}")]).err()?;
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue)
        && !valid.is_empty()
    {
        return Some(format!("{text:?} is none of {}", valid.join(", ")));
    }
    let why = error.source().map_or_else(|| super::first_line(&error), ToString::to_string);
    Some(if text.is_empty() { "the string is empty".to_owned() } else { format!("{text:?}: {why}") })
}
