//! The room that etcd has left, from the figures that each of its members shows.
//!
//! Owns the rule. etcd refuses every write but deletions once its file has reached its quota, and goes on to refuse them
//! until a person has made room (docs/disaster.md). The file only grows; what was deleted and compacted is free again
//! inside it. Pure.

use serde::Serialize;

use super::Finding;
use crate::quota::mebibytes;

/// The share of the quota, in percent, from which the check warns.
pub const WARN_PERCENT: u64 = 70;

/// The size of an etcd member's file as the member shows it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// The size of the file.
    pub total: u64,
    /// The part of it that is in use.
    pub in_use: u64,
    /// The quota; the file grows no further.
    pub quota: u64,
}

impl Space {
    /// Reads the figures from a member's metrics; none if one is missing.
    pub fn of_metrics(text: &str) -> Option<Space> {
        let figure = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            let value: f64 = line.trim().parse().ok()?;
            // Some 2^53 is far beyond any file.
            (value.is_finite() && value >= 0.0).then_some(value as u64)
        };
        Some(Space {
            total: figure("etcd_mvcc_db_total_size_in_bytes")?,
            in_use: figure("etcd_mvcc_db_total_size_in_use_in_bytes")?,
            quota: figure("etcd_server_quota_backend_bytes").filter(|quota| *quota > 0)?,
        })
    }

    /// Returns what is wrong with the room of a member, named by its URL. `is_full` if it has raised an alarm.
    pub fn finding(self, url: &str, is_full: bool) -> Option<Finding> {
        let Space { total, in_use, quota } = self;
        let is_much = |bytes: u64| bytes / 100 >= quota / 100 * WARN_PERCENT / 100;
        let [total_words, in_use_words, quota_words] = [total, in_use, quota].map(mebibytes);
        let (rule, what, remedy) = if is_full {
            let what = format!(
                "an alarm is on, and etcd refuses writes: its file has {total_words} of {quota_words}"
            );
            ("etcd-full", what, "make room, then disarm the alarm: docs/disaster.md")
        } else if is_much(in_use) {
            let what =
                format!("it has {in_use_words} in use, of {quota_words}: at its quota it refuses writes");
            ("etcd-filling", what, "give it a larger --quota-backend-bytes, or keep less: docs/disaster.md")
        } else if is_much(total) {
            let what =
                format!("its file has {total_words} of {quota_words}, of which {in_use_words} are in use");
            ("etcd-filling", what, "free the rest: etcdctl defrag, one member after the other")
        } else {
            return None;
        };
        let (key, remedy) = (url.to_owned(), remedy.to_owned());
        Some(Finding { key, rule, what, remedy, mendable: false, passing: false, mend: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP etcd_mvcc_db_total_size_in_bytes Total size of the underlying database.\n\
        # TYPE etcd_mvcc_db_total_size_in_bytes gauge\n\
        etcd_mvcc_db_total_size_in_bytes 2.097152e+07\n\
        etcd_mvcc_db_total_size_in_use_in_bytes 1.6384e+04\n\
        etcd_server_quota_backend_bytes 4.294967296e+09\n";

    #[test]
    fn the_figures_are_read_as_etcd_writes_them() {
        let read = Space { total: 20 << 20, in_use: 16 << 10, quota: 4 << 30 };
        assert_eq!(Space::of_metrics(METRICS), Some(read));
        for text in ["", "etcd_mvcc_db_total_size_in_bytes 1", &METRICS.replace("4.294967296e+09", "0")] {
            assert_eq!(Space::of_metrics(text), None, "{text}");
        }
    }

    #[test]
    fn it_is_told_from_seventy_percent_on_and_what_to_do_with_it() {
        let gib =
            |total: u64, in_use: u64| Space { total: total << 20, in_use: in_use << 20, quota: 1000 << 20 };
        let rule =
            |space: Space, full| space.finding("http://e1", full).map(|found| (found.rule, found.remedy));
        assert_eq!(rule(gib(699, 699), false), None);
        let (named, remedy) = rule(gib(700, 200), false).expect("its file is large");
        assert_eq!(named, "etcd-filling");
        assert!(remedy.contains("defrag"), "{remedy}");
        let (named, remedy) = rule(gib(900, 701), false).expect("it is in use");
        assert_eq!(named, "etcd-filling");
        assert!(remedy.contains("quota-backend-bytes"), "{remedy}");
        assert_eq!(rule(gib(1000, 3), true).expect("it is full").0, "etcd-full");
        assert_eq!(rule(gib(10, 3), true).expect("an alarm stays on").0, "etcd-full");
    }
}
