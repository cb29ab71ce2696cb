//! Opening, sealing and rewrapping the copies of envs that hosts hold, and wrapping a key for several readers.
//!
//! Owns the step between rows and `seal`, which knows only bytes and keys.

use std::collections::BTreeMap;

use crate::{
    names::{AppName, EnvRef},
    schema::{Extra, Handed, Wraps},
    seal::{DataKey, Keyring, OpenError, PublicKey, Random, Vars, WrappedKey},
};

impl Keyring {
    /// Opens a host's copy of an env.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, app: &AppName, env: EnvRef, handed: &Handed) -> Result<Vars, OpenError> {
        let key = self.key(&handed.to).ok_or(OpenError::NotForUs)?.unwrap(&handed.key)?;
        key.open(app, env, &handed.sealed)
    }

    /// Seals vars so that only these keys open them.
    pub fn keep(&self, app: &AppName, env: EnvRef, vars: &Vars, random: &mut dyn Random) -> Handed {
        let key = DataKey::fresh(random);
        let sealed = key.seal(app, env, vars, random);
        let to = self.current();
        let key = key.wrap(&to, random);
        Handed { sealed, to, key, links: Default::default(), extra: Default::default() }
    }

    /// Wraps the key of a host's copy for others.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn wrapped_for<'a>(
        &self,
        handed: &Handed,
        others: impl IntoIterator<Item = &'a PublicKey>,
        random: &mut dyn Random,
    ) -> Result<BTreeMap<PublicKey, WrappedKey>, OpenError> {
        let key = self.key(&handed.to).ok_or(OpenError::NotForUs)?.unwrap(&handed.key)?;
        Ok(others.into_iter().map(|other| (other.clone(), key.wrap(other, random))).collect())
    }

    /// Wraps the key of a host's copy for the current key of this ring; the vars stay the same.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn rewrapped(&self, handed: &Handed, random: &mut dyn Random) -> Result<Handed, OpenError> {
        let key = self.key(&handed.to).ok_or(OpenError::NotForUs)?.unwrap(&handed.key)?;
        let to = self.current();
        Ok(Handed { key: key.wrap(&to, random), to, ..handed.clone() })
    }
}

/// Wraps a data key for several rms and hosts.
pub fn wraps<'a>(
    key: &DataKey,
    rms: impl IntoIterator<Item = &'a PublicKey>,
    hosts: impl IntoIterator<Item = &'a PublicKey>,
    random: &mut dyn Random,
) -> Wraps {
    let mut all = |to: &mut dyn Iterator<Item = &'a PublicKey>| {
        to.map(|public| (public.clone(), key.wrap(public, random))).collect()
    };
    let rms = all(&mut rms.into_iter());
    Wraps { rms, hosts: all(&mut hosts.into_iter()), extra: Extra::new() }
}
