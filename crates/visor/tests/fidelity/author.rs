//! The author of operations: random ones, but with a good chance to matter.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use visor::store::{Compare, Entry, Keys, LeaseId, MAX_TXN_OPS, Op, Revision, Txn};

use crate::calls::{Answer, Call, Done};

/// The length of leases that never run out during a test.
const LONG: Duration = Duration::from_secs(3600);

/// A lease that never existed.
const NO_LEASE: LeaseId = 0x7FFF_FFFF_FFFF_4711;

/// The prefix of keys under leases that are left to run out; no operation deletes them otherwise.
pub const EXPIRING: &str = "x/";

/// The author of a client's operations, with what it has learnt about the store.
pub struct Author {
    rng: StdRng,
    who: usize,
    /// False if others write at the same time. Then an operation's place among theirs must be visible in its answer,
    /// and a few mixtures that hide it are left out.
    alone: bool,
    leases: Vec<LeaseId>,
    ended: Vec<LeaseId>,
    /// The last known create and mod revision of each key.
    known: BTreeMap<String, (Revision, Revision)>,
    newest: Revision,
    count: u64,
}

impl Author {
    pub fn new(seed: u64, who: usize, alone: bool) -> Self {
        let rng = StdRng::seed_from_u64(seed ^ (who as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self {
            rng,
            who,
            alone,
            leases: Vec::new(),
            ended: Vec::new(),
            known: BTreeMap::new(),
            newest: 1,
            count: 0,
        }
    }

    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// Notes that a lease which this client never held has ended.
    pub fn ended(&mut self, lease: LeaseId) {
        self.ended.push(lease);
    }

    /// Learns from an operation's answer.
    pub fn learn(&mut self, done: &Done) {
        match (&done.call, &done.result) {
            (Call::Grant(_), Ok(Answer::Lease(lease))) => self.leases.push(*lease),
            (Call::Revoke(lease), Ok(_)) => {
                self.leases.retain(|held| held != lease);
                self.ended.push(*lease);
            }
            (_, Ok(Answer::Page(page))) => {
                self.newest = self.newest.max(page.revision);
                self.note(&page.entries);
            }
            (Call::Txn(txn), Ok(Answer::Txn(reply))) => {
                self.newest = self.newest.max(reply.revision);
                let branch = if reply.succeeded { &txn.then } else { &txn.otherwise };
                for op in branch {
                    if let Op::Put { key, .. } = op {
                        let created = self.known.get(key).map_or(reply.revision, |known| known.0);
                        self.known.insert(key.clone(), (created, reply.revision));
                    }
                }
                reply.found.iter().for_each(|found| self.note(found));
            }
            _ => {}
        }
    }

    fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.known.insert(entry.key.clone(), (entry.create_revision, entry.mod_revision));
        }
    }

    pub fn call(&mut self) -> Call {
        match self.rng.random_range(0..100) {
            0..3 if self.leases.len() < 6 => Call::Grant(LONG),
            3..5 if self.leases.len() < 6 => Call::Grant(Duration::from_millis(3_599_001)),
            5..8 if !self.leases.is_empty() => Call::KeepAlive(self.lease()),
            8 if !self.ended.is_empty() => Call::KeepAlive(self.ended_lease()),
            9..12 if !self.leases.is_empty() => Call::Revoke(self.lease()),
            12 => Call::Revoke(self.ended_lease()),
            13..30 => Call::Range { keys: self.keys(), at: None },
            _ => Call::Txn(self.txn()),
        }
    }

    /// Returns a read of the past, and at times of the future.
    pub fn look_back(&mut self, oldest: Revision) -> Call {
        let (keys, at) = (self.keys(), self.past(oldest));
        if self.rng.random_bool(0.5) {
            let (after, most) = (self.key(), self.rng.random_range(1..4));
            return Call::NextPage { keys, after, most, at };
        }
        Call::Range { keys, at: Some(at) }
    }

    /// Returns a revision that still exists, or has just been compacted, or does not exist yet.
    pub fn past(&mut self, oldest: Revision) -> Revision {
        let newest = if self.rng.random_bool(0.5) { oldest } else { self.newest.max(oldest) };
        self.rng.random_range(oldest - 2..=newest + 2).max(1)
    }

    /// Returns a transaction that leaves its mark whichever branch it takes.
    pub fn marked_txn(&mut self) -> Txn {
        loop {
            let mut txn = self.writing_txn();
            let puts = |ops: &[Op]| ops.iter().any(|op| matches!(op, Op::Put { .. }));
            if puts(&txn.then) {
                txn.otherwise = txn.then.clone();
                return txn;
            }
        }
    }

    fn lease(&mut self) -> LeaseId {
        *self.leases.choose(&mut self.rng).expect("it was asked whether there is one")
    }

    /// Returns a lease that has ended, or that never existed.
    fn ended_lease(&mut self) -> LeaseId {
        self.ended.choose(&mut self.rng).copied().unwrap_or(NO_LEASE)
    }

