//! Config vars and links: making an env, wrapping its key, and handing it to hosts.
//!
//! Owns the rules of who may open an env:
//!
//! - Every rm may, so that developers can read back what they set, and so that one rm can stand in for another.
//! - The hosts that run with it may, and two more while the env is in use ([`in_use`], [`holders`]), so that a key is
//!   left when every rm is gone. Any other host gets a key at the converger's request, once it needs one.
//! - Nobody else's key opens it, and no key opens it for a later app of the same name: the vars are bound to the
//!   registration ([`EnvOf`]).
//!
//! The vars and links of an env never change; only its form and its wraps do.
//!
//! ```text
//! bazooka: seal, wrap for rms, hosts that run the app, two more        NewEnv::seal
//! rm: seal anew what an earlier version sealed, wrap for other rms     mending
//! rm, or a host that has the env: wrap for one more host               Answered
//! ```

mod handed;
pub mod holders;
mod mending;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    keys::{self, Key},
    links::{self, Link},
    names::{AppName, EnvRef, HostName, ReleaseId},
    schema::{Env, Extra, Handed, ReleaseStatus, Schema, WrapRequest, Wraps},
    seal::{DataKey, EnvOf, Keyring, OpenError, PublicKey, Random, Sealed, Vars},
    snapshot::{AppView, Snapshot, Versioned},
    store::{Keys, Revision},
    visor::{Change, Result, Visor},
};
pub use handed::{Answered, wraps};
pub use mending::{Mending, Rm, mending};

/// The ref of the env without vars, which is never stored.
pub const EMPTY_ENV: EnvRef = EnvRef(0);

/// The number of latest releases whose envs are in use, so that a rollback to one of them needs no rm.
const RELEASES_AT_HAND: usize = 3;

/// The schema version from which on envs are bound to a registration, and their wraps are private.
const OF_REGISTRATION: u32 = 4;

/// The most hosts for which a client wraps a new env at once. The others get their wraps at the converger's request.
const MOST_WRAPPED_AT_ONCE: usize = 100;

/// The registered hosts and rms for which envs are sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients {
    /// The public keys of the hosts.
    pub hosts: BTreeSet<PublicKey>,
    /// The public keys of the rms.
    pub rms: BTreeSet<PublicKey>,
    /// The keys that rms have replaced, each with the rm's present key.
    pub retired: BTreeMap<PublicKey, PublicKey>,
    /// True if a host or rm is of a version that cannot open envs.
    pub some_are_older: bool,
    /// True if nobody takes part who cannot read envs that are bound to a registration.
    pub read_registration: bool,
}

impl Recipients {
    /// Returns the recipients in a snapshot that has the schema and all hosts and rms.
    pub fn of(snapshot: &Snapshot) -> Recipients {
        let mut to =
            Recipients { read_registration: are_of_registrations(snapshot), ..Recipients::default() };
        for host in snapshot.hosts.values().filter_map(|view| view.host.as_ref()) {
            to.some_are_older |= host.seal_key.is_none();
            to.hosts.extend(host.seal_key.clone());
        }
        for rm in snapshot.rms.values() {
            to.some_are_older |= rm.seal_key.is_none();
            let Some(key) = &rm.seal_key else { continue };
            to.rms.insert(key.clone());
            to.retired.extend(rm.retired_seal_keys.iter().map(|old| (old.clone(), key.clone())));
        }
        to
    }
}

/// Returns the scopes from which [`Recipients`] are read.
pub fn recipients() -> Vec<Keys> {
    vec![keys::schema(), keys::hosts(), keys::rms()]
}

/// Reports whether new envs are bound to the registration of their app, with private wraps.
///
/// So it is once `bazooka migrate` has found that every host and rm reads them, and has shut older builds out. (That also
/// shuts out a converger that could not read private wraps, which no row tells of before it is elected.)
pub fn are_of_registrations(snapshot: &Snapshot) -> bool {
    snapshot.schema.as_ref().is_some_and(|schema| schema.min_writer >= OF_REGISTRATION)
}

