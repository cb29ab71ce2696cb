//! Envs, as config changes and links use them: reading the env in force, and sealing the next one.
//!
//! Owns no command.

use std::collections::BTreeSet;

use visor::{
    keys::{self, Key},
    links::{self, Link},
    names::{AppName, EnvRef},
    seal::{MOST_BYTES, Os, Vars},
    snapshot::{AppView, Snapshot},
    store::Keys,
    transitions::envs::{self, NewEnv, base_env},
    vars::VarName,
    visor::VisorError,
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    rm,
};

/// The env in force, with everything that sealing the next env needs.
pub struct Current {
    /// The app.
    pub view: AppView,
    /// The reference of the env.
    pub env: EnvRef,
    /// The env's config vars.
    pub vars: Vars,
    /// The env's links.
    pub links: BTreeSet<Link>,
    /// The names of the config vars that builds see, too.
    pub build: BTreeSet<VarName>,
    snapshot: Snapshot,
}

/// Reads the env in force. A bazooka-rm opens it if it is sealed.
///
/// # Errors
/// No such app; no bazooka-rm to open the env; the store's.
pub async fn current(context: &Context, app: &AppName) -> Result<Current> {
    let mut scopes = envs::recipients();
    // With identities nobody needs a secret, and only the rms may read it.
    if context.credentials.is_none() {
        scopes.extend(keys::asks());
    }
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
    let build = view.envs.get(&env).map(|row| row.build_names()).unwrap_or_default();
    Ok(Current { view, env, vars, links, build, snapshot })
}

/// Returns the reference of the env in force, from the snapshot that was read with it.
///
/// # Errors
/// If its row can't be read.
pub fn in_force(app: &AppName, view: &AppView, snapshot: &Snapshot) -> Result<EnvRef> {
    let env = base_env(view);
    let key = Key::Env(app.clone(), env).to_string();
    match snapshot.unreadable.get(&key) {
        Some(detail) => Err(VisorError::Unreadable { key, detail: detail.clone() }.into()),
        None => Ok(env),
    }
}

impl Current {
    /// Seals the env that results from a change; `None` if nothing changes.
    ///
    /// # Errors
    /// If the config vars are too large; if there is no bazooka-rm to seal to; the store's.
    pub async fn next(
        &self,
        context: &Context,
        app: &AppName,
        vars: &Vars,
        links: &BTreeSet<Link>,
        build: &BTreeSet<VarName>,
    ) -> Result<Option<NewEnv>> {
        if *vars == self.vars && *links == self.links && *build == self.build {
            return Ok(None);
        }
        let size = vars.size();
        if size > MOST_BYTES {
            let what = format!("an app's config vars may hold {MOST_BYTES} bytes together, not {size}");
            return Err(Failure::new(Kind::Usage, what));
        }
        let mut view = self.view.clone();
        if view.envs.contains_key(&self.env) {
            // Only those who may change the vars may read for whom they are wrapped.
            let wraps = envs::wraps_key(&view, app, self.env);
            let there = context.visor.read(vec![Keys::One(wraps.to_string())]).await?;
            let there = there.apps.get(app).cloned().unwrap_or_default();
            (view.wraps, view.earlier_wraps) = (there.wraps, there.earlier_wraps);
        }
        let by = (context.who.as_str(), context.now());
        let made = NewEnv::seal(app, &view, (vars, links), &self.snapshot, by, &mut Os);
        let shown = |mut made: NewEnv| {
            made.row.show_to_builds(build);
            Some(made)
        };
        made.map(shown).ok_or_else(|| {
            Failure::new(Kind::PartMissing, "no bazooka-rm is there to seal config vars to")
                .because("what no bazooka-rm can open could never be read or changed again")
                .hint("start one: bazooka-rm, or bazooka dev")
        })
    }
}
