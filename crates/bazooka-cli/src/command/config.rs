//! `bazooka config`: an app's config vars, which its instances get as environment variables.
//!
//! Each change makes a new immutable env and a release of it. This command seals the env before it sends it anywhere
//! ([`visor::seal`]); a bazooka-rm opens the existing one. Only `list` and `get` show values: an error, a log or a
//! release's reason never does.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use tokio::io::AsyncReadExt;
use visor::{
    seal::{MOST_BYTES, Vars},
    transitions::releases::NewRelease,
    vars::{self, InvalidVar, VarName},
};
use zeroize::Zeroizing;

use crate::{
    command::{Audited, CommandKind},
    context::Context,
    env::{Current, current},
    failure::{Failure, Kind, Result, nearest},
    release,
    show::{Sink, Table, clean, escape, put, put_json, put_line, say},
};

/// Show or change the app's config vars; a change is a new release
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show [default: list]
    #[command(subcommand)]
    pub action: Option<Action>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        match &self.action {
            None | Some(Action::List | Action::Get { .. }) => CommandKind::Shows,
            // The names only, never a value.
            Some(Action::Set { pairs, .. }) => {
                let names: Vec<&str> =
                    pairs.iter().map(|pair| pair.split('=').next().unwrap_or_default()).collect();
                CommandKind::Changes(Audited::Instead(format!("config set {}", names.join(" "))))
            }
            Some(Action::Unset { .. }) => CommandKind::Changes(Audited::Words),
        }
    }
}

/// What to do with config vars. Names and values are checked later: a value must not be repeated in an error, and clap
/// would.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List names and values
    List,
    /// Print one value
    Get {
        /// The name
        name: String,
    },
    /// Set config vars
    Set {
        /// NAME=VALUE pairs; other users of this machine can see them while the command runs
        #[arg(required_unless_present = "stdin", value_name = "NAME=VALUE")]
        pairs: Vec<String>,
        /// Read the pairs from standard input, which no other user sees: lines of NAME=VALUE, or JSON as `config --json` prints it
        #[arg(long, conflicts_with = "pairs")]
        stdin: bool,
        /// Show them to builds, too, from the next commit on; they stay so until they are removed
        #[arg(long)]
        build: bool,
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove config vars
    Unset {
        /// The names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
}

/// Shows or changes config vars.
///
/// # Errors
/// Invalid names; a release that can't run with the new config vars.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    match args.action.unwrap_or(Action::List) {
        Action::List => list(context).await,
        Action::Get { name } => get(context, &name).await,
        Action::Set { pairs, stdin, build, no_wait } => {
            let set = if stdin { from_stdin().await? } else { vars_of(pairs.iter().map(String::as_str))? };
            change(context, &Edit { set, build, ..Edit::default() }, no_wait).await
        }
        Action::Unset { names, no_wait } => {
            let unset: Result<BTreeSet<String>> = names.iter().map(|name| var_name(name)).collect();
            change(context, &Edit { unset: unset?, ..Edit::default() }, no_wait).await
        }
    }
}

fn usage(what: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Usage, what.to_string())
}

fn var_name(name: &str) -> Result<String> {
    let name: VarName = name.parse().map_err(usage)?;
    Ok(name.into())
}

/// Parses config vars from NAME=VALUE arguments.
fn vars_of<'a>(pairs: impl Iterator<Item = &'a str>) -> Result<Vars> {
    let vars: Result<BTreeMap<String, String>, InvalidVar> =
        pairs.map(|said| vars::pair(said).map(|(name, value)| (name.into(), value.to_owned()))).collect();
    vars.map(Vars::from).map_err(usage)
}

