//! `bazooka ps`: the running instances, with their hosts.
//!
//! Costs two round trips, however large the cluster is: one for the app's instances, one for their rows on their
//! hosts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use serde::Serialize;
use visor::{
    keys::{self, Key},
    names::{AppName, HostName, InstanceId, ProcName, ReleaseId, RevId, ZoneName},
    rules::failing::is_down,
    schema::{Instance, State, Status},
    snapshot::Snapshot,
    store::Keys,
};

use crate::{
    command::CommandKind,
    context::Context,
    failure::Result,
    settle,
    show::{Table, ago, cause, put_json, say},
};

/// List running instances
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List the instances of every app
    #[arg(long)]
    pub all: bool,
    /// Show state, host, age, restarts, release and cause too
    #[arg(short, long)]
    pub long: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

/// The known facts of an instance.
#[derive(Clone, Debug, Serialize)]
struct Row {
    id: InstanceId,
    app: AppName,
    proc: ProcName,
    rev: RevId,
    ip: Option<IpAddr>,
    port: Option<u16>,
    /// `None` until its host has reported a status.
    state: Option<State>,
    since: Option<Timestamp>,
    host: HostName,
    release: ReleaseId,
    index: u32,
    placed_at: Timestamp,
    started_at: Option<Timestamp>,
    restarts: u32,
    next_start_at: Option<Timestamp>,
    cause: Option<String>,
    isolation: Option<String>,
    zone: Option<ZoneName>,
}

impl Row {
    fn new(app: &AppName, id: InstanceId, instance: &Instance, status: Option<&Status>) -> Self {
        Row {
            id,
            app: app.clone(),
            proc: instance.proc.clone(),
            rev: instance.rev.clone(),
            ip: status.and_then(|status| status.ip),
            port: status.and_then(|status| status.port),
            state: status.map(|status| status.state),
            since: status.map(|status| status.since),
            host: instance.host.clone(),
            release: instance.release,
            index: instance.index,
            placed_at: instance.placed_at,
            started_at: status.and_then(|status| status.started_at),
            restarts: status.map_or(0, |status| status.restarts),
            next_start_at: status.and_then(|status| status.next_start_at),
            cause: status.and_then(|status| status.cause.clone()),
            isolation: None,
            zone: None,
        }
    }

    /// Adds the isolation and the zone of the instance's host, where known.
    fn on(mut self, snapshot: &Snapshot) -> Row {
        let host = snapshot.hosts.get(&self.host).and_then(|view| view.host.as_ref());
        self.isolation = host.map(|host| host.isolation.clone());
        self.zone = host.map(|host| host.zone.clone());
        self
    }

    fn runs(&self) -> bool {
        self.state == Some(State::Running)
    }

    fn fails(&self) -> bool {
        self.state.is_some_and(is_down)
    }

    fn state_word(&self) -> &'static str {
        self.state.map_or("placed", State::word)
    }
}

/// Lists the instances of one app, or of all apps.
///
/// # Errors
/// Those of the store; no such app.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { all, long } = args;
    let (rows, lacks) = if all { (of_all(context).await?, Vec::new()) } else { of_one(context).await? };
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let now = context.now();
    table(&rows, long, now).put();
    for line in words(&rows, now).iter().chain(&lacks) {
        say(line);
    }
    Ok(())
}

/// Returns an app's instances, and notices about instances without a place and services that can't be reached.
async fn of_one(context: &Context) -> Result<(Vec<Row>, Vec<String>)> {
    let app = context.app().await?;
    let own = Keys::One(Key::App(app.clone()).to_string());
    let scopes = vec![own, keys::instances_of(&app), keys::pending_of(&app), keys::proxies(), keys::hosts()];
    let snapshot = context.visor.read(scopes).await?;
    context.registered(&app, &snapshot).await?;
    let instances = &snapshot.apps[&app].instances;
    let of = instances.iter().map(|(id, instance)| (instance.host.clone(), *id));
    let statuses = context.visor.statuses(of).await?;
    let row = |(id, instance): (&InstanceId, &visor::snapshot::Versioned<Instance>)| {
        Row::new(&app, *id, instance, statuses.get(id).map(|status| &status.value)).on(&snapshot)
    };
    let rows = sorted(instances.iter().map(row).collect());
    let lacks = lacks(&app, &snapshot);
    Ok((rows, lacks))
}

