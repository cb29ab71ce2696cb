//! The settings of a proc: each is declared once.
//!
//! Owns the names, bounds, defaults and words of a proc's settings, and the place of each in its row. The options of
//! `bazooka procs set`, the columns of `bazooka procs -l`, the fields of its JSON and docs/settings.md are made from
//! [`ALL`]. The converger and hosts read a setting by the methods at the end of this file, so a value out of bounds,
//! which another program may have written, is never obeyed: it is read as the bound. Pure.
//!
//! To add a setting, declare it here and add it to [`ALL`], with the method that reads it. A row keeps fields that it
//! does not know: a new setting may be stored among those (`extra`), and needs no field of its own.

mod docs;
mod value;

use std::time::Duration;

use crate::{
    names::ProcName,
    schema::{Check, Limits, OnPartition, Proc, Protocol, RunSettings},
};

pub use docs::docs;
pub use value::{InvalidValue, Problem, Takes, Value, parse_size, size};

/// One setting of a proc.
#[derive(Debug)]
pub struct Setting {
    /// The name, which is also that of its option.
    pub name: &'static str,
    /// The head of its column.
    pub heading: &'static str,
    /// The field in JSON.
    pub json: &'static str,
    /// The name of the option's value in help.
    pub placeholder: &'static str,
    /// An example of a value.
    pub example: &'static str,
    /// The effect, as a phrase.
    pub help: &'static str,
    /// Further explanation, as sentences; may be empty.
    pub more: &'static str,
    /// The kind of its values, with bounds.
    pub takes: Takes,
    /// The value if it is not set.
    pub default: Default,
    /// The place where it is stored.
    pub place: Place,
}

/// The value of a setting that is not set.
#[derive(Debug)]
pub enum Default {
    /// Always this value.
    Is(Value),
    /// A value that depends on the proc's name.
    ByName {
        /// The value for `web`.
        web: Value,
        /// The value for any other proc.
        other: Value,
    },
}

/// The place of a setting in a proc's row, which also decides who obeys it and from when on.
#[derive(Debug)]
pub enum Place {
    /// In the part that an instance's host gets with the instance: hosts obey it, from the next instance on.
    Run {
        /// Reads the stored value.
        stored: fn(&RunSettings) -> Option<Value>,
        /// Stores the value; none unsets it.
        store: fn(&mut RunSettings, Option<Value>),
    },
    /// Beside that part: the converger obeys it, at once.
    Proc {
        /// Reads the stored value.
        stored: fn(&Proc) -> Option<Value>,
        /// Stores the value; none unsets it.
        store: fn(&mut Proc, Option<Value>),
    },
}

/// A setting with its new value.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The setting.
    pub setting: &'static Setting,
    /// The new value; none unsets it.
    pub to: Option<Value>,
}

/// The memory limit.
pub static MEMORY: Setting = Setting {
    name: "memory",
    heading: "MEMLIMIT",
    json: "memory_limit_bytes",
    placeholder: "SIZE",
    example: "256M",
    help: "Memory, for example 256M or 1G",
    more: "Resident memory, without swap. An instance that takes more is ended by the kernel and started again.",
    takes: Takes::Size { least: 8 << 20 },
    default: Default::Is(Value::NoLimit),
    place: Place::Run {
        stored: |run| run.limits.memory_limit_bytes.map(Value::Size),
        store: |run, to| run.limits.memory_limit_bytes = to.map(|to| to.size()),
    },
};

/// The limit of processor time.
pub static CPU: Setting = Setting {
    name: "cpu",
    heading: "CPULIMIT",
    json: "cpu_limit_millis",
    placeholder: "N",
    example: "0.5",
    help: "Processor, for example 0.5 for half of one",
    more: "JSON has it in thousandths.",
    takes: Takes::Processors { least_millis: 10, most_millis: 1_000_000_000 },
    default: Default::Is(Value::NoLimit),
    place: Place::Run {
        stored: |run| run.limits.cpu_limit_millis.map(Value::Processors),
        store: |run, to| run.limits.cpu_limit_millis = to.map(|to| to.processors()),
    },
};

