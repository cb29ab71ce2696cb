//! Releases: how one is begun, tried, verified or failed, and becomes head.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::{
    keys::{self, Key},
    links::{self, Link},
    names::{AppName, EnvRef, ProcName, ReleaseId, RevId},
    quota,
    schema::{Extra, Head, Promoter, Release, ReleaseStatus, Trial},
    snapshot::{AppView, Snapshot, Versioned},
    store::{Keys, LeaseId},
    transitions::{
        apps::{fits, registered},
        envs::{EMPTY_ENV, NewEnv, base_env, making, next_env},
        formation::{next_release, number_of_next},
    },
    visor::{Change, Decided, Decision, Refusal, Result, Visor},
};

/// The parts of a new release; the rest is taken from the head that it follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRelease {
    /// The rev; head's own unless given.
    pub rev: Option<RevId>,
    /// The env; head's own unless given (a rollback gives it).
    pub env: Option<EnvRef>,
    /// The release to which it goes back, which must still be kept.
    pub back_to: Option<ReleaseId>,
    /// An env that is made together with the release.
    pub config: Option<NewEnv>,
    /// The identity that makes it.
    pub by: String,
    /// The reason, for people.
    pub reason: String,
    /// A fresh, unique token, which tells a caller's own write whose reply was lost from a rival's.
    pub token: String,
    /// The push that must still hold the app's turn, where rms share a file storage.
    pub turn: Option<String>,
}

/// The outcome of beginning a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The release is on trial.
    Trying(ReleaseId),
    /// No instances of it are wanted, so it became head at once.
    Released(ReleaseId),
    /// The app has no rev yet; the env waits for the first push.
    EnvOnly(EnvRef),
    /// Head has the same rev and env already.
    Unchanged(ReleaseId),
}

/// Returns what a release is decided from.
fn scopes(name: &AppName, new: &NewRelease) -> Vec<Keys> {
    let mut scopes = keys::app(name);
    scopes.extend(new.turn.as_ref().map(|_| Keys::One(Key::Turn(name.clone()).to_string())));
    // Their keys, and the bounds that they name.
    scopes.extend(new.config.as_ref().map(|_| keys::rms()));
    // A newly linked service must exist in the transaction that links it.
    let links = new.config.iter().flat_map(|made| linked(&made.row.links));
    scopes.extend(links.map(|key| Keys::One(key.to_string())));
    scopes
}

/// Returns the release that the same request has begun before, if its reply was lost.
fn begun_before(view: &AppView, token: &str) -> Option<Begun> {
    let mut releases = view.releases.iter().rev();
    let (id, own) = releases.find(|(_, release)| release.token == token && !token.is_empty())?;
    Some(match own.status {
        ReleaseStatus::Released => Begun::Released(*id),
        _ => Begun::Trying(*id),
    })
}

/// Returns the env of a new release.
///
/// # Errors
/// [`Refusal::EnvMoved`] if the env that was made for it doesn't follow the newest one.
fn env_of(snapshot: &Snapshot, view: &AppView, name: &AppName, new: &NewRelease) -> Result<EnvRef> {
    let env = new.env.unwrap_or_else(|| base_env(view));
    match &new.config {
        None => Ok(env),
        Some(made) if made.is_there(view) => Ok(made.env),
        // A sealed env is bound to its ref and to the env that it was made from.
        Some(made) if made.from == env && made.env == next_env(view) && made.is_sealed_to(snapshot, view) => {
            Ok(made.env)
        }
        Some(_) => Err(Refusal::EnvMoved(name.clone()).into()),
    }
}

/// Returns the refusal of a release that no longer exists, or never did.
pub fn no_such_release(name: &AppName, view: &AppView, release: ReleaseId) -> Refusal {
    match view.releases.range(release..).next() {
        // Releases are numbered without gaps.
        Some((oldest, _)) if release.0 > 0 => Refusal::Pruned(name.clone(), release, *oldest),
        _ => Refusal::NoSuchRelease(name.clone(), release),
    }
}

/// Adds what a rollback requires: the release to which it goes back, and that release's config vars.
fn going_back(
    change: Change,
    name: &AppName,
    view: &AppView,
    new: &NewRelease,
    env: EnvRef,
) -> Result<Change> {
    let mut change = change;
    if let Some(to) = new.back_to {
        if !view.releases.contains_key(&to) {
            return Err(no_such_release(name, view, to).into());
        }
        change = change.exists(&Key::Release(name.clone(), to));
    }
    if new.env.is_some() && env != EMPTY_ENV {
        change = change.exists(&Key::Env(name.clone(), env));
    }
    Ok(change)
}

