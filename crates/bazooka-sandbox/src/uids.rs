//! Users for instances: each has a user id that no other process of the machine has.
//!
//! Owns the host's share of the range. Several hosts may run on one machine (development, tests). So each share is
//! marked as taken by a state folder, in a place outside of all state folders.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use crate::files::entries;

/// The folder of the marks. The machine's restart empties it and ends the processes, too.
pub const MARKS: &str = "/run/bazooka/uids";

/// The number of users in a share.
const SHARE: u32 = 1_024;

/// The first word of a mark of a share's private addresses; the first and the last user follow.
const ADDRESSES: &str = "loopback.";

/// A folder in which shares can't be marked.
#[derive(Debug, thiserror::Error)]
#[error("can't use {}", marks.display())]
pub struct UidsError {
    marks: PathBuf,
    source: io::Error,
}

/// The users of one state folder.
#[derive(Clone, Debug)]
pub struct Uids {
    range: RangeInclusive<u32>,
    marks: PathBuf,
    owner: PathBuf,
    shares: Vec<RangeInclusive<u32>>,
    /// The user after the last choice. The choice goes round the shares, so that a user rests before another instance
    /// gets it.
    next: Option<u32>,
}

impl Uids {
    /// Creates the users out of `range` for the state folder `owner`.
    ///
    /// # Errors
    /// [`UidsError`].
    pub fn new(range: RangeInclusive<u32>, marks: &Path, owner: &Path) -> Result<Uids, UidsError> {
        fs::create_dir_all(marks).map_err(|source| UidsError { marks: marks.to_owned(), source })?;
        Ok(Uids { range, marks: marks.to_owned(), owner: owner.to_owned(), shares: Vec::new(), next: None })
    }

    /// Returns a user that is not `used`; none if there is none left. The first choice starts at a place derived from
    /// `seed`, so that a restarted daemon doesn't give out again what the one before gave out last.
    pub fn choose(&mut self, used: &BTreeSet<u32>, seed: u32) -> Option<u32> {
        self.free(used, seed).or_else(|| {
            let share = self.take_share()?;
            self.shares.push(share);
            self.free(used, seed)
        })
    }

    fn free(&mut self, used: &BTreeSet<u32>, seed: u32) -> Option<u32> {
        let all: Vec<u32> = self.shares.iter().cloned().flatten().collect();
        let from = match self.next {
            Some(next) => all.iter().position(|uid| *uid == next).unwrap_or(0),
            None => usize::try_from(seed).unwrap_or(0) % all.len().max(1),
        };
        let (earlier, later) = all.split_at(from);
        let mut round = later.iter().chain(earlier).copied();
        let uid = round.find(|uid| !used.contains(uid))?;
        self.next = round.next().or(all.first().copied());
        Some(uid)
    }

    /// Reports whether this state folder has marked the share of a user as its own.
    pub fn owns(&self, uid: u32) -> bool {
        self.range.contains(&uid)
            && fs::read_to_string(self.marks.join(self.first_of(uid).to_string()))
                .is_ok_and(|owner| Path::new(&owner) == self.owner)
    }

    /// Returns the first user of a user's share.
    fn first_of(&self, uid: u32) -> u32 {
        uid - (uid - self.range.start()) % SHARE
    }

    /// Reports whether a user that was chosen earlier still belongs to this state folder. Another host may have taken
    /// its share when the machine was restarted.
    pub fn keep(&mut self, uid: u32) -> bool {
        if self.shares.iter().any(|share| share.contains(&uid)) {
            return true;
        }
        if !self.range.contains(&uid) {
            return false;
        }
        let first = self.first_of(uid);
        let kept = self.mark(first);
        if kept {
            let last = first.saturating_add(SHARE - 1).min(*self.range.end());
            self.shares.push(first..=last);
        }
        kept
    }

    fn take_share(&self) -> Option<RangeInclusive<u32>> {
        let mut first = *self.range.start();
        while first <= *self.range.end() {
            let last = first.saturating_add(SHARE - 1).min(*self.range.end());
            let known = self.shares.iter().any(|share| *share.start() == first);
            if !known && self.mark(first) {
                return Some(first..=last);
            }
            first = last.checked_add(1)?;
        }
        None
    }

    /// Marks a share as ours, unless another state folder has it, or one with the same lower halves: these are the
    /// numbers of private addresses ([`crate::loopback`]).
    fn mark(&self, first: u32) -> bool {
        let last = first.saturating_add(SHARE - 1).min(*self.range.end());
        let addresses = format!("{ADDRESSES}{first}-{last}");
        if !self.claim(&first.to_string()) {
            return false;
        }
        // Claimed before the look, so that of two that claim at once both see the other.
        if self.claim(&addresses) && !self.is_ambiguous(first, last, &addresses) {
            return true;
        }
        let _ = fs::remove_file(self.marks.join(addresses));
        let _ = fs::remove_file(self.marks.join(first.to_string()));
        false
    }