/// The limit of processes and threads.
pub static PIDS: Setting = Setting {
    name: "pids",
    heading: "PIDS",
    json: "processes_limit",
    placeholder: "N",
    example: "200",
    help: "Processes and threads",
    more: "",
    takes: Takes::Count { least: 4, most: 4_194_304, none: true },
    default: Default::Is(Value::Count(Limits::USUAL_PROCESSES)),
    place: Place::Run {
        stored: |run| run.limits.processes_limit.map(Value::Count),
        store: |run, to| run.limits.processes_limit = to.map(|to| to.count()),
    },
};

/// The size of an instance's own writable layer.
pub static DISK: Setting = Setting {
    name: "disk",
    heading: "DISK",
    json: "disk_bytes",
    placeholder: "SIZE",
    example: "1G",
    help: "What an instance may write over its code in /app, which is gone with it",
    more: "With 0, /app is read-only. It is on the host's disk, and counts to no memory. Files that must stay belong into a \
           database or an object store.",
    takes: Takes::Room { most: 1 << 40 },
    default: Default::Is(Value::Size(512 << 20)),
    place: Place::Run {
        stored: |run| extra_size(run, DISK_FIELD),
        store: |run, to| store_extra_size(run, DISK_FIELD, to),
    },
};

/// The size of an instance's `/tmp`.
pub static TMP: Setting = Setting {
    name: "tmp",
    heading: "TMP",
    json: "tmp_bytes",
    placeholder: "SIZE",
    example: "2G",
    help: "What an instance may write in /tmp, which is gone with it",
    more: "A host may have another default (`bazooka-pm --tmp`).",
    takes: Takes::Room { most: 1 << 40 },
    default: Default::Is(Value::Size(512 << 20)),
    place: Place::Run {
        stored: |run| extra_size(run, TMP_FIELD),
        store: |run, to| store_extra_size(run, TMP_FIELD, to),
    },
};

/// The fields of a row's settings that older builds keep without knowing them.
const DISK_FIELD: &str = "disk_bytes";
const TMP_FIELD: &str = "tmp_bytes";

fn extra_size(run: &RunSettings, field: &str) -> Option<Value> {
    run.extra.get(field)?.as_u64().map(Value::Size)
}

fn store_extra_size(run: &mut RunSettings, field: &str, to: Option<Value>) {
    match to {
        Some(to) => _ = run.extra.insert(field.to_owned(), to.size().into()),
        None => _ = run.extra.remove(field),
    }
}

/// The protocol on $PORT.
pub static PROTOCOL: Setting = Setting {
    name: "protocol",
    heading: "PROTOCOL",
    json: "protocol",
    placeholder: "WHAT",
    example: "http",
    help: "What a proc speaks on $PORT: `http`, or `tcp` for anything else",
    more: "Requests of a proc that speaks HTTP are balanced one by one, and a domain may lead to it.",
    takes: Takes::Protocol,
    default: Default::ByName { web: Value::Protocol(Protocol::Http), other: Value::Protocol(Protocol::Tcp) },
    place: Place::Run {
        stored: |run| run.protocol.map(Value::Protocol),
        store: |run, to| run.protocol = to.map(|to| to.protocol()),
    },
};

/// The check for a healthy instance.
pub static CHECK: Setting = Setting {
    name: "check",
    heading: "CHECK",
    json: "check",
    placeholder: "CHECK",
    example: "http:/healthz",
    help: "When an instance is healthy: once it has `started`, is `listening` on $PORT, or answers `http:/PATH`",
    more: "An answer with a status below 400 is a good one. An instance is asked while it boots, and not any more once it is \
           healthy.",
    takes: Takes::Check,
    default: Default::ByName { web: Value::Check(Check::Listening), other: Value::Check(Check::Started) },
    place: Place::Run {
        stored: |run| run.check.clone().map(Value::Check),
        store: |run, to| run.check = to.map(|to| to.check()),
    },
};

