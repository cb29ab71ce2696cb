//! `bazooka events`: changes of an app, as they happen.
//!
//! The cluster doesn't record events. Each event is a difference between two successive views of the app's rows.
//! [`tell`] is pure.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;
use visor::{
    names::{InstanceId, ProcName, ReleaseId},
    schema::{Desired, Formation, ReleaseStatus, State, Status},
};

use crate::{
    command::{CommandKind, releases::word},
    context::Context,
    failure::Result,
    settle::instances,
    show::{clean, moment, put_json_line, put_line, say},
    watch::{Seen, Watch},
};

/// Show what happens to the app, as it happens
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Follows
    }
}

/// The time that the coordinator may be out of touch before a notice.
const OUT_OF_TOUCH_AFTER: Duration = Duration::from_secs(3);

/// A change of the app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// The kind of the changed thing: `app`, `rev`, `env`, `release`, `formation`, `pending`, `instance` or `proxy`.
    pub of: &'static str,
    /// The proc, if the change is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proc: Option<ProcName>,
    /// The instance, if the change is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// The release, if the change is of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// A description for people.
    pub what: String,
}

#[derive(Serialize)]
struct EventLine<'a> {
    at: Timestamp,
    #[serde(flatten)]
    event: &'a Event,
}

/// Prints events until the user interrupts it or the app is destroyed.
///
/// # Errors
/// Those of the store at the start; no such app.
pub async fn run(context: &Context, _: Args) -> Result<()> {
    let app = context.app().await?;
    context.view(&app).await?;
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut before = watch.seen();
    loop {
        if !watch.is_whole() {
            // The rows of a new host take a moment to arrive; only a longer gap gets a notice.
            let whole = async {
                while !watch.is_whole() {
                    watch.next().await;
                }
            };
            if timeout(OUT_OF_TOUCH_AFTER, whole).await.is_err() {
                say("out of touch with the coordinator; going on once it answers");
                while !watch.is_whole() {
                    watch.next().await;
                }
                say("in touch again");
            }
        } else {
            watch.next().await;
            if !watch.is_whole() {
                continue;
            }
        }
        let after = watch.seen();
        let at = context.now();
        for event in tell(&before, &after) {
            if context.json {
                put_json_line(&EventLine { at, event: &event });
            } else {
                put_line(&line(at, &event));
            }
        }
        before = after;
        if before.view.app.is_none() {
            say(&format!("app '{app}' is gone"));
            return Ok(());
        }
    }
}

fn line(at: Timestamp, event: &Event) -> String {
    let subject = match (&event.proc, event.instance, event.release) {
        (Some(proc), Some(id), _) => format!("{proc}.{id}"),
        (Some(proc), None, _) => proc.to_string(),
        (None, _, Some(release)) => release.to_string(),
        (None, ..) => event.of.to_owned(),
    };
    format!("{}  {subject}  {}", moment(at), clean(&event.what))
}

/// Returns the changes between two views.
pub fn tell(before: &Seen, after: &Seen) -> Vec<Event> {
    let mut events = Vec::new();
    of_app(before, after, &mut events);
    of_releases(before, after, &mut events);
    of_formation(before, after, &mut events);
    of_instances(before, after, &mut events);
    for ((proxy, service), why) in &after.refused {
        if before.refused.get(&(proxy.clone(), service.clone())) != Some(why) {
            events.push(event("proxy", format!("{proxy} can't serve {service}: {why}")));
        }
    }
    for (proxy, service) in before.refused.keys().filter(|key| !after.refused.contains_key(*key)) {
        events.push(event("proxy", format!("{proxy} serves {service}")));
    }
    events
}

fn event(of: &'static str, what: impl Into<String>) -> Event {
    Event { of, proc: None, instance: None, release: None, what: what.into() }
}

fn of_app(before: &Seen, after: &Seen, events: &mut Vec<Event>) {
    match (&before.view.app, &after.view.app) {
        (None, Some(app)) => events.push(event("app", format!("registered by {}", app.owner))),
        (Some(_), None) => events.push(event("app", "destroyed")),
        (Some(was), Some(is)) if is.destroying && !was.destroying => {
            events.push(event("app", "is being destroyed"));
        }
        _ => {}
    }
    match (&before.view.pause, &after.view.pause) {
        (None, Some(pause)) => events.push(event("app", format!("rollouts are paused by {}", pause.by))),
        (Some(_), None) => events.push(event("app", "rollouts go on")),
        _ => {}
    }
    for (id, rev) in after.view.revs.iter().filter(|(id, _)| !before.view.revs.contains_key(*id)) {
        let subject = if rev.subject.is_empty() { String::new() } else { format!(": {}", rev.subject) };
        events.push(event("rev", format!("{} registered by {} ({}){subject}", id.short(), rev.by, rev.kind)));
    }
    for (id, proc) in after.view.procs.iter().filter(|(id, _)| !before.view.procs.contains_key(*id)) {
        let of = event("proc", format!("registered, port {}", proc.port));
        events.push(Event { proc: Some(id.clone()), ..of });
    }
    for (id, env) in after.view.envs.iter().filter(|(id, _)| !before.view.envs.contains_key(*id)) {
        events.push(event("env", format!("{id} set by {}", env.by)));
    }
}

