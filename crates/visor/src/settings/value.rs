//! The values of settings: their syntax and their bounds.

use std::{fmt, str::FromStr, time::Duration};

use jiff::SignedDuration;

use super::Setting;
use crate::{
    schema::{Check, InvalidCheckPath, LONGEST_CHECK_PATH, OnPartition, Protocol},
    terminal,
};

/// The value of a setting.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No limit. This is only a default and is never stored.
    NoLimit,
    /// A quarter of the instances. This is only a default and is never stored.
    AQuarter,
    /// A size, in bytes.
    Size(u64),
    /// Processors, in thousandths of one.
    Processors(u32),
    /// A number.
    Count(u32),
    /// A time.
    Time(Duration),
    /// A protocol.
    Protocol(Protocol),
    /// A check.
    Check(Check),
    /// The fate of instances on a host that has lost the coordinator.
    OnPartition(OnPartition),
}

/// The kind of values that a setting takes, with bounds.
#[derive(Debug, PartialEq)]
pub enum Takes {
    /// Sizes, and `none` for no limit.
    Size {
        /// The lowest value in bytes; below it no program starts.
        least: u64,
    },
    /// Sizes of something that always has one.
    Room {
        /// The highest value in bytes.
        most: u64,
    },
    /// Parts of processors, and `none` for no limit.
    Processors {
        /// The lowest value in thousandths; the kernel grants no less.
        least_millis: u32,
        /// The highest value in thousandths.
        most_millis: u32,
    },
    /// Numbers.
    Count {
        /// The lowest value.
        least: u32,
        /// The highest value.
        most: u32,
        /// True if `none` unsets it, too.
        none: bool,
    },
    /// Times.
    Time {
        /// The shortest time.
        least: Duration,
        /// The longest time.
        most: Duration,
    },
    /// Protocols.
    Protocol,
    /// Checks.
    Check,
    /// The fates of instances on a host that has lost the coordinator.
    OnPartition,
}

/// The fault of a refused value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The syntax is wrong.
    Form,
    /// The value is out of bounds.
    Bounds,
}

/// The error for a value that a setting does not take.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("--{} {word}: {}", .setting.name, .setting.takes.rule(*.problem))]
pub struct InvalidValue {
    /// The setting.
    pub setting: &'static Setting,
    /// The given text, cut and cleaned for a terminal.
    pub word: String,
    /// The fault.
    pub problem: Problem,
}

impl InvalidValue {
    pub(super) fn new(setting: &'static Setting, word: &str, problem: Problem) -> Self {
        let word = terminal::clean(word).chars().take(80).collect::<String>();
        let word = if word.trim().is_empty() { format!("'{word}'") } else { word };
        InvalidValue { setting, word, problem }
    }

    /// Returns a hint of what to give instead.
    pub fn hint(&self) -> String {
        let Setting { name, example, default, .. } = self.setting;
        let back = super::docs::default_in_words(default);
        format!("for example --{name} {example}; --{name} default takes it back: {back}")
    }
}

impl Takes {
    /// Reports whether `none` is a word of it.
    pub fn has_none(&self) -> bool {
        matches!(self, Takes::Size { .. } | Takes::Processors { .. } | Takes::Count { none: true, .. })
    }

    /// Returns the bounds in words, where there are both.
    pub fn bounds(&self) -> Option<String> {
        match self {
            Takes::Size { .. } | Takes::Protocol | Takes::Check | Takes::OnPartition => None,
            Takes::Processors { least_millis, most_millis } => {
                Some(format!("{} to {}", Value::Processors(*least_millis), Value::Processors(*most_millis)))
            }
            Takes::Room { most } => Some(format!("0 to {}", size(*most))),
            Takes::Count { least, most, .. } => Some(format!("{least} to {most}")),
            Takes::Time { least, most } => Some(format!("{} to {}", Value::Time(*least), Value::Time(*most))),
        }
    }

