//! The rights of identities: asked of daemons, and as etcd's own roles.
//!
//! Owns the rules, as pure functions. Rights are rows (`identities/NAME`, `access/A`), which bazooka-rm writes. From
//! them it derives etcd's users and roles, so that etcd itself refuses a write without the right to it. Daemons ask
//! [`may`] about actions that are not keys.

use std::collections::{BTreeMap, BTreeSet};

pub use crate::store::users::{AuthOp, Permission, Users};
use crate::{
    identity::{Caller, Identity, Kind},
    keys::{self, Key},
    names::{AppName, UserName},
    schema::{Access, Admission},
};

/// An action that a daemon is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Register an app, which will belong to the caller.
    Register,
    /// Use an app: push, fetch, logs, config vars, grants, destroy.
    App,
    /// Fetch a slug that the caller's host runs (whether it does is checked elsewhere).
    Slug,
    /// Admit an identity, or expel it.
    Admit,
    /// Read metrics.
    Metrics,
    /// Read which instances of all apps run where.
    Directory,
}

/// Reports whether a caller may act, by its own admission and by the grants of the app in question.
pub fn may(caller: &Caller, act: Act, admission: Option<&Admission>, access: Option<&Access>) -> bool {
    let who = match caller {
        Caller::Anyone => return true,
        Caller::Unknown => return false,
        Caller::Known(who) => who,
    };
    // bazooka-rm has etcd's root role, so there is nothing that it could not do anyway.
    if matches!(who, Identity::Daemon(Kind::Rm, _)) {
        return true;
    }
    let Some(admission) = admission else { return false };
    match (who, act) {
        (_, Act::Metrics) => true,
        // A pm is refused, because the coordinator tells it only of its own instances.
        (who, Act::Directory) => !matches!(who, Identity::Daemon(Kind::Pm | Kind::Etcd, _)),
        (Identity::User(_), Act::Register) => true,
        (Identity::User(name), Act::App) => {
            admission.operator || access.is_some_and(|access| access.users.contains_key(name))
        }
        (Identity::User(_), Act::Admit) => admission.operator,
        (Identity::Daemon(Kind::Pm, _), Act::Slug) => true,
        (Identity::User(_), Act::Slug) | (Identity::Daemon(..), _) => false,
    }
}

/// The name of etcd's role that may do everything, and of the user that etcd requires for authentication.
pub const ROOT: &str = "root";

/// The admitted identities and the grants of each app, as the rows have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The users of each registered app.
    pub apps: BTreeMap<AppName, BTreeSet<UserName>>,
    /// The admitted identities; true for an operator.
    pub identities: BTreeMap<Identity, bool>,
}

/// Returns the users and roles that the rows ask for.
///
/// `prefix` is the cluster's. `own` is the calling rm, which must not lock itself out while the rows do not have it
/// yet.
pub fn wanted(prefix: &str, rows: &Rows, own: &Identity) -> Users {
    let role = |name: &str| format!("{prefix}:{name}");
    let one = |key: &str, write| Permission { key: format!("{prefix}/{key}"), prefix: false, write };
    let below = |key: &str, write| Permission { key: format!("{prefix}/{key}"), prefix: true, write };
    let mut users = Users::default();
    users.roles.insert(role("reader"), [below("", false)].into());
    // Operators write their own rows, and the rows that `bazooka check --repair` mends, but neither rights nor the
    // audit.
    let mut operator: BTreeSet<Permission> =
        [below("hostmeta/", true), one(&Key::Unfreeze.to_string(), true)].into();
    let (prefixes, keys) = keys::operator_may_write();
    operator.extend(prefixes.iter().map(|prefix| below(prefix, true)));
    operator.extend(keys.iter().map(|key| one(&key.to_string(), true)));
    users.roles.insert(role("operator"), operator);
    let converger = [
        below("apps/", true),
        below("assigned/", true),
        below("sealed/", true),
        below("status/", true),
        below("history/", true),
        below("election/", true),
        below("stats/", true),
        one(&Key::InstanceCounter.to_string(), true),
        one(&Key::Unfreeze.to_string(), true),
    ];
    users.roles.insert(role("converger"), converger.into());
    for app in rows.apps.keys() {
        users.roles.insert(role(&format!("app:{app}")), app_permissions(app, &below, &one));
    }
    let mut admitted = rows.identities.clone();
    admitted.entry(own.clone()).or_default();
    for (who, is_operator) in &admitted {
        let roles: Vec<String> = match who {
            Identity::User(name) => {
                let apps = rows.apps.iter().filter(|(_, people)| people.contains(name));
                // An identity writes the audit only under its own name, so that it cannot claim that another acted.
                let own = role(&format!("audit:{name}"));
                users.roles.insert(own.clone(), [below(&format!("audit/{name}/"), true)].into());
                let mut roles = vec![role("reader"), own];
                roles.extend(apps.map(|(app, _)| role(&format!("app:{app}"))));
                roles.extend(is_operator.then(|| role("operator")));
                roles
            }
            Identity::Daemon(Kind::Rm, _) => vec![ROOT.to_owned()],
            Identity::Daemon(Kind::Converger, _) => vec![role("reader"), role("converger")],
            Identity::Daemon(Kind::Proxy, name) => {
                let own = role(&format!("proxy:{name}"));
                users.roles.insert(own.clone(), [one(&format!("proxies/{name}"), true)].into());
                vec![role("reader"), own]
            }
            Identity::Daemon(Kind::Pm, name) => {
                let own = role(&format!("pm:{name}"));
                let rights = [
                    one(&Key::Schema.to_string(), false),
                    one(&format!("hosts/{name}"), true),
                    below(&format!("status/{name}/"), true),
                    below(&format!("assigned/{name}/"), false),
                    below(&format!("sealed/{name}/"), false),
                    // A pm needs to know where slugs are, and who may read logs.
                    below("rms/", false),
                    below("access/", false),
                    below("identities/", false),
                ];
                users.roles.insert(own.clone(), rights.into());
                vec![own]
            }
            Identity::Daemon(Kind::Monitor | Kind::Etcd, _) => Vec::new(),
        };
        users.users.insert(who.to_string(), roles.into_iter().collect());
    }
    // etcd turns authentication on only if this user exists. It has no password, and no certificate may name it.
    users.users.insert(ROOT.to_owned(), [ROOT.to_owned()].into());
    users
}

