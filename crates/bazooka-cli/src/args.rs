//! What may be said to `bazooka`, as types.
//!
//! Owns the words of the command line and their rules. Everything is parsed here, before anything is
//! read or written, so that a name which can't be right costs nothing and is exit 2.

mod limits;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
};

use bazooka_daemon::CoordinatorArgs;
use clap::{Args, Parser, Subcommand};
use visor::{
    identity::Identity,
    links::Link,
    names::{AppName, HostName, InstanceId, InvalidName, ProcName, ReleaseId, ZoneName},
};

pub use limits::Limit;

/// The most instances that one service may be scaled to: a slip of the finger should not fill a cluster.
const MOST_INSTANCES: i64 = visor::transitions::formation::MOST_INSTANCES as i64;

/// What each exit status means.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the change can't converge, or failed; it may stand: see the message
  2    the command line is wrong
  3    there is no such app, proc, rev, release, instance or host
  4    refused as things stand (owned by another, being tried, being destroyed)
  5    a part of the cluster that this needs isn't there or doesn't answer (bazooka-rm, bazooka-pm)
  6    no coordinator answers
  130  interrupted; a change that was made stands and goes on";

/// Deploys apps on the machines of a cluster, and shows what runs.
#[derive(Debug, Parser)]
#[command(name = "bazooka", version, after_help = EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What goes with every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What goes with every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The app [default: the one that the git remote `bazooka` leads to]
    #[arg(short, long, global = true, value_name = "APP")]
    pub app: Option<AppName>,
    /// Print JSON, where something is listed or shown
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the coordinator is.
    #[command(flatten)]
    pub coordinator: CoordinatorArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register an app and make the git remote `bazooka` for it
    Init {
        /// The app [default: the one that the git remote leads to, else the name of this repository's folder]
        name: Option<AppName>,
        /// Push over SSH, with a key of `bazooka keys`
        #[arg(long)]
        ssh: bool,
    },
    /// List the apps
    Apps,
    /// List who takes part and whose each app is, or change it
    Access {
        /// What to do
        #[command(subcommand)]
        action: Option<AccessAction>,
    },
    /// List the SSH keys with which you push, or change them
    Keys {
        /// What to do
        #[command(subcommand)]
        action: Option<KeysAction>,
    },
    /// List who did what, when, and from where
    Audit {
        /// How many entries
        #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
        lines: usize,
    },
    /// Say who asks, and what they may
    Whoami,
    /// Answer git, which asks who pushes
    #[command(hide = true)]
    GitCredential {
        /// What git does
        operation: String,
    },
    /// List the app's procs, or set what their instances may use
    Procs {
        /// What to do
        #[command(subcommand)]
        action: Option<ProcsAction>,
    },
    /// Set how many instances of a proc run, or show the formation
    Scale(ScaleArgs),
    /// List running instances
    Ps {
        /// Of every app
        #[arg(long)]
        all: bool,
        /// With state, host, age, restarts, release and cause
        #[arg(short, long)]
        long: bool,
    },
    /// List the app's revs
    Revs,
    /// Replace running instances by new ones
    Restart {
        /// A proc, or an instance's id [default: every proc]
        target: Option<Which>,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// List the app's releases
    Releases,
    /// Make what an earlier release was the current one again
    Rollback {
        /// The release, for example v3 [default: the one before the current one]
        release: Option<ReleaseId>,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Show how far the app's rollout is; hold it, let it go on, or call it off
    Rollout {
        /// What to do
        #[command(subcommand)]
        action: RolloutAction,
    },
    /// Show or set how much of a proc's traffic goes to revs that run beside the current release
    Traffic {
        /// The proc
        proc: ProcName,
        /// A rev's share in percent; `off` takes it back
        #[arg(value_name = "REV=PERCENT")]
        shares: Vec<Share>,
    },
    /// Take an app down, with its repository
    Destroy {
        /// The app's name once more, instead of being asked for it
        #[arg(long, value_name = "APP")]
        confirm: Option<AppName>,
    },
    /// Show what happens to the app, as it happens
    Events,
    /// Tell the whole story of an instance, or of a proc and what it lacks
    Why {
        /// A proc, or an instance's id
        target: Which,
    },
    /// Show what the app's instances write
    Logs(LogsArgs),
    /// Show or change the app's config vars; a change is a new release
    Config {
        /// Show [default: list]
        #[command(subcommand)]
        action: Option<ConfigAction>,
    },
    /// Show or change the services whose address the app's instances are given; a change is a new release
    Link {
        /// Show [default: list]
        #[command(subcommand)]
        action: Option<LinkAction>,
    },
    /// List the hosts with what they have to give; take one out of service, and back
    Hosts {
        /// What to do [default: list]
        #[command(subcommand)]
        action: Option<HostsAction>,
    },
    /// Show what is reserved, used and free in each zone, how many more of a service fit, and what would be lost with a
    /// zone or the largest host
    Capacity {
        /// How many more of this proc fit
        #[arg(conflicts_with = "of")]
        proc: Option<ProcName>,
        /// The same, of any app's
        #[arg(long, value_name = "APP/PROC")]
        of: Option<Service>,
    },
    /// Show how many apps, procs, revs and instances there are, and what each day brought
    Stats {
        /// How many days, the last one last
        #[arg(short = 'n', long, default_value_t = 30, value_name = "N")]
        days: usize,
    },
    /// Take up in a restored coordinator what hosts run; `deploy/restore` does so before anyone else reaches it
    Recover {
        /// Ask this bazooka-pm, too: the base of its endpoint
        #[arg(long = "host", value_name = "URL")]
        hosts: Vec<String>,
        /// The coordinator is in use again: take up only what hosts hold because it never knew of it
        #[arg(long)]
        late: bool,
        /// End what can't be taken up, because its app isn't known
        #[arg(long, requires = "late")]
        end_unknown: bool,
        /// Nobody else reaches this coordinator
        #[arg(long, conflicts_with = "late")]
        alone: bool,
        /// Only tell
        #[arg(long)]
        dry_run: bool,
    },
    /// Look for rows of the coordinator that don't fit together
    Check {
        /// Mend what can be mended without ending or losing anything
        #[arg(long)]
        repair: bool,
    },
    /// After an upgrade: bring what the release before wrote into today's form, and shut that release out
    #[command(
        long_about = "After an upgrade of all parts: bring what the release before wrote into today's form, and shut that \
                            release out. It may be stopped at any time and run again. Where parts are told apart, it takes an \
                            rm's identity"
    )]
    Migrate {
        /// Only tell
        #[arg(long)]
        dry_run: bool,
    },
    /// Run a whole cluster on this machine, in the foreground
    Dev(DevArgs),
    /// Print the version
    Version,
    /// Print a shell's completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// What each exit status means
    #[command(after_help = EXIT_CODES)]
    ExitCodes,
    /// Become a program that ends with its parent
    #[command(hide = true)]
    Child {
        /// Whose end is to end it
        #[arg(long)]
        of: u32,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

impl Command {
    /// Whether it can print JSON: what lists or shows can, what changes something can't.
    pub fn prints_json(&self) -> bool {
        match self {
            Command::Apps
            | Command::Ps { .. }
            | Command::Revs
            | Command::Releases
            | Command::Events
            | Command::Why { .. }
            | Command::Logs(_)
            | Command::Whoami
            | Command::Audit { .. }
            | Command::Capacity { .. }
            | Command::Stats { .. }
            | Command::Version => true,
            Command::Keys { action } => matches!(action, None | Some(KeysAction::List)),
            Command::Access { action } => matches!(action, None | Some(AccessAction::List)),
            Command::Scale(args) => args.only_shows(),
            Command::Hosts { action } => action.is_none(),
            Command::Check { repair } => !repair,
            Command::Recover { dry_run, .. } | Command::Migrate { dry_run } => *dry_run,
            Command::Procs { action } => action.is_none(),
            Command::Traffic { shares, .. } => shares.is_empty(),
            Command::Rollout { action } => matches!(action, RolloutAction::Status),
            Command::Config { action } => match action {
                None | Some(ConfigAction::List | ConfigAction::Get { .. }) => true,
                Some(ConfigAction::Set { .. } | ConfigAction::Unset { .. }) => false,
            },
            Command::Link { action } => matches!(action, None | Some(LinkAction::List)),
            Command::Init { .. }
            | Command::Restart { .. }
            | Command::Rollback { .. }
            | Command::Destroy { .. }
            | Command::Dev(_)
            | Command::Completions { .. }
            | Command::ExitCodes
            | Command::GitCredential { .. }
            | Command::Child { .. } => false,
        }
    }

    /// What the audit says of it: the words of the command line, without those that every command takes. None where
    /// nothing is changed, or where bazooka-rm writes it down.
    pub fn said(&self, words: impl IntoIterator<Item = String>) -> Option<String> {
        match self {
            shows if shows.prints_json() => return None,
            Command::Init { .. }
            | Command::Destroy { .. }
            | Command::Access { .. }
            | Command::Keys { .. }
            | Command::GitCredential { .. }
            | Command::Dev(_)
            | Command::Completions { .. }
            | Command::ExitCodes
            | Command::Child { .. } => return None,
            // Never a value.
            Command::Config { action: Some(ConfigAction::Set { pairs, .. }) } => {
                let names: Vec<&str> =
                    pairs.iter().map(|pair| pair.split('=').next().unwrap_or_default()).collect();
                return Some(cut(&format!("config set {}", names.join(" "))));
            }
            _ => {}
        }
        const WITH_VALUE: [&str; 5] = ["-a", "--app", "--coordinator", "--prefix", "--identity"];
        let mut said = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if WITH_VALUE.contains(&word.as_str()) {
                words.next();
            } else if !WITH_VALUE.iter().any(|flag| word.starts_with(&format!("{flag}="))) {
                said.push(word);
            }
        }
        Some(cut(&said.join(" ")))
    }

    /// Whether it goes on until it is interrupted.
    pub fn is_endless(&self) -> bool {
        matches!(self, Command::Events) || matches!(self, Command::Logs(args) if args.follow)
    }
}

