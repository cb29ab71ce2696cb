//! `bazooka why`: the whole story of an instance, or of a proc and what it lacks.
//!
//! Owns the wording. [`of_instance`] and [`of_proc`] are pure.

use std::fmt::Write;

use jiff::Timestamp;
use serde::Serialize;
use visor::{
    keys::{self, Key},
    names::{AppName, HostName, InstanceId, ProcName},
    progress::{Progress, Verdict, frozen_words, progress},
    schema::{Assignment, Desired, Ended, Exit, Instance, Status},
    settings,
    snapshot::{AppView, Snapshot},
    store::Keys,
    visor::Refusal,
};

use crate::{
    command::{CommandKind, releases::word},
    context::{Context, known_proc, ports_of},
    failure::Result,
    settle::{instances, unserved},
    show::{ago, cause, clean, moment, put, put_json, span},
    target::Target,
    watch::Watch,
};

/// Explain the state of an instance or of a proc, with its history
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A proc, or an instance's id
    pub target: Target,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

/// The number of ended instances that are shown for a proc.
const ENDED_SHOWN: usize = 5;

/// The known facts of a living or ended instance.
#[derive(Clone, Debug, Serialize)]
struct Story<'a> {
    id: InstanceId,
    app: &'a AppName,
    instance: &'a Instance,
    assigned: Option<&'a Assignment>,
    status: Option<&'a Status>,
    /// The end of the instance with its cause, once it is archived.
    ended: Option<&'a Ended>,
}

/// Prints the story.
///
/// # Errors
/// Those of the store; unknown names.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    let leader = Keys::One(Key::Leader.to_string());
    let more = vec![keys::history_of(&app), keys::proxies(), leader, keys::schema(), keys::ports()];
    let (view, around) = context.view_with(&app, more).await?;
    match args.target {
        Target::Proc(proc) => {
            known_proc(&app, &view, &proc)?;
            let watch = Watch::open(context.visor.store().clone(), app.clone()).await;
            let observed = watch.observed();
            let judged = progress(watch.view(), &observed, &proc);
            let stories: Vec<Story<'_>> = watch
                .view()
                .instances
                .iter()
                .filter(|(_, instance)| instance.proc == proc)
                .map(|(id, instance)| Story {
                    id: *id,
                    app: &app,
                    instance: &instance.value,
                    assigned: watch.assigned(*id).map(|assigned| &assigned.value),
                    status: watch.status(*id).map(|status| &status.value),
                    ended: None,
                })
                .collect();
            let ended = ended_of(&app, &view, &proc);
            if context.json {
                let pending = judged.pending.as_ref();
                put_json(&serde_json::json!({
                    "app": app,
                    "proc": proc,
                    "wanted": judged.wanted,
                    "running": judged.running,
                    "pending": pending,
                    "instances": stories,
                    "ended": ended,
                }));
            } else {
                put(&of_proc(&app, watch.view(), &proc, &judged, &stories, &ended, &around, context.now()));
            }
        }
        Target::Instance(id) => {
            let text = |story: &Story<'_>| {
                if context.json {
                    put_json(story);
                } else {
                    put(&of_instance(story, &view, context.now()));
                }
            };
            if let Some(instance) = view.instances.get(&id) {
                let (assigned, status) = rows_of(context, &instance.host, id).await?;
                text(&Story {
                    id,
                    app: &app,
                    instance: &instance.value,
                    assigned: assigned.as_ref(),
                    status: status.as_ref(),
                    ended: None,
                });
            } else if let Some((_, ended)) = view.history.iter().find(|((_, ended), _)| *ended == id) {
                text(&story_of_ended(&app, id, &ended.value));
            } else {
                let failure = crate::failure::Failure::from(Refusal::NoSuchInstance(app.clone(), id));
                return Err(failure.because(format!(
                    "neither now nor among the last {} of a proc that have ended",
                    visor::transitions::placement::HISTORY_PER_PROC
                )));
            }
        }
    }
    Ok(())
}

