//! `bazooka`: deploys apps on the machines of a cluster, and shows what runs.
//!
//! Owns the first screen: parse, connect, run one command, and turn its end into an exit code. Each
//! command has a file of its own below `command`; `dev` is the local cluster.

mod args;
mod command;
mod context;
mod env;
mod failure;
mod release;
mod rm;
mod settings;
mod settle;
mod show;
mod watch;

use std::{io::Write, process::ExitCode};

use bazooka_daemon::{Cluster, CoordinatorArgs, documents, in_words};
use clap::{CommandFactory, FromArgMatches, parser::ValueSource};
use visor::{
    identity::Credentials,
    names::AppName,
    schema::{AuditEntry, Extra},
    visor::Visor,
};

use args::{AccessAction, Cli, Command, ConfigAction, EXIT_CODES, KeysAction, LinkAction};
use context::Context;
use failure::{Failure, Kind, Result};

fn main() -> ExitCode {
    let mut command = Cli::command();
    for arg in ["coordinator", "prefix"] {
        command = command.mut_arg(arg, |arg| arg.global(true).help_heading("Coordinator"));
    }
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == documents::WORD) {
        return ExitCode::from(documents::run(command, &words[1..]));
    }
    let (cli, matches) = match command.try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli, matches))
    }) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    let source = |name: &str| matches.value_source(name);
    let said = |name: &str| source(name).is_some_and(|source| source != ValueSource::DefaultValue);
    let flag =
        ["coordinator", "prefix"].into_iter().find(|name| source(name) == Some(ValueSource::CommandLine));
    let result = run(cli, said("coordinator"), said("prefix"), flag);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Its parts are clean already, and newlines part them.
            if !failure.is_silent() {
                // One write, so that nobody else's words come in between. Nobody is left to be told of a
                // closed standard error.
                let _ = std::io::stderr().write_all(format!("{failure}\n").as_bytes());
            }
            ExitCode::from(failure.kind as u8)
        }
    }
}

/// Prints help, or what is wrong with the command line: it may repeat what was said, so it is cleaned.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let text = error.render().to_string();
        for line in text.trim_end().lines() {
            show::say(line);
        }
        return ExitCode::from(Kind::Usage as u8);
    }
    let text = error.render();
    if show::Sink::stdout().has_colours() {
        show::put(&text.ansi().to_string());
    } else {
        show::put(&text.to_string());
    }
    ExitCode::SUCCESS
}

fn run(cli: Cli, coordinator_said: bool, prefix_said: bool, flag: Option<&str>) -> Result<()> {
    if cli.global.json && !cli.command.prints_json() {
        return Err(Failure::new(Kind::Usage, "this prints no JSON: --json goes with what lists or shows")
            .hint("make the change without it, then ask: bazooka ps --json, bazooka releases --json"));
    }
    // What needs no coordinator.
    match cli.command {
        Command::Version => return command::version::run(cli.global.json),
        Command::Completions { shell } => return command::completions::run(shell),
        Command::ExitCodes => {
            show::put_line(EXIT_CODES);
            return Ok(());
        }
        Command::Child { of, command } => return command::child::become_program(of, &command),
        Command::Dev(args) => {
            if let Some(flag) = flag {
                let what = format!("--{flag} is not for dev: its cluster has a coordinator of its own");
                return Err(
                    Failure::new(Kind::Usage, what).hint("--coordinator-port says where that listens")
                );
            }
            let runtime = runtime()?;
            return runtime.block_on(command::dev::run(&args));
        }
        _ => {}
    }
    let mut coordinator = cli.global.coordinator;
    {
        let settings = settings::read(&settings::files(|name| std::env::var_os(name).map(Into::into)))?;
        if let Some(endpoints) = settings.coordinator.filter(|_| !coordinator_said) {
            coordinator.coordinator = endpoints;
        }
        if let Some(prefix) = settings.prefix.filter(|_| !prefix_said) {
            coordinator.prefix = prefix;
        }
        // Said with an endpoint that takes none, an identity of the settings is not meant.
        let takes_one = coordinator.coordinator.iter().any(|url| url.starts_with("https://"));
        if coordinator.identity.identity.is_none() && takes_one {
            coordinator.identity.identity = settings.identity;
        }
    }
    if let Command::GitCredential { operation } = &cli.command {
        let credentials =
            coordinator.identity.open().map_err(|error| Failure::new(Kind::Usage, in_words(&error)))?;
        return command::git_credential::run(credentials.as_ref(), operation);
    }
    let runtime = runtime()?;
    let ended =
        runtime.block_on(with_coordinator(cli.command, &coordinator, cli.global.app, cli.global.json));
    // A question that nobody has answered must not hold up the end.
    runtime.shutdown_background();
    ended
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::from_error(Kind::Failed, "the runtime can't be started", &error))
}

