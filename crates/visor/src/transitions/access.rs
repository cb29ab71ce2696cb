//! Identities, operator rights, SSH keys and grants: bazooka-rm writes them for callers with the right to ask.

use jiff::Timestamp;

use super::apps::registered;
use crate::{
    identity::Identity,
    keys::Key,
    names::{AppName, UserName},
    schema::{Admission, Extra, Granted, SshKey},
    store::Keys,
    visor::{Change, Decided, Decision, Refusal, Result, Visor},
};

/// The most SSH keys of one person; sshd reads all of them.
const MAX_KEYS: usize = 50;

impl Visor {
    /// Admits an identity, as an operator or not. An operator remains one.
    ///
    /// # Errors
    /// The store's.
    pub async fn admit(&self, who: &Identity, operator: bool, by: &str, now: Timestamp) -> Result<()> {
        let key = Key::Admission(who.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| {
            let before = snapshot.identities.get(who);
            if before.is_some_and(|before| before.operator || !operator) {
                return Ok(Decision::Already(()));
            }
            let row = Admission { operator, by: by.into(), at: now, extra: Extra::new() };
            Ok(Decision::Change(Change::new().as_read(&key, before).put(&key, &row), ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Expels an identity.
    ///
    /// Its grants of apps stay, and hold again if it is admitted again.
    ///
    /// # Errors
    /// [`Refusal::NotAdmitted`].
    pub async fn expel(&self, who: &Identity) -> Result<()> {
        let key = Key::Admission(who.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| match snapshot.identities.get(who) {
            None => Err(Refusal::NotAdmitted(who.clone()).into()),
            before => Ok(Decision::Change(Change::new().as_read(&key, before).delete(&key), ())),
        })
        .await
        .map(Decided::into_value)
    }

    /// Takes the operator right from an identity.
    ///
    /// # Errors
    /// [`Refusal::NotAdmitted`].
    pub async fn demote(&self, who: &Identity, by: &str, now: Timestamp) -> Result<()> {
        let key = Key::Admission(who.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| match snapshot.identities.get(who) {
            None => Err(Refusal::NotAdmitted(who.clone()).into()),
            Some(before) if !before.operator => Ok(Decision::Already(())),
            before => {
                let row = Admission { operator: false, by: by.into(), at: now, extra: Extra::new() };
                Ok(Decision::Change(Change::new().as_read(&key, before).put(&key, &row), ()))
            }
        })
        .await
        .map(Decided::into_value)
    }

    /// Adds an SSH key of a user, or replaces its comment.
    ///
    /// # Errors
    /// [`Refusal::TooManyKeys`].
    pub async fn add_key(&self, user: &UserName, fingerprint: &str, key: &SshKey) -> Result<()> {
        let at = Key::SshKeys(user.clone());
        self.decide(vec![Keys::One(at.to_string())], |snapshot| {
            let before = snapshot.ssh_keys.get(user);
            let mut row = before.map(|before| before.value.clone()).unwrap_or_default();
            if row.keys.get(fingerprint).is_some_and(|known| known.comment == key.comment) {
                return Ok(Decision::Already(()));
            }
            row.keys.insert(fingerprint.to_owned(), key.clone());
            if row.keys.len() > MAX_KEYS {
                return Err(Refusal::TooManyKeys(user.clone()).into());
            }
            Ok(Decision::Change(Change::new().as_read(&at, before).put(&at, &row), ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Removes an SSH key of a user.
    ///
    /// # Errors
    /// [`Refusal::NoSuchKey`].
    pub async fn remove_key(&self, user: &UserName, fingerprint: &str) -> Result<()> {
        let at = Key::SshKeys(user.clone());
        self.decide(vec![Keys::One(at.to_string())], |snapshot| {
            let before = snapshot.ssh_keys.get(user);
            let mut row = before.map(|before| before.value.clone()).unwrap_or_default();
            if row.keys.remove(fingerprint).is_none() {
                return Err(Refusal::NoSuchKey(user.clone(), fingerprint.chars().take(100).collect()).into());
            }
            let change = Change::new().as_read(&at, before);
            let change = if row.keys.is_empty() { change.delete(&at) } else { change.put(&at, &row) };
            Ok(Decision::Change(change, ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Grants a user the right to change an app.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`]; [`Refusal::NotAdmitted`].
    pub async fn grant_app(&self, app: &AppName, user: &UserName, by: &str, now: Timestamp) -> Result<()> {
        let (own, key) = (Key::App(app.clone()), Key::Access(app.clone()));
        let who = Identity::User(user.clone());
        let admission = Key::Admission(who.clone());
        let scopes = [&own, &key, &admission].map(|key| Keys::One(key.to_string()));
        self.decide(scopes.into(), |snapshot| {
            registered(snapshot, app)?;
            if !snapshot.identities.contains_key(&who) {
                return Err(Refusal::NotAdmitted(who.clone()).into());
            }
            let before = snapshot.apps[app].access.as_ref();
            let mut row = before.map(|before| before.value.clone()).unwrap_or_default();
            if row.users.contains_key(user) {
                return Ok(Decision::Already(()));
            }
            row.users.insert(user.clone(), Granted { by: by.into(), at: now, extra: Extra::new() });
            let change = Change::new().exists(&own).exists(&admission).as_read(&key, before).put(&key, &row);
            Ok(Decision::Change(change, ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Revokes a user's right to change an app.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`]; [`Refusal::NotTheirs`].
    pub async fn revoke_app(&self, app: &AppName, user: &UserName) -> Result<()> {
        let (own, key) = (Key::App(app.clone()), Key::Access(app.clone()));
        let scopes = [&own, &key].map(|key| Keys::One(key.to_string()));
        self.decide(scopes.into(), |snapshot| {
            registered(snapshot, app)?;
            let before = snapshot.apps[app].access.as_ref();
            let mut row = before.map(|before| before.value.clone()).unwrap_or_default();
            if row.users.remove(user).is_none() {
                return Err(Refusal::NotTheirs(app.clone(), user.clone()).into());
            }
            Ok(Decision::Change(Change::new().as_read(&key, before).put(&key, &row), ()))
        })
        .await
        .map(Decided::into_value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys,
        store::model::ModelStore,
        visor::{Refusal, VisorError},
    };

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn app() -> AppName {
        "shop".parse().expect("valid")
    }

    fn user(name: &str) -> UserName {
        name.parse().expect("valid")
    }

    fn who(name: &str) -> Identity {
        Identity::User(user(name))
    }

    async fn visor() -> Visor {
        let visor = Visor::new(ModelStore::new().shared());
        visor.set_up().await.expect("the model answers");
        visor.register_app_of(&app(), "ada", Some(&user("ada")), "t", now()).await.expect("it is new");
        visor
    }

    fn refused<T: std::fmt::Debug>(done: Result<T>) -> Refusal {
        match done {
            Err(VisorError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_app_is_its_registrars_and_whom_they_grant_it() {
        let visor = visor().await;
        let people = async || {
            let snapshot = visor.read(vec![keys::access()]).await.expect("the model answers");
            let access = snapshot.apps[&app()].access.clone().expect("it has people");
            access.value.users.into_keys().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(people().await, ["ada"]);
        let eve = user("eve");
        assert_eq!(
            refused(visor.grant_app(&app(), &eve, "ada", now()).await),
            Refusal::NotAdmitted(who("eve")),
            "who takes no part is given nothing"
        );
        visor.admit(&who("eve"), false, "ops", now()).await.expect("the model answers");
        for _ in 0..2 {
            visor.grant_app(&app(), &eve, "ada", now()).await.expect("she takes part");
        }
        assert_eq!(people().await, ["ada", "eve"]);
        visor.revoke_app(&app(), &eve).await.expect("it is one of hers");
        assert_eq!(people().await, ["ada"]);
        assert_eq!(refused(visor.revoke_app(&app(), &eve).await), Refusal::NotTheirs(app(), eve));
        let other: AppName = "other".parse().expect("valid");
        let none = refused(visor.grant_app(&other, &user("ada"), "ops", now()).await);
        assert_eq!(none, Refusal::NoSuchApp(other));
    }

    #[tokio::test]
    async fn an_operator_stays_one_until_it_is_taken_back() {
        let visor = visor().await;
        let operator = async || {
            let snapshot = visor.read(vec![keys::identities()]).await.expect("the model answers");
            snapshot.identities.get(&who("ops")).map(|row| row.operator)
        };
        visor.admit(&who("ops"), true, "rm:r1", now()).await.expect("the model answers");
        visor.admit(&who("ops"), false, "rm:r1", now()).await.expect("the model answers");
        assert_eq!(operator().await, Some(true), "to let in who is in takes nothing away");
        visor.demote(&who("ops"), "rm:r1", now()).await.expect("they are in");
        assert_eq!(operator().await, Some(false));
        visor.expel(&who("ops")).await.expect("they are in");
        assert_eq!(operator().await, None);
        assert_eq!(refused(visor.expel(&who("ops")).await), Refusal::NotAdmitted(who("ops")));
        assert_eq!(refused(visor.demote(&who("ops"), "x", now()).await), Refusal::NotAdmitted(who("ops")));
    }

    #[tokio::test]
    async fn keys_are_bounded_and_known_by_their_fingerprints() {
        let visor = visor().await;
        let key = SshKey { key: "ssh-ed25519 A".into(), comment: "c".into(), at: now(), extra: Extra::new() };
        for n in 0..MAX_KEYS {
            visor.add_key(&user("ada"), &format!("SHA256:{n}"), &key).await.expect("there is room");
        }
        let one_more = visor.add_key(&user("ada"), "SHA256:x", &key).await;
        assert_eq!(refused(one_more), Refusal::TooManyKeys(user("ada")));
        visor.add_key(&user("ada"), "SHA256:0", &key).await.expect("it is there already");
        visor.remove_key(&user("ada"), "SHA256:0").await.expect("it is there");
        let again = visor.remove_key(&user("ada"), "SHA256:0").await;
        assert_eq!(refused(again), Refusal::NoSuchKey(user("ada"), "SHA256:0".into()));
    }
}
