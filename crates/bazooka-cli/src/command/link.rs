//! `bazooka link`: the services whose addresses an app's instances get as environment variables.
//!
//! A link is part of the app's env, so a change of links makes a release, like a change of config vars.

use std::{cell::Cell, collections::BTreeSet};

use serde::Serialize;
use visor::{
    keys::{self, Key},
    links::{self, Link},
    names::AppName,
    snapshot::{AppView, Snapshot},
    store::Keys,
    transitions::{envs::NewEnv, releases::NewRelease},
    visor::Refusal,
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::{Context, known_proc},
    env::{Current, current, in_force},
    failure::{Failure, Kind, Result},
    release,
    show::{Table, put_json, say},
};

/// Show or change the app's links: services whose address its instances get; a change is a new release
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show [default: list]
    #[command(subcommand)]
    pub action: Option<Action>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(!matches!(self.action, None | Some(Action::List)), Audited::Words)
    }
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the links, each with the service's port and the variable that instances get
    List,
    /// Give instances a service's address, as BAZOOKA_SERVICE_<APP>_<PROC>=ADDRESS:PORT
    Add {
        /// The services: an app and its proc each
        #[arg(required = true, value_name = "APP:PROC")]
        links: Vec<Link>,
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove links
    Remove {
        /// The services
        #[arg(required = true, value_name = "APP:PROC")]
        links: Vec<Link>,
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Serialize)]
struct Row {
    link: Link,
    /// `None` if the linked service doesn't exist.
    port: Option<u16>,
    variable: String,
}

/// Shows or changes links.
///
/// # Errors
/// A link to a service that doesn't exist, or that conflicts with another; a release that can't run with the new
/// links.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context).await,
        Action::Add { links, no_wait } => {
            change(context, Word::Add, &links.into_iter().collect(), no_wait).await
        }
        Action::Remove { links, no_wait } => {
            change(context, Word::Remove, &links.into_iter().collect(), no_wait).await
        }
    }
}

async fn list(context: &Context) -> Result<()> {
    let app = context.app().await?;
    let (view, snapshot) = context.view_with(&app, Vec::new()).await?;
    let env = in_force(&app, &view, &snapshot)?;
    let none = BTreeSet::new();
    let links = links::of(&view, env).unwrap_or(&none);
    let ports = [keys::schema(), keys::ports()];
    let scopes = links.iter().flat_map(rows_of).chain(ports).collect();
    let linked = if links.is_empty() { Snapshot::default() } else { context.visor.read(scopes).await? };
    let rows: Vec<Row> = links
        .iter()
        .map(|link| {
            let port = links::ports(&linked, [link]).ok().and_then(|ports| ports.get(link).copied());
            Row { link: link.clone(), port, variable: link.variable() }
        })
        .collect();
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    if rows.is_empty() {
        say(&format!("app '{app}' links no service ({env}); hint: bazooka link add APP:PROC"));
    }
    let mut table = Table::new(&["LINK", "PORT", "VARIABLE"]);
    for row in rows {
        let port = row.port.map_or_else(|| "gone".to_owned(), |port| port.to_string());
        table.row([row.link.to_string(), port, row.variable]);
    }
    table.put();
    Ok(())
}

/// Returns the keys of the rows from which a link's service is known.
fn rows_of(link: &Link) -> [Keys; 2] {
    let Link { app, proc } = link;
    [Key::App(app.clone()), Key::Proc(app.clone(), proc.clone())].map(|key| Keys::One(key.to_string()))
}

/// The kind of change of links.
#[derive(Clone, Copy)]
enum Word {
    Add,
    Remove,
}

async fn change(context: &Context, word: Word, links: &BTreeSet<Link>, no_wait: bool) -> Result<()> {
    let app = context.app().await?;
    let verb = match word {
        Word::Add => "add",
        Word::Remove => "remove",
    };
    let names: Vec<String> = links.iter().map(Link::to_string).collect();
    let new = NewRelease {
        reason: format!("link {verb} {}", names.join(" ")),
        by: context.who.clone(),
        token: release::token(),
        ..NewRelease::default()
    };
    let said = Cell::new(false);
    // If another user's env comes first, the change is applied to that env.
    let made = async || {
        let now = current(context, &app).await?;
        let tell = !said.replace(true);
        let config = match word {
            Word::Add => added(context, &app, &now, links, tell).await?,
            Word::Remove => removed(context, &app, &now, links, tell).await?,
        };
        Ok(NewRelease { config, ..new.clone() })
    };
    release::make(context, &app, made, no_wait).await
}

async fn added(
    context: &Context,
    app: &AppName,
    now: &Current,
    links: &BTreeSet<Link>,
    tell: bool,
) -> Result<Option<NewEnv>> {
    for link in links {
        if now.links.contains(link) {
            if tell {
                say(&format!("app '{app}' links {link} already"));
            }
            continue;
        }
        leads_somewhere(context, app, &now.view, link).await?;
    }
    let links = links::with(&now.links, links).map_err(|unfit| {
        Failure::new(Kind::Refused, format!("app '{app}' can't link them: {unfit}"))
            .hint("`bazooka link` lists those that it has; bazooka link remove APP:PROC takes one away")
    })?;
    now.next(context, app, &now.vars, &links, &now.build).await
}

async fn removed(
    context: &Context,
    app: &AppName,
    now: &Current,
    links: &BTreeSet<Link>,
    tell: bool,
) -> Result<Option<NewEnv>> {
    for link in links.iter().filter(|link| tell && !now.links.contains(link)) {
        say(&format!("app '{app}' has no link {link}"));
    }
    let links = now.links.difference(links).cloned().collect();
    now.next(context, app, &now.vars, &links, &now.build).await
}

/// Checks that a link's service exists. It may be one of the app's own procs, which another of its procs calls.
async fn leads_somewhere(context: &Context, app: &AppName, view: &AppView, link: &Link) -> Result<()> {
    if link.app == *app {
        return known_proc(app, view, &link.proc);
    }
    let snapshot = context.visor.read(keys::services_of(&link.app)).await?;
    context.registered(&link.app, &snapshot).await?;
    match links::leads(&snapshot, link) {
        Ok(()) => Ok(()),
        Err(nowhere) => {
            if !snapshot.unreadable.contains_key(&Key::Proc(link.app.clone(), link.proc.clone()).to_string())
            {
                known_proc(&link.app, &snapshot.apps[&link.app], &link.proc)?;
            }
            Err(Refusal::Unlinkable(nowhere).into())
        }
    }
}