async fn rows_of(
    context: &Context,
    host: &HostName,
    id: InstanceId,
) -> Result<(Option<Assignment>, Option<Status>)> {
    let keys = [Key::Assigned(host.clone(), id), Key::Status(host.clone(), id)];
    let scopes = keys.iter().map(|key| Keys::One(key.to_string())).collect();
    let mut snapshot = context.visor.read(scopes).await?;
    let view = snapshot.hosts.remove(host).unwrap_or_default();
    let assigned = view.assigned.into_values().next().map(|assigned| assigned.value);
    Ok((assigned, view.status.into_values().next().map(|status| status.value)))
}

fn story_of_ended<'a>(app: &'a AppName, id: InstanceId, ended: &'a Ended) -> Story<'a> {
    let status = ended.status.as_ref();
    Story { id, app, instance: &ended.instance, assigned: None, status, ended: Some(ended) }
}

/// Returns the last ended instances of a proc, newest first.
fn ended_of<'a>(app: &'a AppName, view: &'a AppView, proc: &ProcName) -> Vec<Story<'a>> {
    let of = view.history.iter().rev().filter(|((of, _), _)| of == proc).take(ENDED_SHOWN);
    of.map(|((_, id), ended)| story_of_ended(app, *id, &ended.value)).collect()
}

/// A writer of indented `label: words` lines, which cleans text from outside.
struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, words: &str) {
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "{:depth$}{}", "", clean(words));
    }

    fn field(&mut self, label: &str, words: &str) {
        self.line(2, &format!("{label:<9} {words}"));
    }
}

/// Returns the story of an instance.
fn of_instance(story: &Story<'_>, view: &AppView, now: Timestamp) -> String {
    let Story { id, app, instance, assigned, status, ended } = story;
    let mut page = Page(String::new());
    let release = instance.release;
    let env = view.releases.get(&release).map(|release| format!(", {}", release.env)).unwrap_or_default();
    page.line(
        0,
        &format!(
            "{}.{id} of {app}: {release} ({}{env}), index {}",
            instance.proc,
            instance.rev.short(),
            instance.index
        ),
    );
    page.field(
        "placed",
        &format!("on {}, {} ago: {}", instance.host, ago(instance.placed_at, now), instance.reason),
    );
    if let Some(assigned) = assigned {
        let why = assigned.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        match assigned.desired {
            Desired::Run if view.trial.as_ref().is_some_and(|trial| trial.release == release) => {
                page.field("meant to", "run, as part of its release's trial")
            }
            Desired::Run => page.field("meant to", "run"),
            Desired::Drain => {
                page.field("meant to", &format!("serve what it has, and take nothing new{why}"))
            }
            Desired::Stop => page.field("meant to", &format!("stop{why}")),
        }
        page.field("command", &assigned.command);
    }
    match status {
        None => page.field("state", "its host has said nothing of it yet"),
        Some(status) => of_status(&mut page, status, now),
    }
    if let Some(ended) = ended {
        let why = ended.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        page.field("archived", &format!("{} ago{why}", ago(ended.at, now)));
    }
    page.0
}

fn of_status(page: &mut Page, status: &Status, now: Timestamp) {
    let said = status.cause.as_ref().map(|said| cause(said, status.next_start_at, now));
    let cause = said.map(|said| format!(": {said}")).unwrap_or_default();
    page.field("state", &format!("{}, for {}{cause}", status.state.word(), ago(status.since, now)));
    if let (Some(ip), Some(port)) = (status.ip, status.port) {
        page.field("address", &format!("{ip}:{port}"));
    }
    if let Some(pid) = status.pid {
        let since = status.started_at.map(|at| format!(", started {} ago", ago(at, now))).unwrap_or_default();
        page.field("process", &format!("{pid}{since}"));
    }
    if status.restarts > 0 {
        page.field("restarts", &status.restarts.to_string());
    }
    for (at, exit) in status.exits.iter().enumerate() {
        page.field(if at == 0 { "exits" } else { "" }, &format!("{}  {}", moment(exit.at), exit_words(exit)));
    }
    for (at, told) in status.story.iter().enumerate() {
        page.field(if at == 0 { "story" } else { "" }, &format!("{}  {}", moment(told.at), told.what));
    }
    for (at, line) in status.last_output.iter().enumerate() {
        page.field(if at == 0 { "output" } else { "" }, &format!("| {line}"));
    }
}

