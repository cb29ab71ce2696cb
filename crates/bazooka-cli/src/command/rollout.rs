//! `bazooka rollout`: shows the progress of a rollout, and pauses, resumes or aborts it.

use serde::Serialize;
use visor::{
    names::{AppName, ProcName, ReleaseId},
    progress::{Observed, Progress, Verdict, progress},
    schema::{Pause, ReleaseStatus},
    snapshot::AppView,
    transitions::rollouts::{Aborted, is_rolling},
    visor::Refusal,
};

use crate::{
    command::{Audited, CommandKind, lists_unless, releases::word},
    context::Context,
    failure::Result,
    release,
    settle::Arrivals,
    show::{Table, ago, put_json, put_line, say},
    wait::shown,
    watch::Watch,
};

/// Show the app's rollout; pause, resume or abort it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        lists_unless(!matches!(self.action, Action::Status), Audited::Words)
    }
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Show the progress of each proc
    Status,
    /// Pause the rollout: the current batch is finished, and no other batch begins
    Pause,
    /// Resume the rollout
    Resume {
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
    /// Abort the rollout: the release before it is current again, and its instances stay
    Abort {
        /// Return without waiting until the change is in force
        #[arg(long)]
        no_wait: bool,
    },
}

/// Shows, pauses, resumes or aborts the app's rollout.
///
/// # Errors
/// No such app; nothing to abort; a rollout that stops.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    // Report an unknown app, with the nearest name, before waiting for anything.
    context.view(&app).await?;
    match args.action {
        Action::Status => status(context, &app).await,
        Action::Pause => pause(context, &app).await,
        Action::Resume { no_wait } => resume(context, &app, no_wait).await,
        Action::Abort { no_wait } => abort(context, &app, no_wait).await,
    }
}

async fn pause(context: &Context, app: &AppName) -> Result<()> {
    let words = match context.visor.pause_rollouts(app, true, &context.who, context.now()).await? {
        true => "paused: a batch that has begun ends, and no other begins",
        false => "paused already",
    };
    put_line(words);
    Ok(())
}

async fn resume(context: &Context, app: &AppName, no_wait: bool) -> Result<()> {
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let failed = release::failing(&watch, context.now());
    if !context.visor.pause_rollouts(app, false, &context.who, context.now()).await? {
        put_line("not paused");
        return Ok(());
    }
    context.note_change();
    put_line("resumed");
    shown(context, &mut watch, |watch| watch.view().pause.is_none()).await?;
    let Some(head) = watch.view().head.as_ref().map(|head| head.release) else { return Ok(()) };
    if no_wait || !is_rolling(watch.view()) {
        return Ok(());
    }
    let from = watch.view().instances.values().map(|row| row.release).find(|release| *release != head);
    release::roll_out(context, &mut watch, &mut arrivals, from, head, &failed).await
}

async fn abort(context: &Context, app: &AppName, no_wait: bool) -> Result<()> {
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let failed = release::failing(&watch, context.now());
    let view = watch.view();
    let trial = view.trial.as_ref().map(|trial| trial.release);
    let head = view.head.as_ref().map(|head| head.release);
    let called_off = trial.or(head).ok_or_else(|| Refusal::NotReleased(app.clone()))?;
    let aborted = context.visor.abort_rollout(app, called_off, &context.who).await?;
    context.note_change();
    let to = match (aborted, head) {
        (Aborted::Trial, Some(head)) => {
            put_line(&format!("{called_off} aborted; {head} stays current"));
            return Ok(());
        }
        (Aborted::Trial, None) => {
            put_line(&format!("{called_off} aborted"));
            return Ok(());
        }
        (Aborted::BackTo(to), _) => to,
    };
    put_line(&format!("{called_off} aborted; {to} is current again"));
    if no_wait {
        return Ok(());
    }
    let has_moved = |watch: &Watch| watch.view().head.as_ref().is_some_and(|head| head.release != called_off);
    shown(context, &mut watch, has_moved).await?;
    release::roll_out(context, &mut watch, &mut arrivals, Some(called_off), to, &failed).await
}

