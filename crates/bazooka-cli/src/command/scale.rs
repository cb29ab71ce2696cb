//! `bazooka scale`: sets how many instances of a proc run.
//!
//! It writes the formation, then waits until it is reached, and prints a dot for each instance that starts or stops.
//! When it returns, the result is in force: a request sent then is answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use serde::Serialize;
use visor::{
    keys,
    names::{AppName, InstanceId, InvalidName, ProcName, ReleaseId, RevId, ZoneName},
    schema::State,
    snapshot::AppView,
    transitions::formation::{MOST_INSTANCES, Scaled},
    visor::Decided,
};

use crate::{
    command::{Audited, CommandKind, lists_unless},
    context::{Context, find_rev, known_proc},
    failure::{Failure, Kind, Result, unknown},
    settle::{Arrivals, Line, settle},
    show::{Table, put_json, put_line, say},
    target::RevPrefix,
    wait::shown,
    watch::Watch,
};

/// Set how many instances of a proc run, or show the formation
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many instances
    #[arg(short = 'n', long = "count", value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(MOST_INSTANCES)))]
    pub count: Option<u32>,
    /// Instances of this rev, which run beside the current release
    #[arg(short, long, value_name = "REV")]
    pub rev: Option<RevPrefix>,
    /// In this zone only; the rest is placed wherever there is room
    #[arg(short, long, value_name = "ZONE", conflicts_with = "rev")]
    pub zone: Option<ZoneName>,
    /// A proc with -n, or PROC=N each
    #[arg(value_name = "PROC[=N]")]
    pub targets: Vec<Count>,
    /// Return without waiting until the change is in force
    #[arg(long)]
    pub no_wait: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(!self.only_shows(), Audited::Words)
    }

    /// Reports whether the command only shows the formation.
    fn only_shows(&self) -> bool {
        self.targets.is_empty() && self.count.is_none() && self.rev.is_none() && self.zone.is_none()
    }
}

/// A proc to be scaled, with or without its count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The proc.
    pub proc: ProcName,
    /// The count, if the argument has one.
    pub count: Option<u32>,
}

/// The error for an argument that isn't a proc with or without a count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCount {
    /// The count isn't a number, or is out of range.
    #[error("the count after the = must be a number from 0 to {MOST_INSTANCES}")]
    Number,
    /// The proc's name is invalid.
    #[error(transparent)]
    Proc(#[from] InvalidName),
}

impl FromStr for Count {
    type Err = InvalidCount;

    fn from_str(s: &str) -> Result<Self, InvalidCount> {
        let (proc, count) = match s.split_once('=') {
            None => (s, None),
            Some((proc, count)) => {
                let number: Option<u32> = count.parse().ok();
                let number = number.filter(|n| *n <= MOST_INSTANCES && !count.starts_with('+'));
                (proc, Some(number.ok_or(InvalidCount::Number)?))
            }
        };
        Ok(Count { proc: ProcName::of_spelling(proc)?, count })
    }
}

/// Scales, or shows the formation if there are no targets.
///
/// # Errors
/// Arguments that don't fit together; unknown names; a change that can't converge.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    if args.only_shows() {
        return show(context).await;
    }
    let requests = requests(&args)?;
    let app = context.app().await?;
    let view = context.view(&app).await?;
    for (proc, _) in &requests {
        known_proc(&app, &view, proc)?;
    }
    if let Some(zone) = &args.zone {
        known_zone(context, zone).await?;
    }
    let rev = args.rev.as_ref().map(|prefix| find_rev(&app, &view, prefix)).transpose()?;
    let which = Which { rev: rev.as_ref(), zone: args.zone.as_ref() };
    if args.no_wait {
        for (proc, count) in requests {
            let scaled = scale(context, &app, &view, &proc, count, which).await?;
            let view = context.view(&app).await?;
            put_line(&words(&view, &proc, scaled.value, which.zone));
        }
        return Ok(());
    }

    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let (mut changes, mut changed_at) = (Vec::new(), 0);
    for (proc, count) in requests {
        let before = Before::of(&watch, &proc);
        let by = watch.view().formation.get(&proc).map(|row| row.by.clone()).unwrap_or_default();
        let Decided { value: scaled, revision } = scale(context, &app, &view, &proc, count, which).await?;
        // The view hasn't been updated since, so it still shows the state before the change.
        let overtaken = overtakes(&watch, &proc, scaled, &before, &by);
        changes.push((proc, scaled, before, overtaken));
        changed_at = changed_at.max(revision);
    }
    // Judge only a view that includes the changes.
    shown(context, &mut watch, |watch| watch.has(changed_at)).await?;
    // The failure of one proc must not hide the results of the others.
    let mut failures = Vec::new();
    for (proc, scaled, before, overtaken) in changes {
        overtaken.iter().for_each(|words| say(words));
        let mut line = Line::begin(&words(watch.view(), &proc, scaled, which.zone));
        let beside = watch.view().head.as_ref().is_none_or(|head| head.release != scaled.release);
        let mut dots = Dots { proc: proc.clone(), scaled, before, counted: BTreeSet::new(), beside };
        let settled = settle(context, &mut watch, &[proc], &mut arrivals, |watch| {
            line.dots(dots.look(watch));
            stands(watch, &dots)
        })
        .await;
        failures.extend(settled.err());
    }
    Failure::first_of(failures)
}