/// Reports whether an env may be opened as it is sealed.
///
/// Once the cluster is migrated, no env is left that is not bound to a registration. Such a row then is of an earlier app
/// of the same name, and somebody has kept it.
pub fn is_accepted(schema: Option<&Schema>, sealed: &Sealed) -> bool {
    sealed.is_of_registration() || schema.is_none_or(|schema| schema.version < OF_REGISTRATION)
}

/// An env that will be made together with a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEnv {
    /// The env that it was made from.
    pub from: EnvRef,
    /// The ref to which it is sealed.
    pub env: EnvRef,
    /// The token of the app's registration for which it was made.
    pub registration: Option<String>,
    /// The row.
    pub row: Env,
    /// The wraps of its key.
    pub wraps: Wraps,
    /// The rms that it was sealed for, with the revisions of their rows: none of them may have replaced its key
    /// meanwhile.
    pub rms: BTreeMap<HostName, Revision>,
}

impl NewEnv {
    /// Seals vars as the next env of an app, with these links.
    ///
    /// Returns none if no rm is registered to seal for, because an env that no rm can open would be lost. `snapshot`
    /// has the schema and all hosts and rms ([`recipients`]). `view` is the app's, with the wraps of the env that the new
    /// one is made from: they name rms that are away for a moment.
    pub fn seal(
        app: &AppName,
        view: &AppView,
        (vars, links): (&Vars, &BTreeSet<Link>),
        snapshot: &Snapshot,
        (by, now): (&str, Timestamp),
        random: &mut dyn Random,
    ) -> Option<NewEnv> {
        let to = Recipients::of(snapshot);
        if to.rms.is_empty() {
            return None;
        }
        let (from, env) = (base_env(view), next_env(view));
        let away = wraps_of(view, from).into_iter().flat_map(|wraps| wraps.rms.keys());
        let rms = to.rms.iter().chain(away.filter(|key| !to.retired.contains_key(key)));
        let rms: BTreeSet<&PublicKey> = rms.collect();
        let registration = view.app.as_ref().map(|app| app.token.as_str());
        let registration = registration.filter(|_| to.read_registration);
        let hosts = match registration {
            Some(_) => holders::of_new(snapshot, app, view, env, MOST_WRAPPED_AT_ONCE),
            None => to.hosts,
        };
        let key = DataKey::fresh(random);
        let sealed = Some(key.seal(EnvOf { app, registration, env }, vars, random));
        let links = links.clone();
        let row = Env { sealed, vars: None, links, by: by.to_owned(), at: now, extra: Extra::new() };
        let wraps = wraps(&key, rms, &hosts, random);
        let rms = snapshot.rms.iter().map(|(name, row)| (name.clone(), row.mod_revision));
        let registration = view.app.as_ref().map(|app| app.token.clone());
        Some(NewEnv { from, env, registration, row, wraps, rms: rms.collect() })
    }

    /// Reports whether the app is still the one that the env was sealed for, and the rms have the keys of then.
    pub(crate) fn is_sealed_to(&self, snapshot: &Snapshot, view: &AppView) -> bool {
        if self.registration.as_ref() != view.app.as_ref().map(|app| &app.token) {
            return false;
        }
        let at = |rm| snapshot.rms.get(rm).map_or(0, |row| row.mod_revision);
        self.rms.iter().all(|(rm, revision)| at(rm) == *revision)
    }

    /// Returns the links that the previous env does not have.
    pub(crate) fn added<'a>(&'a self, view: &'a AppView) -> impl Iterator<Item = &'a Link> {
        let before = links::of(view, self.from);
        self.row.links.iter().filter(move |link| !before.is_some_and(|before| before.contains(link)))
    }

