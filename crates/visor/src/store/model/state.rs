//! The model's state and each change of it, without clock, await or fault.
//!
//! Written along etcd 3.4's own code: what it refuses, in which order it checks, and which events a transaction leaves.
//! `live` is the image now, `base` the image at the compacted revision, and `history` the events between the two, so
//! that a range can go back and a watch can replay.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::mistake::Mistake;
use crate::store::{
    Compare, Entry, Event, Keys, LeaseId, MAX_TXN_OPS, Op, Page, Result, Revision, StoreError, Txn, TxnReply,
    WatchMessage,
};

/// The shortest time of a lease: etcd's one and a half election timeouts, in whole seconds.
const LEAST_TTL: Duration = Duration::from_secs(2);

/// The whole state of the store.
pub(super) struct State {
    revision: Revision,
    compacted: Revision,
    live: BTreeMap<String, Entry>,
    base: BTreeMap<String, Entry>,
    history: BTreeMap<Revision, Vec<Event>>,
    leases: BTreeMap<LeaseId, Lease>,
    /// The leases in the order in which they run out.
    ends: BTreeSet<(Instant, LeaseId)>,
    last_lease: LeaseId,
    watches: BTreeMap<u64, Watcher>,
    last_watch: u64,
    pub(super) mistake: Option<Mistake>,
    /// The first create revision of each key, used only by [`Mistake::CreateRevisionSurvivesDelete`].
    first_created: BTreeMap<String, Revision>,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<String>,
}

struct Watcher {
    keys: Keys,
    from: Revision,
    queue: VecDeque<Result<WatchMessage>>,
    ended: bool,
    silent: bool,
    wake: Arc<Notify>,
}

impl Watcher {
    /// Queues those events of one revision that the watch asked for.
    fn offer(&mut self, revision: Revision, events: &[Event], mistake: Option<Mistake>) {
        let late = mistake == Some(Mistake::WatchStartsLate) && revision == self.from;
        if self.ended || revision < self.from || late {
            return;
        }
        let events: Vec<Event> = events
            .iter()
            .filter(|event| selects(&self.keys, event.key(), mistake))
            .filter(|event| mistake != Some(Mistake::WatchForgetsDeletes) || matches!(event, Event::Put(_)))
            .cloned()
            .collect();
        if !events.is_empty() {
            self.queue.push_back(Ok(WatchMessage { revision, events }));
            self.wake.notify_one();
        }
    }

