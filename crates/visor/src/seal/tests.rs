//! Tests of sealing, wrapping and key rings.

use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
use rand::{RngCore as _, SeedableRng, rngs::StdRng};

use super::*;
use crate::transitions::envs::wraps;

struct Seeded(StdRng);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

fn seeded(seed: u64) -> Seeded {
    Seeded(StdRng::seed_from_u64(seed))
}

fn app(name: &str) -> AppName {
    name.parse().expect("valid")
}

/// An env of the app that was registered as `t`.
fn of(app: &AppName, env: u32) -> EnvOf<'_> {
    EnvOf { app, registration: Some("t"), env: EnvRef(env) }
}

proptest! {
    #[test]
    fn what_is_sealed_opens_again_and_nothing_of_it_shows(
        vars in prop::collection::btree_map("[A-Z_]{4,12}", "\\PC{4,40}", 0..8),
        seed: u64,
    ) {
        let mut random = seeded(seed);
        let key = DataKey::fresh(&mut random);
        let sealed = key.seal(of(&app("a"), 3), &vars.clone().into(), &mut random);
        let opened = key.open(of(&app("a"), 3), &sealed).expect("it is its own");
        prop_assert_eq!(opened.as_map(), &vars);
        let shown = serde_json::to_string(&sealed).expect("JSON");
        let bytes = BASE64.decode(&sealed.payload).expect("base64");
        for (name, value) in &vars {
            for plain in [name, value] {
                prop_assert!(!bytes.windows(plain.len()).any(|part| part == plain.as_bytes()));
            }
            prop_assert!(value.len() < 12 || !shown.contains(value.as_str()));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen(seed: u64, at: prop::sample::Index, bit in 0..8_u32) {
        let mut random = seeded(seed);
        let (key, secret) = (DataKey::fresh(&mut random), SecretKey::fresh(&mut random));
        let vars = Vars::from(BTreeMap::from([("KEY".to_owned(), "value".to_owned())]));
        let mut sealed = key.seal(of(&app("a"), 1), &vars, &mut random);
        let flip = |text: &mut String| {
            let mut bytes = BASE64.decode(&*text).expect("base64");
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            *text = BASE64.encode(bytes);
        };
        flip(&mut sealed.payload);
        prop_assert_eq!(key.open(of(&app("a"), 1), &sealed).err(), Some(OpenError::Broken));
        let mut wrapped = key.wrap(&secret.public(), &mut random);
        flip(&mut wrapped.0);
        prop_assert!(secret.unwrap(&wrapped).is_err());
    }

    #[test]
    fn only_its_own_app_ref_and_key_open_it(seed: u64) {
        let mut random = seeded(seed);
        let (key, other) = (DataKey::fresh(&mut random), DataKey::fresh(&mut random));
        let vars = Vars::from(BTreeMap::from([("KEY".to_owned(), "value".to_owned())]));
        let sealed = key.seal(of(&app("a"), 11), &vars, &mut random);
        prop_assert!(key.open(of(&app("a"), 11), &sealed).is_ok());
        for (name, env) in [("a", 1), ("a", 12), ("ae1", 1), ("b", 11)] {
            prop_assert_eq!(key.open(of(&app(name), env), &sealed).err(), Some(OpenError::Broken));
        }
        let own = app("a");
        for registration in [None, Some(""), Some("t2")] {
            let of = EnvOf { registration, ..of(&own, 11) };
            prop_assert_eq!(key.open(of, &sealed).err(), Some(OpenError::Broken));
        }
        prop_assert_eq!(other.open(of(&app("a"), 11), &sealed).err(), Some(OpenError::Broken));
    }

    #[test]
    fn a_wrap_opens_with_its_own_key_alone(seed: u64) {
        let mut random = seeded(seed);
        let (ours, theirs) = (SecretKey::fresh(&mut random), SecretKey::fresh(&mut random));
        let key = DataKey::fresh(&mut random);
        let all = wraps(&key, [], [&ours.public()], &mut random);
        let opened = Keyring::of(ours.clone()).unwrap(&all.hosts).expect("it is for us");
        prop_assert_eq!(&opened.0, &key.0);
        let others = Keyring::of(theirs.clone());
        prop_assert_eq!(others.unwrap(&all.hosts).err(), Some(OpenError::NotForUs));
        // A wrap filed under the wrong public key does not open either.
        let lies = BTreeMap::from([(theirs.public(), all.hosts[&ours.public()].clone())]);
        prop_assert_eq!(others.unwrap(&lies).err(), Some(OpenError::NotForUs));
    }
}

/// The vectors are XChaCha's of the draft, A.3.1; libsodium's own test (`box_seal`) would need its random key.
#[test]
fn the_cipher_is_the_drafts() {
    let bytes = |hex: &str| -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(digit).collect()
    };
    let key = bytes("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
    let nonce = bytes("404142434445464748494a4b4c4d4e4f5051525354555657");
    let aad = bytes("50515253c0c1c2c3c4c5c6c7");
    let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    let cipher = XChaCha20Poly1305::new_from_slice(&key).expect("32 bytes");
    let sealed = cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: text, aad: &aad });
    let sealed = sealed.expect("it is short");
    assert!(sealed.starts_with(&bytes("bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb")));
    assert!(sealed.ends_with(&bytes("c0875924c1c7987947deafd8780acf49")));
}

#[test]
fn a_rotated_ring_opens_what_was_sealed_before_until_that_is_rewrapped() {
    let mut random = seeded(1);
    let before = Keyring::of(SecretKey::fresh(&mut random));
    let vars = Vars::from(BTreeMap::from([("KEY".to_owned(), "value".to_owned())]));
    let handed = before.keep(&app("a"), EnvRef(1), &vars, &mut random);
    let after = before.rotated(SecretKey::fresh(&mut random));
    assert_eq!(after.open(&app("a"), EnvRef(1), &handed), Ok(vars.clone()));
    let again = after.rewrapped(&handed, &mut random).expect("it has the old key");
    let alone = after.without_retired();
    assert_eq!(alone.open(&app("a"), EnvRef(1), &again), Ok(vars));
    assert_eq!(alone.open(&app("a"), EnvRef(1), &handed), Err(OpenError::NotForUs));
    assert_eq!(before.open(&app("a"), EnvRef(1), &again), Err(OpenError::NotForUs));
}

#[test]
fn nothing_secret_is_shown_by_chance() {
    let vars = Vars::from(BTreeMap::from([("KEY".to_owned(), "value".to_owned())]));
    let secret = SecretKey::fresh(&mut seeded(1));
    let shown = format!("{vars:?} {secret:?}");
    assert!(!shown.contains("value") && !shown.contains("KEY") && !shown.contains(&*secret.to_text()));
}
