//! The commits of an app's branches that were handled, recorded in a file beside the repository's refs.
//!
//! Owns a fact that neither git nor the coordinator has: whether the push that moved a branch ran to its end. A push
//! moves its branch a moment before its release becomes head. If the pusher or the rm dies between the two, the
//! branch's commit is not in the file, and is then released after all. A rollback moves head and leaves the branch:
//! that commit is in the file, so nothing is done.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::layout;

/// The file's name in a repository.
const NAME: &str = "bazooka-settled.json";

/// The number of commits kept for a branch: its present one, and the one to which an accepted push will move it.
const KEPT: usize = 2;

/// Returns the handled commits of each branch, newest last. `None` if the repository has no record.
///
/// # Errors
/// If the file can't be read.
pub fn read(repository: &Path) -> io::Result<Option<BTreeMap<String, Vec<String>>>> {
    match fs::read(repository.join(NAME)) {
        // An invalid file counts as no record.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Records that a branch's commit was handled. The commit recorded before it is kept too.
///
/// # Errors
/// If the file can't be written; it is then unchanged.
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
    // Synced: if a power cut lost the record, a commit that a later rollback has left would be released again.
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
