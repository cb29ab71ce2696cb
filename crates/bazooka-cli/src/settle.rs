//! Waiting until services are as they are wanted.
//!
//! Owns what is said meanwhile, and the causes when it doesn't come about. How long is waited for what is [`crate::wait`]'s;
//! what has come about is [`visor::progress`]'s judgement; what is printed is the command's.

#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use visor::{
    deadlines::{COMMAND_SLACK, DRAIN, PROXIES_FOLLOW},
    names::{AppName, HostName, InstanceId, ProcName},
    progress::{Progress, Verdict, progress},
    schema::{Proc, Proxy, RunSettings, State},
    snapshot::Versioned,
    store::Revision,
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    show::{begin_open_line, clean, end_open_line, is_line_open, put, say},
    wait::{Look, Service, Waited, Waiting, until, wait},
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
    on: impl FnMut(&Watch) -> Result<()>,
) -> Result<()> {
    let mut settling = Settling { watch, procs, arrivals, on };
    wait(context, &mut settling).await?;
    let Settling { watch, arrivals, .. } = settling;
    say_paused(watch, procs);
    routed(watch, arrivals).await;
    for words in refusals(watch, procs) {
        say(&format!("warning: {words}"));
    }
    Ok(())
}

/// Services that have yet to be as they are wanted.
struct Settling<'a, F> {
    watch: &'a mut Watch,
    procs: &'a [ProcName],
    arrivals: &'a mut Arrivals,
    on: F,
}

impl<F> Settling<'_, F> {
    fn progress(&self) -> Vec<(&ProcName, Progress)> {
        let observed = self.watch.observed();
        self.procs.iter().map(|proc| (proc, progress(self.watch.view(), &observed, proc))).collect()
    }
}

impl<F: FnMut(&Watch) -> Result<()>> Waited for Settling<'_, F> {
    type Seen = Vec<Progress>;

    async fn next(&mut self) {
        self.watch.next().await;
    }

    fn look(&mut self) -> Result<Look<Vec<Progress>>> {
        self.arrivals.look(self.watch);
        (self.on)(self.watch)?;
        if !self.watch.is_whole() {
            return Ok(Look::Partial);
        }
        let all = self.progress();
        if let Some((proc, stuck)) = all.iter().find(|(_, p)| matches!(p.verdict, Verdict::Stuck { .. })) {
            return Err(stuck_failure(self.watch, proc, stuck));
        }
        if all.iter().all(|(_, p)| matches!(p.verdict, Verdict::Converged | Verdict::Paused)) {
            return Ok(Look::Done);
        }
        let service = |proc: &ProcName| (self.watch.app().clone(), proc.clone());
        let lacking = all.iter().filter(|(_, progress)| progress.pending.is_some());
        Ok(Look::Waiting(Waiting {
            without_room: lacking.map(|(proc, _)| service(proc)).collect(),
            limit: self.procs.iter().map(|proc| limit_of(self.watch, proc)).max().unwrap_or(COMMAND_SLACK),
            seen: all.into_iter().map(|(_, progress)| progress).collect(),
        }))
    }

    fn no_room(&self, services: &[Service]) -> Failure {
        let all = self.progress();
        let is_one = |proc: &ProcName| services.iter().any(|(_, stuck)| stuck == proc);
        let found =
            all.iter().find_map(|(proc, p)| Some((*proc, p.pending.as_ref().filter(|_| is_one(proc))?)));
        let Some((proc, pending)) = found else { return self.late(Duration::ZERO) };
        let what = format!("{} of {proc} can't be placed", instances(pending.short));
        let mut failure = Failure::new(Kind::Failed, what).because(&pending.reason);
        for (host, refusal) in &pending.refusals {
            failure = failure.because(format!("{host}: {refusal}"));
        }
        failure.hint(format!("it stays wanted; `bazooka why {proc}` tells more"))
    }

    fn late(&self, limit: Duration) -> Failure {
        let all = self.progress();
        let found = all.iter().find(|(_, progress)| progress.verdict != Verdict::Converged).or(all.first());
        let Some((proc, progress)) = found else {
            return Failure::new(Kind::Failed, "nothing is waited for");
        };
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
        failure.hint(format!("it stays wanted; `bazooka why {proc}` tells more"))
    }

    fn nobody(&self, missing: String) -> Failure {
        Failure::new(Kind::PartMissing, missing)
            .hint("the change stands, and is made once there is: `bazooka dev` and the units start both")
    }
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
fn say_paused(watch: &Watch, procs: &[ProcName]) {
    let observed = watch.observed();
    let by = watch.view().pause.as_ref().map(|pause| pause.by.as_str()).unwrap_or_default();
    for proc in procs {
        let judged = progress(watch.view(), &observed, proc);
        if judged.verdict == Verdict::Paused {
            let old = instances(u32::try_from(judged.stopping.len()).unwrap_or(u32::MAX));
            say(&format!(
                "the rollout of {proc} is paused by {by}, with {old} of an earlier release; hint: bazooka rollout resume"
            ));
        }
    }
}

/// Waits until each proxy has what has come to run in force.
async fn routed(watch: &mut Watch, arrivals: &Arrivals) {
    let behind = |watch: &Watch| behind(watch, arrivals.to_be_routed(watch));
    if !until(watch, Instant::now() + PROXIES_FOLLOW, |watch| behind(watch).is_empty()).await {
        say(&format!("everything runs, but proxy {} hasn't said that it routes it", behind(watch)));
    }
}

/// Waits until each proxy has everything up to a revision in force.
pub async fn enforced(watch: &mut Watch, revision: Revision) {
    let is_enforced = |watch: &Watch| behind(watch, revision).is_empty() && watch.has(revision);
    if !until(watch, Instant::now() + PROXIES_FOLLOW, is_enforced).await {
        say(&format!("it stands, but proxy {} hasn't said that it heeds it", behind(watch, revision)));
    }
}

/// The proxies that haven't applied a revision, parted by commas.
fn behind(watch: &Watch, revision: Revision) -> String {
    let behind = watch.proxies().iter().filter(|(_, proxy)| proxy.applied < revision);
    behind.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// How long a service may show no progress: what its instances may take to start, to count, or to end.
fn limit_of(watch: &Watch, proc: &ProcName) -> Duration {
    let Some(row) = watch.view().procs.get(proc) else {
        return limit_of_run(&RunSettings::default(), Duration::ZERO);
    };
    limit_of_run(&row.run, Proc::min_ready(row))
}

/// How long an instance that is run so may take to start and to count, or to end.
pub fn limit_of_run(run: &RunSettings, min_ready: Duration) -> Duration {
    (run.boot_timeout() + min_ready).max(DRAIN + run.stop_timeout()) + COMMAND_SLACK
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