/// Returns the permissions of an app's users on its rows.
///
/// They may not write what was built or where it runs, because a user who could write a rev could run another app's
/// slug.
fn app_permissions(
    app: &AppName,
    below: &impl Fn(&str, bool) -> Permission,
    one: &impl Fn(&str, bool) -> Permission,
) -> BTreeSet<Permission> {
    let kinds = ["procs", "envs", "releases", "formation"];
    let mut rights: BTreeSet<Permission> =
        kinds.iter().map(|kind| below(&format!("apps/{app}/{kind}/"), true)).collect();
    rights.insert(below(&format!("wraps/{app}/"), true));
    rights.extend(["head", "trial", "pause"].map(|key| one(&format!("apps/{app}/{key}"), true)));
    rights
}

/// Returns the steps from the found users and roles to the wanted ones.
///
/// Each step is possible in this order, and meanwhile nobody has more rights than before or after. Users and roles of
/// other programs are left alone.
pub fn plan(prefix: &str, wanted: &Users, found: &Users) -> Vec<AuthOp> {
    let ours = format!("{prefix}:");
    let is_ours = |role: &str| role.starts_with(&ours);
    let nothing = BTreeSet::new();
    let mut ops = Vec::new();
    // Rights are revoked first.
    for (user, roles) in &found.users {
        let keep = wanted.users.get(user).unwrap_or(&nothing);
        // A former rm has the root role, and its name shows what it was.
        let was_rm = user.starts_with("rm:");
        let gone: Vec<&String> =
            roles.difference(keep).filter(|role| is_ours(role) || (was_rm && *role == ROOT)).collect();
        let emptied = gone.len() == roles.len() && !gone.is_empty();
        if emptied && !wanted.users.contains_key(user) {
            ops.push(AuthOp::DeleteUser(user.clone()));
        } else {
            ops.extend(
                gone.into_iter().map(|role| AuthOp::RevokeRole { user: user.clone(), role: role.clone() }),
            );
        }
    }
    for (role, rights) in found.roles.iter().filter(|(role, _)| is_ours(role)) {
        match wanted.roles.get(role) {
            None => ops.push(AuthOp::DeleteRole(role.clone())),
            // etcd has one right for each range: granting write replaces read, and granting read again narrows it.
            Some(keep) => ops.extend(
                rights.difference(keep).map(|right| AuthOp::RevokePermission(role.clone(), right.clone())),
            ),
        }
    }
    for (role, rights) in &wanted.roles {
        let there = found.roles.get(role);
        if there.is_none() {
            ops.push(AuthOp::AddRole(role.clone()));
        }
        let missing = rights.iter().filter(|right| !there.is_some_and(|there| there.contains(right)));
        ops.extend(missing.map(|right| AuthOp::GrantPermission(role.clone(), right.clone())));
    }
    for (user, roles) in &wanted.users {
        let there = found.users.get(user);
        if there.is_none() {
            ops.push(AuthOp::AddUser(user.clone()));
        }
        for role in roles.difference(there.unwrap_or(&nothing)) {
            ops.push(AuthOp::GrantRole { user: user.clone(), role: role.clone() });
        }
    }
    ops
}

#[cfg(test)]
mod tests;
