//! The bazooka-rm program. The name that it is called by, or its first argument, selects its role: the daemon, one of
//! git's hooks, the supervisor of a build's steps, the worker on a build's files, or sshd's forced command.

use std::{path::Path, process::ExitCode};

use bazooka_rm::{
    build::{files, supervisor},
    daemon::{RmArgs, RmCommand, run},
    hook, pki,
    ssh::carry,
};
use visor::seal::{Os, file::KeyFile};

fn main() -> ExitCode {
    let mut args = std::env::args_os().peekable();
    let name = args.next().unwrap_or_default().to_string_lossy().into_owned();
    let status = if let Some(hook) = hook::by_name(&name) {
        hook::run(hook)
    } else if name == supervisor::NAME {
        supervisor::run()
    } else if args.next_if(|word| word == files::WORD).is_some() {
        files::run(args)
    } else if args.next_if(|word| word == carry::NAME).is_some() {
        return carry::run(args);
    } else {
        return daemon();
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

#[allow(clippy::print_stdout, reason = "a command's answer")]
#[tokio::main(flavor = "current_thread")]
async fn daemon() -> ExitCode {
    bazooka_daemon::spare_memory();
    bazooka_daemon::init_logs();
    let args: RmArgs = bazooka_daemon::settings::read();
    let done = match args.command.clone() {
        Some(RmCommand::Pki(command)) => Some(pki::run(command).map_err(anyhow::Error::from)),
        Some(RmCommand::RotateKey { state }) => Some(rotate_key(&state)),
        None => None,
    };
    match done {
        Some(Ok(words)) => {
            print!("{words}");
            return ExitCode::SUCCESS;
        }
        Some(Err(error)) => {
            eprintln!("bazooka-rm: {error:#}");
            return ExitCode::FAILURE;
        }
        None => {}
    }
    bazooka_daemon::raise_open_files();
    let ran = match bazooka_daemon::shutdown() {
        Ok(signals) => run(args, signals.token()).await,
        Err(error) => Err(error.into()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bazooka-rm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn rotate_key(state: &Path) -> anyhow::Result<String> {
    let ring = KeyFile::of(state).rotate(&mut Os)?;
    Ok(format!("the key is {} from the next start of bazooka-rm on\n", ring.current()))
}
