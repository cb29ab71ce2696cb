//! What a hook and the daemon say to each other: one call, then replies, a line of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest call: a push of some thousand refs.
pub const MAX_CALL: u64 = 1024 * 1024;

/// Which of git's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// Before the refs move; its failure rejects the push.
    PreReceive,
    /// After they have moved.
    PostReceive,
}

/// A ref that a push moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefUpdate {
    /// What it names now; zeros: it isn't there.
    pub old: String,
    /// What it shall name; zeros: it shall go.
    pub new: String,
    /// Its whole name.
    pub name: String,
}

impl RefUpdate {
    /// Reads a line of a hook's standard input.
    pub fn parse(line: &str) -> Option<RefUpdate> {
        let mut words = line.splitn(3, ' ');
        let (old, new, name) = (words.next()?, words.next()?, words.next()?);
        Some(RefUpdate { old: old.into(), new: new.into(), name: name.into() })
    }

    /// Whether the ref isn't there yet.
    pub fn creates(&self) -> bool {
        self.old.bytes().all(|byte| byte == b'0')
    }

    /// Whether the ref shall go.
    pub fn deletes(&self) -> bool {
        self.new.bytes().all(|byte| byte == b'0')
    }
}

/// A hook's call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Which hook it is.
    pub hook: Hook,
    /// The push that it belongs to, as the daemon named it.
    pub push: String,
    /// The refs.
    pub updates: Vec<RefUpdate>,
    /// Where git keeps the pushed objects until they are accepted.
    pub quarantine: Option<PathBuf>,
    /// The words of `git push -o`.
    pub options: Vec<String>,
}

/// A word of the daemon's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A line for the pusher.
    Line(String),
    /// The hook's exit status: the end.
    Done {
        /// 0 accepts.
        status: i32,
    },
}
