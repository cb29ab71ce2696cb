//! Waiting until a change has come about, and for how long.
//!
//! Owns patience: what is waited for without a word, what is said meanwhile, and when to give up with
//! which cause. What has come about is [`visor::progress`]'s judgement; what is printed is the command's.

#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep_until};
use visor::{
    deadlines::{COMMAND_QUIET, COMMAND_SLACK, DRAIN, NO_ROOM, OUT_OF_TOUCH, PROXIES_FOLLOW},
    keys::{self, Key},
    names::{AppName, HostName, InstanceId, ProcName},
    progress::{Progress, Verdict, missing, progress},
    schema::{Proxy, RunSettings, State},
    snapshot::Versioned,
    store::{Keys, Revision},
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    show::{begin_open_line, clean, end_open_line, is_line_open, put, say},
    watch::Watch,
};

/// A line of standard output that grows by dots, and is ended however the command ends.
pub struct Line {
    words: String,
    is_dotted: bool,
}

impl Line {
    /// Writes the line's words.
    pub fn begin(words: &str) -> Self {
        begin_open_line(words);
        Line { words: words.to_owned(), is_dotted: false }
    }

    /// Adds dots.
    pub fn dots(&mut self, n: usize) {
        if n > 0 {
            if !is_line_open() {
                // Something was said in between: on a terminal that stands where the dots would.
                begin_open_line(&self.words);
                self.is_dotted = false;
            }
            let blank = if std::mem::replace(&mut self.is_dotted, true) { "" } else { " " };
            put(&format!("{blank}{}", ".".repeat(n)));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        end_open_line();
    }
}

/// Which instances came to run since it began, and at which revision each was first seen so.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    before: Vec<InstanceId>,
    seen: BTreeMap<InstanceId, Revision>,
}

impl Arrivals {
    /// Begins: what runs now has been there before.
    pub fn begin(watch: &Watch) -> Self {
        let mut arrivals = Arrivals::default();
        arrivals.look(watch);
        arrivals.before = std::mem::take(&mut arrivals.seen).into_keys().collect();
        arrivals
    }

    /// Takes note of what has come to run.
    pub fn look(&mut self, watch: &Watch) {
        for id in watch.view().instances.keys() {
            let Some(status) = watch.status(*id).filter(|status| status.state == State::Running) else {
                continue;
            };
            if !self.before.contains(id) {
                // The first sight: a later report needn't concern routing, and proxies don't confirm it.
                self.seen.entry(*id).or_insert(status.mod_revision);
            }
        }
    }

    /// The revision that a proxy must have applied to route all of them that still run.
    fn to_be_routed(&self, watch: &Watch) -> Revision {
        let runs = |id: &InstanceId| watch.status(*id).is_some_and(|status| status.state == State::Running);
        self.seen.iter().filter(|(id, _)| runs(id)).map(|(_, revision)| *revision).max().unwrap_or(0)
    }
}

/// Waits until these services are as wanted, or as a pause keeps them, and the proxies know it; telling `on` of
/// each look.
///
/// # Errors
/// If what is wanted fails, has no room, or takes too long: the change itself stands. What `on` fails with.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn settle(
    context: &Context,
    watch: &mut Watch,
    procs: &[ProcName],
    arrivals: &mut Arrivals,
    mut on: impl FnMut(&Watch) -> Result<()>,
) -> Result<()> {
    let mut patience = Patience::default();
    loop {
        arrivals.look(watch);
        on(watch)?;
        let now = Instant::now();
        let mut wake = now + OUT_OF_TOUCH;
        if watch.is_whole() {
            patience.out_of_touch = None;
            let observed = watch.observed();
            let all: Vec<(&ProcName, Progress)> =
                procs.iter().map(|proc| (proc, progress(watch.view(), &observed, proc))).collect();
            if let Some((proc, stuck)) = all.iter().find(|(_, p)| matches!(p.verdict, Verdict::Stuck { .. }))
            {
                return Err(stuck_failure(watch, proc, stuck));
            }
            let rests = |p: &Progress| matches!(p.verdict, Verdict::Converged | Verdict::Paused);
            if all.iter().all(|(_, progress)| rests(progress)) {
                say_paused(watch, &all);
                break;
            }
            wake = patience.judge(watch, &all, now)?;
        } else {
            let since = *patience.out_of_touch.get_or_insert(now);
            if now >= since + OUT_OF_TOUCH {
                let what = "the coordinator has been out of touch for 15 s; the change stands";
                return Err(
                    Failure::new(Kind::Coordinator, what).hint("`bazooka ps -l` tells how it went on")
                );
            }
            wake = wake.min(since + OUT_OF_TOUCH);
        }
        tokio::select! {
            _ = watch.next() => {}
            () = sleep_until(wake) => {
                match patience.should_ask(Instant::now()) {
                    Ask::No => {}
                    Ask::First => {
                        if let Some(missing) = who_is_missing(context).await {
                            say(&format!("waiting: {missing}"));
                        }
                    }
                    Ask::Last => {
                        if let Some(missing) = who_is_missing(context).await {
                            return Err(Failure::new(Kind::PartMissing, missing).hint(
                                "the change stands, and is made once there is: `bazooka dev` and the units start both",
                            ));
                        }
                    }
                }
            }
        }
    }
    routed(watch, arrivals).await;
    for words in refusals(watch, procs) {
        say(&format!("warning: {words}"));
    }
    Ok(())
}

