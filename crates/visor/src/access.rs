//! The rights of identities: asked of daemons, and as etcd's own roles.
//!
//! Owns the rules, as pure functions. Rights are rows (`identities/NAME`, `access/A`), which bazooka-rm writes. From
//! them, and from the writers that the table in [`rows`](crate::rows) declares, it derives etcd's users and roles, so
//! that etcd itself refuses a write without the right to it. Daemons ask
//! [`may`] about actions that are not keys.

use std::collections::{BTreeMap, BTreeSet};

pub use crate::store::users::{AuthOp, Permission, Users};
use crate::{
    identity::{Caller, Identity, Kind},
    keys,
    names::{AppName, UserName},
    rows::{ROWS, Row, Writer},
    schema::{Access, Admission},
    store::{Keys, in_cluster},
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
    let may = |rights: Vec<Keys>, write| -> BTreeSet<Permission> {
        rights.into_iter().map(|keys| permission(prefix, keys, write)).collect()
    };
    let mut users = Users::default();
    // The range of the cluster's prefix, in which no private key lies.
    users.roles.insert(role("reader"), may(keys::everything(), false));
    // Operators write their own rows, and the rows that `bazooka check --repair` mends, but neither rights nor the
    // audit.
    let operators = rows_where(&[], |row| row.writers.contains(&Writer::Operator) || row.operator_mends);
    users.roles.insert(role("operator"), may(operators, true));
    // A candidate may write the whole folder of the election.
    let elections = ROWS.iter().filter(|row| row.writers.contains(&Writer::Candidate)).map(keys::folder);
    let converger = written_by(Writer::Converger, &[]).into_iter().chain(elections).collect();
    let mut converger = may(converger, true);
    converger.extend(may(vec![keys::private()], false));
    users.roles.insert(role("converger"), converger);
    for app in rows.apps.keys() {
        // They may not write what was built or where it runs, because a user who could write a rev could run another
        // app's slug.
        let own = written_by(Writer::Developer, &[("app", app.as_str())]);
        users.roles.insert(role(&format!("app:{app}")), may(own, true));
    }
    let mut admitted = rows.identities.clone();
    admitted.entry(own.clone()).or_default();
    for (who, is_operator) in &admitted {
        let roles: Vec<String> = match who {
            Identity::User(name) => {
                let apps = rows.apps.iter().filter(|(_, people)| people.contains(name));
                // An identity writes the audit only under its own name, so that it cannot claim that another acted.
                let own = role(&format!("audit:{name}"));
                let audit = written_by(Writer::Author, &[("who", name.as_str())]);
                users.roles.insert(own.clone(), may(audit, true));
                let mut roles = vec![role("reader"), own];
                roles.extend(apps.map(|(app, _)| role(&format!("app:{app}"))));
                roles.extend(is_operator.then(|| role("operator")));
                roles
            }
            Identity::Daemon(Kind::Rm, _) => vec![ROOT.to_owned()],
            Identity::Daemon(Kind::Converger, _) => vec![role("reader"), role("converger")],
            Identity::Daemon(Kind::Proxy, name) => {
                let own = role(&format!("proxy:{name}"));
                let rights = written_by(Writer::Proxy, &[("proxy", name.as_str())]);
                users.roles.insert(own.clone(), may(rights, true));
                vec![role("reader"), own]
            }
            Identity::Daemon(Kind::Pm, name) => {
                let own = role(&format!("pm:{name}"));
                let host = [("host", name.as_str())];
                let mut rights = may(written_by(Writer::Pm, &host), true);
                rights.extend(may(rows_where(&host, |row| row.pm_reads), false));
                users.roles.insert(own.clone(), rights);
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

/// Returns the keys of the rows that the table gives to a writer.
///
/// `names` are those of the keys that are its own: of an app, of a host.
fn written_by(writer: Writer, names: &[(&str, &str)]) -> Vec<Keys> {
    rows_where(names, |row| row.writers.contains(&writer))
}

fn rows_where(names: &[(&str, &str)], wanted: impl Fn(&Row) -> bool) -> Vec<Keys> {
    ROWS.iter().filter(|row| wanted(row)).map(|row| keys::range(row, names)).collect()
}

fn permission(prefix: &str, keys: Keys, write: bool) -> Permission {
    let (key, is_prefix) = match keys {
        Keys::One(key) => (key, false),
        Keys::Prefix(key) => (key, true),
    };
    Permission { key: in_cluster(prefix, &key), prefix: is_prefix, write }
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
