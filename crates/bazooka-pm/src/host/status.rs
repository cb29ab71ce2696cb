//! The status that a host reports about an instance. Pure.

use std::net::IpAddr;

use visor::schema::{Extra, Status};

use super::model::{Local, Phase};

/// Builds an instance's status from the state that this host keeps of it.
pub fn status(local: &Local, address: IpAddr) -> Status {
    let runs = local.pid.is_some();
    let (next_start_at, fault) = match &local.phase {
        Phase::Backoff { next_start_at, .. } => (Some(*next_start_at), None),
        Phase::Ended { fault } => (None, *fault),
        _ => (None, None),
    };
    Status {
        state: local.state(),
        since: local.since,
        ip: local.port.map(|_| address),
        port: local.port,
        pid: local.pid,
        started_at: local.started_at.filter(|_| runs),
        restarts: local.restarts,
        next_start_at,
        cause: local.cause.clone(),
        fault,
        last_output: local.last_output.clone(),
        exits: local.exits.clone(),
        story: local.story.clone(),
        extra: Extra::new(),
    }
}
