//! The custody of envs: which ones this host has, under which key, and where it gets the others.
//!
//! Owns the way of an env from the coordinator to a start. Its vars are in the open only during the start; in the
//! engine and on disk they are sealed.
//!
//! ```text
//!        needed                 handed to this host, and opens
//! (none) ──────▶ reading ───────────────────────────────────────▶ ready ──no instance has it──▶ forgotten
//!                 ▲    │ not handed yet, or it doesn't open         │
//!                 │    ▼                                            │ handed anew: another app's of the same name
//!                 └── later ◀───────────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use visor::{
    keys::Key,
    links::Link,
    names::{AppName, EnvRef, HostName},
    recover::FoundEnv,
    schema::{Env, Handed},
    seal::{OpenError, PublicKey, Vars},
    snapshot::{Snapshot, Versioned},
    visor::{Visor, VisorError},
};

use super::{
    model::{EnvState, Local, Tick},
    observe::Event,
    vault::Vault,
};

/// The envs that a host has or waits for.
pub type Envs = BTreeMap<(AppName, EnvRef), EnvState>;

/// The custodian of a host's envs, which can open them.
pub struct Custody {
    host: HostName,
    vault: Vault,
}

/// The source of an env.
#[derive(Debug)]
pub enum Source {
    /// The env was handed to this host, and is now sealed to its current key.
    Handed(Handed),
    /// The env was handed over, and can't be had for this reason.
    Failed(String),
    /// The env wasn't handed over. An earlier version may have left it in plain text; if not, this is why it can't be
    /// had.
    Coordinator(String),
}

impl Custody {
    /// Creates the custody of a host, with its keys.
    pub fn new(host: HostName, vault: Vault) -> Self {
        Custody { host, vault }
    }

    /// Returns an env as this host was handed it; none if it keeps the key alone, for other hosts.
    pub fn handed<'i>(&self, image: &'i Snapshot, app: &AppName, env: EnvRef) -> Option<&'i Handed> {
        let view = image.apps.get(app)?;
        view.handed.get(&(self.host.clone(), env)).map(|row| &row.value).filter(|row| row.sealed.is_whole())
    }

    /// Marks the envs to be read again: an env that was waited for may have been handed over now, and an env that is
    /// here may belong to a former app of the same name. Deletes keys that nothing is sealed to any more.
    pub fn take_up(&self, image: &Snapshot, envs: &mut Envs) {
        for ((app, env), state) in envs {
            let again = match (&*state, self.handed(image, app, *env)) {
                (EnvState::Later(_), Some(_)) => true,
                (EnvState::Ready(own), Some(handed)) => {
                    own.sealed != handed.sealed || own.links != handed.links
                }
                _ => false,
            };
            if again {
                *state = EnvState::Later(Tick(0));
            }
        }
        let handed = image.apps.values().flat_map(|view| view.handed.values());
        self.vault.retire(&handed.map(|handed| &handed.to).collect());
    }

    /// Returns where an env is to be had.
    pub fn source(&self, image: &Snapshot, app: &AppName, env: EnvRef) -> Source {
        let host = &self.host;
        let no_key = format!(
            "{host} has no key to this app's config vars ({env}) yet; a bazooka-rm adds it, or a host that has one"
        );
        let Some(handed) = self.handed(image, app, env) else { return Source::Coordinator(no_key) };
        match self.vault.open(app, env, handed).and_then(|_| self.vault.renewed(handed)) {
            Ok(handed) => Source::Handed(handed),
            // The env is sealed to a key that this host no longer has.
            Err(OpenError::NotForUs) => Source::Failed(no_key),
            Err(error) => Source::Failed(format!("can't open its config vars ({env}): {error}")),
        }
    }

    /// Seals vars that came in plain text.
    pub fn keep(&self, app: &AppName, env: EnvRef, vars: &Vars) -> Handed {
        self.vault.keep(app, env, vars)
    }

    /// Returns an instance's vars, and the links that belong to them.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn vars<'e>(
        &self,
        envs: &'e Envs,
        app: &AppName,
        env: EnvRef,
    ) -> Result<(Vars, Option<&'e BTreeSet<Link>>), OpenError> {
        match envs.get(&(app.clone(), env)) {
            Some(EnvState::Ready(handed)) => Ok((self.vault.open(app, env, handed)?, Some(&handed.links))),
            _ => Ok((Vars::default(), None)),
        }
    }

    /// Returns the envs that are here, for an rm that recovers the coordinator: each with its key, wrapped for the
    /// rms.
    pub fn found<'k>(&self, envs: &Envs, rms: impl Iterator<Item = &'k PublicKey> + Clone) -> Vec<FoundEnv> {
        let of = |((app, env), state): (&(AppName, EnvRef), &EnvState)| {
            let EnvState::Ready(handed) = state else { return None };
            let rms = self.vault.wrapped_for(handed, rms.clone()).unwrap_or_default();
            Some(FoundEnv { app: app.clone(), env: *env, handed: handed.clone(), rms })
        };
        envs.iter().filter_map(of).collect()
    }
}

/// Removes the envs that no instance has, and returns them.
pub fn forget_unused<'l>(
    envs: &mut Envs,
    instances: impl Iterator<Item = &'l Local>,
) -> Vec<(AppName, EnvRef)> {
    let used: BTreeSet<_> =
        instances.map(|local| (local.assignment.app.clone(), local.assignment.env)).collect();
    let unused: Vec<_> = envs.keys().filter(|key| !used.contains(*key)).cloned().collect();
    unused.iter().for_each(|key| drop(envs.remove(key)));
    unused
}

/// Reads an env as an earlier version left it in the coordinator. `no_key` is the cause to give if it isn't there.
pub async fn read_plain(visor: Visor, app: AppName, env: EnvRef, no_key: String) -> Event {
    let read: Result<Option<Versioned<Env>>, _> = visor.get(&Key::Env(app.clone(), env)).await;
    match read.map(|found| found.map(|row| row.value)) {
        Ok(Some(Env { sealed: None, vars: Some(vars), .. })) => Event::PlainEnvRead(app, env, vars),
        // A host that may not read the row isn't meant to.
        Ok(Some(_)) => Event::EnvMissing(app, env, no_key),
        Err(VisorError::Store(error)) if error.is_denied() => Event::EnvMissing(app, env, no_key),
        Ok(None) => Event::EnvMissing(app, env, format!("its env {env} is not there")),
        Err(error) => Event::EnvFailed(app, env, format!("can't read its env {env}: {error}")),
    }
}
