//! The production sources: their length, the length of their functions, and the types of their errors.
//!
//! Owns what counts as production: every file below `crates/*/src` that is built without `cfg(test)` and without the
//! feature `testing`, without its inline test modules. The sources are formatted, and this reads them line by line.

use std::collections::BTreeMap;

use crate::tree::{self, File};

/// The most lines of a file.
const MOST_FILE_LINES: usize = 600;

/// The most lines of a function, its signature included.
const MOST_FUNCTION_LINES: usize = 100;

/// Returns every production file, without its test modules.
fn production() -> Vec<File> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for file in tree::files("crates", ".rs") {
        if file.path.split('/').nth(2) == Some("src") {
            all.insert(file.path, file.text);
        }
    }
    let of_production = all.iter().filter(|(path, _)| !is_of_tests(path, &all));
    of_production.map(|(path, text)| File { path: path.clone(), text: without_test_modules(text) }).collect()
}

/// True if a file is built only for tests, or lies in a module that is.
fn is_of_tests(path: &str, all: &BTreeMap<String, String>) -> bool {
    let (folder, file) = path.rsplit_once('/').expect("a file lies in a folder");
    let name = file.trim_end_matches(".rs");
    let parents = match folder.ends_with("/src") {
        true if ["lib", "main"].contains(&name) => return false,
        true => vec![format!("{folder}/lib.rs"), format!("{folder}/main.rs")],
        false => vec![format!("{folder}.rs")],
    };
    parents
        .iter()
        .filter_map(|parent| Some((parent, all.get(parent)?)))
        .any(|(parent, text)| is_declared_for_tests(text, name) || is_of_tests(parent, all))
}

/// True if a module is declared with an attribute that leaves it out of production.
fn is_declared_for_tests(parent: &str, module: &str) -> bool {
    let declaration = format!("mod {module};");
    let mut attributes = String::new();
    for line in parent.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push_str(line);
        } else if line.ends_with(&declaration) {
            return leaves_out(&attributes);
        } else {
            attributes.clear();
        }
    }
    false
}

fn leaves_out(attributes: &str) -> bool {
    attributes.contains("cfg(") && (attributes.contains("test)") || attributes.contains("\"testing\""))
}

/// Returns a source without its inline modules of tests. Left-out lines become empty, so that numbers stay true.
fn without_test_modules(text: &str) -> String {
    let mut kept = String::new();
    let (mut attributes, mut inside) = (String::new(), false);
    for line in text.lines() {
        let is_module = line.trim_start().starts_with("mod ") && line.ends_with('{');
        if !inside && is_module && leaves_out(&attributes) {
            inside = true;
        }
        if !inside {
            kept.push_str(line);
        }
        kept.push('\n');
        inside &= line != "}";
        match line.starts_with("#[") {
            true => attributes.push_str(line),
            false => attributes.clear(),
        }
    }
    kept.truncate(kept.trim_end().len());
    kept
}

/// A function of a source.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// The number of its first line.
    line: usize,
    lines: usize,
}

/// Returns the functions that have a body of more than one line.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let begins = |line: &str| -> Option<String> {
        let words = line.trim_start();
        if words.starts_with("//") || words.starts_with('"') {
            return None;
        }
        let (before, after) = words.split_once("fn ")?;
        let is_header = before.split_whitespace().all(|word| {
            word.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word)
        });
        let name = after.split(['(', '<']).next()?;
        (is_header && !name.is_empty() && !name.contains(' ')).then(|| name.to_owned())
    };
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = begins(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let (close, close_arguments) = (format!("{indent}}}"), format!("{indent})"));
        // A signature without a body, or with a body on its last line, may go over several lines.
        let is_short = |line: &str| line.ends_with(';') || line.ends_with('}');
        let is_last =
            |line: &&&str| **line == close || (line.starts_with(&close_arguments) && is_short(line));
        let after = lines[at + 1..].iter();
        let end = after.enumerate().find(|(_, line)| is_last(line)).filter(|(_, line)| **line == close);
        if let (false, Some((more, _))) = (is_short(line), end) {
            found.push(Function { name, line: at + 1, lines: more + 2 });
        }
    }
    found
}

