//! `bazooka revs`: the list of an app's revs.

use serde::Serialize;
use visor::{
    names::{Digest, ReleaseId, RevId},
    snapshot::AppView,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    show::{Table, bytes, moment, put_json},
};

/// List the app's revs
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
    rev: RevId,
    at: jiff::Timestamp,
    by: String,
    kind: String,
    slug: Digest,
    size_bytes: u64,
    subject: String,
    current: bool,
    releases: Vec<ReleaseId>,
}

/// Lists an app's revs, the newest first.
///
/// # Errors
/// Those of the store; no such app.
pub async fn run(context: &Context, _: Args) -> Result<()> {
    let app = context.app().await?;
    let rows = rows(&context.view(&app).await?);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["REV", "AT", "BY", "KIND", "SIZE", "RELEASE", "SUBJECT"]);
    for row in rows {
        let release = row.releases.last().map(ReleaseId::to_string).unwrap_or_default();
        let release = if row.current { format!("{release} (current)") } else { release };
        table.row([
            row.rev.short().to_owned(),
            moment(row.at),
            row.by,
            row.kind,
            bytes(row.size_bytes),
            release,
            row.subject,
        ]);
    }
    table.put();
    Ok(())
}

fn rows(view: &AppView) -> Vec<Row> {
    let head = view.head_release().map(|(_, release)| release.rev.clone());
    let mut rows: Vec<Row> = view
        .revs
        .iter()
        .map(|(id, rev)| Row {
            rev: id.clone(),
            at: rev.at,
            by: rev.by.clone(),
            kind: rev.kind.clone(),
            slug: rev.slug.sha256.clone(),
            size_bytes: rev.slug.size_bytes,
            subject: rev.subject.clone(),
            current: head.as_ref() == Some(id),
            releases: view.releases.iter().filter(|(_, r)| r.rev == *id).map(|(id, _)| *id).collect(),
        })
        .collect();
    rows.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.rev.cmp(&b.rev)));
    rows
}
