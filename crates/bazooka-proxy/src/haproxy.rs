//! HAProxy as a program: its command socket, what it says of itself, and its process.
//!
//! Owns HAProxy's words and formats; what they mean for routing is decided elsewhere. All commands go
//! through the master's socket, which reaches each worker by its process id, old ones included: a
//! command can't end up in another worker than the one that it was meant for.

pub mod cli;
pub mod process;
pub mod says;

pub use cli::{Cli, CliError};
pub use says::{Processes, ServerState, Sessions};
