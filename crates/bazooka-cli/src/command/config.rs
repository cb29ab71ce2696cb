//! `bazooka config`: an app's config vars, which its instances find in their environment.
//!
//! Each change makes a new immutable env and a release of it. A value is shown by `list` and `get`
//! alone: never in an error, a log or a release's reason.

use std::collections::{BTreeMap, BTreeSet};

use visor::{names::EnvRef, snapshot::AppView, transitions::releases::NewRelease};

use crate::{
    args::{ConfigAction, pair, var_name},
    command::release,
    context::Context,
    failure::{Failure, Kind, Result, nearest},
    show::{Sink, Table, clean, escape, put, put_json, put_line, say},
};

/// etcd takes no larger value than 1.5 MiB; this leaves room, and is more than any process can be given.
const MOST_BYTES: usize = 1024 * 1024;

/// Shows or changes config vars.
///
/// # Errors
/// Names that are not valid; a release that can't run with the new ones.
pub async fn run(context: &Context, action: ConfigAction) -> Result<()> {
    match action {
        ConfigAction::List => list(context).await,
        ConfigAction::Get { name } => get(context, &name).await,
        ConfigAction::Set { pairs, no_wait } => {
            let mut set = BTreeMap::new();
            for said in &pairs {
                let (name, value) = pair(said).map_err(usage)?;
                set.insert(name, value);
            }
            change(context, set, BTreeSet::new(), no_wait).await
        }
        ConfigAction::Unset { names, no_wait } => {
            let names: Result<BTreeSet<String>, String> = names.iter().map(|name| var_name(name)).collect();
            change(context, BTreeMap::new(), names.map_err(usage)?, no_wait).await
        }
    }
}

fn usage(what: String) -> Failure {
    Failure::new(Kind::Usage, what)
}

/// The env in force: head's, or the newest while there is no head.
fn current(view: &AppView) -> (EnvRef, BTreeMap<String, String>) {
    let newest = view.envs.keys().next_back().copied().unwrap_or(EnvRef(0));
    let env = view.head_release().map_or(newest, |(_, head)| head.env);
    (env, view.envs.get(&env).map(|env| env.vars.clone()).unwrap_or_default())
}

async fn list(context: &Context) -> Result<()> {
    let app = context.app().await?;
    let (env, vars) = current(&context.view(&app).await?);
    if context.json {
        put_json(&vars);
        return Ok(());
    }
    if vars.is_empty() {
        say(&format!("app '{app}' has no config vars ({env}); hint: bazooka config set NAME=VALUE"));
    }
    let mut table = Table::new(&["NAME", "VALUE"]);
    for (name, value) in vars {
        table.row([name, escape(&value)]);
    }
    table.put();
    Ok(())
}

async fn get(context: &Context, name: &str) -> Result<()> {
    let name = var_name(name).map_err(usage)?;
    let app = context.app().await?;
    let (_, vars) = current(&context.view(&app).await?);
    let Some(value) = vars.get(&name) else {
        let failure = Failure::new(Kind::Unknown, format!("app '{app}' has no config var {name}"));
        return Err(match nearest(&name, vars.keys().map(String::as_str)) {
            Some(near) => failure.hint(format!("did you mean '{near}'?")),
            None => failure.hint("`bazooka config` lists them"),
        });
    };
    if context.json {
        put_json(value);
    } else if Sink::stdout() == Sink::Terminal {
        put_line(&clean(value));
    } else {
        // A program gets it as it is.
        put(&format!("{value}\n"));
    }
    Ok(())
}

async fn change(
    context: &Context,
    set: BTreeMap<String, String>,
    unset: BTreeSet<String>,
    no_wait: bool,
) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
    let (_, vars) = current(&view);
    let size: usize = vars.iter().chain(&set).map(|(name, value)| name.len() + value.len()).sum();
    if size > MOST_BYTES {
        return Err(usage(format!("an app's config vars may hold {MOST_BYTES} bytes together, not {size}")));
    }
    for name in unset.iter().filter(|name| !vars.contains_key(*name)) {
        say(&format!("app '{app}' has no config var {name}"));
    }
    let (word, names): (_, Vec<&str>) = if unset.is_empty() {
        ("set", set.keys().map(String::as_str).collect())
    } else {
        ("unset", unset.iter().map(String::as_str).collect())
    };
    let new = NewRelease {
        reason: format!("config {word} {}", names.join(" ")),
        by: context.who.clone(),
        token: release::token(),
        set,
        unset,
        ..NewRelease::default()
    };
    release::make(context, &app, new, no_wait).await
}
