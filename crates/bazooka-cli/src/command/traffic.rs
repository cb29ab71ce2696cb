//! `bazooka traffic`: the shares of a proc's traffic for revs that run beside the current release.

use std::{collections::BTreeMap, str::FromStr};

use serde::Serialize;
use visor::{
    names::{ProcName, ReleaseId, RevId},
    snapshot::AppView,
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::{Context, find_rev, known_proc},
    failure::Result,
    settle::enforced,
    show::{Table, put_json, put_line},
    target::{InvalidRevPrefix, RevPrefix},
    watch::Watch,
};

/// Show or set how much of a proc's traffic goes to revs that run beside the current release
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The proc
    #[arg(value_parser = ProcName::of_spelling)]
    pub proc: ProcName,
    /// A rev's share in percent; `off` takes it back
    #[arg(value_name = "REV=PERCENT")]
    pub shares: Vec<Share>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(!self.shares.is_empty(), Audited::Words)
    }
}

/// A rev's share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The rev, by the beginning of its id.
    pub rev: RevPrefix,
    /// The percentage; `None` removes the share.
    pub percent: Option<u32>,
}

/// The error for a text that isn't a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShare {
    /// The text doesn't have the form of a share.
    #[error("a share is REV=PERCENT, from 0 to 100, or REV=off")]
    Form,
    /// The rev's part isn't a rev's id or its beginning.
    #[error(transparent)]
    Rev(#[from] InvalidRevPrefix),
}

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(s: &str) -> Result<Self, InvalidShare> {
        let (rev, percent) = s.split_once('=').ok_or(InvalidShare::Form)?;
        let percent = match percent {
            "off" => None,
            digits if digits.starts_with('+') => return Err(InvalidShare::Form),
            digits => Some(digits.parse().ok().filter(|n| *n <= 100).ok_or(InvalidShare::Form)?),
        };
        Ok(Share { rev: rev.parse()?, percent })
    }
}

/// Sets or shows shares. Returns once each proxy has applied them.
///
/// # Errors
/// Unknown names; a rev that doesn't run beside the head; over 100 percent.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { proc, shares } = &args;
    let app = context.app().await?;
    let view = context.view(&app).await?;
    known_proc(&app, &view, proc)?;
    if shares.is_empty() {
        show(context, &view, proc);
        return Ok(());
    }
    let mut wanted: Vec<(RevId, Option<u32>)> = Vec::new();
    for share in shares {
        wanted.push((find_rev(&app, &view, &share.rev)?, share.percent));
    }
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let shared = match context.visor.share_traffic(&app, proc, &wanted).await {
        Ok(shared) => shared,
        Err(error) => return Err(context.explain(&view, error).await),
    };
    context.note_change();
    let set = shared.value;
    // A release without instances has no server that a proxy could weigh.
    let has_instance = |release: &ReleaseId| {
        watch.view().instances.values().any(|row| row.proc == *proc && row.release == *release)
    };
    if set.keys().any(has_instance) || set.is_empty() {
        enforced(&mut watch, shared.revision).await;
    }
    let head: u32 = 100 - set.values().sum::<u32>();
    let told = set.iter().map(|(release, share)| format!("{share} % to {}", named(&view, *release)));
    let mut told: Vec<String> = told.collect();
    told.push(format!("{head} % to the current release"));
    put_line(&format!(
        "{proc}: {}",
        if set.is_empty() { "evenly to each instance".into() } else { told.join(", ") }
    ));
    Ok(())
}

fn named(view: &AppView, release: ReleaseId) -> String {
    view.releases.get(&release).map_or_else(|| release.to_string(), |row| row.rev.short().to_owned())
}

#[derive(Serialize)]
struct Row {
    proc: ProcName,
    release: ReleaseId,
    rev: Option<RevId>,
    current: bool,
    count: u32,
    /// `None` if no shares are set: each instance gets an equal part.
    percent: Option<u32>,
}

fn show(context: &Context, view: &AppView, proc: &ProcName) {
    let nothing = BTreeMap::new();
    let shares = view.formation.get(proc).map_or(&nothing, |row| &row.weights);
    let wanted = view.wanted(proc);
    let head = view.head.as_ref().map(|head| head.release);
    let given: u32 = shares.iter().filter(|(release, _)| wanted.contains_key(release)).map(|(_, n)| n).sum();
    let rows: Vec<Row> = wanted
        .iter()
        .map(|(release, count)| Row {
            proc: proc.clone(),
            release: *release,
            rev: view.releases.get(release).map(|row| row.rev.clone()),
            current: head == Some(*release),
            count: *count,
            percent: match shares.get(release) {
                Some(share) => Some(*share),
                None if head == Some(*release) && given > 0 => Some(100_u32.saturating_sub(given)),
                None => None,
            },
        })
        .collect();
    if context.json {
        put_json(&rows);
        return;
    }
    let mut table = Table::new(&["PROC", "RELEASE", "REV", "COUNT", "PERCENT"]);
    for row in rows {
        table.row([
            row.proc.to_string(),
            row.release.to_string(),
            row.rev.map(|rev| rev.short().to_owned()).unwrap_or_default(),
            row.count.to_string(),
            row.percent.map(|percent| percent.to_string()).unwrap_or_default(),
        ]);
    }
    table.put();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_rev_with_a_part_of_a_hundred() {
        let percent = |said: &str| said.parse::<Share>().map(|share| share.percent);
        assert_eq!(percent("16f7=10"), Ok(Some(10)));
        assert_eq!(percent("16f7=0"), Ok(Some(0)));
        assert_eq!(percent("16f7=off"), Ok(None));
        for bad in ["16f7", "16f7=", "16f7=101", "16f7=-1", "16f7=+1", "16f7=1.5", "16f=1", "=1", ""] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