/// Describes how a process ended.
fn exit_words(exit: &Exit) -> String {
    let ran = match exit.ran_ms {
        ms @ 0..10_000 => format!("after {:.1} s", ms as f64 / 1000.0),
        ms => format!(
            "after {}",
            span(jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX)))
        ),
    };
    let how = match (exit.code, exit.signal) {
        _ if exit.out_of_memory => "ended by the kernel: out of memory".to_owned(),
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map(|signal| format!(" ({signal})"));
            format!("ended by signal {signal}{}", name.unwrap_or_default())
        }
        (None, None) => "ended, nobody saw how".to_owned(),
    };
    format!("{how} {ran}")
}

/// Tells which of a service's rows cannot be read, and which values count as their bounds.
fn of_bounds(page: &mut Page, app: &AppName, view: &AppView, proc: &ProcName, around: &Snapshot) {
    if let Some((key, why)) = around.unreadable_below(app) {
        page.field("left as it is", &format!("{key} can't be read: {why}"));
    }
    if let Some(out) = around.out_of_bounds(&Key::Formation(app.clone(), proc.clone())) {
        out.words.iter().for_each(|words| page.field("bounded", words));
    }
    for setting in settings::ALL {
        let out =
            view.procs.get(proc).and_then(|row| Some((setting.out_of_bounds(row)?, setting.stored(row)?)));
        if let Some((said, counts)) = out {
            page.field("bounded", &format!("{} is {said}, and counts as {counts}", setting.name));
        }
    }
}

