//! `bazooka capacity`: what is reserved, used and free, how many more instances fit, and what a failure would lose.
//!
//! `visor::capacity` computes these numbers from the rules that the converger uses. They are reservations, not
//! measurements: an instance counts as its memory limit, or as 16 MiB if it has no limit.

use std::{collections::BTreeMap, str::FromStr};

use serde::Serialize;
use visor::{
    capacity::{Loss, Part, Share, by_zone, fits, losses, total},
    keys,
    names::{AppName, InvalidName, ProcName, ZoneName},
};

use crate::{
    command::CommandKind,
    context::{Context, known_proc},
    failure::{Failure, Kind, Result},
    show::{Table, bytes, put, put_json, say},
};

/// Show what is reserved, used and free in each zone, how many more of a service fit, and what would be lost with a
/// zone or the largest host
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many more of this proc fit
    #[arg(conflicts_with = "of", value_parser = ProcName::of_spelling)]
    pub proc: Option<ProcName>,
    /// How many more of this service fit, of any app
    #[arg(long, value_name = "APP/PROC")]
    pub of: Option<Service>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

/// A service: `APP/PROC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The app.
    pub app: AppName,
    /// The proc.
    pub proc: ProcName,
}

/// The error for a text that isn't a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    /// The text doesn't have the form `APP/PROC`.
    #[error("a service is APP/PROC, for example goto-rocket/web")]
    Form,
    /// A name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl FromStr for Service {
    type Err = InvalidService;

    fn from_str(said: &str) -> Result<Self, InvalidService> {
        let (app, proc) = said.split_once('/').ok_or(InvalidService::Form)?;
        Ok(Service { app: app.parse()?, proc: ProcName::of_spelling(proc)? })
    }
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    share: Share,
    #[serde(skip_serializing_if = "Option::is_none")]
    fit: Option<u64>,
}

#[derive(Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    zones: BTreeMap<ZoneName, Row>,
    total: Row,
    losses: Vec<Loss>,
}

/// Shows the capacity; with a proc or a service, also how many more instances of it fit.
///
/// # Errors
/// An unknown app or proc; errors of the store.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let service = match (args.of, args.proc) {
        (Some(Service { app, proc }), _) => Some((app, proc)),
        (None, Some(proc)) => Some((context.app().await?, proc)),
        (None, None) if context.said().is_some() => {
            return Err(Failure::new(Kind::Usage, "how many more of which proc?")
                .hint("name it: bazooka capacity -a APP PROC, or --of APP/PROC"));
        }
        (None, None) => None,
    };
    let scopes =
        vec![keys::hosts(), keys::host_metas(), keys::all_assigned(), keys::all_statuses(), keys::apps()];
    let snapshot = context.visor.read(scopes).await?;
    let fit = match &service {
        Some((app, proc)) => {
            context.registered(app, &snapshot).await?;
            let view = &snapshot.apps[app];
            known_proc(app, view, proc)?;
            Some(fits(&snapshot, view, proc))
        }
        None => None,
    };
    let shares = by_zone(&snapshot);
    let all = total(shares.values());
    let of_zone = |zone: &ZoneName| fit.as_ref().map(|fit| fit.get(zone).copied().unwrap_or(0));
    let answer = Answer {
        of: service.map(|(app, proc)| format!("{app}/{proc}")),
        total: Row {
            share: all,
            fit: fit.as_ref().map(|fit| fit.values().fold(0_u64, |sum, n| sum.saturating_add(*n))),
        },
        zones: shares
            .into_iter()
            .map(|(zone, share)| {
                let fit = of_zone(&zone);
                (zone, Row { share, fit })
            })
            .collect(),
        losses: losses(&snapshot),
    };
    if context.json {
        put_json(&answer);
    } else {
        show(&answer);
    }
    Ok(())
}

fn show(answer: &Answer) {
    let mut head = vec![
        "ZONE", "HOSTS", "CLOSED", "SLOTS", "RESERVED", "USED", "FREE", "MEMORY", "RESERVED", "USED", "FREE",
    ];
    head.extend(answer.of.is_some().then_some("FIT"));
    let mut table = Table::new(&head);
    let zones = answer.zones.iter().map(|(zone, row)| (zone.to_string(), row));
    for (name, Row { share, fit }) in zones.chain([("total".to_owned(), &answer.total)]) {
        let mut cells = vec![
            name,
            share.hosts.to_string(),
            share.closed.to_string(),
            share.slots.to_string(),
            share.slots_reserved.to_string(),
            share.slots_used.to_string(),
            share.slots_free.to_string(),
            bytes(share.memory_bytes),
            bytes(share.memory_reserved_bytes),
            bytes(share.memory_used_bytes),
            bytes(share.memory_free_bytes),
        ];
        cells.extend(fit.map(|fit| fit.to_string()));
        table.row(cells);
    }
    table.put();
    let mut table = Table::new(&["IF-GONE", "INSTANCES", "NO-PLACE", "OF"]);
    for loss in &answer.losses {
        let services = loss.without_place.iter().flat_map(|(app, procs)| {
            procs.iter().map(move |(proc, n): (&ProcName, &u32)| told(app, proc, *n))
        });
        let none: u32 = loss.without_place.values().flat_map(BTreeMap::values).sum();
        let part = match &loss.part {
            Part::Zone(zone) => format!("zone {zone}"),
            Part::Host(host) => format!("host {host}"),
        };
        let services: Vec<String> = services.collect();
        table.row([part, loss.instances.to_string(), none.to_string(), services.join(", ")]);
    }
    put("\n");
    table.put();
    say(
        "memory is reserved, not measured: an instance's limit, or 16M; USED counts instances that their host has taken up",
    );
}

fn told(app: &AppName, proc: &ProcName, n: u32) -> String {
    format!("{n} of {app}/{proc}")
}