/// What proxies can't serve of these services, in their words. Of what is not wanted to run nothing is missed.
fn refusals(watch: &Watch, procs: &[ProcName]) -> Vec<String> {
    let wanted = procs.iter().filter(|proc| !watch.view().wanted(proc).is_empty());
    wanted.flat_map(|proc| unserved(watch.app(), proc, watch.proxies())).collect()
}

/// Which proxies can't serve a service, and why.
pub fn unserved(
    app: &AppName,
    proc: &ProcName,
    proxies: &BTreeMap<HostName, Versioned<Proxy>>,
) -> Vec<String> {
    let service = format!("{app}/{proc}");
    let of = |(name, proxy): (&HostName, &Versioned<Proxy>)| {
        let why = proxy.refused.get(&service)?;
        Some(format!("proxy {name} can't serve {service}: {why}"))
    };
    proxies.iter().filter_map(of).collect()
}

/// Says of each service that a pause keeps as it is.
fn say_paused(watch: &Watch, all: &[(&ProcName, Progress)]) {
    let by = watch.view().pause.as_ref().map(|pause| pause.by.as_str()).unwrap_or_default();
    for (proc, judged) in all.iter().filter(|(_, judged)| judged.verdict == Verdict::Paused) {
        let old = instances(u32::try_from(judged.stopping.len()).unwrap_or(u32::MAX));
        say(&format!(
            "the rollout of {proc} is paused by {by}, with {old} of an earlier release; hint: bazooka rollout resume"
        ));
    }
}

/// Waits until each proxy has what has come to run in force.
async fn routed(watch: &mut Watch, arrivals: &Arrivals) {
    let until = Instant::now() + PROXIES_FOLLOW;
    loop {
        let wanted = arrivals.to_be_routed(watch);
        let behind: Vec<&str> = watch
            .proxies()
            .iter()
            .filter(|(_, proxy)| proxy.applied < wanted)
            .map(|(name, _)| name.as_str())
            .collect();
        if behind.is_empty() {
            return;
        }
        let behind = behind.join(", ");
        tokio::select! {
            _ = watch.next() => {}
            () = sleep_until(until) => {
                say(&format!("everything runs, but proxy {behind} hasn't said that it routes it"));
                return;
            }
        }
    }
}

/// Waits until each proxy has everything up to a revision in force.
pub async fn enforced(watch: &mut Watch, revision: Revision) {
    let until = Instant::now() + PROXIES_FOLLOW;
    loop {
        let behind = watch.proxies().iter().filter(|(_, proxy)| proxy.applied < revision);
        let behind: Vec<String> = behind.map(|(name, _)| name.to_string()).collect();
        if behind.is_empty() && watch.has(revision) {
            return;
        }
        tokio::select! {
            _ = watch.next() => {}
            () = sleep_until(until) => {
                say(&format!("it stands, but proxy {} hasn't said that it heeds it", behind.join(", ")));
                return;
            }
        }
    }
}

/// Since when something has been waited for.
#[derive(Default)]
struct Patience {
    no_room: BTreeMap<ProcName, Instant>,
    /// What stood there at the last change, and when that was.
    last: Option<(Vec<Progress>, Instant)>,
    asked: u8,
    out_of_touch: Option<Instant>,
}

