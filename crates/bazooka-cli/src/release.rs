//! Makes a release for a command such as `config` or `rollback`: creates it, waits for its trial, then for its rollout.
//!
//! Owns these waits and their output, which several commands share.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use visor::{
    deadlines::{COMMAND_BEYOND_BOOT, OTHER_TRIAL, PRUNED_WITHIN},
    keys,
    names::{AppName, ProcName, ReleaseId},
    progress::{progress, was_failing},
    quota::Bounds,
    rules::pruning::least_bytes,
    schema::{Promoter, Release, ReleaseStatus},
    snapshot::Versioned,
    transitions::releases::{Begun, NewRelease},
    visor::{Refusal, VisorError},
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    settle::{Arrivals, Line, settle},
    show::{put_line, say},
    wait::{Look, Service, Waited, Waiting, shown, until, wait},
    watch::Watch,
};

/// The most times that a command prepares its release again because another config change came first. One client
/// succeeds in each round.
const MOST_ROUNDS: usize = 50;

/// Returns a token that no other release has.
pub fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Creates a release, and waits until it has been tried and rolled out.
///
/// `new` describes the release, and is called again if another config change came first.
///
/// # Errors
/// If the release can't run: the head is unchanged. If its rollout stops: the head has moved.
pub async fn make(
    context: &Context,
    app: &AppName,
    new: impl AsyncFn() -> Result<NewRelease>,
    no_wait: bool,
) -> Result<()> {
    // Before the watch opens: a read in `new` fails if the coordinator is unreachable, but a watch would wait.
    let first = new().await?;
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let failed_before = failing(&watch, context.now());
    let head_before = watch.view().head.as_ref().map(|head| head.release);
    let release = match begin(context, app, first, new, &mut watch).await? {
        Begun::Unchanged(release) => {
            put_line(&format!("nothing changes: {release} has these already"));
            return Ok(());
        }
        Begun::EnvOnly(env) => {
            put_line(&format!("{env} set; it goes with the first push"));
            return Ok(());
        }
        Begun::Released(release) => {
            context.note_change();
            release
        }
        Begun::Trying(release) => {
            context.note_change();
            if no_wait {
                put_line(&format!("{release} is being tried"));
                return Ok(());
            }
            tried(context, &mut watch, release).await?;
            release
        }
    };
    let is_released = |row: &Versioned<Release>| row.status == ReleaseStatus::Released;
    shown(context, &mut watch, |watch| watch.view().releases.get(&release).is_some_and(is_released)).await?;
    let env = watch.view().releases[&release].env;
    put_line(&format!("{release} released ({env})"));
    warn(context, &watch).await;
    if no_wait {
        return Ok(());
    }
    roll_out(context, &mut watch, &mut arrivals, head_before, release, &failed_before).await
}

async fn begin(
    context: &Context,
    app: &AppName,
    mut asked: NewRelease,
    new: impl AsyncFn() -> Result<NewRelease>,
    watch: &mut Watch,
) -> Result<Begun> {
    let (end, pruned_by) = (Instant::now() + OTHER_TRIAL, Instant::now() + PRUNED_WITHIN);
    let mut said = false;
    let mut rounds = MOST_ROUNDS;
    loop {
        let begun = context.visor.begin_release(app, &asked, Promoter::Converger, None, context.now()).await;
        let release = match begun {
            Err(VisorError::Refused(Refusal::EnvMoved(_))) if rounds > 0 => {
                rounds -= 1;
                asked = new().await?;
                continue;
            }
            Err(VisorError::Refused(Refusal::BeingTried(_, release))) if Instant::now() < end => release,
            Err(VisorError::Refused(refusal))
                if room_comes(&refusal, watch) && Instant::now() < pruned_by =>
            {
                if !std::mem::replace(&mut said, true) {
                    say("waiting until older releases are pruned, which makes room");
                }
                until(watch, Instant::now() + Duration::from_secs(2), |_| false).await;
                continue;
            }
            Err(error) => return Err(context.explain(watch.view(), error).await),
            Ok(begun) => return Ok(begun),
        };
        if !std::mem::replace(&mut said, true) {
            say(&format!("{release} is being tried; waiting for that"));
        }
        // The view may not show the other trial yet, or it no longer does. So wait for it only briefly.
        let soon = Instant::now() + Duration::from_millis(500);
        until(watch, soon, |watch| watch.view().trial.is_some()).await;
        until(watch, end, |watch| watch.view().trial.is_none()).await;
    }
}

/// Reports whether pruning makes room for a release that was refused for want of room.
fn room_comes(refusal: &Refusal, watch: &Watch) -> bool {
    match refusal {
        Refusal::TooManyReleases(..) => true,
        Refusal::OverQuota { more, most, .. } => {
            watch.is_whole() && least_bytes(watch.view()).saturating_add(*more) <= *most
        }
        _ => false,
    }
}

/// Tells of an app that is close to its bounds.
async fn warn(context: &Context, watch: &Watch) {
    // The warning is only an addition: the change has been made.
    let Ok(snapshot) = context.visor.read(vec![keys::rms()]).await else { return };
    let bounds = Bounds::of(snapshot.rms.values().map(|rm| &rm.value));
    if let Some(words) = bounds.warning(watch.view()) {
        say(&words);
    }
}

