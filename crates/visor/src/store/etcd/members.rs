//! etcd's own members, as etcd lists them.

use super::{Asked, EtcdStore, Repeat, Result};

/// A member of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdMember {
    /// The name; empty until the first start.
    pub name: String,
    /// The URLs at which other members reach it: `https://10.0.0.1:2380`.
    pub peer_urls: Vec<String>,
}

impl EtcdStore {
    /// Reads etcd's members.
    ///
    /// # Errors
    /// The store's; newer etcds refuse it to identities without etcd's root role.
    pub async fn members(&self) -> Result<Vec<EtcdMember>> {
        let listed = self
            .call(Repeat::Safe, &Asked::default(), |mut connection| async move {
                connection.cluster.member_list().await
            })
            .await?;
        let members = listed.members().iter();
        Ok(members
            .map(|member| EtcdMember {
                name: member.name().to_owned(),
                peer_urls: member.peer_urls().to_vec(),
            })
            .collect())
    }
}
