//! The host's own keys, the only ones that open the envs that it was handed.
//!
//! Owns the key pairs while bazooka-pm runs. Vars are in the open only from here to the shim that starts an instance
//! with them; in the engine and on disk they are sealed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use bazooka_daemon::in_words;
use visor::{
    names::{AppName, EnvRef},
    schema::Handed,
    seal::{Keyring, OpenError, PublicKey, Random, Vars, WrappedKey, file::KeyFileError},
};

/// A host's keys. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Mutex<Inner>>);

/// The function that writes keys down.
type Store = Box<dyn Fn(&Keyring) -> Result<(), KeyFileError> + Send>;

struct Inner {
    ring: Keyring,
    random: Box<dyn Random + Send>,
    store: Store,
}

impl Vault {
    /// Creates a vault of these keys, with the function that writes them down.
    pub fn new(
        ring: Keyring,
        random: impl Random + Send + 'static,
        store: impl Fn(&Keyring) -> Result<(), KeyFileError> + Send + 'static,
    ) -> Vault {
        Vault(Arc::new(Mutex::new(Inner { ring, random: Box::new(random), store: Box::new(store) })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Returns the current public key, to which this host's envs are sealed.
    pub fn public(&self) -> PublicKey {
        self.inner().ring.current()
    }

    /// Opens an env.
    ///
    /// # Errors
    /// [`OpenError`], which reveals nothing of the content.
    pub fn open(&self, app: &AppName, env: EnvRef, handed: &Handed) -> Result<Vars, OpenError> {
        self.inner().ring.open(app, env, handed)
    }

    /// Seals vars in plain text, as an earlier version wrote them.
    pub fn keep(&self, app: &AppName, env: EnvRef, vars: &Vars) -> Handed {
        let inner = &mut *self.inner();
        inner.ring.keep(app, env, vars, inner.random.as_mut())
    }

    /// Returns the same env sealed to the current key.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn renewed(&self, handed: &Handed) -> Result<Handed, OpenError> {
        let inner = &mut *self.inner();
        if handed.to == inner.ring.current() {
            return Ok(handed.clone());
        }
        inner.ring.rewrapped(handed, inner.random.as_mut())
    }

    /// Returns the key of an env, wrapped for the rms, which may read every env.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn wrapped_for<'a>(
        &self,
        handed: &Handed,
        rms: impl IntoIterator<Item = &'a PublicKey>,
    ) -> Result<BTreeMap<PublicKey, WrappedKey>, OpenError> {
        let inner = &mut *self.inner();
        inner.ring.wrapped_for(handed, rms, inner.random.as_mut())
    }

    /// Deletes the keys that the current one has replaced, unless `used` has one of them.
    pub fn retire(&self, used: &BTreeSet<&PublicKey>) {
        let inner = &mut *self.inner();
        let retired = inner.ring.retired();
        if retired.is_empty() || retired.iter().any(|key| used.contains(key)) {
            return;
        }
        let after = inner.ring.without_retired();
        match (inner.store)(&after) {
            Ok(()) => {
                tracing::info!(
                    keys = retired.len(),
                    "nothing is sealed to earlier keys any more; they are deleted"
                );
                inner.ring = after;
            }
            Err(error) => tracing::warn!(error = in_words(&error), "can't let go of replaced keys"),
        }
    }
}