/// The time allowed from start to healthy.
pub static BOOT_TIMEOUT: Setting = Setting {
    name: "boot-timeout",
    heading: "BOOT",
    json: "boot_timeout_ms",
    placeholder: "TIME",
    example: "90s",
    help: "How long an instance may take from its start until it is healthy",
    more: "One that takes longer is ended and started again.",
    takes: Takes::Time { least: Duration::from_secs(1), most: Duration::from_secs(3_600) },
    default: Default::Is(Value::Time(Duration::from_secs(60))),
    place: Place::Run {
        stored: |run| run.boot_timeout_ms.map(Value::millis),
        store: |run, to| run.boot_timeout_ms = to.map(|to| to.as_millis()),
    },
};

/// The time from SIGTERM to SIGKILL.
pub static STOP_TIMEOUT: Setting = Setting {
    name: "stop-timeout",
    heading: "STOP",
    json: "stop_timeout_ms",
    placeholder: "TIME",
    example: "45s",
    help: "How long an instance may take from SIGTERM until it is killed",
    more: "When `--on-partition stop` ends an instance, it has 2s at most.",
    takes: Takes::Time { least: Duration::ZERO, most: Duration::from_secs(3_600) },
    default: Default::Is(Value::Time(Duration::from_secs(30))),
    place: Place::Run {
        stored: |run| run.stop_timeout_ms.map(Value::millis),
        store: |run, to| run.stop_timeout_ms = to.map(|to| to.as_millis()),
    },
};

/// The time for which a new instance must be healthy.
pub static MIN_READY: Setting = Setting {
    name: "min-ready",
    heading: "MIN-READY",
    json: "min_ready_ms",
    placeholder: "TIME",
    example: "5s",
    help: "How long a new instance must stay healthy before a trial or a batch counts on it",
    more: "",
    takes: Takes::Time { least: Duration::ZERO, most: Duration::from_secs(600) },
    default: Default::Is(Value::Time(Duration::from_secs(1))),
    place: Place::Proc {
        stored: |proc| proc.min_ready_ms.map(Value::millis),
        store: |proc, to| proc.min_ready_ms = to.map(|to| to.as_millis()),
    },
};

/// The number of instances that a rollout replaces at a time.
pub static BATCH: Setting = Setting {
    name: "batch",
    heading: "BATCH",
    json: "batch",
    placeholder: "N",
    example: "2",
    help: "How many instances a rollout replaces at a time",
    more: "The default is a quarter of the proc's instances, and one at least.",
    takes: Takes::Count { least: 1, most: 10_000, none: false },
    default: Default::Is(Value::AQuarter),
    place: Place::Proc {
        stored: |proc| proc.batch.map(Value::Count),
        store: |proc, to| proc.batch = to.map(|to| to.count()),
    },
};

/// The number of instances that a rollout may do without.
pub static MAX_UNAVAILABLE: Setting = Setting {
    name: "max-unavailable",
    heading: "MAX-UNAVAILABLE",
    json: "max_unavailable",
    placeholder: "N",
    example: "1",
    help: "How many old instances a rollout may stop before their replacements run",
    more: "With 0 the proc never has fewer instances than it is scaled to.",
    takes: Takes::Count { least: 0, most: 10_000, none: false },
    default: Default::Is(Value::Count(0)),
    place: Place::Proc {
        stored: |proc| Some(Value::Count(proc.max_unavailable)),
        store: |proc, to| proc.max_unavailable = to.map_or(0, |to| to.count()),
    },
};