    fn end(&mut self, error: StoreError) {
        if !self.ended {
            self.queue.push_back(Err(error));
            self.ended = true;
            self.wake.notify_one();
        }
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            live: BTreeMap::new(),
            base: BTreeMap::new(),
            history: BTreeMap::new(),
            leases: BTreeMap::new(),
            ends: BTreeSet::new(),
            last_lease: 0,
            watches: BTreeMap::new(),
            last_watch: 0,
            mistake: None,
            first_created: BTreeMap::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn entry(&self, key: &str) -> Option<Entry> {
        self.live.get(key).cloned()
    }

    pub(super) fn loses_the_write_with_its_reply(&self) -> bool {
        self.mistake == Some(Mistake::LostReplyLosesWrite)
    }

    pub(super) fn range(&self, keys: &Keys, at: Option<Revision>) -> Result<Page> {
        let at = match at {
            None | Some(..=0) => self.revision,
            Some(at) => at,
        };
        if at > self.revision {
            return Err(refused("etcdserver: mvcc: required revision is a future revision"));
        }
        if at < self.compacted && self.mistake != Some(Mistake::ReadsCompacted) {
            return Err(StoreError::Compacted { asked: at, oldest: 0 });
        }
        let entries = if at == self.revision {
            self.select(&self.live, keys)
        } else {
            self.select(&self.image_at(at), keys)
        };
        Ok(Page { entries, revision: self.revision })
    }

    pub(super) fn page(&self, keys: &Keys, after: &str, most: usize, at: Revision) -> Result<Page> {
        let mut page = self.range(keys, Some(at))?;
        page.entries.retain(|entry| entry.key.as_str() > after);
        page.entries.truncate(most);
        Ok(page)
    }

    fn image_at(&self, at: Revision) -> BTreeMap<String, Entry> {
        let mut image = self.base.clone();
        // `base` already contains the events of the compacted revision.
        if at > self.compacted {
            for (_, events) in self.history.range(self.compacted + 1..=at) {
                replay(&mut image, events);
            }
        }
        image
    }

    fn select(&self, image: &BTreeMap<String, Entry>, keys: &Keys) -> Vec<Entry> {
        let (Keys::One(start) | Keys::Prefix(start)) = keys;
        image
            .range(start.clone()..)
            .take_while(|(key, _)| key.starts_with(start.as_str()))
            // Private keys lie among the others here, and in no range of theirs.
            .filter(|(key, _)| selects(keys, key, self.mistake))
            .map(|(_, entry)| entry.clone())
            .collect()
    }

    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnReply> {
        self.check(txn)?;
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        for op in branch {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
                && self.mistake != Some(Mistake::AllowsEndedLease)
            {
                return Err(StoreError::LeaseNotFound(*lease));
            }
        }

        let before = (self.mistake == Some(Mistake::GetMissesOwnWrites)).then(|| self.live.clone());
        let mut events = Vec::new();
        let mut found = Vec::with_capacity(branch.len());
        for op in branch {
            found.push(match op {
                Op::Put { key, value, lease } => {
                    let entry = self.put(key, value.clone(), *lease);
                    events.push(Event::Put(entry));
                    Vec::new()
                }
                Op::Delete(keys) => {
                    for entry in self.select(&self.live, keys) {
                        events.push(self.delete(&entry.key));
                    }
                    Vec::new()
                }
                Op::Get(keys) => self.select(before.as_ref().unwrap_or(&self.live), keys),
                Op::GetFirst(keys, most) => {
                    let mut first = self.select(before.as_ref().unwrap_or(&self.live), keys);
                    first.truncate(*most);
                    first
                }
            });
        }
        let deletes = branch.iter().any(|op| matches!(op, Op::Delete(_)));
        if events.is_empty() && deletes && self.mistake == Some(Mistake::EmptyDeleteRaisesRevision) {
            self.revision += 1;
        }
        self.commit(events);
        Ok(TxnReply { succeeded, revision: self.revision, found })
    }

    /// Checks what etcd refuses before it reads any key, in both branches.
    fn check(&self, txn: &Txn) -> Result<()> {
        let longest = txn.when.len().max(txn.then.len()).max(txn.otherwise.len());
        if longest > MAX_TXN_OPS && self.mistake != Some(Mistake::AllowsAnyLength) {
            return Err(refused("etcdserver: too many operations in txn request"));
        }
        for branch in [&txn.then, &txn.otherwise] {
            let mut written = BTreeSet::new();
            for op in branch {
                let Op::Put { key, .. } = op else { continue };
                let deleted = branch.iter().any(|op| matches!(op, Op::Delete(keys) if keys.contains(key)));
                if (!written.insert(key) || deleted) && self.mistake != Some(Mistake::AllowsDuplicatePuts) {
                    return Err(refused("etcdserver: duplicate key given in txn request"));
                }
            }
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::ModRevision(key, revision) => {
                self.live.get(key).map_or(0, |entry| entry.mod_revision) == *revision
            }
            Compare::CreateRevision(key, revision) => {
                self.live.get(key).map_or(0, |entry| entry.create_revision) == *revision
            }
            Compare::Exists(key) => self.live.contains_key(key),
            Compare::NoneSince(keys, revision) => {
                let mut later = self.live.values().filter(|entry| entry.mod_revision > *revision);
                !later.any(|entry| keys.contains(&entry.key))
            }
        }
    }

    /// Writes a key in the revision that is being made.
    fn put(&mut self, key: &str, value: bytes::Bytes, lease: Option<LeaseId>) -> Entry {
        let mod_revision = self.revision + 1;
        let before = self.live.get(key);
        let mut create_revision = before.map_or(mod_revision, |entry| entry.create_revision);
        if self.mistake == Some(Mistake::CreateRevisionSurvivesDelete) {
            create_revision = *self.first_created.entry(key.to_owned()).or_insert(create_revision);
        }
        if let Some(old) = before.and_then(|entry| entry.lease)
            && self.mistake != Some(Mistake::RebindKeepsOldLease)
        {
            self.unbind(old, key);
        }
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(key.to_owned());
        }
        let entry = Entry { key: key.to_owned(), value, create_revision, mod_revision, lease };
        self.live.insert(key.to_owned(), entry.clone());
        entry
    }

    /// Deletes a key in the revision that is being made.
    fn delete(&mut self, key: &str) -> Event {
        if let Some(lease) = self.live.remove(key).and_then(|entry| entry.lease) {
            self.unbind(lease, key);
        }
        Event::Delete { key: key.to_owned(), revision: self.revision + 1 }
    }

