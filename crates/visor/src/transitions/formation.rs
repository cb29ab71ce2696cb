//! The wishes of users: counts, canaries, shares of the traffic, restarts.

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use crate::bounds::MOST_INSTANCES;
use crate::{
    keys::{self, Key},
    names::{AppName, InstanceId, ProcName, ReleaseId, RevId, ZoneName},
    planted::Bug,
    quota::{self, Bounds, MOST_RELEASES},
    schema::{Extra, Formation, Release, ReleaseStatus},
    snapshot::{AppView, Snapshot, Versioned},
    store::{Keys, Revision},
    transitions::apps::registered,
    visor::{Change, Decided, Decision, Refusal, Result, Visor},
};

/// The change that a scale made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaled {
    /// The release that was scaled.
    pub release: ReleaseId,
    /// The number of instances wanted before.
    pub from: u32,
    /// The number of instances wanted now.
    pub to: u32,
    /// The numbers wanted in the named zone, before and now.
    pub in_zone: Option<(u32, u32)>,
}

impl Visor {
    /// Sets how many instances a proc should have: of head, or of a rev beside it.
    ///
    /// Another rev than head's is run by the newest release of that rev with head's env; the release is made if it does
    /// not exist.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::NoSuchProc`], [`Refusal::NotReleased`], [`Refusal::NoSuchRev`],
    /// [`Refusal::NotInRev`], [`Refusal::Destroying`], [`Refusal::InZones`], [`Refusal::TooManyReleases`],
    /// [`Refusal::OverInstances`].
    pub async fn scale(
        &self,
        name: &AppName,
        proc: &ProcName,
        count: u32,
        rev: Option<&RevId>,
        by: &str,
        now: Timestamp,
    ) -> Result<Decided<Scaled>> {
        self.decide(scaled_from(name), |snapshot| {
            let (change, view) = on_service(snapshot, name, proc)?;
            let (head, head_release) =
                view.head_release().ok_or_else(|| Refusal::NotReleased(name.clone()))?;
            let mut formation = view.formation.get(proc).map(|f| f.value.clone()).unwrap_or_default();
            let head_key = Key::Head(name.clone());
            let mut change = change.as_read(&head_key, view.head.as_ref());
            // A release beside head, new or old, needs rows that pruning may delete meanwhile.
            let beside = rev.filter(|rev| **rev != head_release.rev);
            if let Some(rev) = beside {
                change = change.exists(&Key::Rev(name.clone(), rev.clone()));
            }
            let (release, before) = match beside {
                None => {
                    runs(view, name, &head_release.rev, proc, count)?;
                    (head, std::mem::replace(&mut formation.count, count))
                }
                Some(rev) => {
                    runs(view, name, rev, proc, count)?;
                    let made = view.releases.iter().rev().find(|(_, release)| {
                        release.rev == *rev
                            && release.env == head_release.env
                            && release.status != ReleaseStatus::Failed
                    });
                    let release = match made {
                        Some((id, _)) => {
                            change = change.exists(&Key::Release(name.clone(), *id));
                            *id
                        }
                        None if count == 0 => {
                            return Ok(Decision::Already(Scaled {
                                release: head,
                                from: 0,
                                to: 0,
                                in_zone: None,
                            }));
                        }
                        None => {
                            let id = next_release(name, view)?;
                            let key = Key::Release(name.clone(), id);
                            let release = Release {
                                rev: rev.clone(),
                                env: head_release.env,
                                by: by.into(),
                                at: now,
                                reason: format!("scale -r {}", rev.short()),
                                status: ReleaseStatus::Beside,
                                cause: None,
                                token: String::new(),
                                extra: Extra::new(),
                            };
                            change = change.absent(&key).put(&key, &release);
                            id
                        }
                    };
                    let before = match count {
                        0 => {
                            // Without instances a share would stay, and hold again when the release returns.
                            formation.weights.remove(&release);
                            formation.beside.remove(&release)
                        }
                        _ => formation.beside.insert(release, count),
                    };
                    (release, before.unwrap_or(0))
                }
            };
            if release == head {
                let pinned: u32 = formation.zones.values().fold(0, |sum: u32, n| sum.saturating_add(*n));
                match count {
                    0 => formation.zones.clear(),
                    _ if count < pinned => {
                        return Err(Refusal::InZones(proc.clone(), pinned, formation.zones.clone()).into());
                    }
                    _ => {}
                }
            }
            let scaled = Scaled { release, from: before, to: count, in_zone: None };
            let key = Key::Formation(name.clone(), proc.clone());
            let row = view.formation.get(proc);
            if row.map(|f| &f.value).unwrap_or(&Formation::default()) == &formation {
                return Ok(Decision::AlreadyAt(scaled, written(row)));
            }
            formation.by = by.into();
            let grows = within(name, snapshot, row.map(|row| &row.value), &formation)?;
            let change = change.unless(Bug::FormationIsWrittenUnguarded, |it| {
                alone(it.as_read(&key, row), name, snapshot, grows)
            });
            Ok(Decision::Change(change.put(&key, &formation), scaled))
        })
        .await
    }

