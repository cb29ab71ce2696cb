//! The figures of each day: apps, proc types, revs, releases, instances.
//!
//! Owns the counting of a day. Pure. The elected converger writes the rows, one a day, and keeps [`DAYS_KEPT`] of them.
//! It counts the rows of the coordinator, not events: revs and releases by their own times, instances by the ids that
//! were taken. So a converger that dies loses no figure, and the next one counts nothing twice.
//!
//! ```text
//! open ──the day after is over──▶ closed: sums alone, never written again
//! ```
//!
//! While a day is open, its row has the numbers of each registration of an app, and up to which revision its rows are
//! counted: neither pruning nor the destruction of the app lowers them. Days are in UTC.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::{
    names::Day,
    schema::{AppDay, DayStats, DayTotals, Extra},
    snapshot::{Many, Snapshot, Versioned},
    store::Revision,
};

/// The number of days kept: a year, and a month to compare with.
pub const DAYS_KEPT: usize = 400;

/// A planned write of a day's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The day.
    pub day: Day,
    /// The present row.
    pub before: Option<Versioned<DayStats>>,
    /// The new row; none if the day is older than the days that are kept.
    pub after: Option<DayStats>,
}

/// Returns the day of a moment.
pub fn day_of(at: Timestamp) -> Day {
    Day(at.to_zoned(TimeZone::UTC).date())
}