impl Visor {
    /// Begins a release, as a trial if instances of it are wanted.
    ///
    /// `lease` is the pusher's: if the pusher dies, the trial ends with the lease. A release that equals head (same
    /// rev, same vars) is not made, unless a push asks for it (`promote` is [`Promoter::Pusher`]), which must know that
    /// the pushed rev runs.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::Destroying`], [`Refusal::NoSuchRev`], [`Refusal::BeingTried`],
    /// [`Refusal::TurnOver`], [`Refusal::Unlinkable`], [`Refusal::Pruned`], [`Refusal::OverQuota`],
    /// [`Refusal::TooManyReleases`]; [`Refusal::EnvMoved`] if another env was made first: then make
    /// the env again from the newest one.
    pub async fn begin_release(
        &self,
        name: &AppName,
        new: &NewRelease,
        promote: Promoter,
        lease: Option<LeaseId>,
        now: Timestamp,
    ) -> Result<Begun> {
        self.decide(scopes(name, new), |snapshot| {
            let app = registered(snapshot, name)?;
            if app.destroying {
                return Err(Refusal::Destroying(name.clone()).into());
            }
            let view = &snapshot.apps[name];
            if let Some(begun) = begun_before(view, &new.token) {
                return Ok(Decision::Already(begun));
            }
            if let Some(trial) = &view.trial {
                return Err(Refusal::BeingTried(name.clone(), trial.release).into());
            }
            let head = view.head_release();
            let env = env_of(snapshot, view, name, new)?;
            let mut change = Change::new()
                .as_read(&Key::App(name.clone()), Some(app))
                .as_read(&Key::Head(name.clone()), view.head.as_ref())
                .absent(&Key::Trial(name.clone()));
            change = going_back(change, name, view, new, env)?;
            if let Some(push) = &new.turn {
                let held = view.turn.as_ref().filter(|held| held.push == *push);
                let held = held.ok_or_else(|| Refusal::TurnOver(name.clone()))?;
                change = change.as_read(&Key::Turn(name.clone()), Some(held));
            }
            let making_one = new.config.as_ref().filter(|made| !made.is_there(view));
            if let Some(made) = making_one {
                fits(name, snapshot, view, quota::env_bytes(&made.row))?;
                let added: BTreeSet<Link> = made.added(view).cloned().collect();
                for link in &added {
                    links::leads(snapshot, link).map_err(Refusal::Unlinkable)?;
                }
                let there = linked(&added).fold(Change::new(), |change, key| change.exists(&key));
                change = change.and(making(name, made)).and(there);
            }
            let Some(rev) = new.rev.clone().or_else(|| head.map(|(_, head)| head.rev.clone())) else {
                let begun = Begun::EnvOnly(env);
                let changed = making_one.is_some();
                return Ok(if changed { Decision::Change(change, begun) } else { Decision::Already(begun) });
            };
            let row =
                view.revs.get(&rev).ok_or_else(|| Refusal::NoSuchRev(name.clone(), rev.short().into()))?;
            if let Some((id, head)) = head {
                if head.rev == rev && head.env == env && promote == Promoter::Converger {
                    return Ok(Decision::Already(Begun::Unchanged(id)));
                }
            }
            change = change.exists(&Key::Rev(name.clone(), rev.clone()));
            // The formation decides between trial and head at once, so a rival scale must not slip in between.
            let mut concerned = false;
            for proc in row.procs.keys() {
                let formation = view.formation.get(proc);
                concerned |= formation.is_some_and(|f| f.count > 0);
                change = change.as_read(&Key::Formation(name.clone(), proc.clone()), formation);
            }
            // A way back is open even to an app that has too many.
            let id =
                if new.back_to.is_some() { number_of_next(name, view) } else { next_release(name, view) }?;
            let key = Key::Release(name.clone(), id);
            let release = Release {
                rev,
                env,
                by: new.by.clone(),
                at: now,
                reason: new.reason.clone(),
                status: if concerned { ReleaseStatus::Trying } else { ReleaseStatus::Released },
                cause: None,
                token: new.token.clone(),
                extra: Extra::new(),
            };
            change = change.absent(&key).put(&key, &release);
            if concerned {
                let trial = Trial { release: id, promote, extra: Extra::new() };
                change = change.put_leased(&Key::Trial(name.clone()), &trial, lease);
                Ok(Decision::Change(change, Begun::Trying(id)))
            } else {
                change = change.put(&Key::Head(name.clone()), &head_of(view, id));
                Ok(Decision::Change(change, Begun::Released(id)))
            }
        })
        .await
        .map(Decided::into_value)
    }

