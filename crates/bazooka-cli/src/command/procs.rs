//! `bazooka procs`.

use std::collections::BTreeMap;

use serde::Serialize;
use visor::{
    names::{AppName, ProcName},
    snapshot::AppView,
};

use crate::{
    context::Context,
    failure::Result,
    show::{Table, bytes, put_json},
};

#[derive(Serialize)]
struct Row<'a> {
    app: &'a AppName,
    proc: &'a ProcName,
    port: u16,
    memory_limit_bytes: Option<u64>,
    instances: usize,
    wanted: u32,
    command: Option<&'a str>,
}

/// Lists an app's procs.
///
/// # Errors
/// The store's; no such app.
pub async fn run(context: &Context) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
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
        instances: counts.get(name).copied().unwrap_or(0),
        wanted: view.wanted(name).values().sum(),
        command: view.head.as_ref().and_then(|head| view.command(head.release, name)),
    });
    rows.collect()
}
