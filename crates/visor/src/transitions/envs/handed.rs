//! Opening, sealing and rewrapping the copies of envs that hosts hold, and wrapping a key for others.
//!
//! Owns the step between rows and `seal`, which knows only bytes and keys.

use std::collections::BTreeMap;

use crate::{
    names::{AppName, EnvRef, HostName},
    schema::{Extra, Handed, WrapRequest, Wraps},
    seal::{DataKey, EnvOf, Keyring, OpenError, PublicKey, Random, Vars, WrappedKey},
    snapshot::Versioned,
    visor::Change,
};

impl Keyring {
    /// Opens a host's copy of an env.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, app: &AppName, env: EnvRef, handed: &Handed) -> Result<Vars, OpenError> {
        let of = EnvOf { app, registration: handed.registration.as_deref(), env };
        self.key_of(handed)?.open(of, &handed.sealed)
    }

    /// Seals vars so that only these keys open them.
    pub fn keep(&self, app: &AppName, env: EnvRef, vars: &Vars, random: &mut dyn Random) -> Handed {
        let key = DataKey::fresh(random);
        let sealed = key.seal(EnvOf { app, registration: None, env }, vars, random);
        let to = self.current();
        let key = key.wrap(&to, random);
        Handed { sealed, to, key, links: Default::default(), registration: None, extra: Extra::new() }
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
        let key = self.key_of(handed)?;
        Ok(others.into_iter().map(|other| (other.clone(), key.wrap(other, random))).collect())
    }

    /// Wraps the key of a host's copy for the current key of this ring; the vars stay the same.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn rewrapped(&self, handed: &Handed, random: &mut dyn Random) -> Result<Handed, OpenError> {
        let key = self.key_of(handed)?;
        let to = self.current();
        Ok(Handed { key: key.wrap(&to, random), to, ..handed.clone() })
    }

    fn key_of(&self, handed: &Handed) -> Result<DataKey, OpenError> {
        self.key(&handed.to).ok_or(OpenError::NotForUs)?.unwrap(&handed.key)
    }
}

/// The answer to a request: the key of an env, wrapped for the host that the request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered(pub WrappedKey);

impl Answered {
    /// Returns the change that writes the answer into the request.
    pub fn change(
        self,
        (by, host): (&HostName, &HostName),
        app: &AppName,
        env: EnvRef,
        before: &Versioned<WrapRequest>,
    ) -> Change {
        let key = super::request_key((by, host), app, env);
        let after = WrapRequest { key: Some(self.0), ..before.value.clone() };
        Change::new().as_read(&key, Some(before)).put(&key, &after)
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