/// Returns the number of each line on which a `Result` begins whose error is only text.
fn text_errors(text: &str) -> Vec<usize> {
    let code: Vec<&str> =
        text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
    let code = code.join("\n");
    let begins = code.match_indices("Result<");
    let found =
        begins.filter(|(at, begin)| error_type(&code[at + begin.len()..]).is_some_and(|of| of == "String"));
    found.map(|(at, _)| code[..at].lines().count()).collect()
}

/// Returns the last of two arguments of a generic type, whose text begins after the angle bracket.
fn error_type(arguments: &str) -> Option<&str> {
    let (mut depth, mut comma, mut before) = (0_u32, None, ' ');
    for (at, c) in arguments.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' if before == '-' => {}
            '>' if depth == 0 => {
                let last = arguments[comma? + 1..at].trim();
                return Some(last.trim_end_matches(',').trim_end());
            }
            '>' | ')' | ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 && comma.is_none() => comma = Some(at),
            _ => {}
        }
        before = c;
    }
    None
}

#[test]
fn no_production_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<String> = production()
        .iter()
        .filter_map(|file| {
            let lines = file.text.lines().count();
            (lines > MOST_FILE_LINES).then(|| format!("{} has {lines} lines", file.path))
        })
        .collect();
    assert!(long.is_empty(), "at most {MOST_FILE_LINES} lines: {long:#?}");
}

#[test]
fn no_production_function_is_longer_than_two_screens() {
    let mut long = Vec::new();
    for file in production() {
        for Function { name, line, lines } in functions(&file.text) {
            if lines > MOST_FUNCTION_LINES {
                long.push(format!("{}:{line}: {name} has {lines} lines", file.path));
            }
        }
    }
    assert!(long.is_empty(), "at most {MOST_FUNCTION_LINES} lines: {long:#?}");
}

#[test]
fn each_production_error_is_a_type() {
    let mut found = Vec::new();
    for file in production() {
        found.extend(text_errors(&file.text).into_iter().map(|line| format!("{}:{line}", file.path)));
    }
    assert!(found.is_empty(), "errors that are only text, `Result<_, String>`: {found:#?}");
}

#[test]
fn production_is_told_from_tests() {
    let files = production();
    let has = |path: &str| files.iter().any(|file| file.path == path);
    assert!(has("crates/bazooka-pm/src/host/engine.rs") && has("crates/bazooka-pm/src/shim_main.rs"));
    assert!(!has("crates/visor/src/lease/tests.rs"), "declared with cfg(test)");
    assert!(!has("crates/visor/src/testing/etcd.rs"), "in a module of the feature `testing`");
    let text = "fn one() {\n}\n\n#[cfg(test)]\nmod tests {\n    fn two() {\n    }\n}\n\nfn three() {\n}\n";
    let names: Vec<String> =
        functions(&without_test_modules(text)).into_iter().map(|function| function.name).collect();
    assert_eq!(names, ["one", "three"]);
}

#[test]
fn functions_and_their_errors_are_found() {
    let text = "trait A {\n    fn none(\n        a: u8,\n    ) -> u8;\n    fn short() {}\n\n    pub async fn long(\n        \
                a: u8,\n    ) -> Result<BTreeMap<u8, u8>, String>\n    where\n        A: B,\n    {\n        if a {\n        \
                }\n    }\n}\n";
    assert_eq!(functions(text), [Function { name: "long".to_owned(), line: 7, lines: 9 }]);
    assert_eq!(text_errors(text), [9]);
    let others = "Result<String, Error>\nResult<BTreeMap<String, String>, Error>\n// Result<(), String>\n\
                  Result<Option<String>>\n";
    assert_eq!(text_errors(others), Vec::<usize>::new());
    assert_eq!(text_errors("impl Fn() -> Result<\n    (u8, u8),\n    String,\n>"), [1]);
}
