//! `bazooka migrate`: after an upgrade, rewrites the previous release's rows in the current form, and shuts that
//! release out.
//!
//! `visor::migrate` decides the order. This command takes its own steps, and waits for those of the daemons. If it is
//! stopped, another run continues.

use std::time::Duration;

use visor::{
    keys,
    migrate::{Next, Older, next},
    schema::SCHEMA_VERSION,
    visor::{Committed, VisorError},
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::{Failure, Kind, Result},
    show::{put_line, say},
};

/// After an upgrade: rewrite the rows of the earlier release in today's form, and shut that release out
#[derive(Debug, clap::Args)]
#[command(
    long_about = "After an upgrade of all parts: rewrite the rows of the earlier release in today's form, and shut that release \
                  out. It may be stopped at any time and run again. A cluster with identities requires an rm's identity"
)]
pub struct Args {
    /// Print the changes without making them
    #[arg(long)]
    pub dry_run: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(!self.dry_run, Audited::WordsOfNoApp)
    }
}

/// The interval at which it checks for the daemons' steps.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The time that the daemons may take. An rm checks at each change whether there is something to seal.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes the remaining steps, or with `--dry-run` prints the next one.
///
/// # Errors
/// No cluster; a cluster of a later version; daemons of an older release; rows that aren't rewritten; the store's.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { dry_run } = args;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut waits_for: Option<usize> = None;
    loop {
        let snapshot = context.visor.read(keys::everything()).await?;
        let (raise, words) = match next(&snapshot).ok_or(VisorError::NotSetUp)? {
            Next::Done => {
                put_line(&format!("the cluster is at version {SCHEMA_VERSION}, and refuses older ones"));
                return Ok(());
            }
            Next::Later { version } => {
                let what =
                    format!("the cluster is at version {version}; this bazooka is of {SCHEMA_VERSION}");
                return Err(Failure::new(Kind::Refused, what).hint("migrate with a bazooka of that version"));
            }
            Next::Older(parts) => return Err(older(&parts)),
            Next::Rewriting(keys) if dry_run => {
                keys.iter().for_each(|key| put_line(&format!("{key} is to be rewritten by an rm")));
                return Ok(());
            }
            Next::Rewriting(keys) if tokio::time::Instant::now() > deadline => {
                let what = format!("{} rows are still of the old form, {} among them", keys.len(), keys[0]);
                return Err(Failure::new(Kind::Failed, what)
                    .hint("a bazooka-rm seals config vars once each host and rm that is there has a key, and writes the rows of \
                           ports: see its log; then run this again"));
            }
            Next::Rewriting(keys) => {
                if waits_for.replace(keys.len()).is_none_or(|before| keys.len() < before) {
                    say(&format!("{} rows of the old form are being rewritten", keys.len()));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            Next::ShutOut(raise) => (raise, "older releases may write nothing any more"),
            Next::Finish(raise) => {
                (raise, "all is in today's form; older releases may read nothing any more")
            }
        };
        if dry_run {
            put_line(&format!("to come: {words}"));
            return Ok(());
        }
        context.note_change();
        match context.visor.commit(raise.change()).await {
            Ok(Committed::Done(_)) => put_line(words),
            // The next round decides again from the current rows.
            Ok(Committed::Conflict) => {}
            Err(VisorError::Store(error)) if error.is_denied() => {
                return Err(Failure::new(Kind::Refused, "only an rm may change the cluster's schema")
                    .hint("run it as one: bazooka --identity /etc/bazooka/rm migrate"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn older(parts: &[Older]) -> Failure {
    let words: Vec<String> = parts
        .iter()
        .map(|older| match older.version.as_str() {
            "" => older.part.clone(),
            version => format!("{} ({version})", older.part),
        })
        .collect();
    let what = format!("{} would be shut out: of an older release", words.join(", "));
    Failure::new(Kind::Refused, what).hint("upgrade them, or stop them, and run this again")
}