    fn txn(&mut self) -> Txn {
        match self.rng.random_range(0..100) {
            0 => self.too_long(),
            1..4 => {
                let lease = self.ended_lease();
                let puts = self.puts(Some(lease));
                Txn { then: puts, ..Txn::default() }
            }
            4..10 => {
                let count = self.rng.random_range(1..3);
                let then = (0..count).map(|_| Op::Delete(self.keys_to_delete())).collect();
                Txn { then, ..Txn::default() }
            }
            10..25 => Txn { when: self.compares(), then: self.gets(), otherwise: self.gets() },
            _ => self.writing_txn(),
        }
    }

    fn writing_txn(&mut self) -> Txn {
        let when = if self.rng.random_bool(0.6) { self.compares() } else { Vec::new() };
        let then = self.branch();
        let otherwise = match self.rng.random_range(0..3) {
            0 => Vec::new(),
            1 => self.gets(),
            _ => self.branch(),
        };
        Txn { when, then, otherwise }
    }

    fn too_long(&mut self) -> Txn {
        let key = self.key();
        let many = MAX_TXN_OPS + self.rng.random_range(0..2);
        match self.rng.random_range(0..3) {
            0 => Txn { when: vec![Compare::Exists(key); many], ..Txn::default() },
            1 => Txn { otherwise: vec![Op::Get(Keys::One(key)); many], ..Txn::default() },
            _ => Txn { then: vec![Op::Get(Keys::One(key)); many], ..Txn::default() },
        }
    }

    /// Returns a mixture of puts, deletes and gets in any order.
    fn branch(&mut self) -> Vec<Op> {
        let lease = (!self.leases.is_empty() && self.rng.random_bool(0.4)).then(|| self.lease());
        let mut ops = self.puts(lease);
        let puts_only_valid = self.rng.random_bool(0.97);
        for _ in 0..self.rng.random_range(0..3) {
            let keys = self.keys_to_delete();
            let overlaps = ops.iter().any(|op| matches!(op, Op::Put { key, .. } if keys.contains(key)));
            if !(overlaps && puts_only_valid) {
                ops.push(Op::Delete(keys));
            }
        }
        if self.alone && self.rng.random_bool(0.2) {
            ops.retain(|op| !matches!(op, Op::Put { .. }));
        }
        for _ in 0..self.rng.random_range(0..3) {
            let at = self.rng.random_range(0..=ops.len());
            ops.insert(at, Op::Get(self.keys()));
        }
        if self.rng.random_bool(0.3) {
            ops.reverse();
        }
        ops
    }

    /// Returns one to three puts; seldom twice to the same key, which is refused.
    fn puts(&mut self, lease: Option<LeaseId>) -> Vec<Op> {
        self.count += 1;
        let value = Bytes::from(format!("{}-{}", self.who, self.count));
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let key = self.key();
            let again = ops.iter().any(|op| matches!(op, Op::Put { key: put, .. } if *put == key));
            if !again || self.rng.random_bool(0.1) {
                ops.push(Op::Put { key, value: value.clone(), lease });
            }
        }
        ops
    }

    fn gets(&mut self) -> Vec<Op> {
        let count = self.rng.random_range(0..3);
        let mut get = || match self.rng.random_range(0..4) {
            0 => Op::Get(self.keys()),
            most => Op::GetFirst(self.keys(), most),
        };
        (0..count).map(|_| get()).collect()
    }

    fn compares(&mut self) -> Vec<Compare> {
        let count = self.rng.random_range(0..3);
        (0..count).map(|_| self.compare()).collect()
    }

    fn compare(&mut self) -> Compare {
        let key = self.key();
        let (created, written) = match self.known.get(&key) {
            Some(known) if self.rng.random_bool(0.8) => *known,
            _ => (0, self.rng.random_range(0..=self.newest)),
        };
        match self.rng.random_range(0..5) {
            0 => Compare::absent(key),
            1 => Compare::Exists(key),
            2 => Compare::CreateRevision(key, created),
            3 => Compare::NoneSince(self.keys(), written),
            _ => Compare::ModRevision(key, written),
        }
    }

    /// Returns a key of this client's own, or a contested one.
    fn key(&mut self) -> String {
        let letter = *b"abcd".choose(&mut self.rng).expect("there are letters") as char;
        match self.rng.random_range(0..10) {
            0..5 => format!("w{}/{letter}", self.who),
            5..7 => format!("w{}/{letter}/{}", self.who, self.rng.random_range(0..2)),
            _ => format!("s/{}", self.rng.random_range(0..8)),
        }
    }

    pub fn keys(&mut self) -> Keys {
        match self.rng.random_range(0..40) {
            0 => Keys::Prefix(String::new()),
            1 => Keys::Prefix(EXPIRING.to_owned()),
            2 => Keys::Prefix("w".to_owned()),
            _ => self.keys_to_delete(),
        }
    }

    fn keys_to_delete(&mut self) -> Keys {
        match self.rng.random_range(0..10) {
            0..5 => Keys::One(self.key()),
            5..9 => Keys::Prefix(self.key()),
            9 if self.rng.random_bool(0.5) => Keys::Prefix("s/".to_owned()),
            _ => Keys::Prefix(format!("w{}/", self.who)),
        }
    }
}
