//! The check of an rm's settings, as far as it needs no action.

use bazooka_daemon::settings::{ConfigError, ConfigFile, Settings};
use bazooka_sandbox::isolation::Isolation;
use nix::unistd::{User, geteuid};
use visor::identity::Kind;

use crate::{
    build::isolation::chosen,
    daemon::{RmArgs, RmCommand, own_name},
    storage::Storage,
};

impl Settings for RmArgs {
    const FILES: &'static [ConfigFile] = &[
        ConfigFile { subcommand: None, file: "rm", borrows: false },
        ConfigFile { subcommand: Some("rotate-key"), file: "rm", borrows: true },
    ];

    fn validate(&self) -> Vec<ConfigError> {
        match self.command {
            None => faults(self),
            Some(RmCommand::Pki(_) | RmCommand::RotateKey { .. }) => Vec::new(),
        }
    }
}

/// Returns all faults. Binds no address, makes no file and calls no other program.
fn faults(args: &RmArgs) -> Vec<ConfigError> {
    let has_identity = args.coordinator.identity.identity.is_some();
    let mut wrong = args.coordinator.validate(Kind::Rm, args.name.as_ref());
    let mut say =
        |option, what: Option<String>| wrong.extend(what.map(|what| ConfigError::new(option, what)));
    if args.name.is_none() && !has_identity {
        say("name", own_name().err().map(|error| format!("{error:#}")));
    }
    if args.state.exists() && !args.state.is_dir() {
        say("state", Some(format!("{} is no folder", args.state.display())));
    }
    for (option, url) in [("url", &args.url), ("git-url", &args.git_url)] {
        let bad = url.as_ref().filter(|url| !(url.starts_with("http://") || url.starts_with("https://")));
        say(option, bad.map(|url| format!("{url:?} must begin with http:// or https://")));
    }
    say("storage", args.storage.as_deref().and_then(Storage::fault_of).map(|fault| fault.to_string()));
    if args.ssh.ssh_keys.is_some() && !has_identity {
        let what = "it takes a cluster with identities (identity): a key says who pushes";
        say("ssh-keys", Some(what.to_owned()));
    }
    if let Some(user) = &args.ssh.ssh_user
        && !matches!(User::from_name(user), Ok(Some(_)))
    {
        say("ssh-user", Some(format!("there is no user {user:?} on this machine")));
    }
    // Without root and without a requested isolation, the start only prints a warning, so that is no fault.
    if matches!(args.builds.isolation, Some(Isolation::Sandbox | Isolation::Uid)) {
        say(
            "build-isolation",
            chosen(args.builds.isolation, geteuid().is_root()).err().map(|error| error.to_string()),
        );
    }
    let toolchains = args.builds.toolchains.iter().map(|path| ("build-toolchains", path));
    for (option, path) in args.builds.paths.iter().map(|path| ("build-path", path)).chain(toolchains) {
        let what = if !path.is_absolute() {
            Some(format!("{} must be a whole path", path.display()))
        } else {
            std::fs::metadata(path).err().map(|error| format!("{}: {error}", path.display()))
        };
        say(option, what);
    }
    wrong
}