    /// Reports whether this env exists already, made by an earlier call whose reply was lost.
    pub(crate) fn is_there(&self, view: &AppView) -> bool {
        view.envs.get(&self.env).is_some_and(|row| row.sealed == self.row.sealed)
    }
}

/// Returns the wraps of an env's key, wherever they are.
pub fn wraps_of(view: &AppView, env: EnvRef) -> Option<&Versioned<Wraps>> {
    view.wraps.get(&env).or_else(|| view.earlier_wraps.get(&env))
}

/// Returns the env that changes start from: head's, or the newest while the app has no head.
pub fn base_env(view: &AppView) -> EnvRef {
    view.head_release().map_or_else(|| newest(view), |(_, head)| head.env)
}

/// Returns the ref of the next env.
pub fn next_env(view: &AppView) -> EnvRef {
    EnvRef(newest(view).0.saturating_add(1))
}

fn newest(view: &AppView) -> EnvRef {
    view.envs.keys().next_back().copied().unwrap_or(EMPTY_ENV)
}

/// Returns the change that writes the rows of a new env.
pub(crate) fn making(app: &AppName, made: &NewEnv) -> Change {
    let own = Key::Env(app.clone(), made.env);
    let wraps = key_of_wraps(app, made.env, made.row.sealed.as_ref());
    let change = Change::new().absent(&own).absent(&wraps).put(&own, &made.row).put(&wraps, &made.wraps);
    made.rms.iter().fold(change, |change, (rm, at)| change.unchanged(&Key::Rm(rm.clone()), *at))
}

/// Returns the key of the wraps of an app's env, whose row the view has.
pub fn wraps_key(view: &AppView, app: &AppName, env: EnvRef) -> Key {
    let sealed = view.envs.get(&env).and_then(|row| row.sealed.as_ref());
    key_of_wraps(app, env, sealed)
}

/// Returns the key of an env's wraps: a private one if the env is bound to a registration.
pub(crate) fn key_of_wraps(app: &AppName, env: EnvRef, sealed: Option<&Sealed>) -> Key {
    match sealed.is_some_and(Sealed::is_of_registration) {
        true => Key::Wraps(app.clone(), env),
        false => Key::EarlierWraps(app.clone(), env),
    }
}

/// Returns the envs that a host may need at once: of running and coming instances, and of releases that a rollback
/// would use.
pub fn in_use(view: &AppView) -> BTreeSet<EnvRef> {
    let mut releases: BTreeSet<ReleaseId> =
        view.releases.keys().rev().take(RELEASES_AT_HAND).copied().collect();
    releases.extend(view.head.iter().map(|head| head.release));
    releases.extend(view.trial.iter().map(|trial| trial.release));
    releases.extend(view.instances.values().map(|row| row.release));
    releases.extend(view.formation.values().flat_map(|formation| formation.beside.keys()));
    // The previous head may become head again through an abort.
    let released = view.releases.iter().rev().filter(|(_, row)| row.status == ReleaseStatus::Released);
    releases.extend(released.take(2).map(|(id, _)| *id));
    let envs = releases.iter().filter_map(|id| view.releases.get(id)).map(|row| row.env);
    envs.chain([newest(view)]).filter(|env| *env != EMPTY_ENV).collect()
}

/// Returns the copy of an env for a host that runs with it. None if the host is not registered with a key, the env is not sealed in a form
/// that is accepted, or nobody has wrapped its key for the host yet.
///
/// The registration is the app's own, not one that the env's row could name: the app's people may write that row.
pub fn handed(snapshot: &Snapshot, view: &AppView, host: &HostName, env: EnvRef) -> Option<Handed> {
    let to = snapshot.hosts.get(host)?.host.as_ref()?.seal_key.as_ref()?;
    let row = view.envs.get(&env)?;
    let schema = snapshot.schema.as_ref().map(|row| &row.value);
    let sealed = row.sealed.clone().filter(|sealed| is_accepted(schema, sealed))?;
    let given = [&view.wraps, &view.earlier_wraps].into_iter().find_map(|all| all.get(&env)?.hosts.get(to));
    let answers = || {
        let mut answers = view.wrap_requests.iter();
        answers.find_map(|((_, of, host_of), row)| {
            row.key.as_ref().filter(|_| *of == env && host_of == host && row.to == *to)
        })
    };
    let own = || {
        let row = view.handed.get(&(host.clone(), env))?;
        (row.to == *to && row.sealed.head() == sealed.head()).then_some(&row.key)
    };
    let key = given.or_else(answers).or_else(own)?.clone();
    let registration = registration_of(view, &sealed);
    Some(Handed { sealed, to: to.clone(), key, links: row.links.clone(), registration, extra: Extra::new() })
}