#[derive(Serialize)]
struct Page {
    app: AppName,
    release: Option<ReleaseId>,
    trial: Option<ReleaseId>,
    paused: Option<Pause>,
    procs: Vec<Row>,
}

/// The rollout of one proc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    proc: ProcName,
    wanted: u32,
    running: u32,
    /// The number of instances of each release that is neither wanted nor on trial.
    old: Vec<Old>,
    state: &'static str,
    cause: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Old {
    release: ReleaseId,
    instances: u32,
}

async fn status(context: &Context, app: &AppName) -> Result<()> {
    let watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let view = watch.view();
    let rows = rows(view, &watch.observed());
    let paused = view.pause.as_ref().map(|pause| pause.value.clone());
    let trial = view.trial.as_ref().map(|trial| trial.release);
    let release = view.head.as_ref().map(|head| head.release);
    if context.json {
        put_json(&Page { app: app.clone(), release, trial, paused, procs: rows });
        return Ok(());
    }
    let mut table = Table::new(&["PROC", "RELEASE", "WANTED", "RUNNING", "OLD", "STATE", "CAUSE"]);
    for row in rows {
        let old: Vec<String> =
            row.old.iter().map(|old| format!("{} of {}", old.instances, old.release)).collect();
        table.row([
            row.proc.to_string(),
            release.map(|release| release.to_string()).unwrap_or_default(),
            row.wanted.to_string(),
            row.running.to_string(),
            old.join(", "),
            row.state.to_owned(),
            row.cause.unwrap_or_default(),
        ]);
    }
    table.put();
    if let Some(pause) = paused {
        let since = ago(pause.at, context.now());
        say(&format!("paused by {} {since} ago; hint: bazooka rollout resume", pause.by));
    }
    if let Some(trial) = trial {
        let status = view.releases.get(&trial).map_or(ReleaseStatus::Trying, |row| row.status);
        say(&format!("{trial} is {}; hint: bazooka rollout abort", word(status)));
    }
    Ok(())
}

/// Returns a row for each proc that wants instances or has old ones.
fn rows(view: &AppView, observed: &Observed<'_>) -> Vec<Row> {
    let trial = view.trial.as_ref().map(|trial| trial.release);
    let row = |proc: &ProcName| {
        let judged = progress(view, observed, proc);
        let mut old: Vec<Old> = Vec::new();
        let passing = view.instances.values().filter(|row| {
            row.proc == *proc && !judged.wanted.contains_key(&row.release) && Some(row.release) != trial
        });
        for instance in passing {
            match old.iter_mut().find(|old| old.release == instance.release) {
                Some(old) => old.instances += 1,
                None => old.push(Old { release: instance.release, instances: 1 }),
            }
        }
        let (state, cause) = state(view, &judged, !old.is_empty());
        Row {
            proc: proc.clone(),
            wanted: judged.wanted_in_all(),
            running: judged.running_in_all(),
            old,
            state,
            cause,
        }
    };
    let rows = view.procs.keys().map(row);
    rows.filter(|row| row.wanted > 0 || !row.old.is_empty()).collect()
}

fn state(view: &AppView, judged: &Progress, has_old: bool) -> (&'static str, Option<String>) {
    let reason = judged.pending.as_ref().map(|pending| pending.reason.clone());
    match &judged.verdict {
        Verdict::Converged => ("done", None),
        Verdict::Stuck { cause } => ("fails", Some(cause.clone())),
        Verdict::Paused => ("paused", None),
        Verdict::Underway if reason.is_some() => ("waits", reason),
        Verdict::Underway if has_old && view.pause.is_some() => ("pausing", None),
        Verdict::Underway if has_old => ("rolling", None),
        Verdict::Underway => ("converging", None),
    }
}
