//! The turn of a push at an app's repository, and the repository's state in the file storage.
//!
//! With several rms a push uses two rows. Its turn is leased, so that one push of an app is under way in the whole
//! cluster and a dead rm's turn ends by itself. The stored state is moved in one transaction that still requires the
//! turn, so an rm that was paused past its lease moves nothing.

use crate::{
    keys::{self, Key},
    names::AppName,
    schema::{Stored, Turn},
    snapshot::Versioned,
    store::{Keys, LeaseId, Revision},
    transitions::apps::registered,
    visor::{Change, Decided, Decision, Refusal, Result, Visor},
};

/// The outcome of an attempt to take the turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The caller has the turn.
    Ours,
    /// Another push has it.
    Held(Versioned<Turn>),
}

impl Visor {
    /// Takes the turn at an app for a push, bound to its lease.
    ///
    /// A turn of an earlier process of the same rm is taken over: an rm is alone on its state folder, so that process
    /// has ended.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::Destroying`]; a lease that has ended.
    pub async fn take_turn(&self, name: &AppName, turn: &Turn, lease: LeaseId) -> Result<Taken> {
        let key = Key::Turn(name.clone());
        let own = Key::App(name.clone());
        let scopes = vec![Keys::One(own.to_string()), Keys::One(key.to_string())];
        self.decide(scopes, |snapshot| {
            let app = registered(snapshot, name)?;
            if app.destroying {
                return Err(Refusal::Destroying(name.clone()).into());
            }
            let before = snapshot.apps[name].turn.as_ref();
            let change = Change::new().as_read(&own, Some(app)).as_read(&key, before);
            match before {
                Some(held) if held.push == turn.push && held.lease == Some(lease) => {
                    Ok(Decision::Already(Taken::Ours))
                }
                Some(held) if held.rm != turn.rm || held.process == turn.process => {
                    Ok(Decision::Already(Taken::Held(held.clone())))
                }
                _ => Ok(Decision::Change(change.put_leased(&key, turn, Some(lease)), Taken::Ours)),
            }
        })
        .await
        .map(Decided::into_value)
    }

    /// Reads the stored state of an app's repository.
    ///
    /// # Errors
    /// The store's.
    pub async fn stored(&self, name: &AppName) -> Result<Option<Versioned<Stored>>> {
        self.get(&Key::Stored(name.clone())).await
    }

    /// Moves an app's stored repository within the turn of this push; `before` is the row that the move was decided
    /// from.
    ///
    /// # Errors
    /// [`Refusal::TurnOver`], [`Refusal::RepoMoved`], [`Refusal::NoSuchApp`], [`Refusal::Destroying`].
    pub async fn store_repo(
        &self,
        name: &AppName,
        push: &str,
        before: Option<Revision>,
        after: &Stored,
    ) -> Result<()> {
        let (own, turn, key) = (Key::App(name.clone()), Key::Turn(name.clone()), Key::Stored(name.clone()));
        let scopes = [&own, &turn, &key].map(|key| Keys::One(key.to_string())).to_vec();
        self.decide(scopes, |snapshot| {
            let app = registered(snapshot, name)?;
            if app.destroying {
                return Err(Refusal::Destroying(name.clone()).into());
            }
            if app.token != after.token {
                return Err(Refusal::NoSuchApp(name.clone()).into());
            }
            let view = &snapshot.apps[name];
            // An earlier attempt of this call, whose reply was lost, wrote it: the manifest names this push, or has
            // equal content.
            if view.stored.as_ref().is_some_and(|now| now.value == *after) {
                return Ok(Decision::Already(()));
            }
            if view.stored.as_ref().map(|now| now.mod_revision) != before {
                return Err(Refusal::RepoMoved(name.clone()).into());
            }
            let held = view.turn.as_ref().filter(|held| held.push == push);
            let held = held.ok_or_else(|| Refusal::TurnOver(name.clone()))?;
            let change = Change::new()
                .as_read(&own, Some(app))
                .as_read(&turn, Some(held))
                .as_read(&key, view.stored.as_ref())
                .put(&key, after);
            Ok(Decision::Change(change, ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Reads an app with its turn and its stored repository, all at one revision.
    ///
    /// # Errors
    /// The store's.
    pub async fn app_with_stored(&self, name: &AppName) -> Result<Option<crate::snapshot::AppView>> {
        let mut scopes = keys::app(name);
        scopes.push(Keys::One(Key::Turn(name.clone()).to_string()));
        scopes.push(Keys::One(Key::Stored(name.clone()).to_string()));
        Ok(self.read(scopes).await?.apps.remove(name))
    }
}
