//! The instances of a wanted release that are to be replaced by others of the same.
//!
//! Owns the reading of restart requests. The converger also replaces instances on a draining host or in the wrong zone,
//! because only the converger sees hosts and zones together with an instance.

use crate::{
    names::{InstanceId, ProcName},
    schema::Formation,
    snapshot::AppView,
};

/// Reports whether a restart asked for this instance's replacement.
pub fn is_to_restart(view: &AppView, proc: &ProcName, id: InstanceId) -> bool {
    view.formation.get(proc).is_some_and(|row| asks_for(row, id))
}

/// Reports whether a proc's restart names only instances that may exist: `last` is the last id that was taken, if known.
///
/// A restart of all says that ids below the next one are to be replaced. A row that says so of ids far above would have
/// each replacement replaced, for ever; it is not obeyed before these ids are taken.
pub fn is_restart_of_the_past(view: &AppView, proc: &ProcName, last: Option<u64>) -> bool {
    let before = view.formation.get(proc).and_then(|row| row.replace_before);
    let Some((before, last)) = before.zip(last) else { return true };
    before.0 <= last.saturating_add(1)
}

fn asks_for(formation: &Formation, id: InstanceId) -> bool {
    formation.replace.contains(&id) || formation.replace_before.is_some_and(|first_kept| id < first_kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_ones_and_those_placed_before_the_restart_are_replaced() {
        let row = r#"{"count":3,"replace":["7"],"replace_before":"5"}"#;
        let formation: Formation = serde_json::from_str(row).expect("readable");
        let replaced: Vec<u64> = (1..9).filter(|id| asks_for(&formation, InstanceId(*id))).collect();
        assert_eq!(replaced, [1, 2, 3, 4, 7]);
        let nothing: Formation = serde_json::from_str(r#"{"count":3}"#).expect("readable");
        assert!(!asks_for(&nothing, InstanceId(1)));
    }
}
