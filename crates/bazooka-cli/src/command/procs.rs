//! `bazooka procs`: an app's procs and their settings.

mod set;

use std::collections::BTreeMap;

use serde::Serialize;
use visor::{
    names::{AppName, ProcName},
    schema::Proc,
    settings::{self, Value},
    snapshot::AppView,
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::Result,
    show::{Table, put_json},
};

/// List the app's procs, or set how their instances are run and replaced
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show every setting
    #[arg(short, long)]
    pub long: bool,
    /// What to do
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Set how each instance of a proc is run, and how a rollout replaces instances
    Set(set::Args),
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(self.action.is_some(), Audited::Words)
    }
}

/// Lists an app's procs, or changes the settings of one.
///
/// # Errors
/// Those of the store; no such app or proc.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    let (view, ports) = context.view_with_ports(&app).await?;
    if let Some(Action::Set(changes)) = args.action {
        return set::run(context, &app, &view, changes).await;
    }
    let rows = rows(&app, &view, &ports);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    if args.long {
        long(&rows, &view).put()
    } else {
        short(&rows).put()
    }
    Ok(())
}

#[derive(Serialize)]
struct Row<'a> {
    app: &'a AppName,
    proc: &'a ProcName,
    /// The Procfile's spelling.
    spelling: &'a str,
    /// The port; null until bazooka-rm has given it one.
    port: Option<u16>,
    /// The settings by their JSON names; null if not set.
    #[serde(flatten)]
    settings: BTreeMap<&'static str, serde_json::Value>,
    instances: usize,
    wanted: u32,
    command: Option<&'a str>,
}

fn rows<'a>(app: &'a AppName, view: &'a AppView, ports: &BTreeMap<ProcName, u16>) -> Vec<Row<'a>> {
    let mut counts: BTreeMap<&ProcName, usize> = BTreeMap::new();
    for instance in view.instances.values() {
        *counts.entry(&instance.proc).or_insert(0) += 1;
    }
    let set = |proc: &Proc| {
        let json = |stored: Option<Value>| stored.as_ref().map(serde_json::Value::from).unwrap_or_default();
        settings::ALL.map(|setting| (setting.json, json(setting.stored(proc)))).into()
    };
    let rows = view.procs.iter().map(|(name, proc)| Row {
        app,
        proc: name,
        spelling: view.spelling(name),
        port: ports.get(name).copied(),
        settings: set(proc),
        instances: counts.get(name).copied().unwrap_or(0),
        wanted: view.wanted(name).values().sum(),
        command: view.head.as_ref().and_then(|head| view.command(head.release, name)),
    });
    rows.collect()
}

/// Returns a value as a table cell; empty if there is no limit.
fn cell(value: &Value) -> String {
    if *value == Value::NoLimit { String::new() } else { value.to_string() }
}

fn port_cell(row: &Row<'_>) -> String {
    row.port.map_or_else(|| "none".to_owned(), |port| port.to_string())
}

fn short(rows: &[Row<'_>]) -> Table {
    let mut table = Table::new(&["APP", "PROC", "PORT", settings::MEMORY.heading, "INSTANCES"]);
    for row in rows {
        let memory = row.settings[settings::MEMORY.json].as_u64().map(Value::Size);
        table.row([
            row.app.to_string(),
            row.spelling.to_owned(),
            port_cell(row),
            memory.as_ref().map(cell).unwrap_or_default(),
            row.instances.to_string(),
        ]);
    }
    table
}

/// Returns the table with the effective value of each setting, set or default.
fn long(rows: &[Row<'_>], view: &AppView) -> Table {
    let headings = settings::ALL.map(|setting| setting.heading);
    let mut table = Table::new(&[&["APP", "PROC", "PORT"][..], &headings, &["INSTANCES"]].concat());
    for row in rows {
        let proc = &view.procs[row.proc];
        let mut cells = vec![row.app.to_string(), row.spelling.to_owned(), port_cell(row)];
        cells.extend(settings::ALL.map(|setting| cell(&setting.of(row.proc, proc))));
        cells.push(row.instances.to_string());
        table.row(cells);
    }
    table
}
