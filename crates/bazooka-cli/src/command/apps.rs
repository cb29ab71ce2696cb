//! `bazooka apps`: the list of apps.

use serde::Serialize;
use visor::{
    keys,
    names::{AppName, ReleaseId},
    snapshot::Snapshot,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    show::{Table, put_json},
};

/// List the apps
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

#[derive(Serialize)]
struct Row {
    app: AppName,
    owner: String,
    created_at: jiff::Timestamp,
    release: Option<ReleaseId>,
    rev: Option<String>,
    procs: usize,
    instances: usize,
    destroying: bool,
}

/// Lists the apps.
///
/// # Errors
/// Those of the store.
pub async fn run(context: &Context, _: Args) -> Result<()> {
    let rows = rows(&context.visor.read(vec![keys::apps()]).await?);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["APP", "OWNER", "RELEASE", "REV", "PROCS", "INSTANCES"]);
    for row in rows {
        let release = match (row.release, row.destroying) {
            (_, true) => "destroying".to_owned(),
            (release, false) => release.map(|release| release.to_string()).unwrap_or_default(),
        };
        let rev = row.rev.map(|rev| rev[..7].to_owned()).unwrap_or_default();
        table.row([
            row.app.to_string(),
            row.owner,
            release,
            rev,
            row.procs.to_string(),
            row.instances.to_string(),
        ]);
    }
    table.put();
    Ok(())
}

fn rows(all: &Snapshot) -> Vec<Row> {
    let apps = all.apps.iter().filter_map(|(name, view)| view.app.as_ref().map(|app| (name, view, app)));
    apps.map(|(name, view, app)| Row {
        app: name.clone(),
        owner: app.owner.clone(),
        created_at: app.created_at,
        release: view.head.as_ref().map(|head| head.release),
        rev: view.head_release().map(|(_, release)| release.rev.to_string()),
        procs: view.procs.len(),
        instances: view.instances.len(),
        destroying: app.destroying,
    })
    .collect()
}
