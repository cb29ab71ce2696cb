//! Which commits of an app's branches have been dealt with: a file beside the repository's refs.
//!
//! Owns the one thing that neither git nor the coordinator can tell: whether a branch names a commit
//! because its push went through to its end. A push moves its branch a moment before its release becomes
//! head; who dies between the two leaves a commit that isn't noted here, and it is then released after
//! all. A rollback moves head and leaves the branch: its commit is noted, and nothing is to be done.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::layout;

/// The file in a repository.
const NAME: &str = "bazooka-settled.json";

/// The commits that are kept for a branch: what it names, and what a push that is accepted will make it name.
const KEPT: usize = 2;

/// For each branch the commits that were dealt with, newest last; none: nothing is known of this repository.
///
/// # Errors
/// If the file can't be read.
pub fn read(repository: &Path) -> io::Result<Option<BTreeMap<String, Vec<String>>>> {
    match fs::read(repository.join(NAME)) {
        // One that can't be read tells nothing.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes that a branch's commit was dealt with. What was noted before it stays noted, once.
///
/// # Errors
/// If the file can't be written; it is as it was then.
pub fn note(repository: &Path, branch: &str, commit: &str) -> io::Result<()> {
    let mut noted = read(repository)?.unwrap_or_default();
    let commits = noted.entry(branch.to_owned()).or_default();
    if commits.last().is_some_and(|last| last == commit) {
        return Ok(());
    }
    commits.retain(|other| other != commit);
    commits.push(commit.to_owned());
    let surplus = commits.len().saturating_sub(KEPT);
    commits.drain(..surplus);
    // Lost in a power cut, it would have a commit released again that a rollback has left since.
    layout::replace(&repository.join(NAME), &serde_json::to_vec(&noted)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_commits_of_a_branch_are_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(read(dir.path()).expect("readable"), None);
        for commit in ["a", "b", "b", "c", "b"] {
            note(dir.path(), "refs/heads/master", commit).expect("noted");
        }
        note(dir.path(), "refs/heads/main", "d").expect("noted");
        let noted = read(dir.path()).expect("readable").expect("something is noted");
        assert_eq!(noted["refs/heads/master"], ["c", "b"]);
        assert_eq!(noted["refs/heads/main"], ["d"]);
    }
}
