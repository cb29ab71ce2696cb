//! The translation between the store's vocabulary and etcd's: keys with the cluster's prefix, operations, entries.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, PutOptions,
    ResponseHeader, Txn as EtcdTxn, TxnOp, TxnOpResponse, TxnResponse,
};

use super::pages::Ranges;
use crate::store::{Compare, Entry, Event, Keys, Op, Revision, Txn, TxnReply, in_cluster};

/// The translator for one cluster. `prefix` is the cluster's prefix, without a slash at its end.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    prefix: Arc<str>,
}

impl Wire {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').into() }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        in_cluster(&self.prefix, key).into_bytes()
    }

    /// Returns a key from the wire without the cluster's prefix. Our keys are UTF-8; other bytes are replaced.
    fn stripped(&self, key: &[u8]) -> String {
        let below = key.strip_prefix(self.prefix.as_bytes());
        let key = below.and_then(|key| key.strip_prefix(b"/").or(key.strip_prefix(b"."))).unwrap_or(key);
        String::from_utf8_lossy(key).into_owned()
    }

    /// Returns the first key of a range, and true if the range has every key with that prefix.
    pub(super) fn start(&self, keys: &Keys) -> (Vec<u8>, bool) {
        match keys {
            Keys::One(key) => (self.key(key), false),
            Keys::Prefix(prefix) => (self.key(prefix), true),
        }
    }

    /// Returns the first of a set's keys after a key, and the ranges from it to the end of the set.
    pub(super) fn ranges(&self, keys: &Keys, after: &str) -> (Vec<u8>, Ranges) {
        let after = self.key(after);
        let (Keys::One(set) | Keys::Prefix(set)) = keys;
        let mut end = self.key(set);
        let shared = end.len();
        let mut start = after.clone();
        start.push(0);
        let start = start.max(end.clone());
        // A key before the set says nothing of where its keys are.
        let begin = if after.starts_with(&end) { after } else { end.clone() };
        match keys {
            Keys::One(_) => end.push(0),
            // Keys are UTF-8 and have no byte of 0xff, so this is the first key after all with the prefix.
            Keys::Prefix(_) => *end.last_mut().expect("a cluster's prefix has a slash") += 1,
        }
        (start, Ranges::new(begin, end, shared))
    }

    pub(super) fn entry(&self, kv: KeyValue) -> Entry {
        let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
        let lease = (kv.lease() != 0).then(|| kv.lease());
        let (key, value) = kv.into_key_value();
        Entry { key: self.stripped(&key), value: Bytes::from(value), create_revision, mod_revision, lease }
    }

    pub(super) fn entries(&self, kvs: Vec<KeyValue>) -> Vec<Entry> {
        kvs.into_iter().map(|kv| self.entry(kv)).collect()
    }

    pub(super) fn event(&self, event: &etcd_client::Event) -> Option<Event> {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => Event::Put(self.entry(kv.clone())),
            EventType::Delete => Event::Delete { key: self.stripped(kv.key()), revision: kv.mod_revision() },
        })
    }

    pub(super) fn txn(&self, txn: Txn) -> EtcdTxn {
        let ops = |ops: Vec<Op>| -> Vec<TxnOp> { ops.into_iter().map(|op| self.op(op)).collect() };
        let when: Vec<EtcdCompare> = txn.when.iter().map(|compare| self.compare(compare)).collect();
        EtcdTxn::new().when(when).and_then(ops(txn.then)).or_else(ops(txn.otherwise))
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        match compare {
            Compare::ModRevision(key, revision) => {
                EtcdCompare::mod_revision(self.key(key), CompareOp::Equal, *revision)
            }
            Compare::CreateRevision(key, revision) => {
                EtcdCompare::create_revision(self.key(key), CompareOp::Equal, *revision)
            }
            Compare::Exists(key) => EtcdCompare::create_revision(self.key(key), CompareOp::Greater, 0),
            // etcd compares each key of the range; a range without keys passes.
            Compare::NoneSince(keys, revision) => {
                let (start, is_prefix) = self.start(keys);
                let compare = EtcdCompare::mod_revision(start, CompareOp::Less, revision.saturating_add(1));
                if is_prefix { compare.with_prefix() } else { compare }
            }
        }
    }

    fn op(&self, op: Op) -> TxnOp {
        match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease));
                TxnOp::put(self.key(&key), value, options)
            }
            Op::Delete(keys) => {
                let (start, is_prefix) = self.start(&keys);
                let options = is_prefix.then(|| DeleteOptions::new().with_prefix());
                TxnOp::delete(start, options)
            }
            Op::Get(keys) => {
                let (start, is_prefix) = self.start(&keys);
                let options = is_prefix.then(|| GetOptions::new().with_prefix());
                TxnOp::get(start, options)
            }
            Op::GetFirst(keys, most) => {
                let (start, is_prefix) = self.start(&keys);
                let options = GetOptions::new().with_limit(limit(most));
                TxnOp::get(start, Some(if is_prefix { options.with_prefix() } else { options }))
            }
        }
    }

    pub(super) fn txn_reply(&self, reply: &TxnResponse) -> TxnReply {
        let found = reply.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(mut page) => self.entries(page.take_kvs()),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => Vec::new(),
        });
        TxnReply { succeeded: reply.succeeded(), revision: revision(reply.header()), found: found.collect() }
    }
}

/// Returns a number of rows as etcd takes it.
pub(super) fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

/// Returns the store's revision from the header of an answer. etcd always sends the header, so 0 never occurs.
pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, ResponseHeader::revision)
}
