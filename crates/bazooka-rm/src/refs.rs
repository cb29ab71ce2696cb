//! The refs that a push may move, and the push options. Pure.

use crate::hook::wire::RefUpdate;

/// The branches whose commits are deployed.
pub const BRANCHES: [&str; 2] = ["refs/heads/master", "refs/heads/main"];

/// The beginning of a tag's ref.
const TAGS: &str = "refs/tags/";

/// The reasons to reject a push before its objects are read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message is its description")]
pub enum Refused {
    #[error("{0} can't be deleted: it is what is deployed (`bazooka destroy` ends the app)")]
    Deletion(String),
    #[error("{0} is a tag: only the branch master or main is deployed")]
    Tag(String),
    #[error("{name} is not deployed: only master or main is; `git push bazooka {short}:{to}` deploys it")]
    OtherBranch { name: String, short: String, to: &'static str },
    #[error("{0} is no branch: only the branch master or main is deployed")]
    NoBranch(String),
    #[error("master and main are two commits here: push the one that is to be deployed")]
    TwoCommits,
    #[error("nothing is pushed")]
    Nothing,
    #[error("there is no push option {0:?}; there are no-rollout and no-wait")]
    UnknownOption(String),
}

/// The commit to deploy and the branches that will name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSet {
    /// The commit's id.
    pub commit: String,
    /// The updates of the branches that will name the commit, with their present commits.
    pub updates: Vec<RefUpdate>,
}

/// The options of `git push -o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Build and register the rev without releasing it.
    pub no_rollout: bool,
    /// Don't stream the rollout.
    pub no_wait: bool,
}

/// Returns what a push deploys. New tags may go along with a branch (`push.followTags`); they deploy nothing, and stay with
/// this rm's own repository.
///
/// # Errors
/// [`Refused`], for the first ref that isn't allowed: git takes either all refs of a push or none.
pub fn change_set(updates: &[RefUpdate]) -> Result<ChangeSet, Refused> {
    let names_branch = updates.iter().any(|update| BRANCHES.contains(&update.name.as_str()));
    let goes_along = |update: &&RefUpdate| names_branch && update.name.starts_with(TAGS) && !update.deletes();
    let branches: Vec<RefUpdate> = updates.iter().filter(|update| !goes_along(update)).cloned().collect();
    for update in &branches {
        allowed(update)?;
    }
    let commit = branches.first().ok_or(Refused::Nothing)?.new.clone();
    if branches.iter().any(|update| update.new != commit) {
        return Err(Refused::TwoCommits);
    }
    Ok(ChangeSet { commit, updates: branches })
}

fn allowed(update: &RefUpdate) -> Result<(), Refused> {
    let name = update.name.clone();
    if BRANCHES.contains(&update.name.as_str()) {
        return if update.deletes() { Err(Refused::Deletion(short(&name).into())) } else { Ok(()) };
    }
    if name.starts_with(TAGS) {
        return Err(Refused::Tag(short(&name).into()));
    }
    if let Some(branch) = name.strip_prefix("refs/heads/") {
        let short = branch.to_owned();
        return Err(Refused::OtherBranch { name: short.clone(), short, to: "master" });
    }
    Err(Refused::NoBranch(name))
}

fn short(name: &str) -> &str {
    name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix(TAGS)).unwrap_or(name)
}

/// Parses push options.
///
/// # Errors
/// [`Refused::UnknownOption`].
pub fn options(words: &[String]) -> Result<Options, Refused> {
    let mut options = Options::default();
    for word in words {
        match word.as_str() {
            "no-rollout" => options.no_rollout = true,
            "no-wait" => options.no_wait = true,
            other => return Err(Refused::UnknownOption(other.chars().take(60).collect())),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(line: &str) -> RefUpdate {
        let line =
            line.replace("0*", &"0".repeat(40)).replace("1*", &"1".repeat(40)).replace("2*", &"2".repeat(40));
        RefUpdate::parse(&line).expect("it is an update")
    }

    #[test]
    fn only_master_and_main_are_deployed() {
        for (lines, wanted) in [
            (&["0* 1* refs/heads/master"][..], None),
            (&["2* 1* refs/heads/main"], None),
            (&["0* 1* refs/heads/master", "0* 1* refs/heads/main"], None),
            (&["0* 1* refs/heads/master", "0* 2* refs/heads/main"], Some("two commits")),
            (&["1* 0* refs/heads/master"], Some("can't be deleted")),
            (&["0* 1* refs/tags/v1"], Some("v1 is a tag")),
            (&["0* 1* refs/heads/master", "0* 1* refs/tags/v1"], None),
            (&["0* 2* refs/tags/v1", "0* 1* refs/heads/master"], None),
            (&["0* 1* refs/heads/master", "1* 0* refs/tags/v1"], Some("v1 is a tag")),
            (&["0* 1* refs/tags/v1", "0* 1* refs/tags/v2"], Some("v1 is a tag")),
            (
                &["0* 1* refs/heads/feature/x"],
                Some("only master or main is; `git push bazooka feature/x:master`"),
            ),
            (&["0* 1* refs/heads/master2"], Some("master2 is not deployed")),
            (&["0* 1* refs/notes/x"], Some("refs/notes/x is no branch")),
            (&[], Some("nothing is pushed")),
        ] {
            let updates: Vec<RefUpdate> = lines.iter().map(|line| update(line)).collect();
            let got = change_set(&updates).map_err(|refused| refused.to_string());
            match (got, wanted) {
                (Ok(set), None) => assert_eq!(set.commit, "1".repeat(40)),
                (Err(refused), Some(wanted)) => assert!(refused.contains(wanted), "{lines:?}: {refused}"),
                (got, _) => panic!("{lines:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn options_are_known_or_refused() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            options(&words(&["no-wait", "no-rollout"])),
            Ok(Options { no_rollout: true, no_wait: true })
        );
        assert_eq!(options(&words(&["no-walt"])), Err(Refused::UnknownOption("no-walt".into())));
    }
}
