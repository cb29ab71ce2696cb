//! Tests of the table: its facts agree with each other, and docs/rows.md is made from it.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_kind_leads_to_its_own_row() {
    for (at, row) in ROWS.iter().enumerate() {
        assert_eq!((row.kind as usize, row.kind.row()), (at, row));
    }
}

#[test]
fn no_two_rows_have_keys_of_one_form() {
    let form = |row: &Row| -> Vec<&str> {
        let word = |segment: &Segment| match segment {
            Segment::Word(word) => *word,
            Segment::Name(_) => "*",
        };
        row.key.iter().map(word).collect()
    };
    let forms: BTreeSet<_> = ROWS.iter().map(form).collect();
    assert_eq!(forms.len(), ROWS.len());
}

#[test]
fn a_row_that_goes_with_its_app_has_the_apps_name_first() {
    for row in ROWS.iter().filter(|row| row.ends.is_with_app()) {
        let first_name = row.key.iter().find(|segment| matches!(segment, Segment::Name(_)));
        assert_eq!(first_name, Some(&Segment::Name("app")), "{:?}", row.kind);
        assert_eq!(row.owner, Owner::App, "{:?}", row.kind);
    }
}

#[test]
fn a_writer_with_a_name_of_its_own_is_named_in_the_key() {
    for row in ROWS {
        for writer in row.writers {
            let name = match writer {
                Writer::Pm => "host",
                Writer::Proxy => "proxy",
                Writer::Developer => "app",
                Writer::Author => "who",
                _ => continue,
            };
            assert!(row.key.contains(&Segment::Name(name)), "{:?}", row.kind);
        }
    }
}

#[test]
fn a_daemon_writes_a_leased_row_anew_and_a_recovery_ends_its_lease() {
    for row in ROWS.iter().filter(|row| row.ends == Ends::Leased) {
        assert_eq!(row.unreadable, Unreadable::Rewritten, "{:?}", row.kind);
        assert!(row.recover.ends_lease(), "{:?}", row.kind);
    }
}

#[test]
fn the_page_about_rows_is_made_from_the_table() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/rows.md");
    let page = docs::docs();
    if std::env::var_os("BAZOOKA_WRITE_DOCS").is_some() {
        std::fs::write(file, &page).expect("docs/rows.md can be written");
    }
    let there = std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(
        there, page,
        "docs/rows.md isn't current: BAZOOKA_WRITE_DOCS=1 cargo nextest run -p visor rows"
    );
}

#[test]
fn the_largest_config_vars_fit_once_they_are_sealed() {
    // Base64 takes four bytes for three; the rest of the row is small.
    let sealed = crate::seal::MOST_BYTES / 3 * 4;
    for kind in [RowKind::Env, RowKind::Handed] {
        assert!(kind.row().most_bytes > sealed + (64 << 10), "{kind:?}");
    }
}