fn of_releases(before: &Seen, after: &Seen, events: &mut Vec<Event>) {
    let mut push = |id: ReleaseId, what: String| {
        events.push(Event { release: Some(id), ..event("release", what) });
    };
    for (id, is) in &after.view.releases {
        let was = before.view.releases.get(id);
        if was.is_none() {
            let made = format!("made by {} ({}, {}): {}", is.by, is.rev.short(), is.env, is.reason);
            push(*id, made);
        }
        if was.is_none_or(|was| was.status != is.status) {
            match (is.status, &is.cause) {
                (ReleaseStatus::Failed, Some(cause)) => {
                    push(*id, format!("failed: {}", cause.lines().next().unwrap_or_default()));
                }
                (status, _) => push(*id, word(status).to_owned()),
            }
        }
        if let Some(cause) = is.cause.as_ref().filter(|_| is.was_aborted()) {
            if !was.is_some_and(|was| was.was_aborted()) {
                push(*id, cause.clone());
            }
        }
    }
    let head = |seen: &Seen| seen.view.head.as_ref().map(|head| head.release);
    if let Some(release) = head(after).filter(|_| head(before) != head(after)) {
        push(release, "is current".to_owned());
    }
}

fn of_formation(before: &Seen, after: &Seen, events: &mut Vec<Event>) {
    let nothing = Formation::default();
    let mut push = |of, proc: &ProcName, what: String| {
        events.push(Event { proc: Some(proc.clone()), ..event(of, what) });
    };
    for (proc, is) in &after.view.formation {
        let was = before.view.formation.get(proc).map_or(&nothing, |was| &was.value);
        if was.count != is.count {
            push("formation", proc, format!("{} -> {} wanted", was.count, is.count));
        }
        let releases: BTreeSet<&ReleaseId> = was.beside.keys().chain(is.beside.keys()).collect();
        for id in releases {
            let (was, is) = (was.beside.get(id).unwrap_or(&0), is.beside.get(id).unwrap_or(&0));
            if was != is {
                push("formation", proc, format!("{was} -> {is} of {id} wanted beside"));
            }
        }
        let shared: BTreeSet<&ReleaseId> = was.weights.keys().chain(is.weights.keys()).collect();
        for id in shared {
            match (was.weights.get(id), is.weights.get(id)) {
                (was, Some(is)) if was != Some(is) => {
                    push("formation", proc, format!("{is} % of the traffic to {id}"));
                }
                (Some(_), None) => push("formation", proc, format!("no share of its own for {id}")),
                _ => {}
            }
        }
        if was.replace_before != is.replace_before {
            push("formation", proc, "restart asked for".to_owned());
        }
        for id in is.replace.difference(&was.replace) {
            push("formation", proc, format!("restart of {id} asked for"));
        }
    }
    for (proc, is) in &after.view.pending {
        let was = before.view.pending.get(proc);
        if was.is_none_or(|was| (was.short, &was.reason) != (is.short, &is.reason)) {
            push("pending", proc, format!("no place for {}: {}", instances(is.short), is.reason));
        }
    }
    for proc in before.view.pending.keys().filter(|proc| !after.view.pending.contains_key(*proc)) {
        push("pending", proc, "all have a place".to_owned());
    }
}

fn of_instances(before: &Seen, after: &Seen, events: &mut Vec<Event>) {
    let mut push = |id: InstanceId, proc: &ProcName, release: ReleaseId, what: String| {
        let (proc, release) = (Some(proc.clone()), Some(release));
        events.push(Event { of: "instance", proc, instance: Some(id), release, what });
    };
    for (id, instance) in &after.view.instances {
        let (proc, release) = (&instance.proc, instance.release);
        if !before.view.instances.contains_key(id) {
            push(*id, proc, release, format!("placed on {} ({release}): {}", instance.host, instance.reason));
        }
        let was = before.assigned.get(id).map_or(Desired::Run, |was| was.desired);
        if let Some(is) = after.assigned.get(id).filter(|is| is.desired != was) {
            let why = is.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            match is.desired {
                Desired::Run => {}
                Desired::Drain => push(*id, proc, release, format!("is taken out of routing{why}")),
                Desired::Stop => push(*id, proc, release, format!("is told to stop{why}")),
            }
        }
        let told = after.statuses.get(id).and_then(|is| status_event(before.statuses.get(id), is));
        if let Some(what) = told {
            push(*id, proc, release, what);
        }
    }
    for (id, instance) in &before.view.instances {
        if !after.view.instances.contains_key(id) {
            push(*id, &instance.proc, instance.release, "is archived".to_owned());
        }
    }
}