impl Patience {
    /// When to look again.
    fn judge(&mut self, watch: &Watch, all: &[(&ProcName, Progress)], now: Instant) -> Result<Instant> {
        let seen: Vec<Progress> = all.iter().map(|(_, progress)| progress.clone()).collect();
        let since = match &self.last {
            Some((last, since)) if *last == seen => *since,
            _ => {
                self.asked = 0;
                now
            }
        };
        self.last = Some((seen, since));
        let mut wake = match self.asked {
            0 => since + COMMAND_QUIET,
            1 => since + NO_ROOM,
            _ => now + OUT_OF_TOUCH,
        };
        for (proc, progress) in all {
            let Some(pending) = &progress.pending else {
                self.no_room.remove(*proc);
                continue;
            };
            let first = *self.no_room.entry((*proc).clone()).or_insert(now);
            if now >= first + NO_ROOM {
                let what = format!("{} of {proc} can't be placed", instances(pending.short));
                let mut failure = Failure::new(Kind::Failed, what).because(&pending.reason);
                for (host, refusal) in &pending.refusals {
                    failure = failure.because(format!("{host}: {refusal}"));
                }
                return Err(failure.hint(format!("it stays wanted; `bazooka why {proc}` tells more")));
            }
            wake = wake.min(first + NO_ROOM);
        }
        let limit = all.iter().map(|(proc, _)| limit_of(watch, proc)).max().unwrap_or(COMMAND_SLACK);
        if now >= since + limit {
            let (proc, progress) =
                all.iter().find(|(_, progress)| progress.verdict != Verdict::Converged).unwrap_or(&all[0]);
            let what = format!(
                "{proc} has not converged: {} of {} run, and nothing has happened for {} s",
                progress.running_in_all(),
                progress.wanted_in_all(),
                limit.as_secs()
            );
            let mut failure = Failure::new(Kind::Failed, what);
            for (id, cause) in &progress.failing {
                failure = failure.because(format!("instance {id}: {cause}"));
            }
            return Err(failure.hint(format!("it stays wanted; `bazooka why {proc}` tells more")));
        }
        Ok(wake.min(since + limit).max(now))
    }

    fn should_ask(&mut self, now: Instant) -> Ask {
        let Some((_, since)) = &self.last else { return Ask::No };
        let (after, ask) = match self.asked {
            0 => (COMMAND_QUIET, Ask::First),
            1 => (NO_ROOM, Ask::Last),
            _ => return Ask::No,
        };
        if now < *since + after {
            return Ask::No;
        }
        self.asked += 1;
        ask
    }
}

/// Whether to look for who should act.
enum Ask {
    No,
    /// It has been quiet: a word.
    First,
    /// It has been quiet for too long: give up.
    Last,
}

/// How long a service may show no progress: what its instances may take to start or to end.
fn limit_of(watch: &Watch, proc: &ProcName) -> Duration {
    limit_of_run(&watch.view().procs.get(proc).map(|proc| proc.run.clone()).unwrap_or_default())
}

/// How long an instance that is run so may take to start or to end.
pub fn limit_of_run(run: &RunSettings) -> Duration {
    run.boot_timeout().max(DRAIN + run.stop_timeout()) + COMMAND_SLACK
}

/// Who should act and isn't there, in words.
pub async fn who_is_missing(context: &Context) -> Option<String> {
    let leader = Keys::One(Key::Leader.to_string());
    // Out of touch is judged elsewhere.
    let there = context.visor.read(vec![leader, keys::hosts()]).await.ok()?;
    missing(&there)
}

/// The failure of a service of which what is wanted fails.
fn stuck_failure(watch: &Watch, proc: &ProcName, progress: &Progress) -> Failure {
    let mut failure = Failure::new(Kind::Failed, format!("{proc} fails"));
    for (id, cause) in progress.failing.iter().take(3) {
        let mut cause = format!("instance {id}: {cause}");
        if let Some(status) = watch.status(*id) {
            for line in status.last_output.iter().rev().take(5).rev() {
                cause.push_str("\n  | ");
                cause.push_str(&clean(line));
            }
        }
        failure = failure.because(cause);
    }
    if progress.failing.len() > 3 {
        failure = failure.because(format!("and {} more", progress.failing.len() - 3));
    }
    let id = progress.failing.first().map_or_else(|| proc.to_string(), |(id, _)| id.to_string());
    failure.hint(format!("the change stands; `bazooka why {id}` and `bazooka logs -p {proc}` tell more"))
}

/// `1 instance`, `2 instances`.
pub fn instances(n: u32) -> String {
    if n == 1 { "1 instance".to_owned() } else { format!("{n} instances") }
}