/// Returns the story of a proc: the wanted and existing instances, and the obstacles.
#[allow(clippy::too_many_arguments, reason = "each is one thing that was read, and there is one caller")]
fn of_proc(
    app: &AppName,
    view: &AppView,
    proc: &ProcName,
    judged: &Progress,
    stories: &[Story<'_>],
    ended: &[Story<'_>],
    around: &Snapshot,
    now: Timestamp,
) -> String {
    let mut page = Page(String::new());
    let port = ports_of(app, view, around).get(proc).map(|port| format!(", port {port}")).unwrap_or_default();
    page.line(0, &format!("{proc} of {app}{port}"));
    match view.head_release() {
        None => page.field("release", "none yet; hint: git push bazooka master"),
        Some((id, release)) => {
            page.field(
                "release",
                &format!("{id} ({}, {}): {}", release.rev.short(), release.env, release.reason),
            );
            match view.command(id, proc) {
                Some(command) => page.field("command", command),
                None => page.field("command", "none: the current release has no such proc"),
            }
        }
    }
    if let Some((id, release)) = view.releases.iter().next_back().filter(|_| view.trial.is_some()) {
        page.field("trial", &format!("{id} ({}) is {}", release.rev.short(), word(release.status)));
    }
    if judged.wanted.is_empty() {
        page.field("wanted", &format!("none; hint: bazooka scale -n 1 {proc}"));
    }
    for (release, count) in &judged.wanted {
        let running = judged.running.get(release).copied().unwrap_or(0);
        page.field("wanted", &format!("{count} of {release}, {running} run"));
    }
    let verdict = match &judged.verdict {
        Verdict::Converged => "as wanted".to_owned(),
        Verdict::Paused => {
            let by = view.pause.as_ref().map(|pause| pause.by.as_str()).unwrap_or_default();
            format!(
                "the rollout is paused by {by}: {} of an earlier release stay; hint: bazooka rollout resume",
                judged.stopping.len()
            )
        }
        Verdict::Underway => {
            format!("{} starting, {} stopping", judged.starting.len(), judged.stopping.len())
        }
        Verdict::Stuck { .. } => {
            let ids: Vec<String> = judged.failing.iter().map(|(id, _)| id.to_string()).collect();
            format!("it fails: see {}", ids.join(", "))
        }
    };
    page.field("verdict", &verdict);
    if let Some(pending) = &judged.pending {
        let since = ago(pending.since, now);
        page.field(
            "no place",
            &format!("for {}, since {since}: {}", instances(pending.short), pending.reason),
        );
        for line in pending.lines() {
            page.field("", &line);
        }
    }
    of_bounds(&mut page, app, view, proc, around);
    match &around.leader {
        None => page.field("converger", "none is elected: nothing is placed or stopped"),
        Some(leader) => {
            if let Some(frozen) = &leader.frozen {
                page.field("frozen", &frozen_words(frozen));
            }
        }
    }
    for words in unserved(app, proc, &around.proxies) {
        page.field("warning", &words);
    }
    let mut text = page.0;
    for story in stories {
        text.push('\n');
        text.push_str(&of_instance(story, view, now));
    }
    if stories.is_empty() {
        for story in ended {
            text.push('\n');
            text.push_str(&of_instance(story, view, now));
        }
    } else if !ended.is_empty() {
        let ids: Vec<String> = ended.iter().map(|story| story.id.to_string()).collect();
        let _ = writeln!(text, "\nended before: {} (bazooka why ID)", ids.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use visor::{
        names::ReleaseId,
        schema::{Extra, Moment, State},
    };

    use super::*;

    fn exit(code: Option<i32>, signal: Option<i32>, out_of_memory: bool, ran_ms: u64) -> Exit {
        Exit { at: Timestamp::UNIX_EPOCH, code, signal, out_of_memory, ran_ms, extra: Extra::new() }
    }

    #[test]
    fn an_exit_is_told_in_words() {
        for (exit, wanted) in [
            (exit(Some(1), None, false, 120), "exited with status 1 after 0.1 s"),
            (exit(None, Some(9), false, 75_000), "ended by signal 9 (SIGKILL) after 1m"),
            (exit(None, Some(9), true, 500), "ended by the kernel: out of memory after 0.5 s"),
            (exit(None, None, false, 0), "ended, nobody saw how after 0.0 s"),
        ] {
            assert_eq!(exit_words(&exit), wanted);
        }
    }

    #[test]
    fn an_instances_story_is_whole_and_clean() {
        let instance = Instance {
            host: "host1".parse().expect("valid"),
            proc: "fail".parse().expect("valid"),
            release: ReleaseId(2),
            rev: "16f7cbf0123456789012345678901234567890ab".parse().expect("valid"),
            index: 0,
            placed_at: Timestamp::UNIX_EPOCH,
            reason: "0 of 1 there".into(),
            extra: Extra::new(),
        };
        let mut status = Status::new(State::Backoff, Timestamp::from_second(60).expect("a time"));
        status.cause = Some("exited with status 1, 4 times".into());
        status.next_start_at = Timestamp::from_second(150).ok();
        status.restarts = 3;
        status.exits = vec![exit(Some(1), None, false, 100)];
        status.story = vec![Moment { at: Timestamp::UNIX_EPOCH, what: "claimed".into() }];
        status.last_output = vec!["\u{1b}[31mthe engine is not there".into()];
        let app: AppName = "goto-rocket".parse().expect("valid");
        let story = Story {
            id: InstanceId(7),
            app: &app,
            instance: &instance,
            assigned: None,
            status: Some(&status),
            ended: None,
        };
        let text = of_instance(&story, &AppView::default(), Timestamp::from_second(120).expect("a time"));
        for wanted in [
            "fail.7 of goto-rocket: v2 (16f7cbf), index 0\n",
            "  placed    on host1, 2m ago: 0 of 1 there\n",
            "  state     backoff, for 1m: exited with status 1, 4 times; next start in 30s\n",
            "  restarts  3\n",
            "exited with status 1 after 0.1 s\n",
            "  claimed\n",
            "  output    | the engine is not there\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in:\n{text}");
        }
    }
}
