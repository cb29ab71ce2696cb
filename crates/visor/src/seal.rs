//! The formats in which config vars are sealed before they enter the coordinator.
//!
//! Owns the formats, and no key of the coordinator. It is pure: randomness is passed in ([`Random`]), and only [`file`]
//! touches a disk.
//!
//! ```text
//! vars ── one JSON map, so that not even names are seen ──▶ XChaCha20-Poly1305 ──▶ apps/A/envs/E
//!            under a data key (32 random bytes) of this env alone, and a random nonce of 24 bytes;
//!            app, registration and env ref are its associated data: moved to another row it does not open,
//!            nor once another app is registered by the same name
//! data key ── a sealed box for each who may open ──▶ private/wraps/A/E, and a host's own in sealed/H/A/E
//! ```
//!
//! [`Sealed::payload`] is base64 of the nonce, then the ciphertext with its tag: draft-irtf-cfrg-xchacha, as
//! RustCrypto's `chacha20poly1305` implements it. A [`WrappedKey`] is base64 of 80 bytes, the sealed box of libsodium
//! (`crypto_box_seal`: X25519, XSalsa20-Poly1305, the nonce by BLAKE2b), as RustCrypto's `crypto_box` implements it.
//! The associated data is `bazooka env 2`, a zero byte, and for each of app, registration and ref its length (8 bytes,
//! big-endian) and its bytes. Form 1, which releases before schema version 4 wrote, is `bazooka env 1` without the
//! registration.
//!
//! A nonce is random and its key seals one message, so neither is ever used twice.

pub mod file;

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use crypto_box::aead::rand_core::{self, CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::names::{AppName, EnvRef};

/// The only cipher so far, as [`Sealed::cipher`] names it.
pub const CIPHER: &str = "xchacha20poly1305";

/// The length of a nonce in bytes.
const NONCE: usize = 24;

/// The length of a key of either kind, in bytes.
const KEY: usize = 32;

/// The most bytes that vars may have as JSON.
///
/// Sealed, as base64 and with the row around them, that is 1.4 MB; etcd takes requests of 1.5 MiB.
pub const MOST_BYTES: usize = 1024 * 1024;

/// A source of randomness: the kernel, or a simulation's seed.
pub trait Random {
    /// Fills the buffer with unpredictable bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// The kernel's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;

impl Random for Os {
    fn fill(&mut self, bytes: &mut [u8]) {
        use rand::TryRngCore;
        rand::rngs::OsRng.try_fill_bytes(bytes).expect("Linux gives random bytes once it has started");
    }
}

/// The same source with the trait that the cryptographic libraries need.
struct Source<'a>(&'a mut dyn Random);

impl RngCore for Source<'_> {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl CryptoRng for Source<'_> {}

/// Config vars in plain text: `{:?}` never shows them, and dropping wipes them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vars(BTreeMap<String, String>);

impl Vars {
    /// Returns the values by name.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Returns the values by name, for changes.
    pub fn as_map_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.0
    }

    /// Returns their size as JSON, in bytes.
    pub fn size(&self) -> usize {
        self.json().len()
    }

    fn json(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(&self.0).expect("a map of strings is always valid JSON"))
    }
}

impl From<BTreeMap<String, String>> for Vars {
    fn from(vars: BTreeMap<String, String>) -> Vars {
        Vars(vars)
    }
}

impl fmt::Debug for Vars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vars({})", self.0.len())
    }
}

impl Drop for Vars {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

/// The env that a ciphertext belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvOf<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The token of the app's registration; none for form 1, whose ciphertext any later app of the name shares.
    pub registration: Option<&'a str>,
    /// The env's ref.
    pub env: EnvRef,
}

/// Sealed vars, as they are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The cipher: [`CIPHER`].
    pub cipher: String,
    /// The nonce and the ciphertext, in base64.
    pub payload: String,
    /// The form of the associated data: 1 has app and ref, 2 the registration as well.
    #[serde(default = "first_form", skip_serializing_if = "is_first_form")]
    pub form: u32,
}

impl Sealed {
    /// Reports whether the ciphertext belongs to one registration of its app.
    pub fn is_of_registration(&self) -> bool {
        self.form >= OF_REGISTRATION
    }
}

