//! `bazooka procs`: what an app has of procs, and what their instances may use.

mod limits;

use std::collections::BTreeMap;

use serde::Serialize;
use visor::{
    names::{AppName, ProcName},
    schema::Limits,
    snapshot::AppView,
    transitions::limits::LimitsChange,
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::{Context, known_proc},
    failure::Result,
    show::{Table, bytes, put_json, put_line, say},
};
use limits::Limit;

/// List the app's procs, or set what their instances may use
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Option<Action>,
}

impl Args {
    /// What kind of command it is.
    pub fn kind(&self) -> CommandKind {
        lists_unless(self.action.is_some(), Audited::Words)
    }
}

/// What to do with a proc.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Set what each instance of a proc may use; instances that run keep what they have
    Set(SetArgs),
}

/// The limits.
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// The proc
    pub proc: ProcName,
    /// Memory, for example 256M or 1G; `none` for no limit
    #[arg(long, value_name = "SIZE", value_parser = limits::memory)]
    #[arg(required_unless_present_any = ["cpu", "pids"])]
    pub memory: Option<Limit<u64>>,
    /// Processor, for example 0.5 for half of one; `none` for no limit
    #[arg(long, value_name = "N", value_parser = limits::cpu)]
    pub cpu: Option<Limit<u32>>,
    /// Processes and threads; `none` for the usual 1024
    #[arg(long, value_name = "N", value_parser = limits::pids)]
    pub pids: Option<Limit<u32>>,
}

#[derive(Serialize)]
struct Row<'a> {
    app: &'a AppName,
    proc: &'a ProcName,
    port: u16,
    memory_limit_bytes: Option<u64>,
    cpu_limit_millis: Option<u32>,
    processes_limit: Option<u32>,
    instances: usize,
    wanted: u32,
    command: Option<&'a str>,
}

/// Lists an app's procs, or sets what the instances of one may use.
///
/// # Errors
/// The store's; no such app or proc.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
    if let Some(Action::Set(args)) = args.action {
        return set(context, &app, &view, args).await;
    }
    let rows = rows(&app, &view);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["APP", "PROC", "PORT", "MEMLIMIT", "INSTANCES"]);
    for row in rows {
        table.row([
            row.app.to_string(),
            row.proc.to_string(),
            row.port.to_string(),
            row.memory_limit_bytes.map(bytes).unwrap_or_default(),
            row.instances.to_string(),
        ]);
    }
    table.put();
    Ok(())
}

async fn set(context: &Context, app: &AppName, view: &AppView, args: SetArgs) -> Result<()> {
    let SetArgs { proc, memory, cpu, pids } = args;
    known_proc(app, view, &proc)?;
    let change = LimitsChange {
        memory_bytes: memory.map(|Limit(limit)| limit),
        cpu_millis: cpu.map(|Limit(limit)| limit),
        processes: pids.map(|Limit(limit)| limit),
    };
    let limits = match context.visor.set_limits(app, &proc, change).await {
        Ok(limits) => limits,
        Err(error) => return Err(context.explain(view, error).await),
    };
    context.note_change();
    put_line(&format!("{proc}: {}", in_words(&limits)));
    if view.instances.values().any(|instance| instance.proc == proc) {
        say(&format!("instances that run keep what they have; hint: `bazooka restart {proc}` replaces them"));
    }
    Ok(())
}

fn in_words(limits: &Limits) -> String {
    let memory = limits.memory_limit_bytes.map_or("no limit".to_owned(), bytes);
    let cpu = limits
        .cpu_limit_millis
        .map_or("no limit".to_owned(), |millis| (f64::from(millis) / 1_000.0).to_string());
    let pids = limits.processes_limit.unwrap_or(Limits::USUAL_PROCESSES);
    format!("memory {memory}, cpu {cpu}, pids {pids}")
}

fn rows<'a>(app: &'a AppName, view: &'a AppView) -> Vec<Row<'a>> {
    let mut counts: BTreeMap<&ProcName, usize> = BTreeMap::new();
    for instance in view.instances.values() {
        *counts.entry(&instance.proc).or_insert(0) += 1;
    }
    let rows = view.procs.iter().map(|(name, proc)| Row {
        app,
        proc: name,
        port: proc.port,
        memory_limit_bytes: proc.run.limits.memory_limit_bytes,
        cpu_limit_millis: proc.run.limits.cpu_limit_millis,
        processes_limit: proc.run.limits.processes_limit,
        instances: counts.get(name).copied().unwrap_or(0),
        wanted: view.wanted(name).values().sum(),
        command: view.head.as_ref().and_then(|head| view.command(head.release, name)),
    });
    rows.collect()
}