    /// Reports whether another share on this machine has a user with the same lower half as one of these.
    fn is_ambiguous(&self, first: u32, last: u32, own: &str) -> bool {
        entries(&self.marks).filter(|name| name != own).any(|name| {
            let Some((start, end)) = name.strip_prefix(ADDRESSES).and_then(|range| range.split_once('-'))
            else {
                return false;
            };
            let (Ok(start), Ok(end)) = (start.parse::<u32>(), end.parse::<u32>()) else { return false };
            let distance = |from: u32, to: u32| to.wrapping_sub(from) & 0xffff;
            let overlaps = distance(first, start) <= last - first || distance(start, first) <= end - start;
            let owner = fs::read_to_string(self.marks.join(&name)).unwrap_or_default();
            overlaps && Path::new(&owner).exists()
        })
    }

    /// Writes a mark, unless another state folder has it.
    fn claim(&self, name: &str) -> bool {
        let mark = self.marks.join(name);
        for _ in 0..2 {
            // Written as a draft and then linked, so that no reader sees half a mark.
            let draft = self.marks.join(format!("{name}.{}", std::process::id()));
            let written = fs::File::create(&draft)
                .and_then(|mut file| file.write_all(self.owner.as_os_str().as_encoded_bytes()))
                .and_then(|()| fs::hard_link(&draft, &mark));
            let _ = fs::remove_file(&draft);
            if written.is_ok() {
                return true;
            }
            let Ok(owner) = fs::read_to_string(&mark) else { continue };
            if Path::new(&owner) == self.owner {
                return true;
            }
            // A folder that can't be looked at is there.
            if Path::new(&owner).try_exists().unwrap_or(true) {
                return false;
            }
            // Its state folder has been removed, so the share is free.
            let _ = fs::remove_file(&mark);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_state_folders_share_no_user() {
        let dir = tempfile::tempdir().expect("a folder");
        let owner = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("it can be made");
            Uids::new(1_000..=4_000, &dir.path().join("marks"), &path).expect("marks can be made")
        };
        let (mut a, mut b) = (owner("a"), owner("b"));
        let none = BTreeSet::new();
        assert_eq!(a.choose(&none, 0), Some(1_000));
        assert_eq!(b.choose(&none, 0), Some(1_000 + SHARE));
        assert_eq!(owner("a").choose(&none, 0), Some(1_000), "a restarted one has its share still");
        fs::remove_dir(dir.path().join("a")).expect("it is empty");
        assert_eq!(owner("c").choose(&none, 0), Some(1_000), "the share of a removed one is free");
    }

    #[test]
    fn a_user_is_kept_unless_its_share_is_anothers() {
        let dir = tempfile::tempdir().expect("a folder");
        let owner = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("it can be made");
            Uids::new(1_000..=4_000, &dir.path().join("marks"), &path).expect("marks can be made")
        };
        let (mut a, mut b) = (owner("a"), owner("b"));
        assert!(a.keep(1_000 + SHARE) && a.keep(1_001 + SHARE));
        assert!(!b.keep(1_001 + SHARE), "it is in a's share");
        assert_eq!(
            a.choose(&BTreeSet::from([1_000 + SHARE]), 0),
            Some(1_001 + SHARE),
            "the share is a's now"
        );
        assert!(!a.keep(999) && !a.keep(4_001), "those were never given out");
    }

    #[test]
    fn a_user_is_an_instances_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut uids = Uids::new(1_000..=1_001, dir.path(), dir.path()).expect("marks can be made");
        let mut used = BTreeSet::new();
        for expected in [Some(1_000), Some(1_001), None] {
            let uid = uids.choose(&used, 0);
            assert_eq!(uid, expected);
            used.extend(uid);
        }
    }

    #[test]
    fn a_user_rests_before_another_instance_gets_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let new = || Uids::new(1_000..=1_003, dir.path(), dir.path()).expect("marks can be made");
        let (mut uids, none) = (new(), BTreeSet::new());
        let given: Vec<Option<u32>> = (0..5).map(|_| uids.choose(&none, 2)).collect();
        assert_eq!(given, [1_002, 1_003, 1_000, 1_001, 1_002].map(Some));
        assert_eq!(uids.choose(&BTreeSet::from([1_003, 1_000]), 2), Some(1_001));
        assert!(uids.owns(1_001) && !uids.owns(999));
    }

    #[test]
    fn shares_of_other_ranges_have_other_private_addresses() {
        let dir = tempfile::tempdir().expect("a folder");
        let owner = |name: &str, range| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("it can be made");
            Uids::new(range, &dir.path().join("marks"), &path).expect("marks can be made")
        };
        let none = BTreeSet::new();
        assert_eq!(owner("a", 100_000..=100_499).choose(&none, 0), Some(100_000));
        assert_eq!(owner("b", 100_500..=100_999).choose(&none, 0), Some(100_500), "they meet");
        // 65,536 further on, the second half of the first share is in the way, and not that of the third.
        let mut third = owner("c", 165_786..=168_000);
        assert_eq!(third.choose(&none, 0), Some(165_786 + SHARE));
        assert_eq!(owner("d", 165_786..=166_000).choose(&none, 0), None);
        fs::remove_dir(dir.path().join("a")).expect("it is empty");
        assert_eq!(owner("d", 165_786..=166_000).choose(&none, 0), Some(165_786), "nobody has it any more");
    }
}