    /// Makes a verified release head once its push has gone through, and ends its trial.
    ///
    /// # Errors
    /// [`Refusal::TrialOver`] if it failed meanwhile, or its lease ended.
    pub async fn promote(&self, name: &AppName, release: ReleaseId) -> Result<()> {
        self.decide(keys::app(name), |snapshot| {
            registered(snapshot, name)?;
            let view = &snapshot.apps[name];
            // The release is head, or was until a later one; this includes this call's own write whose reply was lost.
            let made = view.releases.get(&release);
            if made.is_some_and(|row| row.status == ReleaseStatus::Released) {
                return Ok(Decision::Already(()));
            }
            match (&view.trial, view.releases.get(&release)) {
                (Some(trial), Some(row))
                    if trial.release == release && row.status == ReleaseStatus::Verified =>
                {
                    Ok(Decision::Change(promotion(name, view, release, row, trial), ()))
                }
                _ => Err(Refusal::TrialOver(name.clone(), release).into()),
            }
        })
        .await
        .map(Decided::into_value)
    }

    /// Ends a trial as failed, if it is still under way.
    ///
    /// # Errors
    /// The store's.
    pub async fn fail_trial(&self, name: &AppName, release: ReleaseId, cause: &str) -> Result<()> {
        self.decide(keys::app(name), |snapshot| {
            let Some(view) = snapshot.apps.get(name) else { return Ok(Decision::Already(())) };
            Ok(match view.releases.get(&release) {
                Some(row) if matches!(row.status, ReleaseStatus::Trying | ReleaseStatus::Verified) => {
                    Decision::Change(failure(name, view, release, row, cause), ())
                }
                _ => Decision::Already(()),
            })
        })
        .await
        .map(Decided::into_value)
    }
}

/// Returns the change that marks a trial's release verified, and moves head too if that is the converger's task.
pub fn verification(
    name: &AppName,
    view: &AppView,
    release: ReleaseId,
    row: &Versioned<Release>,
    trial: &Versioned<Trial>,
) -> Change {
    match trial.promote {
        Promoter::Converger => promotion(name, view, release, row, trial),
        Promoter::Pusher => {
            let key = Key::Release(name.clone(), release);
            let verified = Release { status: ReleaseStatus::Verified, ..row.value.clone() };
            Change::new()
                .as_read(&Key::Trial(name.clone()), Some(trial))
                .as_read(&key, Some(row))
                .put(&key, &verified)
        }
    }
}

/// Returns the change that marks a release failed, and ends its trial if that is still under way.
pub fn failure(
    name: &AppName,
    view: &AppView,
    release: ReleaseId,
    row: &Versioned<Release>,
    cause: &str,
) -> Change {
    let key = Key::Release(name.clone(), release);
    let trial_key = Key::Trial(name.clone());
    let failed = Release { status: ReleaseStatus::Failed, cause: Some(cause.into()), ..row.value.clone() };
    let mut change =
        Change::new().as_read(&key, Some(row)).as_read(&trial_key, view.trial.as_ref()).put(&key, &failed);
    if view.trial.as_ref().is_some_and(|trial| trial.release == release) {
        change = change.delete(&trial_key);
    }
    change
}

fn promotion(
    name: &AppName,
    view: &AppView,
    release: ReleaseId,
    row: &Versioned<Release>,
    trial: &Versioned<Trial>,
) -> Change {
    let (key, trial_key, head_key) =
        (Key::Release(name.clone(), release), Key::Trial(name.clone()), Key::Head(name.clone()));
    let released = Release { status: ReleaseStatus::Released, ..row.value.clone() };
    Change::new()
        .as_read(&trial_key, Some(trial))
        .as_read(&key, Some(row))
        .as_read(&head_key, view.head.as_ref())
        .put(&key, &released)
        .put(&head_key, &head_of(view, release))
        .delete(&trial_key)
}

/// Returns the keys of linked services whose rows must exist.
fn linked(links: &BTreeSet<Link>) -> impl Iterator<Item = Key> {
    links.iter().flat_map(|Link { app, proc }| [Key::App(app.clone()), Key::Proc(app.clone(), proc.clone())])
}

fn head_of(view: &AppView, release: ReleaseId) -> Head {
    let extra = view.head.as_ref().map(|head| head.extra.clone()).unwrap_or_default();
    Head { release, extra }
}

/// Returns the procs that a release's trial runs: those of which head's formation wants some instances.
pub fn concerned<'a>(view: &'a AppView, release: &Release) -> Vec<&'a ProcName> {
    view.revs
        .get(&release.rev)
        .map_or_else(Vec::new, |rev| rev.procs.keys().filter(|proc| view.count(proc) > 0).collect())
}
