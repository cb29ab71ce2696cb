//! The custody of envs: which ones this host has, under which key, and where it gets the others.
//!
//! Owns the way of an env from the coordinator to a start. Its vars are in the open only for the start itself; in
//! the engine and on disk they are sealed.
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

/// The envs that a host has, or is to have.
pub type Envs = BTreeMap<(AppName, EnvRef), EnvState>;

/// What opens the envs of a host.
pub struct Custody {
    host: HostName,
    vault: Vault,
}

/// Where an env comes from.
#[derive(Debug)]
pub enum Source {
    /// From what was handed to this host, now under its current key.
    Handed(Handed),
    /// It was handed over, and can't be had for this reason.
    Failed(String),
    /// It wasn't handed over. An earlier version may have left it in the open; if not, this is why it can't be had.
    Coordinator(String),
}

impl Custody {
    /// Of a host, with its keys.
    pub fn new(host: HostName, vault: Vault) -> Self {
        Custody { host, vault }
    }

    /// An env as this host was handed it.
    pub fn handed<'i>(&self, image: &'i Snapshot, app: &AppName, env: EnvRef) -> Option<&'i Handed> {
        let view = image.apps.get(app)?;
        view.handed.get(&(self.host.clone(), env)).map(|row| &row.value)
    }

    /// Marks what is to be read again: what was waited for may have been handed over now, and what is here may be
    /// another app's of the same name. Lets go of keys that nothing is sealed to any more.
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

    /// Where an env is to be had.
    pub fn source(&self, image: &Snapshot, app: &AppName, env: EnvRef) -> Source {
        let host = &self.host;
        let no_key = format!("{host} has no key to this app's config vars ({env}) yet; a bazooka-rm adds it");
        let Some(handed) = self.handed(image, app, env) else { return Source::Coordinator(no_key) };
        match self.vault.open(app, env, handed).and_then(|_| self.vault.renewed(handed)) {
            Ok(handed) => Source::Handed(handed),
            // For a key that this host had before.
            Err(OpenError::NotForUs) => Source::Failed(no_key),
            Err(error) => Source::Failed(format!("can't open its config vars ({env}): {error}")),
        }
    }

    /// Seals vars that came in plain text.
    pub fn keep(&self, app: &AppName, env: EnvRef, vars: &Vars) -> Handed {
        self.vault.keep(app, env, vars)
    }

    /// What an instance is started with: the vars, and the links that go with them.
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

    /// The envs that are here, for whoever recovers the coordinator: each with its key, wrapped for the rms.
    pub fn found<'k>(&self, envs: &Envs, rms: impl Iterator<Item = &'k PublicKey> + Clone) -> Vec<FoundEnv> {
        let of = |((app, env), state): (&(AppName, EnvRef), &EnvState)| {
            let EnvState::Ready(handed) = state else { return None };
            let rms = self.vault.wrapped_for(handed, rms.clone()).unwrap_or_default();
            Some(FoundEnv { app: app.clone(), env: *env, handed: handed.clone(), rms })
        };
        envs.iter().filter_map(of).collect()
    }
}

/// Takes the envs out that no instance has, and returns them.
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

/// Reads an env as an earlier version left it in the coordinator; `no_key` is why it can't be had otherwise.
pub async fn read_plain(visor: Visor, app: AppName, env: EnvRef, no_key: String) -> Event {
    let read: Result<Option<Versioned<Env>>, _> = visor.get(&Key::Env(app.clone(), env)).await;
    match read.map(|found| found.map(|row| row.value)) {
        Ok(Some(Env { sealed: None, vars: Some(vars), .. })) => Event::PlainEnvRead(app, env, vars),
        // One that may not read that row isn't meant to, either.
        Ok(Some(_)) => Event::EnvMissing(app, env, no_key),
        Err(VisorError::Store(error)) if error.is_denied() => Event::EnvMissing(app, env, no_key),
        Ok(None) => Event::EnvMissing(app, env, format!("its env {env} is not there")),
        Err(error) => Event::EnvFailed(app, env, format!("can't read its env {env}: {error}")),
    }
}