/// Waits for the verdict on a trial.
async fn tried(context: &Context, watch: &mut Watch, release: ReleaseId) -> Result<()> {
    let longest = watch.view().procs.values().map(|proc| proc.counted_within()).max();
    let limit = longest.unwrap_or_default() + COMMAND_BEYOND_BOOT;
    wait(context, &mut Trying { watch, release, limit }).await
}

/// The wait for the verdict on a release's trial.
struct Trying<'a> {
    watch: &'a mut Watch,
    release: ReleaseId,
    limit: Duration,
}

impl Waited for Trying<'_> {
    /// No event during the trial extends the limit of this wait.
    type Seen = ();

    async fn next(&mut self) {
        self.watch.next().await;
    }

    fn look(&mut self) -> Result<Look<()>> {
        let row = self.watch.view().releases.get(&self.release);
        match row.map(|row| row.status) {
            Some(ReleaseStatus::Released) => return Ok(Look::Done),
            Some(ReleaseStatus::Failed) => {
                return Err(failed(self.watch, self.release, row.and_then(|row| row.cause.as_deref())));
            }
            Some(ReleaseStatus::Trying | ReleaseStatus::Verified | ReleaseStatus::Beside) | None => {}
        }
        let waiting = Waiting { seen: (), limit: self.limit, without_room: Vec::new() };
        Ok(if self.watch.is_whole() { Look::Waiting(waiting) } else { Look::Partial })
    }

    /// A lack of room never ends this wait: the converger gives the verdict on a trial without a place.
    fn no_room(&self, _: &[Service]) -> Failure {
        self.late(self.limit)
    }

    fn late(&self, limit: Duration) -> Failure {
        let what = format!("{} has neither run nor failed in {} s", self.release, limit.as_secs());
        Failure::new(Kind::Failed, what)
            .hint("it is still being tried; `bazooka releases` and `bazooka events` tell how it goes")
    }

    fn nobody(&self, missing: String) -> Failure {
        Failure::new(Kind::PartMissing, missing).hint(format!("{} is tried once one runs", self.release))
    }
}

fn failed(watch: &Watch, release: ReleaseId, cause: Option<&str>) -> Failure {
    let failure = Failure::new(Kind::Failed, format!("{release} can't run"))
        .because(cause.unwrap_or("no cause is known"));
    match &watch.view().head {
        Some(head) => failure.hint(format!("{} stays current; nothing else was touched", head.release)),
        None => failure,
    }
}

/// Waits until each proc runs the release, and prints a line for each. The failure of one proc doesn't hide the
/// results of the others.
///
/// # Errors
/// If the rollout stops, or another command aborts it.
pub async fn roll_out(
    context: &Context,
    watch: &mut Watch,
    arrivals: &mut Arrivals,
    before: Option<ReleaseId>,
    release: ReleaseId,
    failed_before: &[ProcName],
) -> Result<()> {
    let view = watch.view();
    let wanted = |proc: &&ProcName| {
        view.count(proc) > 0 || view.instances.values().any(|instance| instance.proc == **proc)
    };
    let procs: Vec<ProcName> = view.procs.keys().filter(wanted).cloned().collect();
    let mut failures = Vec::new();
    for proc in procs {
        if failed_before.contains(&proc) {
            say(&format!("{proc} failed before and isn't waited for; hint: bazooka why {proc}"));
            continue;
        }
        let from = before.map(|before| before.to_string()).unwrap_or_default();
        let mut line = Line::begin(&format!("{proc} {from} -> {release}"));
        let mut new = 0;
        let settled = settle(context, watch, std::slice::from_ref(&proc), arrivals, |watch| {
            goes_on(watch, release)?;
            let observed = watch.observed();
            let now = progress(watch.view(), &observed, &proc).running.get(&release).copied().unwrap_or(0);
            line.dots((now as usize).saturating_sub(new));
            new = new.max(now as usize);
            Ok(())
        })
        .await;
        if settled.as_ref().is_err_and(|failure| failure.kind == Kind::Refused) {
            return settled;
        }
        failures.extend(settled.err());
    }
    Failure::first_of(failures).map_err(|failure| {
        let hint = failure.hint.clone().unwrap_or_default();
        let what = format!("{release} is current, but its rollout stops: {}", failure.what);
        Failure { what, ..failure }.hint(format!("{hint}; `bazooka rollback` goes back"))
    })
}

/// Checks that no other command has aborted the release's rollout.
fn goes_on(watch: &Watch, release: ReleaseId) -> Result<()> {
    let view = watch.view();
    let Some(row) = view.releases.get(&release).filter(|row| row.was_aborted()) else { return Ok(()) };
    let (head, _) = view.head_release().unwrap_or((release, row));
    if head == release {
        return Ok(());
    }
    let what = format!("{release} was {}", row.cause.as_deref().unwrap_or_default());
    Err(Failure::new(Kind::Refused, what).because(format!("{head} is current again")))
}

/// Returns the procs that currently fail.
pub fn failing(watch: &Watch, now: Timestamp) -> Vec<ProcName> {
    let observed = watch.observed();
    let fails = |proc: &&ProcName| was_failing(watch.view(), &observed, proc, now);
    watch.view().procs.keys().filter(fails).cloned().collect()
}
