//! The ranges in which a page of a list is read.
//!
//! Owns where each range ends. etcd looks at every key of a range that it is asked for, however few it may return, to
//! count them: a list of a million keys in pages would take it minutes if each page asked for all that is left. So a page
//! is read as several ranges, each of which begins where the one before ended:
//!
//! ```text
//! after host12/345:   host12/… ─▶ host1…  ─▶ host2… ─▶ host3…     until the page is full
//!                     its folder  wider      its neighbours
//! ```
//!
//! A range is widened to the rest of the next shorter prefix while few keys came, and moves on by one neighbour once
//! many did. Pure. Where names are unlike that, a page costs what it would cost in one range, and some round trips more.

/// How many times wider a shorter prefix is taken to be: names mostly end with decimal numbers.
const WIDER: usize = 10;

/// The ranges of a page, each up to the next end.
pub(super) struct Ranges {
    /// The end of the last range that was asked for; of none yet, the key after which the page begins.
    reached: Vec<u8>,
    /// The end of the whole set.
    end: Vec<u8>,
    /// The bytes that all keys of the set begin with.
    shared: usize,
}

impl Ranges {
    /// Returns the ranges from the key `after` to the end of a set whose keys all begin with the same bytes.
    pub(super) fn new(after: Vec<u8>, end: Vec<u8>, shared: usize) -> Ranges {
        Ranges { reached: after, end, shared }
    }

    /// Returns the end of the first range: of the folder of the key that it begins after.
    pub(super) fn first(&mut self) -> Vec<u8> {
        self.up_to_folder();
        self.reached.clone()
    }

    /// Returns the end of the next range; none once the set is complete. `got` keys came in the last one, and the page
    /// lacks `lacking` more.
    pub(super) fn next(&mut self, got: usize, lacking: usize) -> Option<Vec<u8>> {
        if self.reached >= self.end {
            return None;
        }
        let last = self.reached.last().copied().unwrap_or(u8::MAX);
        if got > 0 && got.saturating_mul(WIDER) > lacking.saturating_mul(2) && last < 0x7f {
            self.bump();
        } else if got.saturating_mul(WIDER * WIDER) < lacking && self.folder().is_some() {
            self.up_to_folder();
        } else {
            self.cut(self.reached.len().saturating_sub(1));
        }
        Some(self.reached.clone())
    }

    /// Returns the length of the prefix that ends with the last slash before the reached end's own last byte, unless that
    /// is the whole set's.
    fn folder(&self) -> Option<usize> {
        let before = &self.reached[..self.reached.len().saturating_sub(1)];
        let slash = before.iter().rposition(|byte| *byte == b'/')? + 1;
        (slash > self.shared).then_some(slash)
    }

    /// Reaches the end of the folder, or of the next shorter prefix.
    fn up_to_folder(&mut self) {
        match self.folder() {
            Some(folder) => self.cut(folder),
            None => self.cut(self.reached.len().saturating_sub(1)),
        }
    }

    /// Reaches the end of all keys with the first bytes of what is reached; of the set, if all its keys have these.
    fn cut(&mut self, length: usize) {
        if length <= self.shared {
            self.reached = self.end.clone();
        } else {
            self.reached.truncate(length);
            self.bump();
        }
    }

    /// Moves on by one neighbour. Keys are UTF-8 and have no byte of 0xff.
    fn bump(&mut self) {
        if let Some(last) = self.reached.last_mut() {
            *last = last.saturating_add(1);
        }
        if self.reached > self.end {
            self.reached = self.end.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Reads all keys below `set/` as pages of `most`. Returns them, with how many keys each range of etcd's held in all.
    fn read(keys: &BTreeSet<Vec<u8>>, set: &str, most: usize) -> (Vec<Vec<u8>>, usize, usize) {
        let mut end = set.as_bytes().to_vec();
        *end.last_mut().expect("it has a slash") += 1;
        let (mut found, mut looked_at, mut trips): (Vec<Vec<u8>>, usize, usize) = (Vec::new(), 0, 0);
        let within = |from: &[u8], to: &[u8]| -> Vec<Vec<u8>> {
            keys.iter().filter(|key| key.as_slice() >= from && key.as_slice() < to).cloned().collect()
        };
        found.extend(within(set.as_bytes(), &end).into_iter().take(most));
        loop {
            let Some(after) = found.last().cloned() else { return (found, looked_at, trips) };
            let mut start = after.clone();
            start.push(0);
            let mut ranges = Ranges::new(after, end.clone(), set.len());
            let (mut page, mut next) = (Vec::new(), Some(ranges.first()));
            while let Some(to) = next {
                assert!(to >= start && to <= end, "{start:?} {to:?}");
                let there = within(&start, &to);
                looked_at += there.len();
                trips += 1;
                let lacking = most - page.len();
                let got = there.len().min(lacking);
                page.extend(there.into_iter().take(lacking));
                if page.len() == most {
                    break;
                }
                start = to;
                next = ranges.next(got, lacking - got);
            }
            let is_last = page.len() < most;
            found.extend(page);
            if is_last {
                return (found, looked_at, trips);
            }
        }
    }

    proptest! {
        #[test]
        fn every_key_is_read_once_whatever_the_names(
            names in prop::collection::btree_set("[a-c0-9./é-]{0,6}", 0..60),
            most in 1_usize..9,
        ) {
            let keys: BTreeSet<Vec<u8>> = names.iter().map(|name| format!("/p/set/{name}").into_bytes()).collect();
            let (found, ..) = read(&keys, "/p/set/", most);
            prop_assert_eq!(found, keys.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_of_a_large_list_costs_about_what_it_returns() {
        let of_hosts =
            (0..150).flat_map(|host| (0..20).map(move |id| format!("/p/set/host{host}/{}", id * 150 + host)));
        let of_apps = (0..100).flat_map(|app| {
            let ids = (0..27).map(move |id| format!("/p/set/app{app}/instances/{}", app * 30 + id));
            ids.chain([
                format!("/p/set/app{app}/formation/web"),
                format!("/p/set/app{app}/head"),
                format!("/p/set/app{app}/revs/1"),
            ])
        });
        for names in [of_hosts.collect::<Vec<String>>(), of_apps.collect()] {
            let keys: BTreeSet<Vec<u8>> = names.into_iter().map(String::into_bytes).collect();
            let (found, looked_at, trips) = read(&keys, "/p/set/", 200);
            assert_eq!((found.len(), keys.len()), (3_000, 3_000));
            // In one range each, the pages would look at 21,000.
            assert!(
                looked_at <= 9_000 && trips <= 15 * 12,
                "{looked_at} keys looked at in {trips} round trips"
            );
        }
    }
}