async fn list(context: &Context) -> Result<()> {
    let app = context.app().await?;
    context.theirs(&app).await?;
    let Current { env, vars, build, .. } = current(context, &app).await?;
    let vars = vars.as_map();
    if context.json {
        put_json(vars);
        return Ok(());
    }
    if vars.is_empty() {
        say(&format!("app '{app}' has no config vars ({env}); hint: bazooka config set NAME=VALUE"));
    }
    let mut table = Table::new(&["NAME", "VALUE", "BUILD"][..if build.is_empty() { 2 } else { 3 }]);
    for (name, value) in vars {
        let mut cells = vec![name.clone(), escape(value)];
        if !build.is_empty() {
            let is_shown = build.iter().any(|shown| shown.as_str() == name);
            cells.push(if is_shown { "yes".to_owned() } else { String::new() });
        }
        table.row(cells);
    }
    table.put();
    Ok(())
}

async fn get(context: &Context, name: &str) -> Result<()> {
    let name = var_name(name)?;
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
        // A program gets the value unescaped.
        put(&format!("{value}\n"));
    }
    Ok(())
}

/// A change of config vars.
#[derive(Debug, Default)]
struct Edit {
    set: Vars,
    /// True if builds see those that are set.
    build: bool,
    unset: BTreeSet<String>,
}

async fn change(context: &Context, edit: &Edit, no_wait: bool) -> Result<()> {
    let app = context.app().await?;
    let new = release_of(context, edit);
    let said = Cell::new(false);
    // If another user's env comes first, the change is applied to that env.
    let made = async || {
        let now = current(context, &app).await?;
        if !said.replace(true) {
            for name in edit.unset.iter().filter(|name| !now.vars.as_map().contains_key(*name)) {
                say(&format!("app '{app}' has no config var {name}"));
            }
        }
        let (vars, build) = changed((&now.vars, &now.build), edit);
        Ok(NewRelease { config: now.next(context, &app, &vars, &now.links, &build).await?, ..new.clone() })
    };
    release::make(context, &app, made, no_wait).await?;
    if edit.build {
        say("builds see this from the next commit on; what is built stays as it is");
    }
    Ok(())
}

fn release_of(context: &Context, Edit { set, build, unset }: &Edit) -> NewRelease {
    let (word, names): (_, Vec<&str>) = match (unset.is_empty(), build) {
        (true, true) => ("set --build", set.as_map().keys().map(String::as_str).collect()),
        (true, false) => ("set", set.as_map().keys().map(String::as_str).collect()),
        (false, _) => ("unset", unset.iter().map(String::as_str).collect()),
    };
    NewRelease {
        reason: format!("config {word} {}", names.join(" ")),
        by: context.who.clone(),
        token: release::token(),
        ..NewRelease::default()
    }
}

/// Returns the config vars after a change, and the names of those that builds see.
fn changed((vars, shown): (&Vars, &BTreeSet<VarName>), edit: &Edit) -> (Vars, BTreeSet<VarName>) {
    let (mut vars, mut shown) = (vars.clone(), shown.clone());
    let map = vars.as_map_mut();
    map.retain(|name, _| !edit.unset.contains(name));
    map.extend(edit.set.as_map().clone());
    shown.retain(|name| !edit.unset.contains(name.as_str()));
    if edit.build {
        shown.extend(edit.set.as_map().keys().filter_map(|name| name.parse().ok()));
    }
    (vars, shown)
}

/// Reads config vars from standard input: JSON as `config --json` prints it, or lines of NAME=VALUE.
async fn from_stdin() -> Result<Vars> {
    let mut text = Zeroizing::new(String::new());
    // The limit on config vars, with room for the longest escapes.
    let mut input = tokio::io::stdin().take(8 * MOST_BYTES as u64);
    let read = input.read_to_string(&mut text).await;
    read.map_err(|error| usage(format!("standard input can't be read: {error}")))?;
    pairs_in(&text)
}

fn pairs_in(text: &str) -> Result<Vars> {
    if text.trim_start().starts_with('{') {
        // The parser's own message could contain a value.
        let vars: Vars = serde_json::from_str(text)
            .map_err(|_| usage("standard input isn't JSON of the kind that `config --json` prints"))?;
        for (name, value) in vars.as_map() {
            vars::check(name, value).map_err(usage)?;
        }
        return Ok(vars);
    }
    vars_of(text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')))
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
            let said = vars(bad).expect_err(bad).to_string();
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