fn lacks(app: &AppName, snapshot: &Snapshot) -> Vec<String> {
    let Some(view) = snapshot.apps.get(app) else { return Vec::new() };
    let no_place = view.pending.iter().map(|(proc, pending)| {
        let short = settle::instances(pending.short);
        format!("{proc} has no place for {short}: {}; hint: bazooka why {proc}", pending.reason)
    });
    let procs: BTreeSet<&ProcName> = view.instances.values().map(|instance| &instance.proc).collect();
    let unserved = procs.into_iter().flat_map(|proc| settle::unserved(app, proc, &snapshot.proxies));
    no_place.chain(unserved.map(|words| format!("warning: {words}"))).collect()
}

async fn of_all(context: &Context) -> Result<Vec<Row>> {
    let snapshot =
        context.visor.read(vec![keys::all_assigned(), keys::all_statuses(), keys::hosts()]).await?;
    let mut rows = Vec::new();
    for (host, view) in &snapshot.hosts {
        for (id, assigned) in &view.assigned {
            let instance = Instance {
                host: host.clone(),
                proc: assigned.proc.clone(),
                release: assigned.release,
                rev: assigned.rev.clone(),
                index: assigned.index,
                placed_at: Timestamp::UNIX_EPOCH,
                reason: String::new(),
                extra: Default::default(),
            };
            let status = view.status.get(id).map(|status| &status.value);
            rows.push(Row::new(&assigned.app, *id, &instance, status).on(&snapshot));
        }
    }
    Ok(sorted(rows))
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| (&a.app, &a.proc, a.id).cmp(&(&b.app, &b.proc, b.id)));
    rows
}

/// Returns the table. If some instances don't run, a last column shows the states.
fn table(rows: &[Row], long: bool, now: Timestamp) -> Table {
    let mut head = vec!["ID", "APP", "PROC", "REV", "IP", "PORT"];
    let with_state = !long && rows.iter().any(|row| !row.runs());
    if long {
        head.extend(["STATE", "HOST", "ZONE", "UP", "RESTARTS", "RELEASE", "ISOLATION", "CAUSE"]);
    } else if with_state {
        head.push("STATE");
    }
    let mut table = Table::new(&head);
    for row in rows {
        let mut cells = vec![
            row.id.to_string(),
            row.app.to_string(),
            row.proc.to_string(),
            row.rev.short().to_owned(),
            row.ip.map(|ip| ip.to_string()).unwrap_or_default(),
            row.port.map(|port| port.to_string()).unwrap_or_default(),
        ];
        if long {
            let up = row.started_at.filter(|_| row.runs()).map(|started| ago(started, now));
            cells.extend([
                row.state_word().to_owned(),
                row.host.to_string(),
                row.zone.as_ref().map(ZoneName::to_string).unwrap_or_default(),
                up.unwrap_or_default(),
                row.restarts.to_string(),
                row.release.to_string(),
                row.isolation.clone().unwrap_or_default(),
                row.cause.as_ref().map(|said| cause(said, row.next_start_at, now)).unwrap_or_default(),
            ]);
        } else if with_state {
            cells.push(row.state_word().to_owned());
        }
        table.row(cells);
    }
    table
}

