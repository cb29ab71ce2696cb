//! The judgement in words: which part is missing, and why something is in its state.

use crate::{
    keys::{self, Key},
    schema::{Frozen, State, Status},
    snapshot::Snapshot,
    store::Keys,
    visor::Visor,
};

/// Returns, in words, the part that should act and is absent, from a snapshot that has the leader and the hosts.
pub fn missing(there: &Snapshot) -> Option<String> {
    match &there.leader {
        None => Some("no converger is elected, so that nothing is placed or stopped".to_owned()),
        Some(leader) if leader.frozen.is_some() => leader.frozen.as_ref().map(frozen_words),
        Some(_) if there.hosts.values().all(|host| host.host.is_none()) => {
            Some("no host is registered, so that there is nowhere to run anything".to_owned())
        }
        Some(_) => None,
    }
}

/// Returns the message that the converger is frozen, with the reason.
pub fn frozen_words(frozen: &Frozen) -> String {
    let hosts: Vec<&str> = frozen.hosts.iter().map(|host| host.as_str()).collect();
    format!("so many hosts are gone at once that none is taken for lost: {}", hosts.join(", "))
}

/// Returns what [`missing`] says of the cluster now.
///
/// None if the coordinator cannot be asked either, which callers notice themselves.
pub async fn who_is_missing(visor: &Visor) -> Option<String> {
    let there = visor.read(vec![Keys::One(Key::Leader.to_string()), keys::hosts()]).await.ok()?;
    missing(&there)
}

/// Returns the reason for a status in one line.
pub fn cause_of(status: &Status) -> String {
    let state = match status.state {
        State::Claimed => "starting",
        State::Running => "running",
        State::Backoff => "crashed",
        State::Stopping => "stopping",
        State::Exited => "exited",
        State::Failed => "failed",
        State::Lost => "lost with its host",
    };
    status.cause.clone().unwrap_or_else(|| state.to_owned())
}