/// The cluster's state, for a command whose changes stand in the audit.
async fn audited(cluster: &Cluster, what: &Command, said: String, app: Option<AppName>) -> Visor {
    let app = match app {
        // Hosts belong to no app, nor does the whole.
        _ if matches!(
            what,
            Command::Hosts { .. } | Command::Check { .. } | Command::Recover { .. } | Command::Migrate { .. }
        ) =>
        {
            None
        }
        Some(app) => Some(app),
        None => context::remote_url().await.as_deref().and_then(context::app_of),
    };
    let from = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let entry =
        AuditEntry { what: said, app, by: None, from, at: jiff::Timestamp::now(), extra: Extra::new() };
    let who = cluster.credentials.as_ref().map(Credentials::identity);
    // Without identities, as the system says; whoever has a name there that can't be one here isn't told apart.
    let who = who.or_else(|| context::who().parse().ok());
    match who.or_else(|| "someone".parse().ok()) {
        Some(who) => cluster.visor.audited(&who, entry, rand::random()),
        None => cluster.visor.clone(),
    }
}

async fn with_coordinator(
    what: Command,
    coordinator: &CoordinatorArgs,
    app: Option<visor::names::AppName>,
    json: bool,
) -> Result<()> {
    let cluster = coordinator.cluster().map_err(|error| Failure::new(Kind::Usage, in_words(&error)))?;
    let visor = match what.said(std::env::args().skip(1)) {
        Some(said) => audited(&cluster, &what, said, app.clone()).await,
        None => cluster.visor,
    };
    let context = Context::new(visor, cluster.credentials, app, json);
    let is_endless = what.is_endless();
    let work = async {
        match what {
            Command::Init { name, ssh } => command::init::run(&context, name, ssh).await,
            Command::Keys { action } => {
                command::keys::run(&context, action.unwrap_or(KeysAction::List)).await
            }
            Command::Apps => command::apps::run(&context).await,
            Command::Access { action } => {
                command::access::run(&context, action.unwrap_or(AccessAction::List)).await
            }
            Command::Audit { lines } => command::audit::run(&context, lines).await,
            Command::Whoami => command::access::whoami(&context).await,
            Command::Procs { action } => command::procs::run(&context, action).await,
            Command::Scale(args) => command::scale::run(&context, args).await,
            Command::Ps { all, long } => command::ps::run(&context, all, long).await,
            Command::Revs => command::revs::run(&context).await,
            Command::Restart { target, no_wait } => command::restart::run(&context, target, no_wait).await,
            Command::Releases => command::releases::run(&context).await,
            Command::Rollback { release, no_wait } => {
                command::rollback::run(&context, release, no_wait).await
            }
            Command::Traffic { proc, shares } => command::traffic::run(&context, &proc, &shares).await,
            Command::Rollout { action } => command::rollout::run(&context, action).await,
            Command::Destroy { confirm } => command::destroy::run(&context, confirm).await,
            Command::Events => command::events::run(&context).await,
            Command::Why { target } => command::why::run(&context, target).await,
            Command::Logs(args) => command::logs::run(&context, args).await,
            Command::Hosts { action } => command::hosts::run(&context, action).await,
            Command::Capacity { proc, of } => command::capacity::run(&context, proc, of).await,
            Command::Check { repair } => command::check::run(&context, repair).await,
            Command::Migrate { dry_run } => command::migrate::run(&context, dry_run).await,
            Command::Recover { hosts, late, end_unknown, alone, dry_run } => {
                let how = command::recover::How { late, end_unknown, alone, dry_run };
                command::recover::run(&context, hosts, how).await
            }
            Command::Stats { days } => command::stats::run(&context, days).await,
            Command::Config { action } => {
                command::config::run(&context, action.unwrap_or(ConfigAction::List)).await
            }
            Command::Link { action } => {
                command::link::run(&context, action.unwrap_or(LinkAction::List)).await
            }
            Command::Dev(_)
            | Command::Version
            | Command::Completions { .. }
            | Command::ExitCodes
            | Command::GitCredential { .. }
            | Command::Child { .. } => unreachable!("these need no coordinator and have run"),
        }
    };
    tokio::select! {
        done = work => done,
        interrupted = tokio::signal::ctrl_c() => {
            let failure = match context.has_changed() {
                // Nobody ends it otherwise.
                false if is_endless => Failure::silent(Kind::Interrupted),
                true => Failure::new(Kind::Interrupted, "interrupted; the change stands and goes on")
                    .hint("`bazooka events` shows how it goes"),
                false => Failure::new(Kind::Interrupted, "interrupted"),
            };
            Err(match interrupted {
                Ok(()) => failure,
                Err(error) => failure.because(error.to_string()),
            })
        }
    }
}
