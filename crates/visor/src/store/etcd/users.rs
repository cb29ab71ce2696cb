//! etcd's users and roles, and its version.
//!
//! Owns the translation into etcd's calls. What users and roles there should be is decided in `access`.

use etcd_client::{
    Permission as EtcdPermission, PermissionType, RoleRevokePermissionOptions, UserAddOptions,
};

use super::{Asked, EtcdStore, Repeat, Result};
use crate::store::{
    StoreError,
    users::{AuthOp, Permission, Users},
};

/// The answers that mean that a step was already done, by a rival or by a call whose reply was lost.
const DONE_ALREADY: [&str; 8] = [
    "role name already exists",
    "user name already exists",
    "user name not found",
    "role name not found",
    "role is not granted to the user",
    "permission is not granted to the role",
    "permission not granted",
    "role is already granted",
];

impl EtcdStore {
    /// Reads all users and roles, including those of other programs.
    ///
    /// # Errors
    /// The store's.
    pub async fn users(&self) -> Result<Users> {
        let names = self
            .call(Repeat::Safe, &Asked::default(), |mut connection| async move {
                let roles = connection.auth.role_list().await?.roles().to_vec();
                let users = connection.auth.user_list().await?.users().to_vec();
                Ok((roles, users))
            })
            .await?;
        let mut found = Users::default();
        for name in names.0 {
            let role = self
                .call(Repeat::Safe, &Asked::default(), |mut connection| {
                    let name = name.clone();
                    async move { connection.auth.role_get(name).await }
                })
                .await;
            if let Some(role) = gone_meanwhile(role)? {
                found.roles.insert(name, role.permissions().iter().map(permission).collect());
            }
        }
        for name in names.1 {
            let user = self
                .call(Repeat::Safe, &Asked::default(), |mut connection| {
                    let name = name.clone();
                    async move { connection.auth.user_get(name).await }
                })
                .await;
            if let Some(user) = gone_meanwhile(user)? {
                found.users.insert(name, user.roles().iter().cloned().collect());
            }
        }
        Ok(found)
    }

    /// Carries out a step. A step that was already done is no error.
    ///
    /// # Errors
    /// The store's.
    pub async fn apply_auth(&self, op: &AuthOp) -> Result<()> {
        let done = self
            .call(Repeat::Safe, &Asked::default(), |mut connection| {
                let op = op.clone();
                async move {
                    let auth = &mut connection.auth;
                    match op {
                        AuthOp::AddRole(role) => auth.role_add(role).await.map(drop),
                        AuthOp::DeleteRole(role) => auth.role_delete(role).await.map(drop),
                        AuthOp::GrantPermission(role, right) => {
                            let kind =
                                if right.write { PermissionType::Readwrite } else { PermissionType::Read };
                            let mut granted = EtcdPermission::new(kind, right.key.clone());
                            if right.prefix {
                                granted = granted.with_prefix();
                            }
                            auth.role_grant_permission(role, granted).await.map(drop)
                        }
                        AuthOp::RevokePermission(role, right) => {
                            let options =
                                right.prefix.then(|| RoleRevokePermissionOptions::new().with_prefix());
                            auth.role_revoke_permission(role, right.key, options).await.map(drop)
                        }
                        AuthOp::AddUser(user) => {
                            // Without a password, a certificate is the only way to log in.
                            let options = UserAddOptions::new().with_no_pwd();
                            auth.user_add(user, "", Some(options)).await.map(drop)
                        }
                        AuthOp::DeleteUser(user) => auth.user_delete(user).await.map(drop),
                        AuthOp::GrantRole { user, role } => auth.user_grant_role(user, role).await.map(drop),
                        AuthOp::RevokeRole { user, role } => {
                            auth.user_revoke_role(user, role).await.map(drop)
                        }
                    }
                }
            })
            .await;
        match done {
            Err(StoreError::Refused { detail })
                if DONE_ALREADY.iter().any(|words| detail.contains(words)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Turns on etcd's authentication, if it is not on already.
    ///
    /// # Errors
    /// The store's; etcd's, if there is no user `root` with the role of that name.
    pub async fn enable_auth(&self) -> Result<()> {
        self.call(Repeat::Safe, &Asked::default(), |mut connection| async move {
            connection.auth.auth_enable().await
        })
        .await
        .map(drop)
    }

    /// Returns the URLs at which the members reach each other.
    ///
    /// # Errors
    /// The store's.
    pub async fn peer_urls(&self) -> Result<Vec<String>> {
        self.call(Repeat::Safe, &Asked::default(), |mut connection| async move {
            connection.members.member_list().await
        })
        .await
        .map(|list| list.members().iter().flat_map(|member| member.peer_urls()).cloned().collect())
    }

    /// Returns the version that the answering member reports.
    ///
    /// # Errors
    /// The store's.
    pub async fn version(&self) -> Result<String> {
        self.call(Repeat::Safe, &Asked::default(), |mut connection| async move {
            connection.maintenance.status().await
        })
        .await
        .map(|status| status.version().to_owned())
    }
}

fn gone_meanwhile<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(StoreError::Refused { detail }) if detail.contains("name not found") => Ok(None),
        Err(error) => Err(error),
    }
}

fn permission(right: &EtcdPermission) -> Permission {
    Permission {
        key: String::from_utf8_lossy(right.key()).into_owned(),
        prefix: !right.range_end().is_empty(),
        write: right.get_type() != i32::from(PermissionType::Read),
    }
}

/// Returns the release to upgrade to, if a member is older than the fixes of etcd's known holes in authentication.
///
/// The release is of the member's own line. A version that cannot be parsed does not count as old.
pub fn holes_closed_in(version: &str) -> Option<&'static str> {
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let (major, minor, patch) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let closed = match (major, minor) {
        (3, 4) => (42, "3.4.42"),
        (3, 5) => (28, "3.5.28"),
        (3, 6) => (14, "3.6.14"),
        (3, 0..=3) | (0..=2, _) => return Some("3.6.14"),
        _ => return None,
    };
    (patch < closed.0).then_some(closed.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_with_known_holes_is_told_from_one_without() {
        for (version, wanted) in [
            ("3.4.23", Some("3.4.42")),
            ("3.4.42", None),
            ("3.5.27", Some("3.5.28")),
            ("3.5.28", None),
            ("3.5.28-rc.1", None),
            ("3.6.14", None),
            ("3.6.0", Some("3.6.14")),
            ("3.3.9", Some("3.6.14")),
            ("3.7.0", None),
            ("4.0.0", None),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(holes_closed_in(version), wanted, "{version:?}");
        }
    }
}
