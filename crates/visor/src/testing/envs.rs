//! Sealed config vars for tests that do not open them again.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    keys, links,
    names::AppName,
    schema::Rm,
    seal::{Os, SecretKey},
    snapshot::Versioned,
    transitions::envs::{NewEnv, base_env, recipients},
    visor::Visor,
};

/// Seals the next env of an app with its present links, for all registered hosts and rms.
///
/// Without an rm it is sealed to a key that nobody has.
///
/// # Panics
/// If the store fails.
pub async fn new_env(visor: &Visor, app: &AppName, vars: &[(&str, &str)]) -> NewEnv {
    let mut scopes = keys::app(app);
    scopes.extend(recipients());
    let mut snapshot = visor.read(scopes).await.expect("the store answers");
    let lonely = snapshot.rms.values().all(|rm| rm.seal_key.is_none());
    if lonely {
        let row = Rm { seal_key: Some(SecretKey::fresh(&mut Os).public()), ..Rm::at("http://127.0.0.1:1") };
        let row = Versioned { value: row, create_revision: 0, mod_revision: 0, lease: None };
        snapshot.rms.insert("nobody".parse().expect("valid"), row);
    }
    let view = snapshot.apps.get(app).cloned().unwrap_or_default();
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let vars = vars.collect::<BTreeMap<_, _>>().into();
    let links = links::of(&view, base_env(&view)).cloned().unwrap_or_default();
    NewEnv::seal(app, &view, (&vars, &links), &snapshot, ("me", Timestamp::UNIX_EPOCH), &mut Os)
        .expect("an rm is there")
}
