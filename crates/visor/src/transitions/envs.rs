//! Config vars and links: making an env, wrapping its key, and handing it to hosts.
//!
//! Owns the rules of who may open an env:
//!
//! - Every rm may, so that developers can read back what they set, and so that one rm can stand in for another.
//! - Each host may, as long as a rollback or a new instance may need the env there at once ([`in_use`]). Such a wrap
//!   does not let the host read the env: a host reads only the copies that the converger hands to it.
//!
//! The vars and links of an env never change; only its wraps do.

mod handed;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    keys::{self, Key},
    links::{self, Link},
    names::{AppName, EnvRef, HostName, ReleaseId},
    schema::{Env, Extra, Handed, ReleaseStatus, Wraps},
    seal::{DataKey, Keyring, OpenError, PublicKey, Random, Vars},
    snapshot::{AppView, Snapshot, Versioned},
    store::{Keys, Revision},
    visor::{Change, Result, Visor},
};
pub use handed::wraps;

/// The ref of the env without vars, which is never stored.
pub const EMPTY_ENV: EnvRef = EnvRef(0);

/// The number of latest releases whose envs are wrapped for all hosts, so that a rollback to one of them needs no rm.
const RELEASES_AT_HAND: usize = 3;

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
}

impl Recipients {
    /// Returns the recipients in a snapshot that has all hosts and rms.
    pub fn of(snapshot: &Snapshot) -> Recipients {
        let mut to = Recipients::default();
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
    vec![keys::hosts(), keys::rms()]
}

/// An env that will be made together with a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEnv {
    /// The env that it was made from.
    pub from: EnvRef,
    /// The ref to which it is sealed.
    pub env: EnvRef,
    /// Its row.
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
    /// has all hosts and rms ([`recipients`]). `view` is the app's, with the wraps of the env that the new one is made
    /// from: they name rms that are away for a moment.
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
        let away = view.wraps.get(&from).into_iter().flat_map(|wraps| wraps.rms.keys());
        let rms = to.rms.iter().chain(away.filter(|key| !to.retired.contains_key(key)));
        let rms: BTreeSet<&PublicKey> = rms.collect();
        let key = DataKey::fresh(random);
        let sealed = Some(key.seal(app, env, vars, random));
        let links = links.clone();
        let row = Env { sealed, vars: None, links, by: by.to_owned(), at: now, extra: Extra::new() };
        let wraps = wraps(&key, rms, &to.hosts, random);
        let rms = snapshot.rms.iter().map(|(name, row)| (name.clone(), row.mod_revision));
        Some(NewEnv { from, env, row, wraps, rms: rms.collect() })
    }

    /// Reports whether those rms are still registered with the keys that the env was sealed for.
    pub(crate) fn is_sealed_to(&self, snapshot: &Snapshot) -> bool {
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
    let (own, wraps) = (Key::Env(app.clone(), made.env), Key::Wraps(app.clone(), made.env));
    let change = Change::new().absent(&own).absent(&wraps).put(&own, &made.row).put(&wraps, &made.wraps);
    made.rms.iter().fold(change, |change, (rm, at)| change.unchanged(&Key::Rm(rm.clone()), *at))
}

/// Returns the envs that any host may need at once: of running and coming instances, and of releases that a rollback
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

/// The work of an rm on an app's envs.
#[derive(Debug, Default)]
pub struct Mending {
    /// The changes to write, each in its own transaction.
    pub changes: Vec<(EnvRef, Change)>,
    /// The envs that lack a wrap, each with the reason why this rm cannot add it.
    pub closed: Vec<(EnvRef, OpenError)>,
}