/// The behaviour when a host has lost the coordinator.
pub static ON_PARTITION: Setting = Setting {
    name: "on-partition",
    heading: "ON-PARTITION",
    json: "on_partition",
    placeholder: "WHAT",
    example: "stop",
    help: "What a host that has lost the coordinator does with an instance: `keep` it, or `stop` it",
    more: "With `stop` an instance ends before its replacement can be started elsewhere: there are never two of it.",
    takes: Takes::OnPartition,
    default: Default::Is(Value::OnPartition(OnPartition::Keep)),
    place: Place::Run {
        stored: |run| Some(Value::OnPartition(run.on_partition)),
        store: |run, to| run.on_partition = to.map_or(OnPartition::Keep, |to| to.on_partition()),
    },
};

/// Every setting, in the order in which they are listed.
pub static ALL: [&Setting; 13] = [
    &MEMORY,
    &CPU,
    &PIDS,
    &DISK,
    &TMP,
    &PROTOCOL,
    &CHECK,
    &BOOT_TIMEOUT,
    &STOP_TIMEOUT,
    &MIN_READY,
    &BATCH,
    &MAX_UNAVAILABLE,
    &ON_PARTITION,
];

/// Settings are equal if their names are: each is one of the table.
impl PartialEq for Setting {
    fn eq(&self, other: &Setting) -> bool {
        self.name == other.name
    }
}

impl Setting {
    /// Parses the value of an option, or the word that unsets it.
    ///
    /// # Errors
    /// The text is no value of this setting, or is out of bounds.
    pub fn parse(&'static self, word: &str) -> Result<Change, InvalidValue> {
        let takes_back = word == "default" || (word == "none" && self.takes.has_none());
        let to = if takes_back { Ok(None) } else { self.takes.parse(word).map(Some) };
        to.map(|to| Change { setting: self, to }).map_err(|problem| InvalidValue::new(self, word, problem))
    }

    /// Returns the stored value, within bounds; none if the setting is not set.
    pub fn stored(&self, proc: &Proc) -> Option<Value> {
        self.raw(proc).map(|value| self.takes.clamp(value))
    }

    /// Returns a stored value that is out of bounds; none if it is within.
    pub fn out_of_bounds(&self, proc: &Proc) -> Option<Value> {
        self.raw(proc).filter(|value| !self.takes.has(value))
    }

    fn raw(&self, proc: &Proc) -> Option<Value> {
        match self.place {
            Place::Run { stored, .. } => stored(&proc.run),
            Place::Proc { stored, .. } => stored(proc),
        }
    }

    /// Returns the value in force.
    pub fn of(&self, name: &ProcName, proc: &Proc) -> Value {
        self.stored(proc).unwrap_or_else(|| self.default.of(name, &proc.run).clone())
    }

    /// Reports whether a change applies to running instances too.
    pub fn holds_at_once(&self) -> bool {
        matches!(self.place, Place::Proc { .. })
    }

    /// Returns the value in force for an instance. The setting's default must not depend on the proc's name.
    fn of_run(&self, run: &RunSettings) -> Value {
        let Place::Run { stored, .. } = self.place else {
            unreachable!("{} isn't given to hosts", self.name)
        };
        stored(run).map_or_else(|| self.default.fixed().clone(), |value| self.takes.clamp(value))
    }
}

impl Default {
    /// Returns the default for a proc of this name.
    pub fn of(&self, name: &ProcName, run: &RunSettings) -> &Value {
        match self {
            Default::Is(value) => value,
            Default::ByName { web, .. } if is_web(name, run) => web,
            Default::ByName { other, .. } => other,
        }
    }

    fn fixed(&self) -> &Value {
        match self {
            Default::Is(value) => value,
            Default::ByName { .. } => unreachable!("this default depends on a proc's name"),
        }
    }
}

/// Reports whether a proc is its app's `web`. A row without a protocol is of an earlier release, which went by the name's
/// beginning.
fn is_web(name: &ProcName, run: &RunSettings) -> bool {
    match run.protocol {
        Some(_) => name.as_str() == "web",
        None => name.as_str().starts_with("web"),
    }
}

