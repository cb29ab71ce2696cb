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

/// The folder of the marks. The machine's restart empties it and ends the processes, too.
pub const MARKS: &str = "/run/bazooka/uids";

/// The number of users in a share.
const SHARE: u32 = 1_024;

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
}

impl Uids {
    /// Creates the users out of `range` for the state folder `owner`.
    ///
    /// # Errors
    /// [`UidsError`].
    pub fn new(range: RangeInclusive<u32>, marks: &Path, owner: &Path) -> Result<Uids, UidsError> {
        fs::create_dir_all(marks).map_err(|source| UidsError { marks: marks.to_owned(), source })?;
        Ok(Uids { range, marks: marks.to_owned(), owner: owner.to_owned(), shares: Vec::new() })
    }

    /// Returns a user that is not `used`; none if there is none left.
    pub fn choose(&mut self, used: &BTreeSet<u32>) -> Option<u32> {
        let free =
            |shares: &[RangeInclusive<u32>]| shares.iter().cloned().flatten().find(|uid| !used.contains(uid));
        free(&self.shares).or_else(|| {
            let share = self.take_share()?;
            self.shares.push(share);
            free(&self.shares)
        })
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
        let first = uid - (uid - self.range.start()) % SHARE;
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

    /// Marks a share as ours, unless another state folder has it.
    fn mark(&self, first: u32) -> bool {
        let mark = self.marks.join(first.to_string());
        for _ in 0..2 {
            // Written as a draft and then linked, so that no reader sees half a mark.
            let draft = self.marks.join(format!("{first}.{}", std::process::id()));
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
        assert_eq!(a.choose(&none), Some(1_000));
        assert_eq!(b.choose(&none), Some(1_000 + SHARE));
        assert_eq!(owner("a").choose(&none), Some(1_000), "a restarted one has its share still");
        fs::remove_dir(dir.path().join("a")).expect("it is empty");
        assert_eq!(owner("c").choose(&none), Some(1_000), "the share of a removed one is free");
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
        assert_eq!(a.choose(&BTreeSet::from([1_000 + SHARE])), Some(1_001 + SHARE), "the share is a's now");
        assert!(!a.keep(999) && !a.keep(4_001), "those were never given out");
    }

    #[test]
    fn a_user_is_an_instances_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut uids = Uids::new(1_000..=1_001, dir.path(), dir.path()).expect("marks can be made");
        let mut used = BTreeSet::new();
        for expected in [Some(1_000), Some(1_001), None] {
            let uid = uids.choose(&used);
            assert_eq!(uid, expected);
            used.extend(uid);
        }
    }
}
