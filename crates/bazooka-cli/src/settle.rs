//! Settling: waits until services run as wanted.
//!
//! Owns the messages meanwhile, and the causes if they don't come to run as wanted. [`crate::wait`] decides how long
//! to wait, [`visor::progress`] judges the progress, and the commands print the results.

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

/// A line of standard output that grows by dots. It is ended in all cases, also on failure.
pub struct Line {
    words: String,
    is_dotted: bool,
}

impl Line {
    /// Begins the line with these words.
    pub fn begin(words: &str) -> Self {
        begin_open_line(words);
        Line { words: words.to_owned(), is_dotted: false }
    }

    /// Appends `n` dots to the line.
    pub fn dots(&mut self, n: usize) {
        if n > 0 {
            if !is_line_open() {
                // A message has ended the line; on a terminal it stands where the dots would be.
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

/// The instances that have started running since the beginning, with the revision at which each was first seen
/// running.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    before: Vec<InstanceId>,
    seen: BTreeMap<InstanceId, Revision>,
}

impl Arrivals {
    /// Begins with the instances that run now; they don't count.
    pub fn begin(watch: &Watch) -> Self {
        let mut arrivals = Arrivals::default();
        arrivals.look(watch);
        arrivals.before = std::mem::take(&mut arrivals.seen).into_keys().collect();
        arrivals
    }

    /// Records the instances that have started running.
    pub fn look(&mut self, watch: &Watch) {
        for id in watch.view().instances.keys() {
            let Some(status) = watch.status(*id).filter(|status| status.state == State::Running) else {
                continue;
            };
            if !self.before.contains(id) {
                // Keep the first revision: a later status needn't concern routing, so proxies might never confirm it.
                self.seen.entry(*id).or_insert(status.mod_revision);
            }
        }
    }

    /// Returns the revision that a proxy must have applied to route all new instances that still run.
    fn to_be_routed(&self, watch: &Watch) -> Revision {
        let runs = |id: &InstanceId| watch.status(*id).is_some_and(|status| status.state == State::Running);
        self.seen.iter().filter(|(id, _)| runs(id)).map(|(_, revision)| *revision).max().unwrap_or(0)
    }
}

/// Waits until these services run as wanted, or as a pause keeps them, and the proxies have applied it. Calls `on`
/// after each change.
///
/// # Errors
/// If a service fails, has no room or takes too long; the change itself stands. The errors of `on`.
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

/// The services that don't run as wanted yet.
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
        for line in pending.lines() {
            failure = failure.because(line);
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

/// Returns the proxies' reasons why they can't serve these services. Services with nothing wanted are skipped.
fn refusals(watch: &Watch, procs: &[ProcName]) -> Vec<String> {
    let wanted = procs.iter().filter(|proc| !watch.view().wanted(proc).is_empty());
    wanted.flat_map(|proc| unserved(watch.app(), proc, watch.proxies())).collect()
}

/// Returns, for each proxy that can't serve a service, a line with the reason.
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

/// Prints a notice for each service whose rollout is paused.
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

/// Waits until each proxy routes the new instances.
async fn routed(watch: &mut Watch, arrivals: &Arrivals) {
    let behind = |watch: &Watch| behind(watch, arrivals.to_be_routed(watch));
    if !until(watch, Instant::now() + PROXIES_FOLLOW, |watch| behind(watch).is_empty()).await {
        say(&format!("everything runs, but proxy {} hasn't said that it routes it", behind(watch)));
    }
}

/// Waits until each proxy has applied all changes up to a revision.
pub async fn enforced(watch: &mut Watch, revision: Revision) {
    let is_enforced = |watch: &Watch| behind(watch, revision).is_empty() && watch.has(revision);
    if !until(watch, Instant::now() + PROXIES_FOLLOW, is_enforced).await {
        say(&format!("it stands, but proxy {} hasn't said that it heeds it", behind(watch, revision)));
    }
}

/// Returns the proxies that haven't applied a revision, separated by commas.
fn behind(watch: &Watch, revision: Revision) -> String {
    let behind = watch.proxies().iter().filter(|(_, proxy)| proxy.applied < revision);
    behind.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Returns how long a service may show no progress: the time that its instances may take to start, to count, or to
/// end.
fn limit_of(watch: &Watch, proc: &ProcName) -> Duration {
    let Some(row) = watch.view().procs.get(proc) else {
        return limit_of_run(&RunSettings::default(), Duration::ZERO);
    };
    limit_of_run(&row.run, Proc::min_ready(row))
}

/// Returns how long an instance with these settings may take to start and to count, or to end.
pub fn limit_of_run(run: &RunSettings, min_ready: Duration) -> Duration {
    (run.boot_timeout() + min_ready).max(DRAIN + run.stop_timeout()) + COMMAND_SLACK
}

/// Returns the failure of a service whose instances fail.
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

/// Formats a number of instances: `1 instance`, `2 instances`.
pub fn instances(n: u32) -> String {
    if n == 1 { "1 instance".to_owned() } else { format!("{n} instances") }
}
