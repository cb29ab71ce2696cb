//! `bazooka audit`: the changes, with who made each, when and from where; also what was read and what was refused.

use serde::Serialize;
use visor::{
    identity::Identity,
    keys::{self, Key},
    mirror::Mirror,
    names::{AppName, AuditId},
    schema::AuditEntry,
    snapshot::{Snapshot, Versioned},
    store::Revision,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    show::{Table, clean, moment, put_json, put_json_line, put_line},
};

/// List who did what, when, and from where
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many entries
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    pub lines: usize,
    /// Go on with new entries as they come; with --json, a line each
    #[arg(short, long)]
    pub follow: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        if self.follow { CommandKind::Follows } else { CommandKind::Shows }
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
    /// `read` or `refused`; absent for a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// Tells the entry from all others.
    id: AuditId,
    /// The revision of its write, for the order: clocks may be wrong.
    revision: Revision,
}

impl Row {
    fn of(id: &AuditId, written_by: &Identity, row: &Versioned<AuditEntry>) -> Row {
        // Its writer may be anyone who may write under that name.
        let AuditEntry { what, app, by, from, kind, at, .. } = row.value.clone().bounded();
        Row {
            at,
            who: by.unwrap_or_else(|| written_by.to_string()),
            written_by: written_by.clone(),
            from,
            app,
            what,
            kind,
            id: id.clone(),
            revision: row.mod_revision,
        }
    }

    fn line(&self) -> String {
        let app = self.app.as_ref().map(AppName::as_str).unwrap_or_default();
        let parts = [&moment(self.at), &clean(&self.who), &clean(&self.from), app, &clean(&self.what)];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
    }
}

/// Lists the last entries of all apps, or with `-a` of one.
///
/// # Errors
/// Those of the store.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { lines, follow } = args;
    // Before anything is followed, so that an unreachable coordinator is noticed.
    let all = context.visor.read(vec![keys::audit()]).await?;
    if follow {
        return follow_from(context, lines).await;
    }
    let rows = last(rows(context, all.audit.iter()), lines);
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

/// Prints the last entries and then each new one, until the user interrupts it.
async fn follow_from(context: &Context, lines: usize) -> Result<()> {
    let scopes = vec![keys::schema(), keys::audit()];
    let mut mirror = Mirror::new(context.visor.store().clone(), scopes, Snapshot::default());
    let mut is_first = true;
    loop {
        let changes = mirror.next().await;
        if is_first && !changes.relisted {
            continue;
        }
        let changed = changes.keys.iter().filter_map(|key| match key.parse() {
            Ok(Key::Audit(who, id)) => mirror.image().audit.get_key_value(&(id, who)),
            _ => None,
        });
        let new = rows(context, changed);
        let new = if is_first { last(new, lines) } else { new };
        is_first = false;
        for row in new {
            if context.json {
                put_json_line(&row);
            } else {
                put_line(&row.line());
            }
        }
    }
}

/// Returns the entries of the app, or of all, in the order of their revisions: a clock may be wrong.
fn rows<'a>(
    context: &Context,
    entries: impl Iterator<Item = (&'a (AuditId, Identity), &'a Versioned<AuditEntry>)>,
) -> Vec<Row> {
    let of_app = |entry: &AuditEntry| context.said().is_none_or(|app| entry.app.as_ref() == Some(app));
    let entries = entries.filter(|(_, entry)| of_app(entry));
    let mut rows: Vec<Row> = entries.map(|((id, who), entry)| Row::of(id, who, entry)).collect();
    rows.sort_by_key(|row| row.revision);
    rows
}

fn last(mut rows: Vec<Row>, lines: usize) -> Vec<Row> {
    rows.split_off(rows.len().saturating_sub(lines))
}
