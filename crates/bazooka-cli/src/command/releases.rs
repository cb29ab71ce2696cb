//! `bazooka releases`: the list of an app's releases.

use serde::Serialize;
use visor::{
    names::{EnvRef, ReleaseId, RevId},
    schema::ReleaseStatus,
    snapshot::AppView,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    show::{Table, moment, put_json, say},
};

/// List the app's releases
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
    release: ReleaseId,
    rev: RevId,
    env: EnvRef,
    status: ReleaseStatus,
    current: bool,
    at: jiff::Timestamp,
    by: String,
    reason: String,
    cause: Option<String>,
}

/// Lists an app's releases, the newest first.
///
/// # Errors
/// Those of the store; no such app.
pub async fn run(context: &Context, _: Args) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
    let rows = rows(&view);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["RELEASE", "REV", "ENV", "STATUS", "AT", "BY", "REASON"]);
    for row in rows {
        let status = match row.status {
            _ if row.current => "current",
            ReleaseStatus::Released if row.cause.is_some() => "aborted",
            status => word(status),
        };
        let first = row.cause.as_deref().and_then(|cause| cause.lines().next());
        let reason = match first {
            Some(cause) => format!("{}: {cause}", row.reason),
            None => row.reason,
        };
        table.row([
            row.release.to_string(),
            row.rev.short().to_owned(),
            row.env.to_string(),
            status.to_owned(),
            moment(row.at),
            row.by,
            reason,
        ]);
    }
    table.put();
    if let Some(oldest) = view.releases.keys().next().filter(|oldest| oldest.0 > 1) {
        say(&format!("those before {oldest} are pruned"));
    }
    Ok(())
}

/// Returns the word for a release's status.
pub fn word(status: ReleaseStatus) -> &'static str {
    match status {
        ReleaseStatus::Trying => "being tried",
        ReleaseStatus::Verified => "verified",
        ReleaseStatus::Released => "released",
        ReleaseStatus::Failed => "failed",
        ReleaseStatus::Beside => "beside",
    }
}

fn rows(view: &AppView) -> Vec<Row> {
    let head = view.head.as_ref().map(|head| head.release);
    let rows = view.releases.iter().rev().map(|(id, release)| Row {
        release: *id,
        rev: release.rev.clone(),
        env: release.env,
        status: release.status,
        current: head == Some(*id),
        at: release.at,
        by: release.by.clone(),
        reason: release.reason.clone(),
        cause: release.cause.clone(),
    });
    rows.collect()
}
