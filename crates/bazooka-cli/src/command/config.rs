//! `bazooka config`: an app's config vars, which its instances find in their environment.
//!
//! Each change makes a new immutable env and a release of it. It is sealed here, before it goes anywhere
//! ([`visor::seal`]); what is there already is opened by a bazooka-rm. A value is shown by `list` and `get` alone:
//! never in an error, a log or a release's reason.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use tokio::io::AsyncReadExt;
use visor::{
    seal::{MOST_BYTES, Vars},
    transitions::releases::NewRelease,
};
use zeroize::Zeroizing;

use crate::{
    args::{ConfigAction, checked, pair, var_name},
    context::Context,
    env::{Current, current},
    failure::{Failure, Kind, Result, nearest},
    release,
    show::{Sink, Table, clean, escape, put, put_json, put_line, say},
};

/// Shows or changes config vars.
///
/// # Errors
/// Names that are not valid; a release that can't run with the new ones.
pub async fn run(context: &Context, action: ConfigAction) -> Result<()> {
    match action {
        ConfigAction::List => list(context).await,
        ConfigAction::Get { name } => get(context, &name).await,
        ConfigAction::Set { pairs, stdin, no_wait } => {
            let set = if stdin {
                from_stdin().await?
            } else {
                let pairs: Result<BTreeMap<_, _>, String> = pairs.iter().map(|said| pair(said)).collect();
                pairs.map(Vars::from).map_err(usage)?
            };
            change(context, set, BTreeSet::new(), no_wait).await
        }
        ConfigAction::Unset { names, no_wait } => {
            let names: Result<BTreeSet<String>, String> = names.iter().map(|name| var_name(name)).collect();
            change(context, Vars::default(), names.map_err(usage)?, no_wait).await
        }
    }
}

fn usage(what: String) -> Failure {
    Failure::new(Kind::Usage, what)
}

async fn list(context: &Context) -> Result<()> {
    let app = context.app().await?;
    context.theirs(&app).await?;
    let Current { env, vars, .. } = current(context, &app).await?;
    let vars = vars.as_map();
    if context.json {
        put_json(vars);
        return Ok(());
    }
    if vars.is_empty() {
        say(&format!("app '{app}' has no config vars ({env}); hint: bazooka config set NAME=VALUE"));
    }
    let mut table = Table::new(&["NAME", "VALUE"]);
    for (name, value) in vars {
        table.row([name.clone(), escape(value)]);
    }
    table.put();
    Ok(())
}

async fn get(context: &Context, name: &str) -> Result<()> {
    let name = var_name(name).map_err(usage)?;
    let app = context.app().await?;
    context.theirs(&app).await?;
    let Current { vars, .. } = current(context, &app).await?;
    let vars = vars.as_map();
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

async fn change(context: &Context, set: Vars, unset: BTreeSet<String>, no_wait: bool) -> Result<()> {
    let app = context.app().await?;
    let new = release_of(context, &set, &unset);
    let said = Cell::new(false);
    // Each time that another's env comes first, it is made anew from that.
    let made = async || {
        let now = current(context, &app).await?;
        if !said.replace(true) {
            for name in unset.iter().filter(|name| !now.vars.as_map().contains_key(*name)) {
                say(&format!("app '{app}' has no config var {name}"));
            }
        }
        let vars = changed(&now.vars, &set, &unset);
        Ok(NewRelease { config: now.next(context, &app, &vars, &now.links)?, ..new.clone() })
    };
    release::make(context, &app, made, no_wait).await
}

fn release_of(context: &Context, set: &Vars, unset: &BTreeSet<String>) -> NewRelease {
    let (word, names): (_, Vec<&str>) = if unset.is_empty() {
        ("set", set.as_map().keys().map(String::as_str).collect())
    } else {
        ("unset", unset.iter().map(String::as_str).collect())
    };
    NewRelease {
        reason: format!("config {word} {}", names.join(" ")),
        by: context.who.clone(),
        token: release::token(),
        ..NewRelease::default()
    }
}

/// The vars that come of a change.
fn changed(before: &Vars, set: &Vars, unset: &BTreeSet<String>) -> Vars {
    let mut vars = before.clone();
    let map = vars.as_map_mut();
    map.retain(|name, _| !unset.contains(name));
    map.extend(set.as_map().clone());
    vars
}

/// Config vars from standard input: JSON as `config --json` prints it, or lines of NAME=VALUE.
async fn from_stdin() -> Result<Vars> {
    let mut text = Zeroizing::new(String::new());
    // More than that can't be set, with all the quotes that it may be written with.
    let mut input = tokio::io::stdin().take(8 * MOST_BYTES as u64);
    let read = input.read_to_string(&mut text).await;
    read.map_err(|error| usage(format!("standard input can't be read: {error}")))?;
    pairs_in(&text).map_err(usage)
}

fn pairs_in(text: &str) -> std::result::Result<Vars, String> {
    if text.trim_start().starts_with('{') {
        // The library's own words could have a value in them.
        let vars: Vars = serde_json::from_str(text)
            .map_err(|_| "standard input isn't JSON of the kind that `config --json` prints".to_owned())?;
        for (name, value) in vars.as_map() {
            checked(name, value)?;
        }
        return Ok(vars);
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(pair).collect::<std::result::Result<BTreeMap<_, _>, _>>().map(Vars::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_by_standard_input_is_lines_or_json() {
        let vars = |text| pairs_in(text).map(|vars| vars.as_map().clone());
        let wanted =
            BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), " x=y #z".to_owned())]);
        assert_eq!(vars("A=1\n\n# no\nB= x=y #z\n"), Ok(wanted.clone()));
        assert_eq!(vars(r#" {"A": "1", "B": " x=y #z"}"#), Ok(wanted));
        for bad in
            ["secret", "A=1\nsecret", r#"{"A": "secret"#, r#"{"A": ["secret"]}"#, r#"{"PORT": "secret"}"#]
        {
            let said = vars(bad).expect_err(bad);
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
