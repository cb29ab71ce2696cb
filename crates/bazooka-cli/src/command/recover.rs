//! `bazooka recover`: enters the instances that hosts still run into a restored coordinator.
//!
//! `visor::recover` has the rules. This command asks the hosts, carries out the plan and prints what is newer than
//! the backup. It ends leases and raises counters, so the user must confirm that no other program reaches the
//! coordinator.

use std::time::Duration;

use bazooka_daemon::http_client;
use futures::future::join_all;
use visor::{
    keys,
    recover::{Found, Moment, plan},
    schema::Schema,
    snapshot::Snapshot,
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::{Failure, Kind, Result},
    show::{put_json, put_line, say},
};

/// Bring a restored coordinator up to date with what hosts run; `deploy/restore` calls it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also ask the bazooka-pm at this endpoint
    #[arg(long = "host", value_name = "URL")]
    pub hosts: Vec<String>,
    /// The coordinator is in use again: take up only instances that it never knew
    #[arg(long)]
    pub late: bool,
    /// End instances whose app the coordinator doesn't know
    #[arg(long, requires = "late")]
    pub end_unknown: bool,
    /// Confirm that nobody else reaches this coordinator
    #[arg(long, conflicts_with = "late")]
    pub alone: bool,
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

/// The time that a host may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the hosts and carries out the plan.
///
/// # Errors
/// No confirmation; no cluster below the prefix; a host of another cluster; errors of the store.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    if !args.late && !args.alone && !args.dry_run {
        let what =
            "this ends everyone's lease and raises counters: nobody else may reach the coordinator meanwhile";
        return Err(Failure::new(Kind::Usage, what).hint(
            "`deploy/restore` does all of it; otherwise pass --alone, or --late if the cluster is in use again",
        ));
    }
    let snapshot = context.visor.read(keys::everything()).await?;
    let Some(schema) = &snapshot.schema else {
        return Err(Failure::new(Kind::Refused, "there is no cluster below this prefix")
            .hint("name the one that the backup was made of with --prefix"));
    };
    let found = ask(context, &snapshot, args.hosts).await?;
    refuse_others(schema, &found)?;
    let moment = if args.late {
        Moment::Late { end_unknown: args.end_unknown }
    } else if args.dry_run {
        // A dry run doesn't use the lease.
        Moment::Restored(0)
    } else {
        Moment::Restored(context.visor.presence_lease().await?)
    };
    let recovery = plan(&snapshot, &found, moment, context.now());
    if !args.dry_run {
        context.note_change();
        context.visor.carry_out(&recovery).await?;
    }
    if context.json {
        put_json(&recovery);
        return Ok(());
    }
    recovery.report.iter().for_each(|line| put_line(line));
    if !recovery.by_hand.is_empty() {
        put_line("");
        put_line("to do by hand:");
        recovery.by_hand.iter().for_each(|line| put_line(&format!("  {line}")));
    }
    if args.late && recovery.report.is_empty() && recovery.by_hand.is_empty() {
        say("the coordinator knows everything that hosts run");
    }
    Ok(())
}

/// Asks the hosts in the coordinator and the endpoints in `more`, and returns their answers. Prints a notice for each
/// endpoint that doesn't answer.
async fn ask(context: &Context, snapshot: &Snapshot, more: Vec<String>) -> Result<Vec<Found>> {
    let client = http_client(context.credentials.as_ref())
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| Failure::from_error(Kind::Failed, "can't set up an HTTP client", &error))?;
    let known = snapshot.hosts.values().filter_map(|view| Some(view.host.as_ref()?.url.clone()));
    let mut urls: Vec<String> = known.chain(more).map(|url| url.trim_end_matches('/').to_owned()).collect();
    urls.sort();
    urls.dedup();
    let answers = join_all(urls.iter().map(|url| {
        let asked = client.get(format!("{url}/found")).send();
        async move {
            let answer = asked.await.and_then(reqwest::Response::error_for_status);
            match answer {
                Ok(answer) => answer.json::<Found>().await,
                Err(error) => Err(error),
            }
        }
    }));
    let mut found: Vec<Found> = Vec::new();
    for (url, answer) in urls.iter().zip(answers.await) {
        match answer {
            // A restarted host may be known by two addresses.
            Ok(host) if found.iter().any(|other| other.name == host.name) => {}
            Ok(host) => found.push(host),
            Err(error) => say(&format!(
                "no answer from {url}: {}",
                Failure::from_error(Kind::Failed, "asked", &error).causes.join(": ")
            )),
        }
    }
    Ok(found)
}

/// Refuses hosts of another cluster, which would otherwise be given this cluster's work.
fn refuse_others(schema: &Schema, found: &[Found]) -> Result<()> {
    let Some(own) = &schema.cluster else { return Ok(()) };
    let other = found.iter().find_map(|host| {
        let cluster = host.incarnation.as_ref()?.cluster.as_ref()?;
        (cluster != own).then_some((&host.name, cluster))
    });
    match other {
        None => Ok(()),
        Some((host, cluster)) => {
            let what = format!("host {host} is of cluster {cluster}, and this backup is of {own}");
            Err(Failure::new(Kind::Refused, what)
                .hint("restore a backup of that cluster; nothing was changed"))
        }
    }
}
