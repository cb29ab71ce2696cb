//! The pages: their links lead somewhere, they name only what exists, and each stays short enough for its reader.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use crate::tree::{self, File};

/// Folders whose paths a page names from the repository's root.
const FOLDERS: [&str; 4] = ["crates/", "deploy/", "docs/", "tests/"];

/// Crates, by the name that a page gives to a module of theirs (`visor::rules`).
const CRATES: [(&str, &str); 7] = [
    ("visor", "crates/visor/src"),
    ("bazooka_daemon", "crates/bazooka-daemon/src"),
    ("bazooka_sandbox", "crates/bazooka-sandbox/src"),
    ("bazooka_pm", "crates/bazooka-pm/src"),
    ("bazooka_rm", "crates/bazooka-rm/src"),
    ("bazooka_proxy", "crates/bazooka-proxy/src"),
    ("bazooka_tests", "tests/src"),
];

/// The most bytes of a page that somebody reads in one go.
const MOST_BYTES: [(&str, usize); 2] = [("README.md", 6 * 1024), ("docs/architecture.md", 12 * 1024)];

/// The heading over the rules, each of which names the tests that hold it.
const RULES: &str = "## The eleven rules";

/// Every page of the repository.
fn pages() -> Vec<File> {
    tree::files("", ".md")
}

/// Where a link leads, with its anchor: for pages of the repository only.
struct Link {
    path: PathBuf,
    anchor: Option<String>,
}

/// The links and pictures of a page that lead into the repository; code is left out.
fn links(page: &File) -> Vec<Link> {
    let folder = Path::new(&page.path).parent().expect("a file has a folder");
    let mut targets = Vec::new();
    let mut fenced = false;
    for line in page.text.lines() {
        fenced ^= line.starts_with("```");
        if fenced || line.starts_with("    ") {
            continue;
        }
        // The even pieces stand outside of `code`.
        for piece in line.split('`').step_by(2) {
            targets.extend(piece.split("](").skip(1).filter_map(|rest| rest.split(')').next()));
            targets.extend(piece.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()));
        }
    }
    let inside = targets.into_iter().filter(|target| !target.contains("://"));
    inside
        .map(|target| {
            let (path, anchor) =
                target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
            let path = if path.is_empty() { PathBuf::from(&page.path) } else { plain(&folder.join(path)) };
            Link { path, anchor: anchor.map(str::to_owned) }
        })
        .collect()
}

/// A path without its `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, component| {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
        plain
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The words of a page, code and all, without the signs around them.
fn words(page: &str) -> impl Iterator<Item = &str> {
    page.split(|c: char| c.is_whitespace() || "`()[]<>\",;|=@#".contains(c))
        .map(|word| word.trim_matches(|c: char| ".:'*!?".contains(c)))
        .map(|word| word.trim_start_matches("../").trim_start_matches("/"))
}

/// Whether a word of a page is a module or an item of one (`visor::seal`, `visor::access::plan`) that doesn't exist.
fn is_missing_module(word: &str) -> bool {
    let mut parts = word.split("::");
    let first = parts.next().unwrap_or_default();
    let Some((_, source)) = CRATES.iter().find(|(name, _)| *name == first) else { return false };
    let mut module = tree::root().join(source).join("lib");
    while let Some(part) = parts.next() {
        let folder = if module.ends_with("lib") { module.with_file_name("") } else { module.clone() };
        if folder.join(part).with_extension("rs").exists() {
            module = folder.join(part);
        } else {
            let text = std::fs::read_to_string(module.with_extension("rs")).unwrap_or_default();
            return !declares(&text, part) || parts.any(|member| !text.contains(member));
        }
    }
    false
}

/// Whether a source declares an item of this name.
fn declares(source: &str, name: &str) -> bool {
    let kinds = ["const", "enum", "fn", "mod", "struct", "trait", "type"];
    let words: Vec<&str> = source.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    words.windows(2).any(|pair| kinds.contains(&pair[0]) && pair[1] == name)
}

#[test]
fn each_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        for Link { path, anchor } in links(&page) {
            let target = tree::root().join(&path);
            if !target.exists() {
                broken.push(format!("{}: there is no {}", page.path, path.display()));
            } else if let Some(anchor) = anchor {
                let text = std::fs::read_to_string(&target).expect("an anchor is in a page");
                if !anchors(&text).contains(&anchor) {
                    broken.push(format!("{}: {} has no heading #{anchor}", page.path, path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn each_path_and_module_that_a_page_names_exists() {
    let sources: Vec<String> = ["crates", "tests"]
        .iter()
        .flat_map(|folder| tree::files(folder, ".rs"))
        .map(|file| file.path)
        .collect();
    let mut missing = Vec::new();
    for page in pages() {
        for word in words(&page.text) {
            let whole = !word.contains(['{', '*', '$']) && !word.contains("://");
            let path = FOLDERS.iter().any(|folder| word.starts_with(folder));
            let absent = if path && whole {
                !tree::root().join(word).exists()
            } else if word.ends_with(".rs") && whole {
                !sources.iter().any(|source| source.ends_with(&format!("/{word}")))
            } else {
                is_missing_module(word)
            };
            if absent {
                missing.push(format!("{}: {word}", page.path));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn each_page_for_readers_is_reached_from_the_readme() {
    let pages = pages();
    let mut reached = BTreeSet::from([PathBuf::from("README.md")]);
    let mut open = vec![PathBuf::from("README.md")];
    while let Some(path) = open.pop() {
        // A broken link is the other test's to tell.
        let Some(page) = pages.iter().find(|page| Path::new(&page.path) == path) else { continue };
        for link in links(page) {
            if link.path.extension().is_some_and(|ending| ending == "md") && reached.insert(link.path.clone())
            {
                open.push(link.path);
            }
        }
    }
    let lost: Vec<&str> = pages
        .iter()
        .map(|page| page.path.as_str())
        .filter(|path| !path.starts_with("tests/") && !reached.contains(Path::new(path)))
        .collect();
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

#[test]
fn each_page_with_a_limit_keeps_to_it() {
    for (path, most) in MOST_BYTES {
        let bytes = tree::file(path).text.len();
        assert!(bytes <= most, "{path} has {bytes} bytes, and at most {most} are allowed");
    }
}

/// The names of all test functions of the repository.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in ["crates", "tests"].iter().flat_map(|folder| tree::files(folder, ".rs")) {
        let mut marked = false;
        for line in file.text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            } else if marked && let Some((_, rest)) = line.split_once("fn ") {
                names.extend(rest.split('(').next().map(str::to_owned));
                marked = false;
            }
        }
    }
    names
}

#[test]
fn each_rule_names_tests_that_hold_it() {
    let page = tree::file("docs/architecture.md");
    let (_, section) = page.text.split_once(RULES).expect("the page has the rules");
    let section = section.split("\n## ").next().unwrap_or_default();
    let tests = tests();
    for number in 1..=11 {
        let (begin, end) = (format!("\n{number}. "), format!("\n{}. ", number + 1));
        let rule = section.split_once(&begin).unwrap_or_else(|| panic!("rule {number} is missing")).1;
        let rule = rule.split(&end).next().unwrap_or_default();
        let (_, held_by) =
            rule.split_once("Held by").unwrap_or_else(|| panic!("rule {number} names no test"));
        let held_by = held_by.split("\n\n").next().unwrap_or_default();
        let named: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
        let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(
            !named.is_empty() && missing.is_empty(),
            "rule {number}: there are no tests {missing:?} of {named:?}"
        );
    }
}
