//! The bounds of what rows say, wherever they are read.
//!
//! Owns the most that a row of a less trusted writer may ask of those who obey it. People write the rows of their apps
//! straight into the coordinator, and a host writes its own: no daemon may trust that `bazooka` or bazooka-pm chose a
//! value. An image ([`snapshot`](crate::snapshot)) applies these bounds to each row that it takes up, so that no reader
//! sees a value beyond them. A value beyond a bound counts as the bound, and the image says so in words
//! ([`OutOfBounds`]); a row that has too much of something is unreadable, which stops nothing that runs. Pure.
//!
//! The settings of a proc have bounds of their own, in [`settings`](crate::settings).

use std::net::{IpAddr, SocketAddr};

use crate::{
    names::ReleaseId,
    schema::{
        Access, Admission, App, Archives, Ask, Assignment, AuditEntry, Capacity, DayStats, DomainRecord,
        Ended, Env, Formation, Handed, Head, Host, HostMeta, Instance, Leader, Pause, Pending, Port, Proc,
        Proxy, Release, Repo, Rev, Rm, Schema, Serving, SshKeys, Status, Stored, Trial, Turn, Unfreeze,
        WrapRequest, Wraps,
    },
};

/// The most instances that a service may have: far more than one should need, and few enough for the coordinator.
pub const MOST_INSTANCES: u32 = 10_000;

/// The most releases of a service that may run beside head.
pub const MOST_BESIDE: usize = 64;

/// The most zones that a formation may name.
pub const MOST_ZONES: usize = 256;

/// The most services of an app: far more than its pushes should register, and few enough for a proxy.
pub const MOST_SERVICES: usize = 250;

/// The most services that an app may link.
///
/// Their ports are in each row of an instance, and added links are guarded in one transaction, two rows each, of the
/// 128 operations that etcd takes.
pub const MOST_LINKS: usize = 32;

/// The most instances that a host may offer to run: it has no more ports.
pub const MOST_SLOTS: u32 = 65_535;

/// The most memory that a host may offer: 64 TiB, all that a processor can address today.
pub const MOST_MEMORY_BYTES: u64 = 64 << 40;

/// The most archives of slugs that a host may offer to serve.
pub const MOST_ARCHIVES: usize = 2_000;

/// The lowest port at which an instance is reached; those below are for the machine's own programs.
pub const LOWEST_INSTANCE_PORT: u16 = 1_024;

/// The most bytes of a cause or of a line of a story that a host reports.
const MOST_LINE_BYTES: usize = 4 << 10;

/// The most lines of an instance's last output; hosts report 20.
const MOST_OUTPUT: usize = 64;

/// The most exits that are kept of a report; hosts report 5.
const MOST_EXITS: usize = 16;

/// The most moments that are kept of a report; hosts report 32.
const MOST_MOMENTS: usize = 64;

/// A row with a value beyond its bounds, which counts as the bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutOfBounds {
    /// The words of the row and how it counts.
    pub words: Vec<String>,
    /// The number of wanted instances beyond the bound.
    pub instances: u32,
}

impl OutOfBounds {
    /// Returns the words in one line.
    pub fn line(&self) -> String {
        self.words.join("; ")
    }

    fn is_within(&self) -> bool {
        self.words.is_empty()
    }

    /// Lowers a number to a bound.
    fn lower<N: Copy + PartialOrd + std::fmt::Display>(&mut self, what: &str, said: &mut N, most: N) {
        if *said > most {
            self.words.push(format!("{what} is {said}, and counts as {most}"));
            *said = most;
        }
    }
}

/// The reason why a row cannot be obeyed at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// The row lists too much.
    #[error("it has {there} {what}, and {most} is the most")]
    Listed {
        /// The things that it lists.
        what: &'static str,
        /// How many.
        there: usize,
        /// How many it may list.
        most: usize,
    },
    /// The row has an address that no host can have.
    #[error("{0} is no address of a host")]
    Address(IpAddr),
}

fn at_most(what: &'static str, there: usize, most: usize) -> Result<(), TooMuch> {
    if there > most { Err(TooMuch::Listed { what, there, most }) } else { Ok(()) }
}

/// A row's value, which an image brings within its bounds when it reads the row.
pub trait Bounded {
    /// The bounds of the row, in words for docs/rows.md; empty if a less trusted writer could overdo nothing.
    const BOUNDS: &'static str = "";

    /// Brings the value within its bounds; none if it was within.
    ///
    /// # Errors
    /// [`TooMuch`]: the row counts as unreadable.
    fn bound(&mut self) -> Result<Option<OutOfBounds>, TooMuch> {
        Ok(None)
    }
}

/// Rows without a bound beyond their size: a daemon writes them, or readers only show them.
macro_rules! only_shown {
    ($($row:ty),+ $(,)?) => { $(impl Bounded for $row {})+ };
}

only_shown!(
    Access,
    Admission,
    App,
    Ask,
    AuditEntry,
    DayStats,
    DomainRecord,
    Ended,
    Handed,
    Head,
    Instance,
    Leader,
    Pause,
    Pending,
    Port,
    Proxy,
    Release,
    Repo,
    Rev,
    Rm,
    Schema,
    Serving,
    SshKeys,
    Stored,
    Trial,
    Turn,
    Unfreeze,
    WrapRequest,
    Wraps,
    u64,
);

impl Bounded for Proc {
    const BOUNDS: &'static str = "each setting, where it is read (docs/settings.md); the path of a check";
}

