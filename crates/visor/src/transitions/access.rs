//! Who is in, and whose an app is: what bazooka-rm writes on the word of those who may say so.

use jiff::Timestamp;

use super::apps::registered;
use crate::{
    identity::Identity,
    keys::{self, Key},
    names::{AppName, UserName},
    schema::{Admission, Extra, Granted, SshKey},
    store::Keys,
    visor::{Change, Decision, Refusal, Result, Visor},
};

/// How many entries of the audit go in one transaction.
const AUDIT_PIECE: usize = 100;

/// The most SSH keys that one person has: sshd reads them all.
const MAX_KEYS: usize = 50;

impl Visor {
    /// Lets somebody in, or makes an operator of them. Who is an operator stays one.
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
    }

    /// Puts somebody out. What they were granted of apps stays, and holds again if they are let in again.
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
    }

    /// Takes from somebody what an operator may.
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
    }

    /// Takes the oldest entries of the audit away, so that so many stay. Returns how many went.
    ///
    /// # Errors
    /// The store's.
    pub async fn trim_audit(&self, keep: usize) -> Result<usize> {
        let mut entries = self.store().range(keys::audit(), None).await?.entries;
        let over = entries.len().saturating_sub(keep);
        entries.sort_by_key(|entry| entry.create_revision);
        for piece in entries[..over].chunks(AUDIT_PIECE) {
            let mut change = Change::new();
            for entry in piece {
                change = change.delete_all(Keys::One(entry.key.clone()));
            }
            self.commit(change).await?;
        }
        Ok(over)
    }

    /// Adds an SSH key of somebody's, or says its comment anew.
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
    }

    /// Takes an SSH key of somebody's away.
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
    }

    /// Makes an app somebody's, too.
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
    }

    /// Makes an app somebody's no more.
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
    }
}
