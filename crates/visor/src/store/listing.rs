//! A complete list of many rows, read in pages of one revision.
//!
//! Owns the size of a page and the second try of one that fails. A list of a large cluster has gigabytes; as one message
//! it would need more time than a call has. Each page is a call of its own, with the deadline of a call, and may be
//! answered by another member than the page before: the revision makes them one list.
//!
//! ```text
//! begin: first page of each scope, in one transaction ─▶ revision R
//! next:  page after page at R, 8 MiB each, until every scope is complete
//! ```

use std::collections::VecDeque;

use tokio::task::yield_now;

use super::{Entry, Keys, Op, Result, Revision, SharedStore, StoreError, Txn};

/// The rows of each scope that the first transaction reads: all rows of a small cluster, so that its list takes one
/// round trip.
pub const FIRST_PAGE: usize = 1_000;

/// The bytes that a page should have: 70 ms on a line of 1 Gb/s, so that even a slow line has a page within the
/// deadline of a call.
const PAGE_BYTES: usize = 8 << 20;

/// The most rows of a page. A larger page would be decoded for too long at a time.
const LONGEST_PAGE: usize = 20_000;

/// The most times that a page may grow from one to the next. One page of small rows tells little about the next rows.
const GROWTH: usize = 4;

/// The tries of one page before the list fails, each with half of the rows.
const TRIES: u32 = 4;

/// A list under way. Dropping it ends it.
pub struct Listing {
    store: SharedStore,
    revision: Revision,
    /// Pages that have been read.
    ready: VecDeque<Vec<Entry>>,
    /// Scopes with rows after a key.
    left: VecDeque<(Keys, String)>,
    most: usize,
}

impl Listing {
    /// Reads the first page of each scope, of `most` rows at most, and all of `beside`, in one transaction. Returns the
    /// list, and the rows of `beside`.
    ///
    /// # Errors
    /// The store's, as of a transaction that only reads.
    pub async fn begin(
        store: SharedStore,
        scopes: Vec<Keys>,
        beside: Keys,
        most: usize,
    ) -> Result<(Listing, Vec<Entry>)> {
        let most = most.max(1);
        let firsts = scopes.iter().map(|scope| Op::GetFirst(scope.clone(), most));
        let txn = Txn { then: firsts.chain([Op::Get(beside)]).collect(), ..Txn::default() };
        let mut reply = match store.txn(txn.clone()).await {
            // The transaction only reads, so it may be repeated.
            Err(StoreError::OutcomeUnknown { .. }) => store.txn(txn).await?,
            other => other?,
        };
        let beside = reply.found.pop().unwrap_or_default();
        let mut listing =
            Listing { store, revision: reply.revision, ready: VecDeque::new(), left: VecDeque::new(), most };
        for (scope, page) in scopes.into_iter().zip(reply.found) {
            if let Some(last) = last_of_full(&scope, &page, most) {
                listing.left.push_back((scope, last));
            }
            listing.ready.push_back(page);
        }
        Ok((listing, beside))
    }

    /// Returns the revision of the list.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the next page; none once the list is complete. Other tasks run between two pages, however fast they come.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the revision has been compacted meanwhile; [`StoreError::Unreachable`]. The list has
    /// failed then: begin another.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        if let Some(page) = self.ready.pop_front() {
            return Ok(Some(page));
        }
        let Some((scope, after)) = self.left.pop_front() else { return Ok(None) };
        yield_now().await;
        let page = self.page(&scope, &after).await?;
        if let Some(last) = last_of_full(&scope, &page, self.most) {
            self.left.push_front((scope, last));
        }
        self.most = next_size(self.most, &page);
        Ok(Some(page))
    }

    /// Reads a page; one that isn't answered in time is read again with half of the rows.
    async fn page(&mut self, scope: &Keys, after: &str) -> Result<Vec<Entry>> {
        for _ in 1..TRIES {
            match self.store.page(scope.clone(), after.to_owned(), self.most, self.revision).await {
                Err(StoreError::Unreachable { .. }) => self.most = (self.most / 2).max(1),
                answer => return Ok(answer?.entries),
            }
        }
        Ok(self.store.page(scope.clone(), after.to_owned(), self.most, self.revision).await?.entries)
    }
}

/// Returns the last key of a page after which the scope may have more.
fn last_of_full(scope: &Keys, page: &[Entry], most: usize) -> Option<String> {
    let may_have_more = matches!(scope, Keys::Prefix(_)) && page.len() >= most;
    page.last().filter(|_| may_have_more).map(|last| last.key.clone())
}

