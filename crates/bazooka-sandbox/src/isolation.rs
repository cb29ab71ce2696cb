//! The degrees of isolation between instances, or between builds.
//!
//! Owns their names. The program that runs instances or builds chooses one.

/// The degree of isolation between instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Isolation {
    /// Each has a user, a root and processes of its own, and fenced sockets; takes root
    Sandbox,
    /// Each has a user of its own; takes root
    Uid,
    /// They run as the daemon's own user, and can do to each other what they like
    None,
}

impl Isolation {
    /// Returns its name, as in the host's registration.
    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::Sandbox => "sandbox",
            Isolation::Uid => "uid",
            Isolation::None => "none",
        }
    }
}

/// A part of the sandbox that a machine may be unable to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// Limits of memory and processor
    Limits,
    /// The fence: no port but its own, no connection to the coordinator and the daemon
    Fence,
}

impl Part {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Limits => "limits",
            Part::Fence => "fence",
        }
    }
}
