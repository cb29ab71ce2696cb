//! What config vars and links share: the env in force, and the next one, made of it and sealed.
//!
//! It isn't a command of its own.

use std::collections::BTreeSet;

use visor::{
    keys::{self, Key},
    links::{self, Link},
    names::{AppName, EnvRef},
    seal::{MOST_BYTES, Os, Vars},
    snapshot::{AppView, Snapshot},
    transitions::envs::{self, NewEnv, base_env},
    visor::VisorError,
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    rm,
};

/// What a change is made from: the env in force, and all that sealing the next one takes.
pub struct Current {
    /// The app.
    pub view: AppView,
    /// The env's ref.
    pub env: EnvRef,
    /// Its vars.
    pub vars: Vars,
    /// Its links.
    pub links: BTreeSet<Link>,
    snapshot: Snapshot,
}

/// Reads it. An env that is sealed is opened by a bazooka-rm.
///
/// # Errors
/// No such app; no bazooka-rm to open it; the store's.
pub async fn current(context: &Context, app: &AppName) -> Result<Current> {
    let mut scopes = envs::recipients();
    scopes.extend([keys::asks(), keys::wraps_of(app)]);
    let (view, snapshot) = context.view_with(app, scopes).await?;
    let env = in_force(app, &view, &snapshot)?;
    let vars = match view.envs.get(&env) {
        None => Vars::default(),
        Some(row) => match (&row.sealed, &row.vars) {
            (None, Some(plain)) => plain.clone(),
            _ => rm::vars(context, &snapshot, app, env).await?,
        },
    };
    let links = links::of(&view, env).cloned().unwrap_or_default();
    Ok(Current { view, env, vars, links, snapshot })
}

/// The env in force, which the snapshot has been read with.
///
/// # Errors
/// Its row can't be read.
pub fn in_force(app: &AppName, view: &AppView, snapshot: &Snapshot) -> Result<EnvRef> {
    let env = base_env(view);
    let key = Key::Env(app.clone(), env).to_string();
    match snapshot.unreadable.get(&key) {
        Some(detail) => Err(VisorError::Unreadable { key, detail: detail.clone() }.into()),
        None => Ok(env),
    }
}

impl Current {
    /// The env that comes of a change, sealed; none if nothing changes.
    ///
    /// # Errors
    /// The vars are too many; no bazooka-rm is there to seal to.
    pub fn next(
        &self,
        context: &Context,
        app: &AppName,
        vars: &Vars,
        links: &BTreeSet<Link>,
    ) -> Result<Option<NewEnv>> {
        if *vars == self.vars && *links == self.links {
            return Ok(None);
        }
        let size = vars.size();
        if size > MOST_BYTES {
            let what = format!("an app's config vars may hold {MOST_BYTES} bytes together, not {size}");
            return Err(Failure::new(Kind::Usage, what));
        }
        let by = (context.who.as_str(), context.now());
        let made = NewEnv::seal(app, &self.view, (vars, links), &self.snapshot, by, &mut Os);
        made.map(Some).ok_or_else(|| {
            Failure::new(Kind::PartMissing, "no bazooka-rm is there to seal config vars to")
                .because("what no bazooka-rm can open could never be read or changed again")
                .hint("start one: bazooka-rm, or bazooka dev")
        })
    }
}
