//! Validation of a proxy's settings, as far as it is possible before anything starts.

use bazooka_daemon::settings::{ConfigError, ConfigFile, Settings};
use visor::identity::Kind;

use super::{
    Args,
    start::{checked_folder, find_program, is_plain, machine_name},
};

impl Settings for Args {
    const FILES: &'static [ConfigFile] = &[ConfigFile { subcommand: None, file: "proxy", borrows: false }];

    fn validate(&self) -> Vec<ConfigError> {
        let mut wrong = self.coordinator.validate(Kind::Proxy, self.name.as_ref());
        let mut say =
            |option, what: Option<String>| wrong.extend(what.map(|what| ConfigError::new(option, what)));
        let identity = self.coordinator.identity.identity.as_deref();
        if self.name.is_none() && identity.is_none() {
            say("name", machine_name().err().map(|error| format!("{error:#}")));
        }
        say(
            "state",
            checked_folder(&self.state.canonicalize().unwrap_or_else(|_| self.state.clone()))
                .err()
                .map(|error| error.to_string()),
        );
        say("haproxy", find_program(&self.haproxy).err().map(|error| format!("{error:#}")));
        if let Some(user) = &self.haproxy_user
            && !matches!(nix::unistd::User::from_name(user), Ok(Some(_)))
        {
            say("haproxy-user", Some(format!("there is no user {user:?} on this machine")));
        }
        if let (Some(_), Some(folder)) = (self.git, identity)
            && let Ok(folder) = folder.canonicalize()
            && !is_plain(&folder)
        {
            let what = format!("{} must be named with letters, digits and /._-+@: alone", folder.display());
            say("identity", Some(what));
        }
        wrong
    }
}