/// Returns the protocol of a new proc.
fn protocol_of_new(name: &ProcName) -> Protocol {
    if name.as_str() == "web" { Protocol::Http } else { Protocol::Tcp }
}

impl Change {
    /// Makes the change in the row of a proc of this name.
    pub fn apply(&self, name: &ProcName, proc: &mut Proc) {
        match self.setting.place {
            Place::Run { store, .. } => store(&mut proc.run, self.to.clone()),
            Place::Proc { store, .. } => store(proc, self.to.clone()),
        }
        if *self.setting == PROTOCOL {
            // A row without one would be read as one of an earlier release.
            proc.run.protocol.get_or_insert_with(|| protocol_of_new(name));
        }
    }
}

impl Limits {
    /// The number of processes and threads of an instance, unless its proc sets one.
    pub const USUAL_PROCESSES: u32 = 1_024;

    /// Returns the number of processes and threads that an instance may have.
    pub fn processes(&self) -> u32 {
        let set = self.processes_limit.map(|limit| PIDS.takes.clamp(Value::Count(limit)).count());
        set.unwrap_or(Limits::USUAL_PROCESSES)
    }
}

impl RunSettings {
    /// Returns the check by which an instance of a proc of this name is healthy.
    pub fn check_for(&self, proc: &ProcName) -> Check {
        self.check.clone().unwrap_or_else(|| CHECK.default.of(proc, self).clone().check())
    }

    /// Returns what a proc of this name speaks on $PORT.
    pub fn protocol_for(&self, proc: &ProcName) -> Protocol {
        self.protocol.unwrap_or_else(|| PROTOCOL.default.of(proc, self).protocol())
    }

    /// Returns the size of the instance's writable layer in bytes; 0 for none.
    pub fn disk_bytes(&self) -> u64 {
        DISK.of_run(self).size()
    }

    /// Returns the size of the instance's `/tmp` in bytes, where its proc sets one.
    pub fn tmp_bytes(&self) -> Option<u64> {
        extra_size(self, TMP_FIELD).map(|bytes| TMP.takes.clamp(bytes).size())
    }

    /// Returns the time from SIGTERM to SIGKILL.
    pub fn stop_timeout(&self) -> Duration {
        STOP_TIMEOUT.of_run(self).time()
    }

    /// Returns the time allowed from start to healthy.
    pub fn boot_timeout(&self) -> Duration {
        BOOT_TIMEOUT.of_run(self).time()
    }
}

impl Proc {
    /// Returns a new proc of this name with this port and with every setting at its default.
    pub fn new(name: &ProcName, port: u16) -> Proc {
        Proc {
            port,
            run: RunSettings { protocol: Some(protocol_of_new(name)), ..RunSettings::default() },
            min_ready_ms: None,
            max_unavailable: 0,
            batch: None,
            extra: serde_json::Map::new(),
        }
    }

    /// Returns how long a new instance must stay healthy before a trial or a batch counts it.
    pub fn min_ready(&self) -> Duration {
        self.time(&MIN_READY)
    }

    /// Returns how long an instance may take from its start until a trial or a batch counts it.
    pub fn counted_within(&self) -> Duration {
        self.run.boot_timeout() + self.min_ready()
    }

    /// Returns how many old instances a rollout may stop before their replacements run.
    pub fn most_unavailable(&self) -> u32 {
        MAX_UNAVAILABLE.stored(self).map_or(0, |value| value.count())
    }

    /// Returns how many of `count` instances a rollout replaces at a time; at least one.
    pub fn batch_of(&self, count: usize) -> usize {
        let set = BATCH.stored(self).map(|batch| usize::try_from(batch.count()).unwrap_or(usize::MAX));
        set.unwrap_or_else(|| count.div_ceil(4)).max(1)
    }

    fn time(&self, setting: &Setting) -> Duration {
        setting.stored(self).unwrap_or_else(|| setting.default.fixed().clone()).time()
    }
}

#[cfg(test)]
mod tests;
