//! The test of visor's layers: no module uses one that comes after it in the list at the head of `src/lib.rs`.
//!
//! It reads the sources. Inline tests, `tests.rs` files and what the feature `testing` adds may use any layer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Returns every `.rs` file below a folder, with the path of its module.
fn sources(src: &Path) -> Vec<(PathBuf, Vec<String>)> {
    let mut found = Vec::new();
    let mut folders = vec![src.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let inside = path.strip_prefix(src).expect("below it").with_extension("");
                let module = inside.iter().map(|part| part.to_str().expect("UTF-8").to_owned()).collect();
                found.push((path, module));
            }
        }
    }
    found.sort();
    found
}

/// Returns only production code: without comments, and without items that only tests are built with.
fn production(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line.trim() != "#[cfg(test)]" && line.trim() != "#[cfg(feature = \"testing\")]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        // Skips the item that follows: up to its closing brace in the same column, or its semicolon.
        let indent = line.len() - line.trim_start().len();
        for line in lines.by_ref() {
            let (here, code) = (line.len() - line.trim_start().len(), line.trim());
            let ends = code.starts_with('}') || code.ends_with(';') || code.ends_with('}');
            if here == indent && ends && !code.starts_with('#') {
                break;
            }
        }
    }
    kept
}

/// Returns the first names of the paths that follow `at`: one, or those of a group in braces.
fn heads(text: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = text.strip_prefix('{') else { return vec![name(text)] };
    let (mut depth, mut start, mut heads) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// Returns the top-level modules that a file uses.
fn used(text: &str, module: &[String]) -> BTreeSet<String> {
    let up = "super::".repeat(module.len());
    let mut used = BTreeSet::new();
    for root in ["crate::", up.as_str()] {
        for (at, _) in text.match_indices(root) {
            let before = text[..at].chars().next_back();
            // `$crate::` of a macro is the same crate; `some_crate::` and a longer chain of `super::` are not.
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                used.extend(heads(&text[at + root.len()..]));
            }
        }
    }
    used
}

/// Returns the layers, lowest first, as the head of `lib.rs` lists them.
fn layers(lib: &str) -> Vec<String> {
    let head: Vec<&str> = lib.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let block = head.iter().skip_while(|line| line.trim() != "```text").skip(1);
    let listed = block.take_while(|line| line.trim() != "```");
    listed.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

fn modules(lib: &str) -> BTreeSet<String> {
    let declared = lib.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    declared.map(|rest| rest.trim_end_matches(';').to_owned()).collect()
}

#[test]
fn each_layer_uses_only_those_before_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).expect("lib.rs");
    let layers = layers(&lib);
    let place: BTreeMap<&str, usize> =
        layers.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let listed: BTreeSet<String> = layers.iter().cloned().collect();
    assert_eq!(listed.len(), layers.len(), "a layer is listed twice in the head of lib.rs");
    assert_eq!(listed, modules(&lib), "the head of lib.rs lists each module once");
    let mut wrong = Vec::new();
    for (path, module) in sources(&src) {
        let [own, ..] = &module[..] else { continue };
        let of_tests = module.iter().any(|part| part == "tests" || part == "testing");
        if of_tests || own == "lib" {
            continue;
        }
        let text = production(&fs::read_to_string(&path).expect("a source"));
        for other in used(&text, &module) {
            let Some(at) = place.get(other.as_str()) else { continue };
            if *at > place[own.as_str()] {
                wrong.push(format!("{}: {own} uses {other}, a later layer", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_use_of_a_later_layer_is_seen_however_it_is_written() {
    let module = ["store".to_owned(), "etcd".to_owned()];
    let used = |text: &str| used(&production(text), &module).into_iter().collect::<Vec<_>>();
    assert_eq!(used("use crate::check;"), ["check"]);
    assert_eq!(used("use crate::{\n    check::{self, Finding},\n    keys::Key,\n};"), ["check", "keys"]);
    assert_eq!(used("fn f() { super::super::check::look(); }"), ["check"]);
    assert_eq!(used("let a = crate::check::look();"), ["check"]);
    assert_eq!(used("use super::Keys;\n// crate::check\n"), [""; 0]);
    assert_eq!(used("#[cfg(test)]\nmod tests {\n    use crate::check;\n}\nuse crate::keys;\n"), ["keys"]);
    assert_eq!(used("use other_crate::check;"), [""; 0]);
}