    /// Sets how many instances of head a proc should have in a zone, and changes the total by the difference.
    ///
    /// The converger decides where the other instances stand.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::NoSuchProc`], [`Refusal::NotReleased`], [`Refusal::NotInRev`],
    /// [`Refusal::Destroying`], [`Refusal::TooMany`], [`Refusal::OverInstances`].
    pub async fn scale_in_zone(
        &self,
        name: &AppName,
        proc: &ProcName,
        zone: &ZoneName,
        count: u32,
        by: &str,
    ) -> Result<Decided<Scaled>> {
        self.decide(scaled_from(name), |snapshot| {
            let (change, view) = on_service(snapshot, name, proc)?;
            let (head, release) = view.head_release().ok_or_else(|| Refusal::NotReleased(name.clone()))?;
            let change = change.as_read(&Key::Head(name.clone()), view.head.as_ref());
            runs(view, name, &release.rev, proc, count)?;
            let row = view.formation.get(proc);
            let mut formation = row.map(|row| row.value.clone()).unwrap_or_default();
            let before = formation.zones.remove(zone).unwrap_or(0);
            if count > 0 {
                formation.zones.insert(zone.clone(), count);
            }
            let from = formation.count;
            formation.count = (from - before.min(from)).saturating_add(count);
            if formation.count > MOST_INSTANCES {
                return Err(Refusal::TooMany(proc.clone(), formation.count).into());
            }
            let scaled = Scaled { release: head, from, to: formation.count, in_zone: Some((before, count)) };
            if row.map(|f| &f.value).unwrap_or(&Formation::default()) == &formation {
                return Ok(Decision::AlreadyAt(scaled, written(row)));
            }
            formation.by = by.into();
            let key = Key::Formation(name.clone(), proc.clone());
            let grows = within(name, snapshot, row.map(|row| &row.value), &formation)?;
            let change = alone(change.as_read(&key, row), name, snapshot, grows);
            Ok(Decision::Change(change.put(&key, &formation), scaled))
        })
        .await
    }

    /// Sets the share of a proc's traffic for revs that run beside head, in percent; none removes a share.
    ///
    /// Head gets the rest. Returns the shares by release.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::NoSuchProc`], [`Refusal::NotReleased`], [`Refusal::Destroying`],
    /// [`Refusal::NotBeside`], [`Refusal::TooMuchTraffic`].
    pub async fn share_traffic(
        &self,
        name: &AppName,
        proc: &ProcName,
        shares: &[(RevId, Option<u32>)],
    ) -> Result<Decided<BTreeMap<ReleaseId, u32>>> {
        self.decide(keys::services_of(name), |snapshot| {
            let (change, view) = on_service(snapshot, name, proc)?;
            view.head_release().ok_or_else(|| Refusal::NotReleased(name.clone()))?;
            let row = view.formation.get(proc);
            let mut formation = row.map(|row| row.value.clone()).unwrap_or_default();
            for (rev, percent) in shares {
                let runs = |id: &&ReleaseId| view.releases.get(id).is_some_and(|row| row.rev == *rev);
                let release = formation.beside.keys().rev().find(runs).copied();
                let not_beside = || Refusal::NotBeside(name.clone(), rev.short().into(), proc.clone());
                let release = release.ok_or_else(not_beside)?;
                match percent {
                    Some(percent) => drop(formation.weights.insert(release, *percent)),
                    None => drop(formation.weights.remove(&release)),
                }
            }
            formation.weights.retain(|release, _| formation.beside.contains_key(release));
            let all: u32 = formation.weights.values().fold(0, |sum: u32, n| sum.saturating_add(*n));
            if all > 100 {
                return Err(Refusal::TooMuchTraffic(proc.clone(), all).into());
            }
            let shares = formation.weights.clone();
            if row.is_none_or(|row| row.value == formation) {
                return Ok(Decision::AlreadyAt(shares, written(row)));
            }
            let key = Key::Formation(name.clone(), proc.clone());
            Ok(Decision::Change(change.as_read(&key, row).put(&key, &formation), shares))
        })
        .await
    }

