//! `bazooka recover`: enters the instances that hosts still run into a restored coordinator.
//!
//! `visor::recover` has the rules. This command asks the hosts, carries out the plan and prints what is newer than
//! the backup. It ends leases and raises counters, so the user must confirm that no other program reaches the
//! coordinator.

use std::{collections::BTreeMap, time::Duration};

use bazooka_daemon::{http_client, shown_by};
use futures::future::join_all;
use visor::{
    identity::{Identity, Kind as IdentityKind},
    keys,
    names::HostName,
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
    let snapshot = context.visor.read(keys::everything_and_private()).await?;
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
        .tls_info(true)
        .build()
        .map_err(|error| Failure::from_error(Kind::Failed, "can't set up an HTTP client", &error))?;
    let known = snapshot.hosts.values().filter_map(|view| Some(view.host.as_ref()?.url.clone()));
    let mut urls: Vec<String> = known.chain(more).map(|url| url.trim_end_matches('/').to_owned()).collect();
    urls.sort();
    urls.dedup();
    let answers = join_all(urls.iter().map(|url| {
        let asked = client.get(format!("{url}/found")).send();
        async move {
            let answer = asked.await.and_then(reqwest::Response::error_for_status)?;
            let shown = shown_by(&answer);
            Ok::<_, reqwest::Error>((shown, answer.json::<Found>().await?))
        }
    }));
    let mut found: Vec<(String, Found)> = Vec::new();
    for (url, answer) in urls.iter().zip(answers.await) {
        match answer {
            Ok((shown, host)) => match doubt(shown.as_ref(), context.credentials.is_some(), &host.name) {
                None => found.push((url.clone(), host)),
                Some(doubt) => {
                    say(&format!("{url} says that it is {}, and {doubt}: not believed", host.name))
                }
            },
            Err(error) => say(&format!(
                "no answer from {url}: {}",
                Failure::from_error(Kind::Failed, "asked", &error).causes.join(": ")
            )),
        }
    }
    let (found, rivals) = without_rivals(found);
    rivals.iter().for_each(|words| say(words));
    Ok(found)
}

/// Returns why a host isn't the one that its answer says: its certificate doesn't say so. Any part of a cluster with
/// identities could answer in another host's name otherwise.
fn doubt(shown: Option<&Identity>, has_identities: bool, said: &HostName) -> Option<String> {
    match shown {
        Some(Identity::Daemon(IdentityKind::Pm, name)) if name == said => None,
        Some(other) => Some(format!("its certificate is that of {other}")),
        None if has_identities => Some("it shows no certificate that names a host".to_owned()),
        None => None,
    }
}

/// Returns the hosts, each once, and what to tell about those of which there are two. A host that moved may be known by two
/// addresses; of two that run different instances under one name, neither is believed.
fn without_rivals(found: Vec<(String, Found)>) -> (Vec<Found>, Vec<String>) {
    let mut by_name: BTreeMap<HostName, Vec<(String, Found)>> = BTreeMap::new();
    for (url, host) in found {
        by_name.entry(host.name.clone()).or_default().push((url, host));
    }
    let (mut hosts, mut told) = (Vec::new(), Vec::new());
    for (name, answers) in by_name {
        let runs = |host: &Found| -> Vec<_> {
            host.instances.iter().map(|(id, one)| (*id, one.assignment.clone())).collect()
        };
        let is_one = answers.windows(2).all(|pair| runs(&pair[0].1) == runs(&pair[1].1));
        if is_one {
            hosts.extend(answers.into_iter().next().map(|(_, host)| host));
        } else {
            let urls: Vec<String> = answers.into_iter().map(|(url, _)| url).collect();
            told.push(format!(
                "{} all say that they are {name}, and run different instances: none is believed; end all but one, and \
                 then: bazooka recover --late --host URL",
                urls.join(" and ")
            ));
        }
    }
    (hosts, told)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn host(name: &str, instances: &[u64]) -> Found {
        let row = serde_json::json!({"address": "127.0.0.2", "url": "u", "zone": "z", "version": "0",
            "capacity": {"memory_bytes": 1, "instances": 9}, "isolation": "none", "boot_id": "b",
            "since": "2026-01-01T00:00:00Z", "token": name});
        let one = |id: &u64| {
            let assignment = serde_json::json!({"desired": "run", "app": "a", "proc": "web", "release": "v1",
                "rev": "0".repeat(40), "env": "e0", "slug": {"sha256": "0".repeat(64), "size_bytes": 1},
                "command": "run", "index": id});
            let status = serde_json::json!({"state": "running", "since": "2026-01-01T00:00:00Z"});
            (id.to_string(), serde_json::json!({"assignment": assignment, "status": status}))
        };
        let instances: BTreeMap<String, serde_json::Value> = instances.iter().map(one).collect();
        let found = serde_json::json!({"name": name, "host": row, "seen": 1, "instances": instances});
        serde_json::from_value(found).expect("it is an answer")
    }

    #[test]
    fn a_host_is_who_its_certificate_says() {
        let name: HostName = "app1".parse().expect("valid");
        let identity = |text: &str| text.parse::<Identity>().expect("valid");
        assert_eq!(doubt(Some(&identity("pm:app1")), true, &name), None);
        assert_eq!(doubt(None, false, &name), None, "without identities there is only its word");
        for other in ["pm:app2", "rm:app1", "app1", "proxy:app1"] {
            let doubt = doubt(Some(&identity(other)), true, &name).expect("it isn't");
            assert!(doubt.contains(other), "{doubt}");
        }
        assert!(doubt(None, true, &name).is_some());
    }

    #[test]
    fn of_two_that_say_one_name_and_differ_neither_is_believed() {
        let at = |url: &str, host| (url.to_owned(), host);
        let answers = [at("a", host("h1", &[1])), at("b", host("h2", &[2])), at("c", host("h1", &[1]))];
        let (hosts, told) = without_rivals(answers.into());
        assert_eq!(hosts, [host("h1", &[1]), host("h2", &[2])], "one host at two addresses");
        assert!(told.is_empty(), "{told:?}");
        let answers = [at("a", host("h1", &[1])), at("b", host("h2", &[2])), at("c", host("h1", &[1, 3]))];
        let (hosts, told) = without_rivals(answers.into());
        assert_eq!(hosts, [host("h2", &[2])]);
        assert!(told.len() == 1 && told[0].starts_with("a and c all say that they are h1"), "{told:?}");
    }
}
