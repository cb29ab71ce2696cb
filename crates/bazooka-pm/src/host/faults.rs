//! Faults in a host's options, as far as they can be seen before the host starts.

use bazooka_daemon::{CoordinatorArgs, in_words, settings::ConfigError};
use bazooka_sandbox::{isolation::Isolation, sandboxes::stack_at};
use nix::unistd::geteuid;
use visor::identity::Kind;

use super::{
    HostOptions, isolation,
    start::{machine_name, shim_program},
};

/// Returns all faults. Binds no address, creates nothing and asks no other part.
pub fn faults(coordinator: &CoordinatorArgs, options: &HostOptions) -> Vec<ConfigError> {
    let mut wrong = coordinator.validate(Kind::Pm, options.host.as_ref());
    let mut say =
        |option, what: Option<String>| wrong.extend(what.map(|what| ConfigError::new(option, what)));
    if options.host.is_none() && coordinator.identity.identity.is_none() {
        say("host", machine_name().err().map(|error| in_words(&error)));
    }
    // Without root and without this option, the start only warns.
    if matches!(options.isolation, Some(Isolation::Sandbox | Isolation::Uid)) {
        say("isolation", isolation::chosen(options.isolation).err().map(|error| in_words(&error)));
    }
    say("shim", shim_program(options.shim.clone()).err().map(|error| in_words(&error)));
    say(
        "stack",
        options.stack.as_deref().and_then(|stack| stack_at(stack).err().map(|error| in_words(&error))),
    );
    if options.state.exists() && !options.state.is_dir() {
        say("state", Some(format!("{} is no folder", options.state.display())));
    }
    if geteuid().is_root() && *options.uids.inclusive().start() == 0 {
        say("uids", Some("instances can't have root's own user, 0".to_owned()));
    }
    if *options.ports.inclusive().start() == 0 {
        say("ports", Some("0 is no port; begin with 1024 or above".to_owned()));
    }
    wrong
}
