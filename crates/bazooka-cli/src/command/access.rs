//! `bazooka access` and `bazooka whoami`: who takes part, whose each app is, and who asks.

use std::collections::BTreeMap;

use serde::Serialize;
use visor::{identity::Identity, keys, names::AppName, snapshot::Snapshot};

use crate::{
    args::{AccessAction, AccessArgs},
    context::Context,
    failure::{Failure, Kind, Result},
    rm,
    show::{Table, put_json, put_line, say},
};

/// Grants, revokes or lists.
///
/// # Errors
/// Who may not; unknown names; no bazooka-rm.
pub async fn run(context: &Context, action: AccessAction) -> Result<()> {
    match action {
        AccessAction::List => list(context).await,
        AccessAction::Grant(args) => {
            let what = change(context, &args, "grant").await?;
            put_line(&format!("{} may use {what}", args.who));
            Ok(())
        }
        AccessAction::Revoke(args) => {
            let what = change(context, &args, "revoke").await?;
            put_line(&format!("{} may no longer use {what}", args.who));
            Ok(())
        }
    }
}

async fn change(context: &Context, args: &AccessArgs, how: &str) -> Result<String> {
    if context.credentials.is_none() {
        let what = "this cluster tells nobody apart: there is nothing to grant";
        return Err(Failure::new(Kind::Usage, what)
            .hint("where it has identities, name yours with --identity or BAZOOKA_IDENTITY"));
    }
    let app = args.app.as_ref().or(context.said()).filter(|_| !args.operator);
    let body = rm::Access { who: &args.who, app, operator: args.operator };
    let done = rm::access(context, how, &body).await?;
    context.note_change();
    if !done.in_force {
        say("warning: the coordinator doesn't go by it yet; bazooka-rm's log says why");
    }
    Ok(match (app, args.operator) {
        (Some(app), _) => format!("app '{app}'"),
        (None, true) => "what operators do".to_owned(),
        (None, false) => "this cluster".to_owned(),
    })
}

#[derive(Serialize)]
struct Row {
    who: Identity,
    admitted: bool,
    operator: bool,
    apps: Vec<AppName>,
}

fn rows(all: &Snapshot) -> Vec<Row> {
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

#[derive(Serialize)]
struct Me {
    who: String,
    /// None: the cluster tells nobody apart.
    identity: Option<std::path::PathBuf>,
    not_after: Option<jiff::Timestamp>,
    admitted: bool,
    operator: bool,
    apps: Vec<AppName>,
}

/// Says who asks, and what they may.
///
/// # Errors
/// The store's.
pub async fn whoami(context: &Context) -> Result<()> {
    let mut me = Me {
        who: context.who.clone(),
        identity: None,
        not_after: None,
        admitted: true,
        operator: true,
        apps: Vec::new(),
    };
    if let Some(credentials) = &context.credentials {
        (me.identity, me.not_after) = (Some(credentials.dir().to_owned()), Some(credentials.not_after()));
        let rows = match context.visor.read(vec![keys::identities(), keys::access()]).await {
            Ok(all) => rows(&all),
            // Who isn't let in can't read that, and may know it all the same.
            Err(visor::visor::VisorError::Store(error)) if error.is_denied() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let own = rows.into_iter().find(|row| row.who == credentials.identity());
        (me.admitted, me.operator) = own.as_ref().map_or((false, false), |row| (row.admitted, row.operator));
        me.apps = own.map(|row| row.apps).unwrap_or_default();
    }
    if context.json {
        put_json(&me);
        return Ok(());
    }
    put_line(&me.who);
    let Some(not_after) = me.not_after else {
        put_line("this cluster tells nobody apart: everyone may do everything");
        return Ok(());
    };
    let apps: Vec<&str> = me.apps.iter().map(AppName::as_str).collect();
    put_line(match (me.admitted, me.operator) {
        (false, _) => "takes no part yet; an operator lets you in: bazooka access grant YOU",
        (true, false) => "takes part",
        (true, true) => "takes part as operator",
    });
    if !apps.is_empty() {
        put_line(&format!("apps: {}", apps.join(" ")));
    }
    put_line(&format!("certificate until {not_after}"));
    Ok(())
}