/// Returns the changes after which an app's envs can be opened by the intended recipients only.
///
/// It seals envs that an earlier version left in plain text, adds wraps, and deletes wraps for retired or unneeded
/// keys. No plain env is sealed while a host or an rm is registered that could not open it. A host's unneeded wrap is
/// deleted only together with a needed write, so that a host that is away for a moment keeps its wrap.
pub fn mending(
    app: &AppName,
    view: &AppView,
    to: &Recipients,
    ring: &Keyring,
    random: &mut dyn Random,
) -> Mending {
    let mut mending = Mending::default();
    let used = in_use(view);
    for (env, row) in &view.envs {
        let hosts: BTreeSet<PublicKey> = if used.contains(env) { to.hosts.clone() } else { BTreeSet::new() };
        let own = Key::Env(app.clone(), *env);
        let wraps_key = Key::Wraps(app.clone(), *env);
        if let (None, Some(vars)) = (&row.sealed, &row.vars) {
            if to.some_are_older || !to.rms.contains(&ring.current()) {
                continue;
            }
            let key = DataKey::fresh(random);
            let sealed = Some(key.seal(app, *env, vars, random));
            let after = Env { sealed, vars: None, ..row.value.clone() };
            let change = Change::new().as_read(&own, Some(row)).absent(&wraps_key).put(&own, &after);
            let change = change.put(&wraps_key, &wraps(&key, &to.rms, &hosts, random));
            mending.changes.push((*env, change));
            continue;
        }
        let Some(before) = view.wraps.get(env) else { continue };
        match mended(before, to, &hosts, ring, random) {
            Ok(None) => {}
            Ok(Some(after)) => {
                let change = Change::new().exists(&own).as_read(&wraps_key, Some(before));
                mending.changes.push((*env, change.put(&wraps_key, &after)));
            }
            Err(error) => mending.closed.push((*env, error)),
        }
    }
    mending
}

/// Returns the wraps as they should be; none if they are so already.
fn mended(
    before: &Versioned<Wraps>,
    to: &Recipients,
    hosts: &BTreeSet<PublicKey>,
    ring: &Keyring,
    random: &mut dyn Random,
) -> Result<Option<Wraps>, OpenError> {
    let lack = |wanted: &BTreeSet<PublicKey>, there: &BTreeMap<PublicKey, _>| -> Vec<PublicKey> {
        wanted.iter().filter(|key| !there.contains_key(key)).cloned().collect()
    };
    let (rms, own) = (lack(&to.rms, &before.rms), lack(hosts, &before.hosts));
    let goes = |old: &PublicKey| to.retired.get(old).is_some_and(|new| to.rms.contains(new));
    if rms.is_empty() && own.is_empty() && !before.rms.keys().any(goes) {
        return Ok(None);
    }
    let mut after = before.value.clone();
    if !rms.is_empty() || !own.is_empty() {
        let key = ring.unwrap(&before.rms)?;
        let added = wraps(&key, &rms, &own, random);
        after.rms.extend(added.rms);
        after.hosts.extend(added.hosts);
    }
    after.rms.retain(|key, _| !goes(key));
    after.hosts.retain(|key, _| hosts.contains(key));
    Ok(Some(after))
}

/// Returns the copy of an env for one host; none if its key is not wrapped for that host.
pub fn handed(env: &Env, wraps: &Wraps, host: &PublicKey) -> Option<Handed> {
    let (sealed, key) = (env.sealed.clone()?, wraps.hosts.get(host)?.clone());
    Some(Handed { sealed, to: host.clone(), key, links: env.links.clone(), extra: Extra::new() })
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
        let scopes = [Key::Env(app.clone(), env), Key::Wraps(app.clone(), env)];
        let snapshot = self.read(scopes.map(|key| Keys::One(key.to_string())).to_vec()).await?;
        let view = snapshot.apps.get(app);
        let Some(row) = view.and_then(|view| view.envs.get(&env)) else { return Ok(Opened::Missing) };
        let opened = match (&row.sealed, &row.vars) {
            (None, Some(vars)) => Ok(vars.clone()),
            (None, None) => Err(OpenError::Broken),
            (Some(sealed), _) => {
                let wraps = view.and_then(|view| view.wraps.get(&env));
                let key = wraps.map_or(Err(OpenError::NotForUs), |wraps| ring.unwrap(&wraps.rms));
                key.and_then(|key| key.open(app, env, sealed))
            }
        };
        Ok(opened.map_or_else(Opened::Closed, Opened::Vars))
    }
}
