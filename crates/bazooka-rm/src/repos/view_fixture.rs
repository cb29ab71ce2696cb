//! Apps' views for the tests of repositories.

use std::collections::BTreeMap;

use jiff::Timestamp;
use visor::{
    names::{ReleaseId, RevId},
    schema::{Extra, Head, Release, ReleaseStatus, Rev, Slug},
    snapshot::{AppView, Versioned},
};

pub fn at<T>(value: T) -> Versioned<T> {
    Versioned { value, create_revision: 1, mod_revision: 1, lease: None }
}

pub fn rev(digit: char) -> RevId {
    digit.to_string().repeat(40).parse().expect("valid")
}

/// Returns an app with these registered revs and these releases; the last released one is head.
pub fn view(revs: &[char], releases: &[(char, ReleaseStatus)]) -> AppView {
    let mut view = AppView::default();
    for digit in revs {
        let slug = Slug { sha256: digit.to_string().repeat(64).parse().expect("valid"), size_bytes: 1 };
        let row = Rev {
            slug,
            procs: BTreeMap::new(),
            kind: "procfile".into(),
            by: "ada".into(),
            at: Timestamp::UNIX_EPOCH,
            subject: String::new(),
            extra: Extra::new(),
        };
        view.revs.insert(rev(*digit), at(row));
    }
    for (number, (digit, status)) in (1..).zip(releases) {
        let row = Release {
            rev: rev(*digit),
            env: "e0".parse().expect("valid"),
            by: "ada".into(),
            at: Timestamp::UNIX_EPOCH,
            reason: "push".into(),
            status: *status,
            cause: None,
            token: String::new(),
            extra: Extra::new(),
        };
        view.releases.insert(ReleaseId(number), at(row));
        if *status == ReleaseStatus::Released {
            view.head = Some(at(Head { release: ReleaseId(number), extra: Extra::new() }));
        }
    }
    view
}
