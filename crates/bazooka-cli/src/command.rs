//! The commands, one a file, and the list of them.
//!
//! A command's file owns its arguments (`Args`), what kind of command they make it (`Args::kind`) and what it does
//! (`run`). To add a command, write its file and name it here, twice: as a module, and in the list. Help shows the
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

/// What kind of command the arguments make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// It needs no cluster.
    Local {
        /// Whether it has something to print as JSON.
        prints_json: bool,
    },
    /// It lists or shows, and prints JSON if asked to.
    Shows,
    /// It shows until it is interrupted, and prints JSON if asked to.
    Follows,
    /// It changes something, and prints no JSON.
    Changes(Audited),
}

/// What the audit says of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audited {
    /// The words of the command line, as a change of the app.
    Words,
    /// The words of the command line, as a change of no app: of hosts, or of the whole cluster.
    WordsOfNoApp,
    /// These words, as a change of the app: the command line holds what must not be kept.
    Instead(String),
    /// Nothing, since bazooka-rm makes the change and its entry.
    ByRm,
}

impl CommandKind {
    /// Whether it can print JSON: what lists or shows can, what changes something can't.
    pub fn prints_json(&self) -> bool {
        match self {
            CommandKind::Local { prints_json } => *prints_json,
            CommandKind::Shows | CommandKind::Follows => true,
            CommandKind::Changes(_) => false,
        }
    }
}

/// The kind of a command that lists unless it is told to do something.
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
            /// What kind of command it is.
            pub fn kind(&self) -> CommandKind {
                match self {
                    $(Command::$clustered(args) => args.kind(),)*
                    $(Command::$local(args) => args.kind(),)*
                }
            }

            /// Runs it.
            ///
            /// # Errors
            /// Its own; those of reaching the cluster.
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