/// Returns the requested count for each proc.
fn requests(args: &Args) -> Result<Vec<(ProcName, u32)>> {
    let usage = |what: &str| {
        Err(Failure::new(Kind::Usage, what).hint("bazooka scale -n 2 web, or bazooka scale web=2 job=1"))
    };
    let mut requests: Vec<(ProcName, u32)> = Vec::new();
    for target in &args.targets {
        let count = match (target.count, args.count) {
            (Some(_), Some(_)) => return usage("either -n N or PROC=N says how many, not both"),
            (Some(count), None) | (None, Some(count)) => count,
            (None, None) => return usage(&format!("how many instances of {}?", target.proc)),
        };
        if requests.iter().any(|(proc, _)| *proc == target.proc) {
            return usage(&format!("{} is named twice", target.proc));
        }
        requests.push((target.proc.clone(), count));
    }
    if requests.is_empty() {
        return usage("which proc is to be scaled?");
    }
    Ok(requests)
}

/// The instances of a proc to be scaled, limited to a rev or a zone; without limits, all of the head's.
#[derive(Clone, Copy)]
struct Which<'a> {
    rev: Option<&'a RevId>,
    zone: Option<&'a ZoneName>,
}

/// Refuses a zone that has no host.
async fn known_zone(context: &Context, zone: &ZoneName) -> Result<()> {
    let snapshot = context.visor.read(vec![keys::hosts()]).await?;
    let zones: BTreeSet<&ZoneName> =
        snapshot.hosts.values().filter_map(|view| view.host.as_ref()).map(|host| &host.zone).collect();
    if zones.contains(zone) {
        return Ok(());
    }
    let what = format!("no host is in a zone '{zone}'");
    Err(unknown(what, zone.as_str(), zones.into_iter().map(ZoneName::as_str), "hosts"))
}

async fn scale(
    context: &Context,
    app: &AppName,
    view: &AppView,
    proc: &ProcName,
    count: u32,
    which: Which<'_>,
) -> Result<Decided<Scaled>> {
    let scaled = match which.zone {
        Some(zone) => context.visor.scale_in_zone(app, proc, zone, count, &context.who).await,
        None => context.visor.scale(app, proc, count, which.rev, &context.who, context.now()).await,
    };
    match scaled {
        Ok(scaled) => {
            if scaled.value.from != scaled.value.to {
                context.note_change();
            }
            Ok(scaled)
        }
        Err(error) => Err(context.explain(view, error).await),
    }
}

/// Returns a notice if another user's scale hadn't been reached yet. This later scale replaces it.
fn overtakes(watch: &Watch, proc: &ProcName, scaled: Scaled, before: &Before, by: &str) -> Option<String> {
    let of =
        |id: &&InstanceId| watch.view().instances.get(id).is_some_and(|row| row.release == scaled.release);
    let reached = u32::try_from(before.running.iter().filter(of).count()) == Ok(scaled.from);
    (scaled.from != scaled.to && !reached && !by.is_empty())
        .then(|| format!("{proc} was scaled to {} by {by} and had not come to that", scaled.from))
}

/// Checks that the formation still has the requested count. Of two scales, the later one counts.
fn stands(watch: &Watch, dots: &Dots) -> Result<()> {
    let Dots { proc, scaled, beside, .. } = dots;
    let Some(formation) = watch.view().formation.get(proc) else { return Ok(()) };
    let of_release = || formation.beside.get(&scaled.release).copied().unwrap_or(0);
    let wanted = if *beside { of_release() } else { formation.count };
    if wanted == scaled.to {
        return Ok(());
    }
    let by = if formation.by.is_empty() { String::new() } else { format!(" by {}", formation.by) };
    let what = format!("{proc} was scaled to {wanted}{by} meanwhile, and that holds");
    Err(Failure::new(Kind::Failed, what).hint("`bazooka scale` shows what is wanted"))
}

