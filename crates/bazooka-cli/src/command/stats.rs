//! `bazooka stats`: the numbers of apps, procs, revs, releases and instances, and the changes of each day.

use std::collections::BTreeMap;

use serde::Serialize;
use visor::{
    keys,
    names::Day,
    schema::{DayTotals, State},
    stats::totals,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    show::{Table, put, put_json, say},
};

/// Show how many apps, procs, revs and instances there are, and what each day brought
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many days, oldest first
    #[arg(short = 'n', long, default_value_t = 30, value_name = "N")]
    pub days: usize,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

#[derive(Serialize)]
struct Row {
    day: Day,
    pushed: u64,
    released: u64,
    started: u64,
    /// The totals at the last count on that day; `None` if no converger counted on that day.
    totals: Option<DayTotals>,
}

#[derive(Serialize)]
struct Answer {
    now: DayTotals,
    running: usize,
    days: Vec<Row>,
}

/// Shows the totals, and the last `days` days that were counted.
///
/// # Errors
/// Those of the store.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { days } = args;
    let snapshot = context.visor.read(vec![keys::apps(), keys::days(), keys::all_statuses()]).await?;
    let running = |state: State| state == State::Running;
    let statuses = snapshot.hosts.values().flat_map(|view| view.status.values());
    let skipped = snapshot.days.len().saturating_sub(days);
    let row = |(day, row): (&Day, &visor::snapshot::Versioned<visor::schema::DayStats>)| Row {
        day: *day,
        pushed: row.pushed,
        released: row.released,
        started: row.started,
        totals: row.totals.clone(),
    };
    let answer = Answer {
        now: totals(&snapshot),
        running: statuses.filter(|status| running(status.state)).count(),
        days: snapshot.days.iter().skip(skipped).map(row).collect(),
    };
    if context.json {
        put_json(&answer);
        return Ok(());
    }
    show(&answer);
    if answer.days.is_empty() {
        say("no day has been counted yet: the elected bazooka-pm converge counts, at most once a minute");
    }
    Ok(())
}

fn show(answer: &Answer) {
    let now = &answer.now;
    let all: BTreeMap<_, _> = [
        (0, ("apps", now.apps)),
        (1, ("proc types", now.procs)),
        (2, ("revs", now.revs)),
        (3, ("releases", now.releases)),
        (4, ("instances", now.instances)),
        (5, ("running", answer.running as u64)),
    ]
    .into();
    let mut table = Table::new(&["OF", "NOW"]);
    all.into_values().for_each(|(what, n)| table.row([what.to_owned(), n.to_string()]));
    table.put();
    if answer.days.is_empty() {
        return;
    }
    put("\n");
    let head = ["DAY", "APPS", "PROC-TYPES", "REVS", "INSTANCES", "PUSHED", "RELEASED", "STARTED"];
    let mut table = Table::new(&head);
    for row in &answer.days {
        let total =
            |of: fn(&DayTotals) -> u64| row.totals.as_ref().map(|t| of(t).to_string()).unwrap_or_default();
        table.row([
            row.day.to_string(),
            total(|t| t.apps),
            total(|t| t.procs),
            total(|t| t.revs),
            total(|t| t.instances),
            row.pushed.to_string(),
            row.released.to_string(),
            row.started.to_string(),
        ]);
    }
    table.put();
}
