//! The audit's rows: entries that no change carries, and the deletion of old ones.
//!
//! Owns the bound: each name has entries of its own, so that nobody's push out another's. The rows are the recent part of
//! the audit; each bazooka-rm keeps a journal of all of it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use crate::{
    identity::{Identity, Kind},
    keys::{self, Key},
    rows::RowKind,
    schema::AuditEntry,
    store::{Entry, Keys},
    visor::{Change, Result, Visor},
};

/// The number of audit entries that one transaction deletes.
const PIECE: usize = 100;

/// How many entries stay, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditBounds {
    /// The number of entries of each name; of an rm's entries, of each kind that it wrote for each name.
    pub per_name: usize,
    /// The longest age, by the writer's clock.
    pub age: Duration,
}

impl Default for AuditBounds {
    fn default() -> Self {
        // Some tens of kilobytes a name.
        AuditBounds { per_name: 200, age: Duration::from_secs(90 * 86_400) }
    }
}

impl Visor {
    /// Writes this handle's audit entry by itself, for an action that changes no row.
    ///
    /// # Errors
    /// The store's.
    pub async fn note(&self) -> Result<()> {
        self.commit(Change::new()).await.map(drop)
    }

    /// Deletes the entries of the audit that are beyond the bounds. Returns how many were deleted.
    ///
    /// # Errors
    /// The store's.
    pub async fn trim_audit(&self, bounds: AuditBounds, now: Timestamp) -> Result<usize> {
        let entries = self.store().range(keys::audit(), None).await?.entries;
        let over = excess(&entries, bounds, now);
        for piece in over.chunks(PIECE) {
            let mut change = Change::new();
            for key in piece {
                change = change.delete_all(Keys::One((*key).to_owned()));
            }
            self.commit(change).await?;
        }
        Ok(over.len())
    }
}

/// Whose entry a row is: the name that wrote it. An rm writes for others, of whom none may push out another's; what
/// another writer says of itself counts for nothing.
type Group = (Identity, Option<String>, Option<String>);