/// Returns the registration that a host needs to open an env; none for the form without one.
pub fn registration_of(view: &AppView, sealed: &Sealed) -> Option<String> {
    let token = view.app.as_ref().map(|app| app.token.clone());
    token.filter(|_| sealed.is_of_registration())
}

/// Returns the change that hands an env to a host, or hands it again for the host's new key.
pub fn handing(
    host: &HostName,
    app: &AppName,
    env: EnvRef,
    before: Option<&Versioned<Handed>>,
    after: &Handed,
) -> Change {
    let key = Key::Handed(host.clone(), app.clone(), env);
    Change::new().as_read(&key, before).put(&key, after)
}

/// Returns the change that asks `by`, or any rm, to wrap the key of an env for a host.
pub fn asking(
    (by, host): (&HostName, &HostName),
    app: &AppName,
    env: EnvRef,
    to: PublicKey,
    now: Timestamp,
) -> Change {
    let key = request_key((by, host), app, env);
    let row = WrapRequest { to, since: now, key: None, extra: Extra::new() };
    Change::new().absent(&key).put(&key, &row)
}

/// Returns the key of the request to a host, `by`, for an env's key that is wrapped for another.
fn request_key((by, host): (&HostName, &HostName), app: &AppName, env: EnvRef) -> Key {
    Key::WrapRequest(by.clone(), app.clone(), env, host.clone())
}

/// Returns the change that ends a request.
pub fn ending_request(
    (by, host): (&HostName, &HostName),
    app: &AppName,
    env: EnvRef,
    before: &Versioned<WrapRequest>,
) -> Change {
    let key = request_key((by, host), app, env);
    Change::new().as_read(&key, Some(before)).delete(&key)
}

/// Returns the change that takes an env back from a host that runs nothing with it any more.
pub fn taking_back(host: &HostName, app: &AppName, env: EnvRef, before: &Versioned<Handed>) -> Change {
    let key = Key::Handed(host.clone(), app.clone(), env);
    Change::new().as_read(&key, Some(before)).delete(&key)
}

/// The outcome of an attempt to open an env.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The vars.
    Vars(Vars),
    /// The env does not exist.
    Missing,
    /// The keys of this rm do not open it.
    Closed(OpenError),
}

impl Visor {
    /// Opens an env with an rm's keys.
    ///
    /// # Errors
    /// The store's.
    pub async fn open_env(&self, app: &AppName, env: EnvRef, ring: &Keyring) -> Result<Opened> {
        let rows = [
            Key::Schema,
            Key::App(app.clone()),
            Key::Env(app.clone(), env),
            Key::Wraps(app.clone(), env),
            Key::EarlierWraps(app.clone(), env),
        ];
        let snapshot = self.read(rows.map(|key| Keys::One(key.to_string())).to_vec()).await?;
        let Some(view) = snapshot.apps.get(app) else { return Ok(Opened::Missing) };
        let Some(row) = view.envs.get(&env) else { return Ok(Opened::Missing) };
        let schema = snapshot.schema.as_ref().map(|row| &row.value);
        let opened = mending::open(app, view, schema, (env, row), ring);
        Ok(opened.map_or_else(Opened::Closed, Opened::Vars))
    }
}
