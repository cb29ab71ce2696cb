//! The room that each member of etcd has left, as it shows to whoever may connect.

use std::time::Duration;

use bazooka_daemon::http_client;
use futures::future::join_all;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use visor::check::{Finding, space::Space};

use crate::context::Context;

/// The longest time for a connection and an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The room of a member, by the URL at which it was asked.
#[derive(Debug, Serialize)]
pub struct MemberSpace {
    /// The URL.
    pub url: String,
    /// The member's figures; none if it doesn't show them.
    pub space: Option<Space>,
    /// True if it has raised an alarm.
    pub is_full: bool,
}

/// A member's answer to the question for its health.
#[derive(Deserialize)]
struct Health {
    #[serde(default)]
    health: String,
    /// Newer etcds say why.
    #[serde(default)]
    reason: String,
}

/// Asks each member that the caller knows.
pub async fn asked(context: &Context) -> Vec<MemberSpace> {
    let Some(etcd) = &context.etcd else { return Vec::new() };
    let client = http_client(context.credentials.as_ref());
    let Ok(client) = client.http1_only().timeout(PATIENCE).build() else { return Vec::new() };
    join_all(etcd.urls().into_iter().map(|url| member(&client, url))).await
}

async fn member(client: &Client, url: String) -> MemberSpace {
    let at = |path: &str| format!("{}/{path}", url.trim_end_matches('/'));
    let text = async |path: &str| client.get(at(path)).send().await.ok()?.text().await.ok();
    let (metrics, health) = tokio::join!(text("metrics"), text("health"));
    let space = metrics.as_deref().and_then(Space::of_metrics);
    let has_leader = metrics.as_deref().is_some_and(|text| text.contains("\netcd_server_has_leader 1\n"));
    let health = health.and_then(|text| serde_json::from_str::<Health>(&text).ok());
    let is_full = health.is_some_and(|answer| is_full(&answer, has_leader));
    MemberSpace { url, space, is_full }
}

/// Reports whether a member is unhealthy for its alarm. Older etcds don't say why they are; a leader is all else it
/// takes.
fn is_full(answer: &Health, has_leader: bool) -> bool {
    answer.health == "false" && (answer.reason.contains("ALARM") || (answer.reason.is_empty() && has_leader))
}

/// Returns a finding for each member with little room, or with an alarm.
pub fn findings(members: &[MemberSpace]) -> impl Iterator<Item = Finding> {
    members.iter().filter_map(|member| member.space?.finding(&member.url, member.is_full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_told_from_another_ill() {
        let says = |json: &str, leader| is_full(&serde_json::from_str(json).expect("valid"), leader);
        assert!(!says(r#"{"health":"true","reason":""}"#, true));
        assert!(says(r#"{"health":"false","reason":"ALARM NOSPACE"}"#, true));
        assert!(says(r#"{"health":"false"}"#, true), "etcd 3.4");
        assert!(!says(r#"{"health":"false"}"#, false), "it has no leader");
        assert!(!says(r#"{"health":"false","reason":"RAFT NO LEADER"}"#, false));
    }
}
