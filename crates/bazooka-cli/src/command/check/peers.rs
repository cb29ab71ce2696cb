//! The ports at which etcd's members reach each other, tried with the caller's own certificate.
//!
//! A caller that gets in there writes any key, past all rights: raft knows no users. Only members may, and no caller of
//! this command is one. The command asks for what every member tells its peers anyway, and sends nothing else.

use std::time::Duration;

use bazooka_daemon::{in_words, probing_client};
use reqwest::{Client, Url};
use serde::Serialize;
use tokio::{net::TcpStream, time::timeout};
use visor::{check::Finding, identity::Credentials, store::etcd::EtcdMember};

use crate::context::Context;

/// The longest time for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Requests that change nothing. etcd answers both to its peers.
const PATHS: [&str; 2] = ["version", "members"];

/// The outcome of the tries, for people and for scripts.
#[derive(Debug, Default, Serialize)]
pub struct PeerPorts {
    /// Each port with its answer; empty in a cluster without identities.
    pub tried: Vec<PeerPort>,
    /// The reason why the members aren't known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// A member's port.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct PeerPort {
    /// The name of the member.
    pub member: String,
    /// The address of the port.
    pub url: String,
    /// The answer of the port.
    pub answer: PortAnswer,
}

/// The answer of a port to the caller's certificate.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PortAnswer {
    /// The port refused the certificate.
    Refused,
    /// The port answered a request.
    LetIn,
    /// The port can't be reached from here, which says nothing about others.
    NotReached,
}

/// Tries the peer port of every member, if the caller has an identity.
pub async fn tried(context: &Context) -> PeerPorts {
    let (Some(credentials), Some(etcd)) = (&context.credentials, &context.etcd) else {
        return PeerPorts::default();
    };
    let members = match etcd.members().await {
        Ok(members) => members,
        Err(error) => return PeerPorts { unknown: Some(in_words(&error)), ..PeerPorts::default() },
    };
    PeerPorts { tried: ports(&members, credentials).await, unknown: None }
}

async fn ports(members: &[EtcdMember], credentials: &Credentials) -> Vec<PeerPort> {
    // etcd hands each connection of HTTP/2 to gRPC there, which answers none of these requests.
    let client = probing_client(credentials).http1_only().timeout(PATIENCE).build();
    let client = client.expect("the TLS configuration is complete");
    let urls = members.iter().flat_map(|member| member.peer_urls.iter().map(move |url| (&member.name, url)));
    let tries = urls.filter_map(|(member, url)| {
        // A Unix socket is reached by nobody on the network.
        let at = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        let client = client.clone();
        Some(async move {
            PeerPort { member: member.clone(), url: url.clone(), answer: answer(&client, &at).await }
        })
    });
    futures::future::join_all(tries).await
}

async fn answer(client: &Client, at: &Url) -> PortAnswer {
    let (Some(host), Some(port)) = (at.host_str(), at.port_or_known_default()) else {
        return PortAnswer::NotReached;
    };
    let host = host.trim_matches(['[', ']']);
    // First without TLS: so that a port that nobody reaches is told from one that refuses.
    if !matches!(timeout(PATIENCE, TcpStream::connect((host, port))).await, Ok(Ok(_))) {
        return PortAnswer::NotReached;
    }
    let mut refused = PortAnswer::NotReached;
    for path in PATHS {
        let Ok(url) = at.join(path) else { continue };
        match client.get(url).send().await {
            Ok(_) => return PortAnswer::LetIn,
            Err(error) if error.is_timeout() => {}
            Err(_) => refused = PortAnswer::Refused,
        }
    }
    refused
}

impl PeerPorts {
    /// Returns a finding for each port that let the caller in.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        let open = self.tried.iter().filter(|port| port.answer == PortAnswer::LetIn);
        open.map(|port| Finding {
            key: port.url.clone(),
            rule: "peer-port-open",
            what: format!(
                "etcd's member {} takes your certificate for a member's: its holder writes any key",
                port.member
            ),
            remedy: "give etcd's peers an authority of their own: docs/cluster.md".to_owned(),
            mendable: false,
            passing: false,
            mend: None,
        })
    }

    /// Returns what couldn't be tried, in words.
    pub fn untried(&self) -> Vec<String> {
        let unknown = self.unknown.iter().map(|why| {
            format!("etcd's peer ports weren't tried: it doesn't tell you its members ({why}); an rm may ask")
        });
        let away = self.tried.iter().filter(|port| port.answer == PortAnswer::NotReached);
        let away = away.map(|port| {
            format!(
                "the peer port of etcd's member {} ({}) can't be reached from here",
                port.member, port.url
            )
        });
        unknown.chain(away).collect()
    }
}