impl Bounded for Assignment {
    const BOUNDS: &'static str = "as the proc's settings";
}

impl Bounded for Env {
    const BOUNDS: &'static str = "32 links";

    fn bound(&mut self) -> Result<Option<OutOfBounds>, TooMuch> {
        at_most("links", self.links.len(), MOST_LINKS).map(|()| None)
    }
}

impl Bounded for Formation {
    const BOUNDS: &'static str =
        "10,000 instances of a release, 64 releases beside head, 256 zones, shares of 100 %";

    fn bound(&mut self) -> Result<Option<OutOfBounds>, TooMuch> {
        at_most("releases beside head", self.beside.len(), MOST_BESIDE)?;
        at_most("shares of the traffic", self.weights.len(), MOST_BESIDE)?;
        at_most("zones", self.zones.len(), MOST_ZONES)?;
        at_most("instances to replace", self.replace.len(), MOST_INSTANCES as usize)?;
        let mut out = OutOfBounds::default();
        let said = self.count;
        out.lower("the number of instances", &mut self.count, MOST_INSTANCES);
        out.instances = said - self.count;
        for (release, count) in &mut self.beside {
            let said = *count;
            out.lower(&format!("the number of instances of {release}"), count, MOST_INSTANCES);
            out.instances = out.instances.saturating_add(said - *count);
        }
        let share = |release: &ReleaseId| format!("the share of {release} in percent");
        self.weights.iter_mut().for_each(|(release, percent)| out.lower(&share(release), percent, 100));
        for (zone, count) in &mut self.zones {
            out.lower(&format!("the number of instances in zone {zone}"), count, MOST_INSTANCES);
        }
        Ok(Some(out).filter(|out| !out.is_within()))
    }
}

impl Host {
    /// Returns where its pm's endpoint is; none if its URL has anything but a scheme, an address and a port.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        let (_, authority) = self.url.split_once("://")?;
        authority.trim_end_matches('/').parse().ok()
    }

    /// Reports whether instances of this host may be reached at an address: its own, or that of its pm's endpoint.
    pub fn is_at(&self, ip: IpAddr) -> bool {
        let endpoint = self.endpoint().map(|endpoint| endpoint.ip());
        [Some(self.address), endpoint]
            .into_iter()
            .flatten()
            .any(|own| own.to_canonical() == ip.to_canonical())
    }
}

impl Capacity {
    fn bound(&mut self, out: &mut OutOfBounds) {
        out.lower("the number of slots", &mut self.instances, MOST_SLOTS);
        out.lower("the memory in bytes", &mut self.memory_bytes, MOST_MEMORY_BYTES);
    }
}

impl Bounded for Host {
    const BOUNDS: &'static str =
        "65,535 slots, 64 TiB, an address that a host can have; what `hostmeta/HOST` names";

    fn bound(&mut self) -> Result<Option<OutOfBounds>, TooMuch> {
        if !is_a_hosts(self.address) {
            return Err(TooMuch::Address(self.address));
        }
        let mut out = OutOfBounds::default();
        self.capacity.bound(&mut out);
        Ok(Some(out).filter(|out| !out.is_within()))
    }
}

/// Reports whether a host can have an address.
fn is_a_hosts(address: IpAddr) -> bool {
    !address.is_unspecified()
        && !address.is_multicast()
        && !matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

impl Bounded for HostMeta {}

impl Bounded for Archives {
    const BOUNDS: &'static str = "2,000 slugs";

    fn bound(&mut self) -> Result<Option<OutOfBounds>, TooMuch> {
        at_most("slugs", self.slugs.len(), MOST_ARCHIVES).map(|()| None)
    }
}

impl Bounded for Status {
    const BOUNDS: &'static str = "an address of the host alone, from port 1,024 on; lines, exits and moments";

    fn bound(&mut self) -> Result<Option<OutOfBounds>, TooMuch> {
        let mut out = OutOfBounds::default();
        if let Some(port) = self.port.filter(|port| *port < LOWEST_INSTANCE_PORT) {
            out.words.push(format!("port {port} is none of an instance's, so nothing is routed there"));
            self.port = None;
        }
        let long = |line: &str| line.len() > MOST_LINE_BYTES;
        let before = self.last_output.len() + self.exits.len() + self.story.len();
        let lines = self.last_output.iter().chain(self.story.iter().map(|moment| &moment.what));
        let cut = lines.chain(&self.cause).any(|line| long(line));
        keep_last(&mut self.last_output, MOST_OUTPUT);
        keep_last(&mut self.exits, MOST_EXITS);
        keep_last(&mut self.story, MOST_MOMENTS);
        if cut {
            let lines =
                self.last_output.iter_mut().chain(self.story.iter_mut().map(|moment| &mut moment.what));
            lines.chain(&mut self.cause).for_each(shorten);
        }
        let after = self.last_output.len() + self.exits.len() + self.story.len();
        if cut || after < before {
            out.words.push("its host tells more than a report has, and the rest is left out".to_owned());
        }
        Ok(Some(out).filter(|out| !out.is_within()))
    }
}

fn keep_last<T>(all: &mut Vec<T>, most: usize) {
    all.drain(..all.len().saturating_sub(most));
}

fn shorten(line: &mut String) {
    let end = (0..=MOST_LINE_BYTES.min(line.len())).rev().find(|end| line.is_char_boundary(*end));
    line.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests;