    /// Asks for the replacement of a proc's instances: of one, or of all that exist now.
    ///
    /// An instance that the converger is placing at this moment has its id already, and is replaced too. Returns the
    /// ids that are to be replaced.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::NoSuchProc`], [`Refusal::NoSuchInstance`], [`Refusal::Destroying`].
    pub async fn restart(
        &self,
        name: &AppName,
        proc: &ProcName,
        only: Option<InstanceId>,
    ) -> Result<Decided<Vec<InstanceId>>> {
        let mut scopes = keys::app(name);
        scopes.push(Keys::One(Key::InstanceCounter.to_string()));
        self.decide(scopes, |snapshot| {
            let (change, view) = on_service(snapshot, name, proc)?;
            let mut ids: Vec<InstanceId> =
                view.instances.iter().filter(|(_, i)| i.proc == *proc).map(|(id, _)| *id).collect();
            let row = view.formation.get(proc);
            let mut formation = row.map(|f| f.value.clone()).unwrap_or_default();
            match only {
                Some(id) if !ids.contains(&id) => {
                    return Err(Refusal::NoSuchInstance(name.clone(), id).into());
                }
                Some(id) => {
                    // Instances that have ended need no replacement.
                    formation.replace.retain(|id| ids.contains(id));
                    formation.replace.insert(id);
                    ids = vec![id];
                }
                None => {
                    let last = snapshot.instance_counter.as_ref().map_or(0, |counter| counter.value);
                    formation.replace_before = Some(InstanceId(last.saturating_add(1)));
                    formation.replace.clear();
                }
            }
            if row.is_none_or(|row| row.value == formation) {
                return Ok(Decision::AlreadyAt(ids, written(row)));
            }
            let key = Key::Formation(name.clone(), proc.clone());
            Ok(Decision::Change(change.as_read(&key, row).put(&key, &formation), ids))
        })
        .await
    }
}

/// Returns the scopes that a scale is decided from: the app's services, and the rms that name its bounds.
fn scaled_from(name: &AppName) -> Vec<Keys> {
    let mut scopes = keys::services_of(name);
    scopes.push(keys::rms());
    scopes
}

/// Checks that the app may have as many instances as it asks for with this formation of one proc. Returns whether these
/// are more than before; an app beyond a bound that was lowered may still scale down.
///
/// # Errors
/// [`Refusal::OverInstances`].
fn within(
    name: &AppName,
    snapshot: &Snapshot,
    before: Option<&Formation>,
    after: &Formation,
) -> Result<bool> {
    let (was, is) = (before.map_or(0, quota::wanted), quota::wanted(after));
    let most = Bounds::of(snapshot.rms.values().map(|rm| &rm.value)).instances;
    let wanted = snapshot.apps.get(name).map_or(0, quota::instances) - was + is;
    if is > was && wanted > u64::from(most) {
        return Err(Refusal::OverInstances { app: name.clone(), wanted, most }.into());
    }
    Ok(is > was)
}

/// Adds the condition that no other proc was scaled meanwhile, if the change asks for more instances.
fn alone(change: Change, name: &AppName, snapshot: &Snapshot, grows: bool) -> Change {
    if grows { change.none_since(keys::formation_of(name), snapshot.revision) } else { change }
}

/// Returns the revision of a formation's last write, for callers that wait until a view has it.
fn written(row: Option<&Versioned<Formation>>) -> Revision {
    row.map_or(0, |row| row.mod_revision)
}

/// Returns the number of an app's next release, if the app may have one more.
pub(crate) fn next_release(name: &AppName, view: &AppView) -> Result<ReleaseId> {
    match view.releases.len() {
        there if there >= MOST_RELEASES => Err(Refusal::TooManyReleases(name.clone(), there).into()),
        _ => number_of_next(name, view),
    }
}

/// Returns the number of an app's next release, however many it has.
pub(crate) fn number_of_next(name: &AppName, view: &AppView) -> Result<ReleaseId> {
    let last = view.releases.keys().next_back().map_or(0, |last| last.0);
    let next = last.checked_add(1).ok_or_else(|| Refusal::NoNumberLeft(name.clone(), ReleaseId(last)))?;
    Ok(ReleaseId(next))
}

/// Returns the app's view, and a change of one of its services that is guarded on the app's row.
pub(crate) fn on_service<'a>(
    snapshot: &'a Snapshot,
    name: &AppName,
    proc: &ProcName,
) -> Result<(Change, &'a AppView)> {
    let app = registered(snapshot, name)?;
    if app.destroying {
        return Err(Refusal::Destroying(name.clone()).into());
    }
    let view = &snapshot.apps[name];
    if !view.procs.contains_key(proc) {
        return Err(Refusal::NoSuchProc(name.clone(), proc.clone()).into());
    }
    Ok((Change::new().as_read(&Key::App(name.clone()), Some(app)), view))
}

fn runs(view: &AppView, name: &AppName, rev: &RevId, proc: &ProcName, count: u32) -> Result<()> {
    let row = view.revs.get(rev).ok_or_else(|| Refusal::NoSuchRev(name.clone(), rev.short().into()))?;
    if count > 0 && !row.procs.contains_key(proc) {
        return Err(Refusal::NotInRev(name.clone(), rev.short().into(), proc.clone()).into());
    }
    Ok(())
}