    /// Returns the rule that a value breaks.
    pub(super) fn rule(&self, problem: Problem) -> String {
        let or_back = if self.has_none() { ", none or default" } else { ", or default" };
        match (problem, self) {
            (Problem::Form, Takes::Room { .. }) => {
                "it takes a size such as 512M or 1G, or default".to_owned()
            }
            (Problem::Form, Takes::Size { .. }) => format!("it takes a size such as 256M or 1G{or_back}"),
            (Problem::Form, Takes::Processors { .. }) => {
                format!("it takes a number of processors such as 0.5 or 2{or_back}")
            }
            (Problem::Form, Takes::Count { .. }) => format!("it takes a number{or_back}"),
            (Problem::Form, Takes::Time { .. }) => format!("it takes a time such as 90s or 2m{or_back}"),
            (Problem::Form, Takes::Protocol) => "it takes http, tcp or default".to_owned(),
            (Problem::Form, Takes::Check) => "it takes started, listening, http:/PATH or default".to_owned(),
            (Problem::Form, Takes::OnPartition) => "it takes keep, stop or default".to_owned(),
            (Problem::Bounds, Takes::Size { least }) => {
                format!("no program starts with less than {}", size(*least))
            }
            (Problem::Bounds, takes) => match takes.bounds() {
                Some(bounds) => format!("it goes from {bounds}"),
                None => format!("a path has {LONGEST_CHECK_PATH} characters at most"),
            },
        }
    }

    pub(super) fn parse(&self, word: &str) -> Result<Value, Problem> {
        let value = match self {
            Takes::Size { .. } | Takes::Room { .. } => parse_size(word).map(Value::Size),
            Takes::Processors { .. } => processors(word).map(Value::Processors),
            Takes::Count { .. } => number(word).map(Value::Count),
            Takes::Time { .. } => time(word).map(Value::Time),
            Takes::Protocol => match word {
                "http" => Some(Value::Protocol(Protocol::Http)),
                "tcp" => Some(Value::Protocol(Protocol::Tcp)),
                _ => None,
            },
            Takes::Check => return check(word).map(Value::Check),
            Takes::OnPartition => match word {
                "keep" => Some(Value::OnPartition(OnPartition::Keep)),
                "stop" => Some(Value::OnPartition(OnPartition::Stop)),
                _ => None,
            },
        };
        let value = value.ok_or(Problem::Form)?;
        if self.has(&value) { Ok(value) } else { Err(Problem::Bounds) }
    }

    /// Reports whether a value is within bounds.
    pub(super) fn has(&self, value: &Value) -> bool {
        match (self, value) {
            (Takes::Size { least }, Value::Size(bytes)) => bytes >= least,
            (Takes::Processors { least_millis, most_millis }, Value::Processors(millis)) => {
                (least_millis..=most_millis).contains(&millis)
            }
            _ => self.clamp(value.clone()) == *value,
        }
    }

    /// Returns the value within bounds: the bound, if it is out of bounds.
    ///
    /// A limit of memory or processor is kept as it is, because one that is too low harms only the instance.
    pub(super) fn clamp(&self, value: Value) -> Value {
        match (self, value) {
            (Takes::Count { least, most, .. }, Value::Count(n)) => Value::Count(n.clamp(*least, *most)),
            (Takes::Time { least, most }, Value::Time(time)) => Value::Time(time.clamp(*least, *most)),
            (Takes::Room { most }, Value::Size(bytes)) => Value::Size(bytes.min(*most)),
            (_, value) => value,
        }
    }
}

/// Converts a value to its JSON form.
impl From<&Value> for serde_json::Value {
    fn from(value: &Value) -> serde_json::Value {
        match value {
            Value::NoLimit | Value::AQuarter => serde_json::Value::Null,
            Value::Size(bytes) => (*bytes).into(),
            Value::Processors(millis) => (*millis).into(),
            Value::Count(n) => (*n).into(),
            Value::Time(_) => value.clone().as_millis().into(),
            Value::Protocol(_) | Value::Check(_) | Value::OnPartition(_) => value.to_string().into(),
        }
    }
}

/// The accessors expect a value of their kind: a setting's row field and its `takes` are of one kind, as a test checks.
impl Value {
    pub(super) fn millis(millis: u64) -> Value {
        Value::Time(Duration::from_millis(millis))
    }

    pub(super) fn size(&self) -> u64 {
        if let Value::Size(bytes) = self { *bytes } else { unreachable!("{self:?} is no size") }
    }