/// The characters of a nonce in base64, with which each payload begins.
const NONCE_TEXT: usize = NONCE * 4 / 3;

impl Sealed {
    /// Returns the beginning alone, which tells this ciphertext from any other and opens for nobody.
    pub fn head(&self) -> Sealed {
        let head = self.payload.get(..NONCE_TEXT).unwrap_or(&self.payload);
        Sealed { payload: head.to_owned(), ..self.clone() }
    }

    /// Reports whether the ciphertext is there, and not the beginning alone.
    pub fn is_whole(&self) -> bool {
        self.payload.len() > NONCE_TEXT
    }
}

/// The form whose associated data has the registration of the app.
const OF_REGISTRATION: u32 = 2;

fn first_form() -> u32 {
    1
}

fn is_first_form(form: &u32) -> bool {
    *form <= 1
}

/// The reason why sealed vars or keys cannot be opened. No variant tells anything of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum OpenError {
    #[error("it is sealed for other keys")]
    NotForUs,
    #[error("it is sealed in the form of a later version")]
    UnknownCipher,
    #[error("it was altered, or belongs to another row or another app")]
    Broken,
    #[error("it is not bound to this app: an earlier app of the same name may have had it")]
    Earlier,
}

/// The key that seals one env.
pub struct DataKey(Zeroizing<[u8; KEY]>);

impl DataKey {
    /// Makes a new key.
    pub fn fresh(random: &mut dyn Random) -> DataKey {
        let mut key = Zeroizing::new([0; KEY]);
        random.fill(&mut *key);
        DataKey(key)
    }

