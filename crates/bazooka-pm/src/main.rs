//! bazooka-pm: runs the instances of this host. With `converge`, places the instances of the whole cluster.

use std::path::PathBuf;

use anyhow::Context;
use bazooka_daemon::{
    CoordinatorArgs, in_words, init_logs, raise_open_files,
    settings::{self, ConfigError, ConfigFile, Settings},
    shutdown, spare_memory,
};
use bazooka_pm::{
    converge::{self, ConvergeArgs},
    host::{self, HostOptions},
};
use clap::{Parser, Subcommand};
use visor::{
    identity::Kind,
    seal::{Os, file::KeyFile},
};

#[derive(Parser)]
#[command(name = "bazooka-pm", version, about = "Runs the instances of this host")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    #[command(flatten)]
    host: HostOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Place instances on hosts, as one elected process of any number
    Converge(Box<ConvergeArgs>),
    /// Say whether instances can have a sandbox here, by starting something in one
    Probe,
    /// Give this host another key for config vars; it counts from the next start of bazooka-pm on, and the one before
    /// goes by itself once nothing is sealed to it any more
    RotateKey {
        /// Where slugs and instances are kept
        #[arg(long, env = "BAZOOKA_STATE", value_name = "DIR", default_value = "/var/lib/bazooka-pm")]
        state: PathBuf,
    },
}

impl Settings for Args {
    const FILES: &'static [ConfigFile] = &[
        ConfigFile { subcommand: None, file: "pm", borrows: false },
        ConfigFile { subcommand: Some("converge"), file: "converge", borrows: false },
        ConfigFile { subcommand: Some("rotate-key"), file: "pm", borrows: true },
    ];

    fn validate(&self) -> Vec<ConfigError> {
        match &self.command {
            None => host::faults(&self.coordinator, &self.host),
            Some(Command::Converge(args)) => args.coordinator.validate(Kind::Converger, None),
            Some(Command::Probe | Command::RotateKey { .. }) => Vec::new(),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args: Args = settings::read();
    init_logs();
    raise_open_files();
    spare_memory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Names of other parts are resolved here. The host's own work that blocks has threads of its own.
        .max_blocking_threads(2)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_stack_size(512 << 10)
        .build()?;
    let done = runtime.block_on(run(args));
    // An effect that still blocks must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    done
}

async fn run(args: Args) -> anyhow::Result<()> {
    let signals = shutdown().context("can't receive signals")?;
    let shutdown = signals.token();
    match args.command {
        Some(Command::Converge(args)) => Ok(converge::daemon(*args, shutdown).await?),
        Some(Command::Probe) => host::probe().map_err(in_one_line),
        Some(Command::RotateKey { state }) => {
            let ring = KeyFile::of(&state).rotate(&mut Os).map_err(in_one_line)?;
            eprintln!("the key is {} from the next start of bazooka-pm on", ring.current());
            Ok(())
        }
        None => {
            let cluster = args.coordinator.cluster()?;
            host::run(cluster, &args.coordinator.coordinator, args.host, shutdown).await.map_err(in_one_line)
        }
    }
}

/// Keeps an error's chain in one line, as `bazooka dev` and a journal read it.
fn in_one_line(error: impl std::error::Error) -> anyhow::Error {
    anyhow::Error::msg(in_words(&error))
}