    pub(super) fn processors(&self) -> u32 {
        if let Value::Processors(millis) = self {
            *millis
        } else {
            unreachable!("{self:?} is no part of processors")
        }
    }

    pub(super) fn count(&self) -> u32 {
        if let Value::Count(n) = self { *n } else { unreachable!("{self:?} is no number") }
    }

    pub(super) fn time(&self) -> Duration {
        if let Value::Time(time) = self { *time } else { unreachable!("{self:?} is no time") }
    }

    pub(super) fn as_millis(&self) -> u64 {
        u64::try_from(self.time().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn protocol(&self) -> Protocol {
        if let Value::Protocol(protocol) = self { *protocol } else { unreachable!("{self:?} is no protocol") }
    }

    pub(super) fn check(self) -> Check {
        if let Value::Check(check) = self { check } else { unreachable!("{self:?} is no check") }
    }

    pub(super) fn on_partition(&self) -> OnPartition {
        if let Value::OnPartition(what) = self {
            *what
        } else {
            unreachable!("{self:?} is none of keep and stop")
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::NoLimit => f.write_str("no limit"),
            Value::AQuarter => f.write_str("a quarter"),
            Value::Size(bytes) => f.write_str(&size(*bytes)),
            Value::Processors(millis) => write!(f, "{}", f64::from(*millis) / 1_000.0),
            Value::Count(n) => write!(f, "{n}"),
            Value::Time(time) => {
                let (seconds, rest) = (time.as_secs(), time.subsec_millis());
                match seconds {
                    _ if rest > 0 => write!(f, "{}ms", time.as_millis()),
                    0 => f.write_str("0s"),
                    seconds if seconds % 3_600 == 0 => write!(f, "{}h", seconds / 3_600),
                    seconds if seconds % 60 == 0 && seconds > 60 => write!(f, "{}m", seconds / 60),
                    seconds => write!(f, "{seconds}s"),
                }
            }
            Value::Check(Check::Started) => f.write_str("started"),
            Value::Check(Check::Listening) => f.write_str("listening"),
            Value::Check(Check::Http { path }) => write!(f, "http:{path}"),
            Value::Protocol(Protocol::Http) => f.write_str("http"),
            Value::Protocol(Protocol::Tcp) => f.write_str("tcp"),
            Value::OnPartition(OnPartition::Keep) => f.write_str("keep"),
            Value::OnPartition(OnPartition::Stop) => f.write_str("stop"),
        }
    }
}

/// Formats a number of bytes in one unit: `512M`, `1.5G`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if scaled >= 10.0 || scaled.fract() == 0.0 {
        format!("{scaled:.0}{}", UNITS[unit])
    } else {
        format!("{scaled:.1}{}", UNITS[unit])
    }
}

/// Parses a number of bytes: `256M`, `1G`, `9000KiB`; none if the text is no size.
pub fn parse_size(word: &str) -> Option<u64> {
    let (number, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len()));
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    u64::from_str(number).ok()?.checked_mul(1 << shift)
}

/// Parses `0.5` or `2` into thousandths; smaller parts are dropped.
fn processors(word: &str) -> Option<u32> {
    let millis = word.parse::<f64>().ok()? * 1_000.0;
    let fits = (0.0..=f64::from(u32::MAX)).contains(&millis);
    fits.then(|| millis.round() as u32)
}

fn number(word: &str) -> Option<u32> {
    let is_number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    // A number that is too large for the type is too large for every setting.
    is_number.then(|| word.parse().unwrap_or(u32::MAX))
}

/// Parses `90s`, `500ms`, `1m30s`, `0`.
fn time(word: &str) -> Option<Duration> {
    if word == "0" {
        return Some(Duration::ZERO);
    }
    Duration::try_from(SignedDuration::from_str(word).ok()?).ok()
}

fn check(word: &str) -> Result<Check, Problem> {
    match word {
        "started" => Ok(Check::Started),
        "listening" => Ok(Check::Listening),
        _ => match word.strip_prefix("http:").ok_or(Problem::Form)?.parse() {
            Ok(path) => Ok(Check::Http { path }),
            Err(InvalidCheckPath::Form) => Err(Problem::Form),
            Err(InvalidCheckPath::Length) => Err(Problem::Bounds),
        },
    }
}
