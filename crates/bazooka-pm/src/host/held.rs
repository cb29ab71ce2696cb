//! The instances of a host whose coordinator has lost its memory.
//!
//! Owns which instances run on although the coordinator doesn't know them, and what the host tells an rm that recovers
//! the coordinator.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use visor::{
    names::InstanceId,
    recover::FoundInstance,
    schema::{Assignment, Incarnation},
};

use super::{model::Local, status::status};

/// Returns the unassigned instances that another cluster assigned, or this one before it was restored. Lack of an
/// assignment doesn't end them.
pub fn held(
    instances: &BTreeMap<InstanceId, Local>,
    assigned: &BTreeMap<InstanceId, Assignment>,
    incarnation: Option<&Incarnation>,
) -> BTreeSet<InstanceId> {
    let is_held = |id: &InstanceId, local: &Local| {
        let from_another = local.incarnation.is_some() && local.incarnation.as_ref() != incarnation;
        !assigned.contains_key(id) && from_another && !local.has_ended()
    };
    instances.iter().filter(|(id, local)| is_held(id, local)).map(|(id, _)| *id).collect()
}

/// Notes on each assigned instance the cluster's incarnation. Returns the instances for which it is new.
pub fn note_incarnation(
    instances: &mut BTreeMap<InstanceId, Local>,
    assigned: &BTreeMap<InstanceId, Assignment>,
    incarnation: Option<&Incarnation>,
) -> Vec<InstanceId> {
    let Some(incarnation) = incarnation else { return Vec::new() };
    let mut noted = Vec::new();
    for (id, local) in instances.iter_mut().filter(|(id, _)| assigned.contains_key(id)) {
        if local.incarnation.as_ref() != Some(incarnation) {
            local.incarnation = Some(incarnation.clone());
            noted.push(*id);
        }
    }
    noted
}

/// Returns the instances of a host, for an rm that recovers the coordinator.
pub fn found(
    instances: &BTreeMap<InstanceId, Local>,
    held: Option<&BTreeSet<InstanceId>>,
    address: IpAddr,
) -> BTreeMap<InstanceId, FoundInstance> {
    let of = |(id, local): (&InstanceId, &Local)| {
        let (assignment, status) = (local.assignment.clone(), status(local, address));
        let held = held.is_some_and(|held| held.contains(id));
        (*id, FoundInstance { assignment, status, held })
    };
    instances.iter().map(of).collect()
}
