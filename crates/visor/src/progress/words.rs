//! The judgement in words: who is missing, and why something is as it is.

use crate::{
    keys::{self, Key},
    schema::{Frozen, State, Status},
    snapshot::Snapshot,
    store::Keys,
    visor::Visor,
};

/// Which part that should act isn't there, in words, by a snapshot that has the leader and the hosts.
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

/// That the converger holds still, and why.
pub fn frozen_words(frozen: &Frozen) -> String {
    let hosts: Vec<&str> = frozen.hosts.iter().map(|host| host.as_str()).collect();
    format!("so many hosts are gone at once that none is taken for lost: {}", hosts.join(", "))
}

/// As [`missing`], of the cluster as it is. None where the coordinator can't be asked either: that is judged elsewhere.
pub async fn who_is_missing(visor: &Visor) -> Option<String> {
    let there = visor.read(vec![Keys::One(Key::Leader.to_string()), keys::hosts()]).await.ok()?;
    missing(&there)
}

/// Why a status is what it is, in one line.
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
