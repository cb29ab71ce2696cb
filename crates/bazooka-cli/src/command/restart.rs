//! `bazooka restart`: replaces running instances; each new one runs before the old one is stopped.

use std::collections::BTreeSet;

use visor::{
    names::{AppName, InstanceId, ProcName},
    snapshot::AppView,
    visor::Refusal,
};

use crate::{
    command::{Audited, CommandKind},
    context::{Context, known_proc},
    failure::{Failure, Result},
    settle::{Arrivals, Line, settle},
    show::put_line,
    target::Target,
    wait::shown,
    watch::Watch,
};

/// Replace running instances by new ones
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A proc, or an instance's id [default: every proc]
    pub target: Option<Target>,
    /// Return without waiting until the change is in force
    #[arg(long)]
    pub no_wait: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Changes(Audited::Words)
    }
}

/// Replaces a proc's instances, one instance, or all.
///
/// # Errors
/// Unknown names; replacements that can't run.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let Args { target, no_wait } = args;
    let app = context.app().await?;
    let view = context.view(&app).await?;
    let targets = targets(&app, &view, target)?;
    if targets.is_empty() {
        put_line("nothing runs that could be restarted");
        return Ok(());
    }
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let mut lines = Vec::new();
    for (proc, only) in targets {
        let restarted = match context.visor.restart(&app, &proc, only).await {
            Ok(restarted) => restarted,
            Err(error) => return Err(context.explain(&view, error).await),
        };
        context.note_change();
        lines.push((proc, restarted));
    }
    let restarted_at = lines.iter().map(|(_, restarted)| restarted.revision).max().unwrap_or(0);
    if !no_wait {
        shown(context, &mut watch, |watch| watch.has(restarted_at)).await?;
    }
    let mut failures = Vec::new();
    for (proc, restarted) in lines {
        let ids = restarted.value;
        let mut line = Line::begin(&format!("{proc} restart {}", ids.len()));
        if no_wait {
            continue;
        }
        let mut left: BTreeSet<InstanceId> = ids.into_iter().collect();
        let settled = settle(context, &mut watch, &[proc], &mut arrivals, |watch| {
            let before = left.len();
            left.retain(|id| watch.view().instances.contains_key(id));
            line.dots(before - left.len());
            Ok(())
        })
        .await;
        failures.extend(settled.err());
    }
    Failure::first_of(failures)
}

/// Returns the targets of the restart: the procs that have instances, or one instance.
fn targets(
    app: &AppName,
    view: &AppView,
    target: Option<Target>,
) -> Result<Vec<(ProcName, Option<InstanceId>)>> {
    let has_any = |proc: &ProcName| view.instances.values().any(|instance| instance.proc == *proc);
    match target {
        None => Ok(view.procs.keys().filter(|proc| has_any(proc)).map(|proc| (proc.clone(), None)).collect()),
        Some(Target::Proc(proc)) => {
            known_proc(app, view, &proc)?;
            Ok(if has_any(&proc) { vec![(proc, None)] } else { Vec::new() })
        }
        Some(Target::Instance(id)) => match view.instances.get(&id) {
            Some(instance) => Ok(vec![(instance.proc.clone(), Some(id))]),
            None => Err(Refusal::NoSuchInstance(app.clone(), id).into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use visor::keys::Key;

    use super::*;
    use crate::settle::tests::Rig;

    /// The four round trips: read the app, list it for the watch, read what the decision needs, commit.
    #[tokio::test(start_paused = true)]
    async fn a_restart_takes_four_round_trips() {
        let rig = Rig::new().await;
        let instance = serde_json::json!({
            "host": "h1", "proc": "web", "release": "v1", "rev": "1".repeat(40), "index": 0,
            "placed_at": Timestamp::UNIX_EPOCH, "reason": "",
        });
        rig.write(&Key::Instance(rig.app.clone(), InstanceId(1)), &instance).await;
        let before = rig.store.round_trips();
        let target = Some(Target::Proc(rig.web.clone()));
        // Listing the rows of the instance's host is one more, but only a command that waits awaits it.
        run(&rig.fresh(), Args { target, no_wait: true }).await.expect("it runs");
        let of_host = 1;
        assert_eq!(rig.store.round_trips() - before, 4 + of_host);
    }
}