/// Returns how many rows the page after this one should have.
fn next_size(most: usize, page: &[Entry]) -> usize {
    let bytes: usize = page.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
    let fitting = page.len().saturating_mul(PAGE_BYTES) / bytes.max(1);
    fitting.clamp(1, LONGEST_PAGE.min(most.saturating_mul(GROWTH)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::{Store, model::ModelStore};

    fn rows(count: usize, bytes: usize) -> Vec<Entry> {
        let value = Bytes::from(vec![b'v'; bytes - 4]);
        let row = |n: usize| Entry {
            key: format!("{n:04}"),
            value: value.clone(),
            create_revision: 1,
            mod_revision: 1,
            lease: None,
        };
        (0..count).map(row).collect()
    }

    #[test]
    fn a_page_has_as_many_rows_as_fit_into_its_bytes() {
        for (most, count, bytes, next) in [
            (1_000, 1_000, 500, 4_000),
            (4_000, 4_000, 500, 16_000),
            (16_000, 16_000, 200, 20_000),
            (1_000, 1_000, 1 << 20, 8),
            (1, 1, 16 << 20, 1),
        ] {
            assert_eq!(next_size(most, &rows(count, bytes)), next, "{count} rows of {bytes} bytes");
        }
        assert_eq!(next_size(1_000, &[]), 1, "an empty page is the last of its scope");
    }

    async fn filled() -> ModelStore {
        let store = ModelStore::new();
        for n in 0..25 {
            put(&store, &format!("many/{n:02}")).await;
        }
        put(&store, "one").await;
        put(&store, "few/1").await;
        store
    }

    async fn put(store: &ModelStore, key: &str) {
        let put = Op::Put { key: key.to_owned(), value: Bytes::from_static(b"v"), lease: None };
        store.txn(Txn { then: vec![put], ..Txn::default() }).await.expect("nothing is in the way");
    }

    fn scopes() -> Vec<Keys> {
        vec![Keys::One("one".into()), Keys::Prefix("many/".into()), Keys::Prefix("few/".into())]
    }

    async fn all(listing: &mut Listing) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        while let Some(page) = listing.next().await? {
            keys.extend(page.into_iter().map(|entry| entry.key));
        }
        keys.sort();
        Ok(keys)
    }

    fn expected() -> Vec<String> {
        let many = (0..25).map(|n| format!("many/{n:02}"));
        ["few/1".to_owned()].into_iter().chain(many).chain(["one".to_owned()]).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn pages_are_of_one_revision_whatever_is_written_between_them() {
        let store = filled().await;
        let beside = Keys::One("one".into());
        for most in [1, 7, 10] {
            let (mut listing, found) =
                Listing::begin(store.shared(), scopes(), beside.clone(), most).await.expect("it is there");
            assert_eq!(found.len(), 1);
            put(&store, &format!("many/late{most}")).await;
            let delete = Op::Delete(Keys::Prefix("many/late".into()));
            assert_eq!(all(&mut listing).await.expect("it is there"), expected(), "{most} rows a page");
            store.txn(Txn { then: vec![delete], ..Txn::default() }).await.expect("nothing is in the way");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_list_takes_one_round_trip() {
        let store = filled().await;
        let before = store.round_trips();
        let (mut listing, _) =
            Listing::begin(store.shared(), scopes(), Keys::One("x".into()), FIRST_PAGE).await.expect("there");
        while listing.next().await.expect("it is there").is_some() {}
        assert_eq!(store.round_trips() - before, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_whose_revision_is_compacted_fails() {
        let store = filled().await;
        let (mut listing, _) =
            Listing::begin(store.shared(), scopes(), Keys::One("x".into()), 10).await.expect("it is there");
        put(&store, "many/late").await;
        let revision = store.revision();
        store.compact(revision).await.expect("nothing is in the way");
        let failed = all(&mut listing).await;
        assert!(matches!(failed, Err(StoreError::Compacted { .. })), "{failed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_lost_is_read_again_with_half_of_the_rows() {
        let store = filled().await;
        let (mut listing, _) =
            Listing::begin(store.shared(), scopes(), Keys::One("x".into()), 8).await.expect("it is there");
        for _ in 0..3 {
            listing.next().await.expect("these are there already");
        }
        store.faults().lose_pages(2);
        let page = listing.next().await.expect("the third try is answered").expect("there is more");
        assert_eq!(page.len(), 2);
        assert_eq!(all(&mut listing).await.expect("it is there").len(), 25 - 8 - 2);
    }
}