    fn unbind(&mut self, lease: LeaseId, key: &str) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }

    /// Makes the revision, if it has any event, and notifies the watches.
    fn commit(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        for watcher in self.watches.values_mut() {
            watcher.offer(self.revision, &events, self.mistake);
        }
        self.history.insert(self.revision, events);
    }

    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        let whole = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        let ttl = whole.max(LEAST_TTL);
        self.last_lease += 1;
        let ends = now + ttl;
        self.leases.insert(self.last_lease, Lease { ttl, ends, keys: BTreeSet::new() });
        self.ends.insert((ends, self.last_lease));
        // A waiting watch sleeps until the lease that was next to end; this one may end earlier.
        for watcher in self.watches.values() {
            watcher.wake.notify_one();
        }
        self.last_lease
    }

    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<Duration> {
        let found = self.leases.get_mut(&lease).ok_or(StoreError::LeaseNotFound(lease))?;
        self.ends.remove(&(found.ends, lease));
        found.ends = now + found.ttl;
        self.ends.insert((found.ends, lease));
        Ok(found.ttl)
    }

    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<()> {
        let ended = self.leases.remove(&lease).ok_or(StoreError::LeaseNotFound(lease))?;
        self.ends.remove(&(ended.ends, lease));
        let mut events = Vec::new();
        for key in &ended.keys {
            if self.live.contains_key(key) {
                events.push(self.delete(key));
            }
            if self.mistake == Some(Mistake::LeaseKeysGoOneByOne) {
                self.commit(std::mem::take(&mut events));
            }
        }
        self.commit(events);
        Ok(())
    }

    /// Returns the time when the next lease runs out.
    pub(super) fn next_lease_end(&self) -> Option<Instant> {
        self.ends.first().map(|(ends, _)| *ends)
    }

    /// Ends each lease that has run out, the earliest first, in a revision of its own.
    pub(super) fn end_leases(&mut self, now: Instant) {
        while let Some((ends, lease)) = self.ends.first().copied()
            && ends <= now
        {
            self.revoke(lease).expect("a lease with an end is there");
        }
    }

    pub(super) fn compact(&mut self, revision: Revision) -> Result<()> {
        if revision <= self.compacted {
            return Err(StoreError::Compacted { asked: revision, oldest: 0 });
        }
        if revision > self.revision {
            return Err(refused("etcdserver: mvcc: required revision is a future revision"));
        }
        self.base = self.image_at(revision);
        self.compacted = revision;
        self.history = self.history.split_off(&revision);
        // etcd 3.4 drops the tombstones of the compacted revision too.
        if let Some(events) = self.history.get_mut(&revision) {
            events.retain(|event| matches!(event, Event::Put(_)));
        }
        Ok(())
    }

    pub(super) fn watch(&mut self, keys: Keys, from: Revision, wake: Arc<Notify>) -> u64 {
        let from = if from <= 0 { self.revision + 1 } else { from };
        let mut watcher = Watcher { keys, from, queue: VecDeque::new(), ended: false, silent: false, wake };
        if from < self.compacted && self.mistake != Some(Mistake::WatchesCompacted) {
            watcher.end(StoreError::Compacted { asked: from, oldest: self.compacted });
        } else {
            for (revision, events) in self.history.range(from..) {
                watcher.offer(*revision, events, self.mistake);
            }
        }
        self.last_watch += 1;
        self.watches.insert(self.last_watch, watcher);
        self.last_watch
    }

    /// Returns what a watch delivers now; `None` if it has to wait.
    pub(super) fn next_message(&mut self, watch: u64) -> Option<Option<Result<WatchMessage>>> {
        let watcher = self.watches.get_mut(&watch)?;
        if watcher.silent {
            return None;
        }
        match watcher.queue.pop_front() {
            Some(message) => Some(Some(message)),
            None if watcher.ended => Some(None),
            None => None,
        }
    }

    pub(super) fn request_progress(&mut self, watch: u64) -> Result<()> {
        let revision = self.revision;
        match self.watches.get_mut(&watch) {
            Some(watcher) if !watcher.ended => {
                watcher.queue.push_back(Ok(WatchMessage { revision, events: Vec::new() }));
                watcher.wake.notify_one();
                Ok(())
            }
            _ => Err(StoreError::WatchEnded { detail: "the watch had ended".to_owned() }),
        }
    }

    pub(super) fn end_watches(&mut self, watches: &[u64], error: &StoreError) {
        for watch in watches {
            if let Some(watcher) = self.watches.get_mut(watch) {
                watcher.end(error.clone());
            }
        }
    }

    pub(super) fn silence_watches(&mut self, watches: &[u64]) {
        for watch in watches {
            if let Some(watcher) = self.watches.get_mut(watch) {
                watcher.silent = true;
            }
        }
    }

    pub(super) fn forget_watch(&mut self, watch: u64) {
        self.watches.remove(&watch);
    }
}

fn selects(keys: &Keys, key: &str, mistake: Option<Mistake>) -> bool {
    match keys {
        Keys::Prefix(prefix) if mistake == Some(Mistake::PrefixIsExact) => prefix == key,
        keys => keys.contains(key),
    }
}

fn replay(image: &mut BTreeMap<String, Entry>, events: &[Event]) {
    for event in events {
        match event {
            Event::Put(entry) => {
                image.insert(entry.key.clone(), entry.clone());
            }
            Event::Delete { key, .. } => {
                image.remove(key);
            }
        }
    }
}

fn refused(detail: &str) -> StoreError {
    StoreError::Refused { detail: detail.to_owned() }
}
