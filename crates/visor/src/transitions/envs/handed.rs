//! What the holder of a [`Keyring`] does with envs that were handed to it, and the row that wraps a key for several.
//!
//! Owns the step between rows and `seal`, which knows bytes and keys only.

use std::collections::BTreeMap;

use crate::{
    names::{AppName, EnvRef},
    schema::{Extra, Handed, Wraps},
    seal::{DataKey, Keyring, OpenError, PublicKey, Random, Vars, WrappedKey},
};

impl Keyring {
    /// Opens what was handed to a host.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, app: &AppName, env: EnvRef, handed: &Handed) -> Result<Vars, OpenError> {
        let key = self.key(&handed.to).ok_or(OpenError::NotForUs)?.unwrap(&handed.key)?;
        key.open(app, env, &handed.sealed)
    }

    /// Seals vars so that these keys alone open them.
    pub fn keep(&self, app: &AppName, env: EnvRef, vars: &Vars, random: &mut dyn Random) -> Handed {
        let key = DataKey::fresh(random);
        let sealed = key.seal(app, env, vars, random);
        let to = self.current();
        let key = key.wrap(&to, random);
        Handed { sealed, to, key, links: Default::default(), extra: Default::default() }
    }

    /// The key of what was handed to a host, wrapped for others.
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

    /// The same vars under the current key.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn rewrapped(&self, handed: &Handed, random: &mut dyn Random) -> Result<Handed, OpenError> {
        let key = self.key(&handed.to).ok_or(OpenError::NotForUs)?.unwrap(&handed.key)?;
        let to = self.current();
        Ok(Handed { key: key.wrap(&to, random), to, ..handed.clone() })
    }
}

/// Wraps a data key for several.
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