    /// Seals vars as an env. A key seals only once.
    pub fn seal(&self, of: EnvOf<'_>, vars: &Vars, random: &mut dyn Random) -> Sealed {
        let mut nonce = [0; NONCE];
        random.fill(&mut nonce);
        let (plain, aad) = (vars.json(), associated(of));
        let sealed = self
            .cipher()
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: &plain, aad: &aad })
            .expect("vars are far shorter than the cipher's 256 GiB");
        let payload = BASE64.encode([&nonce[..], &sealed].concat());
        let form = if of.registration.is_some() { OF_REGISTRATION } else { first_form() };
        Sealed { cipher: CIPHER.to_owned(), payload, form }
    }

    /// Opens an env. The registration counts only for a form that has one.
    ///
    /// # Errors
    /// [`OpenError`], if this is another key, or the row is another env's.
    pub fn open(&self, of: EnvOf<'_>, sealed: &Sealed) -> Result<Vars, OpenError> {
        if sealed.cipher != CIPHER || sealed.form > OF_REGISTRATION {
            return Err(OpenError::UnknownCipher);
        }
        let of = match (sealed.is_of_registration(), of.registration) {
            (false, _) => EnvOf { registration: None, ..of },
            (true, Some(_)) => of,
            (true, None) => return Err(OpenError::Broken),
        };
        let bytes = BASE64.decode(&sealed.payload).map_err(|_| OpenError::Broken)?;
        let (nonce, text) = bytes.split_at_checked(NONCE).ok_or(OpenError::Broken)?;
        let aad = associated(of);
        let plain = self.cipher().decrypt(XNonce::from_slice(nonce), Payload { msg: text, aad: &aad });
        let plain = Zeroizing::new(plain.map_err(|_| OpenError::Broken)?);
        serde_json::from_slice(&plain).map(Vars).map_err(|_| OpenError::Broken)
    }

    /// Wraps the key for the owner of a public key.
    pub fn wrap(&self, to: &PublicKey, random: &mut dyn Random) -> WrappedKey {
        let sealed = to.half().seal(&mut Source(random), &*self.0);
        WrappedKey(BASE64.encode(sealed.expect("a key is as short as can be")))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

/// Returns the data to which an env's ciphertext is bound. A length precedes each name, so that no two pairs give the
/// same bytes.
fn associated(of: EnvOf<'_>) -> Vec<u8> {
    let (app, env) = (of.app.to_string(), of.env.to_string());
    let (label, parts): (&[u8], Vec<&str>) = match of.registration {
        Some(registration) => (b"bazooka env 2\0", vec![&app, registration, &env]),
        None => (b"bazooka env 1\0", vec![&app, &env]),
    };
    let mut bytes = label.to_vec();
    for part in parts {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes
}

/// A data key as a sealed box for one public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WrappedKey(String);

/// The public half of a key pair: 32 bytes in base64.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(String);

/// The error for text that is not a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 32 bytes in base64, 43 characters")]
pub struct InvalidKey;

impl PublicKey {
    fn half(&self) -> crypto_box::PublicKey {
        let bytes = key_bytes(&self.0).expect("it was checked when it was made");
        crypto_box::PublicKey::from_bytes(*bytes)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(s: &str) -> Result<Self, InvalidKey> {
        key_bytes(s).map(|_| PublicKey(s.to_owned()))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = InvalidKey;

    fn try_from(s: String) -> Result<Self, InvalidKey> {
        s.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn key_bytes(s: &str) -> Result<Zeroizing<[u8; KEY]>, InvalidKey> {
    let bytes = Zeroizing::new(BASE64.decode(s).map_err(|_| InvalidKey)?);
    bytes.as_slice().try_into().map(Zeroizing::new).map_err(|_| InvalidKey)
}

/// The secret half of a key pair. Dropping wipes it.
#[derive(Clone)]
pub struct SecretKey(crypto_box::SecretKey);

impl SecretKey {
    /// Makes a new key.
    pub fn fresh(random: &mut dyn Random) -> SecretKey {
        SecretKey(crypto_box::SecretKey::generate(&mut Source(random)))
    }

    /// Returns its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(BASE64.encode(self.0.public_key().as_bytes()))
    }

    /// Opens the wrap of a data key.
    ///
    /// # Errors
    /// [`OpenError::NotForUs`].
    pub fn unwrap(&self, wrapped: &WrappedKey) -> Result<DataKey, OpenError> {
        let bytes = BASE64.decode(&wrapped.0).map_err(|_| OpenError::Broken)?;
        let plain = Zeroizing::new(self.0.unseal(&bytes).map_err(|_| OpenError::NotForUs)?);
        let key: [u8; KEY] = plain.as_slice().try_into().map_err(|_| OpenError::Broken)?;
        Ok(DataKey(Zeroizing::new(key)))
    }

    fn to_text(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.0.to_bytes());
        Zeroizing::new(BASE64.encode(bytes.as_slice()))
    }

    fn from_text(text: &str) -> Result<SecretKey, InvalidKey> {
        key_bytes(text).map(|bytes| SecretKey(crypto_box::SecretKey::from_bytes(*bytes)))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// The key pairs of a daemon: the current one, and the replaced ones that it still needs.
#[derive(Clone, Debug)]
pub struct Keyring {
    /// The keys, newest first; never empty.
    keys: Vec<SecretKey>,
}

impl Keyring {
    /// Returns a ring with one key.
    pub fn of(key: SecretKey) -> Keyring {
        Keyring { keys: vec![key] }
    }

    /// Returns the public half of the current key, to which everything new is sealed.
    pub fn current(&self) -> PublicKey {
        self.keys[0].public()
    }

    /// Returns the public halves of the replaced keys.
    pub fn retired(&self) -> Vec<PublicKey> {
        self.keys[1..].iter().map(SecretKey::public).collect()
    }

    /// Returns the ring with another current key.
    pub fn rotated(&self, key: SecretKey) -> Keyring {
        let mut keys = vec![key];
        keys.extend(self.keys.iter().cloned());
        Keyring { keys }
    }

    /// Returns a ring with only the current key.
    pub fn without_retired(&self) -> Keyring {
        Keyring::of(self.keys[0].clone())
    }

    /// Returns the secret half of a public key, if this ring has it.
    pub(crate) fn key(&self, public: &PublicKey) -> Option<&SecretKey> {
        self.keys.iter().find(|key| key.public() == *public)
    }

    /// Opens the first wrap of a data key that is for a key of this ring.
    ///
    /// # Errors
    /// [`OpenError::NotForUs`] if none is.
    pub fn unwrap(&self, wraps: &BTreeMap<PublicKey, WrappedKey>) -> Result<DataKey, OpenError> {
        let ours = self.keys.iter().find_map(|key| Some((key, wraps.get(&key.public())?)));
        ours.map_or(Err(OpenError::NotForUs), |(key, wrapped)| key.unwrap(wrapped))
    }
}

#[cfg(test)]
mod tests;
