//! The work of an rm on envs: sealing anew what an earlier version sealed, wrapping keys for rms, answering requests.
//!
//! Owns the decisions, as pure functions of an image; [`wrapping`](crate::wrapping) is the loop.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::{Answered, Recipients, in_use, is_accepted, wraps, wraps_of};
use crate::{
    keys::Key,
    names::{AppName, EnvRef},
    schema::{Env, Schema, WrapRequest, Wraps},
    seal::{DataKey, EnvOf, Keyring, OpenError, PublicKey, Random, Sealed, Vars},
    snapshot::{AppView, Snapshot, Versioned},
    visor::Change,
};

/// The time after which the hosts' wraps of a new env are deleted. The converger hands them out in the first second, and
/// whatever it could not hand out it asks for again.
const HOSTS_WRAPS_LAST: SignedDuration = SignedDuration::from_mins(10);

/// The work of an rm on an app's envs.
#[derive(Debug, Default)]
pub struct Mending {
    /// The changes to write, each in its own transaction.
    pub changes: Vec<(EnvRef, Change)>,
    /// The envs that lack a wrap, each with the reason why this rm cannot add it.
    pub closed: Vec<(EnvRef, OpenError)>,
    /// The time at which the app is to be looked at again, even if nothing happens.
    pub look_again: Option<Timestamp>,
}

/// An app as an rm looks at it.
#[derive(Clone, Copy)]
pub struct Rm<'a> {
    /// The image, with the schema, all hosts and all rms.
    pub snapshot: &'a Snapshot,
    /// The recipients in that image.
    pub to: &'a Recipients,
    /// The keys of this rm.
    pub ring: &'a Keyring,
    /// The wall clock.
    pub now: Timestamp,
}

/// Returns the changes after which an app's envs can be opened by the intended recipients only.
///
/// The changes seal anew the envs that are not bound to the app's registration, add wraps, answer requests for more, and
/// delete wraps for retired or unneeded keys, and of envs that are gone. No env gets a form that a part of the cluster could
/// not read.
pub fn mending(rm: Rm<'_>, app: &AppName, view: &AppView, random: &mut dyn Random) -> Mending {
    let used = in_use(view);
    let mut mending = Mending::default();
    for (env, row) in &view.envs {
        let one = One { rm, app, view, env: *env, row };
        let change = if row.sealed.as_ref().is_some_and(Sealed::is_of_registration) {
            if let Some(at) = one.hosts_wraps_end().filter(|at| *at > rm.now) {
                mending.look_again = Some(mending.look_again.map_or(at, |other| other.min(at)));
            }
            one.wrapped_for_rms(random)
        } else if rm.to.read_registration && view.app.is_some() {
            one.sealed_anew(random)
        } else {
            let nobody = BTreeSet::new();
            one.in_first_form(if used.contains(env) { &rm.to.hosts } else { &nobody }, random)
        };
        match change {
            Ok(change) => mending.changes.extend(change.map(|change| (*env, change))),
            Err(error) => mending.closed.push((*env, error)),
        }
    }
    mending.changes.extend(strays(app, view));
    for ((by, env, host), row) in view.wrap_requests.iter().filter(|(_, row)| row.key.is_none()) {
        match answered(rm, view, *env, (host, row), random) {
            Ok(answered) => mending.changes.push((*env, answered.change((by, host), app, *env, row))),
            // The converger asks others, and says so where nobody can.
            Err(error) => {
                tracing::debug!(%app, %env, %host, error = %error, "can't wrap config vars for a host")
            }
        }
    }
    mending
}

/// One env of an app, with the rm that looks at it.
struct One<'a> {
    rm: Rm<'a>,
    app: &'a AppName,
    view: &'a AppView,
    env: EnvRef,
    row: &'a Versioned<Env>,
}