/// Returns a warning for each proc that has failing instances.
fn words(rows: &[Row], now: Timestamp) -> Vec<String> {
    let mut failing: BTreeMap<(&AppName, &ProcName), Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.fails()) {
        failing.entry((&row.app, &row.proc)).or_default().push(row);
    }
    let line = |((_, proc), rows): ((&AppName, &ProcName), Vec<&Row>)| {
        let first = rows[0];
        let said = first.cause.as_deref().unwrap_or(first.state_word());
        let cause = cause(said, first.next_start_at, now);
        let others = if rows.len() > 1 { format!(" (and {} more)", rows.len() - 1) } else { String::new() };
        format!("{proc} fails: {cause}{others}; hint: bazooka why {}", first.id)
    };
    failing.into_iter().map(line).collect()
}

/// Returns the output as aligned on a terminal.
#[cfg(test)]
fn seen(rows: &[Row], long: bool, now: Timestamp) -> String {
    table(rows, long, now).render(crate::show::Sink::Terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, proc: &str, state: Option<State>) -> Row {
        let instance = Instance {
            host: "host1".parse().expect("valid"),
            proc: proc.parse().expect("valid"),
            release: ReleaseId(3),
            rev: "16f7cbf0123456789012345678901234567890ab".parse().expect("valid"),
            index: 0,
            placed_at: Timestamp::UNIX_EPOCH,
            reason: "scale".into(),
            extra: Default::default(),
        };
        let status = state.map(|state| {
            let mut status = Status::new(state, Timestamp::UNIX_EPOCH);
            if state == State::Running {
                status.ip = Some("1.2.3.4".parse().expect("valid"));
                status.port = Some(21880);
                status.started_at = Some(Timestamp::UNIX_EPOCH);
            }
            if state == State::Backoff {
                status.cause = Some("exited with status 1, 4 times".into());
                status.next_start_at = Timestamp::from_second(200).ok();
                status.restarts = 3;
            }
            status
        });
        Row::new(&"goto-rocket".parse().expect("valid"), InstanceId(id), &instance, status.as_ref())
    }

    fn now() -> Timestamp {
        Timestamp::from_second(180).expect("a time")
    }

    #[test]
    fn when_all_run_the_listing_is_the_originals() {
        let rows = [row(4617216, "web", Some(State::Running))];
        assert_eq!(
            seen(&rows, false, now()),
            "ID       APP          PROC  REV      IP       PORT\n\
             4617216  goto-rocket  web   16f7cbf  1.2.3.4  21880\n"
        );
        assert_eq!(words(&rows, now()), Vec::<String>::new());
    }

    #[test]
    fn what_fails_is_seen_without_asking() {
        let rows =
            [row(1, "web", Some(State::Running)), row(2, "fail", Some(State::Backoff)), row(3, "job", None)];
        assert_eq!(
            seen(&rows, false, now()),
            "ID  APP          PROC  REV      IP       PORT   STATE\n\
             1   goto-rocket  web   16f7cbf  1.2.3.4  21880  running\n\
             2   goto-rocket  fail  16f7cbf  -        -      backoff\n\
             3   goto-rocket  job   16f7cbf  -        -      placed\n"
        );
        assert_eq!(
            words(&rows, now()),
            ["fail fails: exited with status 1, 4 times; next start in 20s; hint: bazooka why 2"]
        );
    }

    #[test]
    fn the_long_form_tells_all() {
        let rows = [row(1, "web", Some(State::Running)), row(2, "fail", Some(State::Backoff))];
        let text = seen(&rows, true, now());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").filter(|w| !w.is_empty()).map(str::trim).collect())
            .collect();
        assert_eq!(
            lines[0][6..],
            ["STATE", "HOST", "ZONE", "UP", "RESTARTS", "RELEASE", "ISOLATION", "CAUSE"]
        );
        assert_eq!(lines[1][6..], ["running", "host1", "-", "3m", "0", "v3", "-", "-"]);
        assert_eq!(
            lines[2][6..],
            [
                "backoff",
                "host1",
                "-",
                "-",
                "3",
                "v3",
                "-",
                "exited with status 1, 4 times; next start in 20s"
            ]
        );
    }
}
