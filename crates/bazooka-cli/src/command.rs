//! The commands, one per file, and their list.
//!
//! A command's file owns its arguments (`Args`), the kind of command that they make (`Args::kind`), and its action
//! (`run`). To add a command, write its file and name it here twice: as a module, and in the list. Help shows the
//! commands in the list's order.

pub mod access;
pub mod apps;
pub mod audit;
pub mod capacity;
pub mod check;
pub mod child;
pub mod completions;
pub mod config;
pub mod destroy;
pub mod dev;
pub mod events;
pub mod exit_codes;
pub mod git_credential;
pub mod hosts;
pub mod init;
pub mod keys;
pub mod link;
pub mod logs;
pub mod migrate;
pub mod procs;
pub mod ps;
pub mod recover;
pub mod releases;
pub mod restart;
pub mod revs;
pub mod rollback;
pub mod rollout;
pub mod scale;
pub mod stats;
pub mod traffic;
pub mod version;
pub mod whoami;
pub mod why;

use futures::FutureExt;

use crate::{failure::Result, invocation::Invocation};

/// The kind of a command, which depends on its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// The command needs no cluster.
    Local {
        /// True if the command can print JSON.
        prints_json: bool,
    },
    /// The command lists or shows something; with `--json`, as JSON.
    Shows,
    /// The command shows something until it is interrupted; with `--json`, as JSON.
    Follows,
    /// The command changes something, and prints no JSON.
    Changes(Audited),
}

/// The audit entry of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audited {
    /// The command line's words, as a change of the app.
    Words,
    /// The command line's words, as a change of hosts or of the whole cluster.
    WordsOfNoApp,
    /// These words, as a change of the app, because the command line contains a secret.
    Instead(String),
    /// No entry: bazooka-rm makes the change and its entry.
    ByRm,
}

impl CommandKind {
    /// Reports whether the command can print JSON: commands that list or show can, commands that change something
    /// can't.
    pub fn prints_json(&self) -> bool {
        match self {
            CommandKind::Local { prints_json } => *prints_json,
            CommandKind::Shows | CommandKind::Follows => true,
            CommandKind::Changes(_) => false,
        }
    }
}

/// Returns the kind of a command that lists unless its arguments ask for a change.
pub fn lists_unless(changes: bool, audited: Audited) -> CommandKind {
    if changes { CommandKind::Changes(audited) } else { CommandKind::Shows }
}

macro_rules! commands {
    (in_cluster { $($clustered:ident,)* } local { $($local:ident,)* }) => {
        /// What to do.
        #[derive(Debug, clap::Subcommand)]
        #[allow(non_camel_case_types, reason = "a command has one name: that of its file")]
        pub enum Command {
            $($clustered($clustered::Args),)*
            $($local($local::Args),)*
        }

        impl Command {
            /// Returns the kind of the command.
            pub fn kind(&self) -> CommandKind {
                match self {
                    $(Command::$clustered(args) => args.kind(),)*
                    $(Command::$local(args) => args.kind(),)*
                }
            }

            /// Runs the command.
            ///
            /// # Errors
            /// Those of the command, and of reaching the cluster.
            pub fn run(self, invocation: &Invocation) -> Result<()> {
                let kind = self.kind();
                match self {
                    $(Command::$clustered(args) => invocation.in_cluster(
                        kind,
                        Box::new(move |context| $clustered::run(context, args).boxed_local()),
                    ),)*
                    $(Command::$local(args) => $local::run(invocation, args),)*
                }
            }
        }
    };
}

commands! {
    in_cluster {
        init,
        apps,
        access,
        keys,
        audit,
        whoami,
        procs,
        scale,
        ps,
        revs,
        restart,
        releases,
        rollback,
        rollout,
        traffic,
        destroy,
        events,
        why,
        logs,
        config,
        link,
        hosts,
        capacity,
        stats,
        recover,
        check,
        migrate,
    }
    local {
        git_credential,
        dev,
        version,
        completions,
        exit_codes,
        child,
    }
}
