//! docs/rows.md, made from the table.

use std::marker::PhantomData;

use super::*;
use crate::{bounds::Bounded, identity::Identity, names::*, schema::*};

/// Returns the page.
pub fn docs() -> String {
    let mut page = "\
# Rows

Every row of the coordinator: one key of etcd, below the cluster's prefix, with a JSON value. Words in capitals stand for
names. This page is made from the table that the code is made from, `crates/visor/src/rows.rs`. The reasons are in
[design/coordinator.md](design/coordinator.md).

## What a row holds, and who writes it

Etcd's roles restrict each writer to its rows. Everyone reads every row, except that a pm reads only the rows that it
writes and those marked here, of its own host where the key names one. Keys that begin with `private/` lie beside the
cluster's prefix (`/bazooka.private/...`): only rms, convergers and the writers of a row read it.

| key | holds | written by | pm reads |
|---|---|---|---|
"
    .to_owned();
    for row in ROWS {
        let writers: Vec<&str> = row.writers.iter().map(|writer| writer_in_words(*writer)).collect();
        let reads = if row.pm_reads { "yes" } else { "" };
        let (key, holds) = (key(row), row.holds.trim().trim_end_matches('.'));
        page.push_str(&format!("| `{key}` | {holds} | {} | {reads} |\n", writers.join(", ")));
    }
    page.push_str(
        "\n\
## How a row ends, and what mends it

A value has at most so many bytes; one that has more is unreadable. `bazooka check` and `bazooka recover` treat each
row as the last three columns say.

| key | bytes | is deleted | unreadable | its app has no row | recover |
|---|---|---|---|---|---|
",
    );
    for row in ROWS {
        let bytes = format!("{}K", row.most_bytes >> 10);
        let unreadable = match row.unreadable {
            Unreadable::Restore => "write it as in the last backup",
            Unreadable::Rewritten => "restart its daemon",
            Unreadable::Useless => "deleted",
        };
        let without_app = match row.without_app {
            WithoutApp::Own => "reported",
            WithoutApp::Substance => "the app is reported",
            WithoutApp::Delete => "deleted",
            WithoutApp::Destroy => "reported",
            WithoutApp::OwnRule => "",
        };
        page.push_str(&format!(
            "| `{}` | {bytes} | {} | {unreadable} | {without_app} | {} |\n",
            key(row),
            end_in_words(row.ends),
            recover_in_words(row.recover)
        ));
    }
    page.push_str(
        "\n\
## What is bounded where it is read

A less trusted writer could ask for anything. A value beyond these bounds counts as the bound, and `bazooka check` and
`bazooka why` say so; a row that lists more than it may, or has more bytes than such a row has, is unreadable, which stops
nothing that runs (`crates/visor/src/bounds.rs`).

| key | written by | bounds |
|---|---|---|
",
    );
    for (row, bounds) in ROWS.iter().zip(bounds()).filter(|(_, bounds)| !bounds.is_empty()) {
        let writers: Vec<&str> = row.writers.iter().map(|writer| writer_in_words(*writer)).collect();
        page.push_str(&format!("| `{}` | {} | {bounds} |\n", key(row), writers.join(", ")));
    }
    page
}

/// The places of rows in the image, by their values alone.
struct One<T>(PhantomData<T>);
struct Many<K, T>(PhantomData<(K, T)>);

trait Shape {
    type Value: Bounded;
}

impl<T: Bounded> Shape for One<T> {
    type Value = T;
}

impl<K, T: Bounded> Shape for Many<K, T> {
    type Value = T;
}

macro_rules! bounds {
    ($($owner:ident $of:tt { $(
        $(#[doc = $holds:literal])+
        $kind:ident $(($($name:ident: $type:ty),+))? [$($segment:tt),+] in $field:ident $at:tt: $shape:ty { $($facts:tt)* }
    )+ })+) => {
        /// Returns the bounds of each row, in the order of the table.
        fn bounds() -> Vec<&'static str> {
            vec![$($(<<$shape as Shape>::Value as Bounded>::BOUNDS,)+)+]
        }
    };
}

rows!(bounds);

fn key(row: &Row) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Word(word) => (*word).to_owned(),
        Segment::Name(name) => name.to_uppercase(),
    };
    row.key.iter().map(segment).collect::<Vec<_>>().join("/")
}

fn writer_in_words(writer: Writer) -> &'static str {
    match writer {
        Writer::First => "the first part to start, `bazooka migrate`",
        Writer::Rm => "rm",
        Writer::Converger => "converger",
        Writer::Candidate => "converger that stands for election",
        Writer::Pm => "pm of that host",
        Writer::Proxy => "that proxy",
        Writer::Developer => "`bazooka`",
        Writer::Operator => "operator",
        Writer::Author => "that identity",
    }
}

fn end_in_words(ends: Ends) -> String {
    match ends {
        Ends::Never => "never".to_owned(),
        Ends::WithApp("") => "with the app".to_owned(),
        Ends::WithApp(earlier) => format!("with the app; {earlier}"),
        Ends::Leased => "with its daemon's lease".to_owned(),
        Ends::When(when) => format!("when {when}"),
    }
}

fn recover_in_words(recover: Recover) -> &'static str {
    match recover {
        Recover::Kept => "",
        Recover::Entered => "entered as hosts have it",
        Recover::Raised => "raised",
        Recover::Continued => "counted on",
        Recover::Marked => "marked as restored",
        Recover::Present => "present until its daemon returns",
        Recover::LeaseEnded => "its lease is ended",
    }
}
