//! `bazooka keys`: the SSH keys with which one pushes.

use std::{io::Read, path::Path};

use serde::Serialize;
use visor::{identity::Credentials, identity::Identity, keys::Key, schema::SshKeys};

use crate::{
    args::KeysAction,
    context::Context,
    failure::{Failure, Kind, Result},
    rm,
    show::{Table, put_json, put_line},
};

/// The most that a public key's file may hold: one of 16,384 bits has three thousand characters.
const MOST: u64 = 16 << 10;

/// Adds, removes or lists.
///
/// # Errors
/// No identity; a file that is no public key; no bazooka-rm.
pub async fn run(context: &Context, action: KeysAction) -> Result<()> {
    match action {
        KeysAction::List => list(context).await,
        KeysAction::Add { file } => {
            let added = rm::add_key(context, &read(&file)?).await?;
            context.note_change();
            put_line(&format!("{} added", added.fingerprint));
            Ok(())
        }
        KeysAction::Remove { fingerprint } => {
            rm::remove_key(context, &fingerprint).await?;
            context.note_change();
            put_line(&format!("{fingerprint} removed"));
            Ok(())
        }
    }
}

fn read(file: &Path) -> Result<String> {
    let wrong = |error: &dyn std::error::Error| {
        Failure::from_error(Kind::Usage, format!("{} can't be read", file.display()), error)
            .hint("give the file with the public key: bazooka keys add ~/.ssh/id_ed25519.pub")
    };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| wrong(&error))?;
    opened.take(MOST).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if text.contains("PRIVATE KEY") {
        // It doesn't leave this machine.
        let what = format!("{} is a private key", file.display());
        return Err(
            Failure::new(Kind::Usage, what).hint(format!("give the public one: {}.pub", file.display()))
        );
    }
    Ok(text.trim().to_owned())
}

#[derive(Serialize)]
struct Row {
    fingerprint: String,
    comment: String,
    at: jiff::Timestamp,
}

async fn list(context: &Context) -> Result<()> {
    let Some(Identity::User(user)) = context.credentials.as_ref().map(Credentials::identity) else {
        let what = "keys are for people, and nothing says who you are";
        return Err(
            Failure::new(Kind::Usage, what).hint("name your identity with --identity or BAZOOKA_IDENTITY")
        );
    };
    let row = context.visor.get::<SshKeys>(&Key::SshKeys(user)).await?;
    let keys = row.map(|row| row.value.keys).unwrap_or_default();
    let rows: Vec<Row> = keys
        .into_iter()
        .map(|(fingerprint, key)| Row { fingerprint, comment: key.comment, at: key.at })
        .collect();
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["FINGERPRINT", "COMMENT", "ADDED"]);
    for row in rows {
        table.row([row.fingerprint, row.comment, crate::show::moment(row.at)]);
    }
    table.put();
    Ok(())
}
