//! `bazooka check`: checks that the coordinator's rows are consistent; with `--repair`, repairs what can be repaired.
//!
//! The command exits with 1 while findings remain, so that a timer can react. `visor::check` has the rules about rows;
//! `peers` tries whether etcd takes the caller for one of its members, `space` asks these how much room they have left.

mod peers;
mod space;

use std::time::Duration;

use serde::Serialize;
use visor::{
    check::{Finding, Stock, findings, lasting},
    store::Revision,
    visor::Committed,
};

use self::{peers::PeerPorts, space::MemberSpace};
use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::{Failure, Kind, Result},
    show::{Table, put_json, put_line, say},
};

/// Check that the coordinator's rows are consistent
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repair what can be repaired without ending an instance or losing data
    #[arg(long)]
    pub repair: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(self.repair, Audited::WordsOfNoApp)
    }
}

/// The time after which a finding that a converger may clear up is checked again; the converger is long done by then.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Answer {
    revision: Revision,
    findings: Vec<Finding>,
    /// Keys that this version doesn't know. They aren't findings, because a newer version may use them.
    unknown_keys: Vec<String>,
    /// The ports at which etcd's members reach each other.
    peer_ports: PeerPorts,
    /// The room that etcd's members have left.
    space: Vec<MemberSpace>,
}

/// Checks, and repairs with `--repair`.
///
/// # Errors
/// Remaining findings; the store's.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { repair } = args;
    let (rows, peer_ports, space) = tokio::join!(look(context), peers::tried(context), space::asked(context));
    let (mut stock, mut findings) = rows?;
    if repair {
        mend(context, &findings).await?;
        (stock, findings) = look(context).await?;
    }
    findings.extend(peer_ports.findings());
    findings.extend(space::findings(&space));
    let (revision, unknown_keys) = (stock.snapshot.revision, stock.unknown);
    let answer = Answer { revision, findings, unknown_keys, peer_ports, space };
    let left = answer.findings.len();
    let mendable = answer.findings.iter().any(|finding| finding.mendable);
    if context.json {
        put_json(&answer);
    } else {
        show(&answer, repair);
    }
    if left == 0 {
        return Ok(());
    }
    let things = if left == 1 { "thing isn't" } else { "things aren't" };
    let failure = Failure::new(Kind::Failed, format!("{left} {things} as it should be"));
    Err(match mendable && !repair {
        true => failure.hint("`bazooka check --repair` mends what it can; the rest says what to do"),
        false => failure.hint("each line says what to do"),
    })
}

async fn look(context: &Context) -> Result<(Stock, Vec<Finding>)> {
    let stock = context.visor.stock().await?;
    let found = findings(&stock.snapshot);
    Ok(match found.iter().any(|finding| finding.passing) {
        false => (stock, found),
        true => {
            tokio::time::sleep(LOOK_AGAIN).await;
            let again = context.visor.stock().await?;
            let left = lasting(&found, findings(&again.snapshot));
            (again, left)
        }
    })
}

/// Repairs the findings that can be repaired, each in a transaction, and prints the result of each.
async fn mend(context: &Context, findings: &[Finding]) -> Result<()> {
    for finding in findings {
        let Some(change) = &finding.mend else { continue };
        context.note_change();
        match context.visor.commit(change.clone()).await? {
            Committed::Done(_) => put_line(&format!("{}: {}: done", finding.key, finding.remedy)),
            Committed::Conflict => {
                put_line(&format!("{}: it was changed meanwhile: nothing was done", finding.key));
            }
        }
    }
    Ok(())
}

fn show(answer: &Answer, repaired: bool) {
    if !answer.findings.is_empty() {
        let mut table = Table::new(&["KEY", "RULE", "WHAT", "REMEDY", "BY"]);
        for finding in &answer.findings {
            let by = if finding.mendable { "--repair" } else { "a person" };
            let cells = [&finding.key, finding.rule, &finding.what, &finding.remedy, by];
            table.row(cells.map(str::to_owned));
        }
        table.put();
    } else if repaired {
        say("all is as it should be now");
    } else {
        say(&format!("all is as it should be, at revision {}", answer.revision));
    }
    for member in answer.space.iter().filter(|member| member.space.is_none()) {
        say(&format!("how much room etcd has left at {} isn't known: it doesn't show it there", member.url));
    }
    answer.peer_ports.untried().iter().for_each(|words| say(words));
    if !answer.unknown_keys.is_empty() {
        let some: Vec<&str> = answer.unknown_keys.iter().take(5).map(String::as_str).collect();
        say(&format!(
            "{} keys are not of this version ({}): a newer one's, or by another hand",
            answer.unknown_keys.len(),
            some.join(", ")
        ));
    }
}