/// Returns the event for a host's new status; `None` if it isn't worth showing.
fn status_event(was: Option<&Status>, is: &Status) -> Option<String> {
    let same = was.is_some_and(|was| was.state == is.state);
    let again = was.is_some_and(|was| was.restarts < is.restarts);
    let cause = is.cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
    Some(match is.state {
        State::Claimed if again => format!("starts again (restart {}){cause}", is.restarts),
        State::Claimed if same => return None,
        State::Claimed => "starts".to_owned(),
        State::Running if again => format!("runs again (restart {})", is.restarts),
        State::Running if same => return None,
        State::Running => match (is.ip, is.port) {
            (Some(ip), Some(port)) => format!("runs at {ip}:{port}"),
            _ => "runs".to_owned(),
        },
        State::Backoff if same && !again => return None,
        State::Backoff => format!("backs off{cause}"),
        State::Stopping | State::Exited | State::Failed | State::Lost if same => return None,
        State::Stopping => "stops".to_owned(),
        State::Exited => format!("has ended{cause}"),
        State::Failed => format!("has failed{cause}"),
        State::Lost => format!("is lost{cause}"),
    })
}

#[cfg(test)]
mod tests {
    use visor::{
        schema::{Extra, Instance},
        snapshot::Versioned,
    };

    use super::*;

    fn at<T>(value: T) -> Versioned<T> {
        Versioned { value, create_revision: 1, mod_revision: 1, lease: None }
    }

    fn lines(before: &Seen, after: &Seen) -> Vec<String> {
        let subject =
            |event: &Event| line(Timestamp::UNIX_EPOCH, event).split_once("  ").expect("a time").1.to_owned();
        tell(before, after).iter().map(subject).collect()
    }

    fn web() -> ProcName {
        "web".parse().expect("valid")
    }

    fn placed(seen: &mut Seen, id: u64) {
        let instance = Instance {
            host: "host1".parse().expect("valid"),
            proc: web(),
            release: ReleaseId(2),
            rev: "16f7cbf0123456789012345678901234567890ab".parse().expect("valid"),
            index: 0,
            placed_at: Timestamp::UNIX_EPOCH,
            reason: "0 of 1 there".into(),
            extra: Extra::new(),
        };
        seen.view.instances.insert(InstanceId(id), at(instance));
    }

    fn says(seen: &mut Seen, id: u64, state: State, change: impl Fn(&mut Status)) {
        let mut status = Status::new(state, Timestamp::UNIX_EPOCH);
        change(&mut status);
        seen.statuses.insert(InstanceId(id), status);
    }

    #[test]
    fn an_instances_life_is_told_step_by_step() {
        let mut steps = vec![Seen::default()];
        let mut step = |change: &dyn Fn(&mut Seen)| {
            let mut next = steps.last().cloned().unwrap_or_default();
            change(&mut next);
            steps.push(next);
        };
        step(&|seen| placed(seen, 7));
        step(&|seen| says(seen, 7, State::Claimed, |_| {}));
        step(&|seen| {
            says(seen, 7, State::Running, |status| {
                status.ip = Some("127.0.0.2".parse().expect("valid"));
                status.port = Some(21000);
            });
        });
        step(&|seen| says(seen, 7, State::Claimed, |status| status.restarts = 1));
        step(&|seen| {
            says(seen, 7, State::Backoff, |status| {
                status.restarts = 1;
                status.cause = Some("exited with\nstatus 1".into());
            });
        });
        step(&|_| {});
        step(&|seen| says(seen, 7, State::Exited, |status| status.restarts = 1));
        step(&|seen| drop(seen.view.instances.remove(&InstanceId(7))));
        let told: Vec<String> = steps.windows(2).flat_map(|pair| lines(&pair[0], &pair[1])).collect();
        assert_eq!(
            told,
            [
                "web.7  placed on host1 (v2): 0 of 1 there",
                "web.7  starts",
                "web.7  runs at 127.0.0.2:21000",
                "web.7  starts again (restart 1)",
                "web.7  backs off: exited withstatus 1",
                "web.7  has ended",
                "web.7  is archived",
            ]
        );
    }

    #[test]
    fn what_is_wanted_and_what_has_no_place_is_told() {
        let before = Seen::default();
        let mut after = before.clone();
        let mut formation = Formation { count: 3, ..Formation::default() };
        formation.beside.insert(ReleaseId(4), 1);
        after.view.formation.insert(web(), at(formation));
        assert_eq!(lines(&before, &after), ["web  0 -> 3 wanted", "web  0 -> 1 of v4 wanted beside"]);
        let pending = visor::schema::Pending {
            release: ReleaseId(2),
            short: 2,
            reason: "no host has room".into(),
            refusals: Default::default(),
            reasons: Default::default(),
            since: Timestamp::UNIX_EPOCH,
            extra: Extra::new(),
        };
        let mut short = after.clone();
        short.view.pending.insert(web(), at(pending));
        assert_eq!(lines(&after, &short), ["web  no place for 2 instances: no host has room"]);
        assert_eq!(lines(&short, &after), ["web  all have a place"]);
    }
}
