//! The judgement that an instance fails, or that a proc was failing before a change.
//!
//! Owns the reading of states for that. A proc that failed before a change says nothing about the change: a push does
//! not wait for it, and a trial is not failed for it.

use jiff::SignedDuration;

use crate::{
    names::{InstanceId, ProcName},
    schema::{State, Status},
    snapshot::AppView,
};

/// The time that an instance must run after a crash before it no longer counts as between two crashes. Many programs take
/// some seconds to find out that they can't run.
pub const STEADY_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// Reports whether an instance in this state has crashed and waits for its next start, or has failed for good.
pub fn is_failing(state: State) -> bool {
    matches!(state, State::Backoff | State::Failed)
}

/// Reports whether an instance in this state is down, by its own failure or with its host.
pub fn is_down(state: State) -> bool {
    is_failing(state) || state == State::Lost
}

/// The facts known about an instance when its proc is judged.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The status that its host reports.
    pub status: Option<&'a Status>,
    /// True if it is meant to run.
    pub is_meant_to_run: bool,
    /// True if it has been healthy for [`STEADY_AFTER`].
    pub is_steady: bool,
}

/// Reports whether a proc fails in the current release: there are instances, and each of them crashes.
///
/// If the proc failed in the release before, too, and the trial of the current one excused it for that, it fails until an
/// instance has proved itself: a rollout replaces its instances, and the new ones have yet to crash.
pub fn was_failing<'a>(view: &AppView, proc: &ProcName, seen: impl Fn(InstanceId) -> Seen<'a>) -> bool {
    let Some(head) = &view.head else { return false };
    let of_head = view.instances.iter().filter(|(_, row)| row.proc == *proc && row.release == head.release);
    let mut judged = of_head.map(|(id, _)| seen(*id)).filter(|seen| seen.is_meant_to_run).peekable();
    if view.count(proc) > 0 && view.head_release().is_some_and(|(_, release)| release.excuses(proc)) {
        return judged.all(|seen| seen.status.is_none_or(|status| may_crash(status, &seen)));
    }
    judged.peek().is_some() && judged.all(|seen| seen.status.is_some_and(|status| crashes(status, &seen)))
}

/// Reports whether an instance crashes, or has yet to prove itself.
fn may_crash(status: &Status, seen: &Seen<'_>) -> bool {
    let is_new = matches!(status.state, State::Claimed | State::Running) && !seen.is_steady;
    is_new || crashes(status, seen)
}

/// Reports whether an instance crashes in the present state.
///
/// An instance that is `lost` does not, however often it was restarted: its host has gone, which says nothing about the
/// release, and its crashes may be weeks old. If it counted, a lost host would excuse a proc that served, and a release
/// that breaks that proc would pass its trial. The same holds for an instance that was told to end.
fn crashes(status: &Status, seen: &Seen<'_>) -> bool {
    match status.state {
        State::Backoff | State::Failed => true,
        State::Running => status.restarts > 0 && !seen.is_steady,
        State::Claimed => status.restarts > 0,
        State::Stopping | State::Exited | State::Lost => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::{mirror::Image, snapshot::Snapshot, store::Entry};

    /// Judges `web` with these instances: state, restarts, steady, meant to run.
    fn judge(instances: &[(Option<State>, u32, bool, bool)]) -> bool {
        judge_in("[]", instances)
    }

    /// Judges it in a release that excused these procs.
    fn judge_in(excused: &str, instances: &[(Option<State>, u32, bool, bool)]) -> bool {
        let mut image = Snapshot::default();
        let mut put = |key: String, value: String| {
            image.put(&Entry { key, value: value.into(), create_revision: 1, mod_revision: 1, lease: None });
        };
        put("apps/a/head".into(), r#"{"release":"v2"}"#.into());
        let release = format!(
            r#"{{"rev":"{}","env":"e0","by":"me","at":"2026-01-01T00:00:00Z","reason":"push","status":"released",
                "token":"","excused":{excused}}}"#,
            "0".repeat(40)
        );
        put("apps/a/releases/v2".into(), release);
        put("apps/a/formation/web".into(), r#"{"count":1,"by":"me"}"#.into());
        let mut seen = BTreeMap::new();
        for (id, (state, restarts, is_steady, is_meant_to_run)) in (1..).zip(instances) {
            let rev = "0".repeat(40);
            let row = format!(
                r#"{{"host":"host1","proc":"web","release":"v2","rev":"{rev}","index":0,
                    "placed_at":"2026-01-01T00:00:00Z","reason":""}}"#
            );
            put(format!("apps/a/instances/{id}"), row);
            let status = state.map(|state| {
                let mut status = Status::new(state, Timestamp::UNIX_EPOCH);
                status.restarts = *restarts;
                status
            });
            seen.insert(InstanceId(id), (status, *is_steady, *is_meant_to_run));
        }
        assert!(image.unreadable.is_empty(), "{:?}", image.unreadable);
        let app = image.apps.values().next().expect("it is there");
        was_failing(app, &"web".parse().expect("valid"), |id| {
            let (status, is_steady, is_meant_to_run) = &seen[&id];
            let (is_steady, is_meant_to_run) = (*is_steady, *is_meant_to_run);
            Seen { status: status.as_ref(), is_steady, is_meant_to_run }
        })
    }

    #[test]
    fn nothing_that_is_there_fails_nothing() {
        assert!(!judge(&[]));
        assert!(!judge(&[(None, 0, false, true)]), "placed, and not heard of");
        assert!(!judge(&[(Some(State::Backoff), 3, false, false)]), "it isn't meant to run");
    }

    #[test]
    fn what_waits_for_its_next_start_or_gave_up_fails() {
        assert!(judge(&[(Some(State::Backoff), 4, false, true), (Some(State::Failed), 0, false, true)]));
        assert!(!judge(&[(Some(State::Backoff), 4, false, true), (Some(State::Running), 0, true, true)]));
    }

    #[test]
    fn what_failed_before_its_release_fails_until_it_has_proved_itself() {
        for (instances, wanted) in [
            (&[][..], true),
            (&[(None, 0, false, true)], true),
            (&[(Some(State::Claimed), 0, false, true)], true),
            (&[(Some(State::Running), 0, false, true)], true),
            (&[(Some(State::Running), 0, true, true)], false),
            (&[(Some(State::Backoff), 1, false, true), (Some(State::Running), 0, true, true)], false),
            (&[(Some(State::Lost), 3, false, true)], false),
        ] {
            assert_eq!(judge_in(r#"["job","web"]"#, instances), wanted, "{instances:?}");
        }
        assert!(!judge_in(r#"["job"]"#, &[(Some(State::Running), 0, false, true)]), "another proc");
    }

    #[test]
    fn between_two_crashes_it_fails_until_it_is_steady() {
        assert!(judge(&[(Some(State::Claimed), 1, false, true)]));
        assert!(!judge(&[(Some(State::Claimed), 0, false, true)]), "its first start");
        assert!(judge(&[(Some(State::Running), 1, false, true)]));
        assert!(!judge(&[(Some(State::Running), 1, true, true)]));
        assert!(!judge(&[(Some(State::Running), 0, false, true)]), "it has never crashed");
    }

    #[test]
    fn what_was_lost_or_told_to_end_does_not_fail_however_often_it_had_crashed() {
        for state in [State::Lost, State::Exited, State::Stopping] {
            assert!(!judge(&[(Some(state), 7, false, true)]), "{state:?}");
            assert!(!judge(&[(Some(state), 7, false, true), (Some(State::Backoff), 7, false, true)]));
        }
    }
}
