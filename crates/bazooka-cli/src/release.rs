//! What a config change and a rollback share: a new release, tried first, then rolled out.
//!
//! It isn't a command of its own.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use visor::{
    deadlines::{COMMAND_BEYOND_BOOT, COMMAND_QUIET, NOBODY, OTHER_TRIAL},
    names::{AppName, ProcName, ReleaseId},
    progress::{progress, was_failing},
    schema::{Promoter, ReleaseStatus},
    transitions::releases::{Begun, NewRelease},
    visor::{Refusal, VisorError},
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    settle::{Arrivals, Line, settle, who_is_missing},
    show::{put_line, say},
    watch::Watch,
};

/// How often a release is made anew because another's config vars came first: one gets through each time.
const MOST_ROUNDS: usize = 50;

/// A token that no other release has.
pub fn token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Makes a release and waits until it has been tried and rolled out.
///
/// `new` says what it is, and is asked again when another's config vars came first.
///
/// # Errors
/// If it can't run: head stays where it was. If its rollout stops: head has moved.
pub async fn make(
    context: &Context,
    app: &AppName,
    new: impl AsyncFn() -> Result<NewRelease>,
    no_wait: bool,
) -> Result<()> {
    // Where nobody answers, this says so; a watch would wait.
    let first = new().await?;
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    let mut arrivals = Arrivals::begin(&watch);
    let failed_before = failing(&watch, context.now());
    let head_before = watch.view().head.as_ref().map(|head| head.release);
    let release = match begin(context, app, first, new, &mut watch).await? {
        Begun::Unchanged(release) => {
            put_line(&format!("nothing changes: {release} is that already"));
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
    while watch.view().releases.get(&release).is_none_or(|row| row.status != ReleaseStatus::Released) {
        watch.next().await;
    }
    let env = watch.view().releases[&release].env;
    put_line(&format!("{release} released ({env})"));
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
    let until = Instant::now() + OTHER_TRIAL;
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
            Err(VisorError::Refused(Refusal::BeingTried(_, release))) if Instant::now() < until => release,
            Err(error) => return Err(context.explain(watch.view(), error).await),
            Ok(begun) => return Ok(begun),
        };
        if !std::mem::replace(&mut said, true) {
            say(&format!("{release} is being tried; waiting for that"));
        }
        // The view may not have that trial yet: look again soon either way.
        let soon = Instant::now() + Duration::from_millis(500);
        while watch.view().trial.is_some() || Instant::now() < soon {
            let wake = if watch.view().trial.is_some() { until } else { soon };
            tokio::select! {
                _ = watch.next() => {}
                () = sleep_until(wake) => break,
            }
        }
    }
}

/// Waits for the verdict on a trial.
async fn tried(context: &Context, watch: &mut Watch, release: ReleaseId) -> Result<()> {
    let begin = Instant::now();
    let boot = watch.view().procs.values().map(|proc| proc.run.boot_timeout()).max().unwrap_or_default();
    let mut alarms = [begin + COMMAND_QUIET, begin + NOBODY, begin + boot + COMMAND_BEYOND_BOOT].into_iter();
    let mut alarm = alarms.next();
    let mut passed = 0;
    loop {
        if let Some(row) = watch.view().releases.get(&release) {
            match row.status {
                ReleaseStatus::Released => return Ok(()),
                ReleaseStatus::Failed => return Err(failed(watch, release, row.cause.as_deref())),
                ReleaseStatus::Trying | ReleaseStatus::Verified | ReleaseStatus::Beside => {}
            }
        }
        let Some(at) = alarm else {
            let what = format!("{release} has neither run nor failed in {} s", begin.elapsed().as_secs());
            return Err(Failure::new(Kind::Failed, what)
                .hint("it is still being tried; `bazooka releases` and `bazooka events` tell how it goes"));
        };
        tokio::select! {
            _ = watch.next() => {}
            () = sleep_until(at) => {
                passed += 1;
                alarm = alarms.next();
                if let Some(missing) = if passed < 3 { who_is_missing(context).await } else { None } {
                    if passed > 1 {
                        return Err(Failure::new(Kind::PartMissing, missing)
                            .hint(format!("{release} is tried once there is")));
                    }
                    say(&format!("waiting: {missing}"));
                }
            }
        }
    }
}

fn failed(watch: &Watch, release: ReleaseId, cause: Option<&str>) -> Failure {
    let failure = Failure::new(Kind::Failed, format!("{release} can't run"))
        .because(cause.unwrap_or("no cause was told"));
    match &watch.view().head {
        Some(head) => failure.hint(format!("{} stays current; nothing else was touched", head.release)),
        None => failure,
    }
}

/// Waits until each proc runs the release, with a line for each. One that fails must not hide what became of
/// the others.
///
/// # Errors
/// If it stops on its way, or is called off.
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

/// Whether a release's rollout goes on: another's word may have called it off.
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

/// The procs that fail as things stand.
pub fn failing(watch: &Watch, now: Timestamp) -> Vec<ProcName> {
    let observed = watch.observed();
    let fails = |proc: &&ProcName| was_failing(watch.view(), &observed, proc, now);
    watch.view().procs.keys().filter(fails).cloned().collect()
}
