//! `bazooka procs set`: changes how the instances of a proc are run and replaced.
//!
//! Its options are the settings of [`visor::settings`]. Owns the mapping from settings to options, and the report of
//! a change.

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, FromArgMatches, error::ErrorKind};
use visor::{
    names::{AppName, ProcName},
    schema::Proc,
    settings::{self, CPU, Change, MEMORY, PIDS, Setting},
    snapshot::AppView,
};

use crate::{
    context::{Context, known_proc},
    failure::Result,
    show::{put_line, say},
};

/// A proc, and what is to change of its settings.
#[derive(Clone, Debug)]
pub struct Args {
    proc: ProcName,
    changes: Vec<Change>,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let option = |setting: &'static Setting| {
            Arg::new(setting.name)
                .long(setting.name)
                .value_name(setting.placeholder)
                .help(setting.help_in_words())
                .action(ArgAction::Set)
                .value_parser(move |word: &str| setting.parse(word))
        };
        let names = settings::ALL.map(|setting| setting.name);
        command
            .override_usage("bazooka procs set [OPTIONS] <PROC>")
            .arg(
                Arg::new("proc")
                    .required(true)
                    .value_name("PROC")
                    .help("The proc")
                    .value_parser(ProcName::of_spelling),
            )
            .args(settings::ALL.map(option))
            .group(ArgGroup::new("settings").args(names).multiple(true).required(true))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let proc = matches.get_one::<ProcName>("proc").cloned();
        let proc = proc.ok_or_else(|| clap::Error::new(ErrorKind::MissingRequiredArgument))?;
        let change = |setting: &&Setting| matches.get_one::<Change>(setting.name).cloned();
        Ok(Args { proc, changes: settings::ALL.iter().filter_map(change).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Makes the changes, and prints the resulting settings and when they take effect.
///
/// # Errors
/// Those of the store; no such proc.
pub async fn run(context: &Context, app: &AppName, view: &AppView, args: Args) -> Result<()> {
    let Args { proc, changes } = args;
    known_proc(app, view, &proc)?;
    let changed = match context.visor.change_settings(app, &proc, &changes).await {
        Ok(changed) => changed,
        Err(error) => return Err(context.explain(view, error).await),
    };
    context.note_change();
    put_line(&format!("{proc}: {}", in_words(&proc, &changed, &changes)));
    let (at_once, later): (Vec<&Change>, Vec<&Change>) =
        changes.iter().partition(|change| change.setting.holds_at_once());
    if !at_once.is_empty() {
        say(&format!("{} at once", hold(&at_once)));
    }
    if !later.is_empty() {
        let running = view.instances.values().any(|instance| instance.proc == proc);
        let keep =
            format!("; instances that run keep what they have; hint: `bazooka restart {proc}` replaces them");
        say(&format!("{} from the next instance on{}", hold(&later), if running { &keep } else { "" }));
    }
    Ok(())
}

/// Returns the limits, and the other settings that were changed or aren't at their default.
fn in_words(name: &ProcName, proc: &Proc, changes: &[Change]) -> String {
    let is_told = |setting: &&&Setting| {
        let is_limit = [&MEMORY, &CPU, &PIDS].contains(*setting);
        let is_changed = changes.iter().any(|change| change.setting == **setting);
        is_limit || is_changed || setting.of(name, proc) != *setting.default.of(name, &proc.run)
    };
    let told = settings::ALL.iter().filter(is_told);
    told.map(|setting| format!("{} {}", setting.name, setting.of(name, proc))).collect::<Vec<_>>().join(", ")
}

/// Returns the changed settings with the verb: `batch holds`, `memory and cpu hold`.
fn hold(changes: &[&Change]) -> String {
    match changes {
        [one] => format!("{} holds", one.setting.name),
        [rest @ .., last] => {
            let rest: Vec<&str> = rest.iter().map(|change| change.setting.name).collect();
            format!("{} and {} hold", rest.join(", "), last.setting.name)
        }
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_told_and_what_is_not_at_its_default() {
        let name: ProcName = "web".parse().expect("a name");
        let mut proc = Proc::new(&name, 1);
        proc.batch = Some(3);
        let change = settings::MIN_READY.parse("default").expect("valid");
        assert_eq!(
            in_words(&name, &proc, &[change]),
            "memory no limit, cpu no limit, pids 1024, min-ready 1s, batch 3"
        );
    }

    #[test]
    fn one_holds_and_several_hold() {
        let change = |setting: &'static Setting| setting.parse("default").expect("valid");
        let (a, b, c) = (change(&MEMORY), change(&CPU), change(&PIDS));
        assert_eq!(hold(&[&a]), "memory holds");
        assert_eq!(hold(&[&a, &b, &c]), "memory, cpu and pids hold");
    }
}
