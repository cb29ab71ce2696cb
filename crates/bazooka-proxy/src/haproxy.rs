//! HAProxy as a program: its command socket, its reports and its process.
//!
//! Owns HAProxy's commands and formats, not their meaning for routing. All commands go through the master's socket,
//! which addresses each worker, old ones included, by its process id. So a command never reaches a worker other than
//! the intended one.

pub mod cli;
pub mod process;
pub mod says;

pub use cli::{Cli, CliError};
pub use says::{Processes, ServerState, Sessions};
