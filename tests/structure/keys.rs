//! Only visor spells keys: no other crate's production code has the text of one.

use visor::rows::{ROWS, Segment};

use crate::tree::{self, File};

/// Words that begin keys and are also words of other things, so that only `word/` gives a key away.
const COMMON: [&str; 12] = [
    "access",
    "apps",
    "audit",
    "hosts",
    "identities",
    "keys",
    "ports",
    "repos",
    "schema",
    "stats",
    "status",
    "unfreeze",
];

/// Files and folders that only tests are built with, though no attribute in them says so.
const OF_TESTS: [&str; 5] = ["/tests.rs", "/tests/", "/testing/", "/fixture.rs", "cases.rs"];

/// Returns the fixed words that begin keys.
fn first_words() -> Vec<&'static str> {
    let mut words: Vec<&str> = ROWS
        .iter()
        .map(|row| match row.key[0] {
            Segment::Word(word) => word,
            Segment::Name(name) => panic!("the keys of {:?} begin with the name of a {name}", row.kind),
        })
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// Returns the modules that a file declares for tests only, as the beginnings of their paths.
fn modules_of_tests(file: &File) -> Vec<String> {
    let folder = match file.path.rsplit_once('/').expect("a source lies in a folder") {
        (folder, "lib.rs" | "main.rs") => folder.to_owned(),
        (folder, name) => format!("{folder}/{}", name.trim_end_matches(".rs")),
    };
    let mut modules = Vec::new();
    let mut lines = file.text.lines();
    while let Some(line) = lines.next() {
        if line.trim().starts_with("#[cfg(test)]") || line.contains("feature = \"testing\"") {
            let item = lines.next().unwrap_or_default().trim().trim_start_matches("pub ");
            if let Some(name) = item.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
                modules.push(format!("{folder}/{name}"));
            }
        }
    }
    modules
}

/// Returns the lines before the inline tests, which come last in a file, without comments.
fn production(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// Reports whether a string literal is the text of a key, or of its beginning.
fn is_key(literal: &str, words: &[&str]) -> bool {
    match literal.split_once('/') {
        // An address or a path has no such beginning: it has a scheme, a dot or a slash before.
        Some((first, _)) => words.contains(&first),
        None => words.contains(&literal) && !COMMON.contains(&literal),
    }
}

#[test]
fn no_other_crate_spells_a_key() {
    let words = first_words();
    let sources: Vec<File> =
        tree::files("crates", ".rs").into_iter().filter(|file| file.path.contains("/src/")).collect();
    let of_tests: Vec<String> = sources.iter().flat_map(modules_of_tests).collect();
    let is_of_tests = |path: &str| {
        OF_TESTS.iter().any(|part| path.contains(part))
            || of_tests.iter().any(|module| {
                path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
            })
    };
    let mut found = Vec::new();
    for file in &sources {
        if file.path.starts_with("crates/visor/") || is_of_tests(&file.path) {
            continue;
        }
        for line in production(&file.text) {
            // The odd pieces are inside of quotes.
            let literals = line.split('"').skip(1).step_by(2);
            let keys = literals.filter(|literal| is_key(literal, &words));
            found.extend(keys.map(|literal| format!("{}: {literal:?}", file.path)));
        }
    }
    assert!(found.is_empty(), "visor::keys spells these: {found:#?}");
}

#[test]
fn a_key_is_seen_however_much_of_it_is_spelled() {
    let words = first_words();
    for key in ["apps/", "counters/instance", "apps/{name}/", "proxies/", "assigned", "hostmeta"] {
        assert!(is_key(key, &words), "{key}");
    }
    for other in ["apps", "/hosts", "hosts", "https://a/apps", "no app", "appsy/b", ""] {
        assert!(!is_key(other, &words), "{other}");
    }
    let text = "let a = \"apps/\";\n// \"apps/\"\n#[cfg(test)]\nmod tests {\n    \"apps/\"\n}\n";
    assert_eq!(production(text).collect::<Vec<_>>(), ["let a = \"apps/\";"]);
}