impl One<'_> {
    fn key(&self) -> Key {
        Key::Env(self.app.clone(), self.env)
    }

    fn wraps_key(&self) -> Key {
        Key::Wraps(self.app.clone(), self.env)
    }

    /// Returns the change that binds an env to the app's registration, under a key of its own.
    fn sealed_anew(&self, random: &mut dyn Random) -> Result<Option<Change>, OpenError> {
        let Rm { to, ring, .. } = self.rm;
        let (Some(registered), true) = (&self.view.app, to.rms.contains(&ring.current())) else {
            return Ok(None);
        };
        let schema = self.rm.snapshot.schema.as_ref().map(|row| &row.value);
        let vars = open(self.app, self.view, schema, (self.env, self.row), ring)?;
        let of = EnvOf { app: self.app, registration: Some(&registered.token), env: self.env };
        let key = DataKey::fresh(random);
        let sealed = Some(key.seal(of, &vars, random));
        let after = Env { sealed, vars: None, ..self.row.value.clone() };
        let (own, wraps_key) = (self.key(), self.wraps_key());
        let earlier = Key::EarlierWraps(self.app.clone(), self.env);
        let change = Change::new()
            .as_read(&Key::App(self.app.clone()), Some(registered))
            .as_read(&own, Some(self.row))
            .as_read(&wraps_key, self.view.wraps.get(&self.env))
            .as_read(&earlier, self.view.earlier_wraps.get(&self.env));
        // Hosts get their wraps at the converger's request: to run instances nothing is new.
        let change = change.put(&own, &after).put(&wraps_key, &wraps(&key, &to.rms, [], random));
        Ok(Some(change.delete(&earlier)))
    }

    /// Returns the change after which the key is wrapped for each rm, and for no host for longer than needed.
    fn wrapped_for_rms(&self, random: &mut dyn Random) -> Result<Option<Change>, OpenError> {
        let Some(before) = self.view.wraps.get(&self.env) else { return Ok(None) };
        let ends = self.hosts_wraps_end().is_some_and(|at| at <= self.rm.now);
        let mut after = before.value.clone();
        if ends {
            after.hosts.clear();
        }
        self.add_and_drop(&mut after, &BTreeSet::new(), random)?;
        Ok((after != before.value).then(|| {
            let change = Change::new().exists(&self.key()).as_read(&self.wraps_key(), Some(before));
            change.put(&self.wraps_key(), &after)
        }))
    }

    /// Returns when the hosts' wraps are deleted; none if there are none.
    fn hosts_wraps_end(&self) -> Option<Timestamp> {
        let has_some = self.view.wraps.get(&self.env).is_some_and(|wraps| !wraps.hosts.is_empty());
        // The client's clock may be ahead.
        has_some.then(|| self.row.at.min(self.rm.now) + HOSTS_WRAPS_LAST)
    }

    /// Returns the change after which the key is wrapped for each rm and each of these hosts, as versions before 4 need it.
    ///
    /// The change seals what version 1 left in plain text, once no host or rm is registered that could not open it. A host's
    /// unneeded wrap is deleted only together with a needed write, so that a host that is away for a moment keeps its wrap.
    fn in_first_form(
        &self,
        hosts: &BTreeSet<PublicKey>,
        random: &mut dyn Random,
    ) -> Result<Option<Change>, OpenError> {
        let to = self.rm.to;
        let (own, wraps_key) = (self.key(), Key::EarlierWraps(self.app.clone(), self.env));
        if let (None, Some(vars)) = (&self.row.sealed, &self.row.vars) {
            if to.some_are_older || !to.rms.contains(&self.rm.ring.current()) {
                return Ok(None);
            }
            let key = DataKey::fresh(random);
            let of = EnvOf { app: self.app, registration: None, env: self.env };
            let sealed = Some(key.seal(of, vars, random));
            let after = Env { sealed, vars: None, ..self.row.value.clone() };
            let change = Change::new().as_read(&own, Some(self.row)).absent(&wraps_key).put(&own, &after);
            return Ok(Some(change.put(&wraps_key, &wraps(&key, &to.rms, hosts, random))));
        }
        let Some(before) = self.view.earlier_wraps.get(&self.env) else { return Ok(None) };
        let mut after = before.value.clone();
        self.add_and_drop(&mut after, hosts, random)?;
        if after == before.value {
            return Ok(None);
        }
        after.hosts.retain(|key, _| hosts.contains(key));
        let change = Change::new().exists(&own).as_read(&wraps_key, Some(before));
        Ok(Some(change.put(&wraps_key, &after)))
    }

    /// Adds the wraps that rms and these hosts lack, and drops those for keys that rms have replaced.
    fn add_and_drop(
        &self,
        after: &mut Wraps,
        hosts: &BTreeSet<PublicKey>,
        random: &mut dyn Random,
    ) -> Result<(), OpenError> {
        let to = self.rm.to;
        let lack = |wanted: &BTreeSet<PublicKey>, there: &BTreeMap<PublicKey, _>| -> Vec<PublicKey> {
            wanted.iter().filter(|key| !there.contains_key(key)).cloned().collect()
        };
        let (rms, hosts) = (lack(&to.rms, &after.rms), lack(hosts, &after.hosts));
        if !rms.is_empty() || !hosts.is_empty() {
            let key = self.rm.ring.unwrap(&after.rms)?;
            let added = wraps(&key, &rms, &hosts, random);
            after.rms.extend(added.rms);
            after.hosts.extend(added.hosts);
        }
        let goes = |old: &PublicKey| to.retired.get(old).is_some_and(|new| to.rms.contains(new));
        after.rms.retain(|key, _| !goes(key));
        Ok(())
    }
}

