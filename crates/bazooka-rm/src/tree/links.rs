//! The check, without a disk, of whether a symbolic link leads out of its tree.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

/// The largest number of links that one path may lead through, as in Linux.
const MAX_HOPS: usize = 40;

/// Returns the first of these links (target by path) that leads out of its tree, with its target.
///
/// A link to nothing in the tree, or in a circle, does not lead out of it.
pub fn first_out(links: &BTreeMap<PathBuf, PathBuf>) -> Option<(PathBuf, PathBuf)> {
    links.iter().find(|(path, _)| leads_out(links, path)).map(|(path, target)| (path.clone(), target.clone()))
}

/// Follows a link step by step as the kernel does: `link/..` is the parent of the link's target, not of the link.
fn leads_out(links: &BTreeMap<PathBuf, PathBuf>, link: &Path) -> bool {
    let mut at = PathBuf::new();
    // The steps left to walk, the next one last.
    let mut steps: Vec<Step> = steps_of(link);
    let mut hops = 0;
    while let Some(step) = steps.pop() {
        match step {
            Step::Root => return true,
            Step::Up => {
                if !at.pop() {
                    return true;
                }
            }
            Step::Down(name) => {
                at.push(name);
                if let Some(target) = links.get(&at) {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return false;
                    }
                    at.pop();
                    steps.extend(steps_of(target));
                }
            }
        }
    }
    false
}

enum Step<'a> {
    Root,
    Up,
    Down(&'a OsStr),
}

fn steps_of(path: &Path) -> Vec<Step<'_>> {
    let mut steps: Vec<Step> = path
        .components()
        .filter_map(|part| match part {
            Component::Prefix(_) | Component::RootDir => Some(Step::Root),
            Component::CurDir => None,
            Component::ParentDir => Some(Step::Up),
            Component::Normal(name) => Some(Step::Down(name)),
        })
        .collect();
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn links(pairs: &[(&str, &str)]) -> BTreeMap<PathBuf, PathBuf> {
        pairs.iter().map(|(path, target)| (path.into(), target.into())).collect()
    }

    #[test]
    fn a_link_that_leads_out_is_found_however_it_goes() {
        for (pairs, out) in [
            (&[("a", "b")][..], None),
            (&[("d/a", "../b")], None),
            (&[("d/a", "..")], None),
            (&[("a", ".")], None),
            (&[("a", "a")], None),
            (&[("a", "b"), ("b", "a")], None),
            (&[("a", "missing/x")], None),
            (&[("a", "/etc/passwd")], Some("a")),
            (&[("a", "..")], Some("a")),
            (&[("d/a", "../..")], Some("d/a")),
            (&[("d/a", "../../app/b")], Some("d/a")),
            (&[("a", "d/../../x")], Some("a")),
            // Read as text this path stays inside; the kernel follows the first link's target.
            (&[("d/e/l", "../.."), ("y", "d/e/l/..")], Some("y")),
            (&[("d/e/l", "../.."), ("y", "d/e/l/d")], None),
        ] {
            let found = first_out(&links(pairs)).map(|(path, _)| path);
            assert_eq!(found, out.map(PathBuf::from), "{pairs:?}");
        }
    }

    proptest! {
        /// Compares with the kernel's answer to where each link leads.
        #[test]
        fn what_stays_inside_stays_inside_on_a_disk(
            pairs in proptest::collection::btree_map(
                "[ab]|[ab]/[ab]",
                prop_oneof!["(\\.\\./){0,3}[abcd]", "[abcd](/[abcd]){0,2}(/\\.\\.){0,3}", Just("..".to_owned())],
                1..5,
            ),
        ) {
            let dir = tempfile::tempdir().expect("a folder");
            let root = dir.path().canonicalize().expect("it is there").join("one/two/app");
            std::fs::create_dir_all(root.join("c/d")).expect("made");
            let mut made = BTreeMap::new();
            for (path, target) in &pairs {
                let at = root.join(path);
                // `a` can be a link, or a folder with links in it.
                let parent = at.parent().expect("it has one");
                if std::fs::create_dir(parent).is_err()
                    && !std::fs::symlink_metadata(parent).expect("it is there").is_dir()
                {
                    continue;
                }
                if std::os::unix::fs::symlink(target, &at).is_ok() {
                    made.insert(PathBuf::from(path), PathBuf::from(target));
                }
            }
            if first_out(&made).is_none() {
                for path in made.keys() {
                    if let Ok(real) = root.join(path).canonicalize() {
                        prop_assert!(real.starts_with(&root), "{path:?} -> {real:?} of {made:?}");
                    }
                }
            }
        }
    }
}
