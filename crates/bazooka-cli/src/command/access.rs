//! `bazooka access`: who takes part in the cluster and who may use each app. It shares its rows with `bazooka
//! whoami`.

use std::collections::BTreeMap;

use serde::Serialize;
use visor::{identity::Identity, keys, names::AppName, snapshot::Snapshot};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::Context,
    failure::{Failure, Kind, Result},
    rm,
    show::{Table, put_json, put_line, say},
};

/// List who may use the cluster and each app, or change that
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
    /// List the cluster's members, and their apps
    List,
    /// Give access to an app, or, without an app, to the cluster
    Grant(Grant),
    /// Take access back
    Revoke(Grant),
}

/// Who, and what.
#[derive(Debug, clap::Args)]
pub struct Grant {
    /// A person, or a daemon such as pm:app1: the common name of the certificate
    pub who: Identity,
    /// The app [default: that of -a; without -a, the cluster itself]
    pub app: Option<AppName>,
    /// Operator rights: all apps, hosts and access control
    #[arg(long, conflicts_with = "app")]
    pub operator: bool,
}

/// Grants, revokes or lists access.
///
/// # Errors
/// A user that may not; unknown names; no bazooka-rm.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context).await,
        Action::Grant(args) => {
            let what = change(context, &args, "grant").await?;
            put_line(&format!("{} has access to {what}", args.who));
            Ok(())
        }
        Action::Revoke(args) => {
            let what = change(context, &args, "revoke").await?;
            put_line(&format!("{} has no access to {what} any more", args.who));
            Ok(())
        }
    }
}

async fn change(context: &Context, args: &Grant, how: &str) -> Result<String> {
    if context.credentials.is_none() {
        let what = "this cluster has no identities: there is nothing to grant";
        return Err(Failure::new(Kind::Usage, what)
            .hint("in a cluster with identities, name yours with --identity or BAZOOKA_IDENTITY"));
    }
    let app = args.app.as_ref().or(context.said()).filter(|_| !args.operator);
    let body = rm::Access { who: &args.who, app, operator: args.operator };
    let done = rm::access(context, how, &body).await?;
    context.note_change();
    if !done.in_force {
        say("warning: the coordinator doesn't enforce this yet; bazooka-rm's log has the reason");
    }
    Ok(match (app, args.operator) {
        (Some(app), _) => format!("app '{app}'"),
        (None, true) => "all that operators do".to_owned(),
        (None, false) => "this cluster".to_owned(),
    })
}

/// The access of one identity.
#[derive(Serialize)]
pub struct Row {
    pub who: Identity,
    pub admitted: bool,
    pub operator: bool,
    pub apps: Vec<AppName>,
}

/// Returns the access of each identity, by name.
pub fn rows(all: &Snapshot) -> Vec<Row> {
    let mut rows: BTreeMap<Identity, Row> = BTreeMap::new();
    let row = |who: &Identity| Row { who: who.clone(), admitted: false, operator: false, apps: Vec::new() };
    for (who, admission) in &all.identities {
        let admitted = Row { admitted: true, operator: admission.operator, ..row(who) };
        rows.insert(who.clone(), admitted);
    }
    for (app, view) in &all.apps {
        for user in view.access.iter().flat_map(|access| access.users.keys()) {
            let who = Identity::User(user.clone());
            rows.entry(who.clone()).or_insert_with(|| row(&who)).apps.push(app.clone());
        }
    }
    rows.into_values().collect()
}

async fn list(context: &Context) -> Result<()> {
    let rows = rows(&context.visor.read(vec![keys::identities(), keys::access()]).await?);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let mut table = Table::new(&["WHO", "TAKES PART", "APPS"]);
    for row in rows {
        let part = match (row.admitted, row.operator) {
            (false, _) => "no",
            (true, false) => "yes",
            (true, true) => "as operator",
        };
        let apps: Vec<&str> = row.apps.iter().map(AppName::as_str).collect();
        table.row([row.who.to_string(), part.to_owned(), apps.join(" ")]);
    }
    table.put();
    Ok(())
}
