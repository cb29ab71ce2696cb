//! `bazooka keys`: the user's SSH keys for pushing.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use serde::Serialize;
use visor::{identity::Credentials, identity::Identity, keys::Key, schema::SshKeys};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::{Failure, Kind, Result},
    rm,
    show::{Table, put_json, put_line},
};

/// List, add or remove the SSH keys that you push with
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Option<Action>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(!matches!(self.action, None | Some(Action::List)), Audited::ByRm)
    }
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List your keys
    List,
    /// Add a key
    Add {
        /// The file with the public key
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove a key
    Remove {
        /// The key's fingerprint
        fingerprint: String,
    },
}

/// The size limit of a public key's file, in bytes. A key of 16,384 bits has three thousand characters.
const MOST: u64 = 16 << 10;

/// Adds, removes or lists keys.
///
/// # Errors
/// No identity; a file that isn't a public key; no bazooka-rm.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context).await,
        Action::Add { file } => {
            let added = rm::add_key(context, &read(&file)?).await?;
            context.note_change();
            put_line(&format!("{} added", added.fingerprint));
            Ok(())
        }
        Action::Remove { fingerprint } => {
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
        // A private key isn't sent anywhere.
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
        let what = "keys belong to people, and you have no identity here";
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
