//! `bazooka restart`: new instances in the place of those that run, each up before its forerunner goes.

use std::collections::BTreeSet;

use visor::{
    keys::Key,
    names::{AppName, InstanceId, ProcName},
    schema::Formation,
    snapshot::AppView,
    visor::Refusal,
};

use crate::{
    args::Which,
    context::{Context, known_proc},
    failure::{Failure, Result},
    settle::{Arrivals, Line, settle},
    show::put_line,
    watch::Watch,
};

/// Replaces a proc's instances, or one, or all.
///
/// # Errors
/// Unknown names; replacements that can't run.
pub async fn run(context: &Context, target: Option<Which>, no_wait: bool) -> Result<()> {
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
        let ids = match context.visor.restart(&app, &proc, only).await {
            Ok(ids) => ids,
            Err(error) => return Err(context.explain(&view, error).await),
        };
        context.note_change();
        lines.push((proc, ids));
    }
    for (proc, _) in &lines {
        let formation = context.visor.get::<Formation>(&Key::Formation(app.clone(), proc.clone())).await?;
        let revision = formation.map_or(0, |formation| formation.mod_revision);
        while !no_wait && !watch.has(revision) {
            watch.next().await;
        }
    }
    let mut failures = Vec::new();
    for (proc, ids) in lines {
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

/// What is to be restarted: procs that have instances, or one instance of a proc.
fn targets(
    app: &AppName,
    view: &AppView,
    target: Option<Which>,
) -> Result<Vec<(ProcName, Option<InstanceId>)>> {
    let has_any = |proc: &ProcName| view.instances.values().any(|instance| instance.proc == *proc);
    match target {
        None => Ok(view.procs.keys().filter(|proc| has_any(proc)).map(|proc| (proc.clone(), None)).collect()),
        Some(Which::Proc(proc)) => {
            known_proc(app, view, &proc)?;
            Ok(if has_any(&proc) { vec![(proc, None)] } else { Vec::new() })
        }
        Some(Which::Instance(id)) => match view.instances.get(&id) {
            Some(instance) => Ok(vec![(instance.proc.clone(), Some(id))]),
            None => Err(Refusal::NoSuchInstance(app.clone(), id).into()),
        },
    }
}
