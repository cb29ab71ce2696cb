//! `bazooka hosts bound`: what an operator says of a host, whatever the host says of itself.
//!
//! A host writes its own registration, so a compromised one could claim any zone, address or capacity. What is named
//! here counts instead; a number bounds what the host offers.

use std::{fmt::Display, net::IpAddr, str::FromStr};

use visor::{
    bounds::MOST_SLOTS,
    names::{HostName, ZoneName},
    schema::HostMeta,
    settings::parse_size,
};

use crate::{
    context::Context,
    failure::Result,
    show::{bytes, put_line},
};

/// The bounds of a host that its operator names.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Bounds {
    /// The zone where it stands, or `own`
    #[arg(long, value_name = "ZONE")]
    zone: Option<Word<ZoneName>>,
    /// Where its instances are reached, or `own`
    #[arg(long, value_name = "IP")]
    address: Option<Word<IpAddr>>,
    /// How many instances it gets at most, or `own`
    #[arg(long, value_name = "N")]
    slots: Option<Word<Slots>>,
    /// How much memory for instances it counts with at most, such as 16G, or `own`
    #[arg(long, value_name = "SIZE")]
    memory: Option<Word<Memory>>,
}

/// A word on a host: a value, or the host's own.
#[derive(Clone, Debug)]
enum Word<T> {
    Own,
    Is(T),
}

impl<T: FromStr> FromStr for Word<T> {
    type Err = T::Err;

    fn from_str(word: &str) -> Result<Self, T::Err> {
        if word == "own" { Ok(Word::Own) } else { word.parse().map(Word::Is) }
    }
}

impl<T: Clone> Word<T> {
    fn value(&self) -> Option<T> {
        match self {
            Word::Own => None,
            Word::Is(value) => Some(value.clone()),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Slots(u32);

impl FromStr for Slots {
    type Err = InvalidBound;

    fn from_str(word: &str) -> Result<Self, InvalidBound> {
        word.parse().ok().filter(|n| *n <= MOST_SLOTS).map(Slots).ok_or(InvalidBound::Slots)
    }
}

#[derive(Clone, Copy, Debug)]
struct Memory(u64);

impl FromStr for Memory {
    type Err = InvalidBound;

    fn from_str(word: &str) -> Result<Self, InvalidBound> {
        parse_size(word).map(Memory).ok_or(InvalidBound::Memory)
    }
}

/// The error for a word that bounds nothing.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum InvalidBound {
    #[error("it takes a number from 0 to {MOST_SLOTS}, or own")]
    Slots,
    #[error("it takes a size such as 16G, or own")]
    Memory,
}

/// Writes what is named of a host.
///
/// # Errors
/// The errors of the store.
pub async fn run(context: &Context, host: &HostName, bounds: &Bounds) -> Result<()> {
    let mark = |meta: &mut HostMeta| {
        bounds.zone.iter().for_each(|word| meta.zone = word.value());
        bounds.address.iter().for_each(|word| meta.address = word.value());
        bounds.slots.iter().for_each(|word| meta.most_instances = word.value().map(|slots| slots.0));
        bounds.memory.iter().for_each(|word| meta.most_memory_bytes = word.value().map(|memory| memory.0));
    };
    context.visor.mark_host(host, mark).await?;
    put_line(&format!("{host}: {}", bounds.words().join(", ")));
    Ok(())
}

impl Bounds {
    fn words(&self) -> Vec<String> {
        fn say<T: Clone>(what: &str, word: &Option<Word<T>>, show: impl Fn(&T) -> String) -> Option<String> {
            Some(match word.as_ref()? {
                Word::Own => format!("its own {what} counts"),
                Word::Is(value) => format!("{what} {}", show(value)),
            })
        }
        fn plain<T: Display>(value: &T) -> String {
            value.to_string()
        }
        let all = [
            say("zone", &self.zone, plain),
            say("address", &self.address, plain),
            say("slots", &self.slots, |slots| format!("{} at most", slots.0)),
            say("memory", &self.memory, |memory| format!("{} at most", bytes(memory.0))),
        ];
        all.into_iter().flatten().collect()
    }
}