/// A service: `APP/PROC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The app.
    pub app: AppName,
    /// The proc.
    pub proc: ProcName,
}

impl FromStr for Service {
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        let (app, proc) = said.split_once('/').ok_or("a service is APP/PROC, for example goto-rocket/web")?;
        let app = app.parse().map_err(|error: InvalidName| error.to_string())?;
        let proc = proc.parse().map_err(|error: InvalidName| error.to_string())?;
        Ok(Service { app, proc })
    }
}

/// `scale`: how many of what.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// How many instances
    #[arg(short = 'n', long = "count", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=MOST_INSTANCES))]
    pub count: Option<u32>,
    /// Of this rev, beside the current release
    #[arg(short, long, value_name = "REV")]
    pub rev: Option<RevPrefix>,
    /// In this zone; the others stand wherever there is room
    #[arg(short, long, value_name = "ZONE", conflicts_with = "rev")]
    pub zone: Option<ZoneName>,
    /// A proc with -n, or PROC=N each
    #[arg(value_name = "PROC[=N]")]
    pub targets: Vec<Target>,
    /// Don't wait
    #[arg(long)]
    pub no_wait: bool,
}

impl ScaleArgs {
    /// Whether nothing is to be changed.
    pub fn only_shows(&self) -> bool {
        self.targets.is_empty() && self.count.is_none() && self.rev.is_none() && self.zone.is_none()
    }
}

