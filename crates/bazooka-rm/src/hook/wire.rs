//! The protocol between a hook and the daemon: one call, then replies, one line of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The largest call in bytes: a push of some thousand refs.
pub const MAX_CALL: u64 = 1024 * 1024;

/// A hook of git's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// The hook before the refs move; its failure rejects the push.
    PreReceive,
    /// The hook after they have moved.
    PostReceive,
}

/// A ref that a push moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefUpdate {
    /// The present object id; zeros if the ref doesn't exist.
    pub old: String,
    /// The new object id; zeros if the ref is to be deleted.
    pub new: String,
    /// The ref's full name.
    pub name: String,
}

impl RefUpdate {
    /// Parses a line of a hook's standard input.
    pub fn parse(line: &str) -> Option<RefUpdate> {
        let mut words = line.splitn(3, ' ');
        let (old, new, name) = (words.next()?, words.next()?, words.next()?);
        Some(RefUpdate { old: old.into(), new: new.into(), name: name.into() })
    }

    /// True if the push creates the ref.
    pub fn creates(&self) -> bool {
        self.old.bytes().all(|byte| byte == b'0')
    }

    /// True if the push deletes the ref.
    pub fn deletes(&self) -> bool {
        self.new.bytes().all(|byte| byte == b'0')
    }
}

/// A hook's call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The hook that calls.
    pub hook: Hook,
    /// The id of the push, as the daemon gave it.
    pub push: String,
    /// The pushed refs.
    pub updates: Vec<RefUpdate>,
    /// The folder where git keeps the pushed objects until the push is accepted.
    pub quarantine: Option<PathBuf>,
    /// The options of `git push -o`.
    pub options: Vec<String>,
}

/// A reply of the daemon's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A line for the pusher.
    Line(String),
    /// The last reply: the hook is done.
    Done {
        /// The hook's exit status; 0 accepts the push.
        status: i32,
    },
}
