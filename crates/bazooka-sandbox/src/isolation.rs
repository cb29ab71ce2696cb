//! How strictly instances, or builds, are kept apart.
//!
//! Owns the words for it. Which of them holds is chosen where instances or builds are.

/// How instances are kept apart.
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
    /// Its name, as the host's registration has it.
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
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Limits => "limits",
            Part::Fence => "fence",
        }
    }
}