/// `logs`: which lines.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on with new lines as they are written
    #[arg(short, long)]
    pub follow: bool,
    /// How many lines from before
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, allow_negative_numbers = true)]
    // No host gives more.
    #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub lines: u32,
    /// Of this proc only
    #[arg(short, long)]
    pub proc: Option<ProcName>,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Of this instance only
    #[arg(short, long, value_name = "ID")]
    pub instance: Option<InstanceId>,
}

/// `config`: what to do with config vars. Names and values are checked later: a value must not be
/// repeated in an error, and clap would.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// List names and values
    List,
    /// Print one value
    Get {
        /// Its name
        name: String,
    },
    /// Set config vars
    Set {
        /// NAME=VALUE each; other users of this machine can see what stands here while the command runs
        #[arg(required_unless_present = "stdin", value_name = "NAME=VALUE")]
        pairs: Vec<String>,
        /// Read them from standard input, which nobody else sees: lines of NAME=VALUE, or JSON as `config --json` prints it
        #[arg(long, conflicts_with = "pairs")]
        stdin: bool,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Take config vars away
    Unset {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
}

/// `link`: what to do with links.
#[derive(Debug, Subcommand)]
pub enum LinkAction {
    /// List them, each with the service's port and the variable that instances get
    List,
    /// Give instances a service's address, as BAZOOKA_SERVICE_<APP>_<PROC>=ADDRESS:PORT
    Add {
        /// The services: an app and its proc each
        #[arg(required = true, value_name = "APP:PROC")]
        links: Vec<Link>,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Take it from them
    Remove {
        /// The services
        #[arg(required = true, value_name = "APP:PROC")]
        links: Vec<Link>,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
}

/// `access`: what to do with it.
#[derive(Debug, Subcommand)]
pub enum AccessAction {
    /// List who takes part, and their apps
    List,
    /// Let somebody use an app, or, without one, take part in the cluster
    Grant(AccessArgs),
    /// Take it from them
    Revoke(AccessArgs),
}

/// Who, and what.
#[derive(Debug, Args)]
pub struct AccessArgs {
    /// A person, or a daemon such as pm:app1: the common name of the certificate
    pub who: Identity,
    /// The app [default: that of -a; without one: to take part in the cluster]
    pub app: Option<AppName>,
    /// What operators do: each app, hosts, and who takes part
    #[arg(long, conflicts_with = "app")]
    pub operator: bool,
}

/// `keys`: what to do with them.
#[derive(Debug, Subcommand)]
pub enum KeysAction {
    /// List them
    List,
    /// Add one
    Add {
        /// The file with the public key
        #[arg(value_name = "FILE")]
        file: std::path::PathBuf,
    },
    /// Take one away
    Remove {
        /// Its fingerprint
        fingerprint: String,
    },
}

/// Words as they are kept: some lines at most, and nothing that steers a terminal.
fn cut(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// `rollout`: what to do with it.
#[derive(Debug, Subcommand)]
pub enum RolloutAction {
    /// Show how far each proc is
    Status,
    /// Hold still: a batch that has begun ends, and no other begins
    Pause,
    /// Go on
    Resume {
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Call it off: what it was before is current again, and its instances stay
    Abort {
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
}

/// `procs`: what to do with a proc.
#[derive(Debug, Subcommand)]
pub enum ProcsAction {
    /// Set what each instance of a proc may use; instances that run keep what they have
    Set(ProcsSetArgs),
}

/// `procs set`: the limits.
#[derive(Debug, Args)]
pub struct ProcsSetArgs {
    /// The proc
    pub proc: ProcName,
    /// Memory, for example 256M or 1G; `none` for no limit
    #[arg(long, value_name = "SIZE", value_parser = limits::memory)]
    #[arg(required_unless_present_any = ["cpu", "pids"])]
    pub memory: Option<Limit<u64>>,
    /// Processor, for example 0.5 for half of one; `none` for no limit
    #[arg(long, value_name = "N", value_parser = limits::cpu)]
    pub cpu: Option<Limit<u32>>,
    /// Processes and threads; `none` for the usual 1024
    #[arg(long, value_name = "N", value_parser = limits::pids)]
    pub pids: Option<Limit<u32>>,
}

/// `hosts`: what to do with a host.
#[derive(Debug, Subcommand)]
pub enum HostsAction {
    /// Place nothing new on a host
    Cordon {
        /// The host
        host: HostName,
    },
    /// Open a host again that was cordoned or drained
    Uncordon {
        /// The host
        host: HostName,
    },
    /// Replace what runs on a host elsewhere, then stop it; nothing new is placed there
    Drain {
        /// The host
        host: HostName,
        /// Don't wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a host that has gone from the list, with what was said of it; waits until its lease has ended
    Forget {
        /// The host
        host: HostName,
    },
    /// Give up the hosts that went all at once: they won't come back, and their instances are replaced
    Unfreeze,
}

/// `dev`: a cluster on this machine.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Where its state is kept [default: /var/lib/bazooka/dev as root, else ~/.local/share/bazooka/dev]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How many hosts, each with an address (127.0.0.2, ...) and ports (21000-21999, ...) of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=11))]
    pub hosts: u16,
    /// The coordinator's port
    #[arg(long, value_name = "PORT", default_value_t = 2379)]
    pub coordinator_port: u16,
    /// Where HAProxy takes requests for <app>.<domain>
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub public_port: u16,
    /// The address of that port and of the services' own ports; 0.0.0.0 opens them to other machines
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub public_address: IpAddr,
    /// Where bazooka-rm takes pushes
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    pub rm_port: u16,
    /// The domain below which each app has its name
    #[arg(long, value_name = "DOMAIN", default_value = "localhost")]
    pub domain: String,
}

/// A proc, or one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of a proc.
    Proc(ProcName),
    /// One instance.
    Instance(InstanceId),
}

impl FromStr for Which {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if s.starts_with(|c: char| c.is_ascii_digit()) {
            s.parse().map(Which::Instance)
        } else {
            s.parse().map(Which::Proc)
        }
    }
}

/// What `scale` is to scale: a proc, perhaps with its count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The proc.
    pub proc: ProcName,
    /// How many, if it was said with it.
    pub count: Option<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (proc, count) = match s.split_once('=') {
            None => (s, None),
            Some((proc, count)) => {
                let number: Option<u32> = count.parse().ok();
                let number = number.filter(|n| i64::from(*n) <= MOST_INSTANCES && !count.starts_with('+'));
                let rule = || format!("after the = stands a number from 0 to {MOST_INSTANCES}");
                (proc, Some(number.ok_or_else(rule)?))
            }
        };
        let proc = proc.parse().map_err(|error: InvalidName| error.to_string())?;
        Ok(Target { proc, count })
    }
}

/// A rev's share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The rev.
    pub rev: RevPrefix,
    /// How much of a hundred; none takes it back.
    pub percent: Option<u32>,
}

impl FromStr for Share {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let rule = "a share is REV=PERCENT, from 0 to 100, or REV=off";
        let (rev, percent) = s.split_once('=').ok_or(rule)?;
        let percent = match percent {
            "off" => None,
            digits if digits.starts_with('+') => return Err(rule),
            digits => Some(digits.parse().ok().filter(|n| *n <= 100).ok_or(rule)?),
        };
        Ok(Share { rev: rev.parse()?, percent })
    }
}

