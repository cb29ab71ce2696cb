//! `bazooka audit`: the changes, with who made each, when and from where.

use serde::Serialize;
use visor::{
    identity::Identity,
    keys,
    names::{AppName, AuditId},
    schema::AuditEntry,
    snapshot::Versioned,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    show::{Table, clean, moment, put_json},
};

/// List who did what, when, and from where
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many entries
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    pub lines: usize,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

#[derive(Serialize)]
struct Row {
    at: jiff::Timestamp,
    who: String,
    /// The identity that wrote the entry. A daemon writes entries on behalf of users.
    written_by: Identity,
    from: String,
    app: Option<AppName>,
    what: String,
}

/// Lists the last entries of all apps, or with `-a` of one.
///
/// # Errors
/// Those of the store.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { lines } = args;
    let all = context.visor.read(vec![keys::audit()]).await?;
    // In the order of their revisions, because a clock may be wrong.
    let mut entries: Vec<(&(AuditId, Identity), &Versioned<AuditEntry>)> = all.audit.iter().collect();
    entries.sort_by_key(|(_, entry)| entry.create_revision);
    let of_app = |entry: &AuditEntry| context.said().is_none_or(|app| entry.app.as_ref() == Some(app));
    entries.retain(|(_, entry)| of_app(entry));
    let rows = entries.iter().skip(entries.len().saturating_sub(lines)).map(|((_, written_by), entry)| Row {
        at: entry.at,
        who: entry.by.clone().unwrap_or_else(|| written_by.to_string()),
        written_by: written_by.clone(),
        from: entry.from.clone(),
        app: entry.app.clone(),
        what: entry.what.clone(),
    });
    let rows: Vec<Row> = rows.collect();
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["WHEN", "WHO", "FROM", "APP", "WHAT"]);
    for row in rows {
        let app = row.app.map(|app| app.to_string()).unwrap_or_default();
        table.row([moment(row.at), clean(&row.who), clean(&row.from), app, clean(&row.what)]);
    }
    table.put();
    Ok(())
}