/// Returns the keys of the entries that are too large, too old, or too many of one name.
///
/// Of one name the newest stay, by their revisions: a clock may be wrong.
fn excess(entries: &[Entry], bounds: AuditBounds, now: Timestamp) -> Vec<&str> {
    let oldest =
        now.as_millisecond().saturating_sub(i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX));
    let mut over = Vec::new();
    let mut kept: BTreeMap<Group, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        // A later version's key is left to it.
        let Ok(Key::Audit(who, id)) = entry.key.parse::<Key>() else { continue };
        let at: i64 = id.as_str()[..13].parse().unwrap_or(0);
        if entry.value.len() > RowKind::Audit.row().most_bytes || at < oldest {
            over.push(&*entry.key);
            continue;
        }
        let (by, kind) = match &who {
            Identity::Daemon(Kind::Rm, _) => match serde_json::from_slice::<AuditEntry>(&entry.value) {
                Ok(read) => (read.by, read.kind),
                Err(_) => (None, None),
            },
            _ => (None, None),
        };
        kept.entry((who, by, kind)).or_default().push(entry);
    }
    for mut of_one in kept.into_values() {
        of_one.sort_by_key(|entry| entry.create_revision);
        let count = of_one.len().saturating_sub(bounds.per_name);
        over.extend(of_one[..count].iter().map(|entry| &*entry.key));
    }
    over
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        schema::Extra,
        store::{Op, SharedStore, Txn, model::ModelStore},
    };

    const BOUNDS: AuditBounds = AuditBounds { per_name: 3, age: Duration::from_secs(1000) };

    fn who(name: &str) -> Identity {
        name.parse().expect("valid")
    }

    fn now() -> Timestamp {
        Timestamp::from_second(10_000).expect("in range")
    }

    fn entry(what: &str, by: Option<&str>) -> AuditEntry {
        AuditEntry {
            what: what.into(),
            app: None,
            by: by.map(str::to_owned),
            from: "laptop".into(),
            kind: None,
            at: now(),
            extra: Extra::new(),
        }
    }

    async fn visor() -> Visor {
        let store: SharedStore = Arc::new(ModelStore::new());
        let visor = Visor::new(store);
        visor.set_up().await.expect("the model answers");
        visor
    }

    async fn said(visor: &Visor) -> Vec<String> {
        let snapshot = visor.read(vec![keys::audit()]).await.expect("the model answers");
        let mut rows: Vec<_> = snapshot.audit.into_values().collect();
        rows.sort_by_key(|row| row.create_revision);
        rows.into_iter().map(|row| row.value.what).collect()
    }

    #[tokio::test]
    async fn a_change_stands_in_the_audit_and_one_that_changes_nothing_does_not() {
        let visor = visor().await;
        for _ in 0..2 {
            let audited = visor.audited(&who("ada"), entry("let eve in", None), 1);
            audited.admit(&who("eve"), false, "ada", now()).await.expect("the model answers");
        }
        visor.audited(&who("ada"), entry("a look", None), 2).note().await.expect("the model answers");
        assert_eq!(said(&visor).await, ["let eve in", "a look"]);
    }

    #[tokio::test]
    async fn nobody_pushes_out_anothers_entries() {
        let visor = visor().await;
        let mut random = 0;
        let mut note =
            async |writer: &str, by: Option<&str>, kind: Option<&str>, what: &str, seconds: i64| {
                random += 1;
                let mut entry = entry(what, by);
                (entry.kind, entry.at) =
                    (kind.map(str::to_owned), Timestamp::from_second(seconds).expect("in range"));
                visor.audited(&who(writer), entry, random).note().await.expect("the model answers");
            };
        note("ada", None, None, "ada's", 10_000).await;
        note("rm:r1", Some("ada"), None, "ada's push", 10_000).await;
        for n in 0..20 {
            // Under her own name eve may say of herself whatever she likes.
            note("eve", Some(&format!("x{n}")), Some(&format!("k{n}")), &format!("eve's {n}"), 10_000 - n)
                .await;
            note("rm:r1", Some("eve"), None, &format!("eve's push {n}"), 10_000).await;
            note("rm:r1", Some("eve"), Some("refused"), &format!("refused {n}"), 10_000).await;
        }
        note("ada", None, None, "old", 8_999).await;
        assert_eq!(visor.trim_audit(BOUNDS, now()).await.expect("the model answers"), 3 * 17 + 1);
        let left = said(&visor).await;
        let of = |n: u32| [format!("eve's {n}"), format!("eve's push {n}"), format!("refused {n}")];
        let mut wanted = vec!["ada's".to_owned(), "ada's push".to_owned()];
        wanted.extend((17..20).flat_map(of));
        assert_eq!(left, wanted);
        assert_eq!(visor.trim_audit(BOUNDS, now()).await.expect("the model answers"), 0);
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_entry_at_all_goes_as_well() {
        let visor = visor().await;
        let put = async |id: u32, value: Vec<u8>| {
            let key = format!("audit/eve/0000010000000-{id:08x}");
            let op = Op::Put { key, value: value.into(), lease: None };
            let txn = Txn { when: Vec::new(), then: vec![op], otherwise: Vec::new() };
            visor.store().txn(txn).await.expect("the model answers");
        };
        for id in 1..=5 {
            put(id, b"no entry".to_vec()).await;
        }
        // The newest of all, so that only its size is against it.
        put(6, vec![b'x'; (4 << 10) + 1]).await;
        assert_eq!(visor.trim_audit(BOUNDS, now()).await.expect("the model answers"), 3);
        let left = visor.store().range(keys::audit(), None).await.expect("the model answers").entries;
        assert!(left.iter().all(|entry| &*entry.value == b"no entry"), "{left:?}");
    }

    #[test]
    fn an_entry_is_bounded_where_it_is_read() {
        let long = entry(&"\u{e4}".repeat(5_000), Some(&"b".repeat(5_000))).bounded();
        assert_eq!((long.what.chars().count(), long.by.map(|by| by.len())), (1_000, Some(1_000)));
        assert_eq!(entry("short", None).bounded(), entry("short", None));
    }
}