/// The beginning of a rev's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevPrefix(String);

impl RevPrefix {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RevPrefix {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digits = s.to_ascii_lowercase();
        if (4..=64).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(RevPrefix(digits))
        } else {
            Err("a rev is named by 4 or more of its hexadecimal digits")
        }
    }
}

/// A config var's name, and a value for it.
///
/// # Errors
/// In words that don't repeat the value.
pub fn pair(s: &str) -> Result<(String, String), String> {
    let Some((name, value)) = s.split_once('=') else {
        // What stands here may be a secret that lost its name.
        return Err("a config var is set by NAME=VALUE: there is no = in one of the arguments".into());
    };
    Ok((checked(name, value)?, value.to_owned()))
}

/// A config var's name, if it may have that value.
///
/// # Errors
/// In words that don't repeat the value.
pub fn checked(name: &str, value: &str) -> Result<String, String> {
    let name = var_name(name)?;
    if value.len() > MOST_VALUE_BYTES {
        return Err(format!("the value of {name} is longer than {MOST_VALUE_BYTES} bytes"));
    }
    Ok(name)
}

/// Linux takes no longer string into a process's environment than 128 KiB, name included.
const MOST_VALUE_BYTES: usize = 100 * 1024;

/// A config var's name.
///
/// # Errors
/// The rule that it breaks.
pub fn var_name(s: &str) -> Result<String, String> {
    let shown: String = s.chars().take(80).collect();
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let valid = s.len() <= 128 && s.starts_with(letter) && s.chars().all(|c| letter(c) || c.is_ascii_digit());
    if !valid {
        return Err(format!(
            "config var {shown:?} is not valid: letters, digits and underscores, no digit first, 128 at most"
        ));
    }
    if s == "PORT" || s.starts_with("BAZOOKA_") {
        return Err(format!("{shown} is set for each instance by bazooka itself"));
    }
    Ok(s.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_target_is_a_proc_with_or_without_its_count() {
        let proc = |s: &str| s.parse::<ProcName>().expect("valid");
        for (said, wanted) in [
            ("web", Some(Target { proc: proc("web"), count: None })),
            ("web=0", Some(Target { proc: proc("web"), count: Some(0) })),
            ("web=12", Some(Target { proc: proc("web"), count: Some(12) })),
            ("web=", None),
            ("web=-1", None),
            ("web=+1", None),
            ("web=1=2", None),
            ("web=10001", None),
            ("web=99999999999", None),
            ("=1", None),
            ("Web=1", None),
            ("", None),
        ] {
            assert_eq!(said.parse::<Target>().ok(), wanted, "{said:?}");
        }
    }

    #[test]
    fn a_share_is_a_rev_with_a_part_of_a_hundred() {
        let percent = |said: &str| said.parse::<Share>().map(|share| share.percent);
        assert_eq!(percent("16f7=10"), Ok(Some(10)));
        assert_eq!(percent("16f7=0"), Ok(Some(0)));
        assert_eq!(percent("16f7=off"), Ok(None));
        for bad in ["16f7", "16f7=", "16f7=101", "16f7=-1", "16f7=+1", "16f7=1.5", "16f=1", "=1", ""] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_begins_with_a_digit_is_an_instance() {
        assert_eq!("12".parse(), Ok(Which::Instance(InstanceId(12))));
        assert_eq!("web".parse(), Ok(Which::Proc("web".parse().expect("valid"))));
        for bad in ["", "12a", "012", "-1", "Web", "v1\n"] {
            assert!(bad.parse::<Which>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_rev_is_named_by_four_digits_at_least() {
        assert_eq!("16F7".parse::<RevPrefix>().map(|rev| rev.0), Ok("16f7".to_owned()));
        for bad in ["", "16f", "xyzw", "16f7cbf/", &"a".repeat(65)] {
            assert!(bad.parse::<RevPrefix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_config_var_has_a_name_that_shells_know_and_its_value_is_never_repeated() {
        assert_eq!(pair("A_1=x=y z"), Ok(("A_1".into(), "x=y z".into())));
        assert_eq!(pair("A="), Ok(("A".into(), String::new())));
        for bad in [
            "=secret",
            "1A=secret",
            "A-B=secret",
            "A B=secret",
            "PORT=secret",
            "BAZOOKA_X=secret",
            "é=secret",
        ] {
            let said = pair(bad).expect_err(bad);
            assert!(!said.contains("secret"), "{said}");
        }
        let said = pair("secret").expect_err("no equals sign");
        assert!(!said.contains("secret"), "{said}");
        let long = pair(&format!("A={}", "s".repeat(MOST_VALUE_BYTES + 1))).expect_err("too long");
        assert!(long.len() < 100, "{long}");
    }
}