/// Returns the changes that delete the private wraps of envs that are gone: only an rm sees these rows.
fn strays(app: &AppName, view: &AppView) -> Vec<(EnvRef, Change)> {
    let gone = view.wraps.iter().filter(|(env, _)| !view.envs.contains_key(env));
    let change = |(env, row): (&EnvRef, &Versioned<Wraps>)| {
        let (own, wraps) = (Key::Env(app.clone(), *env), Key::Wraps(app.clone(), *env));
        (*env, Change::new().absent(&own).as_read(&wraps, Some(row)).delete(&wraps))
    };
    gone.map(change).collect()
}

/// Returns an rm's answer to a request for a host's wrap. The host itself must say that the key is its own.
fn answered(
    rm: Rm<'_>,
    view: &AppView,
    env: EnvRef,
    (host, row): (&crate::names::HostName, &WrapRequest),
    random: &mut dyn Random,
) -> Result<Answered, OpenError> {
    let says = rm.snapshot.hosts.get(host).and_then(|view| view.host.as_ref()?.seal_key.as_ref());
    let wraps = wraps_of(view, env).filter(|_| says == Some(&row.to)).ok_or(OpenError::NotForUs)?;
    Ok(Answered(rm.ring.unwrap(&wraps.rms)?.wrap(&row.to, random)))
}

/// Opens an env with an rm's keys.
pub(super) fn open(
    app: &AppName,
    view: &AppView,
    schema: Option<&Schema>,
    (env, row): (EnvRef, &Env),
    ring: &Keyring,
) -> Result<Vars, OpenError> {
    match (&row.sealed, &row.vars) {
        (None, Some(vars)) => Ok(vars.clone()),
        (None, None) => Err(OpenError::Broken),
        (Some(sealed), _) if !is_accepted(schema, sealed) => Err(OpenError::Earlier),
        (Some(sealed), _) => {
            let wraps = wraps_of(view, env).ok_or(OpenError::NotForUs)?;
            let registration = view.app.as_ref().map(|app| app.token.as_str());
            ring.unwrap(&wraps.rms)?.open(EnvOf { app, registration, env }, sealed)
        }
    }
}