/// Returns `web@16f7cbf 0 -> 1`, or that the count is reached already.
fn words(view: &AppView, proc: &ProcName, scaled: Scaled, zone: Option<&ZoneName>) -> String {
    let rev = view.releases.get(&scaled.release).map_or("?", |release| release.rev.short());
    let (from, to) = scaled.in_zone.unwrap_or((scaled.from, scaled.to));
    let place = zone.map(|zone| format!(" in {zone}")).unwrap_or_default();
    if from == to {
        format!("{proc}@{rev} is at {to}{place} already")
    } else {
        format!("{proc}@{rev} {from} -> {to}{place}")
    }
}

/// A proc's instances before the change.
struct Before {
    /// The instances that hadn't ended.
    alive: BTreeSet<InstanceId>,
    running: BTreeSet<InstanceId>,
}

impl Before {
    fn of(watch: &Watch, proc: &ProcName) -> Self {
        let all: BTreeSet<InstanceId> =
            watch.view().instances.iter().filter(|(_, i)| i.proc == *proc).map(|(id, _)| *id).collect();
        let running = all.iter().filter(|id| state(watch, **id) == Some(State::Running)).copied().collect();
        let mut alive = all;
        alive.retain(|id| !state(watch, *id).is_some_and(State::is_final));
        Before { alive, running }
    }
}

fn state(watch: &Watch, id: InstanceId) -> Option<State> {
    watch.status(id).map(|status| status.state)
}

/// A counter of instances that start or stop.
struct Dots {
    proc: ProcName,
    scaled: Scaled,
    before: Before,
    counted: BTreeSet<InstanceId>,
    /// True for a release beside the head.
    beside: bool,
}

impl Dots {
    /// Returns how many instances have started or stopped since the last call.
    fn look(&mut self, watch: &Watch) -> usize {
        let Dots { proc, scaled, before, counted, .. } = self;
        let instances = &watch.view().instances;
        let counted_before = counted.len();
        if scaled.to > scaled.from {
            let started = instances.iter().filter(|(id, instance)| {
                instance.proc == *proc
                    && instance.release == scaled.release
                    && !before.running.contains(id)
                    && state(watch, **id) == Some(State::Running)
            });
            counted.extend(started.map(|(id, _)| *id));
        } else if scaled.to < scaled.from {
            let stopped = before
                .alive
                .iter()
                .filter(|id| !instances.contains_key(id) || state(watch, **id).is_some_and(State::is_final));
            counted.extend(stopped);
        }
        counted.len() - counted_before
    }
}

#[derive(Serialize)]
struct Row {
    proc: ProcName,
    release: Option<ReleaseId>,
    rev: Option<RevId>,
    count: u32,
    instances: usize,
    /// The number of instances that must be in each zone, where set.
    zones: BTreeMap<ZoneName, u32>,
}

/// Shows the formation.
async fn show(context: &Context) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
    let rows = formation(&view);
    if context.json {
        put_json(&rows);
        return Ok(());
    }
    let in_zones = rows.iter().any(|row| !row.zones.is_empty());
    let head = &["PROC", "RELEASE", "REV", "COUNT", "INSTANCES", "ZONES"][..if in_zones { 6 } else { 5 }];
    let mut table = Table::new(head);
    for row in rows {
        let zones: Vec<String> = row.zones.iter().map(|(zone, n)| format!("{zone}={n}")).collect();
        let mut cells = vec![
            view.spelling(&row.proc).to_owned(),
            row.release.map(|release| release.to_string()).unwrap_or_default(),
            row.rev.map(|rev| rev.short().to_owned()).unwrap_or_default(),
            row.count.to_string(),
            row.instances.to_string(),
        ];
        if in_zones {
            cells.push(zones.join(" "));
        }
        table.row(cells);
    }
    table.put();
    Ok(())
}