/// Returns when the day after that of `now` begins.
pub fn next_day(now: Timestamp) -> Option<Timestamp> {
    let tomorrow = day_of(now).0.tomorrow().ok()?;
    Some(tomorrow.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Returns the present totals.
pub fn totals(snapshot: &Snapshot) -> DayTotals {
    let views = || snapshot.apps.values().filter(|view| view.app.is_some());
    let sum = |count: fn(&crate::snapshot::AppView) -> usize| views().map(|view| count(view) as u64).sum();
    DayTotals {
        apps: views().count() as u64,
        procs: sum(|view| view.procs.len()),
        revs: sum(|view| view.revs.len()),
        releases: sum(|view| view.releases.len()),
        instances: sum(|view| view.instances.len()),
    }
}

/// Returns the rows to write, so that all days are counted up to `now`.
pub fn count(snapshot: &Snapshot, now: Timestamp) -> Vec<Counted> {
    let today = day_of(now);
    let first = oldest_kept(today);
    let mut days = facts(snapshot);
    days.retain(|day, _| (first..=today).contains(day));
    days.entry(today).or_default();
    // Days that are still open, of which everything counted may have been deleted since.
    let open = snapshot.days.iter().filter(|(_, row)| !row.closed && row.value.counted_at <= now);
    for (day, _) in open {
        days.entry(*day).or_default();
    }
    let last_id = snapshot.days.values().filter_map(|row| row.last_instance).max();
    let counter = snapshot.instance_counter.as_ref().map_or(0, |counter| counter.value);
    let mut counted = Vec::new();
    for (day, apps) in days.into_iter().filter(|(day, _)| *day >= first && *day <= today) {
        let before = snapshot.days.get(&day);
        if before.is_some_and(|row| row.closed) {
            continue;
        }
        let mut after = before.map(|row| row.value.clone()).unwrap_or_default();
        merge(&mut after.by_app, apps);
        after.pushed = after.by_app.values().map(|app| app.revs).sum();
        after.released = after.by_app.values().map(|app| app.releases).sum();
        if day == today {
            after.totals = Some(totals(snapshot));
            after.started += counter.saturating_sub(last_id.unwrap_or(counter));
            after.last_instance = Some(counter);
        } else if day.0.tomorrow().is_ok_and(|next| Day(next) < today) {
            after.by_app.clear();
            after.closed = true;
        }
        if before.is_none_or(|row| row.value != after) {
            after.counted_at = now;
            counted.push(Counted { day, before: before.cloned(), after: Some(after) });
        }
    }
    let old = snapshot.days.iter().filter(|(day, _)| **day < first);
    counted.extend(old.map(|(day, row)| Counted { day: *day, before: Some(row.clone()), after: None }));
    counted
}

/// Reports whether a rev or a release is counted, or will never be: its deletion then changes no figure.
///
/// `at` is the row's own time, `created` the revision at which it was made, `token` the registration of its app.
pub fn is_counted(
    days: &Many<Day, DayStats>,
    token: &str,
    (at, created): (Timestamp, Revision),
    now: Timestamp,
) -> bool {
    let day = day_of(at);
    let to = |row: &Versioned<DayStats>| row.by_app.get(token).map_or(0, |app| app.counted_to);
    day < oldest_kept(day_of(now)) || days.get(&day).is_some_and(|row| row.closed || created <= to(row))
}

/// The revisions at which an app's revs and releases of a day were made.
#[derive(Default)]
struct Made {
    revs: Vec<Revision>,
    releases: Vec<Revision>,
}

/// Returns the revs and releases of each registration of an app, by day.
fn facts(snapshot: &Snapshot) -> BTreeMap<Day, BTreeMap<String, Made>> {
    let mut days: BTreeMap<Day, BTreeMap<String, Made>> = BTreeMap::new();
    for view in snapshot.apps.values() {
        let Some(app) = &view.app else { continue };
        let mut of = |at: Timestamp, add: &dyn Fn(&mut Made)| {
            add(days.entry(day_of(at)).or_default().entry(app.token.clone()).or_default());
        };
        view.revs.values().for_each(|rev| of(rev.at, &|made| made.revs.push(rev.create_revision)));
        view.releases.values().for_each(|row| of(row.at, &|made| made.releases.push(row.create_revision)));
    }
    days
}

/// Merges counts; a figure counted once stays, even if its rows have been deleted.
fn merge(known: &mut BTreeMap<String, AppDay>, found: BTreeMap<String, Made>) {
    for (token, found) in found {
        let known = known.entry(token).or_default();
        let to = known.counted_to;
        // The counts of an early build say nothing of the rows that they are made from, and it deleted none.
        let count = |known: u64, rows: &[Revision]| match to {
            0 => known.max(rows.len() as u64),
            to => known + rows.iter().filter(|made| **made > to).count() as u64,
        };
        known.revs = count(known.revs, &found.revs);
        known.releases = count(known.releases, &found.releases);
        known.counted_to = found.revs.into_iter().chain(found.releases).fold(to, Revision::max);
    }
}

fn oldest_kept(today: Day) -> Day {
    let back = jiff::Span::new().days(i64::try_from(DAYS_KEPT).unwrap_or(i64::MAX) - 1);
    Day(today.0.checked_sub(back).unwrap_or(Date::MIN))
}

/// A row before anything was counted.
impl Default for DayStats {
    fn default() -> Self {
        DayStats {
            pushed: 0,
            released: 0,
            started: 0,
            totals: None,
            last_instance: None,
            by_app: BTreeMap::new(),
            closed: false,
            counted_at: Timestamp::UNIX_EPOCH,
            extra: Extra::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys::Key,
        store::{Entry, Image},
    };

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn day(text: &str) -> Day {
        text.parse().expect("a day")
    }

    fn put(snapshot: &mut Snapshot, key: &str, json: serde_json::Value) {
        let revision = snapshot.revision + 1;
        snapshot.put(&Entry {
            key: key.into(),
            value: json.to_string().into(),
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        });
        snapshot.set_revision(revision);
    }

    fn app(snapshot: &mut Snapshot, name: &str, token: &str) {
        let row =
            serde_json::json!({"owner": "me", "created_at": at("2026-01-01T00:00:00Z"), "token": token});
        put(snapshot, &format!("apps/{name}"), row);
    }

    fn release(snapshot: &mut Snapshot, app: &str, n: u32, when: &str) {
        let row = serde_json::json!({"rev": "a".repeat(40), "env": "e0", "by": "me", "at": at(when), "reason": "push",
            "status": "released", "token": ""});
        put(snapshot, &format!("apps/{app}/releases/v{n}"), row);
    }

    fn ids(snapshot: &mut Snapshot, last: u64) {
        put(snapshot, "counters/instance", last.into());
    }

    /// Counts and writes the result. Returns the days that were written.
    fn counted(snapshot: &mut Snapshot, now: &str) -> Vec<String> {
        let rows = count(snapshot, at(now));
        for row in &rows {
            let key = Key::Day(row.day).to_string();
            match &row.after {
                Some(after) => put(snapshot, &key, serde_json::to_value(after).expect("valid")),
                None => snapshot.delete(&key, 0),
            }
        }
        rows.iter().map(|row| row.day.to_string()).collect()
    }

    #[test]
    fn a_day_is_counted_from_what_stands_however_often_and_by_whomever() {
        let mut snapshot = Snapshot::default();
        assert_eq!(counted(&mut snapshot, "2026-03-01T08:00:00Z"), ["2026-03-01"]);
        app(&mut snapshot, "a", "t1");
        release(&mut snapshot, "a", 1, "2026-03-01T09:00:00Z");
        release(&mut snapshot, "a", 2, "2026-03-01T10:00:00Z");
        ids(&mut snapshot, 7);
        for now in ["2026-03-01T10:00:01Z", "2026-03-01T11:00:00Z", "2026-03-01T11:00:00Z"] {
            counted(&mut snapshot, now);
            let row = &snapshot.days[&day("2026-03-01")];
            assert_eq!((row.released, row.started), (2, 7), "{now}");
        }
        assert!(counted(&mut snapshot, "2026-03-01T12:00:00Z").is_empty(), "nothing is written twice");
        // The next converger finds what was placed while none counted.
        ids(&mut snapshot, 10);
        counted(&mut snapshot, "2026-03-02T00:00:00Z");
        assert_eq!(snapshot.days[&day("2026-03-02")].started, 3);
        assert_eq!(snapshot.days[&day("2026-03-01")].started, 7);
    }

    #[test]
    fn what_an_app_had_stays_counted_when_it_is_destroyed_and_made_anew() {
        let mut snapshot = Snapshot::default();
        app(&mut snapshot, "a", "t1");
        release(&mut snapshot, "a", 1, "2026-03-01T09:00:00Z");
        release(&mut snapshot, "a", 2, "2026-03-01T09:00:00Z");
        counted(&mut snapshot, "2026-03-01T10:00:00Z");
        for key in ["apps/a", "apps/a/releases/v1", "apps/a/releases/v2"] {
            snapshot.delete(key, 0);
        }
        app(&mut snapshot, "a", "t2");
        release(&mut snapshot, "a", 1, "2026-03-01T11:00:00Z");
        counted(&mut snapshot, "2026-03-01T12:00:00Z");
        assert_eq!(snapshot.days[&day("2026-03-01")].released, 3);
    }

    #[test]
    fn what_is_pruned_stays_counted_and_what_is_not_counted_is_not_pruned() {
        let mut snapshot = Snapshot::default();
        let now = "2026-03-01T12:00:00Z";
        app(&mut snapshot, "a", "t1");
        (1..=3).for_each(|n| release(&mut snapshot, "a", n, now));
        let counted_now = |snapshot: &Snapshot, n: u32| {
            let app = &snapshot.apps[&"a".parse().expect("valid")];
            let row = &app.releases[&crate::names::ReleaseId(n)];
            is_counted(&snapshot.days, "t1", (row.at, row.create_revision), at(now))
        };
        assert!(!counted_now(&snapshot, 1));
        counted(&mut snapshot, now);
        release(&mut snapshot, "a", 4, now);
        assert!(counted_now(&snapshot, 3) && !counted_now(&snapshot, 4));
        // v1 to v3 are pruned; of the next count, v4 is new.
        (1..=3).for_each(|n| snapshot.delete(&format!("apps/a/releases/v{n}"), 0));
        for _ in 0..2 {
            counted(&mut snapshot, now);
            assert_eq!(snapshot.days[&day("2026-03-01")].released, 4);
        }
        counted(&mut snapshot, "2026-03-03T00:00:00Z");
        release(&mut snapshot, "a", 5, now);
        assert!(counted_now(&snapshot, 5), "the day is closed");
        assert!(is_counted(&snapshot.days, "t1", (at("2020-01-01T00:00:00Z"), 9_999), at(now)), "long ago");
    }

    #[test]
    fn a_day_that_an_early_build_counted_is_counted_on() {
        let mut snapshot = Snapshot::default();
        app(&mut snapshot, "a", "t1");
        (1..=3).for_each(|n| release(&mut snapshot, "a", n, "2026-03-01T09:00:00Z"));
        counted(&mut snapshot, "2026-03-01T10:00:00Z");
        let mut row = snapshot.days[&day("2026-03-01")].value.clone();
        row.by_app.get_mut("t1").expect("it is counted").counted_to = 0;
        put(&mut snapshot, "stats/2026-03-01", serde_json::to_value(row).expect("valid"));
        release(&mut snapshot, "a", 4, "2026-03-01T11:00:00Z");
        for _ in 0..2 {
            counted(&mut snapshot, "2026-03-01T11:00:00Z");
            assert_eq!(snapshot.days[&day("2026-03-01")].released, 4);
        }
    }

    #[test]
    fn days_without_a_converger_are_made_up_for_and_closed_ones_stay() {
        let mut snapshot = Snapshot::default();
        counted(&mut snapshot, "2026-03-01T10:00:00Z");
        app(&mut snapshot, "a", "t1");
        release(&mut snapshot, "a", 1, "2026-03-01T23:59:59Z");
        release(&mut snapshot, "a", 2, "2026-03-02T12:00:00Z");
        let days = counted(&mut snapshot, "2026-03-05T10:00:00Z");
        assert_eq!(days, ["2026-03-01", "2026-03-02", "2026-03-05"]);
        for (of, released, closed) in
            [("2026-03-01", 1, true), ("2026-03-02", 1, true), ("2026-03-05", 0, false)]
        {
            let row = &snapshot.days[&day(of)];
            assert_eq!((row.released, row.closed), (released, closed), "{of}");
            assert!(!row.closed || row.by_app.is_empty(), "{of}");
        }
        // Rows of a closed day that appear later are not counted.
        release(&mut snapshot, "a", 3, "2026-03-02T13:00:00Z");
        assert!(counted(&mut snapshot, "2026-03-05T10:00:01Z") == ["2026-03-05"], "its totals alone");
        assert_eq!(snapshot.days[&day("2026-03-02")].released, 1);
    }

    #[test]
    fn no_more_days_are_kept_than_four_hundred() {
        let mut snapshot = Snapshot::default();
        let mut now = at("2026-01-01T12:00:00Z");
        for _ in 0..450 {
            counted(&mut snapshot, &now.to_string());
            now += jiff::SignedDuration::from_hours(24);
        }
        assert_eq!(snapshot.days.len(), DAYS_KEPT);
    }

    #[test]
    fn the_day_after_begins_at_midnight_utc() {
        assert_eq!(next_day(at("2026-02-28T23:59:59.9Z")), Some(at("2026-03-01T00:00:00Z")));
    }
}