fn formation(view: &AppView) -> Vec<Row> {
    let head = view.head.as_ref().map(|head| head.release);
    let mut rows = Vec::new();
    for proc in view.procs.keys() {
        let formation = view.formation.get(proc);
        let beside = formation.iter().flat_map(|f| f.beside.iter().map(|(id, n)| (Some(*id), *n)));
        for (release, count) in std::iter::once((head, view.count(proc))).chain(beside) {
            let of = |i: &&visor::snapshot::Versioned<visor::schema::Instance>| {
                i.proc == *proc && Some(i.release) == release
            };
            rows.push(Row {
                proc: proc.clone(),
                release,
                rev: release.and_then(|id| view.releases.get(&id)).map(|release| release.rev.clone()),
                count,
                instances: view.instances.values().filter(of).count(),
                zones: formation
                    .filter(|_| release == head)
                    .map(|formation| formation.zones.clone())
                    .unwrap_or_default(),
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{cli::Cli, command::Command, settle::tests::Rig};

    fn asked(words: &[&str]) -> Result<Vec<(String, u32)>, Kind> {
        let cli = Cli::try_parse_from(["bazooka", "scale"].iter().chain(words)).map_err(|_| Kind::Usage)?;
        let Command::scale(args) = cli.command else { panic!("it is scale") };
        let requests = requests(&args).map_err(|failure| failure.kind)?;
        Ok(requests.into_iter().map(|(proc, count)| (proc.to_string(), count)).collect())
    }

    /// The four round trips: read the app, list it for the watch, read what the decision needs, commit.
    #[tokio::test(start_paused = true)]
    async fn a_scale_takes_four_round_trips() {
        let rig = Rig::new().await;
        for (words, from, to) in [("web=0", 1, 0), ("web=0", 0, 0)] {
            let cli = Cli::try_parse_from(["bazooka", "scale", words]).expect("it makes sense");
            let Command::scale(args) = cli.command else { panic!("it is scale") };
            let before = rig.store.round_trips();
            run(&rig.fresh(), args).await.expect("nothing runs that would have to stop");
            // Without a change there is no commit.
            let commits = u64::from(from != to);
            assert_eq!(rig.store.round_trips() - before, 3 + commits, "{words} from {from}");
        }
    }

    #[test]
    fn counts_are_said_in_the_originals_way_or_in_herokus() {
        let usage = Err(Kind::Usage);
        for (words, wanted) in [
            (&["-n", "1", "web"][..], Ok(vec![("web".to_owned(), 1)])),
            (&["-n1", "web"], Ok(vec![("web".to_owned(), 1)])),
            (&["web", "-n", "0"], Ok(vec![("web".to_owned(), 0)])),
            (&["web=2", "job=1"], Ok(vec![("web".to_owned(), 2), ("job".to_owned(), 1)])),
            (&["-n", "2", "web", "job"], Ok(vec![("web".to_owned(), 2), ("job".to_owned(), 2)])),
            (&["-n", "2"], usage.clone()),
            (&["web"], usage.clone()),
            (&["-n", "2", "web=2"], usage.clone()),
            (&["web=1", "web=2"], usage.clone()),
            (&["-n", "-1", "web"], usage.clone()),
            (&["-n", "10001", "web"], usage.clone()),
            (&["-n", "x", "web"], usage.clone()),
            (&["-n", "1", "-r", "zzzz", "web"], usage.clone()),
            (&["-n", "1", "--zone", "north", "web"], Ok(vec![("web".to_owned(), 1)])),
            (&["-n", "1", "--zone", "North!", "web"], usage.clone()),
            (&["-n", "1", "--zone", "north", "-r", "16f7cbf", "web"], usage.clone()),
            (&["--zone", "north", "web"], usage.clone()),
        ] {
            assert_eq!(asked(words), wanted, "{words:?}");
        }
    }

    #[test]
    fn a_target_is_a_proc_with_or_without_its_count() {
        let proc = |s: &str| s.parse::<ProcName>().expect("valid");
        for (said, wanted) in [
            ("web", Some(Count { proc: proc("web"), count: None })),
            ("web=0", Some(Count { proc: proc("web"), count: Some(0) })),
            ("web=12", Some(Count { proc: proc("web"), count: Some(12) })),
            ("web=", None),
            ("web=-1", None),
            ("web=+1", None),
            ("web=1=2", None),
            ("web=10001", None),
            ("web=99999999999", None),
            ("=1", None),
            ("Web_=1", Some(Count { proc: proc("web"), count: Some(1) })),
            ("we.b=1", None),
            ("", None),
        ] {
            assert_eq!(said.parse::<Count>().ok(), wanted, "{said:?}");
        }
    }
}
